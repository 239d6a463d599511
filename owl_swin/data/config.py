"""What a data set is: its kind and path, and what of it is read."""

import math
from dataclasses import dataclass

from owl_swin.errors import ConfigError

DETECT_KINDS = (
    "coco", "lvis", "voc", "yolo", "visual_genome", "label_studio", "coco_panoptic", "label_maps", "sheets",
)  # fmt: skip
ALIGN_KINDS = (
    "captions",
    "csv",
    "jsonl",
    "coco_captions",
    "labelled",
    "folders",
    "crops",
    "cutouts",
    "sheets",
)
# Kinds whose boxes may say how sure they are.
SCORED_KINDS = ("coco", "lvis", "yolo", "crops")
# Kinds whose names may stand in a file of their own.
NAMED_KINDS = ("label_maps", "sheets")
KINDS = tuple(dict.fromkeys((*DETECT_KINDS, *ALIGN_KINDS)))


@dataclass(frozen=True, slots=True)
class DataConfig:
    """One data set of a mixture.

    Kinds with boxes, for detection; ``images`` is the folder of the pictures (empty: beside ``path``):

    - "coco": COCO detection JSON, also of Objects365 and Open Images
    - "lvis": the same with ``neg_category_ids`` and ``not_exhaustive_category_ids`` in the image records
    - "voc": a folder of Pascal VOC XML, the folder above it, or an image-set list such as ImageSets/Main/train.txt
    - "yolo": data.yaml or a list of class names (classes.txt), with labels/*.txt beside images/
    - "label_studio": the JSON or JSON-MIN export of a Label Studio project
    - "coco_panoptic": COCO panoptic JSON, its PNGs in a folder beside it that is called as the file, or "panoptic"
    - "label_maps": a folder of PNGs whose numbers are classes, as ADE20K's, called as the pictures; ``names`` is the
      file that says what the numbers mean, a name a line or ADE20K's objectInfo150.txt, and ``ignore_values`` are those
      that mean nothing (ADE20K: [0])
    - "visual_genome": objects.json, or region_descriptions.json with phrases as names

    Kinds of named or captioned pictures, for alignment:

    - "captions": webdataset tars: a folder with SPLIT-*.tar, one tar, or a pattern such as "cc3m-{000..331}.tar"
    - "csv", "jsonl": a picture and its caption a line, in ``path_column`` and ``caption_column``
    - "coco_captions": COCO captions JSON
    - "labelled": COCO-like JSON whose image records carry ``label``
    - "folders": a folder of pictures for each class
    - "crops": COCO detection JSON, each box a picture
    - "cutouts": COCO-like JSON of RGBA pictures whose image records carry ``name``

    "sheets" (sheets of tiles with a manifest) serve both; ``names`` may be a file with other names for its classes, a
    line each in their order: "dog" for each breed. An empty line leaves a class out.

    A mask branch also learns from the masks that "coco", "lvis" and "coco_panoptic" have. Stuff, and all of label maps,
    has no boxes: such areas teach what the places of a picture show, and no box is learned there.

    ``split`` is the part of a set that has parts. ``weight`` is the set's share of the drawn samples; ``size`` the side
    in pixels that pictures for alignment are kept at; ``max_per_class`` bounds the pictures of a class in alignment,
    ``max_pictures`` those of the set (0: all); names of a detection set with fewer than ``min_per_class`` boxes are
    left out; ``mosaic`` the probabilities of 1x1, 2x2, … pictures on one canvas in detection (empty: those of the run).

    Annotations of "coco", "lvis" and "crops" may carry a ``score`` in 0 to 1, and lines of "yolo" end with one, as
    guessed boxes do: it is what a patch's own score has to reach. A box with less than ``ignore_below`` is neither
    positive nor negative: no patch inside it is asked for its name, and no crop is made of it.
    ``repeat`` above 0 draws pictures with rare names more often, by LVIS' repeat factors (arXiv:1908.03195): names in
    less than this share of the pictures count as rare.
    """

    kind: str
    path: str
    images: str = ""
    split: str = "train"
    weight: float = 1.0
    size: int = 64
    max_per_class: int = 0
    max_pictures: int = 0
    min_per_class: int = 0
    path_column: str = "path"
    caption_column: str = "caption"
    mosaic: tuple[float, ...] = ()
    ignore_below: float = 0.0
    repeat: float = 0.0
    names: str = ""
    ignore_values: tuple[int, ...] = (255,)

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ConfigError(f"data.kind must be one of {', '.join(KINDS)}, got {self.kind!r}")
        if not 0 < self.weight < math.inf:
            raise ConfigError(f"data.weight must be positive, got {self.weight}")
        if self.size < 1:
            raise ConfigError(f"data.size must be at least 1 pixel, got {self.size}")
        if min(self.max_per_class, self.max_pictures, self.min_per_class) < 0:
            raise ConfigError("data.max_per_class, max_pictures and min_per_class must be 0 or more")
        if not (0 <= self.ignore_below <= 1 and 0 <= self.repeat <= 1):
            raise ConfigError(f"data.ignore_below and repeat lie in 0 to 1, got {self.ignore_below} and {self.repeat}")
        if self.ignore_below and self.kind not in SCORED_KINDS:
            scored = ", ".join(SCORED_KINDS)
            raise ConfigError(f"data.ignore_below is for boxes with scores, which {scored} may have, not {self.kind}")
        if self.kind == "label_maps" and not self.names:
            raise ConfigError("data.names must name the file of names of a set of kind 'label_maps'")
        if self.names and self.kind not in NAMED_KINDS:
            named = " or ".join(map(repr, NAMED_KINDS))
            raise ConfigError(f"data.names is the file of names of a set of kind {named}, not {self.kind!r}")
        if self.mosaic:
            check_mosaic("data", self.mosaic)


def check_mosaic(table: str, odds: tuple[float, ...]) -> None:
    """Raises ConfigError unless the odds of 1x1, 2x2, … pictures on a canvas are probabilities that add up to 1."""
    if not odds or not abs(sum(odds) - 1) <= 1e-6 or min(odds) < 0:  # NaN fails this too
        raise ConfigError(f"{table}.mosaic must be probabilities of 1x1, 2x2, … that add up to 1, got {odds}")
