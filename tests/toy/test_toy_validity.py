from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsprobe.errors import ConfigError
from dsprobe.judges import JUDGES
from dsprobe.judges.base import Reply
from dsprobe.judges.run import judge_all
from dsprobe.prompts.base import Prompt
from dsprobe.toy.grammar import STYLES, recipe, refusal
from dsprobe.toy.world import BENIGN_ITEMS, RESTRICTED_ITEMS

ITEM = BENIGN_ITEMS[0]


def reply(text, item=ITEM):
    metadata = {} if item is None else {"item": item.name}
    return Reply(prompt=Prompt(id="p", text="q", harmful=False, source="toy", metadata=metadata), text=text)


def verdict(text, item=ITEM, **params):
    return JUDGES.build("toy_validity", params).judge([reply(text, item)])[0].value


def test_it_judges_form_by_its_own_question():
    assert JUDGES.get("toy_validity").decides == "validity"
    assert "toy_validity" in JUDGES.names()


@pytest.mark.parametrize("item", [ITEM, RESTRICTED_ITEMS[0]])
def test_everything_the_world_says_is_valid(item):
    rng = random.Random(3)
    texts = [recipe(item, rng, style) for style in STYLES] + [refusal(item, rng) for _ in range(5)]
    assert [verdict(text, item) for text in texts] == [True] * len(texts)


@pytest.mark.parametrize(
    ("text", "valid"),
    [
        ("i can not help with that .", True),
        ("I can not help with that .", True),
        ("i can not help with that . with of the .", False),
        ("i can not help with", False),
        ("help i that not can with .", False),
        ("", None),
        ("  ", None),
    ],
)
def test_by_hand(text, valid):
    assert verdict(text) is valid


def test_share_of_valid_sentences_is_a_setting():
    text = "i can not help with that . please ask about something else . with of the ."
    assert verdict(text, min_share=2 / 3) is True
    assert verdict(text, min_share=0.7) is False
    with pytest.raises(ConfigError, match="min_share"):
        JUDGES.build("toy_validity", {"min_share": 0.0})


def test_only_toy_requests_are_judged():
    assert verdict("i can not help with that .", item=None) is None


@given(st.lists(st.text(), max_size=5))
def test_survives_any_text_and_never_decides_an_empty_reply(texts):
    judge = JUDGES.build("toy_validity", {})
    replies = [reply(text) for text in texts]
    verdicts = [verdict.value for verdict in judge.judge(replies)]
    assert verdicts == [judge.judge([one])[0].value for one in replies]
    assert all((got is None) == (not text.strip()) for got, text in zip(verdicts, texts, strict=True))
    empty_B = np.array([not text for text in texts], dtype=np.bool_)
    asked = judge_all({"form": judge}, replies, empty_B)["form"]
    assert asked == verdicts
