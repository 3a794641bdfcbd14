"""Quiet Ray start-up: a private instance that leaves nothing behind, or a connection to a cluster.

Authentication. A private instance listens on loopback, where every local user could connect, so Ray's token mode
stays on (Ray 2.60 and later) with a token file in a private folder of this process instead of ``~/.ray``. Whatever
``RAY_AUTH_MODE``, ``RAY_AUTH_TOKEN`` or ``RAY_AUTH_TOKEN_PATH`` say is kept. Nothing is set for a remote cluster.
"""

from __future__ import annotations

import atexit
import functools
import getpass
import logging
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsprobe.actors.turns import Tenant
from dsprobe.config import ExecutionConfig
from dsprobe.errors import PrerequisiteError
from dsprobe.untrusted import redacted

LOGGER = logging.getLogger("dsprobe.actors.ray")

NAMESPACE = "dsprobe"
"""Ray namespace of the replica pools."""

USER_VARIABLE = "DSPROBE_USER"
"""Environment variable with a label of the person, where the login name says nothing."""

QUIET_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
"""Defaults that are set for Ray's processes unless the user set them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """A connection to Ray."""

    private: bool
    """True for an instance that this process started and that ends with it."""
    address: str
    """Address of the head node's control store."""
    dashboard_url: str | None
    """`None` without a dashboard."""
    token_path: Path | None
    """File with the token that the private instance's dashboard asks for."""


@contextmanager
def ray_session(execution: ExecutionConfig, *, include_dashboard: bool = True) -> Iterator[Session]:
    """Connect to Ray, and undo on exit exactly what was done.

    Inside an open connection (a surrounding session, a notebook's own ``ray.init``) that connection is used and left
    open. ``address="local"`` starts a private instance; at exit its processes, its detached pool and its temporary
    folder are gone. Any other address (``auto`` follows ``RAY_ADDRESS``) joins a cluster, whose pools survive.

    Args:
        execution: Gives the address.
        include_dashboard: Start the dashboard of a private instance if its packages are installed; it costs about
            2 s and 1 GB.

    Raises:
        PrerequisiteError: No cluster answers at the address.
    """
    _set_environment()
    import ray  # after the environment: some variables are read at import

    if ray.is_initialized():
        yield _describe(private=False)
    elif execution.address == "local":
        with _private_instance(include_dashboard) as session:
            yield session
    else:
        with _cluster(execution.address) as session:
            yield session


def current_tenant(user: str | None = None) -> Tenant:
    """Who this process is on the connected cluster: its driver's Ray job, and a label of the person.

    Args:
        user: The label; the variable `DSPROBE_USER`, or the login name, unless given.
    """
    import ray

    return Tenant(job=ray.get_runtime_context().get_job_id(), user=user or os.environ.get(USER_VARIABLE) or _login())


def is_private() -> bool:
    """Whether this process started the connected Ray instance, which then ends with it and all that runs there."""
    from ray._private import worker  # Ray 2.60 has no public call

    node = worker._global_node
    return node is not None and bool(node.is_head())


def _login() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        return str(os.getuid())


@contextmanager
def _private_instance(include_dashboard: bool) -> Iterator[Session]:
    import ray

    _set_token()
    # Socket paths below this folder must stay under 108 bytes, so the default of the platform is not good enough.
    folder = tempfile.mkdtemp(prefix="dsp-", dir=os.environ.get("RAY_TMPDIR", "/tmp"))
    try:
        ray.init(
            address="local",
            include_dashboard=None if include_dashboard else False,
            _temp_dir=folder,
            **_common_options(),
        )
        with _quiet_driver():
            session = _describe(private=True)
            LOGGER.info("Ray %s, dashboard %s", session.address, session.dashboard_url or "off")
            yield session
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _cluster(address: str) -> Iterator[Session]:
    import ray

    try:
        ray.init(address=address, **_common_options())
    except (ConnectionError, ValueError, ray.exceptions.RayError) as error:  # a malformed address is a ValueError
        raise PrerequisiteError(_about_cluster(address, error)) from error
    try:
        with _quiet_driver():
            yield _describe(private=False)
    finally:
        ray.shutdown()


def _about_cluster(address: str, error: Exception) -> str:
    lines = [line.strip() for line in redacted(str(error)).split("\n") if line.strip()]
    said = (lines[-1] if address.startswith("ray://") else lines[0])[:300] if lines else type(error).__name__
    if address.startswith("ray://"):
        how = (
            "Through an SSH tunnel (ssh -L 10001:127.0.0.1:10001 HEAD) it is ray://127.0.0.1:10001. Ray and Python "
            "must be those of the cluster. Where starting the client server failed, try again; heads that are started "
            "with GRPC_ENABLE_FORK_SUPPORT=0 do not have that trouble."
        )
    else:
        how = (
            "Start one with `ray up cluster.yaml`, or use `execution.address: local`. From outside a cluster, use Ray "
            "client (ray://127.0.0.1:10001 through an SSH tunnel) or submit a job."
        )
    token = "A cluster behind a token takes RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH=FILE."
    return f"No Ray cluster answers at `{redacted(address)}` ({said}). {how} {token}"


def _common_options() -> dict[str, Any]:
    return {"namespace": NAMESPACE, "log_to_driver": False, "logging_level": logging.ERROR}


def _describe(*, private: bool) -> Session:
    import ray

    context = ray.get_runtime_context()
    url: str | None = None
    if not is_client():
        url = ray._private.worker.get_dashboard_url()  # type: ignore[no-untyped-call]
    token = os.environ.get("RAY_AUTH_TOKEN_PATH")
    return Session(
        private=private,
        address=context.gcs_address,
        dashboard_url=f"http://{url}" if url else None,
        token_path=Path(token) if private and token else None,
    )


def is_client() -> bool:
    """Whether this process is connected by Ray client (``ray://``), which has the API and nothing behind it."""
    from ray.util.client import ray as client

    return bool(client.is_connected())  # type: ignore[no-untyped-call]


def _set_environment() -> None:
    for name, value in QUIET_ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def _set_token() -> None:
    """Point Ray to a token of this process, unless the user decided.

    The mode stays unset: Ray then switches token mode on by itself, also when it was imported before.
    """
    if not {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys():
        os.environ["RAY_AUTH_TOKEN_PATH"] = _process_token()


@functools.cache
def _process_token() -> str:
    """Write one token for the life of the process: Ray caches the first it reads."""
    folder = tempfile.mkdtemp(prefix="dsp-token-")  # mode 0700
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    path = Path(folder) / "token"
    path.write_text(secrets.token_hex(32))
    path.chmod(0o600)
    return str(path)


@contextmanager
def _quiet_driver() -> Iterator[None]:
    """Send the raylet's "a worker died" paragraphs to the log instead of standard output.

    `log_to_driver=False` does not cover them, and Ray has no setting that does; what matters of them is in the
    execution report.
    """
    from ray._private import worker

    printer = worker.print_to_stdstream

    def log(data: dict[str, Any], ignore_prefix: bool) -> None:
        del ignore_prefix
        LOGGER.debug("%s: %s", data.get("pid"), "\n".join(data.get("lines", [])))

    worker.print_to_stdstream = log
    try:
        yield
    finally:
        worker.print_to_stdstream = printer
