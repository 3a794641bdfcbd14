"""Fixtures that every room's tests share."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from tests.s3.rados_gateway import S3Server, s3_server, server_name

from dsprobe.config import ModelConfig
from dsprobe.models.base import LanguageModel
from dsprobe.models.load import load_model

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Ray ends a process that has lost its control store for a minute; of the Ray instances that tests start and end in one
# process, an earlier one's late request must not end the later ones.
os.environ.setdefault("RAY_gcs_rpc_server_reconnect_timeout_s", "1800")
torch.set_num_threads(1)
FIXTURES = Path(__file__).parent / "fixtures"


def pytest_report_header() -> str:
    """Which S3 server the tests of storage talk to."""
    return f"S3 server: {server_name()}"


@pytest.fixture(scope="session", params=[server_name()], ids=lambda name: name.partition(",")[0])
def gateway() -> Iterator[S3Server]:
    """A running S3 server, named in the ids of the tests that use it."""
    with s3_server() as server:
        yield server


@pytest.fixture(scope="session")
def fixtures() -> Path:
    """Folder of golden files and tiny checkpoints."""
    return FIXTURES


@pytest.fixture(scope="session")
def load() -> Callable[[str], LanguageModel]:
    """Load a model once a session: a fixture folder (`dream-tiny`, `llada-tiny`) or an embedded model by name."""
    loaded: dict[str, LanguageModel] = {}

    def get(name: str) -> LanguageModel:
        if name not in loaded:
            folder = FIXTURES / name
            loaded[name] = load_model(ModelConfig(name=name, path=str(folder) if folder.is_dir() else None))
        return loaded[name]

    return get
