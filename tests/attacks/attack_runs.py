"""Attacked rows decoded as a run decodes them, on the embedded models."""

from __future__ import annotations

from dsprobe.attacks import ATTACKS
from dsprobe.attacks.in_loop import attack_hooks
from dsprobe.config import DecodingConfig, PromptsConfig, RecordingConfig
from dsprobe.decoding.autoregressive import generate
from dsprobe.decoding.canvas import batch_canvases
from dsprobe.decoding.loop import denoise
from dsprobe.decoding.policy import SchedulePolicy
from dsprobe.decoding.recorder import Recorder, statistics_needs
from dsprobe.decoding.schedule import planned_steps
from dsprobe.prompts.load import load_prompts

REPLY = 42
WIDTH = 80
PROMPTS = load_prompts(PromptsConfig(source="toy", limit=6)).prompts
SEED = 3


def rendered(name, params, prompt, model, reply=REPLY):
    return ATTACKS.build(name, params).render(prompt, model, reply)


def denoised(model, rows, keys, config=None, *, guardrails=(), hooks=()):
    """The recorded batch of some rows of a diffusion model."""
    config = config or DecodingConfig(steps=12, reply_length=REPLY)
    canvas = batch_canvases(rows, keys, model.info, seed=SEED, length=WIDTH)
    recorder = Recorder(RecordingConfig(), model, None)
    acting = [*attack_hooks(rows, planned_steps(config), model.info.mask_token_id), *guardrails, recorder, *hooks]
    needs = statistics_needs(RecordingConfig(), model, int(canvas.masked_BL.sum()))
    return recorder.finish(denoise(model, canvas, SchedulePolicy(config, model.info), hooks=acting, needs=needs))


def generated(model, rows, keys, config=None):
    """The recorded batch of some rows of an autoregressive model."""
    config = config or DecodingConfig(reply_length=REPLY)
    return generate(model, rows, keys, config, recording=RecordingConfig(), seed=SEED)
