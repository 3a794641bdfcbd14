"""Three machines on one: each has its own network, mounts, processes and name, its own /root and /tmp, and an sshd.

Only inside the namespaces that `enter_namespaces` makes: everything here ends with its first process.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

CHECKOUT: Final = Path(__file__).resolve().parents[2]
GATEWAY: Final = "10.77.0.1"
"""The launcher's address on the bridge; the S3 server listens there too."""
HOSTS: Final = {"head": "10.77.0.11", "worker1": "10.77.0.12", "worker2": "10.77.0.13"}
PROGRAMS: Final = ("unshare", "nsenter", "setpriv", "ip", "mount", "ssh", "sshd", "ssh-keygen", "rsync")

_INSIDE: Final = "DSPROBE_LAB_INSIDE"
"""Variable that tells the process inside the namespaces from the one outside, whose process id it holds."""
_FOLDER: Final = "DSPROBE_LAB_FOLDER"
"""Variable that holds the lab's folder."""
_NAMESPACES: Final = ("--net", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child")


def missing() -> str:
    """Why the lab cannot run here; empty if it can."""
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    absent = [name for name in PROGRAMS if shutil.which(name, path=path) is None]
    if absent:
        return f"not installed: {', '.join(absent)}"
    return "" if os.geteuid() == 0 else "network namespaces, mounts and sshd on port 22 take root"


def enter_namespaces(module: str, arguments: Sequence[str]) -> Path:
    """Begin again as the first process of new namespaces; returns only there.

    The folder is made and removed by the process outside: inside, parts of the machine are mounted below it, and
    removing it there would remove them.

    Variables of Ray and of AWS are left outside.

    Returns:
        An empty folder for the lab; its path is short, because that of a Unix socket has 107 bytes.
    """
    if _INSIDE in os.environ:
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
        return Path(os.environ[_FOLDER])
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "AWS_", "DSPROBE_"))}
    folder = tempfile.mkdtemp(prefix="dsprobe-lab-", dir="/tmp")
    kept |= {
        _INSIDE: str(os.getpid()),
        _FOLDER: folder,
        "PATH": f"{kept.get('PATH', '')}:/usr/sbin:/sbin",
        "HOME": "/root",
    }
    os.chdir(CHECKOUT)
    command = ["setpriv", "--pdeathsig", "KILL", "unshare", *_NAMESPACES, sys.executable, "-m", module, *arguments]
    try:
        code = _forward_signals(subprocess.Popen(command, env=kept))
    finally:
        _remove(Path(folder))
    sys.exit(code)


def _remove(folder: Path) -> None:
    """Remove the lab's folder, unless something is still mounted below it."""
    mounted = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    if any(Path(place).is_relative_to(folder) for place in mounted):
        print(f"Not removed, because something is mounted there: {folder}", file=sys.stderr)
        return
    shutil.rmtree(folder, ignore_errors=True)


