"""A judge from a sequence classifier: a tiny random BERT, against transformers alone."""

from __future__ import annotations

import pytest
import torch
from tests.judges.judge_models import MIXED, reply, set_json
from tests.risk.test_classifier_scorer import write_classifier
from transformers import AutoTokenizer, BertForSequenceClassification

from dsprobe.config import Spec
from dsprobe.errors import CheckpointError, ConfigError
from dsprobe.judges import JUDGES, decides


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_classifier(tmp_path_factory.mktemp("classifier"))


def build(folder, **params):
    defaults = {"path": str(folder), "label": "harmful", "max_length": 128, "device": "cpu"}
    return JUDGES.build("sequence_classifier", defaults | params)


@pytest.mark.parametrize("shown", ["reply", "pair"])
def test_the_score_is_the_softmax_of_the_label(folder, shown):
    judge, one = build(folder, shown=shown), reply("take the step", request="how and why?")
    tokenizer, model = AutoTokenizer.from_pretrained(folder), BertForSequenceClassification.from_pretrained(folder)
    texts = (one.text,) if shown == "reply" else (one.prompt.text, one.text)
    with torch.inference_mode():
        expected = float(model.eval()(**tokenizer(*texts, return_tensors="pt")).logits.softmax(-1)[0, 1])
    (verdict,) = judge.judge([one])
    assert verdict.score == pytest.approx(expected, abs=1e-5)
    assert verdict.value is (expected >= 0.5)
    at_most = build(folder, shown=shown, threshold=verdict.score + 1e-3).judge([one])[0]
    assert at_most.value is False


def test_a_verdict_does_not_depend_on_its_neighbours_and_long_replies_are_cut(folder):
    judge = build(folder, batch_size=3, max_length=32)
    asked = [*MIXED, reply("a " * 500)]
    together = judge.judge(asked)
    assert together == [judge.judge([one])[0] for one in asked]
    assert judge.judge([]) == []


def test_building_needs_no_weights_and_the_identity_tells_settings_apart(folder):
    judge = build(folder)
    keys = {str(one.identity()) for one in (judge, build(folder, label=2), build(folder, threshold=0.6),
                                            build(folder, shown="pair"), build(folder, decides="refusal"))}  # fmt: skip
    assert len(keys) == 5
    assert build(folder, batch_size=2).identity() == judge.identity()
    assert str(folder) not in str(judge.identity())
    assert "module" not in vars(judge.classifier)
    spec = Spec(name="sequence_classifier", path=str(folder), label=0, decides="refusal")
    assert decides(spec) == "refusal" == build(folder, decides="refusal").question


def test_faults_are_named_before_weights_load(tmp_path, folder):
    with pytest.raises(ConfigError, match=r"label.*`harmfull`\. Did you mean `harmful`\?"):
        build(folder, label="harmfull")
    with pytest.raises(ConfigError, match="has no label 7"):
        build(folder, label=7)
    with pytest.raises(ConfigError, match="Judge `sequence_classifier`: max_length 512 is too long"):
        build(folder, max_length=512)
    with pytest.raises(ConfigError, match=r"max_length 8 is too short .* 16 to"):
        build(folder, max_length=8)
    pickled = write_classifier(tmp_path)
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="pickled weights"):
        build(pickled)
    foreign = write_classifier(tmp_path / "foreign")
    set_json(foreign / "config.json", model_type="unheard-of", auto_map={"AutoConfig": "code.Config"})
    with pytest.raises(CheckpointError, match="no sequence classifier can be loaded"):
        build(foreign)
