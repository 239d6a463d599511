"""What clients send, as pydantic models: bodies are checked against them, and /openapi.json is made of them."""

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

from owl_swin.classification import TEMPLATES
from owl_swin.frame import MAX_FRAME_SIDE
from owl_swin.tiling import MAX_OVERLAP, MIN_TILE, Tiles

# The example picture of the documentation: a grey PNG of 2 x 2 pixels.
GREY = "iVBORw0KGgoAAAANSUhEUgAAAAIAAAACCAAAAABX3VL4AAAADklEQVR4nGNsYGBiYAAAApIAhPd8o1gAAAAASUVORK5CYII="
MUG: Any = {"name": "my mug", "texts": ["a red mug"], "exemplars": [{"image": {"content": GREY}, "box": [0, 0, 2, 2]}]}

Fraction = Annotated[float, Field(ge=0, le=1)]
Item = TypeVar("Item")
# Of a list the first wrong item is named. A sentence for each would cost more than all the rest of a request.
Many = Annotated[list[Item], Field(fail_fast=True)]


class Body(BaseModel):
    """Fields of a request: unknown ones, wrong types, NaN and infinity are refused."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)


class File(Body):
    """A file, given in exactly one way: its bytes, its address, or the name of an uploaded part ``files``."""

    content: str | None = Field(None, description="The bytes in base64, or a data: URL of them.")
    url: str | None = Field(None, max_length=2000, description="Where to fetch it; the server must allow the host.")
    file: str | None = Field(None, max_length=255, description='The filename of a part "files" of the same form.')
    name: str | None = Field(None, max_length=255, description="What answers call it.")

    @model_validator(mode="after")
    def _one_way(self) -> "File":
        if sum(way is not None for way in (self.content, self.url, self.file)) != 1:
            raise ValueError("give exactly one of content, url and file")
        return self


class ExemplarIn(Body):
    """A picture of a thing."""

    image: File
    box: Annotated[list[float], Field(min_length=4, max_length=4, fail_fast=True)] | None = Field(
        None,
        description="xmin, ymin, xmax, ymax in pixels of the upright picture; left out, its most object-like thing.",
    )


def _text_or_object(value: Any) -> str:
    return "text" if isinstance(value, str) else "object"


def _kind_of_query(value: Any) -> str:
    if isinstance(value, dict) and "saved" in value:
        return "saved"
    return "saved" if isinstance(value, SavedIn) else _text_or_object(value)


class QueryIn(Body):
    """One thing to look for: texts, exemplars, or both, and what it is not."""

    name: str | None = Field(None, max_length=255, description="What its boxes are called; left out, the first text.")
    texts: Many[str] = Field([], description="Texts that all mean this thing.")
    exemplars: Many[ExemplarIn] = Field([], description="Pictures that all show this thing.")
    negatives: Many[
        Annotated[Annotated[str, Tag("text")] | Annotated[ExemplarIn, Tag("object")], Discriminator(_text_or_object)]
    ] = Field([], description="Texts and exemplars of what it is not.")
    weight: Fraction = Field(0.5, description="How much the exemplars count against the texts.")


class SavedIn(Body):
    """Queries that /v1/embed, ``QueryEmbeddings.save`` or ``--save-query`` wrote."""

    saved: File


AnyQuery = Annotated[
    Annotated[str, Tag("text")] | Annotated[SavedIn, Tag("saved")] | Annotated[QueryIn, Tag("object")],
    Discriminator(_kind_of_query),
]


class TiledBody(Body):
    """What may be shown to the model in tiles."""

    tile: int | None = Field(
        None,
        ge=MIN_TILE,
        le=MAX_FRAME_SIDE,
        description="Show the model each picture in tiles of so many pixels a side too, which finds small things. Each "
        "tile is as much work as a picture; a thing that lies in several is found once.",
    )
    overlap: float | None = Field(
        None,
        ge=0,
        le=MAX_OVERLAP,
        description="With tile, the share of a side that neighbours have in common. Left out: 0.2.",
    )

    @model_validator(mode="after")
    def _overlap_of_tiles(self) -> "TiledBody":
        if self.overlap is not None and self.tile is None:
            raise ValueError("overlap is for tile, the side of the tiles in pixels; give that too")
        return self

    def tiles(self) -> Tiles | None:
        """The tiles that are asked for."""
        if self.tile is None:
            return None
        return Tiles(self.tile) if self.overlap is None else Tiles(self.tile, self.overlap)


# Of one picture: each takes some kilobytes, and some milliseconds to encode.
MOST_MASKS = 300


class DetectIn(TiledBody):
    """Pictures, and what to find in them."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"images": [{"content": GREY, "name": "kitchen.png"}], "queries": ["a red mug", "a dog"]},
                {"images": [{"content": GREY}], "queries": [MUG], "threshold": 0.3, "nms_iou": 0.5, "top_k": 10},
                {"images": [{"content": GREY}], "queries": ["a dog"], "tile": 640, "overlap": 0.2},
                {"images": [{"content": GREY}], "queries": ["a dog"], "masks": True},
            ]
        }
    )
    images: Many[File] = Field([], description='Pictures; in a form they are the parts "images".')
    queries: Many[AnyQuery] | None = Field(None, description="Left out: everything that looks like a thing.")
    threshold: Fraction | Many[Fraction] = Field(0.2, description="Lowest score, one for all queries or one each.")
    nms_iou: Fraction | Literal["model"] | None = Field(
        "model",
        description="Of boxes of one query that overlap by more, only the best stays; null keeps all. Left out: what "
        "suits the model.",
    )
    box_voting: bool | None = Field(
        None,
        description="Whether the boxes that a better one suppresses have a say in where its sides are. Left out: what "
        "suits the model.",
    )
    rivals: Fraction | Literal["model"] = Field(
        "model",
        description="Where another text scores higher for the same thing (boxes overlap by 0.7), an answer to a text "
        "has score · (score / higher one) ** rivals; exemplars never compete, and 0 leaves all as they are. Left out: "
        "what suits the model.",
    )
    nms_across: bool = Field(False, description="Also of boxes of two queries only the best stays.")
    objectness: Fraction | None = Field(None, description="Lowest objectness of a patch that may answer.")
    top_k: int = Field(300, ge=1, description="Most boxes of a picture.")
    masks: bool = Field(
        False,
        description="Also which pixels of its box each thing has. /v1/model says whether the model can; top_k is then "
        f"at most {MOST_MASKS}.",
    )


