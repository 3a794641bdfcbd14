"""What the processes of this namespace take: processor time and memory, by role. Needs Linux's ``/proc``."""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

Role = Literal["driver", "reducers", "replicas", "ray"]

ROLES: Final[tuple[Role, ...]] = ("driver", "reducers", "replicas", "ray")

_TICK_S: Final = 1 / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Memory of one or more processes, in MiB; pages shared by several count in parts."""

    own: float
    """Anonymous and file pages: all but the object store's."""
    shared: float
    """Pages of the object store that they have mapped."""


def roles() -> dict[int, Role]:
    """Every process of this namespace and what it is for; what is neither driver, reducer nor replica is Ray's."""
    found: dict[int, Role] = {}
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # ended meanwhile
            found[int(path.name)] = _role(int(path.name), (path / "cmdline").read_bytes())
    return found


def _role(pid: int, command: bytes) -> Role:
    if pid == os.getpid():
        return "driver"
    if b"ray::Reducer" in command:
        return "reducers"
    return "replicas" if b"ray::SimulatedReplica" in command else "ray"


def cpu_seconds(pids: dict[int, Role]) -> dict[Role, float]:
    """Processor seconds that they have used since their start, by role."""
    used: dict[Role, float] = dict.fromkeys(ROLES, 0.0)
    for pid, role in pids.items():
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            used[role] += (int(fields[11]) + int(fields[12])) * _TICK_S
    return used


def machine_cpu_seconds() -> float:
    """Processor seconds that the whole machine has worked since its start; idle and waiting left out."""
    user, nice, system, _, _, *interrupts = map(int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:8])
    return (user + nice + system + sum(interrupts)) * _TICK_S


def memory(pids: dict[int, Role]) -> dict[Role, Memory]:
    """Memory by role."""
    own: Counter[Role] = Counter()
    shared: Counter[Role] = Counter()
    for pid, role in pids.items():
        with contextlib.suppress(OSError):
            pages = _rollup(pid)
            own[role] += pages["Pss_Anon"] + pages["Pss_File"]
            shared[role] += pages["Pss_Shmem"]
    return {role: Memory(own=own[role] / 1024, shared=shared[role] / 1024) for role in ROLES}


def _rollup(pid: int) -> dict[str, int]:
    """KiB by kind."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    return {name: int(value.split()[0]) for name, _, value in (line.partition(":") for line in lines)}
