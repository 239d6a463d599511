"""Networks that the detection benchmark times: ours and those of the libraries that people would take instead.

All have random weights in the published sizes, or with ``tiny`` so small that a whole benchmark takes seconds. None is
downloaded.
"""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from owl_swin.config import HeadsConfig, ModelConfig, SwinConfig, TextConfig
from owl_swin.errors import ConfigError
from owl_swin.frame import Frame

HW = tuple[int, int]
# Embedding widths, blocks and heads of Swin-T and Swin-B (arXiv:2103.14030).
SWIN = {"T": (96, (2, 2, 6, 2), (3, 6, 12, 24)), "B": (128, (2, 2, 18, 2), (4, 8, 16, 32))}
TINY_HW = (128, 128)
TINY_SWIN = (24, (1, 1, 1, 1), (1, 2, 4, 8))
# "a cat" between CLIP's start and end, and "a cat." between BERT's.
CLIP_IDS, BERT_IDS = (49406, 320, 2368, 49407), (101, 1037, 4937, 1012, 102)


@dataclass(frozen=True)
class Pass:
    """The way of pictures through a system, in three parts that are timed apart."""

    before: Callable[[], Any]
    network: Callable[[Any], Any]
    after: Callable[[Any], Any]


@dataclass(frozen=True)
class System:
    """``begin(hw, batch, dtype)`` makes a Pass for pictures of ``hw`` pixels. ``own_hw`` is the size that a network was
    made for, None where any will do."""

    begin: Callable[[HW, int, torch.dtype], Pass]
    own_hw: HW | None = None
    module: nn.Module | None = None


def build(name: str, *, device: str = "cpu", tiny: bool = False) -> System:
    """The system of this name; one of a library that is not installed raises ImportError."""
    torch.manual_seed(0)
    if name not in SYSTEMS:
        raise ConfigError(f"no system is called {name!r}; there are {', '.join(SYSTEMS)}")
    return SYSTEMS[name](torch.device(device), tiny)


def pictures(hw: HW, batch: int) -> list[Image.Image]:
    """Photographs of nothing, which cost what photographs cost."""
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (batch, 12, 16, 3), dtype=np.uint8)
    return [Image.fromarray(one).resize(hw[::-1], Image.Resampling.BICUBIC) for one in small]


def swin_config(size: str, tiny: bool) -> SwinConfig:
    """Swin in one of the paper's sizes."""
    dim, depths, heads = TINY_SWIN if tiny else SWIN[size]
    return SwinConfig(embed_dim=dim, depths=depths, num_heads=heads, window_size=7)


# --- Image encoders alone ------------------------------------------------------------------------------------------


def _encoder(make: Callable[[SwinConfig], nn.Module], size: str = "T") -> Callable[[torch.device, bool], System]:
    def built(device: torch.device, tiny: bool) -> System:
        network = make(swin_config(size, tiny)).eval().to(device)

        def begin(hw: HW, batch: int, dtype: torch.dtype) -> Pass:
            pixels = torch.randn(batch, 3, *hw, device=device)

            def run(_: Any) -> Any:
                with torch.inference_mode(), torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                    return network(pixels)

            return Pass(lambda: None, run, lambda out: out)

        return System(begin, module=network)

    return built


def _own_swin(config: SwinConfig) -> nn.Module:
    from owl_swin.models.swin import SwinEncoder

    return SwinEncoder(config)


def _timm_swin(config: SwinConfig) -> nn.Module:
    from timm.models.swin_transformer import SwinTransformer

    return SwinTransformer(
        num_classes=0,
        embed_dim=config.embed_dim,
        depths=config.depths,
        num_heads=config.num_heads,
        window_size=config.window_size,
        strict_img_size=False,
    )


def _torchvision_swin(config: SwinConfig) -> nn.Module:
    from torchvision.models.swin_transformer import SwinTransformer

    window = [config.window_size] * 2
    return SwinTransformer([4, 4], config.embed_dim, list(config.depths), list(config.num_heads), window, num_classes=1)


def _transformers_swin(config: SwinConfig) -> nn.Module:
    import transformers

    own = transformers.SwinConfig(
        embed_dim=config.embed_dim,
        depths=list(config.depths),
        num_heads=list(config.num_heads),
        window_size=config.window_size,
    )
    return transformers.SwinModel(own, add_pooling_layer=False)


