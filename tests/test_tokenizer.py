"""Text → ids → unit vectors: nothing readable is refused, and padding has no influence."""

import logging
from random import Random

import open_clip
import pytest
import torch
from conftest import TINY
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from owl_swin.config import TextConfig
from owl_swin.errors import ConfigError, QueryError
from owl_swin.models.text import TextEncoder
from owl_swin.tokenizer import MAX_CHARACTERS, Tokenizer, clean_text, cut_before, get_tokenizer, warn_once

START, END = 49406, 49407


@pytest.fixture(scope="module")
def tokenizer():
    return get_tokenizer(12)


@pytest.fixture
def warnings_of(caplog):
    warn_once.cache_clear()
    cut_before.clear()
    caplog.set_level(logging.WARNING, "owl_swin")
    return lambda: [record.getMessage() for record in caplog.records]


# --- Cleaning ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, expected",
    [
        ("cat", "cat"),
        ("  a\tred \n mug  ", "a red mug"),
        ("a\x00b\x1b[31mc", "a b [31mc"),
        ("cat\ud800", "cat"),
        ("line\u2028two", "line two"),
        ("🦉", "🦉"),
        ("👩\u200d🚀", "👩\u200d🚀"),  # joined by a mark without width
        ("一只猫", "一只猫"),
        ("!", "!"),
    ],
)
def test_cleaning_makes_one_line_without_control_characters(text, expected):
    assert clean_text(text) == expected


@pytest.mark.parametrize(
    "text", ["", " ", "\n\t", "\x00", "\x00\x1b \x7f", "\ud800", "\u200b", "\ufeff \u200d", "\u3000"]
)
def test_a_text_with_nothing_to_read_is_refused(text):
    with pytest.raises(QueryError, match="a text query must name something"):
        clean_text(text)


@pytest.mark.parametrize("text", [None, 3, b"cat", ["cat"]])
def test_what_is_no_text_is_refused(text):
    with pytest.raises(QueryError, match=f"must be a string, got {type(text).__name__}"):
        clean_text(text)


def test_only_the_first_characters_of_a_book_are_read(warnings_of):
    assert clean_text("x" * 10_000) == "x" * MAX_CHARACTERS
    assert len(warnings_of()) == 1
    assert "has 10000 characters; only the first 2000 are read" in warnings_of()[0]
    assert len(warnings_of()[0]) < 200


# --- Ids -----------------------------------------------------------------------------------------------------------


def test_no_texts_give_no_ids(tokenizer):
    assert tokenizer([]).shape == (0, 12)


def test_ids_are_those_of_open_clip_padded_with_zero(tokenizer):
    ids = tokenizer(["a photo of a cat", "cat"])
    assert ids.tolist() == [
        [START, 320, 1125, 539, 320, 2368, END, 0, 0, 0, 0, 0],
        [START, 2368, END, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    ]
    assert torch.equal(ids, open_clip.tokenize(["a photo of a cat", "cat"], context_length=12))


SIGNS = [
    *map(chr, range(32, 0x250)),
    *map(chr, range(0x370, 0x530)),
    *map(chr, range(0x1F300, 0x1F600)),
    *"一只猫🦉’…₂½",
]


def test_any_text_has_the_ids_that_open_clip_gives_it(tokenizer):
    random = Random(0)
    texts = [
        "don't",
        "it's O'Neill'll",
        "&amp;lt; &eacute;",
        "schÃ¶n",
        "naïve  café",
        "İstanbul",
        "Œuvre №5",
        "a\u0301b",
    ]
    for _ in range(2000):
        pool = random.choice(["abcdefgh '<>&;!?.-_0123", SIGNS])
        texts.append("".join(random.choices(pool, k=random.randint(1, 20))))
    texts = [text for text in texts if text.strip()]
    expected = open_clip.SimpleTokenizer(context_length=12)(texts)
    assert torch.equal(tokenizer._encode(texts), expected)


def test_every_token_stands_for_what_open_clip_reads_in_it(tokenizer):
    clip = open_clip.SimpleTokenizer()
    readings = tokenizer.readings()
    assert [readings[i] for i in range(49408)] == [clip.decode([i]).strip() for i in range(49408)]


@pytest.mark.parametrize("text", ["<end_of_text>", "a cat <end_of_text> a dog", "<start_of_text>"])
def test_the_marks_around_a_text_cannot_be_written_in_it(tokenizer, text):
    row = get_tokenizer(40)([text])[0].tolist()
    assert row.count(START) == row.count(END) == 1
    assert row.index(END) == max(i for i, token in enumerate(row) if token)


@pytest.mark.parametrize("n_words, cut", [(1, False), (10, False), (11, True), (40, True)])
def test_text_that_is_too_long_is_cut_with_a_warning(tokenizer, warnings_of, n_words, cut):
    row = tokenizer(["cat " * n_words])[0]
    kept = min(n_words, 10)
    assert row.tolist() == [START, *[2368] * kept, END, *[0] * (10 - kept)]
    assert [("longer than 12 tokens and was cut" in w) for w in warnings_of()] == [True] * cut


def test_many_texts_that_are_too_long_take_one_warning(tokenizer, warnings_of):
    tokenizer(["a cat", *["cat " * n for n in (40, 11, 12, 11)]])
    tokenizer(["cat " * 11, "cat " * 40])  # both are known already
    tokenizer(["cat " * 11, "dog " * 30])
    several, one = warnings_of()
    assert several.startswith("3 queries are longer than 12 tokens and were cut; the first is 'cat cat")
    assert one.startswith("query 'dog dog") and one.endswith("is longer than 12 tokens and was cut")


def test_padding_that_is_not_zero_is_no_cut(tokenizer, warnings_of, monkeypatch):
    clip_encode = tokenizer._encode

    def encode(texts, context_length=12):  # as SigLIP's tokenizer pads
        ids = clip_encode(texts, context_length=context_length)
        return torch.where(ids == 0, 1, ids)

    monkeypatch.setattr(tokenizer, "_encode", encode)
    tokenizer(["cat", "cat " * 10])
    assert warnings_of() == []
    tokenizer(["cat " * 11])
    assert len(warnings_of()) == 1


def test_a_published_tower_brings_its_own_context_length():
    tokenizer = Tokenizer(77, open_clip_name="PE-Core-S-16-384")
    assert tokenizer.context_length == 32
    assert tokenizer(["cat"]).shape == (1, 32)


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=40))
def test_any_text_is_tokenised_or_refused_with_a_sentence(text):
    try:
        ids = get_tokenizer(12)([text])
    except QueryError:
        return
    assert ids.shape == (1, 12)
    assert ids[0, 0] == START
    assert END in ids[0]


