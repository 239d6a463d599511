"""spec.json: what an exported folder says of itself, so that it can be used without the model that it was made of."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from owl_swin.config import from_mapping
from owl_swin.errors import CheckpointError, ConfigError, brief
from owl_swin.families.owl_preprocess import Owlv2Preprocess, OwlVitPreprocess
from owl_swin.files import read_json
from owl_swin.frame import HW, PIXEL_MEAN, PIXEL_STD, Preprocess, SwinPreprocess
from owl_swin.models.network import Spec
from owl_swin.postprocess import check_fraction
from owl_swin.runtimes import GRAPH_RUNTIMES, SPEC

FORMATS = "owl_swin-export-"
FORMAT = f"{FORMATS}1"
PREPROCESSES: dict[str, Any] = {"swin": SwinPreprocess, "owlvit": OwlVitPreprocess, "owlv2": Owlv2Preprocess}


@dataclass(frozen=True, slots=True)
class ExportSpec:
    """An exported folder. ``sizes`` are the frames [height, width] that there are graphs for; none: one graph for all
    frames whose sides are multiples of 32.

    ``tokenizer`` is "clip", "file" (the folder's own), or the name of a text tower of open_clip.
    """

    runtime: str
    precision: str
    network: Spec
    preprocess: Preprocess
    sizes: tuple[HW, ...]
    tokenizer: str
    context_length: int
    card: Mapping[str, Any]

    @property
    def suffix(self) -> str:
        """How the names of graphs end."""
        return ".onnx" if self.runtime == "onnx" else ".xml"

    def image_graph(self, size: HW | None) -> str:
        """Name of the file that encodes frames of a size; None: of all."""
        return f"image{self.suffix}" if size is None else f"image_{size[0]}x{size[1]}{self.suffix}"

    def mask_graph(self, size: HW | None) -> str:
        """Name of the file that encodes frames of a size with what masks are made of, in a model that makes some."""
        return self.image_graph(size).replace("image", "image_masks", 1)

    @property
    def picture_graphs(self) -> list[str]:
        """Names of the files that encode pictures without what masks are made of."""
        return [self.image_graph(size) for size in self.sizes or (None,)]

    @property
    def mask_graphs(self) -> list[str]:
        """Names of those that encode them with it; whoever wants boxes alone reads none."""
        return [self.mask_graph(size) for size in self.sizes or (None,)] if self.network.has_masks else []

    @property
    def text_graph(self) -> str:
        """Name of the file that encodes texts."""
        return f"text{self.suffix}"

    def to_json(self) -> dict[str, Any]:
        """What spec.json holds."""
        kind = next(kind for kind, made in PREPROCESSES.items() if isinstance(self.preprocess, made))
        mean, std = (getattr(self.preprocess, name, of) for name, of in (("mean", PIXEL_MEAN), ("std", PIXEL_STD)))
        return {
            "format": FORMAT,
            "runtime": self.runtime,
            "precision": self.precision,
            "image_graphs": self.picture_graphs,
            "mask_graphs": self.mask_graphs,
            "text_graph": self.text_graph,
            "pixels": {
                "layout": "RGB, [batch, 3, height, width], (value / 255 - mean) / std",
                "mean": mean,
                "std": std,
            },
            "sizes": [list(size) for size in self.sizes],
            "tokenizer": self.tokenizer,
            "context_length": self.context_length,
            "preprocess": {"kind": kind, **asdict(self.preprocess)},  # type: ignore[call-overload]
            "network": asdict(self.network),
            "card": dict(self.card),
        }


def exported_files(folder: Path) -> set[str]:
    """Names of the files of an export, by this version or another; of a folder that is none there are none."""
    try:
        said = read_json(folder / SPEC)
        if not said["format"].startswith(FORMATS):
            return set()
        graphs = [*said["image_graphs"], *said.get("mask_graphs", []), said["text_graph"]]
        return {SPEC, "tokenizer.json", *graphs, *(name.removesuffix(".xml") + ".bin" for name in graphs)}
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return set()


def read_spec(folder: Path) -> ExportSpec:
    """What the folder says of itself; one that is damaged, or of another version, raises CheckpointError."""
    try:
        said = read_json(folder / SPEC)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot be read ({error})", of=folder / SPEC) from None
    version = said.get("format") if isinstance(said, dict) else None
    if version != FORMAT:
        raise CheckpointError(
            f"this export has the format {brief(version)}, and this version of owl_swin reads {FORMAT!r}; "
            "write it again with `owl-swin export`",
            of=folder,
        )
    try:
        given = dict(said["preprocess"])
        made = PREPROCESSES[given.pop("kind")]
        network = from_mapping(Spec, said["network"], where=SPEC)
        check_fraction("nms_iou", network.nms_iou)
        check_fraction("rivals", network.rivals)
        spec = ExportSpec(
            runtime=str(said["runtime"]),
            precision=str(said["precision"]),
            network=network,
            preprocess=made(**{key: tuple(v) if isinstance(v, list) else v for key, v in given.items()}),
            sizes=tuple((int(height), int(width)) for height, width in said["sizes"]),
            tokenizer=str(said["tokenizer"]),
            context_length=int(said["context_length"]),
            card=dict(said["card"]),
        )
    except (KeyError, TypeError, ValueError, ConfigError) as error:
        raise CheckpointError(
            f"does not say what a model needs ({type(error).__name__}: {error})", of=folder / SPEC
        ) from None
    if spec.runtime not in GRAPH_RUNTIMES:
        raise CheckpointError(f"was written for the runtime {brief(spec.runtime)}, which is not known", of=folder)
    lost = [name for name in _files(spec) if not (folder / name).is_file()]
    if lost:
        raise CheckpointError(f"{lost[0]} is not there, as after a broken copy; export it again", of=folder)
    return spec


def _files(spec: ExportSpec) -> list[str]:
    graphs = [*spec.picture_graphs, *spec.mask_graphs, spec.text_graph]
    if spec.runtime == "openvino":
        graphs += [name.removesuffix(".xml") + ".bin" for name in graphs]
    return graphs
