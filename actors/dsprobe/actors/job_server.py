"""Reaching a cluster's job server, which is its dashboard's port: address, token, and clear errors."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from dsprobe.errors import ConfigError, PrerequisiteError
from dsprobe.untrusted import redacted

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

DEFAULT_ADDRESS: Final = "http://127.0.0.1:8265"
ADDRESS_VARIABLES: Final = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")

_TALKATIVE: Final = ("ray._private.authentication", "ray._private.runtime_env.packaging")
_REQUEST_S: Final = 60.0
"""Seconds without a byte after which a server counts as none."""


def server_address(given: str | None, environ: Mapping[str, str]) -> str:
    """Where the job server is: as given, by `ADDRESS_VARIABLES`, or on this machine.

    Raises:
        ConfigError: It is no ``http(s)://`` address.
    """
    named = [(f"{name}=", environ[name]) for name in ADDRESS_VARIABLES if environ.get(name)]
    origin, address = ("--address ", given) if given else (named[0] if named else ("", DEFAULT_ADDRESS))
    if not re.fullmatch(r"https?://[^/@\s]+/?", address):
        raise ConfigError(
            f"`{origin}{redacted(address)}` is not the address of a Ray dashboard. Give --address "
            f"http://host:8265; through an SSH tunnel (ssh -L 8265:127.0.0.1:8265 HEAD) it is {DEFAULT_ADDRESS}."
        )
    return address.rstrip("/")


def connect(address: str) -> JobSubmissionClient:
    """Ray's client, quiet, with a time limit a request, and at this address whatever the environment says.

    Args:
        address: From `server_address`.

    Raises:
        PrerequisiteError: See `reaching`.
    """
    from ray.dashboard.modules import dashboard_sdk
    from ray.dashboard.modules.job import sdk
    from ray.job_submission import JobSubmissionClient

    class Client(JobSubmissionClient):
        def _do_request(self, method: str, endpoint: str, **options: Any) -> Any:
            return super()._do_request(method, endpoint, **{"timeout": _REQUEST_S, **options})

    for name in (sdk.__name__, dashboard_sdk.__name__, *_TALKATIVE):
        logging.getLogger(name).setLevel(logging.ERROR)
    before = os.environ.get(ADDRESS_VARIABLES[0])
    os.environ[ADDRESS_VARIABLES[0]] = address  # Ray lets the variables win over what it is given
    try:
        with reaching(address):
            return Client(address)
    finally:
        if before is None:
            del os.environ[ADDRESS_VARIABLES[0]]
        else:
            os.environ[ADDRESS_VARIABLES[0]] = before


@contextmanager
def reaching(address: str, job_id: str = "") -> Iterator[None]:
    """Turn the errors of Ray's client into one message each.

    Args:
        address: The server.
        job_id: The job that was asked for, if one was.

    Raises:
        ConfigError: There is no such job.
        PrerequisiteError: Nothing answers there, or not a Ray dashboard, or it wants another token.
    """
    import requests
    from ray.exceptions import AuthenticationError

    try:
        yield
    except AuthenticationError as error:
        raise PrerequisiteError(_about_token(address, str(error))) from None
    except (ConnectionError, requests.exceptions.RequestException) as error:
        raise PrerequisiteError(_about_server(address, error)) from None
    except (RuntimeError, ValueError, KeyError) as error:
        text = redacted(str(error))
        if job_id and "does not exist" in text:
            shown = "`dsprobe jobs list` shows all."
            raise ConfigError(f"There is no job `{job_id}` on {address}. {shown}") from None
        first = text.strip().split("\n")[0][:300]
        raise PrerequisiteError(f"{address} is no Ray dashboard, or refuses: {first}") from None


def _about_token(address: str, said: str) -> str:
    which = "refuses this token" if said.startswith("Authentication failed") else "wants a token"
    return (
        f"{address} {which}. Give the cluster's own: RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH=<file> (or "
        "~/.ray/auth_token), the file that the cluster was started with."
    )


def _about_server(address: str, error: Exception) -> str:
    kind = "does not answer in time" if "timed out" in str(error).lower() else "is not reached"
    return (
        f"The Ray dashboard at {address} {kind} ({type(error).__name__}). Is the cluster up, and the port its "
        "dashboard's (8265 by default)? From outside: ssh -L 8265:127.0.0.1:8265 HEAD, or `ray dashboard cluster.yaml`."
    )