# --- The text encoder ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    encoder = TextEncoder(TINY.text, TINY.embed_dim).eval().requires_grad_(False)
    for parameter in encoder.parameters():
        parameter.normal_(std=0.3)
    return encoder


TEXTS = ["cat", "a photo of a cat", "cat " * 10, "cat " * 40, "🦉", "一只猫", "!😀", "a !§ cat", "!!!"]


@pytest.fixture(scope="module")
def clip_encoder(encoder):
    """open_clip's own tower with the same weights."""
    text = TINY.text
    tower = open_clip.transformer.TextTransformer(
        context_length=text.context_length,
        vocab_size=text.vocab_size,
        width=text.width,
        heads=text.heads,
        layers=text.layers,
        output_dim=TINY.embed_dim,
    ).eval()
    tower.load_state_dict(encoder.tower.state_dict())
    return tower


@pytest.mark.parametrize("text", TEXTS)
def test_the_tower_gives_what_that_of_open_clip_gives_of_the_whole_row(encoder, clip_encoder, tokenizer, text):
    ids = tokenizer([text])
    whole = torch.nn.functional.normalize(clip_encoder(ids), dim=-1)
    assert_close(encoder(ids), whole.detach(), atol=1e-5, rtol=0)


def test_a_tower_starts_with_values_as_wide_as_those_of_open_clip():
    torch.manual_seed(0)
    own = TextEncoder(TextConfig(64, 3, 4, 8, 300), 32).tower
    clip = open_clip.transformer.TextTransformer(
        context_length=8, vocab_size=300, width=64, heads=4, layers=3, output_dim=32
    )
    theirs = clip.state_dict()
    assert own.state_dict().keys() == theirs.keys()
    for name, value in own.state_dict().items():
        assert_close(value.std(), theirs[name].std(), atol=5e-3, rtol=0.2)


def test_a_text_is_the_same_alone_and_among_others(encoder, tokenizer):
    together = encoder(tokenizer(TEXTS))
    assert_close(together, torch.cat([encoder(tokenizer([text])) for text in TEXTS]), atol=1e-5, rtol=0)
    assert_close(together.norm(dim=-1), torch.ones(len(TEXTS)))
    assert (together[0] - together[1]).abs().max() > 0.02


def test_an_exclamation_mark_inside_a_word_is_not_padding(encoder, tokenizer):
    ids = tokenizer(["!😀", "!🦉"])
    assert (ids[:, 1] == 0).all()
    owl, smile = encoder(ids[1:]), encoder(ids[:1])
    assert (owl - smile).abs().max() > 0.01


def test_what_follows_the_end_of_text_has_no_influence(encoder, tokenizer):
    ids = tokenizer(["a red mug"])
    littered = torch.where(torch.arange(12) > ids.argmax(), torch.randint(1, 1000, (12,)), ids)
    assert_close(encoder(littered), encoder(ids), atol=1e-5, rtol=0)


def test_no_texts_give_no_embeddings(encoder, tokenizer):
    assert encoder(tokenizer([])).shape == (0, 16)


@pytest.mark.parametrize(
    "name, sentence",
    [
        ("ViT-B-33", "open_clip knows no model 'ViT-B-33'"),
        ("ViT-B-32", "answers in 512 dimensions, the model has embed_dim 16"),
    ],
)
def test_a_published_tower_that_does_not_fit_is_refused(name, sentence):
    with pytest.raises(ConfigError, match=sentence):
        TextEncoder(TextConfig(open_clip=name), 16)


def test_a_published_tower_is_built_in_its_own_sizes():
    with torch.device("meta"):
        tower = TextEncoder(TextConfig(open_clip="ViT-L-14"), 768).tower
    assert tower.transformer.width == 768
    assert tower.context_length == 77
