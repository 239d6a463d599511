"""Exported folders become what a Detector takes."""

from collections.abc import Callable, Sequence
from pathlib import Path

from torch import Tensor

from owl_swin.errors import ConfigError, MissingExtraError
from owl_swin.families.owl_vit import FolderTokenizer
from owl_swin.models.network import Pretrained
from owl_swin.runtimes import is_exported, onnx, openvino
from owl_swin.runtimes.frames import StatedFrames
from owl_swin.runtimes.network import GraphNetwork
from owl_swin.runtimes.spec import ExportSpec, read_spec
from owl_swin.tokenizer import get_tokenizer

MODULES = {"onnx": onnx, "openvino": openvino}


def load_exported(folder: Path, runtime: str = "auto") -> Pretrained:
    """The model of a folder that ``runtimes.export`` wrote, in a runtime that is installed.

    A folder that is damaged or of another version raises CheckpointError, a runtime that cannot run it ConfigError, and
    one that is not installed MissingExtraError.
    """
    if not is_exported(folder):
        raise ConfigError(
            f"is no exported model, which the runtime {runtime} needs; write one with "
            f"`owl-swin export {folder} --to FOLDER --runtime {runtime}` and load that folder",
            of=folder,
        )
    spec = read_spec(folder)
    module = MODULES[_chosen(spec, runtime, folder)]
    module.check_installed()
    frames = StatedFrames(spec.preprocess, spec.sizes) if spec.sizes and spec.network.any_size else spec.preprocess
    return Pretrained(GraphNetwork(folder, module.open_graph), frames, _tokenizer(spec, folder), spec.card)


def _chosen(spec: ExportSpec, runtime: str, folder: Path) -> str:
    able = ("onnx", "openvino") if spec.runtime == "onnx" else ("openvino",)
    if runtime == "auto":
        return _first_installed(able)
    if runtime not in able:
        raise ConfigError(
            f"holds graphs for the runtime {' or '.join(able)}, and not for {runtime!r}; load the model that it was "
            "exported from, or export that again",
            of=folder,
        )
    return runtime


def _first_installed(able: Sequence[str]) -> str:
    for runtime in able:
        try:
            MODULES[runtime].check_installed()
        except MissingExtraError:
            continue
        return runtime
    return able[0]


def _tokenizer(spec: ExportSpec, folder: Path) -> Callable[[Sequence[str]], Tensor]:
    if spec.tokenizer == "file":
        return FolderTokenizer(folder, spec.context_length)
    return get_tokenizer(spec.context_length, "" if spec.tokenizer == "clip" else spec.tokenizer)
