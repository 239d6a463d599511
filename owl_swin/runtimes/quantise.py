"""Graphs whose matrix products count in 8 bits: NNCF's post-training quantisation, calibrated on photographs."""

import contextlib
import logging
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from PIL import Image

from owl_swin.errors import ConfigError, ImageError, MissingExtraError
from owl_swin.frame import HW
from owl_swin.image import ImageSource, open_image, open_reduced
from owl_swin.runtimes.frames import StatedFrames
from owl_swin.runtimes.openvino import kept_signal_stack
from owl_swin.runtimes.spec import ExportSpec

logger = logging.getLogger("owl_swin")

# So many photographs say what values there are; more take time and change little.
MOST_PHOTOGRAPHS = 128


def check_installed() -> None:
    """Where NNCF or OpenVINO is not installed, raises MissingExtraError."""
    try:
        import_nncf()
        import openvino  # noqa: F401
    except ImportError:
        raise MissingExtraError("quantisation to int8", "openvino") from None


def quantised(graph: bytes, spec: ExportSpec, size: HW | None, photographs: Sequence[ImageSource]) -> bytes | Any:
    """An ONNX graph of pictures in frames of ``size`` (None: of all) with matrix products of int8, as ONNX again or,
    for OpenVINO, as its model; photographs none of which can be read raise ConfigError."""
    nncf, kept = import_nncf(), dict[str, list[str]]()
    pixels = calibration_pixels(spec, size, photographs)
    if spec.runtime == "onnx":
        import onnx

        model = onnx.load_model_from_string(graph)
        kept = {"names": [node.name for node in model.graph.node if _is_depthwise(node)]}
    else:
        import openvino

        with kept_signal_stack():
            model = openvino.Core().read_model(graph)
        kept = {"types": ["GroupConvolution"]}
    nncf.set_log_level(logging.ERROR)
    with contextlib.redirect_stdout(sys.stderr), kept_signal_stack():  # where its bars belong
        made = nncf.quantize(
            model,
            nncf.Dataset(pixels, lambda array: {"pixels": array}),
            subset_size=len(pixels),
            model_type=nncf.ModelType.TRANSFORMER,
            # Depthwise convolutions lose most of what they say in 8 bits, and take little of the time.
            ignored_scope=nncf.IgnoredScope(**kept, validate=False),
            # Smoothing looks at every place of a frame apart, and a graph for all frames has none that stay.
            advanced_parameters=nncf.AdvancedQuantizationParameters(
                smooth_quant_alphas=nncf.AdvancedSmoothQuantParameters(matmul=-1, convolution=-1)
            ),
        )
    return made.SerializeToString() if spec.runtime == "onnx" else made


def _is_depthwise(node: Any) -> bool:
    return node.op_type == "Conv" and any(one.name == "group" and one.i > 1 for one in node.attribute)


def calibration_pixels(spec: ExportSpec, size: HW | None, photographs: Sequence[ImageSource]) -> list[np.ndarray]:
    """Photographs [1, 3, H, W] as the network reads them, all in one frame: NNCF joins what it sees of each. Without a
    ``size`` it is the frame that most of them have."""
    step = max(1, len(photographs) // MOST_PHOTOGRAPHS)
    own, image_size = spec.preprocess, spec.network.image_size
    side = (own.oversampling or 0) * max(size or (image_size,))

    def decoded(photograph: ImageSource) -> Image.Image:
        return open_reduced(photograph, side)[0] if side else open_image(photograph)

    chosen = photographs[::step][:MOST_PHOTOGRAPHS]

    def opened(*, said: bool) -> Iterator[Image.Image]:  # one at a time: together they may be larger than the memory
        for photograph in chosen:
            try:
                yield decoded(photograph)
            except ImageError as error:
                if said:
                    logger.warning(f"left out of calibration: {error}")

    stated = size is not None
    if size is None:
        frames = [own.frame((one.height, one.width), image_size).model_hw for one in opened(said=True)]
        size = Counter(frames).most_common(1)[0][0] if frames else (image_size, image_size)
    shown = StatedFrames(own, (size,)) if spec.network.any_size else own
    pixels = []
    for one in opened(said=stated):
        frame = shown.frame((one.height, one.width), max(size))
        pixels.append(shown.normalise(shown.pixels(one, frame)[None]).numpy())
    if not pixels:
        raise ConfigError("int8 needs photographs to calibrate on, and there is none that can be read")
    return pixels


def import_nncf() -> Any:
    """The package, told to send nothing to its makers, which it would otherwise do unasked."""
    before = os.environ.get("NNCF_CI")
    os.environ["NNCF_CI"] = "1"
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # which it asks for a compiler
    try:
        import nncf
    finally:
        if before is None:
            del os.environ["NNCF_CI"]
        else:
            os.environ["NNCF_CI"] = before
    return nncf
