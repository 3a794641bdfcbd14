"""Logits that are logged raw: those of the model, of the rows that are wanted, and no others."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import numpy as np
import pytest
import torch

from dsprobe.attacks.base import Rendered
from dsprobe.config import DecodingConfig, RawConfig, RecordingConfig
from dsprobe.decoding.records import RAW_CUT, RAW_NONE, RAW_SAMPLE, RowKey, TrajectoryBatch
from dsprobe.experiment.decode import decode_rows
from dsprobe.guardrails import Guardrail
from dsprobe.models.base import CausalModel, DiffusionModel, LanguageModel

REPLY, STEPS = 10, 6
ROLES = np.array([RAW_SAMPLE, RAW_NONE, RAW_CUT, RAW_SAMPLE], np.int8)
Load = Callable[[str], LanguageModel]


class Doubling(Guardrail):
    """Changes all logits, as a guardrail may."""

    def on_logits(self, context) -> None:  # type: ignore[no-untyped-def]
        context.logits_NV = context.logits_NV * 2.0


def rows(model: LanguageModel) -> list[Rendered]:
    rng = np.random.default_rng(0)
    out = []
    for length in (5, 9, 7, 5):
        prompt = tuple(rng.integers(10, 100, length).tolist())
        reply = (model.info.mask_token_id,) * REPLY if model.info.kind == "diffusion" else ()
        out.append(Rendered(tokens=(*prompt, *reply), response_start=length, response_end=length + REPLY))
    return out


def run(
    model: LanguageModel, raw_B: np.ndarray | None, *, extreme: int = 0, guardrails: tuple[Guardrail, ...] = ()
) -> TrajectoryBatch:
    raw = RawConfig(keep=("logits", "topk"), sample=0.5, extreme=extreme)
    return decode_rows(
        model,
        rows(model),
        [RowKey(str(index)) for index in range(4)],
        DecodingConfig(steps=STEPS, reply_length=REPLY),
        recording=RecordingConfig(top_k=5, raw=raw),
        scorer=None,
        guardrails=guardrails,
        raw_B=raw_B,
    )


def entries(batch: TrajectoryBatch, step: int) -> list[tuple[int, int, np.ndarray]]:
    assert batch.logits_NV is not None
    assert batch.logits_row_N is not None
    assert batch.logits_position_N is not None
    return list(
        zip(
            batch.logits_row_N[step].tolist(),
            batch.logits_position_N[step].tolist(),
            batch.logits_NV[step],
            strict=True,
        )
    )


@torch.inference_mode()
def plain_logits(model: DiffusionModel, batch: TrajectoryBatch, step: int) -> np.ndarray:
    """One forward pass on the canvas before the step, float32 ``[B, L, V]``."""
    before_BL = torch.from_numpy(batch.canvas_BL if step == 0 else batch.canvas_SBL[step - 1]).long()
    logits_BLV = model.head(model.hidden(before_BL, torch.from_numpy(batch.real_BL))).float()
    logits_BLV[..., sorted(model.info.suppressed_token_ids)] = -65504.0
    logits: np.ndarray = logits_BLV.numpy()
    return logits


@pytest.mark.parametrize("hooks", [(), (Doubling,)])
@pytest.mark.parametrize("name", ["toy-diffusion", "llada-tiny", "dream-tiny"])
def test_they_are_those_of_a_plain_forward_pass(name: str, hooks: tuple[type[Guardrail], ...], load: Load) -> None:
    model = cast("DiffusionModel", load(name))
    batch = run(model, ROLES, guardrails=tuple(hook() for hook in hooks))
    for step in range(batch.max_steps):
        expected_BLV = plain_logits(model, batch, step)
        before_BL = batch.canvas_BL if step == 0 else batch.canvas_SBL[step - 1]
        found = entries(batch, step)
        masked_BL = (before_BL == model.info.mask_token_id) & np.isin(ROLES, [RAW_SAMPLE])[:, None]
        assert {(row, at) for row, at, _ in found} == set(zip(*(i.tolist() for i in masked_BL.nonzero()), strict=True))
        for row, at, logits_V in found:
            assert logits_V.dtype == np.float16
            np.testing.assert_allclose(logits_V.astype(np.float32), expected_BLV[row, at], atol=0.02, rtol=2e-3)


def test_the_top_k_tokens_are_the_largest_of_them(load: Load) -> None:
    for name in ("toy-diffusion", "toy-autoregressive"):
        batch = run(load(name), ROLES)
        assert batch.topk_tokens_SBLK is not None
        assert batch.topk_logprobs_SBLK is not None
        count = 0
        for step in range(batch.max_steps):
            for row, at, logits_V in entries(batch, step):
                tokens_K = batch.topk_tokens_SBLK[step, row, at]
                best_K = np.sort(logits_V)[::-1][: len(tokens_K)]
                np.testing.assert_array_equal(logits_V[tokens_K], best_K)
                gaps_K = (best_K - best_K[0]).astype(np.float32)
                logprobs_K = batch.topk_logprobs_SBLK[step, row, at].astype(np.float32)
                np.testing.assert_allclose(logprobs_K - logprobs_K[0], gaps_K, atol=0.02)
                count += 1
        assert count > STEPS


def test_extremes_need_the_logits_of_all_rows_since_they_are_not_known_before(load: Load) -> None:
    batch = run(load("toy-diffusion"), ROLES, extreme=1)
    assert {row for row, _, _ in entries(batch, 0)} == {0, 1, 2, 3}


@pytest.mark.parametrize("roles", [None, np.array([RAW_NONE, RAW_CUT, RAW_NONE, RAW_NONE], np.int8)])
@pytest.mark.parametrize("name", ["toy-diffusion", "toy-autoregressive"])
def test_nothing_is_kept_where_no_row_is_wanted(name: str, roles: np.ndarray | None, load: Load) -> None:
    batch = run(load(name), roles)
    assert batch.logits_NV is None
    assert batch.raw_B is roles


def test_an_autoregressive_model_has_those_of_the_token_it_chose(load: Load) -> None:
    model = cast("CausalModel", load("toy-autoregressive"))
    batch = run(model, ROLES)
    suppressed = [t for t in model.info.suppressed_token_ids if t not in model.info.eos_token_ids]
    for step in range(batch.max_steps):
        found = {row: (at, logits_V) for row, at, logits_V in entries(batch, step)}
        assert set(found) == {row for row in (0, 3) if step < batch.num_steps_B[row]}
        for row, (at, logits_V) in found.items():
            tokens = batch.tokens_BL[row, :at][batch.real_BL[row, :at]]
            with torch.inference_mode():
                real = torch.ones(1, len(tokens), dtype=torch.bool)
                hidden, _ = model.hidden(torch.from_numpy(tokens)[None].long(), real, None)
                expected_V = model.head(hidden[:, -1])[0].float().numpy()
            expected_V[suppressed] = -65504.0
            np.testing.assert_allclose(logits_V.astype(np.float32), expected_V, atol=0.02, rtol=2e-3)
            assert batch.tokens_BL[row, at] == logits_V.argmax()


@pytest.mark.gpu
def test_the_copy_off_a_gpu_is_complete(load: Load) -> None:
    from dsprobe.decoding.logits_capture import LogitsCapture

    capture = LogitsCapture(torch.tensor([True, False]))
    row_N = torch.tensor([0, 1, 0], device="cuda")
    steps = [torch.randn(3, 1 << 16, device="cuda") for _ in range(32)]
    for logits_NV in steps:
        capture.keep(logits_NV, row_N, row_N + 5)
    kept = capture.finish()
    for step, logits_NV in enumerate(steps):
        np.testing.assert_array_equal(kept["logits_NV"][step], logits_NV[[0, 2]].half().cpu().numpy())
