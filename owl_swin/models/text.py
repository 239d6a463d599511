"""Text encoders: open_clip's towers, and a small one of the same kind."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from owl_swin.config import TextConfig


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
        embeds = self._forward_trimmed(ids) if not self.config.open_clip else self.tower(ids)
        return F.normalize(embeds.float(), dim=-1)

    def _forward_trimmed(self, ids: Tensor) -> Tensor:
        """The tower up to the last end-of-text token: attention is causal, so what comes after it changes nothing."""
        tower: Any = self.tower
        end = ids.argmax(-1)  # [N], the end-of-text token has the largest id; 0 is padding and also a "!" inside a word
        length = int(end.max()) + 1 if len(ids) else 1
        ids = ids[:, :length]
        x = tower.token_embedding(ids) + tower.positional_embedding[:length]  # [N, L, W]
        x = tower.transformer(x, attn_mask=tower.attn_mask[:length, :length])
        x = tower.ln_final(x)
        pooled = x[torch.arange(len(ids), device=ids.device), end]  # [N, W]
        return pooled @ tower.text_projection


def _build_tower(config: TextConfig, embed_dim: int) -> nn.Module:
    from open_clip.transformer import TextTransformer

    if config.open_clip:
        return _published_tower(config.open_clip, embed_dim)
    return TextTransformer(
        context_length=config.context_length,
        vocab_size=config.vocab_size,
        width=config.width,
        heads=config.heads,
        layers=config.layers,
        output_dim=embed_dim,
    )


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
