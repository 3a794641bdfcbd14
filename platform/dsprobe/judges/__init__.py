"""Verdicts on final text, found by name."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from dsprobe.judges.base import Decides, Judge, Reply, Verdict, question_of
from dsprobe.registry import Entry, Registry

if TYPE_CHECKING:
    from dsprobe.config import Spec

JUDGES: Registry[Judge] = Registry(
    "judge",
    {
        "harmbench_classifier": Entry(
            "dsprobe.judges.next_token:HarmBenchClassifierJudge", "HarmBench's fine-tuned yes/no model; needs weights"
        ),
        "jailbreakbench": Entry(
            "dsprobe.judges.rubric:JailbreakBenchJudge", "JailbreakBench's safe/unsafe rubric; needs a chat model"
        ),
        "jailbreakbench_refusal": Entry(
            "dsprobe.judges.rubric:JailbreakBenchRefusalJudge", "JailbreakBench's refusal rubric; needs a chat model"
        ),
        "keyword_refusal": Entry(
            "dsprobe.judges.keyword:KeywordRefusalJudge", "refusal phrases; a refusal is not an absence of harm"
        ),
        "llama_guard": Entry(
            "dsprobe.judges.next_token:LlamaGuardJudge", "Llama Guard by its own policy; needs weights"
        ),
        "rubric": Entry(
            "dsprobe.judges.rubric:RubricJudge", "your own template and rule for reading the answer; needs a chat model"
        ),
        "sequence_classifier": Entry(
            "dsprobe.judges.sequence_classifier:SequenceClassifierJudge",
            "any sequence classifier's label; needs weights",
        ),
        "strongreject_finetuned": Entry(
            "dsprobe.judges.next_token:StrongRejectFinetunedJudge", "StrongREJECT's fine-tuned grader; needs weights"
        ),
        "strongreject_rubric": Entry(
            "dsprobe.judges.rubric:StrongRejectRubricJudge", "StrongREJECT's rubric, 0 to 1; needs a chat model"
        ),
        "toy_noisy": Entry(
            "dsprobe.judges.toy_noisy:ToyNoisyJudge", "the toy oracle with stated error rates; synthetic"
        ),
        "toy_oracle": Entry("dsprobe.judges.toy_oracle:ToyOracleJudge", "exact harm on the toy world"),
        "toy_utility": Entry(
            "dsprobe.judges.toy_oracle:ToyUtilityJudge", "exact recipe accuracy on benign toy requests"
        ),
        "toy_validity": Entry("dsprobe.judges.toy_validity:ToyValidityJudge", "exact grammar of the toy language"),
    },
)


def decides(spec: Spec) -> Decides:
    """The question of a configured judge, without building it.

    Raises:
        ConfigError: The judge or one of its parameters is unknown, or a value is out of range.
    """
    return question_of(JUDGES.get(spec.name), JUDGES.config(spec.name, spec.params))


def beside_generation(specs: Iterable[Spec]) -> tuple[Spec, ...]:
    """The judges that may run while replies are generated: those that need no model and no network of their own.

    Raises:
        ConfigError: A judge is unknown.
    """
    return tuple(spec for spec in specs if not JUDGES.get(spec.name).deferred)


def build_judges(specs: Iterable[Spec]) -> dict[str, Judge]:
    """Build the judges that run beside generation; judge key → judge.

    Raises:
        ConfigError: A judge or a parameter is unknown, or a value is out of range.
    """
    return {spec.key: JUDGES.build(spec.name, spec.params) for spec in beside_generation(specs)}


__all__ = ["JUDGES", "Judge", "Reply", "Verdict", "beside_generation", "build_judges", "decides"]
