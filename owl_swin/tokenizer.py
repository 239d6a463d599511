"""Text to token ids: CLIP's byte pairs by the tokenizers library, or what a published text tower of open_clip reads."""

import gzip
import html
import logging
import unicodedata
from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from cachetools import LRUCache
from torch import Tensor

from owl_swin.errors import QueryError

logger = logging.getLogger("owl_swin")

MAX_CHARACTERS = 2_000


# CLIP's vocabulary: so many bytes and pairs of them, and then the two tokens that stand around a text.
MERGES = 48_894
START, END = 49_406, 49_407
# What CLIP takes apart before it looks for pairs (arXiv:2103.00020).
PIECES = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


class ClipTokenizer:
    """Byte-pair encoding with CLIP's vocabulary of 49,408 tokens, as open_clip's SimpleTokenizer gives it.

    The vocabulary is read from open_clip's folder and all else done by the tokenizers library: importing open_clip
    would take as long as importing torch. Unlike there, "<end_of_text>" in a text is read as the signs that it is.
    """

    def __init__(self, context_length: int):
        from tokenizers import Regex, Tokenizer, models, pre_tokenizers

        signs = _byte_signs()
        merges = _merges()
        tokens = [*signs, *(sign + "</w>" for sign in signs), *("".join(pair) for pair in merges)]
        self._pairs = Tokenizer(models.BPE({t: i for i, t in enumerate(tokens)}, merges, end_of_word_suffix="</w>"))
        self._pairs.pre_tokenizer = pre_tokenizers.Sequence(  # type: ignore[assignment]
            [
                pre_tokenizers.Split(Regex(PIECES), "removed", invert=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        self._tokens = [*tokens, "<start_of_text>", "<end_of_text>"]
        self._byte_of = dict(zip(signs, _byte_order(), strict=True))
        self.vocab_size, self.context_length = len(self._tokens), context_length

    def __call__(self, texts: Sequence[str], context_length: int | None = None) -> Tensor:
        """Ids [N, context_length], int64: start, text, end, and then zeros. What is too long is cut before the end."""
        length = context_length or self.context_length
        ids = torch.zeros(len(texts), length, dtype=torch.long)
        for row, found in zip(ids, self._pairs.encode_batch([_as_clip_reads(text) for text in texts]), strict=True):
            own = torch.tensor([START, *found.ids[: length - 2], END])
            row[: len(own)] = own
        return ids

    def save(self, path: Path) -> None:
        """Writes tokenizer.json of the tokenizers library, which gives the same ids for texts whose encoding is whole
        and that hold no entities of HTML."""
        from tokenizers import Regex, Tokenizer, normalizers, processors

        whole = Tokenizer.from_str(self._pairs.to_str())
        spaces = [normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()]
        whole.normalizer = normalizers.Sequence([normalizers.NFC(), *spaces, normalizers.Lowercase()])  # type: ignore[assignment]
        start, end = self._tokens[START], self._tokens[END]
        whole.post_processor = processors.TemplateProcessing(  # type: ignore[assignment]
            single=f"{start} $A {end}", special_tokens=[(start, START), (end, END)]
        )
        whole.enable_truncation(self.context_length)
        whole.enable_padding(pad_id=0, pad_token=self._tokens[0], length=self.context_length)
        whole.save(str(path))

    def has_vocabulary(self, vocabulary: Mapping[str, int]) -> bool:
        """Whether ids of tokens are these; the two tokens that stand around a text may be called otherwise."""
        same = (vocabulary.get(token) == i for i, token in enumerate(self._tokens[:START]))
        return len(vocabulary) == self.vocab_size and all(same)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of some tokens; bytes that are no text become marks."""
        signs = "".join(self._tokens[i] for i in ids)
        words = [bytes(self._byte_of[sign] for sign in word) for word in signs.split("</w>")]
        return b" ".join(words).decode("utf-8", errors="replace")


class Tokenizer:
    """Ids of a model's tokenizer. Text that is too long is cut, never refused; a warning names it or the first new one.

    A published model, ``open_clip_name``, brings its own context length.
    """

    def __init__(self, context_length: int, *, open_clip_name: str = ""):
        self._encode: Any
        if open_clip_name:
            import open_clip

            self._encode = open_clip.get_tokenizer(open_clip_name)
        else:
            self._encode = ClipTokenizer(context_length)
        self.context_length: int = self._encode.context_length
        self.open_clip_name = open_clip_name

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Ids [N, context_length], int64, padded as the tower expects: CLIP with 0."""
        if not texts:
            return torch.zeros((0, self.context_length), dtype=torch.long)
        cleaned = [clean_text(text) for text in texts]
        ids = self._encode(cleaned)
        pairs = zip(cleaned, ids, strict=True)
        warn_of_cut([text for text, row in pairs if row[-1] != 0 and self._is_cut(text, row)], self.context_length)
        return ids

    def save(self, path: Path) -> None:
        """Writes tokenizer.json of the tokenizers library: CLIP's, or that of a published model."""
        fast = getattr(getattr(self._encode, "tokenizer", None), "backend_tokenizer", None)
        if fast is not None:
            fast.save(str(path))
        else:
            ClipTokenizer(self.context_length).save(path)

    def readings(self) -> dict[int, str]:
        """What every id of the small tower's tokenizer stands for, spaces cut off."""
        return {i: self._encode.decode([i]).strip() for i in range(self._encode.vocab_size)}

    def has_vocabulary(self, vocabulary: Mapping[str, int]) -> bool:
        """Whether ids of tokens are those of CLIP, and this reads texts by them."""
        return isinstance(self._encode, ClipTokenizer) and self._encode.has_vocabulary(vocabulary)

    def _is_cut(self, text: str, row: Tensor) -> bool:
        # With room for one more token, only a text that was cut ends elsewhere. SigLIP's padding is not 0.
        longer = self._encode([text], context_length=self.context_length + 1)[0]
        return not torch.equal(longer[:-1], row)


@lru_cache(maxsize=4)
def get_tokenizer(context_length: int, open_clip_name: str = "") -> Tokenizer:
    """The tokenizer for a model; building one reads a 1 MB vocabulary, so it is kept."""
    return Tokenizer(context_length, open_clip_name=open_clip_name)


def clean_text(text: str) -> str:
    """One line without control characters; a text with nothing to read in it raises QueryError."""
    if not isinstance(text, str):
        raise QueryError(f"a text query must be a string, got {type(text).__name__}")
    if len(text) > MAX_CHARACTERS:
        warn_once(f"query {_shorten(text)!r} has {len(text)} characters; only the first {MAX_CHARACTERS} are read")
        text = text[:MAX_CHARACTERS]
    visible = "".join(" " if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") else c for c in text)
    cleaned = " ".join(visible.split())
    # Marks without width (Cf) join emoji, so they stay, but alone they are nothing to read.
    if all(unicodedata.category(c) in ("Cf", "Zs") for c in cleaned):
        raise QueryError(f"a text query must name something, got {_shorten(text)!r}")
    return cleaned


@lru_cache(maxsize=1024)
def warn_once(sentence: str) -> None:
    """Logs a warning the first time, so that a text asked of a thousand pictures is named once."""
    logger.warning(sentence)


# Texts that a warning has named or counted.
cut_before: LRUCache[int, None] = LRUCache(65_536)
_cut_lock = Lock()


def warn_of_cut(texts: Sequence[str], context_length: int) -> None:
    """Says in one line that those of ``texts`` not warned of before are cut to ``context_length`` tokens."""
    with _cut_lock:
        new = [text for text in dict.fromkeys(texts) if hash((text, context_length)) not in cut_before]
        cut_before.update({hash((text, context_length)): None for text in new})
    if len(new) == 1:
        logger.warning("query %r is longer than %d tokens and was cut", _shorten(new[0]), context_length)
    elif new:
        said = "%d queries are longer than %d tokens and were cut; the first is %r"
        logger.warning(said, len(new), context_length, _shorten(new[0]))


def _as_clip_reads(text: str) -> str:
    """Broken encodings mended, entities of HTML read, one space between words, lower case."""
    import ftfy

    return " ".join(html.unescape(html.unescape(ftfy.fix_text(text))).split()).lower()


def _merges() -> list[tuple[str, str]]:
    """Pairs of tokens that become one, the first first, as CLIP published them."""
    found = find_spec("open_clip")
    assert found is not None and found.origin is not None
    packed = (Path(found.origin).parent / "bpe_simple_vocab_16e6.txt.gz").read_bytes()
    lines = gzip.decompress(packed).decode("utf-8").split("\n")
    pairs = (line.split() for line in lines[1 : MERGES + 1])
    return [(first, second) for first, second in pairs]


def _byte_order() -> list[int]:
    """The bytes in the order of the vocabulary: those that print, and then the others."""
    printed = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    return printed + [byte for byte in range(256) if byte not in printed]


def _byte_signs() -> list[str]:
    """The sign that stands for each byte, in that order: itself, or one beyond those of a byte."""
    others = (chr(256 + i) for i in range(256))
    return [
        chr(byte) if chr(byte).isprintable() and chr(byte) not in " \xa0\xad" else next(others)
        for byte in _byte_order()
    ]


def _shorten(text: str, limit: int = 60) -> str:
    return text if len(text) <= limit else text[:limit] + "…"
