"""OWL-ViT and OWLv2 (arXiv:2205.06230, arXiv:2306.09683): two CLIP towers and the OWL heads.

Modules are named as in transformers, whose checkpoints they hold. Unlike there, pictures and texts go apart, texts are
read no further than they reach, and a frame may leave out the patches that show nothing but padding.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from owl_swin.config import CalibrationConfig
from owl_swin.models.network import Spec, fingerprint
from owl_swin.types import ImageEmbeddings

# Deviations above its mean that a patch's scale and shift are expected to reach.
SEARCH_DEVIATIONS = 4.0


@dataclass(frozen=True, slots=True)
class TowerConfig:
    """Sizes of one CLIP transformer; ``activation`` is "quick_gelu" or "gelu"."""

    width: int
    mlp_width: int
    layers: int
    heads: int
    activation: str = "quick_gelu"
    norm_eps: float = 1e-5


@dataclass(frozen=True, slots=True)
class OwlVitConfig:
    """One model of the family; ``objectness`` is what OWLv2 has more than OWL-ViT."""

    name: str
    family: str
    image: TowerConfig
    text: TowerConfig
    image_size: int
    patch_size: int
    context_length: int
    vocab_size: int
    embed_dim: int
    objectness: bool
    calibration: CalibrationConfig = field(default_factory=CalibrationConfig)


class OwlVit(nn.Module):
    """The network of the family behind the query boundary.

    Frames are squares. One that is not is the top left part of the square over its longer side, and only its own
    patches are encoded.
    """

    def __init__(self, config: OwlVitConfig):
        super().__init__()
        self.config = config
        width = config.image.width
        self.vision_model = VisionTower(config)
        self.text_model = TextTower(config)
        self.visual_projection = nn.Linear(width, config.embed_dim, bias=False)
        self.text_projection = nn.Linear(config.text.width, config.embed_dim, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(2.6592))
        self.layer_norm = nn.LayerNorm(width, eps=config.image.norm_eps)
        self.class_head = ClassHead(width, config.embed_dim)
        self.box_head = PatchMlp(width, 4)
        if config.objectness:
            self.objectness_head = PatchMlp(width, 1)
        else:
            # Embeddings [K, E] of broad names, the best of which stands for objectness; no part of the checkpoint.
            self.broad_embeds: Tensor = nn.Buffer(torch.zeros(1, config.embed_dim), persistent=False)

    @property
    def spec(self) -> Spec:
        """What other rooms may know of this model; its fingerprint is of the weights as they are now."""
        config = self.config
        return Spec(
            name=config.name,
            family=config.family,
            embed_dim=config.embed_dim,
            fingerprint=fingerprint(self),
            image_size=config.image_size,
            stride=config.patch_size,
            any_size=True,
            has_objectness=config.objectness,
            # The published OWLv2 checkpoints have a projection of whole pictures that nobody trained.
            has_image_embed=not config.objectness,
            has_masks=False,
            search_norm=self._search_norm(),
            calibration=config.calibration,
            alignment_scale=float(self.logit_scale.detach().float().exp()),
        )

    def encode_image(self, pixels: Tensor) -> ImageEmbeddings:
        """Normalised pixels [B, 3, H, W] → everything that no query touches."""
        patch = self.config.patch_size
        grid_hw = (int(pixels.shape[2]) // patch, int(pixels.shape[3]) // patch)  # a number in a trace, too
        tokens = self.vision_model(pixels, grid_hw)  # [B, 1 + P, D]
        whole = tokens[:, :1]
        patches = self.layer_norm(tokens[:, 1:] * whole)
        embeds, shift, scale = self.class_head(patches)
        return ImageEmbeddings(
            image_embed=F.normalize(self.visual_projection(whole[:, 0]).float(), dim=-1),
            class_embeds=embeds,
            pred_boxes=self._boxes(patches, grid_hw),
            objectness_logits=self._objectness(patches, embeds, shift, scale),
            logit_shift=shift,
            logit_scale=scale,
            grid_hw=grid_hw,
        )

    def encode_text(self, ids: Tensor) -> Tensor:
        """Token ids [N, L] → unit text embeddings [N, E]."""
        return F.normalize(self.text_projection(self.text_model(ids)).float(), dim=-1)

    def _boxes(self, patches: Tensor, grid_hw: tuple[int, int]) -> Tensor:
        """[B, P, D] → [B, P, 4], cxcywh in [0, 1] of the frame."""
        side = max(grid_hw)
        prior = corner_prior(side).view(side, side, 4)[: grid_hw[0], : grid_hw[1]].reshape(-1, 4)
        boxes = torch.sigmoid(self.box_head(patches).float() + prior.to(patches.device))
        if grid_hw == (side, side):
            return boxes
        y, x = (side / n for n in grid_hw)  # of the square, in which boxes are predicted, in sides of the frame
        return boxes * boxes.new_tensor([x, y, x, y])

    def _objectness(self, patches: Tensor, embeds: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        """Logits [B, P]: those of OWLv2's head, or the best that one of the broad names gets."""
        if self.config.objectness:
            return self.objectness_head(patches.detach()).float()[..., 0]
        best = (embeds @ self.broad_embeds.to(embeds).T).amax(-1)
        return (best + shift) * scale

    def _search_norm(self) -> float:
        """Length that few patches' (scale · embedding, scale · shift) exceed, from the weights alone.

        What the heads read has, after its LayerNorm, features of mean 0 and deviation 1 before gain and bias.
        """
        # On the CPU: not every device has float64.
        gain, bias = self.layer_norm.weight.cpu().double(), self.layer_norm.bias.cpu().double()
        highest = []
        for head in (self.class_head.logit_scale, self.class_head.logit_shift):
            weight = head.weight[0].cpu().double()
            mean = float(weight @ bias + head.bias.cpu().double()[0])
            reach = SEARCH_DEVIATIONS * float((weight * gain).norm())
            highest.append((mean, reach))
        (scale_mean, scale_reach), (shift_mean, shift_reach) = highest
        scale = scale_mean + scale_reach
        scale = (scale if scale > 0 else math.expm1(scale)) + 1
        return scale * math.hypot(1.0, abs(shift_mean) + shift_reach)


