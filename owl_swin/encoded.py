"""Pictures on their way through a model: prepared for it, and encoded by it."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from owl_swin.errors import QueryError
from owl_swin.frame import HW, Frame
from owl_swin.types import ImageEmbeddings, PatchLogitInputs


@dataclass(frozen=True, slots=True, eq=False)
class PreparedImage:
    """A picture that was read and brought to the size of a model: a few megabytes at most, whatever it was before.

    ``frames`` are the whole picture and then its tiles, ``pixels`` [3, H, W] what is shown of it in each.
    """

    frames: tuple[Frame, ...]
    pixels: tuple[Tensor, ...]


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """What a model says of a picture, or a tile of it, in one frame."""

    embeddings: ImageEmbeddings
    frame: Frame

    def maps(self, values: Tensor) -> Tensor:
        """Values of the patches [P, Q] as maps [Q, h, w] that cover the picture, or the tile, and nothing else.

        Where the frame is padded, a map has a row or column for each that shows some of the picture, between whose
        values it interpolates.
        """
        maps = values.T.reshape(-1, *self.embeddings.grid_hw)
        if self.frame.padded_hw is None and self.frame.content_hw == self.frame.model_hw:
            return maps
        shares = [shown / span for shown, span in zip(self.frame.shown_hw, self.frame.spans_hw, strict=True)]
        height, width = (math.ceil(share * n - 1e-6) for share, n in zip(shares, maps.shape[1:], strict=True))
        y, x = (
            (torch.arange(n, device=maps.device, dtype=maps.dtype) + 0.5) / n * share * 2 - 1
            for n, share in zip((height, width), shares, strict=True)
        )
        places = torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], -1)[None]  # [1, h, w, 2], x before y
        return F.grid_sample(maps[None], places, align_corners=False, padding_mode="border")[0]

    def patches_px(self, patches: Tensor) -> Tensor:
        """Where patches [N] of the grid lie, [N, 4] xyxy pixels of the picture, clipped to it."""
        rows, columns = self.embeddings.grid_hw
        corners = torch.stack([patches % columns, patches // columns], -1).float()
        centres = (corners + 0.5) / corners.new_tensor([columns, rows])
        sizes = corners.new_tensor([1 / columns, 1 / rows]).expand_as(corners)
        return self.frame.to_image(torch.cat([centres, sizes], -1))


@dataclass(frozen=True, slots=True, eq=False)
class EncodedImage:
    """A picture after its way through the encoder; ask it as many queries as you like.

    ``views`` are the whole picture and then its tiles. Patches are counted through all of them. ``fingerprint`` names
    the weights that encoded it; "": not known.
    """

    views: tuple[View, ...]
    fingerprint: str = ""

    def check_model(self, fingerprint: str) -> None:
        """Refuses, with QueryError, to be asked by a model of other weights."""
        if self.fingerprint and self.fingerprint != fingerprint:
            raise QueryError(
                f"this picture was encoded by another model (weights {self.fingerprint[:12]}, this model has "
                f"{fingerprint[:12]}); encode it with this one"
            )

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
        return sum(tensor.nbytes for view in self.views for tensor in view.embeddings.tensors())

    def _joined(self, name: str) -> Tensor:
        return torch.cat([getattr(view.embeddings, name) for view in self.views])
