"""Ad-hoc attacks in one process: requests, results, what is shown of them."""

from __future__ import annotations

import html
import re
import unicodedata
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsprobe.adhoc import attack, attack_all, canvas, check_canvas, make_request, risk_lines
from dsprobe.adhoc.drawing import canvas_html, canvas_text, piece_text, sparkline, step_line
from dsprobe.adhoc.frames import Frame, FrameMaker
from dsprobe.adhoc.request import prompt_of
from dsprobe.attacks.case import load_cases, save_cases
from dsprobe.config import ModelConfig, PromptsConfig, RunConfig
from dsprobe.errors import ConfigError
from dsprobe.experiment.plan import resolve
from dsprobe.experiment.shard import ShardRunner
from dsprobe.models.load import load_model
from dsprobe.models.tiny import write_tiny_checkpoint
from dsprobe.prompts.toy import toy_prompts

PROMPT = toy_prompts("restricted", limit=1).prompts[0]
REPLY = ["step 1 :", 7, "step 2 :", 7, "step 3 :", 7]
RENOISE = {"name": "renoise", "scorer": "ngram", "threshold": 0.3, "every": 2, "final_check": True}
DIJA = {"name": "dija", "placement": "reply", "label": "step {i} :", "spans": 4, "masks_per_span": 6}


@pytest.fixture(scope="session")
def real(tmp_path_factory):
    """A model whose text is not synthetic: random weights, byte-level vocabulary."""
    texts = ["Explain how to fold a paper boat.", "step 1 : step 2 :", "Sorry sorry cannot won't illegal harmful"]
    folder = write_tiny_checkpoint(tmp_path_factory.mktemp("adhoc") / "tiny", "dream", texts=texts)
    return load_model(ModelConfig(name="tiny", path=str(folder)))


@pytest.fixture(scope="session")
def attacked(load):
    return attack(load("toy-diffusion"), canvas(PROMPT.text, REPLY, prompt=PROMPT), judges=["toy_oracle"])


def test_an_experiment_and_an_ad_hoc_attack_give_the_same_trajectories(load):
    model = load("toy-diffusion")
    config = RunConfig.model_validate(
        {
            "seed": 3, "samples": 2, "models": ["toy-diffusion"], "judges": ["toy_oracle"], "attacks": [DIJA],
            "prompts": [PromptsConfig(source="toy", limit=3)], "decodings": [{"steps": 9, "temperature": 0.7}],
            "guardrails": [{"name": "ban", "stack": [RENOISE]}],
        }
    )  # fmt: skip
    plan = resolve(config)
    runs = list(ShardRunner(plan, model, load_model).run(plan.shards[0]))
    results = attack_all(
        model, toy_prompts("restricted", limit=3).prompts, attack=DIJA, decoding={"steps": 9, "temperature": 0.7},
        guardrail=[RENOISE], judges=["toy_oracle"], samples=2, seed=3,
    )  # fmt: skip
    keys = {(key.prompt_id, key.sample): (run, row) for run in runs for row, key in enumerate(run.trajectories.keys)}
    assert len(results) == len(keys) == 6
    for result in results:
        run, row = keys[result.prompt.id, result.sample]
        assert result.text == run.texts[row]
        assert result.verdicts["toy_oracle"] == run.verdicts["toy_oracle"][row]
        assert np.array_equal(
            result.trajectories.canvas_SBL[:, result.row][: len(result.steps)],
            run.trajectories.canvas_SBL[:, row][: len(result.steps)],
        )
        steps = int(run.trajectories.num_steps_B[row])
        assert result.risks("predicted") == run.trajectories.risk_predicted_SB[:steps, row].tolist()


@pytest.mark.parametrize("name", ["toy-diffusion", "toy-autoregressive"])
@pytest.mark.parametrize("guardrail", [None, [RENOISE]])
def test_what_is_watched_live_is_what_is_recorded(load, name, guardrail):
    model = load(name)
    if name == "toy-autoregressive" and guardrail:
        with pytest.raises(ConfigError, match="`renoise` is not defined for autoregressive"):
            attack(model, PROMPT, guardrail=guardrail)
        return
    maker, live = FrameMaker(model), []

    def watch(snapshot):
        if not live:
            live.append(maker.initial(snapshot))
        live.append(maker.frame(snapshot))

    result = attack(model, canvas(PROMPT.text, REPLY), guardrail=guardrail, on_step=watch)
    assert tuple(live) == (result.initial, *result.steps)
    assert any(frame.events for frame in live) == bool(guardrail)


