"""Cases as data: saved, loaded and replayed exactly, for every attack and both families."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from tests.attacks.attack_runs import PROMPTS, REPLY, rendered
from tests.attacks.attack_settings import ATTACKS_DRAWN

from dsprobe.attacks import ATTACKS
from dsprobe.attacks.case import MAX_RUN, AnchorText, AttackCase, RemaskText, WriteText, load_cases, save_cases
from dsprobe.attacks.realise import realise
from dsprobe.errors import ConfigError

SHARED = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
FAMILIES = ["toy-diffusion", "toy-autoregressive"]


def composed(name, params, prompt, model):
    return ATTACKS.build(name, params).compose(prompt, model, REPLY)


@pytest.mark.parametrize("family", FAMILIES)
@given(drawn=ATTACKS_DRAWN)
@SHARED
def test_a_saved_case_gives_the_row_that_was_attacked(load, tmp_path_factory, family, drawn):
    (name, params), model = drawn, load(family)
    path = tmp_path_factory.mktemp("cases") / "cases.jsonl"
    try:
        rows = [rendered(name, params, prompt, model) for prompt in PROMPTS[:3]]
    except ConfigError:
        assume(False)
    cases = [composed(name, params, prompt, model) for prompt in PROMPTS[:3]]
    assert save_cases(cases, path) == 3
    assert load_cases(path) == cases
    for prompt, case, row in zip(PROMPTS, load_cases(path), rows, strict=False):
        assert realise(case, prompt, model, REPLY) == row
        assert case.attack == name
        # A file holds no benchmark text: the request stands for itself.
        assert prompt.text not in path.read_text()
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    replay = ATTACKS.build("cases", {"path": str(path), "digest": digest})
    assert replay.render_all(PROMPTS[:3], model, REPLY) == rows


@given(drawn=ATTACKS_DRAWN)
@SHARED
def test_every_mask_of_a_row_is_judged_and_every_forced_token_too(load, drawn):
    name, params = drawn
    diffusion, causal = (load(family) for family in FAMILIES)
    for prompt in PROMPTS[:2]:
        try:
            row = rendered(name, params, prompt, diffusion)
        except ConfigError:
            assume(False)
        masks = [i for i, token in enumerate(row.tokens) if token == diffusion.info.mask_token_id]
        assert masks
        assert row.response_start <= masks[0]
        assert masks[-1] < row.response_end <= len(row.tokens)
        assert not row.forced
        try:
            twin = rendered(name, params, prompt, causal)
        except ConfigError:
            continue  # what is written later is said later, and may run out of reply
        places = [position for position, _ in twin.forced]
        assert places == sorted(set(places))
        assert all(len(twin.tokens) <= place < twin.response_end for place in places)
        assert twin.response_start <= len(twin.tokens) < twin.response_end
        assert not twin.actions


def test_cases_made_for_one_family_run_on_the_other(load, tmp_path):
    diffusion, causal = (load(family) for family in FAMILIES)
    params = {"label": "step {i} :", "spans": 2, "masks_per_span": 3}
    save_cases([composed("dija", params, PROMPTS[0], diffusion)], tmp_path / "cases.jsonl")
    replay = ATTACKS.build("cases", {"path": str(tmp_path / "cases.jsonl")})
    row = replay.render(PROMPTS[0], causal, REPLY)
    assert row == rendered("dija", params, PROMPTS[0], causal)


TEXT = st.text(min_size=1, max_size=12)
ACTIONS = st.one_of(
    st.builds(WriteText, step=st.integers(1, 99), position=st.integers(0, 99), text=TEXT),
    st.builds(RemaskText, step=st.just(1), phrases=st.lists(TEXT, max_size=2).map(tuple), end_of_text=st.booleans()),
    st.builds(AnchorText, step=st.just(1), text=TEXT),
)
ANY_CASE = st.builds(
    AttackCase,
    prompt_id=TEXT,
    attack=TEXT,
    user=st.lists(st.one_of(TEXT, st.none(), st.integers(1, MAX_RUN)), min_size=1, max_size=4).map(tuple),
    blank=TEXT,
    reply=st.lists(st.one_of(TEXT, st.integers(1, MAX_RUN)), max_size=4).map(tuple),
    tail=st.sampled_from(["mask", "eos"]),
    actions=st.lists(ACTIONS, max_size=3, unique_by=lambda action: (action.kind, action.step)).map(tuple),
    metadata=st.dictionaries(TEXT, TEXT, max_size=2),
)


@given(cases=st.lists(ANY_CASE, max_size=3))
@SHARED
def test_any_text_survives_a_file(tmp_path_factory, cases):
    path = tmp_path_factory.mktemp("any") / "cases.jsonl"
    save_cases(cases, path)
    assert load_cases(path) == cases


HEADER = '{"format": "dsprobe attack cases", "version": 1}\n'
SECRET = "a text that nobody is shown"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "line 1: not JSON"),
        ("[]\n", "line 1: not a file of attack cases. Make one with `dsprobe attacks save`"),
        ('{"format": "dsprobe attack cases", "version": 2}\n', "version 2 of attack cases, and this dsprobe reads 1"),
        (HEADER + "{\n", "line 2: not JSON"),
        (HEADER + json.dumps({"prompt_id": "a", "user": SECRET}), "line 2: user"),
        (HEADER + json.dumps({"user": [SECRET]}), "line 2: prompt_id: Field required"),
        (HEADER + json.dumps({"prompt_id": "a", "extra": SECRET}), "line 2: extra: Extra inputs"),
        (HEADER + json.dumps({"prompt_id": "a", "reply": [SECRET, 0]}), "greater than or equal to 1"),
        (HEADER + json.dumps({"prompt_id": "a", "user": [None, MAX_RUN + 1]}), "less than or equal to 4096"),
        (HEADER + json.dumps({"prompt_id": "a", "user": [SECRET], "judged": "turn"}), "needs masks in `user`"),
        (HEADER + json.dumps({"prompt_id": "a", "actions": [{"kind": "poke", "text": SECRET}]}), "line 2: actions.0"),
        (HEADER + json.dumps({"prompt_id": "a", "actions": [{"kind": "anchor", "step": 2, "text": SECRET}] * 2}),
         "several actions of kind `anchor` after one step"),
        (b"\xff\xfe", "Cannot read attack cases"),
    ],
)  # fmt: skip
def test_a_malformed_file_is_refused_by_line_and_key_and_never_shown(tmp_path, content, message):
    path = tmp_path / "cases.jsonl"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError) as caught:
        load_cases(path)
    assert message in str(caught.value)
    assert SECRET not in str(caught.value)


def test_a_file_is_pinned_by_its_digest(tmp_path):
    path = tmp_path / "cases.jsonl"
    save_cases([AttackCase(prompt_id="a")], path)
    assert len(load_cases(path, hashlib.sha256(path.read_bytes()).hexdigest())) == 1
    with pytest.raises(ConfigError, match="the configuration wants 00"):
        load_cases(path, "00")
    with pytest.raises(ConfigError, match="Cannot read attack cases"):
        load_cases(tmp_path / "none.jsonl")


def test_replay_needs_one_case_for_each_prompt(load, tmp_path):
    model, path = load("toy-diffusion"), tmp_path / "cases.jsonl"
    save_cases([AttackCase(prompt_id="other")], path)
    with pytest.raises(ConfigError, match=r"no case for prompt `toy-restricted-0000`; it has 1 others, e.g. `other`"):
        ATTACKS.build("cases", {"path": str(path)}).render(PROMPTS[0], model, REPLY)
    save_cases([AttackCase(prompt_id="a")] * 2, path)
    with pytest.raises(ConfigError, match="prompt `a` has several cases"):
        ATTACKS.build("cases", {"path": str(path)}).render(PROMPTS[0], model, REPLY)


@pytest.mark.parametrize(
    "values", [{"user": ()}, {"actions": (WriteText(step=1, position=0, text="a"),), "judged": "turn", "user": (3,)}]
)
def test_a_case_that_makes_no_sense_cannot_be_built(values):
    with pytest.raises(ValidationError):
        AttackCase(prompt_id="a", **values)


def test_what_a_case_wants_beyond_the_reply_is_said_in_numbers(load):
    model = load("toy-diffusion")
    too_long = AttackCase(prompt_id="a", reply=("sure", REPLY))
    with pytest.raises(ConfigError, match=f"need {REPLY + 1} positions, and the reply has {REPLY}"):
        realise(too_long, PROMPTS[0], model, REPLY)
    late = AttackCase(prompt_id="a", actions=(WriteText(step=1, position=REPLY - 1, text="sure here"),))
    with pytest.raises(ConfigError, match=f"ends at {REPLY + 1}, and the reply has {REPLY}"):
        realise(late, PROMPTS[0], model, REPLY)


def test_a_prompt_level_guardrail_reaches_the_request_where_the_case_refers_to_it(load):
    model, wrapped = load("toy-diffusion"), replace(PROMPTS[0], text=f"sure : {PROMPTS[0].text}")
    params = {"label": "step {i} :", "spans": 2, "masks_per_span": 3}
    case = composed("dija", params, PROMPTS[0], model)
    assert case.has_request
    plain, guarded = realise(case, PROMPTS[0], model, REPLY), realise(case, wrapped, model, REPLY)
    # Judged is the scaffold in both, since the bare request is the guarded one.
    span = slice(plain.response_start, plain.response_end)
    assert guarded.tokens[guarded.response_start : guarded.response_end] == plain.tokens[span]
    assert len(guarded.tokens) == len(plain.tokens) + 2
    rewritten = AttackCase(prompt_id=PROMPTS[0].id, user=("how are you ?",))
    assert not rewritten.has_request
    assert realise(rewritten, wrapped, model, REPLY) == realise(rewritten, PROMPTS[0], model, REPLY)


def test_a_case_does_not_show_its_texts_by_accident():
    case = AttackCase(prompt_id="p", user=("quiet words", None), reply=("more words", 3))
    assert "words" not in repr(case)
