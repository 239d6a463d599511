"""Graphs in OpenVINO, which reads its own files and those of ONNX."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from owl_swin.errors import MissingExtraError
from owl_swin.runtimes.network import Graph


def check_installed() -> None:
    """Where OpenVINO is not installed, raises MissingExtraError."""
    try:
        import openvino  # noqa: F401
    except ImportError:
        raise MissingExtraError("the runtime openvino", "openvino") from None


def open_graph(path: Path) -> Graph:
    """The graph of an .xml or .onnx file, computed with as many threads as PyTorch would take."""
    import openvino

    settings = {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
        # Also where the processor could do with less: results are those of float32.
        "INFERENCE_PRECISION_HINT": "f32",
    }
    compiled = openvino.Core().compile_model(str(path), "CPU", settings)

    def run(array: np.ndarray) -> list[np.ndarray]:
        answers = compiled.create_infer_request().infer([array])
        return [answers[output].copy() for output in compiled.outputs]

    return run


def write_graph(graph: Any, path: Path) -> None:
    """A model of OpenVINO, or the bytes of an ONNX graph, in OpenVINO's own files: ``path``, which ends in .xml,
    and its weights beside it."""
    import openvino

    model = openvino.Core().read_model(graph) if isinstance(graph, bytes) else graph
    try:
        openvino.save_model(model, path, compress_to_fp16=False)
    except RuntimeError as error:  # which also stands for a full disk
        raise OSError(str(error).strip().splitlines()[-1]) from None
