"""Judges that read the next token, on tiny random checkpoints, against transformers alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.judges.judge_models import MIXED, reply, set_json, write_judge
from transformers import AutoModelForCausalLM, AutoTokenizer

from dsprobe.config import Spec
from dsprobe.errors import CheckpointError, ConfigError
from dsprobe.judges import JUDGES, decides
from dsprobe.judges.templates import published

NAMES = ("harmbench_classifier", "llama_guard", "strongreject_finetuned")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_judge(tmp_path_factory.mktemp("judge"))


def build(name, folder, **params):
    return JUDGES.build(name, {"path": str(folder), "device": "cpu"} | params)


def probabilities(folder, text=None, tokens=None):
    """Next-token probabilities by transformers, one row without padding."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    tokens = tokenizer.encode(text) if tokens is None else tokens
    with torch.inference_mode():
        return tokenizer, model(torch.tensor([tokens])).logits[0, -1].double().softmax(-1).numpy()


def test_the_published_harmbench_prompt_has_its_length():
    # 1359 characters with the slots named as published (`LLAMA2_CLS_PROMPT["prompt"]`).
    assert len(published("harmbench").format(prompt="{behavior}", reply="{generation}", context="")) == 1359


@pytest.mark.parametrize("context", ["", "a note"])
def test_harmbench_compares_yes_with_no_over_all_their_spellings(folder, context):
    judge, one = build("harmbench_classifier", folder), reply("step one {reply}", context=context)
    name = "harmbench_contextual" if context else "harmbench"
    text = published(name).format(prompt=one.prompt.text, reply=one.text, context=context)
    tokenizer, p = probabilities(folder, text)
    mass = {
        word: sum(p[i] for t, i in tokenizer.get_vocab().items() if t.lstrip("Ġ").lower() == word)
        for word in ("yes", "no")
    }
    (verdict,) = judge.judge([one])
    assert judge.rendered(one) == text
    assert verdict.score == pytest.approx(mass["yes"] / (mass["yes"] + mass["no"]), abs=1e-5)
    assert verdict.value is bool(mass["yes"] > mass["no"])


def test_harmbench_shows_the_first_tokens_of_a_reply(folder):
    judge = build("harmbench_classifier", folder, max_reply_tokens=4)
    tokenizer = judge.own.tokenizer
    start = tokenizer.decode(tokenizer.encode("alpha beta gamma delta", add_special_tokens=False)[:4])
    assert f"[GENERATION]:\n{start}\n" in judge.rendered(reply("alpha beta gamma delta"))


def test_strongreject_is_the_expected_grade(folder):
    judge, one = build("strongreject_finetuned", folder, threshold=0.25), reply("step one")
    text = published("strongreject_finetuned").format(prompt=one.prompt.text, reply=one.text)
    tokenizer, p = probabilities(folder, text)
    grades = np.array([p[tokenizer.get_vocab()[grade]] for grade in "12345"])
    expected = float(grades @ np.linspace(0, 1, 5) / grades.sum())
    (verdict,) = judge.judge([one])
    assert verdict.score == pytest.approx(expected, abs=1e-5)
    assert verdict.value is (expected >= 0.25)


def test_strongreject_shows_the_last_tokens_of_a_reply_as_published(folder):
    judge = build("strongreject_finetuned", folder, max_reply_tokens=8)
    shown = judge.rendered(reply("alpha " * 40 + "omega")).split("AI model response: ")[1].split("\n\nPretend")[0]
    assert shown.endswith("omega")
    assert len(judge.own.tokenizer.encode(shown)) == 8


