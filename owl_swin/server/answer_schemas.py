"""What clients are answered, as pydantic models, of which /openapi.json is made."""

from pydantic import BaseModel, ConfigDict, Field


class Box(BaseModel):
    """Pixels of the upright picture."""

    xmin: float
    ymin: float
    xmax: float
    ymax: float


class RunLengths(BaseModel):
    """Pixels of an upright picture in COCO's compressed run lengths, as pycocotools reads them."""

    size: list[int] = Field(min_length=2, max_length=2, description="Height and width of the picture.")
    counts: str


class DetectionOut(BaseModel):
    """One box; ``query`` is the index of its query among the caller's, ``label`` the name of that query."""

    query: int = Field(ge=0)
    label: str
    score: float = Field(ge=0, le=1)
    box: Box
    segmentation: RunLengths | None = Field(None, description="The mask, where masks were asked for.")


class PictureOut(BaseModel):
    """What was found in one picture, best first."""

    image: str
    width: int
    height: int
    detections: list[DetectionOut]


class DetectOut(BaseModel):
    """One result a picture, in order."""

    results: list[PictureOut]


class AreaOut(BaseModel):
    """What shows one name; ``id`` is its value in the map as PNG, and the index of the name among the different names
    of the queries. ``area`` is in pixels, ``share`` of the picture, ``score`` the mean of its pixels."""

    id: int = Field(ge=0)
    label: str
    score: float = Field(ge=0, le=1)
    area: int
    share: float = Field(ge=0, le=1)
    segmentation: RunLengths


class AreasOut(BaseModel):
    """What one picture shows, the largest area first; what shows nothing that was asked for is in none."""

    image: str
    width: int
    height: int
    areas: list[AreaOut]


class SegmentOut(BaseModel):
    """One result a picture, in order."""

    results: list[AreasOut]


class ClassOut(BaseModel):
    """One class; ``query`` is its index among the caller's. The scores of a picture add up to 1."""

    query: int = Field(ge=0)
    label: str
    score: float = Field(ge=0, le=1)


class ClassifiedOut(BaseModel):
    """The classes of one picture, the likeliest first."""

    image: str
    width: int
    height: int
    classes: list[ClassOut]


class ClassifyOut(BaseModel):
    """One result a picture, in order."""

    results: list[ClassifiedOut]


class MapOut(BaseModel):
    """Scores in [0, 1] of an even grid over the upright picture, row by row, for one query."""

    query: int = Field(ge=0)
    label: str
    scores: list[list[float]]


class MapsOut(BaseModel):
    """The maps of one picture."""

    image: str
    width: int
    height: int
    maps: list[MapOut]


class SimilarityOut(BaseModel):
    """One result a picture, in order."""

    results: list[MapsOut]


class EmbedOut(BaseModel):
    """Queries to keep: ``queries`` is a .safetensors file in base64, for /v1/detect or ``--query-file``."""

    queries: str
    names: list[str]
    dimensions: int
    fingerprint: str = Field(description="Hash of the weights that made them; other weights refuse them.")


class MatchOut(BaseModel):
    """One region of the archive."""

    image_id: str
    path: str
    box: Box
    score: float
    objectness: float
    width: int
    height: int
    modified: float
    region: str
    thumbnail: str


class SearchOut(BaseModel):
    """Matches, best first."""

    matches: list[MatchOut]


class SkippedOut(BaseModel):
    """A picture that was not added, and why."""

    path: str
    reason: str


class ImagesOut(BaseModel):
    """What became of the pictures."""

    added: int
    changed: int
    unchanged: int
    regions: int
    skipped: list[SkippedOut]


class ArchiveOut(BaseModel):
    """The archive that is attached."""

    images: int
    regions: int


class ModelOut(BaseModel):
    """The model and the limits of this server."""

    name: str
    version: str = Field(description="Of the model's card; without one, of owl_swin.")
    fingerprint: str
    image_size: int
    dimensions: int
    masks: bool = Field(description="Whether /v1/segment answers, and /v1/detect with masks.")
    limits: dict[str, int]
    archive: ArchiveOut | None


class HealthOut(BaseModel):
    """How the server is."""

    status: str


class FieldError(BaseModel):
    """One wrong field."""

    pointer: str
    detail: str


class ProblemOut(BaseModel):
    """An error (RFC 9457); ``code`` is stable."""

    type: str
    title: str
    status: int
    code: str
    detail: str
    errors: list[FieldError] = []
    request_id: str = Field("", description="As in the header X-Request-Id of the answer, and in the server's log.")


class LineOut(BaseModel):
    """One line of application/x-ndjson: which picture it is about, and its result or what is wrong with it."""

    model_config = ConfigDict(extra="allow")
    index: int = Field(ge=0, description="Of the picture, among the caller's.")
    image: str
    error: ProblemOut | None = None
