"""Open-vocabulary object detection: find anything that you can name or show."""

from owl_swin.detector import Detector
from owl_swin.encoded import EncodedImage, PreparedImage
from owl_swin.errors import (
    ArchiveError,
    CheckpointError,
    ConfigError,
    DataError,
    ImageError,
    MissingExtraError,
    OwlSwinError,
    QueryError,
)
from owl_swin.exemplar import Exemplar
from owl_swin.families.swin_weights import load_swin
from owl_swin.formats import to_coco, to_csv, to_fiftyone, to_label_studio, to_record, to_voc, to_yolo
from owl_swin.image import open_image
from owl_swin.index.match import IndexProgress, IndexReport, IndexStats, Match
from owl_swin.index.region_index import RegionIndex
from owl_swin.postprocess import DetectOptions
from owl_swin.queries import Query
from owl_swin.render import draw_detections, draw_heat_map
from owl_swin.types import BlockAttention, Classification, Detection, Detections, ImageEmbeddings, QueryEmbeddings

__all__ = [
    "ArchiveError",
    "BlockAttention",
    "CheckpointError",
    "Classification",
    "ConfigError",
    "DataError",
    "DetectOptions",
    "Detection",
    "Detections",
    "Detector",
    "EncodedImage",
    "Exemplar",
    "ImageEmbeddings",
    "ImageError",
    "IndexProgress",
    "IndexReport",
    "IndexStats",
    "Match",
    "MissingExtraError",
    "OwlSwinError",
    "PreparedImage",
    "Query",
    "QueryEmbeddings",
    "QueryError",
    "RegionIndex",
    "draw_detections",
    "draw_heat_map",
    "load_swin",
    "open_image",
    "to_coco",
    "to_csv",
    "to_fiftyone",
    "to_label_studio",
    "to_record",
    "to_voc",
    "to_yolo",
]
__version__ = "0.1.0"
