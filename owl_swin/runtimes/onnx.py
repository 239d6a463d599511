"""Graphs in ONNX Runtime."""

from pathlib import Path

import numpy as np
import torch

from owl_swin.errors import MissingExtraError
from owl_swin.runtimes.network import Graph


def check_installed() -> None:
    """Where ONNX Runtime is not installed, raises MissingExtraError."""
    try:
        import onnxruntime  # noqa: F401
    except ImportError:
        raise MissingExtraError("the runtime onnx", "onnx") from None


def open_graph(path: Path) -> Graph:
    """The graph of an .onnx file, computed with as many threads as PyTorch would take."""
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = torch.get_num_threads()
    # Threads that wait by spinning take the processor from the others of this process and of its neighbours.
    settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
    settings.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(path, settings, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has a class of its own for each of its codes
        raise RuntimeError(str(error)) from None
    name = session.get_inputs()[0].name

    def run(array: np.ndarray) -> list[np.ndarray]:
        return session.run(None, {name: array})

    return run
