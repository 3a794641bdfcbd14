"""Watches a spot machine for the cloud's notice that it will be taken away, and drains its Ray node.

``python -m dsprobe.actors.spot --address HEAD:6379`` runs beside Ray on every worker node. It asks the cloud's metadata
service, which only this machine can reach, and connects to Ray only once there is a notice. From then on nothing new
is placed on the node, and `dsprobe.actors.dispatching` ends or moves what is there. EC2 gives notice two minutes ahead
(instance metadata service v2, `spot/instance-action`), Google Cloud half a minute (`instance/preempted`).
"""

from __future__ import annotations

import argparse
import fcntl
import json
import logging
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from datetime import UTC, datetime
from http.client import HTTPException
from pathlib import Path
from typing import Final

from dsprobe.errors import PrerequisiteError

LOGGER = logging.getLogger("dsprobe.actors.spot")

EC2_URL: Final = "http://169.254.169.254"
GCP_URL: Final = "http://metadata.google.internal"
EVERY_S: Final = 5.0
"""Seconds between two questions; Amazon recommends as much."""
GCP_NOTICE_S: Final = 30.0
"""Seconds between Google's notice and the end."""
_TOKEN_S: Final = 21600
_ANSWER_S: Final = 2.0
_TRIES: Final = 5

Notice = Callable[[], float | None]
"""Asks for the notice: when the machine goes, in seconds since 1970; `None` while there is none."""


class Ec2:
    """EC2's metadata service, version 2: with a session token, which is asked for again when it has expired.

    Args:
        url: The service.
    """

    def __init__(self, url: str = EC2_URL) -> None:
        self._url = url
        self._token: str | None = None

    def __call__(self) -> float | None:
        """See `Notice`.

        Raises:
            OSError: The service does not answer, or this is no EC2 machine.
            ValueError: The answer is no notice.
        """
        for _ in range(2):
            if self._token is None:
                seconds = {"X-aws-ec2-metadata-token-ttl-seconds": str(_TOKEN_S)}
                self._token = _ask(f"{self._url}/latest/api/token", seconds, method="PUT")
            try:
                text = _ask(
                    f"{self._url}/latest/meta-data/spot/instance-action", {"X-aws-ec2-metadata-token": self._token}
                )
            except urllib.error.HTTPError as error:
                if error.code == 404:
                    return None
                if error.code != 401:
                    raise
                self._token = None
            else:
                return _time_of(text)
        raise ConnectionError("The metadata service refuses the token that it gave.")


class Gcp:
    """Google Cloud's metadata service, which says that a machine is being taken away but not when.

    Args:
        url: The service.
    """

    def __init__(self, url: str = GCP_URL) -> None:
        self._url = url

    def __call__(self) -> float | None:
        """See `Notice`.

        Raises:
            OSError: The service does not answer, or this is no Google Cloud machine.
        """
        text = _ask(f"{self._url}/computeMetadata/v1/instance/preempted", {"Metadata-Flavor": "Google"})
        return time.time() + GCP_NOTICE_S if text.strip().upper() == "TRUE" else None


def find_cloud(clouds: dict[str, Notice], every_s: float) -> Notice:
    """The metadata service that answers here.

    Args:
        clouds: Services by name of the cloud.
        every_s: Seconds between two tries.

    Raises:
        PrerequisiteError: None does.
    """
    for _ in range(_TRIES):
        for name, notice in clouds.items():
            try:
                notice()
            except (OSError, ValueError) as error:
                LOGGER.info("No metadata service of %s: %s", name, error)
            else:
                LOGGER.info("Watching for %s's notice", name)
                return notice
        time.sleep(every_s)
    raise PrerequisiteError(
        f"No metadata service of {' or '.join(clouds)} answers here, so there is no notice to watch for. On machines "
        "of your own, leave this out."
    )


def wait_for_notice(notice: Notice, every_s: float) -> float:
    """Ask until there is a notice; a service that fails for a while is asked again.

    Returns:
        When the machine goes, in seconds since 1970.
    """
    while True:
        try:
            leaves_at = notice()
        except (OSError, HTTPException, ValueError) as error:
            LOGGER.warning("The metadata service failed: %s", error)
            leaves_at = None
        if leaves_at is not None:
            return leaves_at
        time.sleep(every_s)


def drain_this_node(address: str, leaves_at: float, every_s: float, node_id: str | None = None) -> None:
    """Tell Ray that this machine's node will be gone; tries until then.

    Args:
        address: The cluster's address.
        leaves_at: When, in seconds since 1970.
        every_s: Seconds between two tries.
        node_id: The node, where several are on one machine.

    Raises:
        PrerequisiteError: The cluster did not answer in time.
    """
    from ray.exceptions import RayError

    from dsprobe.actors.draining import drain
    from dsprobe.actors.session import ray_session
    from dsprobe.config import ExecutionConfig

    while True:
        try:
            with ray_session(ExecutionConfig(address=address)):
                import ray

                node = node_id or ray.get_runtime_context().get_node_id()
                drain(node, deadline=leaves_at, reason="the cloud takes this spot machine away")
                LOGGER.warning("Node %s is drained: it goes in %.0f s", node, leaves_at - time.time())
                return
        except (PrerequisiteError, RayError, RuntimeError) as error:
            if time.time() > leaves_at:
                raise PrerequisiteError(f"Ray could not be told of the notice: {error}") from error
            LOGGER.warning("Ray could not be told of the notice yet: %s", error)
        time.sleep(every_s)


def main(arguments: list[str] | None = None) -> None:
    """Command line; ends once the node is drained.

    Raises:
        PrerequisiteError: There is no metadata service here, or no cluster.
    """
    parser = argparse.ArgumentParser(prog="python -m dsprobe.actors.spot", description=__doc__)
    parser.add_argument("--address", default="auto", help="the cluster's address, HEAD:6379")
    parser.add_argument("--cloud", choices=("auto", "ec2", "gcp"), default="auto", help="whose machine this is")
    parser.add_argument("--metadata", help="metadata service, in place of the cloud's own address")
    parser.add_argument("--every", type=float, default=EVERY_S, help="seconds between two questions")
    parser.add_argument("--node-id", help="the node, where several are on one machine")
    given = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    clouds: dict[str, Notice] = {"ec2": Ec2(given.metadata or EC2_URL), "gcp": Gcp(given.metadata or GCP_URL)}
    with (Path.home() / f".dsprobe-spot-{given.node_id or 'node'}.lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:  # `ray up` again starts the commands again
            LOGGER.info("Another process watches already")
            return
        # Whose machine it is need not be found out where it is said, so a slow service at boot ends nothing.
        notice = find_cloud(clouds, given.every) if given.cloud == "auto" else clouds[given.cloud]
        leaves_at = wait_for_notice(notice, given.every)
        LOGGER.warning("Notice: this machine goes in %.0f s", leaves_at - time.time())
        drain_this_node(given.address, leaves_at, given.every, given.node_id)


def _ask(url: str, headers: dict[str, str], method: str = "GET") -> str:
    request = urllib.request.Request(url, headers=headers, method=method)
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # the service is this machine's own
    with direct.open(request, timeout=_ANSWER_S) as answer:
        text: str = answer.read(65536).decode()
    return text


def _time_of(text: str) -> float:
    """When an ``instance-action`` takes effect."""
    content = json.loads(text)
    if not isinstance(content, dict) or not isinstance(content.get("time"), str):
        raise ValueError(f"no instance action: {text[:200]!r}")
    return datetime.strptime(content["time"], "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC).timestamp()


if __name__ == "__main__":
    main()
