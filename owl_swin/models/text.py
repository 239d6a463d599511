"""Text encoders: one of CLIP's kind (arXiv:2103.00020), and open_clip's published towers."""

from collections import OrderedDict
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from owl_swin.config import TextConfig
from owl_swin.models.owl_vit import quick_gelu


class TextEncoder(nn.Module):
    """CLIP text transformer (arXiv:2103.00020) that answers with one unit vector a text.

    ``forward(ids [N, L]) → [N, E]``, L2-normalised. With ``config.open_clip`` the tower is that published one, which
    may also be a Hugging Face text model; its own output size must equal ``embed_dim``.
    """

    def __init__(self, config: TextConfig, embed_dim: int):
        super().__init__()
        self.config = config
        self.tower = _build_tower(config, embed_dim)

    def forward(self, ids: Tensor) -> Tensor:
        return F.normalize(self.tower(ids).float(), dim=-1)


class TextTower(nn.Module):
    """Transformer over tokens that each attend to those before them; parameters are named as in open_clip.

    ``forward(ids [N, L]) → [N, E]``. It reads up to the last end-of-text token of all: what comes after it changes
    nothing.
    """

    def __init__(self, config: TextConfig, embed_dim: int):
        super().__init__()
        width, layers = config.width, config.layers
        self.token_embedding = nn.Embedding(config.vocab_size, width)
        self.positional_embedding = nn.Parameter(torch.empty(config.context_length, width))
        blocks = [TextBlock(config) for _ in range(layers)]
        self.transformer = nn.ModuleDict({"resblocks": nn.ModuleList(blocks)})
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = nn.Parameter(torch.empty(width, embed_dim))
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.positional_embedding, std=0.01)
        nn.init.normal_(self.text_projection, std=width**-0.5)
        for block in blocks:
            block.init_weights(width, layers)

    def forward(self, ids: Tensor) -> Tensor:
        end = ids.argmax(-1)  # [N], the end-of-text token has the largest id; 0 is padding and also a "!" inside a word
        length = ids.shape[1] if torch.jit.is_tracing() else int(end.max()) + 1 if len(ids) else 1
        x = self.token_embedding(ids[:, :length]) + self.positional_embedding[:length]  # [N, L, W]
        later = torch.full((length, length), -torch.inf, dtype=x.dtype, device=x.device).triu(1)
        for block in cast(nn.ModuleList, self.transformer["resblocks"]):
            x = block(x, later)
        pooled = self.ln_final(x)[torch.arange(ids.shape[0], device=ids.device), end]  # [N, W]
        return pooled @ self.text_projection


class TextBlock(nn.Module):
    """A transformer block that normalises before its two branches."""

    def __init__(self, config: TextConfig):
        super().__init__()
        width, hidden = config.width, round(config.width * config.mlp_ratio)
        activation = nn.GELU() if config.activation == "gelu" else QuickGELU()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, config.heads, batch_first=True)
        self.ln_2 = nn.LayerNorm(width)
        layers = {"c_fc": nn.Linear(width, hidden), "gelu": activation, "c_proj": nn.Linear(hidden, width)}
        self.mlp = nn.Sequential(OrderedDict(layers))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, attn_mask=mask, need_weights=False)[0]
        return x + self.mlp(self.ln_2(x))

    def init_weights(self, width: int, layers: int) -> None:
        """As CLIP begins: what is added to the stream is the smaller, the more blocks add to it."""
        deep = (2 * layers) ** -0.5
        nn.init.normal_(self.attn.in_proj_weight, std=width**-0.5)
        nn.init.normal_(self.attn.out_proj.weight, std=width**-0.5 * deep)
        first, _, last = cast(tuple[nn.Linear, nn.Module, nn.Linear], tuple(self.mlp))
        nn.init.normal_(first.weight, std=(2 * width) ** -0.5)
        nn.init.normal_(last.weight, std=width**-0.5 * deep)


class QuickGELU(nn.Module):
    """OpenAI's approximation of GELU, with which CLIP was trained."""

    def forward(self, x: Tensor) -> Tensor:
        return quick_gelu(x)


def _build_tower(config: TextConfig, embed_dim: int) -> nn.Module:
    return _published_tower(config.open_clip, embed_dim) if config.open_clip else TextTower(config, embed_dim)


def _published_tower(name: str, embed_dim: int) -> nn.Module:
    import open_clip

    from owl_swin.errors import ConfigError

    settings = open_clip.get_model_config(name)
    if settings is None:
        raise ConfigError(f"text.open_clip: open_clip knows no model {name!r}; see open_clip.list_models()")
    if settings["embed_dim"] != embed_dim:
        raise ConfigError(
            f"text.open_clip: {name} answers in {settings['embed_dim']} dimensions, the model has embed_dim {embed_dim}"
        )
    from open_clip.model import _build_text_tower

    return _build_text_tower(embed_dim, settings["text_cfg"])
