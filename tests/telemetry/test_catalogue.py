"""The catalogue keeps Prometheus' naming rules, has few series a run, and knows neither Ray nor a store."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from dsprobe.telemetry.metrics import CATALOGUE

BASE_UNITS = ("seconds", "bytes")
MANY_VALUED = {"prompt", "prompt_id", "shard", "shard_id", "condition", "trial", "trajectory", "sample", "pid"}


@pytest.mark.parametrize("metric", CATALOGUE, ids=lambda metric: metric.name)
def test_names_follow_prometheus(metric):
    assert re.fullmatch(r"dsprobe(_[a-z]+)+", metric.name)
    assert metric.name.endswith("_total") == (metric.kind == "counter")
    if metric.unit in BASE_UNITS:
        assert re.search(rf"_{metric.unit}(_[a-z]+)?(_total)?$", metric.name)
    if metric.kind == "histogram":  # Prometheus adds these itself
        assert not re.search(r"_(bucket|sum|count)$", metric.name)


@pytest.mark.parametrize("metric", CATALOGUE, ids=lambda metric: metric.name)
def test_bounds_belong_to_histograms_and_rise(metric):
    assert bool(metric.bounds) == (metric.kind == "histogram")
    assert list(metric.bounds) == sorted(set(metric.bounds))
    assert all(bound > 0 for bound in metric.bounds)  # Ray refuses others


@pytest.mark.parametrize("metric", CATALOGUE, ids=lambda metric: metric.name)
def test_tags_have_few_values_and_legal_names(metric):
    assert not set(metric.tags) & MANY_VALUED
    assert all(re.fullmatch(r"[a-z]+", tag) for tag in metric.tags)
    assert len(set(metric.tags)) == len(metric.tags) <= 3


@pytest.mark.parametrize("metric", CATALOGUE, ids=lambda metric: metric.name)
def test_help_is_one_sentence_that_fits_a_table(metric):
    assert metric.help[0].isupper()
    assert not metric.help.endswith(".")
    assert not set("|\n") & set(metric.help)
    assert metric.source in ("replica", "reducer", "driver")


def test_names_are_unique():
    assert len({metric.name for metric in CATALOGUE}) == len(CATALOGUE)


def test_every_metric_that_the_module_defines_is_in_the_catalogue():
    from dsprobe.telemetry import metrics

    defined = {value.name for value in vars(metrics).values() if isinstance(value, metrics.Metric)}
    assert defined == {metric.name for metric in CATALOGUE}


def test_reading_it_needs_no_ray():
    program = (
        "import sys; import dsprobe.telemetry.metrics; print([m for m in ('ray', 'torch', 's3fs') if m in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"