def test_logit_scorers_are_watched_too(real):
    live = []
    scorer = {"name": "logit_mass", "compliance": ["step"], "refusal": ["Sorry"]}
    decoding = {"steps": 4, "reply_length": 8}
    result = attack(real, "Explain.", decoding=decoding, scorer=scorer, on_step=live.append)
    assert [float(s.risk_committed_B[0]) for s in live] == result.risks("committed")
    assert all(0 < risk < 1 for risk in result.risks("committed"))


def test_frames_follow_the_canvas(attacked, load):
    assert attacked.initial.decided == sum(text is not None for text in attacked.initial.committed) == 9
    for before, after in zip((attacked.initial, *attacked.steps), attacked.steps, strict=False):
        changed = [a != b for a, b in zip(before.committed, after.committed, strict=True)]
        assert list(after.fresh) == changed
        assert all(p == c for p, c in zip(after.predicted, after.committed, strict=True) if c is not None)
    assert attacked.steps[-1].decided == len(attacked.steps[-1].committed) == 42
    assert attacked.verdicts == {"toy_oracle": True}
    assert attacked.first_harmful_step["predicted"] <= attacked.first_harmful_step["committed"]
    shown = check_canvas(load("toy-diffusion"), canvas(PROMPT.text, REPLY), 42)
    assert shown.committed == attacked.initial.committed


def test_masks_in_the_users_turn_are_seen(load):
    drawn = canvas([PROMPT.text + " step 1 :", 5, "step 2 :", 4], judged="turn", prompt=PROMPT)
    result = attack(load("toy-diffusion"), drawn)
    assert sum(text is None for text in result.initial.committed) == 9
    assert result.steps[-1].decided == len(result.steps[-1].committed)


def test_a_row_is_the_same_alone_and_among_others(load):
    model = load("toy-diffusion")
    prompts = [*toy_prompts("restricted", limit=3).prompts, canvas(PROMPT.text, REPLY)]
    together = attack_all(model, prompts, decoding={"steps": 6})
    for prompt, result in zip(prompts, together, strict=True):
        assert attack(model, prompt, decoding={"steps": 6}).to_dict() == result.to_dict()


def test_a_saved_case_repeats_the_attack(attacked, load, tmp_path):
    save_cases([attacked.case], tmp_path / "c.jsonl")
    (case,) = load_cases(tmp_path / "c.jsonl")
    again = attack(load("toy-diffusion"), PROMPT, attack=case, judges=["toy_oracle"])
    assert again.to_dict() == attacked.to_dict()


def test_text_is_shown_of_the_toy_world_and_redacted_elsewhere(attacked, real):
    word = "dovlun"
    assert word in attacked.text
    assert all(word in shown for shown in (repr(attacked), attacked._repr_html_(), attacked.frames()[-1]))
    hidden = replace(attacked, synthetic=False)
    words = set(re.findall(r"\w{4,}", attacked.text)) - {"step"}
    for shown in (repr(hidden), hidden._repr_html_(), *hidden.frames(), str(hidden.to_dict()), repr(hidden.steps)):
        assert not words & set(re.findall(r"\w+", shown))
    assert word in repr(replace(hidden, show_text=True))
    result = attack(real, "Explain how to fold a paper boat.", decoding={"steps": 4, "reply_length": 8})
    assert not result.text_allowed
    assert set(result.frames()[-1].split("predicted")[1]) <= set(" █∎░")


TEXT = st.text(st.characters(), min_size=0, max_size=8)


