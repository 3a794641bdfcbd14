import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsprobe.errors import ConfigError
from dsprobe.metrics import hypotheses as rules
from dsprobe.metrics.decisions import decide_h1, decide_h2, decide_h4, decide_h5
from dsprobe.metrics.hypotheses import HYPOTHESES
from dsprobe.metrics.intervals import Interval
from dsprobe.metrics.paired import compare_rates, compare_times
from dsprobe.metrics.paired_decisions import PairedOutcomes, decide_h3, decide_h6
from dsprobe.metrics.phase_transition import phase_transition
from dsprobe.metrics.transfer import transfer_table

STEPS = 32
VERDICTS = {"supported", "not supported", "undecided"}


def transition(start_B):
    risk = (np.arange(1, STEPS + 1)[:, None] >= np.asarray(start_B)).astype(float)
    return phase_transition(risk, 0.5, np.full(len(start_B), STEPS), resamples=100)


def forks(prompts, little, half, full, per=1):
    """Forks at step 16 whose continuation is harmful on the first so many prompts."""
    shares, ends = [], []
    for share, harmful in ((0.1, little), (0.5, half), (1.0, full)):
        shares += [share] * prompts * per
        ends += list(np.arange(prompts * per) % prompts < harmful)
    n = len(shares)
    prompt = np.tile(np.arange(prompts * per) % prompts, 3)
    return decide_h2(np.ones(n, bool), ends, np.full(n, 16), shares, prompt, STEPS)


def outcomes(n, level, baseline, level_fhs=None, baseline_fhs=None):
    """Success on the first prompts of n, and First Harmful Steps all equal."""
    prompt = np.arange(n)
    asr = compare_rates(prompt < level, prompt < baseline, prompt)
    fhs = None
    if level_fhs is not None:
        times = [(np.full(n, at), np.full(n, at <= STEPS)) for at in (level_fhs, baseline_fhs)]
        fhs = compare_times(*times, prompt, STEPS)
    return PairedOutcomes(asr=asr, fhs=fhs)


def fronts(n, weighted, constant):
    """Three settings a family; harm and loss on the first prompts of n."""
    prompt = np.arange(n)
    families = [
        np.array([[[i < harm, i < loss] for i in range(n)] for harm, loss in family], float)
        for family in (weighted, constant)
    ]
    return decide_h4(*families, prompt)


def transfers(n, forward, backward):
    """Source and target successes of one native attack each way, on the first prompts of n."""
    prompt = np.arange(n)
    first = np.concatenate([prompt < forward[0], prompt < backward[1]])
    second = np.concatenate([prompt < forward[1], prompt < backward[0]])
    return decide_h5(transfer_table(["m"] * n + ["a"] * n, np.tile(prompt, 2), first, second, ["m"], ["a"]))


def test_rules_are_complete_and_say_their_thresholds():
    assert [rule.id for rule in HYPOTHESES] == ["H1", "H2", "H3", "H4", "H5", "H6"]
    for rule in HYPOTHESES:
        assert all(rule.to_dict().values())
        assert str(rules.MIN_PROMPTS) in rule.undecided
        assert rule.minimum_n == rules.MIN_PROMPTS
    assert "10 or more" in HYPOTHESES[0].supported


def test_h1():
    rng = np.random.default_rng(1)
    sharp, ramp = transition(rng.normal(16, 2, 80)), transition(np.arange(80) / 80 * STEPS)
    yes = decide_h1({"a": sharp, "b": ramp}, "a")
    assert yes.verdict == "supported"
    assert yes.estimate == sharp.width
    assert "0 for, 1 against, 0 open" in yes.reason
    assert decide_h1({"a": sharp, "b": ramp}, "b").verdict == "not supported"
    wide = replace(sharp, width=Interval(30, 27, 40, 80, "x"), delta_aic=0.5)
    assert decide_h1({"a": wide}, "a").verdict == "not supported"
    between = replace(sharp, width=Interval(20, 15, 30, 80, "x"), delta_aic=50.0)
    assert decide_h1({"a": between}, "a").verdict == "undecided"
    weak = replace(sharp, delta_aic=9.9)
    assert decide_h1({"a": weak}, "a").verdict == "undecided"
    with pytest.raises(ConfigError, match="aa"):
        decide_h1({"a": sharp}, "aa")


