"""The frozen settings of a model, and the reader that turns TOML into them.

A variant of a setting is ``dataclasses.replace(config, depths=(2, 2, 2, 2))``; nothing is edited in place.
"""

import dataclasses
import difflib
import json
import math
import tomllib
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from owl_swin.errors import ConfigError
from owl_swin.files import read_text

T = TypeVar("T")

PADDINGS = ("masked", "torchvision", "timm", "transformers", "timm_backbone", "transformers_backbone")
BOX_FORMS = ("patch", "owl")
TEXT_ACTIVATIONS = ("gelu", "quick_gelu")
UPSAMPLES = ("repeat", "expand")


@dataclass(frozen=True, slots=True)
class SwinConfig:
    """Swin Transformer (arXiv:2103.14030); the defaults are Swin-T.

    ``padding`` says what happens at the right and bottom edge when a feature map is no multiple of the window:
    "masked" (ours) keeps the filled-in patches out of the attention and shrinks windows to small maps;
    the others repeat what the library of that name does, for weights that come from there: alone, or as the backbone
    of a detector, whose windows do not shrink to small maps.

    ``stem``: "patch" is the paper's patch partition; the name of a convolutional network of timm makes a hybrid, where
    that network takes the place of the patch partition and of stages 1 and 2, whose ``depths`` are then 0.
    """

    stem: str = "patch"
    embed_dim: int = 96
    depths: tuple[int, ...] = (2, 2, 6, 2)
    num_heads: tuple[int, ...] = (3, 6, 12, 24)
    window_size: int = 7
    patch_size: int = 4
    mlp_ratio: float = 4.0
    drop_path_rate: float = 0.0
    norm_eps: float = 1e-5
    padding: str = "masked"

    def __post_init__(self) -> None:
        if len(self.depths) != len(self.num_heads) or not self.depths:
            raise ConfigError(
                f"image.depths and image.num_heads must have one number a stage, got {self.depths} and {self.num_heads}"
            )
        if self.stem != "patch" and (len(self.depths) != 4 or self.depths[:2] != (0, 0)):
            raise ConfigError(f"image.depths: with a stem, stages 1 and 2 have no blocks, got {self.depths}")
        for stage, heads in enumerate(self.num_heads):
            if heads < 1 or self.stage_dim(stage) % heads:
                raise ConfigError(f"image.num_heads: {heads} does not divide {self.stage_dim(stage)} channels")
        if self.padding not in PADDINGS:
            raise ConfigError(f"image.padding must be one of {', '.join(PADDINGS)}, got {self.padding!r}")
        first = 0 if self.stem == "patch" else 2
        if min(self.window_size, self.patch_size, self.embed_dim, *self.depths[first:]) < 1:
            raise ConfigError("image: embed_dim, depths, window_size and patch_size must be at least 1")
        if not (0 < self.mlp_ratio < math.inf and 0 < self.norm_eps < math.inf):
            raise ConfigError(
                f"image.mlp_ratio and image.norm_eps must be positive, got {self.mlp_ratio} and {self.norm_eps}"
            )
        if not 0 <= self.drop_path_rate < 1:
            raise ConfigError(f"image.drop_path_rate must be in [0, 1), got {self.drop_path_rate}")

    @property
    def first_stage(self) -> int:
        """The first stage, counted from 0, whose map the encoder gives: a stem starts with stride 8."""
        return 0 if self.stem == "patch" else 1

    def stage_dim(self, stage: int) -> int:
        """Channels of stage ``stage``, counted from 0."""
        return self.embed_dim * 2**stage

    def stage_stride(self, stage: int) -> int:
        """Side in input pixels of one token of stage ``stage``, counted from 0."""
        return self.patch_size * 2**stage


@dataclass(frozen=True, slots=True)
class TextConfig:
    """A CLIP text transformer. ``open_clip`` names a published tower instead (its sizes then come from open_clip).

    ``activation``: "gelu", or "quick_gelu" with which OpenAI trained CLIP, and OWL-ViT after it.
    """

    width: int = 512
    layers: int = 12
    heads: int = 8
    context_length: int = 77
    vocab_size: int = 49408
    open_clip: str = ""
    mlp_ratio: float = 4.0
    activation: str = "gelu"

    def __post_init__(self) -> None:
        if self.activation not in TEXT_ACTIVATIONS:
            raise ConfigError(f"text.activation must be one of {', '.join(TEXT_ACTIVATIONS)}, got {self.activation!r}")
        if not 0 < self.mlp_ratio < math.inf:
            raise ConfigError(f"text.mlp_ratio must be positive, got {self.mlp_ratio}")
        if min(self.width, self.layers, self.heads, self.vocab_size) < 1:
            raise ConfigError("text: width, layers, heads and vocab_size must be at least 1")
        if self.width % self.heads:
            raise ConfigError(f"text.heads: {self.heads} does not divide text.width {self.width}")
        if self.context_length < 3:
            raise ConfigError(f"text.context_length must be at least 3, got {self.context_length}")


