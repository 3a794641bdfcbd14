"""A bucket on the S3 server, and the environment of its user."""

from __future__ import annotations

import uuid
from collections.abc import Callable

import pytest
from tests.s3.rados_gateway import S3Server


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`use(server, url)` points botocore's usual chain at a server, or at what stands in front of it."""

    def point(server: S3Server, url: str = "") -> None:
        for name, value in server.environment(url).items():
            monkeypatch.setenv(name, value)

    return point


@pytest.fixture(scope="session")
def bucket(gateway: S3Server) -> str:
    """One bucket for all tests: the first object in a bucket takes a gateway two seconds."""
    return gateway.new_bucket()


@pytest.fixture
def root(request: pytest.FixtureRequest, gateway: S3Server, bucket: str, use: Callable[..., None]) -> str:
    """A place for runs on the server; the environment has what is needed to reach it."""
    use(gateway)
    return f"s3://{bucket}/{request.node.originalname}/{uuid.uuid4().hex[:8]}"
