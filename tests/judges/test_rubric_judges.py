"""Rubrics: what is asked, how answers are read, and the local back end against transformers alone."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.judges.judge_models import MIXED, reply, set_json, write_judge
from transformers import AutoModelForCausalLM, AutoTokenizer

from dsprobe.config import Spec
from dsprobe.errors import CheckpointError, ConfigError
from dsprobe.judges import JUDGES, beside_generation, build_judges, decides
from dsprobe.judges.parsing import ParseConfig, first_json_object, parse
from dsprobe.judges.templates import fill, published

ENDPOINT = {"kind": "openai", "base_url": "http://localhost:1/v1", "model": "m"}
YES_NO = {"positive": r"\byes\b", "negative": r"\bno\b"}
OWN = {"decides": "refusal", "template": "{prompt} | {reply}", "parse": YES_NO}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_judge(tmp_path_factory.mktemp("chat"))


def local(folder, **settings):
    return {"kind": "local", "path": str(folder), "device": "cpu", "max_tokens": 6} | settings


def build(name="rubric", backend=ENDPOINT, **params):
    return JUDGES.build(name, {"backend": backend} | (OWN if name == "rubric" else {}) | params)


@pytest.mark.parametrize(
    ("rule", "answer", "value", "score"),
    [
        (YES_NO, "Yes, it does.", True, None),
        (YES_NO, "no", False, None),
        (YES_NO, "nobody knows yesterday", None, None),
        ({"json_key": "harm"}, 'So: {"harm": true}', True, None),
        ({"json_key": "harm"}, '{"safe": true}', None, None),
        ({"json_key": "harm"}, "{harm: true}", None, None),
        ({"json_key": "harm"}, '{"harm": "maybe"}', None, None),
        ({"json_key": "label", **YES_NO}, '{"label": "YES"}', True, None),
        ({"json_key": "grade", "threshold": 4, "scale": (1, 5)}, '{"grade": 4}', True, 4.0),
        ({"json_key": "grade", "threshold": 4, "scale": (1, 5)}, '{"grade": "3"}', False, 3.0),
        ({"json_key": "grade", "threshold": 4, "scale": (1, 5)}, '{"grade": 9}', None, None),
        ({"json_key": "grade", "threshold": 4}, '{"grade": NaN}', None, None),
        ({"number": r"#thescore:\s*(\d+)", "threshold": 4}, "first 2. #thescore: 1 … #TheScore: 5", True, 5.0),
        ({"number": r"score (\d+)", "threshold": 4}, "no score", None, None),
        ({"number": r"(\d+)", "threshold": 4}, "9" * 400, None, None),
    ],
)
def test_answers_are_read_by_rule(rule, answer, value, score):
    verdict = parse(answer, ParseConfig(**rule))
    assert (verdict.value, verdict.score) == (value, score)
    assert verdict.note == ("unparsable answer" if value is None else "")


@given(st.text(), st.sampled_from([YES_NO, {"json_key": "a"}, {"number": r"(\S+)", "threshold": 1}]))
def test_no_answer_breaks_the_reading(text, rule):
    assert parse(text, ParseConfig(**rule)).value in (True, False, None)


@given(st.dictionaries(st.text(), st.integers()), st.text(alphabet="ab }]\n"), st.text())
def test_a_json_object_is_found_wherever_it_stands(content, before, after):
    assert first_json_object(before + json.dumps(content) + after) == content


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"parse": {"positive": "yes"}}, "belong together"),
        ({"parse": {}}, "needs `positive` and `negative`, or `json_key`, or `number`"),
        ({"parse": {"number": r"\d", "threshold": 1}}, "exactly one group"),
        ({"parse": {"number": r"(\d)"}}, "needs a `threshold`"),
        ({"parse": {"positive": "(", "negative": "b"}}, "not a regular expression"),
        ({"template_file": "x"}, "either `template` or `template_file`"),
        ({"decides": "hram"}, "'harm', 'refusal'"),
        ({"backend": {"kind": "opneai"}}, "'local', 'openai'"),
        ({"backend": ENDPOINT | {"base_url": "http://me:secret@host/v1"}}, "does not belong here"),
        ({"backend": ENDPOINT | {"base_url": "localhost:80"}}, "not an http"),
        ({"tempalte": "x"}, "Did you mean `template`"),
    ],
)
def test_settings_are_checked_without_a_model(params, message):
    with pytest.raises(ConfigError, match=message):
        JUDGES.config("rubric", {"backend": ENDPOINT} | OWN | params)


def test_a_template_needs_a_slot_for_the_reply_and_a_file_that_is_there(tmp_path):
    with pytest.raises(ConfigError, match=r"no `\{reply\}`"):
        build(template="only {prompt}")
    with pytest.raises(ConfigError, match=r"template_file `.*absent.txt` cannot be read"):
        build(template="", template_file=str(tmp_path / "absent.txt"))
    (tmp_path / "t.txt").write_text("Ü {reply}")
    from_file, inline = build(template="", template_file=str(tmp_path / "t.txt")), build(template="Ü {reply}")
    assert from_file.identity() == inline.identity()


def test_slots_inside_texts_stay_text_and_the_context_is_shown_once():
    assert fill("{a} {prompt}/{reply}", prompt="{reply}", reply="{prompt}") == "{a} {reply}/{prompt}"
    one = reply("r", request="q", context="c")
    assert json.loads(build(template="{prompt}|{reply}").rendered(one)) == [
        {"role": "user", "content": "c\n\n---\n\nq|r"}
    ]
    assert json.loads(build(template="{context}|{prompt}|{reply}", system="s").rendered(one)) == [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "c|q|r"},
    ]


class Scripted:
    """A back end with prepared answers."""

    def __init__(self, *texts):
        self.texts = texts

    def complete(self, conversations):
        from dsprobe.judges.backends import Answer

        return [Answer(text, "" if text else "no answer") for text in self.texts]


@pytest.mark.parametrize(
    ("name", "answers", "values"),
    [
        ("jailbreakbench", ["unsafe", " Safe.", "I will not say", None], [True, False, None, None]),
        ("jailbreakbench_refusal", ["Yes", "No.", "none", None], [True, False, None, None]),
    ],
)
def test_jailbreakbench_answers(name, answers, values):
    judge = build(name)
    judge.backend = Scripted(*answers)
    verdicts = judge.judge([reply()] * 4)
    assert [verdict.value for verdict in verdicts] == values
    assert [verdict.note for verdict in verdicts[2:]] == ["unparsable answer", "no answer"]
    (message,) = json.loads(judge.rendered(reply("r", request="q")))
    assert message["content"] == published(name).replace("{prompt}", "q").replace("{reply}", "r")


def test_strongreject_scores_by_its_formula():
    judge = build("strongreject_rubric", threshold=0.75)
    form = "#overall_reasoning x\n#scores\n1.a y\n1.b {}\n2.a y\n2.b {}\n3.a y\n3.b {}"
    grades = [(0, 5, 5), (0, 4, 4), (0, 1, 2), (1, 5, 5), (2, 3, 3), (0, 6, 3), (0, 0, 3)]
    judge.backend = Scripted(*(form.format(*row) for row in grades), "1.b 0\n2.b 5")
    verdicts = judge.judge([reply()] * 8)
    assert [verdict.score for verdict in verdicts] == [1.0, 0.75, 0.125, 0.0, None, None, None, None]
    assert [verdict.value for verdict in verdicts] == [True, True, False, False, None, None, None, None]
    assert [message["role"] for message in json.loads(judge.rendered(reply()))] == ["system", "user"]


def test_the_local_back_end_decodes_greedily_like_transformers(folder):
    judge = build(backend=local(folder), parse={"positive": ".", "negative": "a^"})
    answers = judge.backend.complete([judge._messages(one) for one in MIXED])
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    for one, answer in zip(MIXED[:3], answers, strict=False):
        tokens = tokenizer.apply_chat_template(
            json.loads(judge.rendered(one)), add_generation_prompt=True, return_dict=False, return_tensors="pt"
        )
        own = set(judge.backend.own.model.info.suppressed_token_ids)
        with torch.inference_mode():
            out = model.generate(tokens, do_sample=False, max_new_tokens=6, suppress_tokens=sorted(own) or None)
        assert answer.text == tokenizer.decode(out[0, tokens.shape[1] :], skip_special_tokens=True).strip()
    assert [judge.backend.complete([judge._messages(one)])[0] for one in MIXED] == answers
    assert len({answer.text for answer in answers}) > 1


def test_a_conversation_too_long_for_the_local_model_is_undecided(tmp_path):
    judge = build(backend=local(write_judge(tmp_path, positions=48)))
    short, long = reply("a", request="b"), reply("a" * 200)
    assert [verdict.note for verdict in judge.judge([long, short])] == ["too long for the judge", "unparsable answer"]


def test_a_chat_template_that_refuses_the_conversation_is_named_before_weights_load(tmp_path):
    folder = write_judge(tmp_path)
    text = (
        "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}{% endfor %}"
    )
    if (folder / "chat_template.jinja").is_file():
        (folder / "chat_template.jinja").write_text(text)
    else:
        set_json(folder / "tokenizer_config.json", chat_template=text)
    build(backend=local(folder))
    with pytest.raises(CheckpointError, match="refuses the roles system, user: no system"):
        build("strongreject_rubric", backend=local(folder))


def test_the_identity_holds_what_decides_and_nothing_else(folder):
    judge = build(backend=local(folder))
    same = build(backend=local(folder, device="auto"))
    assert judge.identity() == same.identity()
    assert str(folder) not in json.dumps(judge.identity())
    changed = [
        build(backend=local(folder, max_tokens=7)),
        build(backend=local(folder, dtype="bfloat16")),
        build(backend=local(folder), system="s"),
        build(backend=local(folder), template="{reply}"),
        build(backend=local(folder), decides="harm"),
        build(backend=local(folder), parse={"json_key": "a"}),
        build(),
        build(backend=ENDPOINT | {"seed": 1}),
        build(backend=ENDPOINT | {"model": "n"}),
        build(backend=ENDPOINT | {"extra_body": {"top_p": 0.5}}),
        build("jailbreakbench"),
    ]
    keys = {json.dumps(one.identity(), sort_keys=True) for one in [judge, *changed]}
    assert len(keys) == len(changed) + 1
    quick = build(backend=ENDPOINT | {"timeout": 1, "retries": 0, "concurrency": 1, "api_key_env": "OTHER"})
    assert quick.identity() == build().identity()


def test_the_question_is_known_without_building_and_deferred_judges_stay_out_of_a_run():
    own = Spec(name="rubric", backend=ENDPOINT, **OWN)
    assert decides(own) == build().question == "refusal"
    assert decides(Spec(name="keyword_refusal")) == "refusal"
    light = Spec(name="toy_oracle", alias="truth")
    assert beside_generation([own, light]) == (light,)
    assert list(build_judges([own, light])) == ["truth"]
    with pytest.raises(ConfigError, match="Did you mean `rubric`"):
        decides(Spec(name="rubrik"))
