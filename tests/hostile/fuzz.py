"""Coverage-guided fuzzing of one target: ``python -m tests.hostile.fuzz TARGET --seconds N``.

Every input that ends in an exception other than a `DSProbeError` is written to ``--keep``, one for each place, and
shown; the exit code is then 1. Inputs kept under ``tests/hostile/findings/TARGET`` are replayed by the test suite.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import math
import os
import shutil
import sys
import tempfile
import time
import traceback
from pathlib import Path

import atheris
from tests.hostile.hostile_targets import TARGETS, survives

FINDINGS = Path(__file__).parent / "findings"


class Fuzzer:
    """One target under fire."""

    def __init__(self, target, seconds, keep):
        self.target, self.keep = target, keep
        self.seconds, self.until = seconds, math.inf
        self.folder = Path(tempfile.mkdtemp(prefix="dsprobe-fuzz-"))
        self.runs, self.places, self.slowest = 0, set(), 0.0

    def __call__(self, data):
        start = time.monotonic()
        self.until = min(self.until, start + self.seconds)  # from the first input on
        if start > self.until:
            self.end()
        self.runs += 1
        try:
            survives(self.target, data, self.folder)
        except Exception as error:  # noqa: BLE001 - every kind is a finding
            self.note(error, data)
        self.slowest = max(self.slowest, time.monotonic() - start)

    def note(self, error, data):
        frames = traceback.extract_tb(error.__traceback__)
        ours = [frame for frame in frames if "/dsprobe/" in frame.filename] or frames
        place = (type(error).__name__, Path(ours[-1].filename).name, ours[-1].lineno)
        if place in self.places:
            return
        self.places.add(place)
        self.keep.mkdir(parents=True, exist_ok=True)
        path = self.keep / hashlib.sha256(data).hexdigest()[:12]
        path.write_bytes(data)
        print(f"FINDING {self.target} {place} {str(error)[:200]!r} -> {path}", flush=True)
        for frame in ours[-3:]:
            print(f"    {frame.filename}:{frame.lineno} {frame.line}", flush=True)

    def end(self):
        print(f"DONE {self.target}: {self.runs} executions, {len(self.places)} findings, slowest {self.slowest:.1f} s")
        sys.stdout.flush()
        shutil.rmtree(self.folder, ignore_errors=True)
        os._exit(1 if self.places else 0)  # libFuzzer would go on


def import_instrumented(target, folder):
    """Let a target import what it reads with, so that libFuzzer sees its branches."""
    with atheris.instrument_imports(include=["dsprobe", "yaml"], enable_loader_override=False):
        for kind in range(12):
            with contextlib.suppress(Exception):
                survives(target, bytes([kind]) + bytes(8), folder)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", choices=sorted(TARGETS))
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--keep", type=Path, help="Folder for inputs that are findings.")
    given = parser.parse_args()
    fuzzer = Fuzzer(given.target, given.seconds, given.keep or FINDINGS / given.target)
    import_instrumented(given.target, fuzzer.folder)
    corpus = tempfile.mkdtemp(prefix="dsprobe-corpus-")
    for seed in (FINDINGS / given.target).glob("*"):
        shutil.copy(seed, corpus)
    keep = fuzzer.keep
    keep.mkdir(parents=True, exist_ok=True)
    options = [
        "-timeout=60",
        "-rss_limit_mb=3000",
        "-max_len=4096",
        "-print_final_stats=0",
        "-verbosity=0",
        f"-artifact_prefix={keep}/",
    ]
    atheris.Setup([sys.argv[0], *options, corpus], fuzzer)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
