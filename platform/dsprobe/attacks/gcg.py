"""GCG: a suffix found by gradients, after which a complying reply is the likeliest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field

from dsprobe.attacks.anchoring import REFERENCE
from dsprobe.attacks.base import Attack
from dsprobe.attacks.case import AttackCase
from dsprobe.attacks.gcg_suffix import Turn, allowed_tokens, suffix_text
from dsprobe.attacks.rendering import encode, plain_text
from dsprobe.errors import ConfigError, unknown_name
from dsprobe.registry import ComponentConfig

if TYPE_CHECKING:
    from dsprobe.attacks.gcg_search import Target
    from dsprobe.models.base import LanguageModel, ModelKind
    from dsprobe.models.native import NativeModel
    from dsprobe.prompts.base import Prompt


class Gcg(Attack):
    """The request, then a suffix searched so that the model's first step already predicts a complying reply.

    On a diffusion model this is First-Step GCG: with the reply r₀ fully masked it maximises log p(r̃₁ = r | q ⊕ s, r₀)
    over the suffix s, the target r standing at its reply positions; one forward pass a suffix. 1/T of it is a lower
    bound on the likelihood of r after T steps. On an autoregressive model the same objective is the likelihood of the
    target given the turn, which is ordinary GCG.

    The suffix is saved as text: one is only taken if its text gives the same tokens inside the chat turn.
    Where the search runs on a `surrogate`, that holds for the surrogate's tokenizer, and the text is what is carried
    over. The result is a function of settings, prompt and weights; rounding on another device may change it.

    The papers ran 500 iterations of 512 candidates from the best 256 tokens of a position; the defaults are a smaller
    budget.
    """

    class Config(ComponentConfig):
        """Settings."""

        objective: Literal["first_step"] = "first_step"
        """What is maximised; see the class."""
        target: Literal["text", "metadata", "reference"] = "text"
        """The target: `text`, or the prompt's own, which is cut where the reply ends. `metadata` takes its `target`
        (how a complying answer starts, in benchmarks that have one), `reference` its `reference` (the toy world's)."""
        text: Annotated[str, AfterValidator(plain_text)] = "Sure, here is"
        """Target of every prompt, where `target` is `text`."""
        target_position: int = Field(default=0, ge=0)
        """Reply position of the target's first token; farther in than 0 is MOSA's mid-token target, diffusion models
        only."""
        suffix_length: int = Field(default=20, ge=1, le=256)
        """Tokens of the suffix."""
        initial: str = " !"
        """Text of one token of the vocabulary; the search starts from its repetition."""
        iterations: int = Field(default=100, ge=0, le=10_000)
        """Most iterations."""
        early_stop: bool = True
        """End once each token of the target is the likeliest at its position."""
        candidates: int = Field(default=64, ge=1, le=8192)
        """Swaps drawn in an iteration."""
        top_k: int = Field(default=64, ge=1)
        """Tokens of each position that swaps are drawn from: those of the steepest gradient."""
        batch_size: int = Field(default=32, ge=1)
        """Rows of every forward pass. Logits take batch size × target tokens × vocabulary."""
        seed: int = 0
        surrogate: str | None = None
        """Label of the model of the run on which the suffix is searched; `None` for the attacked model itself."""

    source: ClassVar[str] = (
        "diffusion: First-Step GCG (2510.00565, section 4.2); autoregressive: GCG (2307.15043); mid-token target: MOSA "
        "(2508.12398), figure 4"
    )
    assumes: ClassVar[str] = "gradients of the model, or of its surrogate"
    reads_metadata: ClassVar[bool] = True
    native: ClassVar[frozenset[ModelKind]] = frozenset({"diffusion", "autoregressive"})
    searches: ClassVar[bool] = True

    def __init__(self, config: Config) -> None:
        self.config = config

    @classmethod
    def needs_model(cls, config: ComponentConfig) -> str | None:
        """See `Attack.needs_model`."""
        assert isinstance(config, Gcg.Config)
        return config.surrogate

    def compose(self, prompt: Prompt, model: LanguageModel, reply_length: int) -> AttackCase:
        """The initial suffix, nothing searched; see `Attack.compose`."""
        if self.config.surrogate not in (None, model.info.name):
            self._target_text(prompt)
            return self._case(prompt, f" {self.config.initial.strip()}" * self.config.suffix_length)
        self._target_tokens(prompt, model, reply_length)
        initial, _ = self._start(prompt, model)
        return self._case(prompt, suffix_text(initial, model))

    def compose_all(self, prompts: Sequence[Prompt], model: LanguageModel, reply_length: int) -> list[AttackCase]:
        """See `Attack.compose_all`.

        Raises:
            ConfigError: As `compose`; or the model that is searched on has no gradients, or is missing.
        """
        searched = self._searched(model)
        allowed = allowed_tokens(searched)
        cases: dict[tuple[str, str, str], AttackCase] = {}
        for prompt in prompts:
            # Several samples of a prompt share a search.
            key = (prompt.id, prompt.text, prompt.context)
            if key not in cases:
                cases[key] = self._search(prompt, searched, reply_length, allowed)
        return [cases[prompt.id, prompt.text, prompt.context] for prompt in prompts]

    def _searched(self, model: LanguageModel) -> NativeModel:
        from dsprobe.models.native import NativeModel

        label = self.config.surrogate
        if label is not None and label != model.info.name:
            if label not in self.surrogates:
                raise unknown_name("surrogate model of attack `gcg`", label, self.surrogates)
            model = self.surrogates[label]
        if not isinstance(model, NativeModel):
            raise ConfigError(
                f"Attack `gcg` takes gradients, and `{model.info.name}` has none; name a `surrogate` that has."
            )
        return model

    def _search(self, prompt: Prompt, model: NativeModel, reply_length: int, allowed: Sequence[int]) -> AttackCase:
        import torch

        from dsprobe.attacks.gcg_search import Proposals, TargetLoss, search
        from dsprobe.decoding.canvas import random_key
        from dsprobe.decoding.records import RowKey

        config = self.config
        initial, turn = self._start(prompt, model)
        proposals = Proposals(
            allowed_A=torch.tensor(allowed),
            survives=turn.survives,
            count=config.candidates,
            top_k=config.top_k,
            generator=torch.Generator().manual_seed(random_key(config.seed, RowKey(prompt.id, 0))),
        )
        target = self._target(prompt, turn, initial, model, reply_length)
        found = search(
            TargetLoss(model, target, min(config.batch_size, config.candidates)),
            initial,
            proposals,
            config.iterations,
            early_stop=config.early_stop,
        )
        metadata = {
            "searched_on": model.info.name,
            "loss_before": f"{found.before:.6g}",
            "loss_after": f"{found.after:.6g}",
            "iterations": str(found.iterations),
        }
        return self._case(prompt, suffix_text(found.suffix, model), metadata)

    def _case(self, prompt: Prompt, text: str, metadata: dict[str, str] | None = None) -> AttackCase:
        return AttackCase(prompt_id=prompt.id, attack="gcg", user=(None, text), metadata=metadata or {})

    def _start(self, prompt: Prompt, model: LanguageModel) -> tuple[tuple[int, ...], Turn]:
        """The initial suffix and the turn around it."""
        from dsprobe.models.chat import encode as token_ids

        size, ids = self.config.suffix_length, token_ids(model, self.config.initial)
        if len(ids) == 1 and allowed_tokens(model, ids):
            turn = Turn.around((ids[0],) * size, prompt, model)
            if turn is not None:
                return (ids[0],) * size, turn
        others = (token for token in allowed_tokens(model) if Turn.around((token,) * size, prompt, model))
        other = next(others, None)
        hint = "" if other is None else f" For example, `{suffix_text([other], model).strip()}` will do."
        raise ConfigError(
            f"Attack `gcg`: `initial` is `{self.config.initial}`, which is not one printable token of "
            f"`{model.info.name}` that can be repeated.{hint}"
        )

    def _target(
        self, prompt: Prompt, turn: Turn, initial: tuple[int, ...], model: LanguageModel, reply_length: int
    ) -> Target:
        """The row of the initial suffix, with the positions that the search needs."""
        from dsprobe.attacks.gcg_search import Target
        from dsprobe.attacks.realise import realise

        tokens = self._target_tokens(prompt, model, reply_length)
        rendered = realise(self._case(prompt, suffix_text(initial, model)), prompt, model, reply_length)
        first = rendered.response_start + self.config.target_position
        row = rendered.tokens
        if model.info.kind == "autoregressive":
            row, first = row + tokens, first - 1
        place = slice(len(turn.before), len(turn.before) + len(initial))
        return Target(row=row, suffix=place, read=slice(first, first + len(tokens)), tokens=tokens)

    def _target_tokens(self, prompt: Prompt, model: LanguageModel, reply_length: int) -> tuple[int, ...]:
        """The target, of which at least one token fits the reply."""
        config, position = self.config, self.config.target_position
        if position and model.info.kind == "autoregressive":
            raise ConfigError(
                f"Attack `gcg`: `target_position` is {position}; `{model.info.name}` is autoregressive and predicts "
                "reply position 0 only."
            )
        tokens = encode(self._target_text(prompt), model)
        needed = position + (len(tokens) if config.target == "text" else 1)
        if needed > reply_length:
            raise ConfigError(
                f"Attack `gcg`: the target at reply position {position} needs {needed} positions, and the reply has "
                f"{reply_length}."
            )
        return tuple(tokens[: reply_length - position])

    def _target_text(self, prompt: Prompt) -> str:
        if self.config.target == "text":
            return self.config.text
        key = REFERENCE if self.config.target == "reference" else "target"
        if not prompt.metadata.get(key):
            raise ConfigError(
                f"Attack `gcg`: prompt `{prompt.id}` has no `{key}`; set `target: text` and a `text`, or give this "
                "attack only to prompts that have one."
            )
        return prompt.metadata[key]
