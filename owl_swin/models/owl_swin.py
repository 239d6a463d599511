"""The whole network, cut at the query boundary: encode_image and encode_text."""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from owl_swin.attention import BlockAttention
from owl_swin.config import ModelConfig
from owl_swin.models.heads import BoxHead, ClassHead, HeadBlock, ObjectnessHead, PatchFusion
from owl_swin.models.hybrid import HybridSwin
from owl_swin.models.masks import MaskBranch
from owl_swin.models.network import Spec, fingerprint
from owl_swin.models.swin import SwinEncoder
from owl_swin.models.text import TextEncoder
from owl_swin.types import ImageEmbeddings

# Longest vector (scale · embedding, scale · shift) of a patch that a trained model of this family gives.
SEARCH_NORM = 16.0


class OwlSwin(nn.Module):
    """Swin image encoder, text encoder, and OWL heads over one grid of patches."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        width = config.heads.width
        self.image_encoder = SwinEncoder(config.image) if config.image.stem == "patch" else HybridSwin(config.image)
        self.fusion = PatchFusion(config.image, config.heads)
        self.image_projection = nn.Linear(width, config.embed_dim)
        self.head_blocks = nn.Sequential(*(HeadBlock(width) for _ in range(config.heads.blocks)))
        self.class_head = ClassHead(width, config.embed_dim)
        self.box_head = BoxHead(width, config.heads.box_form)
        self.objectness_head = ObjectnessHead(width)
        self.masks = None
        if config.masks is not None:
            self.masks = MaskBranch(self.image_encoder.pyramid_dims, width, config.embed_dim, config.masks)
        self.text_encoder = TextEncoder(config.text, config.embed_dim)
        # Inverse temperature of the alignment loss, as logarithm: starts at 1/0.07 as CLIP does.
        self.alignment_log_scale = nn.Parameter(torch.tensor(2.6593))

    @property
    def spec(self) -> Spec:
        """What other rooms may know of this model; its fingerprint is of the weights as they are now."""
        config = self.config
        return Spec(
            name=config.name,
            family="owl_swin",
            embed_dim=config.embed_dim,
            fingerprint=fingerprint(self),
            image_size=config.image_size,
            stride=config.heads.stride,
            any_size=True,
            has_objectness=True,
            has_image_embed=True,
            has_masks=self.masks is not None,
            search_norm=SEARCH_NORM,
            calibration=config.calibration,
            alignment_scale=float(self.alignment_log_scale.detach().exp().clamp(max=100)),
            nms_iou=config.nms_iou,
            box_voting=config.box_voting,
            rivals=config.rivals,
        )

    def encode_patches(self, pixels: Tensor) -> Tensor:
        """Normalised pixels [B, 3, H, W] → fused patches [B, h, w, D]."""
        return self.fusion(self.image_encoder(pixels))

    def encode_patches_and_stem(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Fused patches [B, h, w, D] as encode_patches gives them, and a stem's last map [B, ⌈H/32⌉, ⌈W/32⌉, C]."""
        maps, last = self.image_encoder.with_stem(pixels)  # type: ignore[operator]
        return self.fusion(maps), last

    def encode_pyramid(self, pixels: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        """The encoder's maps [B, ⌈H/s⌉, ⌈W/s⌉, C] of strides 4 to 32, which masks are made of, and fused patches."""
        return self._with_patches(self.image_encoder.pyramid(pixels))

    def encode_pyramid_and_stem(self, pixels: Tensor) -> tuple[tuple[Tensor, ...], Tensor, Tensor]:
        """The same, and a stem's last map as encode_patches_and_stem gives it."""
        maps, last = self.image_encoder.pyramid_with_stem(pixels)  # type: ignore[operator]
        return *self._with_patches(maps), last

    def _with_patches(self, maps: tuple[Tensor, ...]) -> tuple[tuple[Tensor, ...], Tensor]:
        return maps, self.fusion(maps[self.config.image.first_stage :])

    def pool(self, patches: Tensor) -> Tensor:
        """Fused patches [B, h, w, D] → the unit embedding [B, E] of the whole picture."""
        return F.normalize(self.image_projection(patches.mean((1, 2))).float(), dim=-1)

    def encode_image(self, pixels: Tensor) -> ImageEmbeddings:
        """Normalised pixels [B, 3, H, W] → everything that no query touches."""
        return encode_from_patches(self, self.encode_patches(pixels), (pixels.shape[2], pixels.shape[3]))

    def encode_with_masks(self, pixels: Tensor) -> ImageEmbeddings:
        """As encode_image, with ``masks``; of a model with a mask branch."""
        assert self.masks is not None
        maps, patches = self.encode_pyramid(pixels)
        images = encode_from_patches(self, patches, (pixels.shape[2], pixels.shape[3]))
        return replace(images, masks=self.masks(maps, patches))

    def attention(self, pixels: Tensor) -> list[BlockAttention]:
        """What every patch of one picture [1, 3, H, W] attends to, block after block."""
        return self.image_encoder.attention(pixels)

    def encode_text(self, ids: Tensor) -> Tensor:
        """Token ids [N, L] → unit text embeddings [N, E]."""
        return self.text_encoder(ids)


def encode_from_patches(model: OwlSwin, patches: Tensor, model_hw: tuple[int, int]) -> ImageEmbeddings:
    """The heads on fused patches [B, h, w, D] of pictures of ``model_hw`` pixels."""
    grid_hw = (patches.shape[1], patches.shape[2])
    stride = model.config.heads.stride
    flat = model.head_blocks(patches).flatten(1, 2)  # [B, P, D]
    class_embeds, shift, scale = model.class_head(flat)
    return ImageEmbeddings(
        image_embed=model.pool(patches),
        class_embeds=class_embeds,
        pred_boxes=model.box_head(flat, grid_hw, (stride / model_hw[0], stride / model_hw[1])),
        objectness_logits=model.objectness_head(flat),
        logit_shift=shift,
        logit_scale=scale,
        grid_hw=grid_hw,
    )
