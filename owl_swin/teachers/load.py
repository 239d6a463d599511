"""Teachers by name: a model of ours, of the OWL family, or of transformers."""

from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from owl_swin.detector import Detector
from owl_swin.errors import CheckpointError, brief
from owl_swin.families import OWN
from owl_swin.families.hub import is_hub_name, local_place
from owl_swin.families.owl_vit import FAMILIES
from owl_swin.files import read_json
from owl_swin.teachers.detector import KEPT_TEXTS, DetectorTeacher
from owl_swin.teachers.teacher import Teacher
from owl_swin.teachers.tiled import Tiled
from owl_swin.teachers.transformers_model import load_transformers
from owl_swin.tiling import Tiles


@dataclass(frozen=True, slots=True)
class Kind:
    """How models of a kind are loaded: the class here, and transformers' own with the settings of the model."""

    module: str
    name: str
    model_class: str = "AutoModelForZeroShotObjectDetection"
    processor_class: str = "AutoProcessor"
    settings: dict[str, Any] = field(default_factory=dict)


# By what config.json calls them; LLMDet is published as an MM-GroundingDINO, and SAM 3 within its video model.
KINDS = {
    "grounding-dino": Kind("grounding_dino", "GroundingDino"),
    "mm-grounding-dino": Kind("grounding_dino", "GroundingDino"),
    # The embeddings of names are kept by the model itself.
    "omdet-turbo": Kind("omdet_turbo", "OmDetTurbo", settings={"cache_size": KEPT_TEXTS}),
    "sam3": Kind("sam3", "Sam3", "Sam3Model", "Sam3Processor"),
    "sam3_video": Kind("sam3", "Sam3", "Sam3Model", "Sam3Processor"),
}


def load_teacher(
    source: str | Path,
    *,
    device: str = "auto",
    dtype: str | None = None,
    image_size: int | None = None,
    tiles: Tiles | None = None,
    rivals: float | None = None,
) -> Teacher:
    """The teacher of a name, file, folder, or model "user/model" of the hub; what cannot be had or read raises
    CheckpointError.

    ``image_size`` is the longer side in pixels that pictures are brought to; QueryError where the model knows another
    one only. ``rivals`` is that of ``Detector.detect``, for models whose names compete; None: the model's own.
    """
    folder = Path(local_place(source, check=lambda folder: _check_kind(folder, source)))
    kind = _check_kind(folder, source)
    if kind not in KINDS:
        detector = Detector.from_pretrained(source, device=device, dtype=dtype, image_size=image_size)
        return DetectorTeacher(detector, tiles=tiles, rivals=rivals)
    how = KINDS[kind]
    make = getattr(import_module(f"owl_swin.teachers.{how.module}"), how.name)
    name = str(source) if is_hub_name(source) else folder.resolve().name
    classes = how.model_class, how.processor_class
    loaded = load_transformers(
        folder, name, kind, make, classes, device=device, dtype=dtype, image_size=image_size, **how.settings
    )
    return loaded if tiles is None else Tiled(loaded, tiles)


def _check_kind(folder: Path, source: str | Path) -> str:
    """The kind of a model, of those that can label; "" where nothing says it."""
    kind = kind_of(folder)
    known = (OWN, *FAMILIES, *KINDS)
    if kind and kind not in known:
        raise CheckpointError(f"holds a model of the kind {brief(kind)}; teachers are {', '.join(known)}", of=source)
    return kind


def kind_of(folder: Path) -> str:
    """What config.json says that the model is; "" where there is none."""
    path = folder / "config.json"
    try:
        content = read_json(path) if path.is_file() else {}
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read as JSON ({error})") from None
    return str(content.get("model_type", "")) if isinstance(content, dict) else ""
