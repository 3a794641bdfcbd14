"""What the libraries raise for a file that is not what it says it is, as one error that names the file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pyarrow as pa

from dsprobe.errors import DamagedError, DSProbeError


@contextmanager
def damage(where: str, remedy: str = "") -> Iterator[None]:
    """Turn errors of decoding into a `DamagedError`.

    Errors of the operating system, which have a number, pass through: a full disk is no damaged file.

    Args:
        where: The file, for the message.
        remedy: What the user can do about it.

    Raises:
        DamagedError: Arrow, or the decoding of a text or number, failed.
    """
    try:
        yield
    except DSProbeError:
        raise
    except (pa.ArrowException, ValueError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        problem = str(error).strip().split("\n")[0][:200]
        raise DamagedError(f"{where} is damaged: {problem or type(error).__name__}. {remedy}".rstrip()) from error
