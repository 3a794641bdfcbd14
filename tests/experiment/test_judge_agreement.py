"""Corrected rates are of the same requests as the Attack Success Rate."""

from __future__ import annotations

import pyarrow as pa
import pytest

from dsprobe.experiment.judge_agreement import calibrations
from dsprobe.metrics.calibration import corrected_rate
from dsprobe.metrics.summary import verdict_rates


def test_a_corrected_rate_is_of_all_attacked_requests():
    """8 decided, 4 empty, 2 undecided, and a benign row that counts nowhere."""
    verdict = [True] * 5 + [False] * 3 + [None] * 6 + [True]
    empty = [False] * 8 + [True] * 4 + [False] * 3
    harmful = [True] * 14 + [False]
    table = pa.table(
        {
            "condition": ["c"] * 15,
            "harmful": harmful,
            "empty": empty,
            "verdict_j": pa.array(verdict, pa.bool_()),
        }
    )
    labels = [True, True, True, True, False, False, False, True] + [None] * 7
    (judge,) = calibrations(table, {"j": "harm"}, {"harm": labels})
    columns = {"harmful": harmful, "empty": empty, "verdict_j": verdict}
    found = judge.corrected["c"]
    assert found.observed == verdict_rates(columns, {"j": "harm"})["asr"]["j"]
    assert found.observed.n == found.corrected.n == 12
    decided = corrected_rate(verdict[:8], judge.calibration).corrected
    for name in ("value", "low", "high"):
        assert getattr(found.corrected, name) == pytest.approx(getattr(decided, name) * 8 / 12)
