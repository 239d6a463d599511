"""Text to token ids, through open_clip's tokenizers."""

import logging
import unicodedata
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from owl_swin.errors import QueryError

logger = logging.getLogger("owl_swin")

MAX_CHARACTERS = 2_000


class Tokenizer:
    """Ids of open_clip's tokenizer. Text that is too long is cut, with one warning a text, never refused.

    A published model, ``open_clip_name``, brings its own context length.
    """

    def __init__(self, context_length: int, *, open_clip_name: str = ""):
        import open_clip

        self._encode = (
            open_clip.get_tokenizer(open_clip_name)
            if open_clip_name
            else open_clip.SimpleTokenizer(context_length=context_length)
        )
        self.context_length: int = self._encode.context_length

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Ids [N, context_length], int64, padded as the tower expects: CLIP with 0."""
        if not texts:
            return torch.zeros((0, self.context_length), dtype=torch.long)
        cleaned = [clean_text(text) for text in texts]
        ids = self._encode(cleaned)
        for text, row in zip(cleaned, ids, strict=True):
            if row[-1] != 0 and self._is_cut(text, row):
                warn_once(f"query {_shorten(text)!r} is longer than {self.context_length} tokens and was cut")
        return ids

    def readings(self) -> dict[int, str]:
        """What every id of the small tower's tokenizer stands for, spaces cut off."""
        return {i: self._encode.decode([i]).strip() for i in range(self._encode.vocab_size)}

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


def _shorten(text: str, limit: int = 60) -> str:
    return text if len(text) <= limit else text[:limit] + "…"
