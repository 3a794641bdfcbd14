"""What full recording costs: against no recording, and against a naive float32 log-softmax recorder."""

from __future__ import annotations

import torch

from benchmarks.baselines import naive_recorder
from benchmarks.common import best_of, decode, models, prompts, rendered, show
from dsprobe.attacks.base import Rendered
from dsprobe.config import DecodingConfig, RecordingConfig
from dsprobe.decoding.canvas import batch_canvases
from dsprobe.decoding.hooks import Hook, StepContext
from dsprobe.decoding.loop import StatisticsNeeds, denoise
from dsprobe.decoding.policy import SchedulePolicy
from dsprobe.decoding.records import RowKey
from dsprobe.models.base import DiffusionModel

ROWS = {"toy": 32, "vocabulary 32k": 8}
PROMPT, REPLY, STEPS = 22, 42, 32


class _NaiveHook(Hook):
    def __init__(self) -> None:
        self._record = naive_recorder()
        self.kept: list[dict[str, torch.Tensor]] = []

    def on_logits(self, context: StepContext) -> None:
        self.kept.append(self._record(context.logits_NV))


def _decode_naively(model: DiffusionModel, rows: list[Rendered], config: DecodingConfig) -> None:
    keys = [RowKey(str(index)) for index in range(len(rows))]
    canvas = batch_canvases(rows, keys, model.info, length=len(rows[0].tokens))
    policy = SchedulePolicy(config, model.info)
    denoise(model, canvas, policy, hooks=[_NaiveHook()], needs=StatisticsNeeds(all_masks=True))


@torch.inference_mode()
def compare(name: str, model: DiffusionModel) -> None:
    """Time the same decoding bare, fully recorded, and naively recorded."""
    rows = rendered(model, prompts(model, ROWS[name], PROMPT), REPLY)
    config = DecodingConfig(steps=STEPS, reply_length=REPLY)
    full = RecordingConfig(top_k=8)
    bare, recorded, state_free, naive = best_of(
        9,
        lambda: decode(model, rows, config),
        lambda: decode(model, rows, config, full),
        lambda: decode(model, rows, config, full.model_copy(update={"kl": "hidden"})),
        lambda: _decode_naively(model, rows, config),
    )
    show(
        "full recording",
        {
            "model": name,
            "prompts": ROWS[name],
            "steps": STEPS,
            "bare_s": bare,
            "overhead": recorded / bare - 1,
            "overhead_kl_from_hidden_states": state_free / bare - 1,
            "overhead_naive_recorder": naive / bare - 1,
        },
    )


def main() -> None:
    """Compare on the embedded model and on a vocabulary of 32 k."""
    for name, model in models().items():
        compare(name, model)


if __name__ == "__main__":
    main()