@given(st.lists(st.one_of(st.none(), TEXT), min_size=1, max_size=6), st.booleans(), TEXT)
@settings(max_examples=150, deadline=None)
def test_nothing_that_a_model_writes_reaches_the_layout(texts, allowed, event):
    size = len(texts)
    frame = Frame(
        step=1, committed=tuple(texts), predicted=tuple(texts), fresh=(True,) * size, attribution=(0.5,) * size,
        risk_committed=0.1, risk_predicted=None,
    )  # fmt: skip
    line = step_line(frame, 3, allowed=allowed, separator="")
    assert all(unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Zl", "Zp") for c in line)
    page = canvas_html(frame, allowed=allowed, separator=" ")
    bare = re.sub(r"<span style=\"[a-z0-9:;,.() -]*\">|</span>", "", page)
    assert not set("<>\"'") & set(bare)
    assert html.unescape(bare).strip(" ") == canvas_text(frame, allowed=allowed, separator=" ")
    if not allowed:
        assert set(canvas_text(frame, allowed=False, separator="")) <= set(" █░∎")


@given(st.lists(st.one_of(st.none(), st.floats(0, 1)), max_size=80))
def test_a_sparkline_has_a_bar_for_each_of_the_last_risks(risks):
    line = sparkline(risks, width=10)
    assert len(line) == min(len(risks), 10)
    for risk, bar in zip(risks[-10:], line, strict=True):
        assert bar == " " if risk is None else bar in "▁▂▃▄▅▆▇█"


def test_pieces_keep_the_space_before_a_word():
    assert piece_text(" boat", allowed=True) == " boat"
    assert piece_text(" boat", allowed=False) == " ████"
    assert piece_text(None, allowed=False) == "░"


def test_the_figures_numbers_are_the_results(attacked, load):
    guarded = attack(load("toy-diffusion"), canvas(PROMPT.text, REPLY, prompt=PROMPT), guardrail=[RENOISE])
    one, two = risk_lines({"plain": attacked, "guarded": guarded})
    assert one.risk_S["committed"].tolist() == attacked.risks("committed")
    assert one.event_steps == ()
    assert two.event_steps == tuple(frame.step for frame in guarded.steps if frame.events) != ()
    figure = attacked.plot()
    lines = {line.get_label(): line.get_ydata().tolist() for line in figure.axes[0].get_lines()[:2]}
    assert lines == {"committed": attacked.risks("committed"), "predicted": attacked.risks("predicted")}
    assert figure._repr_png_().startswith(b"\x89PNG")


def test_no_scorer_means_no_risk(load):
    result = attack(load("toy-diffusion"), PROMPT, scorer=None, decoding={"steps": 4})
    assert result.risks("committed") == [None] * 4
    assert "–" in result.frames()[1]
    assert result.to_dict()["tri"] == result.first_harmful_step == {}
    assert "risk" not in repr(result)


def test_a_prompt_of_one_toy_item_is_known_to_the_judges():
    assert prompt_of(PROMPT.text).metadata == {"item": PROMPT.metadata["item"]}
    assert prompt_of("fold a paper boat").metadata == {}
    assert prompt_of("a mogvibn or a bobon ?").metadata == {}
    assert prompt_of("x").id == prompt_of("x").id != prompt_of("y").id


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"attack": "dijja"}, "Did you mean `dija`"),
        ({"attack": {"name": "dija", "spns": 2}}, "Did you mean `spans`"),
        ({"decoding": {"stps": 2}}, "Did you mean `steps`"),
        ({"decoding": {"schedule": "cosin"}}, "Did you mean `cosine`"),
        ({"guardrail": ["renoize"]}, "Did you mean `renoise`"),
        ({"scorer": "toy_lexcon"}, "Did you mean `toy_lexicon`"),
        ({"judges": ["toy_oracel"]}, "Did you mean `toy_oracle`"),
        ({"threshold": 1.5}, "threshold from 0 to 1"),
        ({"samples": 0}, "one sample"),
    ],
)
def test_a_wrong_request_is_refused_without_a_model(settings, message):
    with pytest.raises(ConfigError, match=message):
        make_request(["x"], **settings)


def test_a_canvas_is_not_attacked_on_top():
    with pytest.raises(ConfigError, match="leave `attack` out"):
        make_request([canvas("x", ["y", 3])], attack="dija")
    with pytest.raises(ConfigError, match="canvas: reply"):
        canvas("x", ["y", 0])
