"""Small random checkpoints of OWL-ViT and OWLv2, written by transformers itself."""

from pathlib import Path

import torch


def save_owl(folder: Path, family: str, *, patch: int = 16, size: int = 64, seed: int = 0, vocab_size: int = 49408):
    """The model that is saved in the folder: weights so large that pictures and texts differ clearly in the answers."""
    import transformers

    names = {"owlvit": "OwlViT", "owlv2": "Owlv2"}
    config = getattr(transformers, f"{names[family]}Config")(
        text_config={
            "hidden_size": 24,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "vocab_size": vocab_size,
        },
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "image_size": size,
            "patch_size": patch,
        },
        projection_dim=24,
    )
    torch.manual_seed(seed)
    model = getattr(transformers, f"{names[family]}ForObjectDetection")(config).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if "logit_scale" in name and parameter.ndim == 0:
            continue
        if "norm" in name:
            parameter.add_(0.2 * torch.randn_like(parameter))
        elif parameter.ndim > 1:
            parameter.normal_(std=0.7 / parameter[0].numel() ** 0.5)
        else:
            parameter.normal_(std=0.2)
    head = model.class_head
    head.logit_scale.bias.fill_(4.0)
    head.logit_shift.bias.fill_(-0.2)
    model.save_pretrained(folder)
    return model


def save_clip_tokenizer(folder: Path) -> None:
    """CLIP's vocabulary as the published checkpoints hold it: vocab.json and merges.txt."""
    import json

    import open_clip

    clip = open_clip.SimpleTokenizer()
    folder.mkdir(exist_ok=True)
    published = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    vocabulary = {published.get(token, token): i for token, i in clip.encoder.items()}
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    merges = [" ".join(pair) for pair, _ in sorted(clip.bpe_ranks.items(), key=lambda item: item[1])]
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")
