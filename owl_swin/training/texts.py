"""The texts of a run: each class has several, and every step picks one of them."""

from collections.abc import Sequence

import torch
from torch import Tensor

from owl_swin.models.owl_swin import OwlSwin
from owl_swin.tokenizer import get_tokenizer

# The bare name is what most users type, so it is drawn most often.
PROMPTS = (
    "{}", "{}", "{}", "a {}", "a photo of a {}", "a photo of the {}", "a picture of a {}", "a close-up of a {}",
    "there is a {} in the scene", "one {}", "a small {}", "a large {}",
)  # fmt: skip


def prompted(names: Sequence[Sequence[str]]) -> list[list[str]]:
    """For each class all its names in all prompts."""
    return [[prompt.format(name) for name in synonyms for prompt in PROMPTS] for synonyms in names]


class TextBank:
    """Texts of N classes, several each. With a frozen text encoder their embeddings are made once, else token ids are
    kept and each step encodes what it needs, with gradients."""

    def __init__(self, texts: Sequence[Sequence[str]], model: OwlSwin, *, trainable: bool):
        counts = torch.tensor([len(own) for own in texts], dtype=torch.long)
        self.counts = counts
        self.first = counts.cumsum(0) - counts
        flat = [text for own in texts for text in own]
        unique = {text: i for i, text in enumerate(dict.fromkeys(flat))}
        self.place = torch.tensor([unique[text] for text in flat], dtype=torch.long)
        tokenizer = get_tokenizer(model.config.text.context_length, model.config.text.open_clip)
        self.ids = tokenizer(list(unique)) if trainable else None
        self.embeds = None if trainable else embed_texts(list(unique), model)

    def __len__(self) -> int:
        return len(self.counts)

    def draw(self, classes: Tensor, chance: Tensor) -> Tensor:
        """A text for each of ``classes [n]``, by uniform numbers ``chance [n]`` in [0, 1): rows for ``embed``."""
        return self.place[self.first[classes] + (chance * self.counts[classes]).long()]

    def embed(self, model: OwlSwin, rows: Tensor) -> Tensor:
        """Unit embeddings [n, E] of rows, on the model's device."""
        device = model.alignment_log_scale.device
        if self.ids is None:
            assert self.embeds is not None
            return self.embeds[rows.cpu()].to(device)
        return model.encode_text(self.ids[rows.cpu()].to(device))

    def means(self) -> Tensor:
        """Mean embedding [N, E] of each class over its texts, unit length (frozen text encoder only)."""
        assert self.embeds is not None
        parts = self.embeds[self.place].split(self.counts.tolist())
        return torch.nn.functional.normalize(torch.stack([part.mean(0) for part in parts]), dim=-1)


@torch.no_grad()
def embed_texts(texts: Sequence[str], model: OwlSwin) -> Tensor:
    """Unit embeddings [N, E] of texts by the model's own text encoder, on the CPU."""
    tokenizer = get_tokenizer(model.config.text.context_length, model.config.text.open_clip)
    device = model.alignment_log_scale.device
    # Texts of one length together: a batch costs as much as its longest text.
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    embeds = torch.zeros(len(texts), model.config.embed_dim)
    for start in range(0, len(order), 512):
        rows = order[start : start + 512]
        embeds[rows] = model.encode_text(tokenizer([texts[i] for i in rows]).to(device)).cpu()
    return embeds
