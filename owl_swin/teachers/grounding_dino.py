"""GroundingDINO (arXiv:2303.05499), MM-GroundingDINO (arXiv:2401.02361) and LLMDet (arXiv:2501.18954) as teachers.

They read a caption, "a cat. a red mug.", and say for each box how well it fits each token. A name's score is the mean
over its own tokens, which are known by their place in the caption, as the papers' evaluation has it: no text is looked
for in another. Names that do not fit into one caption get another one.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from cachetools import LRUCache
from PIL import Image
from torch import Tensor

from owl_swin.boxes import cxcywh_to_xyxy
from owl_swin.errors import QueryError, brief
from owl_swin.teachers.transformers_model import Pass

# What the model takes for the border of two phrases, beside the tokens of the tokenizer itself.
BORDERS = str.maketrans({".": " ", "?": " "})
# Lists of names whose captions are kept: most pictures are asked the same.
KEPT_LISTS = 16
# A longer side beyond so many shorter ones leaves none of these after resizing; boxes are fractions of the picture, so
# that a picture may be stretched before.
MOST_ASPECT = 16


@dataclass(frozen=True, slots=True)
class Caption:
    """Token ids [1, L] of a caption, and for each of its texts, whose places are ``texts``, the share [n, L] of each
    token in its score."""

    ids: Tensor
    texts: tuple[int, ...]
    shares: Tensor


def make_captions(texts: Sequence[str], tokenizer: Any, max_tokens: int) -> list[Caption]:
    """Captions of at most ``max_tokens`` tokens that hold each text once, in order. One that is longer than a caption
    is cut; one without a token raises QueryError."""
    phrases = [_phrase(text, tokenizer, max_tokens - 3) for text in texts]  # the two ends, and the full stop
    captions: list[Caption] = []
    start = length = 0
    for end, (_, n_tokens) in enumerate(phrases):
        if end > start and length + n_tokens + 1 > max_tokens - 2:
            captions.append(_caption(phrases, range(start, end), tokenizer))
            start, length = end, 0
        length += n_tokens + 1
    captions.append(_caption(phrases, range(start, len(phrases)), tokenizer))
    assert all(caption.ids.shape[1] <= max_tokens for caption in captions)
    return captions


def _phrase(text: str, tokenizer: Any, most: int) -> tuple[str, int]:
    """The text as it stands in a caption, and how many tokens it has there."""
    phrase = " ".join(text.lower().translate(BORDERS).split())
    spans = tokenizer(phrase, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    if not spans:
        raise QueryError(f"the name {brief(text)} has nothing that the teacher could read")
    if len(spans) > most:
        return phrase[: spans[most - 1][1]], most
    return phrase, len(spans)


def _caption(phrases: Sequence[tuple[str, int]], places: range, tokenizer: Any) -> Caption:
    starts, caption = [], ""
    for place in places:
        caption += " " if caption else ""
        starts.append(len(caption))
        caption += phrases[place][0] + "."
    encoded = tokenizer(caption, return_offsets_mapping=True)
    shares = torch.zeros(len(places), len(encoded["input_ids"]))
    for row, (place, start) in enumerate(zip(places, starts, strict=True)):
        end = start + len(phrases[place][0])
        own = [i for i, (a, b) in enumerate(encoded["offset_mapping"]) if start <= a < b <= end]
        shares[row, own] = 1 / len(own)
    return Caption(torch.tensor([encoded["input_ids"]]), tuple(places), shares)


class GroundingDino:
    """The architecture behind the common teacher."""

    def __init__(self, model: Any, processor: Any):
        self._model, self._images, self._tokenizer = model, processor.image_processor, processor.tokenizer
        self._edges = int(self._images.size["shortest_edge"]), int(self._images.size["longest_edge"])
        self._captions: LRUCache[tuple[str, ...], list[Caption]] = LRUCache(KEPT_LISTS)
        self.size: int | None = None
        self.longer_side = self._edges[1]

    def pixels(self, picture: Image.Image, scale: float) -> Tensor:
        """As the processor makes them."""
        shortest, longest = (max(32, round(edge * scale)) for edge in self._edges)
        width, height = picture.size
        least = -(-max(width, height) // MOST_ASPECT)
        if min(width, height) < least:
            picture = picture.resize((max(width, least), max(height, least)), Image.Resampling.BICUBIC)
        size = {"shortest_edge": shortest, "longest_edge": longest}
        return self._images(images=[picture], size=size, return_tensors="pt")["pixel_values"][0]

    def passes(self, pixels: Tensor, texts: tuple[str, ...]) -> Iterator[Pass]:
        """One for each caption."""
        if texts not in self._captions:
            most = min(self._model.config.max_text_len, self._model.config.text_config.max_position_embeddings)
            self._captions[texts] = make_captions(texts, self._tokenizer, most)
        pixels = pixels.to(self._model.device, self._model.dtype)
        for caption in self._captions[texts]:
            ids = caption.ids.to(pixels.device).expand(len(pixels), -1)
            answer = self._model(
                pixel_values=pixels,
                input_ids=ids,
                token_type_ids=torch.zeros_like(ids),
                attention_mask=torch.ones_like(ids),
            )
            fits = answer.logits.float().sigmoid()[..., : ids.shape[1]]  # [B, Q, L]
            yield Pass(caption.texts, fits @ caption.shares.T.to(fits), cxcywh_to_xyxy(answer.pred_boxes))
