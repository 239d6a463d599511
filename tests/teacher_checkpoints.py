"""Small random checkpoints of transformers' open-vocabulary detectors, with processors and tokenizers, as it saves
them."""

import json
import string
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers.pre_tokenizers import ByteLevel

SWIN = {"embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 2, 4], "window_size": 4}
TEXT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
# The pictures that the small models see: shorter and longer side.
SHORT, LONG = 96, 160


def bert_tokenizer() -> transformers.BertTokenizer:
    """Words are their letters, but for "cat" and "dog"; what separates phrases has its ids of the published one."""
    vocab = {f"[unused{i}]": i for i in range(1040)}
    special = {"[PAD]": 0, "[UNK]": 100, "[CLS]": 101, "[SEP]": 102, "[MASK]": 103, ".": 1012, "?": 1029}
    letters = string.ascii_lowercase + string.digits
    words = ["cat", "dog", *letters, *(f"##{letter}" for letter in letters)]
    for token, i in {**special, **{word: 200 + i for i, word in enumerate(words)}}.items():
        del vocab[f"[unused{i}]"]
        vocab[token] = i
    return transformers.BertTokenizer(vocab=vocab)


def clip_tokenizer() -> transformers.CLIPTokenizer:
    """Words are their bytes; the end of a text has the highest id."""
    alphabet = sorted(ByteLevel.alphabet())
    tokens = [*alphabet, *(f"{letter}</w>" for letter in alphabet), "<|startoftext|>", "<|endoftext|>"]
    return transformers.CLIPTokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=[])


def randomised(model, seed: int):
    """Weights so large that pictures and texts differ clearly in the answers."""
    torch.manual_seed(seed)
    for name, parameter in model.eval().requires_grad_(False).named_parameters():
        if "norm" in name:
            parameter.add_(0.2 * torch.randn_like(parameter))
        elif parameter.ndim > 1:
            parameter.normal_(std=0.9 / parameter[0].numel() ** 0.5)
        else:
            parameter.normal_(std=0.1)
    return model


def save_grounding_dino(folder: Path, kind: str = "GroundingDino", seed: int = 0, max_text_len: int = 24) -> Path:
    config = getattr(transformers, f"{kind}Config")(
        backbone_config=transformers.SwinConfig(**SWIN, out_features=["stage2", "stage3", "stage4"]),
        text_config=transformers.BertConfig(**TEXT, vocab_size=1040),
        d_model=32,
        encoder_layers=1,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        num_queries=12,
        max_text_len=max_text_len,
    )
    randomised(getattr(transformers, f"{kind}ForObjectDetection")(config), seed).save_pretrained(folder)
    images = transformers.GroundingDinoImageProcessor(size={"shortest_edge": SHORT, "longest_edge": LONG})
    transformers.GroundingDinoProcessor(images, bert_tokenizer()).save_pretrained(folder)
    return folder


def save_omdet_turbo(folder: Path, seed: int = 0) -> Path:
    config = transformers.OmDetTurboConfig(
        backbone_config=transformers.SwinConfig(**SWIN, out_features=["stage2", "stage3", "stage4"]),
        use_timm_backbone=False,
        apply_layernorm_after_vision_backbone=False,  # which only timm's backbone needs
        text_config=transformers.CLIPTextConfig(
            **TEXT, vocab_size=514, max_position_embeddings=24, bos_token_id=512, eos_token_id=513
        ),
        image_size=64,
        num_queries=12,
        encoder_hidden_dim=32,
        decoder_hidden_dim=32,
        class_embed_dim=16,
        encoder_in_channels=[16, 32, 64],
        vision_features_channels=[32, 32, 32],
        encoder_attention_heads=2,
        decoder_num_heads=2,
        encoder_dim_feedforward=16,
        decoder_dim_feedforward=16,
        decoder_num_layers=1,
        task_encoder_hidden_dim=16,
        text_projection_in_dim=16,
        text_projection_out_dim=16,
    )
    randomised(transformers.OmDetTurboForObjectDetection(config), seed).save_pretrained(folder)
    images = transformers.DetrImageProcessor(size={"height": 64, "width": 64}, do_pad=False)
    transformers.OmDetTurboProcessor(images, clip_tokenizer()).save_pretrained(folder)
    return folder


def save_sam3(folder: Path, seed: int = 0) -> Path:
    small = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16, "num_layers": 1}
    config = transformers.Sam3Config(
        vision_config={
            "backbone_config": {
                "model_type": "sam3_vit_model",
                "hidden_size": 16,
                "intermediate_size": 16,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "image_size": 56,
                "patch_size": 14,
                "window_size": 2,
                "global_attn_indexes": [1],
                "pretrain_image_size": 56,
            },
            "fpn_hidden_size": 16,
            "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]],
        },
        text_config={
            **TEXT,
            "vocab_size": 514,
            "max_position_embeddings": 32,
            "bos_token_id": 512,
            "eos_token_id": 513,
        },
        geometry_encoder_config=small,
        detr_encoder_config=small,
        detr_decoder_config={**small, "num_queries": 12},
        mask_decoder_config={"hidden_size": 16, "num_attention_heads": 2},
    )
    randomised(transformers.Sam3Model(config), seed).save_pretrained(folder)
    images = transformers.Sam3ImageProcessor(size={"height": 56, "width": 56})
    transformers.Sam3Processor(images, clip_tokenizer()).save_pretrained(folder)
    return folder


def save_sam3_video(folder: Path, seed: int = 0) -> Path:
    """As SAM 3 is published: the detector within the model for video, with a tracker beside it."""
    save_sam3(folder, seed)
    detector = json.loads((folder / "config.json").read_text())
    config = {"model_type": "sam3_video", "architectures": ["Sam3VideoModel"], "detector_config": detector}
    (folder / "config.json").write_text(json.dumps(config))
    weights = {f"detector_model.{name}": value for name, value in load_file(folder / "model.safetensors").items()}
    weights["tracker_model.no_memory"] = torch.zeros(3)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    processor = json.loads((folder / "processor_config.json").read_text())
    processor |= {"processor_class": "Sam3VideoProcessor", "video_processor": {"video_processor_type": "Sam3Video"}}
    (folder / "processor_config.json").write_text(json.dumps(processor))
    return folder
