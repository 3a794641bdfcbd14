"""How the online path scales: 1 to 64 replicas with a modelled GPU, on a Ray cluster of several nodes on this machine.

Run as ``python -m benchmarks.scale [--replicas 1,2,4,8,16,32,64] [--out scale.json]``; takes about 10 minutes,
12 GB and root, because it makes a process namespace of its own. Prints tables and writes all figures as JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from benchmarks.scale.work import ModelledGpu, Work

if TYPE_CHECKING:
    from benchmarks.scale.suites import Settings

ENCLOSED: Final = "DSPROBE_SCALE_ENCLOSED"
"""Set in the process that measures."""

SUITE_NAMES: Final = ("memory", "store", "scaling")


def main() -> None:
    """Measure and print."""
    arguments = _parser().parse_args()
    if ENCLOSED not in os.environ:
        from benchmarks.scale.cluster import run_enclosed

        sys.exit(run_enclosed([*sys.argv[1:], "--out", str(arguments.out.absolute())], **{ENCLOSED: "1"}))
    from benchmarks.scale.suites import measure
    from benchmarks.scale.table import tables

    def save(figures: dict[str, Any]) -> None:
        arguments.out.write_text(json.dumps(figures, indent=1) + "\n")

    figures = measure(_settings(arguments), save)
    print(tables(figures))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m benchmarks.scale")
    parser.add_argument("--suites", type=_suites, default=SUITE_NAMES, help=f"default: {','.join(SUITE_NAMES)}")
    parser.add_argument("--replicas", type=_numbers, default=(1, 2, 4, 8, 16, 32, 64), help="default: 1,2,4,…,64")
    parser.add_argument("--seconds", type=float, default=20.0, help="steady part of a case")
    parser.add_argument("--step-ms", type=float, help="of a whole batch; default: of the modelled GPU (docs/scale.md)")
    parser.add_argument("--rows", type=int, default=16, help="trajectories a batch")
    parser.add_argument("--steps", type=int, default=64)
    parser.add_argument("--length", type=int, default=128, help="response positions")
    parser.add_argument("--prompt-length", type=int, default=128)
    parser.add_argument("--nodes", type=int, default=4, help="nodes with GPUs, beside the head")
    parser.add_argument("--store-mib", type=int, default=256, help="object store of each node")
    parser.add_argument("--factor", type=int, default=50, help="data of the large memory case over the small one")
    parser.add_argument("--root", help="where runs go (fsspec URL); default: a temporary folder")
    parser.add_argument("--out", type=Path, default=Path("scale.json"))
    return parser


def _suites(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    if unknown := sorted(set(names) - set(SUITE_NAMES)):
        raise argparse.ArgumentTypeError(f"`{unknown[0]}` is none of {', '.join(SUITE_NAMES)}")
    return names


def _numbers(text: str) -> tuple[int, ...]:
    counts = sorted({int(part) for part in text.split(",")})
    if counts[0] < 1:
        raise argparse.ArgumentTypeError(f"`{counts[0]}` replicas cannot do anything")
    return tuple(counts)


def _settings(arguments: argparse.Namespace) -> Settings:
    from benchmarks.scale.suites import Settings

    shape = {name: getattr(arguments, name) for name in ("rows", "steps", "length", "prompt_length")}
    modelled_ms = ModelledGpu().step_ms(arguments.rows, arguments.prompt_length + arguments.length)
    return Settings(
        work=Work(**shape, step_ms=arguments.step_ms or modelled_ms),
        **{
            name: getattr(arguments, name)
            for name in ("suites", "replicas", "seconds", "nodes", "store_mib", "factor", "root")
        },
    )


if __name__ == "__main__":
    main()
