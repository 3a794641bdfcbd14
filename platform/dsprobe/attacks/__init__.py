"""Published attacks, found by name."""

from dsprobe.attacks.base import Attack, Rendered
from dsprobe.registry import Entry, Registry

ATTACKS: Registry[Attack] = Registry(
    "attack",
    {
        "direct": Entry("dsprobe.attacks.direct:Direct", "the request as it is"),
        "dija": Entry("dsprobe.attacks.dija:Dija", "interleaved text and mask runs (2507.11097)"),
        "pad": Entry("dsprobe.attacks.pad:Pad", "anchor phrases at spread reply positions (2507.19227)"),
        "prefill": Entry("dsprobe.attacks.prefill:Prefill", "a given text at a reply position and step (2508.12398)"),
        "anchoring": Entry(
            "dsprobe.attacks.anchoring:Anchoring", "the state at a step replaced by a harmful one (2510.00565)"
        ),
        "trajhijack": Entry(
            "dsprobe.attacks.trajhijack:TrajHijack", "refusal re-masked, short prefix written (2604.08557)"
        ),
        "refinement_injection": Entry(
            "dsprobe.attacks.refinement_injection:RefinementInjection", "texts written between steps (own reading)"
        ),
        "suffix_relocation": Entry(
            "dsprobe.attacks.suffix_relocation:SuffixRelocation", "a trigger moved across the turn's end (2603.08234)"
        ),
        "constraint_relaxation": Entry(
            "dsprobe.attacks.constraint_relaxation:ConstraintRelaxation",
            "the request nested in a benign document (2602.00388)",
        ),
        "gcg": Entry("dsprobe.attacks.gcg:Gcg", "a suffix found by gradients: GCG, First-Step GCG (2510.00565)"),
        "cases": Entry("dsprobe.attacks.cases:Cases", "saved cases replayed: artefacts, searches, other models"),
    },
)

__all__ = ["ATTACKS", "Attack", "Rendered"]
