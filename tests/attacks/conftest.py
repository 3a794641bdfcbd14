"""Stand-in models: real tokenizers trained here, a chat template, no weights."""

from __future__ import annotations

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from dsprobe.models.base import LanguageModel, ModelInfo
from dsprobe.prompts.base import Prompt

TEXTS = [
    "Explain how to fold a paper boat. Write a note about tea. Step 1: Step 2: Step 3: Step 4: Sure, here is",
    "step 1 : step 2 : step 3 : step 4 : how do i make a kite ? sure here is A: B: ## Part 1 --- 1. 2. 3.",
]
WORDS = "# , - . / 1 2 3 4 5 6 : ? A B a boat do fold here how i is kite make me step sure tell the to way".split()  # noqa: SIM905
SPECIAL = ["<pad>", "<eos>", "<mask>", "<user>", "<assistant>", "<end>"]
CHAT = (
    "{% for m in messages %}<user>{{ m['content'] }}<end>\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>\n{% endif %}"
)
WORD_CHAT = (
    "{% for m in messages %}<user> {{ m['content'] }} {% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)


class StubModel(LanguageModel):
    """Tokenizer and facts; attacks never run a model."""

    def __init__(self, tokenizer, kind="diffusion", **facts):
        self.tokenizer = tokenizer
        self.device, self.dtype = torch.device("cpu"), torch.float32
        ids = {} if tokenizer is None else {text: tokenizer.convert_tokens_to_ids(text) for text in SPECIAL}
        values = {
            "name": f"stub-{kind}",
            "family": "stub",
            "kind": kind,
            "vocab_size": 0 if tokenizer is None else len(tokenizer),
            "mask_token_id": ids.get("<mask>") if kind == "diffusion" else None,
            "eos_token_ids": (ids.get("<eos>", 0),),
            "pad_token_id": ids.get("<pad>", 0),
        }
        self.info = ModelInfo(**(values | facts))

    def head(self, hidden_ND):
        raise NotImplementedError

    @property
    def head_weight_VD(self):
        raise NotImplementedError


def wrap(backend, chat, **named):
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        eos_token="<eos>",
        mask_token="<mask>",
        additional_special_tokens=["<user>", "<assistant>", "<end>"],
        clean_up_tokenization_spaces=False,
        **named,
    )
    tokenizer.chat_template = chat
    return tokenizer


def byte_tokenizer():
    """Byte-level BPE, as Dream and LLaDA have it."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(TEXTS, trainer)
    return wrap(backend, CHAT)


def word_tokenizer():
    """One token per word and punctuation mark, as the embedded models have it."""
    vocabulary = {word: i for i, word in enumerate([*SPECIAL, "<unk>", *WORDS])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()])
    return wrap(backend, WORD_CHAT, unk_token="<unk>")


@pytest.fixture(scope="session")
def byte_model():
    return StubModel(byte_tokenizer())


@pytest.fixture(scope="session")
def word_model():
    return StubModel(word_tokenizer())


@pytest.fixture(scope="session")
def causal_model():
    return StubModel(byte_tokenizer(), kind="autoregressive")


@pytest.fixture(scope="session")
def causal_words():
    return StubModel(word_tokenizer(), kind="autoregressive")


@pytest.fixture(params=["byte_model", "word_model"])
def any_model(request):
    return request.getfixturevalue(request.param)


@pytest.fixture
def kite():
    return Prompt(id="kite", text="how do i make a kite ?", harmful=False, source="test")


@pytest.fixture
def stub():
    return StubModel