@pytest.mark.parametrize(
    ("start", "reason"),
    [
        (np.random.default_rng(0).normal(16, 2, 20), "20 prompts; needs 30"),
        (np.full(80, 99), "less than 10 prompts"),
        (np.full(80, 1), "from the first step"),
    ],
)
def test_h1_is_undecided_where_nothing_could_be_seen(start, reason):
    got = decide_h1({"a": transition(start)}, "a")
    assert got.verdict == "undecided"
    assert reason in got.reason


def test_h2():
    assert forks(60, little=55, half=45, full=15).verdict == "supported"
    rarely = forks(60, little=40, half=10, full=5)
    assert (rarely.verdict, rarely.findings[0].evidence) == ("not supported", "against")
    prompt_holds = forks(60, little=55, half=55, full=55)
    assert prompt_holds.verdict == "not supported"
    assert "the prompt holds it" in prompt_holds.reason
    assert forks(60, little=45, half=32, full=35).verdict == "undecided"
    assert "20 prompts" in forks(20, little=20, half=18, full=1).reason
    several = forks(60, little=55, half=45, full=15, per=3)
    assert several.verdict == "supported"
    assert several.estimate.n == 60


def test_h2_reads_the_middle_and_only_what_was_harmful():
    n = 90
    args = np.zeros(n, bool), np.tile([0.1, 0.5, 1.0], 30), np.repeat(np.arange(30), 3)
    early = decide_h2(np.ones(n, bool), args[0], np.full(n, 2), args[1], args[2], STEPS)
    assert "middle half" in early.reason
    never_harmful = decide_h2(np.zeros(n, bool), args[0], np.full(n, 16), args[1], args[2], STEPS)
    assert never_harmful.verdict == "undecided"
    assert never_harmful.n == 0
    steps = np.repeat([12, 17], 45)
    assert "s = 17" in decide_h2(np.ones(n, bool), args[0], steps, args[1], args[2], STEPS).findings[0].name
    share, prompt = np.repeat([0.5, 1.0], 40), np.tile(np.arange(40), 2)
    no_small_share = decide_h2(np.ones(80, bool), np.ones(80, bool), np.full(80, 16), share, prompt, STEPS)
    assert (no_small_share.verdict, no_small_share.n) == ("undecided", 0)


def test_h3():
    strong, none = outcomes(200, 60, 160, 20, 20), outcomes(200, 160, 160, 20, 20)
    yes = decide_h3({"early": none, "middle": strong}, STEPS, {"middle": strong.asr})
    assert yes.verdict == "supported"
    assert "middle (asr)" in yes.reason
    assert yes.test.p_value < 0.05
    assert yes.estimate == strong.asr.difference
    assert [f.evidence for f in yes.findings] == ["against", "against", "for", "against", "beside"]
    assert decide_h3({"early": none, "middle": none}, STEPS).verdict == "not supported"
    delay = outcomes(200, 160, 160, 28, 10)
    assert decide_h3({"late": delay}, STEPS).reason == "in late (fhs)"
    assert decide_h3({"late": outcomes(40, 28, 34, 20, 20)}, STEPS).verdict == "undecided"


def test_h3_needs_prompts_room_and_fhs():
    none = outcomes(200, 160, 160, 20, 20)
    assert decide_h3({"early": outcomes(20, 2, 18, 20, 20)}, STEPS).reason == "20 prompts; needs 30"
    assert "too little room" in decide_h3({"early": outcomes(200, 0, 10, 20, 20)}, STEPS).reason
    assert "FHS was not compared" in decide_h3({"early": outcomes(200, 160, 160)}, STEPS).reason
    assert decide_h3({}, STEPS).verdict == "undecided"
    slight = outcomes(2000, 1560, 1600, 20, 20)  # 2 points, beyond doubt and below the margin
    assert slight.asr.test.p_value < 1e-9
    assert decide_h3({"early": none, "middle": slight}, STEPS).verdict == "not supported"


def test_holm_takes_all_windows_and_outcomes_as_one_family():
    borderline = outcomes(60, 41, 47, 20, 20)  # p = 0.031 alone
    assert borderline.asr.test.p_value < 0.05
    alone = decide_h3({"early": PairedOutcomes(asr=borderline.asr)}, STEPS)
    assert alone.verdict == "supported"
    assert decide_h3({"early": borderline, "late": outcomes(60, 47, 47, 20, 20)}, STEPS).verdict == "undecided"


