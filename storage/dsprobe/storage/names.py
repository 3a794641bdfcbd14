"""Names of objects: the one place that decides what a name out of a document may be.

Every name that a manifest, commit record, table index or score record holds passes `ObjectStore.path`, and so comes
through here before it reaches a file system.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final

from dsprobe.errors import StorageError
from dsprobe.untrusted import local_path

MAX_NAME: Final = 1024
"""Bytes of a name; S3's own limit."""

_FORBIDDEN: Final = re.compile(r"[\x00-\x1f\x7f\\]")
_DRIVE: Final = re.compile(r"^[A-Za-z]:")
_ENCODED_DOTS: Final = re.compile(r"(?:\.|%2e){1,2}", re.IGNORECASE)


def safe_name(name: str) -> str:
    """Check that a name stays below the folder it is joined to, on any store.

    Args:
        name: Relative, parts separated by ``/``; empty stands for the folder itself.

    Returns:
        The name.

    Raises:
        StorageError: It is absolute, steps upwards, or holds characters that some store reads in its own way.
    """
    parts = name.split("/") if name else []
    wrong = (
        _FORBIDDEN.search(name)
        or _DRIVE.match(name)
        or any(not part or _ENCODED_DOTS.fullmatch(part) for part in parts)
        or len(name.encode("utf-8", "surrogatepass")) > MAX_NAME
        or any("\ud800" <= character <= "\udfff" for character in name)
    )
    if wrong:
        shown = name if len(name) <= 80 else f"{name[:80]}…"
        raise StorageError(
            f"{shown!a} is no name of an object: names are relative, without `..`, empty parts, backslashes and "
            "control characters. What holds the name is damaged or was not written by dsprobe."
        )
    return name


def given_place(place: str) -> str:
    """Where a run lies that a user names: a URL as it is, a path as an absolute one, an id below ``./runs``.

    Raises:
        ConfigError: No folder can have this path.
    """
    url = place.rstrip("/")
    if "://" in url:
        return url
    path, below = local_path(url, "run"), Path("runs", url)
    return str((below if not path.exists() and below.exists() else path).resolve())


def inside(root: str, name: str) -> str:
    """The local path of a name, after following symbolic links.

    Args:
        root: Folder of the store.
        name: From `safe_name`.

    Raises:
        StorageError: A link leads out of the folder.
    """
    path = f"{root}/{name}" if name else root
    real_root = os.path.realpath(root)
    real = os.path.realpath(path)
    if real != real_root and not real.startswith(real_root.rstrip("/") + "/"):
        raise StorageError(f"{path} leads out of {root} by a symbolic link, and is not followed.")
    return path
