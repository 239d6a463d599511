"""The text encoder of a model, in the form in which ours keep it: what a student in the same text space is given."""

import torch
from torch import Tensor

from owl_swin.config import TextConfig
from owl_swin.errors import CheckpointError
from owl_swin.models.network import Network
from owl_swin.models.owl_swin import OwlSwin
from owl_swin.models.owl_vit import OwlVit

# Parts of one of CLIP's layers, by transformers' names and by open_clip's.
LAYER_PARTS = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "self_attn.out_proj": "attn.out_proj",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}


def text_tower(network: Network) -> tuple[TextConfig, dict[str, Tensor]]:
    """Sizes and weights of the model's text encoder, by the names of ``TextEncoder``; one of a family whose text
    encoder is another raises CheckpointError."""
    if isinstance(network, OwlSwin):
        return network.config.text, dict(network.text_encoder.state_dict())
    if isinstance(network, OwlVit):
        return _of_owl_vit(network)
    raise CheckpointError(f"the text encoder of a model of the family {network.spec.family!r} is none that ours can be")


def _of_owl_vit(network: OwlVit) -> tuple[TextConfig, dict[str, Tensor]]:
    """CLIP's text transformer under open_clip's names."""
    sizes, given = network.config.text, network.text_model.state_dict()
    config = TextConfig(
        width=sizes.width,
        layers=sizes.layers,
        heads=sizes.heads,
        context_length=network.config.context_length,
        vocab_size=network.config.vocab_size,
        mlp_ratio=sizes.mlp_width / sizes.width,
        activation=sizes.activation,
    )
    tower = {
        "token_embedding.weight": given["embeddings.token_embedding.weight"],
        "positional_embedding": given["embeddings.position_embedding.weight"],
        "ln_final.weight": given["final_layer_norm.weight"],
        "ln_final.bias": given["final_layer_norm.bias"],
        "text_projection": network.text_projection.weight.detach().T.contiguous(),
    }
    for layer in range(sizes.layers):
        theirs, ours = f"encoder.layers.{layer}", f"transformer.resblocks.{layer}"
        for kind in ("weight", "bias"):
            attention = [given[f"{theirs}.self_attn.{part}_proj.{kind}"] for part in "qkv"]
            tower[f"{ours}.attn.in_proj_{kind}"] = torch.cat(attention)
            for part, own in LAYER_PARTS.items():
                tower[f"{ours}.{own}.{kind}"] = given[f"{theirs}.{part}.{kind}"]
    return config, {f"tower.{name}": value for name, value in tower.items()}
