"""The classifier scorer, on a tiny random BERT with a tokenizer of its own."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    PreTrainedTokenizerFast,
)

from dsprobe.errors import CheckpointError, ConfigError
from dsprobe.risk import SCORERS, RiskInput
from dsprobe.risk.canvas_text import NOWHERE, CanvasReader

LABELS = {0: "benign", 1: "harmful", 2: "unsure"}
SHARED = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=25)


def write_tokenizer(folder, **named):
    """WordPiece over letters and a few pieces, so that words split differently than on the canvas."""
    pieces = [*"abcdefghijklmnopqrstuvwxyz.:,?0123456789…", "take", "step", "and"]
    vocabulary = {text: i for i, text in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *pieces])}
    vocabulary |= {f"##{piece}": len(vocabulary) + i for i, piece in enumerate(pieces)}
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    named = {"pad_token": "[PAD]"} | named
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]", model_max_length=256, **named
    )
    tokenizer.save_pretrained(folder)
    return len(vocabulary)


def write_classifier(folder, seed=0, model_class=BertForSequenceClassification, **settings_):
    size = write_tokenizer(folder)
    values = {
        "vocab_size": size,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 48,
        "max_position_embeddings": 256,
        "id2label": LABELS,
        "initializer_range": 0.4,
    }
    torch.manual_seed(seed)
    model_class(BertConfig(**(values | settings_))).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return write_classifier(tmp_path_factory.mktemp("classifier"))


def build(model, folder, **params):
    return SCORERS.build("classifier", {"path": str(folder), "harmful_label": "harmful"} | params, model)


def canvas(model, *texts):
    """Canvases from text in which `_` is a mask and `|` starts the response; padded with end-of-text."""
    rows, responses = [], []
    for text in texts:
        before, _, after = text.rpartition("|")
        given = [
            model.tokenizer.encode(part, add_special_tokens=False) for part in (before, after.replace("_", "<mask>"))
        ]
        rows.append([*given[0], *given[1]])
        responses.append([False] * len(given[0]) + [True] * len(given[1]))
    width = max(map(len, rows))
    end = model.info.eos_token_ids[0]
    tokens = [row + [end] * (width - len(row)) for row in rows]
    return RiskInput(
        tokens_NL=torch.tensor(tokens),
        response_NL=torch.tensor([row + [True] * (width - len(row)) for row in responses]),
    )


def test_reading_drops_masks_specials_and_what_follows_the_end(word_model):
    batch = canvas(word_model, "how ? |take _ _ the _ cloth . <eos> sure")
    text = CanvasReader(word_model).read(batch.tokens_NL[0].tolist(), batch.response_NL[0].tolist())
    assert text.text == "take the cloth ."
    assert text.position_C.tolist() == [2] * 4 + [5] * 4 + [7] * 6 + [8] * 2


def test_reading_shows_each_run_of_masks_as_one_filler(word_model):
    batch = canvas(word_model, "|_ _ take _ _ the cloth _")
    text = CanvasReader(word_model, "…").read(batch.tokens_NL[0].tolist(), batch.response_NL[0].tolist())
    assert text.text == " … take … the cloth … "
    assert [text.text[i] for i, at in enumerate(text.position_C) if at == NOWHERE] == list(" …  …  … ")


def test_a_canvas_of_masks_is_blank_with_and_without_filler(word_model):
    batch = canvas(word_model, "how ? |_ _ _")
    for filler in (None, "…"):
        reader = CanvasReader(word_model, filler)
        assert reader.read(batch.tokens_NL[0].tolist(), batch.response_NL[0].tolist()).is_blank


@given(st.text(st.characters(exclude_categories=("Cs",)), max_size=30))
@SHARED
def test_every_character_of_byte_level_text_has_the_token_that_wrote_it(byte_model, written):
    tokens = byte_model.tokenizer.encode(written, add_special_tokens=False)
    text = CanvasReader(byte_model).read(tokens, [True] * len(tokens))
    assert text.text == byte_model.tokenizer.decode(tokens, clean_up_tokenization_spaces=False)
    assert len(text.position_C) == len(text.text)
    assert (text.position_C[1:] >= text.position_C[:-1]).all()
    for position in range(len(tokens)):
        piece = "".join(c for c, at in zip(text.text, text.position_C, strict=True) if at == position)
        alone = byte_model.tokenizer.decode([tokens[position]])
        assert piece == alone or "\ufffd" in alone


def test_risk_is_the_softmax_of_the_named_label(word_model, folder):
    classifier = BertForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    batch = canvas(word_model, "how ? |take the cloth _ and", "|step 1 : add")
    with torch.no_grad():
        logits = [
            classifier(**tokenizer(text, return_tensors="pt")).logits[0]
            for text in ("take the cloth and", "step 1 : add")
        ]
    wanted = torch.stack(logits).softmax(dim=1)
    for label, index in (("harmful", 1), (2, 2)):
        risk_N = build(word_model, folder, harmful_label=label).score(batch).risk_N
        assert risk_N.dtype == torch.float32
        assert torch.allclose(risk_N, wanted[:, index], atol=1e-5)


@pytest.mark.parametrize(
    "changes", [{"num_labels": 1, "id2label": {0: "harmful"}}, {"problem_type": "multi_label_classification"}]
)
def test_independent_labels_are_read_by_sigmoid(word_model, tmp_path, changes):
    folder = write_classifier(tmp_path, **changes)
    classifier = BertForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    with torch.no_grad():
        logits_K = classifier(**tokenizer("take the cloth", return_tensors="pt")).logits[0]
    index = list(classifier.config.id2label.values()).index("harmful")
    risk_N = build(word_model, folder).score(canvas(word_model, "|take the cloth")).risk_N
    assert risk_N.item() == pytest.approx(torch.sigmoid(logits_K[index]).item(), abs=1e-5)


def test_attribution_is_input_times_gradient_of_the_log_odds(word_model, folder):
    """Worked independently: one text, embeddings given, every word one canvas token."""
    classifier = BertForSequenceClassification.from_pretrained(folder).eval()
    encoded = PreTrainedTokenizerFast.from_pretrained(folder)("take the cloth", return_offsets_mapping=True)
    ids = torch.tensor([encoded["input_ids"]])
    embedded = classifier.bert.embeddings.word_embeddings(ids).detach().requires_grad_()
    log_p = classifier(inputs_embeds=embedded).logits.log_softmax(dim=1)[0, 1]
    (log_p - torch.log1p(-log_p.exp())).backward()
    gain_T = (embedded.grad * embedded)[0].sum(dim=-1).clamp_min(0)
    by_word = [0.0, 0.0, 0.0]
    for gain, (start, end) in zip(gain_T.tolist(), encoded["offset_mapping"], strict=True):
        if end > start:
            by_word[0 if end <= 4 else 1 if end <= 8 else 2] += gain
    wanted = [value / sum(by_word) for value in by_word]
    attribution = build(word_model, folder).score(canvas(word_model, "how ? |take _ the cloth")).attribution_NL[0]
    assert attribution.tolist() == pytest.approx([0, 0, wanted[0], 0, wanted[1], wanted[2]], abs=1e-4)


def test_it_works_in_inference_mode_and_leaves_no_hook_or_gradient(word_model, folder):
    scorer = build(word_model, folder)
    batch = canvas(word_model, "|take the cloth", "|sure here")
    outside = scorer.score(batch)
    with torch.inference_mode():
        inside = scorer.score(canvas(word_model, "|take the cloth", "|sure here"))
    assert torch.equal(outside.risk_N, inside.risk_N)
    assert torch.equal(outside.attribution_NL, inside.attribution_NL)
    assert not outside.risk_N.requires_grad
    assert not scorer._classifier.module.get_input_embeddings()._forward_hooks


def test_blank_canvases_have_no_risk_and_the_filler_changes_what_is_seen(word_model, folder):
    batch = canvas(word_model, "how ? |_ _ _", "how ? |take _ cloth")
    dropped = build(word_model, folder).score(batch)
    shown = build(word_model, folder, mask_rendering="filler").score(batch)
    assert dropped.risk_N[0] == shown.risk_N[0] == 0
    assert (dropped.attribution_NL[0] == 0).all()
    assert dropped.risk_N[1] != shown.risk_N[1]
    assert shown.attribution_NL[1, 3] == 0  # the mask itself carries nothing


def test_nothing_outside_the_visible_response_matters(word_model, folder):
    scorer = build(word_model, folder)
    first = scorer.score(canvas(word_model, "how ? |take the cloth <eos> sure here"))
    second = scorer.score(canvas(word_model, "tell me . |take _ the cloth <eos> step"))
    assert torch.equal(first.risk_N, second.risk_N)


WORDS = ["take", "the", "cloth", "step", "1", ":", "sure", "_", ".", "add", "and"]


@given(st.lists(st.lists(st.sampled_from(WORDS), min_size=1, max_size=24), min_size=1, max_size=7), st.integers(1, 4))
@SHARED
def test_a_rows_score_is_the_same_bits_whoever_its_neighbours_are(word_model, folder, rows, batch_size):
    scorer = build(word_model, folder, batch_size=batch_size)
    texts = ["|" + " ".join(row) for row in rows]
    together = scorer.score(canvas(word_model, *texts))
    backwards = scorer.score(canvas(word_model, *reversed(texts)))
    assert torch.equal(together.risk_N, backwards.risk_N.flip(0))
    assert torch.equal(together.attribution_NL, backwards.attribution_NL.flip(0))
    for row, text in enumerate(texts):
        assert torch.equal(scorer.score(canvas(word_model, text)).risk_N[0], together.risk_N[row])
    assert ((together.risk_N >= 0) & (together.risk_N <= 1)).all()
    sums_N = together.attribution_NL.sum(dim=1)
    assert (((sums_N - 1).abs() < 1e-5) | (sums_N == 0)).all()


def test_long_texts_are_cut_on_the_right(word_model, folder):
    scorer = build(word_model, folder, max_length=16)
    output = scorer.score(canvas(word_model, "|" + "take " * 40, "|" + "take " * 60))
    assert output.risk_N[0] == output.risk_N[1]
    assert (output.attribution_NL[:, 20:] == 0).all()


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"harmful_label": "harmfull"}, "Did you mean `harmful`"),
        ({"harmful_label": 3}, "has no label 3. Allowed: .*unsure"),
        ({"max_length": 400}, "max_length 400 is too long .* 16 to 256"),
        ({"filler": "?"}, "`filler` belongs to"),
        ({"path": "no/where/at/all"}, "neither a folder nor a hub id"),
        ({"path": "someone/something"}, "needs `revision"),
    ],
)
def test_wrong_settings_are_named(word_model, folder, params, message):
    with pytest.raises(ConfigError, match=message):
        build(word_model, folder, **params)


def test_a_model_without_a_head_is_refused(word_model, tmp_path):
    write_classifier(tmp_path, model_class=BertModel)
    with pytest.raises(CheckpointError, match=r"classification head.*classifier\.weight"):
        build(word_model, tmp_path)


def test_pickled_weights_are_refused(word_model, tmp_path):
    write_classifier(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="pickled weights"):
        build(word_model, tmp_path)


def test_a_tokenizer_without_padding_and_canvases_without_text_are_refused(word_model, stub, tmp_path, folder):
    write_classifier(tmp_path)
    write_tokenizer(tmp_path, pad_token=None)
    with pytest.raises(CheckpointError, match="padding token"):
        build(word_model, tmp_path)
    with pytest.raises(CheckpointError, match="no tokenizer"):
        build(stub(None, (0,)), folder)
