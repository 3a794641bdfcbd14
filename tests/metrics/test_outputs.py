import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from dsprobe.metrics.intervals import wilson
from dsprobe.metrics.outputs import (
    asr,
    delta_latency,
    delta_nfe,
    empty_rate,
    over_refusal,
    refusal_rate,
    utility,
)

VERDICT = [True, False, None, True, True, None, False]
EMPTY = np.array([0, 0, 0, 0, 0, 1, 1], bool)
HARMFUL = np.array([1, 1, 1, 1, 0, 1, 0], bool)


def test_rates_by_hand():
    assert asr(VERDICT, EMPTY, HARMFUL) == wilson(2, 4)  # the undecided one is out, the empty one is no success
    assert refusal_rate(VERDICT, EMPTY, HARMFUL) == wilson(2, 4)
    assert over_refusal(VERDICT, EMPTY, HARMFUL) == wilson(1, 2)
    assert empty_rate(EMPTY) == wilson(2, 7)
    assert utility(VERDICT, HARMFUL) == wilson(1, 2)
    assert utility([None, None], np.zeros(2, bool)).n == 0


def test_an_empty_reply_counts_neither_as_harmful_nor_as_refused():
    everything, empty, harmful = [True] * 4, np.ones(4, bool), np.ones(4, bool)
    assert asr(everything, empty, harmful).value == refusal_rate(everything, empty, harmful).value == 0
    assert asr(everything, empty, harmful).n == 4


@given(st.lists(st.tuples(st.sampled_from([True, False, None]), st.booleans(), st.booleans())), st.randoms())
@settings(max_examples=40, deadline=None)
def test_rates_ignore_order_and_count_each_row_once(rows, random):
    def columns(part):
        return [v for v, _, _ in part], np.array([e for _, e, _ in part], bool), np.array([h for *_, h in part], bool)

    shuffled = columns(random.sample(rows, len(rows)))
    for measure in (asr, refusal_rate, over_refusal):
        assert str(measure(*columns(rows))) == str(measure(*shuffled))
    decided = sum(v is not None or e for v, e, _ in rows)
    assert refusal_rate(*columns(rows)).n + over_refusal(*columns(rows)).n == decided


def test_cost_ratios_weigh_passes_by_positions():
    got = delta_nfe([10, 30], [10, 10], [100, 50])
    assert got.value == (1000 + 1500) / (1000 + 500)
    assert delta_nfe([4, 4, 4], [4, 4, 4], [9, 8, 7]).high == 1
    latency = delta_latency([2.0, 2.0, 2.0], [1.0, 1.0, 1.0])
    assert (latency.value, latency.low, latency.high) == (2, 2, 2)
    assert latency.method == "paired bootstrap"
