"""What `dsprobe doctor` looks at."""

from __future__ import annotations

import importlib.util
import os
import platform
import tempfile
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

REQUIRED = ("torch", "transformers", "ray", "pyarrow", "duckdb", "pydantic")
OPTIONAL = {"s3fs": "s3", "matplotlib": "report", "jinja2": "report", "datasets": "data", "openai": "judges"}


@dataclass(frozen=True, slots=True)
class Check:
    """One finding."""

    name: str
    ok: bool
    detail: str
    required: bool = True

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)


def diagnose() -> list[Check]:
    """Run all checks; none of them loads a model or starts a server."""
    checks = [Check("python", True, platform.python_version())]
    checks += [_package(name, None) for name in REQUIRED]
    checks += [_package(name, extra) for name, extra in OPTIONAL.items()]
    return [*checks, _accelerator(), _embedded(), _threads(), _writable()]


def _package(name: str, extra: str | None) -> Check:
    try:
        found = version(name) if importlib.util.find_spec(name) else None
    except PackageNotFoundError:
        found = None
    hint = f"pip install 'dsprobe[{extra}]'" if extra else "pip install dsprobe"
    return Check(name, found is not None, found or f"not installed ({hint})", required=extra is None)


def _accelerator() -> Check:
    import torch

    if not torch.cuda.is_available():
        return Check("accelerator", False, "no CUDA device; models run on the CPU", required=False)
    properties = torch.cuda.get_device_properties(0)
    return Check("accelerator", True, f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB", required=False)


def _embedded() -> Check:
    from dsprobe.toy.assets import EMBEDDED_MODELS, checkpoint_dir

    missing = [name for name in EMBEDDED_MODELS if not (checkpoint_dir(name) / "model.safetensors").is_file()]
    detail = f"missing: {', '.join(missing)} (dsprobe toy train)" if missing else f"{len(EMBEDDED_MODELS)} checkpoints"
    return Check("embedded models", not missing, detail)


def _threads() -> Check:
    return Check("cpu", True, f"{os.cpu_count()} cores, OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS', 'unset')}")


def _writable() -> Check:
    try:
        with tempfile.NamedTemporaryFile(dir=".", prefix="_dsprobe_probe_"):
            pass
    except OSError as error:
        return Check("output folder", False, f"{os.getcwd()}: {error}")
    return Check("output folder", True, f"{os.getcwd()} is writable")
