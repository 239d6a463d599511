"""Pictures on their way through a model: prepared for it, and encoded by it."""

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from owl_swin.frame import HW, Frame
from owl_swin.types import ImageEmbeddings, PatchLogitInputs


@dataclass(frozen=True, slots=True, eq=False)
class PreparedImage:
    """A picture that was read and brought to the size of a model: a few hundred kilobytes, whatever it was before.

    ``frames`` are the whole picture and then its tiles, ``pixels`` [3, H, W] what is shown of it in each.
    """

    frames: tuple[Frame, ...]
    pixels: tuple[Tensor, ...]


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """What a model says of a picture, or a tile of it, in one frame."""

    embeddings: ImageEmbeddings
    frame: Frame


@dataclass(frozen=True, slots=True, eq=False)
class EncodedImage:
    """A picture after its way through the encoder; ask it as many queries as you like.

    ``views`` are the whole picture and then its tiles. Patches are counted through all of them.
    """

    views: tuple[View, ...]

    @property
    def image_hw(self) -> HW:
        """Height and width of the upright picture."""
        return self.views[0].frame.image_hw

    @property
    def embeddings(self) -> ImageEmbeddings:
        """What the model says of the whole picture."""
        return self.views[0].embeddings

    def patches(self) -> PatchLogitInputs:
        """What scoring reads of the patches of all views, one view after another."""
        if len(self.views) == 1:
            return self.embeddings
        return PatchLogitInputs(*(self._joined(name) for name in ("class_embeds", "logit_shift", "logit_scale")))

    def objectness_logits(self) -> Tensor:
        """[P] of the patches of all views."""
        return self._joined("objectness_logits")

    def boxes_px(self) -> Tensor:
        """Boxes [P, 4] of the patches of all views, xyxy pixels of the picture, clipped to it."""
        return torch.cat([view.frame.to_image(view.embeddings.pred_boxes) for view in self.views])

    @property
    def nbytes(self) -> int:
        """Memory that the embeddings take."""
        values = (getattr(view.embeddings, f.name) for view in self.views for f in fields(view.embeddings))
        return sum(value.nbytes for value in values if isinstance(value, Tensor))

    def _joined(self, name: str) -> Tensor:
        return torch.cat([getattr(view.embeddings, name) for view in self.views])