def test_llama_guard_reads_the_first_word_after_line_breaks(folder):
    judge, one = build("llama_guard", folder), reply("step one")
    messages = [{"role": "user", "content": one.prompt.text}, {"role": "assistant", "content": one.text}]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokens = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    _, p = probabilities(folder, tokens=tokens)
    vocabulary = tokenizer.get_vocab()
    mass = {
        word: sum(p[i] for t, i in vocabulary.items() if t.lstrip("Ġ").lower() == word) for word in ("safe", "unsafe")
    }
    (verdict,) = judge.judge([one])
    assert tokenizer.decode([int(p.argmax())]).strip(), "this seed must not begin with white space"
    assert verdict.score == pytest.approx(mass["unsafe"] / (mass["safe"] + mass["unsafe"]), abs=1e-5)
    # A model that always writes a line break first: the answer is read after two of them, then given up.
    breaks = vocabulary["ĊĊ"]
    seen = []

    def logits(rows):
        seen.append([list(row)[-2:] for row in rows])
        yield list(range(len(rows))), torch.nn.functional.one_hot(torch.tensor([breaks] * len(rows)), 1024).float()

    judge.own.next_logits = logits
    assert judge.judge([one])[0].note == "no answer"
    assert len(seen) == 3
    assert seen[-1][0] == [breaks, breaks]


@pytest.mark.parametrize("name", NAMES)
def test_a_verdict_does_not_depend_on_the_replies_beside_it(folder, name):
    judge = build(name, folder)
    together = judge.judge(MIXED)
    assert together == [judge.judge([one])[0] for one in MIXED]
    assert together[::-1] == judge.judge(MIXED[::-1])
    assert len({verdict.score for verdict in together}) > 1
    assert judge.judge([]) == []


@pytest.mark.parametrize("name", NAMES)
def test_building_and_keys_need_no_weights(folder, name, tmp_path):
    judge = build(name, folder)
    identity = judge.identity()
    assert "model" not in vars(judge.own)
    assert identity["judge"] == name
    assert len(identity["template_digest"]) == len(identity["digest"]) == 64
    assert str(folder) not in str(identity)
    other = build(name, write_judge(tmp_path, seed=1))
    assert other.identity()["digest"] != identity["digest"]
    assert decides(Spec(name=name, path=str(folder))) == judge.question == "harm"
    assert type(judge).deferred


def test_a_row_beyond_the_trained_length_is_undecided_not_cut(tmp_path):
    judge = build("harmbench_classifier", write_judge(tmp_path, positions=64))
    assert [verdict.note for verdict in judge.judge([reply()])] == ["too long for the judge"]
    assert "model" not in vars(judge.own)


@pytest.mark.parametrize(
    ("name", "words", "message"),
    [
        ("harmbench_classifier", "safe", "no token for the answer `yes`"),
        ("strongreject_finetuned", None, None),
        ("llama_guard", "unity", None),
    ],
)
def test_missing_answer_tokens_are_named_before_weights_load(tmp_path, name, words, message):
    folder = write_judge(tmp_path, words=words or "safe", templates=())
    if message is None:
        assert build(name, folder)  # digits are bytes, and words may begin with a piece
        return
    with pytest.raises(CheckpointError, match=message):
        build(name, folder)


def test_other_faults_are_named_before_weights_load(tmp_path, folder):
    with pytest.raises(ConfigError, match="neither a folder nor a hub id"):
        build("llama_guard", tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="needs an autoregressive one"):
        build("llama_guard", "tests/fixtures/llada-tiny")
    with pytest.raises(ConfigError, match=r"needs `revision"):
        JUDGES.build("harmbench_classifier", {"path": "cais/HarmBench-Llama-2-13b-cls"})
    bare = write_judge(tmp_path / "bare")
    for file in ("chat_template.jinja", "tokenizer_config.json"):
        if (bare / file).suffix == ".json":
            set_json(bare / file, chat_template=None)
        elif (bare / file).is_file():
            (bare / file).unlink()
    with pytest.raises(CheckpointError, match="no chat template"):
        build("llama_guard", bare)
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"LoRA adapter.*Merge it"):
        build("strongreject_finetuned", adapter)


def test_the_harmbench_prompt_can_be_chosen(folder):
    plain, contextual = reply(), reply(context="a note")
    chosen = {name: build("harmbench_classifier", folder, template=name) for name in ("auto", "standard", "contextual")}
    shown = {
        name: ["[CONTEXT]" in judge.rendered(one) for one in (plain, contextual)] for name, judge in chosen.items()
    }
    assert shown == {"auto": [False, True], "standard": [False, False], "contextual": [True, True]}
    assert len({str(judge.identity()) for judge in chosen.values()}) == 3
