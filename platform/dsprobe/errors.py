"""Errors that a user can act on.

Every message names the value, what is allowed and, where one exists, the nearest match. The command line
prints these without a traceback; any other exception is a bug and keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class DSProbeError(Exception):
    """Root of all errors that dsprobe raises on purpose."""


class ConfigError(DSProbeError, ValueError):
    """A configuration value, command-line argument or input file is wrong. Exit code 2."""


class PrerequisiteError(DSProbeError, RuntimeError):
    """Something outside the program is missing (a package, a device, a server); the message says how to get it."""


class CheckpointError(DSProbeError, ValueError):
    """A model folder cannot be loaded as asked (layout, keys, flags, unsafe format)."""


class StorageError(DSProbeError, RuntimeError):
    """Stored data is missing, damaged, or was written by a newer version."""


class DamagedError(StorageError):
    """Stored data is missing or is not what was written; `dsprobe verify` finds all such files of a run."""


class IncompleteRunError(DSProbeError, RuntimeError):
    """Some units of work could not be finished; running the same command again resumes them. Exit code 1."""


_LONGEST_NAME = 40
_MOST_NAMES = 12


def brief(names: Iterable[str], separator: str = ", ") -> str:
    """Names out of a data file: long ones cut and at most a dozen, since without a header they are its first row."""
    found = list(names)
    cut = [name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…" for name in found[:_MOST_NAMES]]
    return separator.join(cut + ["…"] * (len(found) > _MOST_NAMES))


def unknown_name(what: str, name: str, allowed: Iterable[str], *, of_file: bool = False) -> ConfigError:
    """Build the error for a name that is not in a known set.

    Args:
        what: What the name stands for, e.g. ``"attack"`` or ``"key in decoding"``.
        name: The name as given.
        allowed: All names that would have been accepted.
        of_file: The allowed names were read from a data file; see `brief`.

    Returns:
        A `ConfigError` that names the nearest match, if any is close, and lists the allowed names.
    """
    options = sorted(allowed)
    close = difflib.get_close_matches(name, options, n=1, cutoff=0.5)
    hint = f" Did you mean `{brief(close) if of_file else close[0]}`?" if close else ""
    return ConfigError(f"Unknown {what} `{name}`.{hint} Allowed: {brief(options) if of_file else ', '.join(options)}.")


def missing_package(feature: str, extra: str) -> PrerequisiteError:
    """Build the error for a feature whose optional dependencies are not installed."""
    return PrerequisiteError(f"{feature} needs optional packages. Install them with: pip install 'dsprobe[{extra}]'")
