"""The settings of a training run; one TOML file is one run."""

import math
from dataclasses import dataclass, field

from owl_swin.data.config import DataConfig, check_mosaic
from owl_swin.errors import ConfigError

TASKS = ("align", "detect", "probe")
FEATURES = ("patches", "last")
MATCHINGS = ("hungarian", "aligned", "centre")
PRECISIONS = ("float32", "bfloat16")
CONTRASTS = ("softmax", "sigmoid")
SHARDS = ("ddp", "fsdp")
STEM_PARTS = ("all", "pointwise")
RATES = "image_lr, stem_lr, text_lr, fusion_lr, heads_lr, masks_lr and pool_lr"
# Side in pixels of one patch of the coarsest map.
LEAST_IMAGE_SIZE = 32


def check_amount(name: str, value: float) -> None:
    """Raises ConfigError unless the value is a finite number, 0 or more."""
    if not 0 <= value < math.inf:
        raise ConfigError(f"{name} must be 0 or more, got {value}")


def weights_of(config: "DetectConfig | MaskLossConfig") -> list[str]:
    """The settings that weigh a loss."""
    return [name for name in config.__slots__ if name.endswith("weight")]


@dataclass(frozen=True, slots=True)
class OptimConfig:
    """AdamW with linear warm-up and cosine decay. A learning rate of 0 freezes its part; ``stem_lr`` is that of a
    published stem, which is no part of "image" here, ``fusion_lr`` that of the patches that heads, masks and whole
    pictures are made of, ``masks_lr`` that of the mask branch, and ``pool_lr`` that of the embedding of whole pictures:
    its projection, and the temperature of its alignment (None: each as the heads). Where only the mask branch learns,
    nothing else is computed than what it learns from.

    ``clip_norm`` is the largest norm of the gradients of a published stem, and apart from these of all others.
    Of a stem that learns, ``stem_part = "pointwise"`` trains what is cheap to train: the layers that look at one pixel,
    after the map of stride 4. The rest stays as published: on processors, gradients of depthwise kernels take longer
    than all others together.
    """

    image_lr: float = 5e-4
    stem_lr: float = 0.0
    stem_part: str = "all"
    text_lr: float = 0.0
    heads_lr: float = 5e-4
    fusion_lr: float | None = None
    masks_lr: float | None = None
    pool_lr: float | None = None
    weight_decay: float = 0.05
    betas: tuple[float, ...] = (0.9, 0.98)
    warmup_steps: int = 500
    final_lr: float = 0.01
    clip_norm: float = 1.0
    ema_decay: float = 0.999

    def __post_init__(self) -> None:
        if not all(0 <= rate < math.inf for rate in (*self.rest, self.masks, self.pool)):
            raise ConfigError(f"optim.{RATES} must be 0 (frozen) or more")
        if self.stem_part not in STEM_PARTS:
            raise ConfigError(f"optim.stem_part must be one of {', '.join(STEM_PARTS)}, got {self.stem_part!r}")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ConfigError(f"optim.betas must be two numbers from 0 to below 1, got {self.betas}")
        if not 0 <= self.ema_decay < 1:
            raise ConfigError(f"optim.ema_decay must lie in 0 (no averaging) to below 1, got {self.ema_decay}")
        if not (self.clip_norm > 0 and self.weight_decay >= 0 and self.final_lr >= 0 and self.warmup_steps >= 0):
            raise ConfigError("optim.clip_norm must be above 0; weight_decay, final_lr and warmup_steps 0 or more")

    @property
    def rest(self) -> tuple[float, ...]:
        """The learning rates of all but the mask branch and the embedding of whole pictures."""
        return self.image_lr, self.stem_lr, self.text_lr, self.fusion, self.heads_lr

    @property
    def fusion(self) -> float:
        """The learning rate of the fusion of stages."""
        return self.heads_lr if self.fusion_lr is None else self.fusion_lr

    @property
    def masks(self) -> float:
        """The learning rate of the mask branch."""
        return self.heads_lr if self.masks_lr is None else self.masks_lr

    @property
    def pool(self) -> float:
        """The learning rate of the embedding of whole pictures."""
        return self.heads_lr if self.pool_lr is None else self.pool_lr


