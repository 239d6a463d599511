"""What computes a network: PyTorch, its compiler, ONNX Runtime or OpenVINO."""

from pathlib import Path

from owl_swin.errors import ConfigError

# "auto" is PyTorch for weights, and for an exported folder what it was written for.
RUNTIMES = ("auto", "torch", "compile", "onnx", "openvino")
GRAPH_RUNTIMES = ("onnx", "openvino")
# In an exported folder, what the folder says of itself.
SPEC = "spec.json"


def check_runtime(runtime: str) -> str:
    """One of RUNTIMES; another name raises ConfigError."""
    if runtime not in RUNTIMES:
        raise ConfigError(f"runtime must be one of {', '.join(RUNTIMES)}, got {runtime!r}")
    return runtime


def is_exported(place: str | Path) -> bool:
    """Whether this is a folder that was exported, by this version or another."""
    try:
        return (Path(place) / SPEC).is_file()
    except (OSError, ValueError):
        return False