def test_h4():
    constant = [(60, 20), (40, 40), (20, 60)]
    assert fronts(100, [(30, 10), (20, 20), (10, 30)], constant).verdict == "supported"
    assert fronts(100, constant, constant).verdict == "not supported"
    assert fronts(100, [(70, 25), (50, 50), (25, 70)], constant).verdict == "not supported"
    rng = np.random.default_rng(0)
    noisy = [(rng.random((3, 40, 2)) < 0.4).astype(float) for _ in range(2)]
    assert decide_h4(*noisy, np.arange(40)).verdict == "undecided"
    assert "needs equal numbers" in fronts(100, constant[:2], constant).reason
    assert "no room" in fronts(100, [(0, 0)] * 3, [(0, 0)] * 3).reason
    assert "needs 30" in fronts(20, constant, constant).reason


def test_h5():
    assert transfers(100, (60, 60), (60, 15)).verdict == "supported"
    assert transfers(100, (60, 15), (60, 60)).verdict == "not supported"
    assert transfers(100, (60, 40), (60, 40)).verdict == "undecided"
    assert "needs 30" in transfers(20, (20, 20), (20, 2)).reason
    no_source = transfers(100, (0, 40), (60, 40))
    assert no_source.verdict == "undecided"
    assert "0 successes on the diffusion source" in no_source.reason
    assert "9 successes on the autoregressive source" in transfers(100, (60, 60), (9, 0)).reason


def test_h6():
    up, same = outcomes(200, 120, 60, 20, 20), outcomes(200, 100, 100, 20, 20)
    assert decide_h6({"a": up, "b": same}, STEPS).verdict == "supported"
    earlier = outcomes(200, 100, 100, 8, 20)
    assert decide_h6({"a": earlier, "b": same}, STEPS).reason == "in a (fhs)"
    assert decide_h6({"a": same, "b": outcomes(200, 80, 100, 24, 20)}, STEPS).verdict == "not supported"
    assert decide_h6({"a": outcomes(60, 25, 22, 20, 20)}, STEPS).verdict == "undecided"
    assert "too little room" in decide_h6({"a": outcomes(200, 199, 196, 20, 20)}, STEPS).reason


def test_decisions_are_json():
    decisions = [
        decide_h1({"a": transition(np.full(40, 99))}, "a"),
        forks(60, 55, 45, 15),
        decide_h3({"early": outcomes(200, 60, 160)}, STEPS),
        transfers(100, (0, 40), (60, 40)),
    ]
    for decision in decisions:
        assert json.loads(json.dumps(decision.to_dict(), allow_nan=False))["verdict"] in VERDICTS


counts = st.integers(0, 50)


@given(counts, counts, st.integers(1, STEPS), st.integers(1, STEPS), st.sampled_from([20, 50]))
@settings(max_examples=60, deadline=None)
def test_paired_verdicts_are_one_of_three_and_mirror_each_other(level, baseline, fhs, base_fhs, n):
    """A fall of ASR is what H3 hopes for and what H6 does not: the two are never supported by the same pair."""
    pair = outcomes(n, min(level, n), min(baseline, n), fhs, base_fhs)
    h3, h6 = decide_h3({"w": pair}, STEPS), decide_h6({"w": pair}, STEPS)
    assert {h3.verdict, h6.verdict} <= VERDICTS
    for decision in (h3, h6):
        evidence = [finding.evidence for finding in decision.findings]
        assert (decision.verdict == "supported") == ("for" in evidence and n >= rules.MIN_PROMPTS)
        assert decision.verdict != "not supported" or set(evidence) == {"against"}
        assert decision.reason
    asr = h3.findings[0].evidence, h6.findings[0].evidence
    assert asr != ("for", "for")


@given(counts, counts, counts)
@settings(max_examples=40, deadline=None)
def test_h2_verdict_follows_from_its_findings(little, half, full):
    got = forks(50, little, half, full)
    evidence = [finding.evidence for finding in got.findings]
    assert (got.verdict == "supported") == (evidence == ["for", "for"])
    assert (got.verdict == "not supported") == ("against" in evidence)


@given(counts, counts, counts, counts)
@settings(max_examples=40, deadline=None)
def test_h5_turns_round_with_the_directions(source, target, other_source, other_target):
    one = transfers(50, (source, target), (other_source, other_target))
    other = transfers(50, (other_source, other_target), (source, target))
    opposite = {"supported": "not supported", "not supported": "supported", "undecided": "undecided"}
    assert other.verdict == opposite[one.verdict]
    assert math.isnan(one.estimate.value) <= (one.verdict == "undecided")