class VisionTower(nn.Module):
    """CLIP's ViT: pixels [B, 3, H, W] → the class token and then the patches, row by row, [B, 1 + P, D]."""

    def __init__(self, config: OwlVitConfig):
        super().__init__()
        self.embeddings = PatchEmbeddings(config)
        self.pre_layernorm = nn.LayerNorm(config.image.width, eps=config.image.norm_eps)
        self.encoder = Transformer(config.image)
        self.post_layernorm = nn.LayerNorm(config.image.width, eps=config.image.norm_eps)

    def forward(self, pixels: Tensor, grid_hw: tuple[int, int]) -> Tensor:
        tokens = self.pre_layernorm(self.embeddings(pixels, grid_hw))
        return self.post_layernorm(self.encoder(tokens, causal=False))


class PatchEmbeddings(nn.Module):
    """Patches as tokens, each with the position that it has in the square frame."""

    def __init__(self, config: OwlVitConfig):
        super().__init__()
        width, patch = config.image.width, config.patch_size
        self.side = config.image_size // patch
        self.class_embedding = nn.Parameter(torch.zeros(width))
        self.patch_embedding = nn.Conv2d(3, width, patch, patch, bias=False)
        self.position_embedding = nn.Embedding(self.side**2 + 1, width)

    def forward(self, pixels: Tensor, grid_hw: tuple[int, int]) -> Tensor:
        patches = self.patch_embedding(pixels).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.class_embedding.expand(pixels.shape[0], 1, -1), patches], 1)
        return tokens + self._positions(grid_hw)

    def _positions(self, grid_hw: tuple[int, int]) -> Tensor:
        """[1 + P, D]; those of a square of another side than the trained one are interpolated between its own."""
        table, side = self.position_embedding.weight, max(grid_hw)
        if grid_hw == (self.side, self.side):
            return table
        square = table[1:].view(self.side, self.side, -1)
        if side != self.side:
            square = square.permute(2, 0, 1)[None]
            square = F.interpolate(square, size=(side, side), mode="bicubic", align_corners=False)[0].permute(1, 2, 0)
        return torch.cat([table[:1], square[: grid_hw[0], : grid_hw[1]].flatten(0, 1)])


