"""Filters and stratified samples: proportional, reproducible, and independent of what they should not depend on."""

from __future__ import annotations

import random
from collections import Counter
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsprobe.config import PromptsConfig
from dsprobe.config_loader import load_config
from dsprobe.errors import ConfigError
from dsprobe.prompts.base import Prompt
from dsprobe.prompts.load import load_prompts
from dsprobe.prompts.selection import allocate, stratified

SAMPLED = st.dictionaries(
    st.text("abcdefg", min_size=1, max_size=3), st.integers(1, 60), min_size=1, max_size=9
).flatmap(lambda counts: st.tuples(st.just(counts), st.integers(1, sum(counts.values()))))


@given(SAMPLED)
def test_shares_are_proportional_and_leave_no_stratum_out(case):
    counts, size = case
    shares = allocate(counts, size)
    quotas = {stratum: Fraction(size * n, sum(counts.values())) for stratum, n in counts.items()}
    assert sum(shares.values()) == size
    assert all(0 <= shares[stratum] <= counts[stratum] for stratum in counts)
    if size >= len(counts):
        assert all(shares.values())
    if size < len(counts) or min(quotas.values()) >= 1:
        assert all(int(quota) <= shares[stratum] <= -int(-quota // 1) for stratum, quota in quotas.items())


@given(SAMPLED, st.randoms(use_true_random=False))
def test_shares_do_not_depend_on_the_order_of_the_strata(case, rng):
    counts, size = case
    shuffled = list(counts.items())
    rng.shuffle(shuffled)
    assert allocate(dict(shuffled), size) == allocate(counts, size)


def test_largest_remainder_on_a_worked_example():
    """Quotas 4.7, 1.6, 0.9 and 0.8 of 8: floors 4, 1, 0, 0; the three rows left go to 0.9, 0.8 and 0.7."""
    counts = {"a": 47, "b": 16, "c": 9, "d": 8}
    assert allocate(counts, 8) == {"a": 5, "b": 1, "c": 1, "d": 1}
    assert allocate({"big": 97, "one": 1, "two": 1, "three": 1}, 4) == {"big": 1, "one": 1, "two": 1, "three": 1}


def prompts_of(strata: list[str]) -> list[Prompt]:
    return [
        Prompt(id=str(i), text=f"{stratum} {i}", harmful=True, source="csv", category=stratum)
        for i, stratum in enumerate(strata)
    ]


STRATA = st.lists(st.sampled_from("abcd"), min_size=1, max_size=60)


@given(STRATA, st.integers(0, 3), st.data())
def test_a_sample_keeps_file_order_and_ignores_the_order_of_the_file(strata, seed, data):
    prompts = prompts_of(strata)
    size = data.draw(st.integers(1, len(prompts)))
    drawn = stratified(prompts, strata, size, seed)
    assert len(drawn) == size
    assert drawn == sorted(drawn, key=prompts.index)
    assert Counter(p.category for p in drawn) == {k: n for k, n in allocate(Counter(strata), size).items() if n}
    mixed = random.Random(seed).sample(prompts, len(prompts))
    again = stratified(mixed, [p.category for p in mixed], size, seed)
    assert {p.id for p in again} == {p.id for p in drawn}


@given(STRATA, st.integers(1, 20))
def test_what_a_stratum_gives_does_not_depend_on_the_texts_of_the_others(strata, size):
    prompts = prompts_of(strata)
    others = [p if p.category == "a" else Prompt(**{**fields(p), "text": p.text * 2}) for p in prompts]
    size = min(size, len(prompts))
    ours, theirs = ([p.id for p in stratified(s, strata, size, 0) if p.category == "a"] for s in (prompts, others))
    assert ours == theirs


def fields(prompt: Prompt) -> dict:
    return {name: getattr(prompt, name) for name in Prompt.__slots__}


def test_samples_are_stable_across_releases_and_differ_by_seed():
    prompts = prompts_of(["a"] * 20)
    drawn = {seed: [p.id for p in stratified(prompts, ["a"] * 20, 5, seed)] for seed in (0, 1)}
    assert drawn[0] == STABLE
    assert drawn[1] != drawn[0]


STABLE = ["5", "7", "15", "17", "18"]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    rows = [f"p{i},{'abc'[i % 3]},{'yes' if i % 2 else 'no'}" for i in range(30)]
    file = tmp_path / "own.csv"
    file.write_text("prompt,category,bad\n" + "\n".join(rows))
    return file


def load(path: Path, **settings):
    columns = {"label": "bad"}
    return load_prompts(
        PromptsConfig(source="csv", path=str(path), columns=columns, labels={"yes": True, "no": False}, **settings)
    )


def test_filters_by_category_and_label(path):
    assert Counter(p.category for p in load(path, categories=["a", "c"]).prompts) == {"a": 10, "c": 10}
    assert all(p.harmful for p in load(path, keep="harmful").prompts)
    assert load(path, keep="benign").facts()["benign"] == 15
    assert load(path, keep="benign", categories=["a"]).facts()["categories"] == {"a": 5}


def test_samples_come_after_the_filters_and_before_the_limit(path):
    drawn = load(path, keep="harmful", sample={"size": 6})
    assert drawn.facts()["categories"] == {"a": 2, "b": 2, "c": 2}
    assert not drawn.limited
    cut = load(path, keep="harmful", sample={"size": 6}, limit=4)
    assert cut.prompts == drawn.prompts[:4]
    assert cut.limited
    by_label = load(path, sample={"size": 10, "by": "harmful"}).facts()
    assert (by_label["harmful"], by_label["benign"]) == (5, 5)


def test_the_digest_follows_filters_and_samples(path):
    settings = [
        {}, {"keep": "benign"}, {"categories": ["a"]}, {"sample": {"size": 9}}, {"sample": {"size": 9, "seed": 1}},
        {"sample": {"size": 9, "by": "harmful"}},
    ]  # fmt: skip
    digests = [load(path, **changes).digest for changes in settings]
    assert len(set(digests)) == len(digests)
    assert load(path, categories=["a", "b", "c"]).digest == digests[0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"categories": ["a", "bb"]}, r"Unknown category of prompts `csv` `bb`\. Did you mean `b`"),
        ({"categories": []}, "no prompt is left"),
        ({"sample": {"size": 31}}, r"`sample.size` is 31; there are 30 prompts"),
        ({"keep": "harmful", "sample": {"size": 16}}, r"`sample.size` is 16; there are 15 prompts"),
    ],
)
def test_what_cannot_be_selected_is_named(path, settings, message):
    with pytest.raises(ConfigError, match=message):
        load(path, **settings)


def test_keys_of_a_configuration_file_are_checked_all_the_way_down(tmp_path):
    text = "models: [toy-diffusion]\nprompts: [{source: csv, path: x.csv, %s}]\n"
    for inner, message in (
        ("columns: {txt: prompt}", "Did you mean `text`"),
        ("sample: {sise: 3}", "Did you mean `size`"),
        ("sample: {size: 0}", "prompts.0.sample.size"),
        ("keep: benig", "prompts.0.keep"),
    ):
        with pytest.raises(ConfigError, match=message):
            load_run(text % inner)
    config = load_run(text % 'labels: {"1": true, "no": false}', "prompts.0.sample.size=5")
    assert (config.prompts[0].labels, config.prompts[0].sample.size) == ({"1": True, "no": False}, 5)


def load_run(text: str, *overrides: str):
    from dsprobe.config import RunConfig

    return load_config("x", overrides, {}, schema=RunConfig, recipes={"x": text}).config
