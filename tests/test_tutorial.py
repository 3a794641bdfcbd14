"""The tutorial's blocks run from top to bottom, and print what the page shows."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from fnmatch import fnmatchcase
from pathlib import Path

TUTORIAL = Path(__file__).parents[1] / "docs" / "tutorial.md"
BLOCK = re.compile(r"^```(bash|python|text)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
MARK = "tutorial-block"


def test_the_tutorial_runs_and_prints_what_it_shows(tmp_path):
    blocks = [(kind, text) for kind, text in BLOCK.findall(TUTORIAL.read_text())]
    script = "\n".join(_as_shell(kind, text) for kind, text in blocks)
    outputs = _run(f"set -euo pipefail\n{script}", tmp_path).split(f"{MARK}\n")[1:]
    shown = _shown_by_block(blocks)
    assert len(outputs) == len(shown)
    for output, expected in zip(outputs, shown, strict=True):
        _assert_shows(output, expected)


def _as_shell(kind: str, text: str) -> str:
    """A block as a piece of shell, announced on standard output; expected output is nothing to run."""
    if kind == "text":
        return ""
    body = f"{sys.executable} - <<'PYTHON'\n{text}PYTHON\n" if kind == "python" else text
    return f"echo {MARK}\n{body}"


def _shown_by_block(blocks: list[tuple[str, str]]) -> list[str]:
    """The output that the page shows for each block that is run."""
    shown: list[str] = []
    for kind, text in blocks:
        if kind == "text":
            shown[-1] = text
        else:
            shown.append("")
    return shown


def _run(script: str, folder: Path) -> str:
    bin_folder = Path(sys.executable).parent
    environment = {
        **os.environ,
        "PATH": f"{bin_folder}:{os.environ['PATH']}",
        "COLUMNS": "100",
        "OMP_NUM_THREADS": "1",
    }
    ended = subprocess.run(
        ["bash", "-c", f"exec 2>&1\n{script}"], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stdout[-3000:]
    return ended.stdout


def _assert_shows(output: str, expected: str) -> None:
    """Each line that the page shows was printed; `*` stands for anything."""
    lines = [line.rstrip() for line in output.splitlines()]
    for line in expected.splitlines():
        assert any(fnmatchcase(printed, line.replace("[", "[[]")) for printed in lines), (
            f"not printed: {line}\n{output}"
        )