def _openvino_encoder(device: torch.device, tiny: bool) -> System:
    """Our encoder as a graph of OpenVINO, one for the frame that is timed; of the processor alone."""
    from owl_swin.files import write_bytes
    from owl_swin.runtimes import openvino
    from owl_swin.runtimes.export import traced

    network = _own_swin(swin_config("T", tiny)).eval()

    def begin(hw: HW, batch: int, dtype: torch.dtype) -> Pass:
        pixels = torch.randn(batch, 3, *hw)
        stages = [f"stage_{i + 1}" for i in range(len(network(pixels)))]
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "encoder.onnx"
            write_bytes(path, traced(network, pixels, "pixels", stages, {}), what="a graph")
            run = openvino.open_graph(path)
        return Pass(pixels.numpy, run, lambda out: out)

    return System(begin)


# --- Detectors -----------------------------------------------------------------------------------------------------


def _own_detector(size: str) -> Callable[[torch.device, bool], System]:
    def built(device: torch.device, tiny: bool) -> System:
        from owl_swin.detector import Detector

        if size == "nano":
            return own_system(Detector.from_pretrained("nano", device=str(device), text_cache=False))
        return own_system(Detector(_own_network(size, tiny), device=str(device)))

    return built


def _own_network(size: str, tiny: bool) -> Any:
    """OwlSwin with random weights."""
    from owl_swin.models.owl_swin import OwlSwin

    text = TextConfig(16, 1, 2, 16) if tiny else TextConfig(context_length=16)
    config = ModelConfig(
        name=f"owl_swin_{size}",
        embed_dim=16 if tiny else 512,
        image_size=64 if tiny else 960,
        image=swin_config(size, tiny),
        text=text,
        heads=HeadsConfig(width=16 if tiny else 256),
    )
    return OwlSwin(config).eval()


def _exported_detector(runtime: str, *, int8: bool = False) -> Callable[[torch.device, bool], System]:
    """Swin-T as ``owl-swin export`` writes it, a graph for the frame that is timed; of the processor alone."""

    def built(device: torch.device, tiny: bool) -> System:
        from owl_swin.detector import Detector
        from owl_swin.families.owl_swin import pretrained
        from owl_swin.runtimes.export import export

        network = pretrained(_own_network("T", tiny))

        def begin(hw: HW, batch: int, dtype: torch.dtype) -> Pass:
            frame = Frame.fit(hw, max(hw)).model_hw
            with tempfile.TemporaryDirectory() as folder:  # a graph is in memory once it was used
                place = Path(folder) / "T"
                export(network, place, runtime, sizes=[frame], photographs=pictures(hw, 2) if int8 else ())
                detector = Detector.from_pretrained(place, device="cpu", text_cache=False)
                one = own_system(detector).begin(hw, batch, dtype)
                one.after(one.network(one.before()))
            return one

        return System(begin)

    return built


def own_system(given: Any) -> System:
    """One of our detectors, asked for one name whose text was encoded before."""
    from owl_swin.encoder import Encoder

    def begin(hw: HW, batch: int, dtype: torch.dtype) -> Pass:
        detector = given if dtype == torch.float32 else given.to(dtype=dtype)  # it takes no autocast from outside
        queries = detector.encode_queries(["a cat"])
        encoder: Encoder = detector._encoder  # the benchmark of the detector's own parts
        images = pictures(hw, batch)
        side = max(hw)

        def before() -> Any:
            return [detector.prepare(image, image_size=side) for image in images]

        def network(prepared: Any) -> Any:
            return encoder.encode(prepared, batch)

        def after(encoded: Any) -> Any:
            return [detector.detect(one, queries) for one in encoded]

        return Pass(before, network, after)

    return System(begin)


def _transformers_detector(
    config: Any, model: str, processor: Any, hw: HW, ids: Callable[[int], dict[str, Tensor]]
) -> Callable[[torch.device, bool], System]:
    """A detector of transformers with one name, at the size it was made for."""

    def built(device: torch.device, tiny: bool) -> System:
        import transformers

        own, own_hw = config(transformers, tiny), TINY_HW if tiny and model != "OmDetTurboForObjectDetection" else hw
        network = getattr(transformers, model)(own).eval().to(device)
        prepare = processor(transformers, own_hw)

        def begin(_: HW, batch: int, dtype: torch.dtype) -> Pass:
            images = pictures(own_hw, batch)
            asked = {key: value.to(device) for key, value in ids(batch).items()}

            def before() -> Any:
                return prepare(images=images, return_tensors="pt")["pixel_values"].to(device)

            def run(pixels: Any) -> Any:
                with torch.inference_mode(), torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                    return network(pixel_values=pixels, **asked)

            # What comes after differs in form between them and is cheap: scores of all boxes and the best of them.
            def after(out: Any) -> Any:
                logits = out.logits if hasattr(out, "logits") else out.decoder_class_logits
                return logits.float().sigmoid().amax(-1).topk(min(100, logits.shape[1]))

            return Pass(before, run, after)

        return System(begin, own_hw, network)

    return built