Class = Annotated[Annotated[str, Tag("text")] | Annotated[QueryIn, Tag("object")], Discriminator(_text_or_object)]


class ClassifyIn(Body):
    """Pictures, and the classes that they may be of: all of texts, or all of exemplars."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"images": [{"content": GREY}], "queries": ["a", "b"]}]})
    images: Many[File] = Field([], description='Pictures; in a form they are the parts "images".')
    queries: Annotated[Many[Class], Field(min_length=1, description="The classes.")]
    templates: Annotated[
        Many[Annotated[str, Field(max_length=200, pattern=r"^[^{}]*\{\}[^{}]*$")]],
        Field(min_length=1, max_length=100, description="What each text is put in, in place of {}; they are averaged."),
    ] = list(TEMPLATES)


class SegmentIn(TiledBody):
    """Pictures, and what their pixels may show."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"images": [{"content": GREY}], "queries": ["sky", "road", "a dog"]},
                {"images": [{"content": GREY}], "queries": ["sky", MUG], "threshold": 0.3, "tile": 640},
            ]
        }
    )
    images: Many[File] = Field([], description='Pictures; in a form they are the parts "images".')
    queries: Annotated[Many[AnyQuery], Field(min_length=1, description="What a pixel may show.")]
    threshold: Fraction | Many[Fraction] = Field(
        0.2, description="Lowest score, one for all queries or one each; below it a pixel shows nothing."
    )


class SimilarityIn(Body):
    """Pictures, and what to compare every part of them with."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"images": [{"content": GREY}], "queries": ["a dog"]}]})
    images: Many[File] = Field([], description='Pictures; in a form they are the parts "images".')
    queries: Annotated[
        Many[AnyQuery] | None, Field(max_length=16, description="Left out: how much each part looks like a thing.")
    ] = None


class EmbedIn(Body):
    """Queries to keep."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"queries": ["a dog", MUG]}]})
    queries: Many[AnyQuery]


class SearchIn(Body):
    """What to look for in the archive: a query, or a region that an earlier search found."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"query": "a red mug", "limit": 10}]})
    query: AnyQuery | None = None
    like_region: str | None = Field(None, max_length=255, description="The region of an earlier match, as the query.")
    limit: int = Field(20, ge=1, le=1000)
    offset: int = Field(0, ge=0, le=100_000)
    threshold: Fraction = 0.0
    per_image: int | None = Field(None, ge=1, le=1000, description="Most matches of one picture.")
    path_glob: str | None = Field(None, max_length=1000)
    newer_than: float | None = Field(None, ge=0, le=1e11, description="Seconds since 1970.")
    older_than: float | None = Field(None, ge=0, le=1e11, description="Seconds since 1970.")
    min_side_px: float | None = Field(None, ge=0, le=1e6, description="Shortest side of a box.")
    exact: bool = Field(False, description="Compare with every region, not only with likely ones.")

    @model_validator(mode="after")
    def _one_query(self) -> "SearchIn":
        if (self.query is None) == (self.like_region is None):
            raise ValueError("give exactly one of query and like_region")
        return self


class ImagesIn(Body):
    """Pictures to add to the archive."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"images": [{"content": GREY, "name": "kitchen.png"}]}]})
    images: Many[File] = []
