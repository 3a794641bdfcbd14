"""What must hold before anything asks for a GPU; every check is made, so that all that is wrong shows at once.

Part of a job's entry point (``preflight … && run …``), where it sees the cluster's node as the run will. No check
loads a model, and nothing is left behind.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from typing import Any, Literal

from dsprobe.actors.capacity import check_capacity
from dsprobe.actors.job_request import JOB_VERSION
from dsprobe.actors.scoring import deferred_judges
from dsprobe.config import ExecutionConfig, ModelConfig, OutputConfig, PromptsConfig, Spec
from dsprobe.errors import ConfigError, DSProbeError, PrerequisiteError
from dsprobe.experiment.cost import Cost, Part, total_cost, total_estimate
from dsprobe.experiment.estimate import Estimate
from dsprobe.models.checkpoint import inspect_checkpoint
from dsprobe.models.remote import is_url
from dsprobe.prompts.load import load_prompts
from dsprobe.storage.objects import ObjectStore
from dsprobe.untrusted import redacted

State = Literal["ok", "failed", "skipped", "unknown"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One finding."""

    name: str
    state: State
    detail: str
    usage: bool = False
    """Whether what failed is the configuration's fault."""

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolved:
    """A resolved run or sweep."""

    id: str
    parts: Sequence[Part]
    summary: str
    """What it consists of, in a few words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What is checked."""

    models: Sequence[ModelConfig]
    prompts: Mapping[str, PromptsConfig]
    """Label for the table → prompt set."""
    judges: Sequence[Spec]
    execution: ExecutionConfig
    output: OutputConfig
    """Its root absolute."""
    resolve: Callable[[], Resolved]
    """Resolves the whole; tried once models and prompts are there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Preflight:
    """All findings and, where the plan resolves, what it costs."""

    checks: Sequence[Check]
    resolved: Resolved | None
    estimate: Estimate | None
    cost: Cost | None

    @property
    def failed(self) -> list[Check]:
        """Checks that failed."""
        return [check for check in self.checks if check.state == "failed"]

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "ok": not self.failed,
            "id": self.resolved and self.resolved.id,
            "checks": [check.to_dict() for check in self.checks],
            "estimate": self.estimate and self.estimate.to_dict(),
            "cost": self.cost and self.cost.to_dict(),
        }


def preflight(subject: Subject, *, local: bool = False) -> Preflight:
    """Make all checks.

    Args:
        subject: What is to run.
        local: Leave out those that need the cluster or its storage.
    """
    checks = [*_inputs(subject)]
    if not local:
        checks += [_checked("version", _version), check_output(subject.output)]
    capacity = None if local else _capacity(subject.execution)
    if capacity is not None:
        checks.append(capacity[0])
    resolved, plan = _plan(subject, checks)
    checks.append(plan)
    if resolved is None:
        return Preflight(checks=checks, resolved=None, estimate=None, cost=None)
    cost = None
    try:
        cost = total_cost(resolved.parts, gpu=capacity[1] if capacity else None)
    except ConfigError as error:
        checks.append(_failure("cost", error))
    return Preflight(checks=checks, resolved=resolved, estimate=total_estimate(resolved.parts), cost=cost)


def check_output(output: OutputConfig) -> Check:
    """Whether the output root can be written and honours conditional writes, by two real ones.

    Args:
        output: Where results go.
    """
    return _checked("output", partial(_output, output))


def _inputs(subject: Subject) -> Iterable[Check]:
    for model in subject.models:
        yield _checked(f"model {model.name}", partial(_model, model))
    for label, prompts in subject.prompts.items():
        yield _checked(f"prompts {label}", partial(_prompts, prompts))
    for judge in subject.judges:
        yield _checked(f"judge {judge.key}", partial(_judge, judge))


def _model(model: ModelConfig) -> str:
    facts = inspect_checkpoint(model)
    if facts.path is None:
        return f"{facts.family}, hub id at {facts.revision}; its weights are fetched at load"
    where = model.path if is_url(model.path) else facts.path
    return f"{facts.family}, {facts.parameter_bytes / 2**20:,.0f} MiB in {where}"


def _prompts(prompts: PromptsConfig) -> str:
    return f"{len(load_prompts(prompts).prompts)} prompts"


def _judge(spec: Spec) -> str:
    return "judges after generation" if deferred_judges([spec]) else "judges beside generation"


def _version() -> str:
    here, submitted = version("dsprobe"), os.environ.get(JOB_VERSION, "")
    if submitted and submitted != here:
        raise PrerequisiteError(
            f"This node has dsprobe {here}, and the job was submitted by {submitted}. Install that version on the "
            "nodes, or submit with --wheel."
        )
    return here


def _output(output: OutputConfig) -> str:
    ObjectStore(output.root, output.s3).probe()
    return f"{output.root} can be written and honours conditional writes"


def _capacity(execution: ExecutionConfig) -> tuple[Check, str | None]:
    """Whether the replicas find a place, and the cluster's card where it has one kind."""
    try:
        found = check_capacity(execution)
    except DSProbeError as error:
        return _failure("resources", error), None
    return Check(name="resources", state=found.state, detail=found.detail), found.gpu


def _plan(subject: Subject, checks: Sequence[Check]) -> tuple[Resolved | None, Check]:
    missing = [c.name for c in checks if c.state == "failed" and c.name.startswith(("model ", "prompts "))]
    if missing:
        return None, Check(name="plan", state="skipped", detail=f"needs {', '.join(missing)}")
    try:
        resolved = subject.resolve()
    except DSProbeError as error:
        return None, _failure("plan", error)
    return resolved, Check(name="plan", state="ok", detail=f"{resolved.id}: {resolved.summary}")


def _checked(name: str, look: Callable[[], str]) -> Check:
    try:
        return Check(name=name, state="ok", detail=look())
    except DSProbeError as error:
        return _failure(name, error)


def _failure(name: str, error: DSProbeError) -> Check:
    return Check(name=name, state="failed", detail=redacted(str(error)), usage=isinstance(error, ConfigError))
