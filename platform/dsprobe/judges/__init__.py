"""Verdicts on final text, found by name."""

from dsprobe.judges.base import Judge, Reply
from dsprobe.registry import Entry, Registry

JUDGES: Registry[Judge] = Registry(
    "judge",
    {
        "keyword_refusal": Entry(
            "dsprobe.judges.keyword:KeywordRefusalJudge", "refusal phrases; a refusal is not an absence of harm"
        ),
        "toy_oracle": Entry("dsprobe.judges.toy_oracle:ToyOracleJudge", "exact harm on the toy world"),
        "toy_utility": Entry(
            "dsprobe.judges.toy_oracle:ToyUtilityJudge", "exact recipe accuracy on benign toy requests"
        ),
        "toy_validity": Entry("dsprobe.judges.toy_validity:ToyValidityJudge", "exact grammar of the toy language"),
    },
)

__all__ = ["JUDGES", "Judge", "Reply"]
