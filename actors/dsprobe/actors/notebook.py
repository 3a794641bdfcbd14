"""The pool of a running cluster in a notebook: `connect`, then attack the pinned models. Ray is imported on use."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, TypeVar

from dsprobe.config import ExecutionConfig, ModelConfig
from dsprobe.errors import ConfigError, DSProbeError, PrerequisiteError, unknown_name
from dsprobe.registry import validated

if TYPE_CHECKING:
    from ray import ObjectRef

    from dsprobe.actors.pool import ReplicaPool
    from dsprobe.actors.replica import ReplicaInfo
    from dsprobe.adhoc import AttackResult, HandwrittenCanvas
    from dsprobe.adhoc.frames import Frame
    from dsprobe.adhoc.request import PromptLike

T = TypeVar("T")

ModelLike = ModelConfig | Mapping[str, Any] | str
ATTEMPTS: Final = 2
"""How often a call is tried whose replica died under it."""


def connect(name: str = "dsprobe", address: str = "auto", *, user: str | None = None) -> Laboratory:
    """Attach to a replica pool of a running cluster.

    An open connection to Ray is used, whatever the address, and left open. A private instance of another process is
    joined with its token: set `RAY_AUTH_MODE=token` and `RAY_AUTH_TOKEN_PATH` before Ray is first imported.

    Args:
        name: Pool name (`execution.pool` of the run that started it).
        address: Ray address; `auto` follows `RAY_ADDRESS` or finds a cluster on this machine. ``ray://HOST:10001``
            connects by Ray client, from a machine that does not belong to the cluster.
        user: Label of the person, which others see; two people of one connection take turns of their own. The variable
            `DSPROBE_USER`, or the login name, unless given.

    Raises:
        PrerequisiteError: No cluster answers, or it runs no pool.
        ConfigError: No pool of that name runs; the message lists those that do.
    """
    import ray

    from dsprobe.actors.session import current_tenant, ray_session

    if address == "local" and not ray.is_initialized():
        raise ConfigError("`local` would start an instance without pools. Give a cluster's address, or `auto`.")
    with ExitStack() as stack:
        stack.enter_context(ray_session(ExecutionConfig(address=address)))
        pool = _pool(name)
        pool.tenant = current_tenant(user)
        return Laboratory(pool, stack.pop_all())


class Laboratory:
    """A pool's pinned models, ready to be attacked; made by `connect`.

    A context manager: leaving it closes the connection if `connect` opened it. The pool goes on either way.

    Args:
        pool: The pool.
        session: Closed by `close`.
    """

    def __init__(self, pool: ReplicaPool, session: ExitStack) -> None:
        self._pool, self._session = pool, session
        self._next = 0

    @property
    def models(self) -> tuple[str, ...]:
        """Labels of the models that a replica has loaded, sorted."""
        return tuple(sorted({config.name for config in self._configs()}))

    def info(self) -> list[ReplicaInfo]:
        """State of every replica, busy ones included; dead ones are replaced."""
        from ray.exceptions import ActorDiedError

        try:
            return self._pool.info()
        except ActorDiedError:
            self._heal()
            return self._pool.info()

    def attack(self, prompt: PromptLike, model: ModelLike | None = None, **settings: Any) -> AttackResult:
        """Attack a model once, beside the pinned model.

        Args:
            prompt: A text, a prompt, or a canvas written by hand (`canvas`).
            model: Label of a loaded model, name of an embedded one, or a configuration (loaded on first use, and kept);
                may be left out where one model is loaded.
            **settings: `attack`, `decoding`, `guardrail`, `scorer`, `threshold`, `judges`, `seed` and `show_text`; see
                `dsprobe.adhoc.make_request`.

        Raises:
            ConfigError: The request is wrong, or does not fit the model.
            CheckpointError: The model cannot be loaded.
            PrerequisiteError: The replica died, again after it was replaced.
        """
        return self.attack_all([prompt], model, **settings)[0]

    def attack_all(
        self, prompts: Sequence[PromptLike], model: ModelLike | None = None, **settings: Any
    ) -> list[AttackResult]:
        """Attack a model with several prompts, spread over the replicas; arguments and errors as in `attack`.

        Args:
            prompts: In any mixture.
            model: See `attack`.
            **settings: As in `attack`, and `samples`: trajectories of each prompt.

        Returns:
            Results in the order of the prompts, the samples of a prompt one after the other; each as if it ran alone.
        """
        from dsprobe.adhoc import make_request, run_request

        config = self._model(model)
        shares = _shares(prompts, len(self._pool.replicas))
        requests = [make_request(share, **settings) for share in shares]
        parts = self._run_all(config, run_request, [(request,) for request in requests])
        return [result for part in parts for result in part]

    def canvas(self, model: ModelLike | None = None, reply_length: int | None = None) -> CanvasBuilder:
        """A builder of hand-written canvases that are checked against a model's tokenizer.

        Args:
            model: See `attack`.
            reply_length: Response positions; the default of a run where it is not given.
        """
        from dsprobe.config import DecodingConfig

        return CanvasBuilder(self, self._model(model), reply_length or DecodingConfig().reply_length)

    def close(self) -> None:
        """Close the connection if `connect` opened it; the pool goes on."""
        self._session.close()

    def __enter__(self) -> Laboratory:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        models = ", ".join(self.models) or "none yet"
        return f"Laboratory(pool `{self._pool.name}`, {len(self._pool.replicas)} replicas, models: {models})"

    def _configs(self) -> list[ModelConfig]:
        return list(dict.fromkeys(config for info in self.info() for config in info.configs))

    def _model(self, model: ModelLike | None) -> ModelConfig:
        """The configuration that a label or a mapping stands for."""
        from dsprobe.toy.assets import EMBEDDED_MODELS

        if isinstance(model, ModelConfig):
            return model
        if isinstance(model, Mapping):
            return validated(ModelConfig, model, "model")
        loaded = self._configs()
        fitting = [config for config in loaded if model in (None, config.name)]
        if len(fitting) == 1:
            return fitting[0]
        if len(fitting) > 1 or model is None:
            names = ", ".join(config.name for config in loaded) or "none"
            raise ConfigError(f"Which model? Give `model=`, by configuration where two share a label. Loaded: {names}.")
        if model not in EMBEDDED_MODELS:
            raise unknown_name("model", model, {*EMBEDDED_MODELS, *(config.name for config in loaded)})
        return ModelConfig(name=model)

    def _heal(self) -> None:
        """Replace the replicas that do not answer any more."""
        import ray
        from ray.exceptions import ActorDiedError

        for index, replica in enumerate(list(self._pool.replicas)):
            try:
                ray.get(replica.ping.remote())
            except ActorDiedError:
                self._pool.replace(index)

    def _run_all(
        self, config: ModelConfig, function: Callable[..., T], arguments: Sequence[tuple[Any, ...]]
    ) -> list[T]:
        """Run a function beside the pinned model once for each set of arguments, on the replicas in turn."""
        start, self._next = self._next, self._next + len(arguments)
        calls: list[ObjectRef[T]] = [
            self._pool.submit_to(start + place, config, function, *given) for place, given in enumerate(arguments)
        ]
        return [
            self._result(start + place, config, function, given, call)
            for place, (given, call) in enumerate(zip(arguments, calls, strict=True))
        ]

    def _result(
        self,
        place: int,
        config: ModelConfig,
        function: Callable[..., T],
        given: tuple[Any, ...],
        call: ObjectRef[T],
    ) -> T:
        """Wait for a call; where its replica dies, try once more on the successor.

        Raises:
            DSProbeError: What the function raised.
            PrerequisiteError: The successor died too.
        """
        import ray
        from ray.exceptions import ActorDiedError, ActorUnavailableError, RayTaskError

        index = place % len(self._pool.replicas)
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return ray.get(call)
            except RayTaskError as error:
                if isinstance(error.cause, DSProbeError):
                    raise error.cause from None
                raise
            except (ActorDiedError, ActorUnavailableError):
                if attempt < ATTEMPTS:
                    self._pool.replace(index)
                    call = self._pool.submit_to(index, config, function, *given)
        raise PrerequisiteError(f"Replica {index} of pool `{self._pool.name}` died {ATTEMPTS} times under one attack.")


class CanvasBuilder:
    """Writes canvases by hand for one model; made by `Laboratory.canvas`.

    Args:
        laboratory: Where the model is.
        config: The model.
        reply_length: Response positions.
    """

    def __init__(self, laboratory: Laboratory, config: ModelConfig, reply_length: int) -> None:
        self._laboratory, self._config, self._reply_length = laboratory, config, reply_length

    def __call__(
        self, user: str | Sequence[str | int], reply: Sequence[str | int] = (), **settings: Any
    ) -> HandwrittenCanvas:
        """Write a canvas and check that it fits the model.

        Args:
            user: See `dsprobe.adhoc.canvas`, as for all that follow.
            reply: Texts and numbers of masks.
            **settings: `tail`, `judged`, `actions` and `prompt`.

        Raises:
            ConfigError: The canvas does not fit the reply, or holds words that the tokenizer lacks.
        """
        from dsprobe.adhoc import canvas

        drawn = canvas(user, reply, **settings)
        self.preview(drawn)
        return drawn

    def preview(self, drawn: HandwrittenCanvas) -> Frame:
        """The reply of a canvas before the first step, as the model gets it; its texts are `Frame.committed`."""
        from dsprobe.adhoc import check_canvas

        return self._laboratory._run_all(self._config, check_canvas, [(drawn, self._reply_length)])[0]


def _pool(name: str) -> ReplicaPool:
    from dsprobe.actors.pool import ReplicaPool

    if not ReplicaPool.running():
        raise PrerequisiteError(
            "The cluster runs no replica pool. Start one with `dsprobe pool start NAME`, or with `dsprobe run CONFIG "
            "--set execution.address=auto`. One that was idle for long was ended (`execution.pool_idle_s`)."
        )
    return ReplicaPool.connect(name)


def _shares(prompts: Sequence[PromptLike], parts: int) -> list[Sequence[PromptLike]]:
    """Cut prompts into as many runs of nearly equal length as there are replicas; one, empty, where there are none."""
    size = max(1, -(-len(prompts) // parts))
    return [prompts[start : start + size] for start in range(0, max(1, len(prompts)), size)]
