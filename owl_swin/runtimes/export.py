"""A model becomes a folder of graphs that says of itself all that is needed to use it.

Graphs are traced rather than made by torch.export: a trace follows the sides of a frame as numbers of the graph in
seconds, where torch.export reasons about them as symbols for minutes.
"""

import io
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from owl_swin.errors import ConfigError, MissingExtraError
from owl_swin.families.owl_preprocess import Owlv2Preprocess
from owl_swin.files import new_folder, write_bytes, write_json
from owl_swin.frame import FRAME_MULTIPLE, HW, MAX_FRAME_SIDE, Frame, SwinPreprocess, exemplar_side
from owl_swin.image import ImageSource
from owl_swin.models.network import MaskNetwork, Network, Pretrained
from owl_swin.models.owl_swin import OwlSwin
from owl_swin.runtimes import GRAPH_RUNTIMES, SPEC, openvino, quantise
from owl_swin.runtimes.load import MODULES
from owl_swin.runtimes.network import DENSE_OUTPUTS, IMAGE_OUTPUTS, MASK_OUTPUTS
from owl_swin.runtimes.spec import ExportSpec, exported_files
from owl_swin.runtimes.torch import CompiledNetwork
from owl_swin.tokenizer import Tokenizer

OPSET = 17
# Shapes of photographs, height to width, of a model whose graphs are each for one frame.
SHAPES = ((1, 1), (3, 4), (4, 3), (2, 3), (3, 2), (9, 16), (16, 9))
# What is traced where any frame will do.
TRACED_HW = (160, 96)


def export(
    pretrained: Pretrained,
    folder: Path,
    runtime: str = "onnx",
    *,
    sizes: Sequence[HW] = (),
    photographs: Sequence[ImageSource] = (),
    masks: bool = True,
) -> ExportSpec:
    """Writes the folder, whole or not at all; one that holds anything but an earlier export raises OwlSwinError.

    ``sizes``: frames (height, width), each of which gets a graph of its own, and the longer side of the largest becomes
    the size of pictures where no frame has the model's own; none: one graph for all frames, where the
    network allows it. Batches are of any size, and queries are no part of a graph. A network that makes masks gets for
    each frame a second graph, which gives what they are made of too, unless they are not wanted. With ``photographs``,
    matrix products of the graphs of pictures are quantised to int8 in the ranges that these show.
    """
    if runtime not in GRAPH_RUNTIMES:
        raise ConfigError(f"a model is exported for the runtime {' or '.join(GRAPH_RUNTIMES)}, got {runtime!r}")
    check_exporter()
    MODULES[runtime].check_installed()
    network = pretrained.network
    if isinstance(network, CompiledNetwork):
        pretrained = replace(pretrained, network=network.network)
        network = network.network
    if not isinstance(network, nn.Module):
        raise ConfigError("this model is an export already; export the model that it was made from")
    spec = export_spec(pretrained, runtime, sizes)
    if not masks:
        spec = replace(spec, network=replace(spec.network, has_masks=False))
    if photographs:
        quantise.check_installed()
        spec = replace(spec, precision="int8")
    with new_folder(folder, what="the exported model", own=exported_files, mark=SPEC) as part:
        for size in spec.sizes or (None,):
            kinds = {spec.image_graph(size): _ImageGraph(network)}
            if spec.network.has_masks:
                kinds[spec.mask_graph(size)] = _MaskGraph(network)
            for name, module in kinds.items():
                graph = _picture_graph(module, size)
                if photographs:
                    graph = quantise.quantised(graph, spec, size, photographs)
                _write(graph, part / name)
        _write(_text_graph(network, spec.context_length), part / spec.text_graph)
        pretrained.tokenize.save(part / "tokenizer.json")  # type: ignore[attr-defined]
        write_json(part / SPEC, spec.to_json())
    return spec


def check_exporter() -> None:
    """Where the package that writes graphs is not installed, raises MissingExtraError."""
    try:
        import onnx  # noqa: F401
    except ImportError:
        raise MissingExtraError("owl-swin export", "onnx") from None