@dataclass(frozen=True, slots=True)
class DetectConfig:
    """What only detection training needs (OWL-ViT, arXiv:2205.06230; OWLv2, arXiv:2306.09683).

    A scene is asked for up to ``negatives`` names that are known to be absent. Where a set lists too few of them (free
    text, as Visual Genome's), up to ``pseudo_negatives`` other names are drawn and taken to be absent.
    ``fresh_class_head`` starts the class head from the picture-wide projection: right after alignment, wrong for a
    model that has already learned to detect. ``quality`` makes the IoU of a patch's box with its target what its score
    has to reach (arXiv:2006.04388), in place of 1: of several patches on one thing, the best box then wins.
    ``name_weight`` weighs a softmax over the asked names at the patches that answer for a box, rare names counting as
    much as frequent ones: the focal loss alone tells names apart slowly.
    With ``exemplars``, so many crops of things in a batch are scored in its scenes too, as the names of these things
    are, and count ``exemplar_weight`` against these; set ``exemplars`` to about half of batch_size.
    """

    negatives: int = 50
    pseudo_negatives: int = 0
    mosaic: tuple[float, ...] = (0.4, 0.3, 0.3)
    fresh_class_head: bool = False
    matching: str = "centre"
    quality: bool = False
    name_weight: float = 0.0
    exemplars: int = 0
    exemplar_weight: float = 1.0
    scales: tuple[float, ...] = (1.0,)
    min_crop: float = 0.6
    zoom: float = 0.0
    class_weight: float = 1.0
    l1_weight: float = 1.0
    giou_weight: float = 1.0
    objectness_weight: float = 0.5
    focal_alpha: float = 0.3
    focal_gamma: float = 2.0

    def __post_init__(self) -> None:
        if self.matching not in MATCHINGS:
            raise ConfigError(f"detect.matching must be one of {', '.join(MATCHINGS)}, got {self.matching!r}")
        if not self.scales or not all(0 < scale < math.inf for scale in self.scales):
            raise ConfigError(f"detect.scales must be positive factors on image_size, got {self.scales}")
        for name in ("exemplars", "negatives", "pseudo_negatives", "focal_gamma", *weights_of(self)):
            check_amount(f"detect.{name}", getattr(self, name))
        for name in ("min_crop", "zoom", "focal_alpha"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"detect.{name} must lie in 0 to 1, got {getattr(self, name)}")
        check_mosaic("detect", self.mosaic)


@dataclass(frozen=True, slots=True)
class MaskLossConfig:
    """How detection training teaches the branch of a model with [masks]; the same in every step.

    Of each box ``patches`` that answer for it are asked for its mask, of each scene at most ``most``, in the box
    enlarged by ``margin`` of its sides all around. A true mask teaches by dice and focal loss; a box alone by
    its projections on both axes, and by the affinity of neighbouring pixels whose colours are more alike than
    ``affinity_threshold``, exp(-distance in CIELAB / 2): BoxInst (arXiv:2012.02310). The affinity comes in over
    ``warmup_steps``, after which the mask of a box also says which of its patches show the thing; till then those in
    its middle do.

    ``dense_weight`` weighs the names of what each patch's own place shows, ``name_weight`` a softmax over these,
    ``exemplar_weight`` the exemplars of the step, all three as part of the dense loss.
    """

    weight: float = 1.0
    patches: int = 2
    most: int = 12
    margin: float = 0.25
    dice_weight: float = 1.0
    focal_weight: float = 4.0
    projection_weight: float = 1.0
    affinity_weight: float = 1.0
    affinity_threshold: float = 0.3
    warmup_steps: int = 300
    dense_weight: float = 1.0
    name_weight: float = 0.5
    exemplar_weight: float = 0.5

    def __post_init__(self) -> None:
        if min(self.patches, self.most) < 1:
            raise ConfigError(f"masks.patches and masks.most must be at least 1, got {self.patches} and {self.most}")
        if not (0 <= self.margin < math.inf and 0 <= self.affinity_threshold <= 1 and self.warmup_steps >= 0):
            raise ConfigError(
                "masks.margin and warmup_steps must be 0 or more, and affinity_threshold lie in 0 to 1, got "
                f"{self.margin}, {self.warmup_steps} and {self.affinity_threshold}"
            )
        for name in weights_of(self):
            check_amount(f"masks.{name}", getattr(self, name))


@dataclass(frozen=True, slots=True)
class TeacherConfig:
    """A published image network whose features the patches also learn to predict (no ``name``: none).

    ``name`` is timm's; ``weights`` a safetensors file with timm's tensor names (empty: what timm publishes); ``size``
    the side in pixels that kept pictures are shown to it at; ``dim`` how many directions of its features count.
    """

    name: str = ""
    weights: str = ""
    size: int = 160
    dim: int = 256
    dense_weight: float = 1.0
    pooled_weight: float = 1.0


