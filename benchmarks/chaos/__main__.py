"""Kill runs at random moments over a store that fails at random, and compare their tables with an undisturbed run's.

Run as ``python -m benchmarks.chaos`` (`make chaos`). Everything happens inside a PID namespace (`unshare`), which takes
every process along when it ends. The store is a real S3 server, Ceph's RADOS Gateway, behind a proxy that injects the
faults (moto's server where Ceph is not installed, which is said), or a local folder with ``--store folder``.
Exit code 1 means that tables differed, a command hung or a run could not be completed; its logs and objects are kept.

Runs without Ray and runs on a Ray cluster with two worker nodes work side by side. Drivers are forked from a process
that has imported the package (importing takes longer than these runs), but for the kind `own raylet`, which starts them
as a user does. Moments are spread evenly over start-up, commits and table files. The seed repeats what is killed and
when, counted in those; what exactly the processes were doing then depends on the machine.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path

_INSIDE = "DSPROBE_CHAOS_INSIDE"


def main() -> None:
    """Parse, go into a namespace, run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=100, help="killed runs at least")
    parser.add_argument("--storage-faults", type=int, default=1000, help="injected storage faults at least")
    parser.add_argument("--ray-share", type=float, default=0.15, help="share of the runs that are on Ray")
    parser.add_argument("--jobs", type=int, default=2, help="runs without Ray at a time")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--store", choices=("s3", "folder"), default="s3")
    parser.add_argument("--only", metavar="KIND", action="append", help="these kinds of faults alone; repeatable")
    parser.add_argument("--first", type=int, default=1, metavar="NUMBER", help="number of the first run, to repeat one")
    parser.add_argument("--keep", type=Path, default=Path("chaos-failures"), help="where failed runs are kept")
    arguments = parser.parse_args()
    if _INSIDE not in os.environ:
        _enter_namespace()
    # The first process of a namespace is not ended by a signal that it has no handler for.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    from benchmarks.chaos.lanes import run_campaign

    folder = Path(tempfile.mkdtemp(prefix="dsprobe-chaos-"))
    try:
        sys.exit(run_campaign(arguments, folder))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _enter_namespace() -> None:
    """Begin again as the first process of a namespace; does not return."""
    unshare = shutil.which("unshare")
    if unshare is None:
        sys.exit("benchmarks.chaos needs `unshare` (util-linux): its processes must end with it, whatever happens.")
    user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    command = [unshare, *user, "--pid", "--fork", "--mount-proc", "--kill-child", sys.executable, "-m"]
    os.environ[_INSIDE] = "1"
    os.execv(unshare, [*command, "benchmarks.chaos", *sys.argv[1:]])


if __name__ == "__main__":
    main()
