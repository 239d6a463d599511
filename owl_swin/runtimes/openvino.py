"""Graphs in OpenVINO, which reads its own files and those of ONNX."""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
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
    with kept_signal_stack():
        compiled = openvino.Core().compile_model(str(path), "CPU", settings)

    def run(array: np.ndarray) -> list[np.ndarray]:
        answers = compiled.create_infer_request().infer([array])
        return [answers[output].copy() for output in compiled.outputs]

    return run


def write_graph(graph: Any, path: Path) -> None:
    """A model of OpenVINO, or the bytes of an ONNX graph, in OpenVINO's own files: ``path``, which ends in .xml,
    and its weights beside it."""
    import openvino

    try:
        with kept_signal_stack():
            model = openvino.Core().read_model(graph) if isinstance(graph, bytes) else graph
            openvino.save_model(model, path, compress_to_fp16=False)
    except RuntimeError as error:  # which also stands for a full disk
        raise OSError(str(error).strip().splitlines()[-1]) from None


class _SignalStack(ctypes.Structure):
    """Linux' stack_t."""

    _fields_ = (("start", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


@contextmanager
def kept_signal_stack() -> Iterator[None]:
    """Within, OpenVINO may give this thread another stack for handlers of signals; afterwards it has its own again.

    OpenVINO sets one up for a compiled model and takes it away with it, but where of two models the one made first goes
    first, the thread is left with the stack of a model that is gone: the next signal, as Ctrl-C, ends the process by a
    segmentation fault (seen with OpenVINO 2026.4, on processors with AVX-512).
    """
    if sys.platform != "linux":
        yield
        return
    libc, own = ctypes.CDLL(None), _SignalStack()
    libc.sigaltstack(None, ctypes.byref(own))
    try:
        yield
    finally:
        libc.sigaltstack(ctypes.byref(own), None)  # refused where OpenVINO needs a larger one: then its own stays
