"""OmDet-Turbo (arXiv:2403.06892) as a teacher.

It encodes each name by itself, and beside them a task, "Detect a cat, a red mug.", which its text encoder reads up to a
number of tokens: names whose task does not fit are asked in several passes.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision.ops import batched_nms

from owl_swin.boxes import cxcywh_to_xyxy
from owl_swin.teachers.transformers_model import Pass

# Tokens of a task or name, as its processor has it.
MOST_TOKENS = 77
# Of its answers to one name that overlap by more, the best stays, as its processor has it.
NMS_IOU = 0.5


def make_tasks(texts: Sequence[str], tokenizer: Any, max_tokens: int) -> list[tuple[str, range]]:
    """Tasks that name all texts, in order, and the places of the texts in each. A text that does not fit by itself has
    a task of its own, which is cut."""
    lengths = [len(ids) for ids in tokenizer([f"{text}," for text in texts], add_special_tokens=False)["input_ids"]]
    frame = len(tokenizer("Detect .")["input_ids"])
    parts: list[range] = []
    start = length = 0
    for end, own in enumerate(lengths):
        if end > start and frame + length + own > max_tokens:
            parts.append(range(start, end))
            start, length = end, 0
        length += own
    parts.append(range(start, len(texts)))
    return [(f"Detect {', '.join(texts[i] for i in part)}.", part) for part in parts]


class OmDetTurbo:
    """The architecture behind the common teacher."""

    def __init__(self, model: Any, processor: Any):
        self._model, self._images, self._tokenizer = model, processor.image_processor, processor.tokenizer
        self._most = min(MOST_TOKENS, int(model.config.text_config.max_position_embeddings))
        self.longer_side = max(int(side) for side in dict(self._images.size).values() if side)
        self.size: int | None = self.longer_side

    def pixels(self, picture: Image.Image, scale: float) -> Tensor:
        """As the processor makes them: squashed to a square."""
        return self._images(images=[picture], return_tensors="pt")["pixel_values"][0]

    def passes(self, pixels: Tensor, texts: tuple[str, ...]) -> Iterator[Pass]:
        """One for each task."""
        pixels = pixels.to(self._model.device, self._model.dtype)
        for task, places in make_tasks(texts, self._tokenizer, self._most):
            names, asked = self._tokens([texts[i] for i in places]), self._tokens([task])
            answer = self._model(
                pixel_values=pixels,
                classes_input_ids=names["input_ids"].repeat(len(pixels), 1),
                classes_attention_mask=names["attention_mask"].repeat(len(pixels), 1),
                tasks_input_ids=asked["input_ids"].repeat(len(pixels), 1),
                tasks_attention_mask=asked["attention_mask"].repeat(len(pixels), 1),
                classes_structure=torch.full((len(pixels),), len(places), device=pixels.device),
            )
            boxes = cxcywh_to_xyxy(answer.decoder_coord_logits.float())
            scores = answer.decoder_class_logits.float().sigmoid()
            yield Pass(places, torch.stack([_best_alone(*one) for one in zip(scores, boxes, strict=True)]), boxes)

    def _tokens(self, texts: Sequence[str]) -> Any:
        tokens = self._tokenizer(
            list(texts), padding="max_length", truncation=True, max_length=self._most, return_tensors="pt"
        )
        return tokens.to(self._model.device)


def _best_alone(scores: Tensor, boxes: Tensor) -> Tensor:
    """Scores [Q, n] of boxes [Q, 4]: -1 for a box that overlaps a better one of the same name."""
    queries, names = scores.shape
    labels = torch.arange(names, device=scores.device).repeat(queries)
    kept = batched_nms(boxes.repeat_interleave(names, 0), scores.flatten(), labels, NMS_IOU)
    left = torch.full_like(scores.flatten(), -1.0)
    left[kept] = scores.flatten()[kept]
    return left.view(queries, names)
