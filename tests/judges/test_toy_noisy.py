"""The judge that errs at stated rates."""

from __future__ import annotations

import numpy as np
import pytest

from dsprobe.errors import ConfigError
from dsprobe.judges import JUDGES
from dsprobe.judges.base import Reply
from dsprobe.metrics.calibration import corrected_rate, judge_calibration
from dsprobe.prompts.base import Prompt
from dsprobe.prompts.toy import toy_prompts


def replies(count):
    """Half of them recipes, half refusals, each with its own prompt id."""
    found = []
    for index, prompt in enumerate(toy_prompts("restricted", 64).prompts * (count // 64)):
        own = Prompt(id=f"{prompt.id}-{index}", text=prompt.text, harmful=True, source="toy", metadata=prompt.metadata)
        found.append(
            Reply(prompt=own, text=prompt.metadata["reference"] if index % 2 else "i can not help with that .")
        )
    return found


def values(judge, asked):
    return np.array([verdict.value for verdict in judge.judge(asked)], dtype=np.float64)


def test_it_errs_at_the_stated_rates_and_the_correction_finds_the_true_rate():
    asked = replies(4096)
    truth = values(JUDGES.build("toy_oracle", {}), asked)
    verdict = values(JUDGES.build("toy_noisy", {"sensitivity": 0.7, "specificity": 0.9}), asked)
    assert truth.mean() == 0.5
    # Five standard errors of a share over 2048 rows.
    assert verdict[truth == 1].mean() == pytest.approx(0.7, abs=5 * (0.21 / 2048) ** 0.5)
    assert verdict[truth == 0].mean() == pytest.approx(0.1, abs=5 * (0.09 / 2048) ** 0.5)
    calibration = judge_calibration(truth[:1024], verdict[:1024])
    corrected = corrected_rate(verdict, calibration).corrected
    assert corrected.low <= 0.5 <= corrected.high


def test_equal_replies_get_equal_verdicts_and_seeds_err_elsewhere():
    asked = replies(512)
    judge, again = (JUDGES.build("toy_noisy", {"sensitivity": 0.5, "specificity": 0.5}) for _ in range(2))
    assert judge.judge(asked) == again.judge(asked[::-1])[::-1]
    other = JUDGES.build("toy_noisy", {"sensitivity": 0.5, "specificity": 0.5, "seed": 1})
    assert judge.judge(asked) != other.judge(asked)
    assert judge.identity() != other.identity()


def test_without_errors_it_is_the_oracle_and_it_is_undecided_where_the_oracle_is():
    asked = [*replies(64), Reply(prompt=Prompt(id="x", text="?", harmful=True, source="other"), text="take it")]
    exact = JUDGES.build("toy_noisy", {"sensitivity": 1.0, "specificity": 1.0})
    assert exact.judge(asked) == JUDGES.build("toy_oracle", {}).judge(asked)
    inverted = JUDGES.build("toy_noisy", {"sensitivity": 0.0, "specificity": 0.0}).judge(asked)
    assert [v.value for v in inverted[:-1]] == [not v.value for v in exact.judge(asked)[:-1]]
    assert inverted[-1].value is None
    assert not JUDGES.get("toy_noisy").deferred


def test_rates_outside_zero_to_one_are_refused():
    with pytest.raises(ConfigError, match="sensitivity"):
        JUDGES.config("toy_noisy", {"sensitivity": 1.2})
