"""The wheel that brings this code to a cluster's nodes.

Ray installs a job's wheel by pip with all it requires, which would be another PyTorch and another Ray in the job's own
folder; and it knows packages by their file's name, so that new code of the same version would not be sent again. A
job's wheel therefore requires nothing, since the nodes have what dsprobe needs, and has a digest in its name.
"""

from __future__ import annotations

import base64
import hashlib
import json
import subprocess
import sys
import zipfile
from importlib.metadata import distribution
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlparse

from dsprobe.errors import ConfigError, PrerequisiteError

AUTO: Final = "auto"
"""Build one where this is an editable checkout; nothing where dsprobe is installed, as it then is on the nodes."""
NONE: Final = "none"
"""Nothing: the nodes' own dsprobe runs."""

_BUILD_SECONDS: Final = 300


def job_wheel(wanted: str, folder: Path) -> Path | None:
    """The wheel for a job.

    Args:
        wanted: Path of a wheel, or `AUTO` or `NONE`.
        folder: Where one is built; made where it is needed.

    Returns:
        A wheel for Ray, see `for_ray`; `None` where the nodes' own dsprobe is to run.

    Raises:
        ConfigError: The path is no wheel of dsprobe.
        PrerequisiteError: It could not be built.
    """
    if wanted == NONE:
        return None
    if wanted == AUTO:
        checkout = editable_checkout()
        return None if checkout is None else for_ray(build_wheel(checkout, folder), folder)
    path = Path(wanted).expanduser()
    if path.suffix != ".whl" or not path.name.startswith("dsprobe-") or not path.is_file():
        raise ConfigError(f"--wheel `{wanted}` is no wheel of dsprobe. Allowed: a path, {AUTO}, {NONE}.")
    return for_ray(path, folder)


def editable_checkout() -> Path | None:
    """Root of the checkout that this code runs from; `None` where dsprobe is installed as a copy."""
    origin = json.loads(distribution("dsprobe").read_text("direct_url.json") or "{}")
    if not origin.get("dir_info", {}).get("editable"):
        return None
    return Path(unquote(urlparse(origin["url"]).path))


def build_wheel(checkout: Path, folder: Path) -> Path:
    """Build the checkout's wheel, without its dependencies, which the nodes have.

    Args:
        checkout: Folder with `pyproject.toml`.
        folder: Where the wheel is put.

    Raises:
        PrerequisiteError: The build failed; the message has its last lines.
    """
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check", "--no-deps",
               "--no-build-isolation", "--wheel-dir", str(folder), str(checkout)]  # fmt: skip
    try:
        built = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_BUILD_SECONDS)
    except subprocess.TimeoutExpired:
        raise PrerequisiteError(f"The wheel of {checkout} was not built within {_BUILD_SECONDS} s.") from None
    found = sorted(folder.glob("dsprobe-*.whl"))
    if built.returncode or not found:
        said = "\n".join((built.stderr or built.stdout).strip().splitlines()[-4:])
        raise PrerequisiteError(
            f"The wheel of {checkout} could not be built. It takes pip and hatchling (pip install 'dsprobe[dev]'); or "
            f"give one by --wheel, or --wheel {NONE} where the nodes have this version installed.\n{said}"
        )
    return found[-1]


def for_ray(wheel: Path, folder: Path) -> Path:
    """Copy a wheel for a job: without requirements, and named by its content.

    Args:
        wheel: A wheel of dsprobe.
        folder: Where the copy is put; made where it is needed.

    Returns:
        The copy, ``dsprobe-<version>-0<digest>-<tags>.whl``; the digest stands where a build number may.

    Raises:
        ConfigError: It is no wheel.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            files = {name: archive.read(name) for name in archive.namelist()}
        metadata = next(name for name in files if name.endswith(".dist-info/METADATA"))
        files[metadata] = _without_requirements(files[metadata])
        record = metadata.removesuffix("METADATA") + "RECORD"
        files[record] = _recorded(files[record], metadata, files[metadata])
        name, release, *_, python, abi, platform = wheel.stem.split("-")
    except (OSError, zipfile.BadZipFile, StopIteration, KeyError, ValueError) as error:
        raise ConfigError(f"`{wheel}` is no wheel: {type(error).__name__}: {error}") from None
    digest = hashlib.sha256(b"".join(name.encode() + b"\0" + files[name] for name in sorted(files))).hexdigest()
    folder.mkdir(parents=True, exist_ok=True)
    copy = folder / f"{name}-{release}-0{digest[:12]}-{python}-{abi}-{platform}.whl"
    with zipfile.ZipFile(copy, "w", zipfile.ZIP_DEFLATED) as archive:
        for file, data in files.items():
            archive.writestr(file, data)
    return copy


def _without_requirements(metadata: bytes) -> bytes:
    head, separator, body = metadata.partition(b"\n\n")
    kept = [line for line in head.split(b"\n") if not line.startswith((b"Requires-Dist:", b"Provides-Extra:"))]
    return b"\n".join(kept) + separator + body


def _recorded(record: bytes, name: str, data: bytes) -> bytes:
    """A wheel's list of files with the new digest of one."""
    digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
    lines = record.decode().splitlines()
    new = [f"{name},sha256={digest},{len(data)}" if line.startswith(f"{name},") else line for line in lines]
    return ("\n".join(new) + "\n").encode()
