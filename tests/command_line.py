"""`dsprobe` called in this process, as its entry point is called."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from unittest import mock

import pytest

from dsprobe.cli.main import main


def dsprobe(*arguments, cwd, columns=160, env=None):
    """Exit code, standard output and standard error of one command.

    Args:
        arguments: What stands behind `dsprobe`.
        cwd: Working folder.
        columns: Width of the terminal.
        env: More environment variables.
    """
    out, err = io.StringIO(), io.StringIO()
    with (
        contextlib.chdir(cwd),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        mock.patch.object(sys, "argv", ["dsprobe", *map(str, arguments)]),
        mock.patch.dict(os.environ, {"COLUMNS": str(columns), **(env or {})}),
        pytest.raises(SystemExit) as ended,
    ):
        main()
    return ended.value.code or 0, out.getvalue(), err.getvalue()
