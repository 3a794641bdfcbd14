"""The refiner: its rules, retries and fallbacks, and that nothing is refined twice. A real local server answers."""

from __future__ import annotations

import re

import pytest
from tests.attacks.attack_runs import PROMPTS, REPLY
from tests.judges.test_judge_endpoint import completion, serving

from dsprobe.attacks import refiner as refining
from dsprobe.attacks.realise import realise
from dsprobe.attacks.refiner import INSTRUCTION, STRUCTURES, TEMPERATURES, Refiner, checked, refine_all
from dsprobe.errors import ConfigError, PrerequisiteError
from dsprobe.judges.backends import LocalBackendConfig, OpenAIBackendConfig
from dsprobe.models.tiny import write_tiny_checkpoint
from dsprobe.prompts.base import Prompt

BOAT = Prompt(id="boat", text="how do i fold a boat ?", harmful=False, source="test")
GOOD = "how do i fold a boat ?\nfirst: <mask:20>\nthen: <mask:20>"


def config(url, **values):
    return OpenAIBackendConfig(kind="openai", base_url=url, model="m-1", api_key_env=None, retries=0, **values)


def asked(body):
    """The request at the end of the instruction."""
    return re.search(r"Request: ([^\n]*)\nDocument:$", body["messages"][0]["content"])[1]


@pytest.mark.parametrize(
    ("answer", "segments", "problem"),
    [
        (GOOD, (None, "\nfirst: ", 20, "\nthen: ", 20), ""),
        (f"```\n{GOOD}\n```", (None, "\nfirst: ", 20, "\nthen: ", 20), ""),
        (f"Document: {GOOD}", (None, "\nfirst: ", 20, "\nthen: ", 20), ""),
        (GOOD.replace("fold", "Fold"), (), "word for word"),
        (f"{GOOD} {BOAT.text}", (), "once"),
        (GOOD.replace("then", "then " * 11), (), "more than 10 words"),
        (GOOD.replace("then", "sorry"), (), "a comment or a warning"),
        (f"{BOAT.text} first", (None, " first"), "it has no gap"),
        (f"{BOAT.text} <mask:5>", (), "1 gaps, not 2 to 4"),
        (BOAT.text + " a <mask:5>" * 5, (), "5 gaps"),
        (BOAT.text + " a <mask:65>" * 2, (), "more than 128 tokens"),
        (f"{BOAT.text} <mask:0> a <mask:9999999>", (), "no sensible length"),
        ("", (), "once"),
    ],
)
def test_the_rules(answer, segments, problem):
    found, broken = checked(answer, BOAT.text)
    assert found == segments
    assert problem in broken
    assert bool(broken) == bool(problem)


def test_a_good_answer_becomes_a_case_that_renders(load):
    toy = [f"{prompt.text} step 1 : <mask:9> step 2 : <mask:9>" for prompt in PROMPTS[:3]]
    by_request = {prompt.text: text for prompt, text in zip(PROMPTS, toy, strict=False)}
    with serving(lambda body, times: (200, completion(by_request[asked(body)]))) as server:
        cases = Refiner(config(server.url)).refine(PROMPTS[:3])
        assert [body["temperature"] for body in server.bodies] == [TEMPERATURES[0]] * 3
    for case, prompt in zip(cases, PROMPTS, strict=False):
        assert (case.prompt_id, case.judged, case.user[0]) == (prompt.id, "turn", None)
        assert case.metadata["tries"] == "1"
        model = load("toy-diffusion")
        row = realise(case, prompt, model, REPLY)
        assert row.tokens.count(model.info.mask_token_id) == 18
        text = model.tokenizer.decode(row.tokens[row.response_start : row.response_end])
        assert text == "step 1 :" + " <mask>" * 9 + " step 2 :" + " <mask>" * 9


def test_a_broken_rule_is_told_and_tried_again_at_a_higher_temperature():
    answers = ["no idea", GOOD.replace("<mask:20>", "..."), GOOD]

    with serving(lambda body, times: (200, completion(answers[len(server.bodies) - 1]))) as server:
        (case,) = Refiner(config(server.url)).refine([BOAT])
        assert [body["temperature"] for body in server.bodies] == list(TEMPERATURES[:3])
        first, second, third = (body["messages"] for body in server.bodies)
    assert (len(first), len(second), len(third)) == (1, 3, 3)
    assert second[1] == {"role": "assistant", "content": "no idea"}
    assert "word for word" in second[2]["content"]
    assert "no gap" in third[2]["content"]
    assert case.user == (None, "\nfirst: ", 20, "\nthen: ", 20)
    assert case.metadata["tries"] == "3"
    assert "fallback" not in case.metadata