def _forward_signals(process: subprocess.Popen[bytes]) -> int:
    """Wait for it; Ctrl-C reaches it through the terminal, a SIGTERM is passed on as its end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: process.kill())  # `--kill-child`: and everything in it
    return process.wait()


def until(holds: Callable[[], bool], seconds: float, what: str, every: float = 0.5) -> float:
    """Wait for a condition.

    Returns:
        Seconds that it took.

    Raises:
        TimeoutError: It did not come about.
    """
    begin = time.monotonic()
    while not holds():
        if time.monotonic() - begin > seconds:
            raise TimeoutError(f"after {seconds:.0f} s still not: {what}")
        time.sleep(every)
    return time.monotonic() - begin


@dataclass(kw_only=True)
class Host:
    """A machine of the lab; from `Network`."""

    name: str
    address: str
    folder: Path
    """Of the host: `root` is its /root, `tmp` its /tmp, `sshd/log` what its sshd wrote."""
    key: Path
    process: subprocess.Popen[bytes] = field(repr=False)

    @property
    def init(self) -> int:
        """Process id of the host's first process, as the launcher sees it."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return int(children[0])

    def ssh(self, *options: str) -> list[str]:
        """The ssh command to this host; `options` come before its name."""
        quiet = ("BatchMode=yes", "StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR")
        flags = [part for option in quiet for part in ("-o", option)]
        return ["ssh", "-F", "none", "-i", str(self.key), *flags, *options, f"root@{self.address}"]

    def run(self, command: str, timeout: float = 120.0, check: bool = True) -> str:
        """Run a shell command as a login would, over ssh; what it prints."""
        login = ["bash", "-lc", f"'{command}'"]
        done = subprocess.run([*self.ssh(), *login], capture_output=True, text=True, timeout=timeout, check=False)
        if check and done.returncode:
            raise RuntimeError(f"{self.name}: `{command}` ended with {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout

    def processes(self) -> list[str]:
        """Command lines of all its processes, taken from outside, so that it works with the cable cut."""
        inside = ["nsenter", "-t", str(self.init), "-m", "-p", "ps", "-ww", "-eo", "args", "--no-headers"]
        done = subprocess.run(inside, capture_output=True, text=True, check=True)
        return [line for line in done.stdout.splitlines() if not line.startswith("ps -ww")]

    def link(self, state: str) -> None:
        """Set its cable `down` or `up`."""
        _ip("link", "set", f"to-{self.name}", state)


class Network:
    """A bridge and the hosts on it; the calling process is the launcher.

    Args:
        folder: For everything that the hosts write.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.key = folder, folder / "key"
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.key)], check=True)
        _private_launcher(folder / "launcher")
        for command in ("set lo up", "add lab type bridge", "set lab up"):
            _ip("link", *command.split())
        _ip("address", "add", f"{GATEWAY}/24", "dev", "lab")
        self.hosts = {name: self._start(name, address) for name, address in HOSTS.items()}
        for host in self.hosts.values():
            self._await(host)

    @property
    def head(self) -> Host:
        """The host that becomes the cluster's head."""
        return self.hosts["head"]

    @property
    def workers(self) -> list[Host]:
        """The others."""
        return [host for name, host in self.hosts.items() if name != "head"]

    def shell(self) -> str:
        """The command that opens a shell at the launcher, from outside."""
        process = f"$(pgrep -P $(pgrep -P {os.environ[_INSIDE]}))"
        path = f"{Path(sys.executable).parent}:$PATH"
        return f"nsenter -t {process} -n -m -p env HOME=/root RAY_AUTH_MODE=token PATH={path} bash"

    def reachable(self, address: str, port: int) -> bool:
        """Whether something answers there from the launcher, without a tunnel."""
        with socket.socket() as probe:
            probe.settimeout(3)
            return probe.connect_ex((address, port)) == 0

    def _await(self, host: Host, seconds: float = 180.0) -> None:
        """Wait until it lets the launcher in."""
        ready = [*host.ssh("-o", "ConnectTimeout=5"), "true"]
        try:
            until(lambda: _succeeds(ready), seconds, f"sshd of {host.name}", 0.1)
        except TimeoutError as error:
            said = [path.read_text() for path in (host.folder / "host.log", host.folder / "sshd/log") if path.exists()]
            raise RuntimeError(f"{error}\n{''.join(said)[-2000:]}") from None

    def _start(self, name: str, address: str) -> Host:
        folder = self.folder / name
        for part in ("root/.ssh", "tmp"):
            (folder / part).mkdir(parents=True)
        (folder / "tmp").chmod(0o1777)
        shutil.copy(self.key.with_suffix(".pub"), folder / "root/.ssh/authorized_keys")
        names = "".join(f"{address} {name}\n" for name, address in {**HOSTS, "s3": GATEWAY}.items())
        (folder / "hosts").write_text(f"127.0.0.1 localhost\n{names}")
        script = ["bash", str(Path(__file__).with_name("host.sh")), name, str(folder), address, GATEWAY]
        log = (folder / "host.log").open("wb")
        process = subprocess.Popen(
            ["unshare", *_NAMESPACES, "--uts", *script, str(CHECKOUT), sys.prefix, sys.base_prefix],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
        until(lambda: Path(f"/proc/{process.pid}/ns/net").exists() and _left_our_network(process.pid), 20, name, 0.05)
        _ip("link", "add", f"to-{name}", "type", "veth", "peer", "name", "eth0", "netns", str(process.pid))
        _ip("link", "set", f"to-{name}", "master", "lab")
        _ip("link", "set", f"to-{name}", "up")
        return Host(name=name, address=address, folder=folder, key=self.key, process=process)


def _private_launcher(folder: Path) -> None:
    """Give the launcher a /root and a /tmp/ray of its own; the Python installation may lie below the real /root."""
    (folder / "root/.ssh").mkdir(parents=True)
    (folder / "ray").mkdir()
    Path("/tmp/ray").mkdir(exist_ok=True)
    python = Path(sys.base_prefix)
    if python.is_relative_to("/root"):
        (folder / "root" / python.relative_to("/root")).mkdir(parents=True)
        target = folder / "root" / python.relative_to("/root")
        _mount("--bind", python, target)
        _mount("-o", "remount,bind,ro", target)
    _mount("--rbind", folder / "root", "/root")
    _mount("--bind", folder / "ray", "/tmp/ray")


def _succeeds(command: Sequence[str]) -> bool:
    return subprocess.run(command, capture_output=True).returncode == 0


def _left_our_network(pid: int) -> bool:
    return os.stat(f"/proc/{pid}/ns/net").st_ino != os.stat("/proc/self/ns/net").st_ino


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


def _mount(*arguments: str | Path) -> None:
    subprocess.run(["mount", *map(str, arguments)], check=True)