def _owl_config(kind: str, patch: int, side: int) -> Callable[[Any, bool], Any]:
    def made(transformers: Any, tiny: bool) -> Any:
        vision = {"image_size": TINY_HW[0] if tiny else side, "patch_size": patch}
        if tiny:
            small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
            return getattr(transformers, kind)(text_config=small, vision_config=vision | small, projection_dim=32)
        return getattr(transformers, kind)(vision_config=vision)

    return made


def _clip_ids(batch: int) -> dict[str, Tensor]:
    row = torch.tensor([CLIP_IDS]).expand(batch, -1)
    return {"input_ids": row, "attention_mask": torch.ones_like(row)}


def _bert_ids(batch: int) -> dict[str, Tensor]:
    row = torch.tensor([BERT_IDS]).expand(batch, -1)
    return {"input_ids": row, "attention_mask": torch.ones_like(row), "token_type_ids": torch.zeros_like(row)}


def _omdet_ids(batch: int) -> dict[str, Tensor]:
    row = torch.tensor([CLIP_IDS]).expand(batch, -1)
    mask = torch.ones_like(row)
    asked = {"classes_input_ids": row, "classes_attention_mask": mask}
    return {
        **asked,
        "tasks_input_ids": row,
        "tasks_attention_mask": mask,
        "classes_structure": torch.ones(batch, dtype=torch.long),
    }


def _grounding_config(transformers: Any, tiny: bool) -> Any:
    small: dict[str, Any] = {}
    if tiny:
        text = transformers.BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
        small = {"text_config": text, "d_model": 32, "encoder_layers": 1, "decoder_layers": 2, "num_queries": 10}
        small |= {"encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "encoder_attention_heads": 2}
        small |= {"decoder_attention_heads": 2, "num_feature_levels": 4}
    dim, depths, heads = TINY_SWIN if tiny else SWIN["T"]
    swin = transformers.SwinConfig(
        embed_dim=dim, depths=list(depths), num_heads=list(heads), window_size=7, out_indices=[2, 3, 4]
    )
    return transformers.GroundingDinoConfig(backbone_config=swin, **small)


def _omdet_config(transformers: Any, tiny: bool) -> Any:
    config = transformers.OmDetTurboConfig()  # with timm's Swin-T inside
    if tiny:
        config.num_queries, config.decoder_num_layers, config.text_config.num_hidden_layers = 10, 1, 1
    return config


SYSTEMS: dict[str, Callable[[torch.device, bool], System]] = {
    "Swin-T owl_swin": _encoder(_own_swin),
    "Swin-T timm": _encoder(_timm_swin),
    "Swin-T torchvision": _encoder(_torchvision_swin),
    "Swin-T transformers": _encoder(_transformers_swin),
    "Swin-T owl_swin (OpenVINO)": _openvino_encoder,
    "owl_swin nano": _own_detector("nano"),
    "owl_swin T": _own_detector("T"),
    "owl_swin B": _own_detector("B"),
    "owl_swin T (ONNX Runtime)": _exported_detector("onnx"),
    "owl_swin T (OpenVINO)": _exported_detector("openvino"),
    "owl_swin T (OpenVINO int8)": _exported_detector("openvino", int8=True),
    "OWL-ViT B/32": _transformers_detector(
        _owl_config("OwlViTConfig", 32, 768),
        "OwlViTForObjectDetection",
        lambda t, hw: t.OwlViTImageProcessor(size={"height": hw[0], "width": hw[1]}),
        (768, 768),
        _clip_ids,
    ),
    "OWL-ViT B/16": _transformers_detector(
        _owl_config("OwlViTConfig", 16, 768),
        "OwlViTForObjectDetection",
        lambda t, hw: t.OwlViTImageProcessor(size={"height": hw[0], "width": hw[1]}),
        (768, 768),
        _clip_ids,
    ),
    "OWLv2 B/16": _transformers_detector(
        _owl_config("Owlv2Config", 16, 960),
        "Owlv2ForObjectDetection",
        lambda t, hw: t.Owlv2ImageProcessor(size={"height": hw[0], "width": hw[1]}),
        (960, 960),
        _clip_ids,
    ),
    "GroundingDINO-T": _transformers_detector(
        _grounding_config,
        "GroundingDinoForObjectDetection",
        lambda t, hw: t.GroundingDinoImageProcessor(size={"shortest_edge": min(hw), "longest_edge": max(hw)}),
        (800, 1066),
        _bert_ids,
    ),
    "OmDet-Turbo-T": _transformers_detector(
        _omdet_config,
        "OmDetTurboForObjectDetection",
        lambda t, hw: t.DetrImageProcessor(size={"height": hw[0], "width": hw[1]}),
        (640, 640),
        _omdet_ids,
    ),
}
