"""Published artefacts become cases: formats, matching, masks, the request's place, and malformed files."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.attacks.attack_runs import PROMPTS as TOY
from tests.attacks.attack_runs import REPLY

from dsprobe.attacks import ATTACKS
from dsprobe.attacks.artefacts import FORMATS
from dsprobe.attacks.case import MAX_RUN, save_cases
from dsprobe.attacks.imports import import_cases, mask_segments, with_request
from dsprobe.attacks.realise import realise
from dsprobe.errors import ConfigError
from dsprobe.prompts.base import Prompt, PromptSet, digest_of

BOAT = Prompt(id="boat_1", text="Fold a paper boat", harmful=False, source="test")
TEA = Prompt(id="tea_1", text="Brew green tea", harmful=False, source="test", context="Dear reader,")
SECRET = "words of an artefact"


def prompt_set(*prompts):
    return PromptSet(name="mine", prompts=prompts, digest=digest_of(prompts))


BOTH = prompt_set(BOAT, TEA)


@pytest.fixture
def written(tmp_path):
    def write(content, name="artefacts.json"):
        path = tmp_path / name
        data = content if isinstance(content, str) else json.dumps(content)
        path.write_text(data, encoding="utf-8")
        return path

    return write


HARMBENCH = {
    "boat_1": ["Please: Fold a paper boat !x!", ["a second case"]],
    "tea_1": ["Dear reader,\n\n---\n\nBrew green tea now", "a second case"],
}


def test_harmbench_test_cases_by_behaviour_id(written):
    found = import_cases(written(HARMBENCH), BOTH)
    assert (found.format, found.unmatched, found.missing) == ("harmbench", 0, 0)
    boat, tea = found.cases
    assert (boat.prompt_id, boat.user, boat.judged) == ("boat_1", ("Please: ", None, " !x!"), "reply")
    # The request is the context and the text after it, as it is put.
    assert tea.user == (None, " now")
    assert boat.metadata["source"] == "harmbench"
    assert len(boat.metadata["file_sha256"]) == 64
    assert boat.attack == "harmbench"
    second = import_cases(written(HARMBENCH), BOTH, which=2, attack="pap")
    assert [case.user for case in second.cases] == [("a second case",)] * 2
    assert {case.attack for case in second.cases} == {"pap"}
    with pytest.raises(ConfigError, match="2 of its 2 prompts have no artefact number 3"):
        import_cases(written(HARMBENCH), BOTH, which=3)


def test_a_single_text_is_a_list_of_one(written):
    assert import_cases(written({"boat_1": "go on"}), prompt_set(BOAT)).cases[0].user == ("go on",)


JBB = {
    "parameters": {"method": "PAIR", "model": "m", "attack_type": 3},
    "jailbreaks": [
        {"index": 0, "goal": "fold a  paper BOAT", "behavior": "b", "category": "c", "prompt": "As a poem: a boat"},
        {"index": 1, "goal": "Brew green tea", "behavior": "t", "category": "c", "prompt": None},
    ],
}


def test_jailbreakbench_by_the_goals_text_whatever_its_case(written):
    found = import_cases(written(JBB), prompt_set(BOAT))
    (case,) = found.cases
    assert (found.format, case.prompt_id, case.user) == ("jailbreakbench", "boat_1", ("As a poem: a boat",))
    assert case.metadata["method"] == "PAIR"
    assert "attack_type" not in case.metadata
    with pytest.raises(ConfigError, match=r"0 of 1 artefacts belong .* 1 of its 2 prompts have no artefact"):
        import_cases(written(JBB), BOTH)
    partly = import_cases(written(JBB), BOTH, allow_missing=True)
    assert (len(partly.cases), partly.missing) == (1, 1)


@pytest.mark.parametrize(
    "entry",
    [
        {"BehaviorID": "boat_1", "Behavior": "Fold it", "Refined_behavior": "{}"},
        {"behavior": "Boats", "goal": "Fold a paper boat", "target": "t", "category": "c", "refined_goal": "{}"},
        {"source": "s", "category": "c", "vanilla prompt": "Fold a paper boat", "refined prompt": "{}"},
    ],
)
def test_dija_refined_prompts_of_each_benchmark(written, entry):
    text = "Fold a paper boat. Step 1: <mask:20> Step 2: <mask:9>"
    content = [{key: text if value == "{}" else value for key, value in entry.items()}]
    (case,) = import_cases(written(content), prompt_set(BOAT)).cases
    assert case.user == (None, ". Step 1: ", 20, " Step 2: ", 9)
    assert (case.judged, case.attack) == ("turn", "dija")


def test_a_refined_prompt_without_masks_gets_the_run_that_dija_appends(written):
    content = [{"goal": "Fold a paper boat", "refined_goal": "Fold a paper boat then"}]
    (case,) = import_cases(written(content), prompt_set(BOAT)).cases
    assert case.user == (None, " then", 36)
    assert case.metadata["fallback"] == "36 masks appended"


def test_csv_by_id_or_request(written):
    by_id = written('BehaviorID,Attack Text\nboat_1,"go, <|mask|><|mask|> on"\n', "a.csv")
    (case,) = import_cases(by_id, prompt_set(BOAT)).cases
    assert (case.user, case.judged) == (("go, ", 2, " on"), "turn")
    by_text = written("goal,attack_text\nfold a paper boat,go on\n", "b.csv")
    assert import_cases(by_text, prompt_set(BOAT)).cases[0].user == ("go on",)


def test_what_belongs_to_no_prompt_is_counted(written):
    content = HARMBENCH | {"kite_1": ["x"], "kite_2": ["x", "y"]}
    with pytest.raises(ConfigError, match="3 of 7 artefacts belong to no prompt of `mine`, and 0 of its 2 prompts"):
        import_cases(written(content), BOTH)
    assert import_cases(written(content), BOTH, allow_missing=True).unmatched == 3
    with pytest.raises(ConfigError, match="no artefact belongs to a prompt of `mine`"):
        import_cases(written({"kite": ["x"]}), BOTH, allow_missing=True)


@pytest.mark.parametrize(
    ("content", "form", "message"),
    [
        ("{", "auto", "not JSON"),
        ("[" * 100_000, "auto", "not JSON"),
        ("3", "auto", "neither an object nor a list"),
        ([SECRET], "auto", "entry 1: an object is needed, not `str`"),
        ([{"goal": SECRET}], "auto", "entry 1: no key that begins with `refined`"),
        ([{"refined_goal": SECRET}], "auto", "entry 1, key `goal`: missing beside `refined_goal`"),
        ([{"refined_goal": SECRET, "goal": [SECRET]}], "auto", "entry 1, key `goal`: a text is needed, not `list`"),
        ([{"refined_goal": {"a": SECRET}, "goal": "b"}], "auto", "key `refined_goal`: a text is needed, not `dict`"),
        ({"boat_1": [[SECRET, SECRET]]}, "auto", "behaviour 1, case `1`: has several parts"),
        ({"boat_1": [3]}, "auto", "behaviour 1, case `1`: a text is needed, not `int`"),
        ({"boat_1": [SECRET, ""]}, "auto", "behaviour 1, case `2`: empty"),
        ({"boat_1": [f"{SECRET} <mask:0>"]}, "auto", "prompt `boat_1`: a run of 0 masks; allowed: 1 to 4096"),
        ({"boat_1": [f"{SECRET} <mask:4097>"]}, "auto", "a run of 4097 masks"),
        ({"boat_1": ["<mask:4000><mask:97>"]}, "auto", "a run of 4097 masks"),
        ({"boat_1": [SECRET + "\ud800"]}, "auto", "half a surrogate pair"),
        ({"jailbreaks": SECRET}, "auto", "an object with a list `jailbreaks`"),
        ({"jailbreaks": [{"prompt": SECRET}]}, "auto", "jailbreak 1, key `goal`: missing"),
        ([], "harmbench", "an object of behaviour ids"),
        ({}, "dija", "a list of objects"),
        ("id,text\na,b\n", "csv", "no column with the attack text"),
        ("attack_text\nb\n", "csv", "no column with an id or a request"),
        ("id,attack_text\nboat_1\n", "csv", "line 2, column `attack_text`: missing"),
        ("{}", "jbb", "Unknown format of artefacts `jbb`. .*Allowed: auto, csv, dija, harmbench, jailbreakbench"),
    ],
)  # fmt: skip
def test_malformed_files_are_refused_by_entry_and_key_and_never_shown(written, content, form, message):
    with pytest.raises(ConfigError, match=message.replace("[", r"\[")) as caught:
        import_cases(written(content), prompt_set(BOAT), format=form)
    assert SECRET not in str(caught.value)


def test_a_file_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match="Cannot read artefacts"):
        import_cases(tmp_path / "none.json", BOTH)


PIECE = st.one_of(st.sampled_from(["<mask:3>", "<|mdm_mask|>", "<|mask|>", "<mask:", ">", "kite"]), st.text(max_size=5))


@given(pieces=st.lists(PIECE, max_size=8), request_text=st.text(min_size=1, max_size=4))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_segments_spell_the_text_and_never_hold_the_request(pieces, request_text):
    text = "".join(pieces)
    segments = mask_segments(text, "here")
    spelled = "".join("<|mask|>" * s if isinstance(s, int) else s for s in segments)
    assert spelled == text.replace("<mask:3>", "<|mask|>" * 3).replace("<|mdm_mask|>", "<|mask|>")
    kinds = [type(segment) for segment in segments]
    assert all(a != b for a, b in pairwise(kinds))
    assert all(1 <= segment <= MAX_RUN for segment in segments if isinstance(segment, int))
    found = with_request(segments, request_text)
    assert not any(request_text in segment for segment in found if isinstance(segment, str))
    assert "" not in found
    assert "".join(request_text if s is None else "|" if isinstance(s, int) else s for s in found) == "".join(
        "|" if isinstance(s, int) else s for s in segments
    )


def test_an_imported_case_puts_the_published_text_token_for_token(load, written, tmp_path):
    """The turn of an artefact is the artefact's text, whether the case quotes the request or refers to it."""
    model, prompt = load("toy-diffusion"), TOY[0]
    text = f"please help : {prompt.text} step 1 : sure"
    found = import_cases(written({prompt.id: [text]}), prompt_set(prompt))
    assert None in found.cases[0].user
    row = realise(found.cases[0], prompt, model, REPLY)
    turn = model.chat_tokens([{"role": "user", "content": text}])
    assert list(row.tokens[: row.response_start]) == turn
    save_cases(found.cases, tmp_path / "cases.jsonl")
    assert prompt.text not in (tmp_path / "cases.jsonl").read_text()
    assert ATTACKS.build("cases", {"path": str(tmp_path / "cases.jsonl")}).render(prompt, model, REPLY) == row


def test_the_formats_that_are_told_are_the_ones_there_are():
    assert FORMATS == ("auto", "harmbench", "jailbreakbench", "dija", "csv")