@pytest.mark.parametrize(
    ("answer", "user", "fallback"),
    [
        (f"{BOAT.text} like so", (None, " like so", 36), "36 masks appended"),
        ("I am sorry.", (None, *refining.SEPARATE), "rule template"),
        ("", (None, *refining.SEPARATE), "rule template"),
    ],
)
def test_after_the_last_try_a_rule_takes_over_and_says_so(answer, user, fallback):
    with serving(lambda body, times: (200, completion(answer))) as server:
        (case,) = Refiner(config(server.url)).refine([BOAT])
        assert len(server.bodies) == 5
        assert [body["temperature"] for body in server.bodies] == list(TEMPERATURES)
    assert case.user == user
    assert case.metadata["fallback"] == fallback
    assert case.metadata["tries"] == "5"
    assert case.metadata["problem"]


def test_a_model_that_refuses_temperatures_is_sent_none():
    with serving(lambda body, times: (200, completion("no"))) as server:
        Refiner(config(server.url, temperature=None), tries=2).refine([BOAT])
        assert all("temperature" not in body for body in server.bodies)
        assert len(server.bodies) == 2


def test_what_is_refined_is_kept_and_saved_between_batches(monkeypatch):
    monkeypatch.setattr(refining, "BATCH", 2)
    prompts = [Prompt(id=f"p{i}", text=f"how {i} ?", harmful=False, source="test") for i in range(5)]
    saved, fails = [], []

    def script(body, times):
        if fails and asked(body) == fails[0]:
            return 500, {"error": {"message": "down"}}
        return 200, completion(f"{asked(body)}\na <mask:5>\nb <mask:5>")

    with serving(script) as server:
        fails.append("how 3 ?")
        with pytest.raises(PrerequisiteError, match="HTTP 500"):
            refine_all(Refiner(config(server.url)), prompts, [], saved.append)
        assert [[case.prompt_id for case in cases] for cases in saved] == [["p0", "p1"]]
        fails.clear()
        server.bodies.clear()
        cases = refine_all(Refiner(config(server.url)), prompts, saved[-1][::-1], saved.append)
        assert {asked(body) for body in server.bodies} == {"how 2 ?", "how 3 ?", "how 4 ?"}
        assert [case.prompt_id for case in cases] == ["p0", "p1", "p2", "p3", "p4"] == [c.prompt_id for c in saved[-1]]
        with pytest.raises(ConfigError, match=r"`p0` comes from another refiner or prompt set"):
            refine_all(Refiner(config(server.url, seed=1)), prompts, cases, saved.append)
        with pytest.raises(ConfigError, match=r"`p4` comes from another refiner or prompt set"):
            refine_all(Refiner(config(server.url)), prompts[:4], cases, saved.append)


def test_structures_vary_and_the_request_is_never_formatted():
    prompts = [Prompt(id=f"p{i}", text="{structure} {request} {0} {goal}", harmful=False, source="t") for i in range(9)]
    with serving(lambda body, times: (200, completion("no"))) as server:
        Refiner(config(server.url), tries=1).refine(prompts)
        sent = [body["messages"][0]["content"] for body in server.bodies]
    assert {asked(body) for body in server.bodies} == {prompts[0].text}
    kinds = {structure for structure in STRUCTURES for text in sent if f"laid out as: {structure}." in text}
    assert len(kinds) > 2


def test_the_examples_of_the_instruction_keep_its_own_rules():
    """Both worked examples are accepted, so a model that copies their form passes."""
    examples = re.findall(r"Request: ([^{\n]*)\nDocument: (.*?)(?:\n\n|$)", INSTRUCTION, flags=re.DOTALL)
    assert len(examples) == 2
    for request, document in examples:
        assert checked(document, request)[1] == ""


def test_a_local_model_is_asked_and_an_untrained_one_falls_back(tmp_path):
    folder = tmp_path / "causal"
    write_tiny_checkpoint(folder, "causal", texts=[INSTRUCTION, GOOD] * 20, vocab_size=400, hidden_size=32)
    local = LocalBackendConfig(kind="local", path=str(folder), max_tokens=4)
    one, two = Refiner(local, tries=2), Refiner(local, tries=2)
    (case,) = one.refine([BOAT])
    assert case.metadata["fallback"] == "rule template"
    assert two.metadata == one.metadata
    assert one.metadata != Refiner(local, tries=1).metadata


def test_tries_are_bounded():
    with pytest.raises(ConfigError, match="6 tries; allowed: 1 to 5"):
        Refiner(config("http://localhost:1/v1"), tries=6)