@dataclass(frozen=True, slots=True)
class HeadsConfig:
    """The OWL heads on one grid of patch embeddings.

    ``stride`` is the side of a patch in input pixels; ``stages`` (counted from 1, as in the paper) are fused on it.
    ``box_form``: "patch" predicts centre and size in units of the stride, relative to the patch; "owl" adds logits
    to a prior over the whole picture (arXiv:2205.06230). ``upsample`` brings coarser stages to the grid: "repeat" gives
    all patches under a coarse one the same, "expand" a projection for each of their places (arXiv:2105.05537).
    ``blocks`` more let neighbours speak to one another before class, box and objectness are read of them; masks and
    the embedding of the whole picture are made of the patches before.
    """

    width: int = 256
    stride: int = 16
    stages: tuple[int, ...] = (3, 4)
    box_form: str = "patch"
    upsample: str = "repeat"
    blocks: int = 0

    def __post_init__(self) -> None:
        if self.upsample not in UPSAMPLES:
            raise ConfigError(f"heads.upsample must be one of {', '.join(UPSAMPLES)}, got {self.upsample!r}")
        if self.box_form not in BOX_FORMS:
            raise ConfigError(f"heads.box_form must be one of {', '.join(BOX_FORMS)}, got {self.box_form!r}")
        if self.width < 1:
            raise ConfigError(f"heads.width must be at least 1, got {self.width}")
        if self.blocks < 0:
            raise ConfigError(f"heads.blocks must not be negative, got {self.blocks}")
        if not self.stages or min(self.stages) < 1:
            raise ConfigError(f"heads.stages are counted from 1, got {self.stages}")


@dataclass(frozen=True, slots=True)
class MasksConfig:
    """The branch that makes masks of the patches of a model (models/masks.py).

    ``dim`` is the size of the space in which patches ask and pixels answer, ``width`` the channels of the map of
    stride 4 that the pixels are made of.
    """

    dim: int = 32
    width: int = 64

    def __post_init__(self) -> None:
        if min(self.dim, self.width) < 1:
            raise ConfigError(f"masks.dim and masks.width must be at least 1, got {self.dim} and {self.width}")


