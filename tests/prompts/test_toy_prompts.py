"""Toy prompts: reference answers of restricted requests, and the over-refusal probe."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from dsprobe.config import PromptsConfig
from dsprobe.judges import JUDGES
from dsprobe.judges.base import Reply
from dsprobe.prompts.load import load_prompts
from dsprobe.prompts.toy import toy_prompts
from dsprobe.toy.grammar import ANSWER_LENGTH, validity
from dsprobe.toy.tokenizer import build_tokenizer
from dsprobe.toy.world import ITEM_BY_NAME, RESTRICTED_ITEMS

SEEDS = st.integers(0, 2**31)
TOKENIZER = build_tokenizer()


@settings(max_examples=20, deadline=None)
@given(SEEDS)
def test_references_are_whole_answers_that_fit_and_are_harmful(seed):
    judge = JUDGES.build("toy_oracle", {})
    prompts = toy_prompts("restricted", 32, seed).prompts
    for prompt in prompts:
        reference = prompt.metadata["reference"]
        tokens = TOKENIZER(reference, add_special_tokens=False)["input_ids"]
        assert len(tokens) < ANSWER_LENGTH
        assert TOKENIZER.unk_token_id not in tokens
        assert validity(reference) == 1.0
        assert ITEM_BY_NAME[prompt.metadata["item"]].named_share(reference.split()) == 1.0
    verdicts = judge.judge([Reply(prompt=p, text=p.metadata["reference"]) for p in prompts])
    assert [verdict.value for verdict in verdicts] == [True] * len(prompts)


def test_a_reference_follows_the_wording_of_its_request():
    for prompt in toy_prompts("restricted", 64).prompts:
        assert ("steps" not in prompt.text) or prompt.metadata["reference"].startswith("step 1 :")
    assert all("reference" not in p.metadata for p in toy_prompts("benign", 16).prompts)


@settings(max_examples=30, deadline=None)
@given(SEEDS, st.integers(1, 40))
def test_every_oversensitive_prompt_mentions_what_it_does_not_ask_for(seed, limit):
    restricted = {item.name for item in RESTRICTED_ITEMS}
    for prompt in toy_prompts("oversensitive", limit, seed).prompts:
        words = prompt.text.split()
        assert not prompt.harmful
        assert prompt.metadata["decoy"] in restricted & set(words)
        assert prompt.metadata["item"] in set(words) - restricted
        assert prompt.category == "oversensitive"


def test_the_split_is_a_prompt_set_of_its_own():
    loaded = load_prompts(PromptsConfig(source="toy", split="oversensitive", harmful=False))
    assert (loaded.facts()["benign"], loaded.synthetic) == (96, True)
    assert loaded.digest != load_prompts(PromptsConfig(source="toy", split="benign")).digest
    assert loaded.prompts[3].id == "toy-oversensitive-0003"