@dataclass(frozen=True, slots=True)
class NamingConfig:
    """What a published stem's classifier says in each place, as names that patches learn (no ``weights``: none).

    ``weights`` is a safetensors file with the classifier's ``weight [N, C]`` and ``bias [N]``; ``names`` a text file
    with the names of each class on a line, commas between synonyms. Classes with an empty line are struck out: nothing
    is learned of them. ``dense_weight`` weighs the patches, ``pooled_weight`` the whole scene.

    ``stem`` is a safetensors file with the published stem that the classifier belongs to, by timm's names. Without it
    the classifier reads the model's own stem, or, where that learns, a copy of what it began as. A stem of its own
    costs another pass, so it reads only the first ``share`` of the scenes of a batch.
    """

    weights: str = ""
    names: str = ""
    dense_weight: float = 1.0
    pooled_weight: float = 0.5
    stem: str = ""
    share: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ConfigError(f"naming.share must lie above 0 and be at most 1, got {self.share}")


@dataclass(frozen=True, slots=True)
class ProbeConfig:
    """What only ``task = "probe"`` needs: a classifier on features of the frozen model, for each labelled set.

    ``features`` are the mean of the fused "patches" or of the encoder's "last" map, which published classifiers read.
    Figures are of ``test_data``, a set for each of the run's in their order; where there are none, of the part ``test``
    of each set; where that is empty, of every fifth picture of each class, which is kept back.
    ``neighbours`` vote with weight exp(cosine / ``temperature``), as in arXiv:2104.14294. The weight decay of the
    linear classifier is the best of ``weight_decays`` on a tenth of what it learns from.
    """

    features: str = "patches"
    test: str = "val"
    test_data: tuple[DataConfig, ...] = ()
    neighbours: int = 20
    temperature: float = 0.07
    weight_decays: tuple[float, ...] = (1e-5, 1e-4, 1e-3, 1e-2)

    def __post_init__(self) -> None:
        if self.features not in FEATURES:
            raise ConfigError(f"probe.features must be one of {', '.join(FEATURES)}, got {self.features!r}")
        if self.neighbours < 1 or not 0 < self.temperature < math.inf:
            raise ConfigError("probe.neighbours must be at least 1 and probe.temperature above 0")
        if not self.weight_decays or not all(0 <= decay < math.inf for decay in self.weight_decays):
            raise ConfigError(f"probe.weight_decays must be numbers of 0 or more, got {self.weight_decays}")


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """One run of `owl-swin train`.

    ``init`` are weights to start from, each on top of the one before: a model file, a run's folder (its result) or
    state (what it trained, before any ``blend``), a name that ships or is on the hub, "swin:NAME" (a published Swin for
    the image encoder, also the one inside of a detector, as "swin:IDEA-Research/grounding-dino-tiny"),
    "open_clip:MODEL/TAG" (a published text encoder), "stem:FILE" (weights of the stem with timm's names; "stem:timm"
    those that timm publishes) or "text:SOURCE" (of a model only its text encoder). Windows may be of another size than
    theirs, and stages deeper: new blocks begin as the identity.
    ``batch_size`` is for each process and each of the ``accumulate`` passes of a step.
    ``contrast`` is the loss on captions. ``linear_weight`` weighs a free linear classifier for each labelled set, which
    only training has: fixed texts alone teach a young encoder slowly. ``logit_scale`` is the inverse temperature to
    start the alignment at (0: as the weights have it); against a sentence encoder's near names 30 learned twice as fast
    as CLIP's 14.
    ``cache_gib`` is the memory, of each process, for decoded pictures of all detection sets.
    ``workers`` processes make the batches, each a whole one with a cache of its own (0: a thread of the run does): a
    graphics card learns faster than one processor core paints.
    ``shard`` says how several processes share the model. ``preview_every`` steps, a picture of what
    the model finds is drawn (0: never). ``blend`` mixes the weights that ``init`` gave into the result: 0 is the
    trained model alone, 1 the old one (WiSE-FT, arXiv:2109.01903). Parameters that ``init`` did not give stay as
    trained, but that new blocks, of the heads or of a stage, go back to the identity. A run that has ended may be
    given another share.
    """

    task: str
    model: str
    output: str
    data: tuple[DataConfig, ...]
    init: tuple[str, ...] = ()
    align_data: tuple[DataConfig, ...] = ()
    align_batch_size: int = 64
    align_size: int = 64
    align_weight: float = 0.5
    linear_weight: float = 0.0
    logit_scale: float = 0.0
    steps: int = 1000
    batch_size: int = 64
    accumulate: int = 1
    workers: int = 0
    image_size: int = 64
    precision: str = "float32"
    contrast: str = "softmax"
    compile: bool = False
    device: str = "auto"
    shard: str = "ddp"
    blend: float = 0.0
    tensorboard: bool = False
    preview_every: int = 0
    cache_gib: float = 4.0
    seed: int = 0
    log_every: int = 20
    checkpoint_minutes: float = 5.0
    optim: OptimConfig = field(default_factory=OptimConfig)
    detect: DetectConfig = field(default_factory=DetectConfig)
    masks: MaskLossConfig = field(default_factory=MaskLossConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    naming: NamingConfig = field(default_factory=NamingConfig)
    probe: ProbeConfig = field(default_factory=ProbeConfig)

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise ConfigError(f"task must be one of {', '.join(TASKS)}, got {self.task!r}")
        if self.precision not in PRECISIONS:
            raise ConfigError(f"precision must be one of {', '.join(PRECISIONS)}, got {self.precision!r}")
        if self.contrast not in CONTRASTS:
            raise ConfigError(f"contrast must be one of {', '.join(CONTRASTS)}, got {self.contrast!r}")
        if self.shard not in SHARDS:
            raise ConfigError(f"shard must be one of {', '.join(SHARDS)}, got {self.shard!r}")
        if not 0 <= self.blend <= 1:
            raise ConfigError(f"blend must lie in 0 (the trained weights) to 1 (the old ones), got {self.blend}")
        if self.blend and not self.init:
            raise ConfigError("blend goes back to the weights of init, which names none; set blend = 0, or init")
        if not any((*self.optim.rest, self.optim.masks, self.optim.pool)):
            raise ConfigError(f"optim.{RATES} are all 0: nothing would be trained")
        if self.task != "detect" and not any((*self.optim.rest, self.optim.pool)):
            raise ConfigError(
                f"optim: task = {self.task!r} teaches no masks; a rate other than masks_lr must be above 0"
            )
        if self.task == "detect" and self.optim.pool and not any(self.optim.rest):
            raise ConfigError("optim: whole pictures (pool_lr) without boxes and names are taught by task = 'align'")
        if not self.cache_gib >= 0:
            raise ConfigError(f"cache_gib must be 0 (keep no decoded pictures) or more, got {self.cache_gib}")
        if self.preview_every and (self.task != "detect" or self.shard == "fsdp"):
            raise ConfigError("preview_every draws boxes of a whole model: it needs task = 'detect' and shard = 'ddp'")
        if not self.data:
            raise ConfigError("a run needs at least one [[data]] table")
        if min(self.steps, self.batch_size, self.accumulate, self.log_every) < 1:
            raise ConfigError("steps, batch_size, accumulate and log_every must be at least 1")
        if self.task == "probe" and len(self.probe.test_data) not in (0, len(self.data)):
            raise ConfigError(
                f"probe.test_data must be one set for each of the {len(self.data)} of data, got "
                f"{len(self.probe.test_data)}"
            )
        for name in ("align_weight", "linear_weight", "logit_scale"):
            check_amount(name, getattr(self, name))
        if min(self.align_size, self.align_batch_size) < 1:
            raise ConfigError(
                f"align_size and align_batch_size must be at least 1, got {self.align_size} and {self.align_batch_size}"
            )
        if self.image_size < LEAST_IMAGE_SIZE:
            raise ConfigError(f"image_size must be at least {LEAST_IMAGE_SIZE} pixels, got {self.image_size}")
        self._check_tables()
        if self.workers < 0:
            raise ConfigError(f"workers must be 0 (a thread of the run) or more, got {self.workers}")
        if self.seed < 0:
            raise ConfigError(f"seed must be 0 or more, got {self.seed}")

    def _check_tables(self) -> None:
        """Refuses what the task would leave unread."""
        if self.task != "detect" and (self.naming.weights or self.align_data):
            raise ConfigError(f"[naming] and [[align_data]] are read by task = 'detect' alone, not by {self.task!r}")
        if self.task != "align" and not self.align_data and (self.teacher.name or self.linear_weight):
            raise ConfigError("[teacher] and linear_weight are for pictures to align; name some under [[align_data]]")
        if self.align_data and not any(self.optim.rest):
            raise ConfigError("[[align_data]] teaches nothing where only the mask branch learns (masks_lr)")