def export_spec(pretrained: Pretrained, runtime: str, sizes: Sequence[HW]) -> ExportSpec:
    """What the folder of this model will say of itself; sizes that the model cannot have raise ConfigError."""
    network, preprocess = pretrained.network, pretrained.preprocess
    spec, tokenize = network.spec, pretrained.tokenize
    if isinstance(preprocess, Owlv2Preprocess):
        preprocess = replace(preprocess, content_only=False)
    if isinstance(network, OwlSwin):
        assert isinstance(preprocess, SwinPreprocess)
        follows = network.config.image.padding == "masked"
        chosen = tuple(check_size(size) for size in sizes) or (() if follows else photograph_sizes(spec.image_size))
        if chosen:
            sides = {max(size) for size in chosen}
            spec = replace(spec, image_size=spec.image_size if spec.image_size in sides else max(sides))
            side = exemplar_side(preprocess.stride)
            chosen = tuple(dict.fromkeys((*chosen, (side, side))))
    else:  # a ViT has its positions in one square
        chosen = ((spec.image_size, spec.image_size),)
        if sizes and tuple(sizes) != chosen:
            raise ConfigError(
                f"a model of the family {spec.family} is exported for its {chosen[0]} alone; leave out sizes"
            )
        spec = replace(spec, any_size=False)
    name = getattr(tokenize, "open_clip_name", "") or "clip" if isinstance(tokenize, Tokenizer) else "file"
    length = int(tokenize.context_length)  # type: ignore[attr-defined]
    return ExportSpec(runtime, "float32", spec, preprocess, chosen, name, length, pretrained.card)


def check_size(size: HW) -> HW:
    """A frame (height, width) of ours; one that is not whole multiples of 32, up to 4096, raises ConfigError."""
    if any(side % FRAME_MULTIPLE or not FRAME_MULTIPLE <= side <= MAX_FRAME_SIDE for side in size):
        raise ConfigError(
            f"sides of frames are multiples of {FRAME_MULTIPLE} from {FRAME_MULTIPLE} to {MAX_FRAME_SIDE}, got "
            f"{size[0]}x{size[1]}"
        )
    return size


def photograph_sizes(image_size: int) -> tuple[HW, ...]:
    """Frames (height, width) of photographs of the usual shapes whose longer side becomes ``image_size``."""
    return tuple(dict.fromkeys(Frame.fit(shape, image_size).model_hw for shape in SHAPES))


class _ImageGraph(nn.Module):
    outputs: tuple[str, ...] = IMAGE_OUTPUTS

    def __init__(self, network: Network):
        super().__init__()
        self.network = network

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        embeddings = self.network.encode_image(pixels)
        return tuple(getattr(embeddings, name) for name in IMAGE_OUTPUTS)


class _MaskGraph(_ImageGraph):
    outputs = (*IMAGE_OUTPUTS, *MASK_OUTPUTS, *(f"dense_{name}" for name in DENSE_OUTPUTS))

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        embeddings = cast(MaskNetwork, self.network).encode_with_masks(pixels)
        masks = embeddings.masks
        assert masks is not None
        return (
            *(getattr(embeddings, name) for name in IMAGE_OUTPUTS),
            *(getattr(masks, name) for name in MASK_OUTPUTS),
            *(getattr(masks.dense, name) for name in DENSE_OUTPUTS),
        )


class _TextGraph(nn.Module):
    def __init__(self, network: Network):
        super().__init__()
        self.network = network

    def forward(self, ids: Tensor) -> Tensor:
        return self.network.encode_text(ids)


def _picture_graph(module: _ImageGraph, size: HW | None) -> bytes:
    """The ONNX graph of pictures, for one frame or (None) for all."""
    axes = {name: {0: "batch"} for name in (*module.outputs, "pixels")}
    if size is None:
        other = {"image_embed": {}, "pixel_embeds": {2: "rows", 3: "columns"}, "pixels": {2: "height", 3: "width"}}
        axes = {name: axis | other.get(name, {1: "patches"}) for name, axis in axes.items()}
    pixels = torch.zeros(2, 3, *(size or TRACED_HW))
    return traced(module, pixels, "pixels", module.outputs, axes)


def _text_graph(network: Any, context_length: int) -> bytes:
    """The ONNX graph of texts."""
    ids = torch.zeros(2, context_length, dtype=torch.long)
    ids[:, 1] = 1  # somewhere the largest, where a text ends
    axes = {"ids": {0: "texts"}, "text_embeds": {0: "texts"}}
    return traced(_TextGraph(network), ids, "ids", ("text_embeds",), axes)


def traced(
    graph: nn.Module, example: Tensor, takes: str, gives: Sequence[str], axes: Mapping[str, Mapping[int, str]]
) -> bytes:
    """The ONNX graph of a module that takes one tensor, by the way of ``example`` through it."""
    out = io.BytesIO()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the tracer, which names every place where a number is made of a side
        torch.onnx.export(
            graph.eval(),
            (example,),
            out,  # type: ignore[arg-type]
            dynamo=False,
            opset_version=OPSET,
            input_names=[takes],
            output_names=list(gives),
            dynamic_axes=axes,
        )
    return out.getvalue()


def _write(graph: Any, path: Path) -> None:
    if path.suffix == ".onnx":
        write_bytes(path, graph, what="a graph")
    else:
        openvino.write_graph(graph, path)
