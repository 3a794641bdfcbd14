"""Whether a cluster has, or may grow to have, the resources that an execution asks for."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, Protocol

from dsprobe.actors.session import ray_session
from dsprobe.config import ExecutionConfig
from dsprobe.errors import ConfigError, StorageError
from dsprobe.strict_yaml import parse_yaml

BOOTSTRAP_FILE: Final = Path("~/ray_bootstrap_config.yaml")
"""Where `ray up` leaves the cluster's configuration on the head node; a job's entry point runs there."""

_ACCELERATOR: Final = "accelerator_type:"
_MANY: Final = 10**6
ROUNDING: Final = 1e-9
"""Of resources: five fifths of a card are one."""

Resources = Mapping[str, float]


class Share(Protocol):
    """What a replica takes of a node."""

    @property
    def num_cpus(self) -> float:
        """CPUs."""

    @property
    def num_gpus(self) -> float:
        """GPUs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeType:
    """Nodes that an autoscaler may start."""

    name: str
    resources: Resources
    most: int
    """Nodes of this type at most, those that are up included."""
    addable: int
    """Likewise without the head, which is never started by an autoscaler."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How far an autoscaler may go."""

    types: Sequence[NodeType]
    most: int
    """Nodes of all types together."""
    source: str
    """Where this was read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """The finding."""

    state: Literal["ok", "failed", "unknown"]
    detail: str
    gpu: str | None
    """The card, as Ray names it, where all GPU nodes have the same."""


def check_capacity(execution: ExecutionConfig) -> Capacity:
    """Look at the cluster of an execution, or at this machine.

    Args:
        execution: What is asked for, and where.

    Raises:
        PrerequisiteError: No cluster answers.
    """
    if execution.executor == "local":
        return Capacity(state="ok", detail="runs in this process", gpu=None)
    if execution.address == "local":
        return judged(execution, [_this_machine()], None, "this machine", None)
    with ray_session(execution, include_dashboard=False):
        import ray

        found = ray.nodes()  # type: ignore[no-untyped-call]
        nodes = [node["Resources"] for node in found if node["Alive"]]
        limits = autoscaler_limits()
    return judged(execution, nodes, limits, f"the {len(nodes)} nodes that are up", _card(nodes))


def judged(
    execution: ExecutionConfig, nodes: Sequence[Resources], limits: Limits | None, where: str, gpu: str | None
) -> Capacity:
    """Compare what is asked for with what there is.

    Args:
        execution: What is asked for.
        nodes: Resources of each node that is up, used ones included.
        limits: How far an autoscaler may go, where that is known.
        where: What the nodes are, for messages.
        gpu: The cluster's card.
    """
    wanted = execution.replicas
    least = execution.least_replicas
    now = sum(room(node, execution) for node in nodes)
    later = max(now, _grown(limits, execution)) if limits else now
    each = f"{execution.num_cpus:g} CPU and {execution.num_gpus:g} GPU each"
    fits = f"{min(now, wanted)} of {wanted} replicas of {each} fit on {where}"
    if limits and later > now:
        fits += f", {min(later, wanted)} once the autoscaler has added nodes ({limits.source})"
    if later >= least:
        return Capacity(state="ok", detail=fits if later >= wanted else f"{fits}; {least} are enough", gpu=gpu)
    if limits is None and "KUBERNETES_SERVICE_HOST" in os.environ:
        return Capacity(state="unknown", detail=f"{fits}; Kubernetes may add nodes, its limits are not known", gpu=gpu)
    return Capacity(state="failed", gpu=gpu, detail=f"{fits}, and no autoscaler adds enough. {_advice(nodes)}")


def room(node: Resources, each: Share) -> int:
    """Replicas that fit on a node; a great many, where they ask for nothing.

    Args:
        node: Its resources.
        each: What a replica takes.
    """
    needed = {"CPU": each.num_cpus, "GPU": each.num_gpus}
    return min(
        (int(node.get(name, 0) / amount + ROUNDING) for name, amount in needed.items() if amount > 0), default=_MANY
    )


def autoscaler_limits() -> Limits | None:
    """What the autoscaler of the connected cluster may start; `None` where that cannot be read from here.

    Some autoscalers report their configuration to Ray; of `ray up` there is a file on the head node.
    """
    from ray._private.state import state  # Ray 2.60 has no public call

    reported = state.get_cluster_config()
    if reported is not None and reported.node_group_configs:
        types = [
            NodeType(
                name=group.name,
                resources=dict(group.resources),
                most=_unbounded(group.max_count),
                addable=_unbounded(group.max_count),
            )
            for group in reported.node_group_configs
        ]
        return Limits(types=types, most=_MANY, source="as the autoscaler reports")
    path = BOOTSTRAP_FILE.expanduser()
    return limits_of_file(path) if path.is_file() else None


def limits_of_file(path: Path) -> Limits:
    """Limits of a cluster file of `ray up`.

    Raises:
        StorageError: It cannot be read.
    """
    try:
        content = parse_yaml(path.read_text(encoding="utf-8"), f"file {path}")
        types = [_node_type(name, facts, content) for name, facts in content["available_node_types"].items()]
        return Limits(types=types, most=int(content.get("max_workers", _MANY)) + 1, source=f"limits in {path}")
    except (OSError, UnicodeDecodeError, ConfigError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise StorageError(f"{path} is no cluster file: {type(error).__name__}: {error}") from None


def _node_type(name: str, facts: Mapping[str, Any], content: Mapping[str, Any]) -> NodeType:
    head = name == content.get("head_node_type")
    addable = 0 if head else int(facts.get("max_workers", content.get("max_workers", 0)))
    addable = min(addable, int(content.get("max_workers", _MANY)))
    resources = {key: float(amount) for key, amount in (facts.get("resources") or {}).items()}
    return NodeType(name=name, resources=resources, most=1 if head else addable, addable=addable)


def _grown(limits: Limits, execution: ExecutionConfig) -> int:
    """Replicas that fit once all nodes are there, the roomiest types first."""
    rooms = sorted(((room(kind.resources, execution), kind.most) for kind in limits.types), reverse=True)
    left, replicas = limits.most, 0
    for places, most in rooms:
        nodes = min(left, most)
        left, replicas = left - nodes, replicas + nodes * places
    return replicas


def _unbounded(count: int) -> int:
    return _MANY if count < 0 else count


def _this_machine() -> Resources:
    import torch

    return {"CPU": float(os.cpu_count() or 1), "GPU": float(torch.cuda.device_count())}


def _card(nodes: Iterable[Resources]) -> str | None:
    cards = {name.removeprefix(_ACCELERATOR) for node in nodes for name in node if name.startswith(_ACCELERATOR)}
    return cards.pop() if len(cards) == 1 else None


def _advice(nodes: Sequence[Resources]) -> str:
    shown = "; ".join(f"{node.get('CPU', 0):g} CPU, {node.get('GPU', 0):g} GPU" for node in nodes[:8])
    return f"Nodes: {shown or 'none'}. Lower execution.replicas, num_gpus or num_cpus, or add nodes."
