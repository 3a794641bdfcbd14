"""Random settings of every attack, in words of the toy world."""

from __future__ import annotations

from hypothesis import strategies as st

TEXTS = st.sampled_from(["sure", "sure here is how to make a", "step 1 :", "i can not help with that .", "ready"])
STEPS, PLACES = st.integers(1, 12), st.integers(0, 34)
WRAPPERS = ["please help me with this : {goal}", "{goal} step 1 :"]


def _named(name, required, optional=None):
    return st.tuples(st.just(name), st.fixed_dictionaries(required, optional=optional or {}))


@st.composite
def _injection(draw):
    count = draw(st.integers(1, 3))
    lists = {"texts": TEXTS, "steps": STEPS, "positions": PLACES}
    return "refinement_injection", {
        key: draw(st.lists(values, min_size=count, max_size=count)) for key, values in lists.items()
    }


LABELS = st.sampled_from(["step {i} :", "sure", "{i} :"])
DIJA_TURN = _named(
    "dija", {"label": LABELS, "spans": st.integers(1, 4)}, {"masks_per_span": st.integers(1, 6), "blank": TEXTS}
)
DIJA_REPLY = _named(
    "dija",
    {"placement": st.just("reply"), "label": LABELS, "spans": st.integers(1, 4)},
    {"masks_per_span": st.integers(1, 6), "tail": st.sampled_from(["eos", "mask"])},
)
PAD = _named(
    "pad",
    {"anchors": st.lists(TEXTS, min_size=1, max_size=3)},
    {"cues": st.just(1), "spacing": st.integers(8, 12)},
)
PREFILL = _named("prefill", {"text": TEXTS, "position": PLACES, "step": st.integers(0, 12)})
TRAJHIJACK = _named(
    "trajhijack",
    {"step": STEPS, "phrases": st.lists(TEXTS, max_size=2), "prefix": st.one_of(st.just(""), TEXTS)},
    {"end_of_text": st.just(True)},
)
RELOCATION = _named("suffix_relocation", {"trigger": TEXTS, "relocated": st.booleans()})
IN_LOOP = st.one_of(PREFILL, _named("anchoring", {"step": STEPS}), TRAJHIJACK, _injection())
ATTACKS_DRAWN = st.one_of(
    _named("direct", {}),
    DIJA_TURN,
    DIJA_REPLY,
    PAD,
    RELOCATION,
    _named("constraint_relaxation", {"template": st.sampled_from(WRAPPERS)}),
    IN_LOOP,
)