@dataclass(frozen=True, slots=True)
class CalibrationConfig:
    """What turns raw logits into those whose sigmoid is the share of right boxes: logit · scale + bias (Platt 1999).

    Apart for queries by text and by exemplar, and for what patches say of boxes and, ``map_``, of their own places in a
    semantic map; ``owl-swin eval calibrate`` fits it.
    """

    text_scale: float = 1.0
    text_bias: float = 0.0
    exemplar_scale: float = 1.0
    exemplar_bias: float = 0.0
    map_text_scale: float = 1.0
    map_text_bias: float = 0.0
    map_exemplar_scale: float = 1.0
    map_exemplar_bias: float = 0.0

    def __post_init__(self) -> None:
        for name, value in dataclasses.asdict(self).items():
            if not math.isfinite(value) or (name.endswith("scale") and value <= 0):
                kind = "positive" if name.endswith("scale") else "finite"
                raise ConfigError(f"calibration.{name} must be a {kind} number, got {value}")

    @property
    def of_maps(self) -> "CalibrationConfig":
        """What ``scoring.score`` reads for the places of patches in place of their boxes."""
        text, exemplar = (self.map_text_scale, self.map_text_bias), (self.map_exemplar_scale, self.map_exemplar_bias)
        return CalibrationConfig(*text, *exemplar)


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """One whole model. ``embed_dim`` is the size of the space that images, patches and queries share.

    ``nms_iou``, ``box_voting`` and ``rivals`` are what suits it, where a caller of detection says nothing else.
    ``masks`` None: the model finds boxes only.
    """

    name: str = "owl_swin_tiny"
    embed_dim: int = 512
    image_size: int = 640
    nms_iou: float = 0.5
    box_voting: bool = False
    rivals: float = 0.0
    image: SwinConfig = field(default_factory=SwinConfig)
    text: TextConfig = field(default_factory=TextConfig)
    heads: HeadsConfig = field(default_factory=HeadsConfig)
    calibration: CalibrationConfig = field(default_factory=CalibrationConfig)
    masks: MasksConfig | None = None

    def __post_init__(self) -> None:
        if max(self.heads.stages) > len(self.image.depths):
            raise ConfigError(f"heads.stages {self.heads.stages}: the encoder has {len(self.image.depths)} stages")
        if min(self.heads.stages) <= self.image.first_stage:
            raise ConfigError(f"heads.stages {self.heads.stages}: with a stem the first stage is 2")
        strides = [self.image.stage_stride(stage - 1) for stage in self.heads.stages]
        if self.heads.stride not in strides:
            raise ConfigError(
                f"heads.stride must be the stride of one of heads.stages {strides}, got {self.heads.stride}"
            )
        if self.embed_dim < 1:
            raise ConfigError(f"embed_dim must be at least 1, got {self.embed_dim}")
        if self.image_size < 32:
            raise ConfigError(f"image_size must be at least 32 pixels, got {self.image_size}")
        if not 0 <= self.nms_iou <= 1:
            raise ConfigError(f"nms_iou must lie in [0, 1], got {self.nms_iou}")
        if not 0 <= self.rivals <= 1:
            raise ConfigError(f"rivals must lie in [0, 1], got {self.rivals}")

    @property
    def exemplar_stride(self) -> int:
        """The stride that says how large an exemplar is shown: a stem's grid is finer than what its stages look at."""
        strides = [self.image.stage_stride(stage - 1) for stage in self.heads.stages]
        return self.heads.stride if self.image.stem == "patch" else max(strides)


def read_toml(path: str | Path, cls: type[T]) -> T:
    """Reads the file ``path`` into the frozen dataclass ``cls``; unknown keys and wrong kinds raise ConfigError."""
    return from_mapping(cls, read_mapping(path), where=str(path))


def read_mapping(path: str | Path) -> dict[str, Any]:
    """The plain values of a TOML file; one that cannot be read raises ConfigError."""
    try:
        return tomllib.loads(read_text(path))
    except OSError as error:
        raise ConfigError(f"{path}: cannot read this configuration file ({error.strerror or error})") from None
    except ValueError as error:  # tomllib's own, bytes that are no text, or NUL in the path
        raise ConfigError(f"{path}: not a TOML file ({error})") from None


def from_mapping(cls: type[T], mapping: dict[str, Any], *, where: str = "config", prefix: str = "") -> T:
    """Builds the frozen dataclass ``cls`` from plain values, as TOML or JSON hold them."""
    if not isinstance(mapping, dict):
        raise ConfigError(f"{where}: '{prefix.rstrip('.') or 'the file'}' must be a table, got {mapping!r}")
    hints = typing.get_type_hints(cls)
    known = {f.name for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key in mapping:
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            hint = f"; did you mean '{prefix}{close[0]}'?" if close else f"; known are {', '.join(sorted(known))}"
            raise ConfigError(f"{where}: unknown key '{prefix}{key}'{hint}")
    values = {key: _convert(hints[key], value, where, prefix + key) for key, value in mapping.items()}
    try:
        return cls(**values)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None
    except TypeError as error:
        raise ConfigError(f"{where}: {prefix.rstrip('.') or 'the file'} is incomplete ({error})") from None


def to_mapping(config: Any) -> dict[str, Any]:
    """The plain values of a config, ready for JSON; ``from_mapping`` turns them back."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def _convert(hint: Any, value: Any, where: str, key: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None:
            return None
        hint = next(a for a in args if a is not type(None))
        return _convert(hint, value, where, key)
    if dataclasses.is_dataclass(hint):
        return from_mapping(hint, value, where=where, prefix=key + ".")  # type: ignore[arg-type]
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise ConfigError(f"{where}: '{key}' must be a list, got {value!r}")
        return tuple(_convert(args[0], item, where, f"{key}[{i}]") for i, item in enumerate(value))
    if origin is dict:
        if not isinstance(value, dict):
            raise ConfigError(f"{where}: '{key}' must be a table, got {value!r}")
        return {k: _convert(args[1], item, where, f"{key}.{k}") for k, item in value.items()}
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise ConfigError(f"{where}: '{key}' must be {hint.__name__}, got {value!r}")
    return value
