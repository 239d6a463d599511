"""SAM 3 (arXiv:2511.16719) as a teacher.

It answers one text a pass. The picture is encoded once and shared by all texts, and a text once for all pictures, as
DART does (arXiv:2603.11441); masks are not asked for.
"""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

from cachetools import LRUCache
from PIL import Image
from torch import Tensor, nn

from owl_swin.teachers.transformers_model import Pass

# Tokens of a text, as its processor has it.
MOST_TOKENS = 32
# Texts whose embeddings are kept; one has MOST_TOKENS vectors.
KEPT_TEXTS = 4096


class Sam3:
    """The architecture behind the common teacher."""

    def __init__(self, model: Any, processor: Any):
        self._model, self._images, self._tokenizer = model, processor.image_processor, processor.tokenizer
        self._most = min(MOST_TOKENS, int(model.config.text_config.max_position_embeddings))
        self._texts: LRUCache[str, tuple[Tensor, Tensor]] = LRUCache(KEPT_TEXTS)
        self.longer_side = int(self._images.size["height"])
        self.size: int | None = self.longer_side
        model.mask_decoder = NoMasks()

    def pixels(self, picture: Image.Image, scale: float) -> Tensor:
        """As the processor makes them: squashed to a square."""
        return self._images(images=[picture], return_tensors="pt")["pixel_values"][0]

    def passes(self, pixels: Tensor, texts: tuple[str, ...]) -> Iterator[Pass]:
        """One for each text."""
        seen = self._model.get_vision_features(pixel_values=pixels.to(self._model.device, self._model.dtype))
        n = len(pixels)
        for place, text in enumerate(texts):
            features, mask = self._text(text)
            answer = self._model(
                vision_embeds=seen,
                text_embeds=SimpleNamespace(pooler_output=features.expand(n, -1, -1)),
                attention_mask=mask.expand(n, -1),
            )
            scores = answer.pred_logits.float().sigmoid()
            if answer.presence_logits is not None:
                scores = scores * answer.presence_logits.float().sigmoid()
            yield Pass((place,), scores[..., None], answer.pred_boxes)

    def _text(self, text: str) -> tuple[Tensor, Tensor]:
        """Features [1, L, d] and mask [1, L]."""
        if text not in self._texts:
            tokens = self._tokenizer(
                [text], padding="max_length", truncation=True, max_length=self._most, return_tensors="pt"
            ).to(self._model.device)
            features = self._model.get_text_features(**tokens).pooler_output
            self._texts[text] = features, tokens["attention_mask"]
        return self._texts[text]


class NoMasks(nn.Module):
    """Takes the place of the mask decoder, whose work nobody asks for here and every text would repeat."""

    def forward(self, **_: Any) -> Any:
        """No masks."""
        return SimpleNamespace(pred_masks=None, semantic_seg=None, attentions=None)
