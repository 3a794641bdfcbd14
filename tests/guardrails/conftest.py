"""What the guardrails' tests share: the toy model, models that follow a script, and a decoder with guardrails."""

from __future__ import annotations

import pytest
import torch

from dsprobe.config import DecodingConfig
from dsprobe.decoding.canvas import batch_canvases
from dsprobe.decoding.loop import StatisticsNeeds, denoise
from dsprobe.decoding.policy import SchedulePolicy
from dsprobe.guardrails import GUARDRAILS, Setting
from dsprobe.models.base import DiffusionModel

NEEDS = StatisticsNeeds()


@pytest.fixture(scope="session")
def toy(load):
    """The embedded aligned diffusion model."""
    return load("toy-diffusion")


class Scripted(DiffusionModel):
    """A model whose hidden states are its logits, written by a function of the canvas; speaks the toy language."""

    def __init__(self, language, script):
        self.info, self.tokenizer = language.info, language.tokenizer
        self.device, self.dtype = torch.device("cpu"), torch.float32
        self.script, self.rows = script, []

    def hidden(self, tokens_BL, real_BL):
        self.rows.append(len(tokens_BL))
        return self.script(tokens_BL)

    def hidden_layers(self, tokens_BL, real_BL, layers):
        raise NotImplementedError

    def head(self, hidden_ND):
        return hidden_ND.clone()

    @property
    def head_weight_VD(self):
        return torch.eye(self.info.vocab_size)


@pytest.fixture
def scripted(toy):
    """``scripted(script)``: a model with the toy vocabulary; ``script(tokens_BL)`` gives logits ``[B, L, V]``.

    `rows` lists the batch size of every forward pass.
    """
    return lambda script: Scripted(toy, script)


@pytest.fixture
def words(toy):
    """``words("a b")``: token ids of words of the toy language."""
    return lambda text: list(toy.tokenizer.encode(text, add_special_tokens=False))


@pytest.fixture
def build():
    """``build(model, decoding, "gate", **params)``: a guardrail after its check, as a run builds it."""

    def make(model, decoding, name, **params):
        GUARDRAILS.get(name).check(GUARDRAILS.config(name, params), decoding)
        return GUARDRAILS.build(name, params, Setting(model=model, decoding=decoding))

    return make


@pytest.fixture
def decode():
    """``decode(model, rows, keys, decoding, hooks)``: the finished batch of rendered rows."""

    def run(model, rows, keys, decoding, hooks=(), *, seed=3, needs=NEEDS, length=None):
        assert isinstance(decoding, DecodingConfig)
        canvas = batch_canvases(rows, keys, model.info, seed=seed, length=length)
        return denoise(model, canvas, SchedulePolicy(decoding, model.info), hooks=list(hooks), needs=needs)

    return run