class TextTower(nn.Module):
    """CLIP's text transformer: ids [N, L] → what it says at the end of each text, [N, D]."""

    def __init__(self, config: OwlVitConfig):
        super().__init__()
        self.embeddings = TokenEmbeddings(config)
        self.encoder = Transformer(config.text)
        self.final_layer_norm = nn.LayerNorm(config.text.width, eps=config.text.norm_eps)

    def forward(self, ids: Tensor) -> Tensor:
        end = ids.argmax(-1)  # the end-of-text token has the largest id
        # Attention is causal: what comes after the last text's end changes nothing.
        if not torch.jit.is_tracing():
            ids = ids[:, : int(end.max()) + 1 if len(ids) else 1]
        x = self.encoder(self.embeddings(ids), causal=True)
        return self.final_layer_norm(x[torch.arange(ids.shape[0], device=ids.device), end])


class TokenEmbeddings(nn.Module):
    """Token ids [N, L] → tokens with their positions [N, L, D]."""

    def __init__(self, config: OwlVitConfig):
        super().__init__()
        self.token_embedding = nn.Embedding(config.vocab_size, config.text.width)
        self.position_embedding = nn.Embedding(config.context_length, config.text.width)

    def forward(self, ids: Tensor) -> Tensor:
        return self.token_embedding(ids) + self.position_embedding.weight[: ids.shape[1]]


class Transformer(nn.Module):
    """Blocks of attention and MLP, each on what was normalised before."""

    def __init__(self, config: TowerConfig):
        super().__init__()
        self.layers = nn.ModuleList(Block(config) for _ in range(config.layers))

    def forward(self, x: Tensor, *, causal: bool) -> Tensor:
        for layer in self.layers:
            x = layer(x, causal)
        return x


class Block(nn.Module):
    """One layer of a tower."""

    def __init__(self, config: TowerConfig):
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.self_attn = Attention(config)
        self.layer_norm2 = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.mlp = Mlp(config)

    def forward(self, x: Tensor, causal: bool) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x), causal)
        return x + self.mlp(self.layer_norm2(x))


class Attention(nn.Module):
    """Multi-head self-attention."""

    def __init__(self, config: TowerConfig):
        super().__init__()
        self.heads = config.heads
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(config.width, config.width) for _ in range(4))

    def forward(self, x: Tensor, causal: bool) -> Tensor:
        q, k, v = (
            project(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )  # [B, heads, L, D / heads]
        out = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
        return self.out_proj(out.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """The two layers of a block that look at each token alone."""

    def __init__(self, config: TowerConfig):
        super().__init__()
        self.activation: Callable[[Tensor], Tensor] = ACTIVATIONS[config.activation]
        self.fc1 = nn.Linear(config.width, config.mlp_width)
        self.fc2 = nn.Linear(config.mlp_width, config.width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.activation(self.fc1(x)))


class ClassHead(nn.Module):
    """Patch → unit class embedding, and the shift and positive scale of its logits: logit = (cosine + shift) ·
    scale."""

    def __init__(self, width: int, embed_dim: int):
        super().__init__()
        self.dense0 = nn.Linear(width, embed_dim)
        self.logit_shift = nn.Linear(width, 1)
        self.logit_scale = nn.Linear(width, 1)

    def forward(self, patches: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[B, P, D] → class embeddings [B, P, E], shift [B, P], scale [B, P]."""
        embeds = F.normalize(self.dense0(patches).float(), dim=-1)
        shift, scale = self.logit_shift(patches).float(), self.logit_scale(patches).float()
        return embeds, shift[..., 0], F.elu(scale[..., 0]) + 1


class PatchMlp(nn.Module):
    """Three layers on each patch: its box, or its objectness."""

    def __init__(self, width: int, out: int):
        super().__init__()
        self.dense0, self.dense1, self.dense2 = nn.Linear(width, width), nn.Linear(width, width), nn.Linear(width, out)

    def forward(self, patches: Tensor) -> Tensor:
        return self.dense2(F.gelu(self.dense1(F.gelu(self.dense0(patches)))))


def corner_prior(side: int) -> Tensor:
    """Box [P, 4] every patch of a square grid starts from, as logits of cxcywh: of its cell's size, around the cell's
    lower right corner."""
    corners = torch.arange(1, side + 1, dtype=torch.float32) / side
    y, x = torch.meshgrid(corners, corners, indexing="ij")
    sizes = torch.full_like(x, 1 / side)
    boxes = torch.stack([x, y, sizes, sizes], -1).view(-1, 4)
    return torch.log(boxes + 1e-4) - torch.log1p(-boxes + 1e-4)


def quick_gelu(x: Tensor) -> Tensor:
    """OpenAI's approximation of GELU, with which CLIP was trained."""
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"quick_gelu": quick_gelu, "gelu": F.gelu}
