"""Open-vocabulary object detection: find anything that you can name or show."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from owl_swin.attention import BlockAttention
    from owl_swin.closed_set import ImageClassifier, ImageSegmenter
    from owl_swin.detections import Detection, Detections
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
    from owl_swin.families.closed_set import load_classifier, load_segmenter
    from owl_swin.families.swin_weights import load_swin
    from owl_swin.formats import to_coco, to_csv, to_fiftyone, to_record, to_video_record, to_voc, to_yolo, yolo_data
    from owl_swin.huge import open_parts
    from owl_swin.image import open_image
    from owl_swin.index.match import IndexProgress, IndexReport, IndexStats, Match
    from owl_swin.index.region_index import RegionIndex
    from owl_swin.label_studio import label_studio_interface, to_label_studio
    from owl_swin.map_formats import panoptic_categories, to_label_image, to_legend, to_panoptic_image
    from owl_swin.masks import BoxMasks
    from owl_swin.pipelines import ZeroShotObjectDetectionPipeline, pipeline
    from owl_swin.postprocess import DetectOptions
    from owl_swin.queries import Query
    from owl_swin.render import draw_detections, draw_heat_map, draw_semantic_map
    from owl_swin.semantic_map import SemanticMap
    from owl_swin.tiling import Tiles
    from owl_swin.types import Classification, ImageEmbeddings, QueryEmbeddings
    from owl_swin.video import VideoFrame, detect_video
    from owl_swin.video_output import video_writer

__all__ = [
    "ArchiveError",
    "BlockAttention",
    "BoxMasks",
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
    "ImageClassifier",
    "ImageEmbeddings",
    "ImageError",
    "ImageSegmenter",
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
    "SemanticMap",
    "Tiles",
    "VideoFrame",
    "ZeroShotObjectDetectionPipeline",
    "detect_video",
    "draw_detections",
    "draw_heat_map",
    "draw_semantic_map",
    "label_studio_interface",
    "load_classifier",
    "load_segmenter",
    "load_swin",
    "open_image",
    "open_parts",
    "panoptic_categories",
    "pipeline",
    "to_coco",
    "to_csv",
    "to_fiftyone",
    "to_label_image",
    "to_label_studio",
    "to_legend",
    "to_panoptic_image",
    "to_record",
    "to_video_record",
    "to_voc",
    "to_yolo",
    "video_writer",
    "yolo_data",
]
__version__ = "0.1.0"

# A public name is looked up in its module when it is first asked for: `owl-swin --help` needs no torch.
_MODULES = {
    "ArchiveError": "owl_swin.errors",
    "BlockAttention": "owl_swin.attention",
    "BoxMasks": "owl_swin.masks",
    "CheckpointError": "owl_swin.errors",
    "Classification": "owl_swin.types",
    "ConfigError": "owl_swin.errors",
    "DataError": "owl_swin.errors",
    "DetectOptions": "owl_swin.postprocess",
    "Detection": "owl_swin.detections",
    "Detections": "owl_swin.detections",
    "Detector": "owl_swin.detector",
    "EncodedImage": "owl_swin.encoded",
    "Exemplar": "owl_swin.exemplar",
    "ImageClassifier": "owl_swin.closed_set",
    "ImageEmbeddings": "owl_swin.types",
    "ImageError": "owl_swin.errors",
    "ImageSegmenter": "owl_swin.closed_set",
    "IndexProgress": "owl_swin.index.match",
    "IndexReport": "owl_swin.index.match",
    "IndexStats": "owl_swin.index.match",
    "Match": "owl_swin.index.match",
    "MissingExtraError": "owl_swin.errors",
    "OwlSwinError": "owl_swin.errors",
    "PreparedImage": "owl_swin.encoded",
    "Query": "owl_swin.queries",
    "QueryEmbeddings": "owl_swin.types",
    "QueryError": "owl_swin.errors",
    "RegionIndex": "owl_swin.index.region_index",
    "SemanticMap": "owl_swin.semantic_map",
    "Tiles": "owl_swin.tiling",
    "ZeroShotObjectDetectionPipeline": "owl_swin.pipelines",
    "VideoFrame": "owl_swin.video",
    "detect_video": "owl_swin.video",
    "draw_detections": "owl_swin.render",
    "draw_heat_map": "owl_swin.render",
    "draw_semantic_map": "owl_swin.render",
    "label_studio_interface": "owl_swin.label_studio",
    "load_classifier": "owl_swin.families.closed_set",
    "load_segmenter": "owl_swin.families.closed_set",
    "load_swin": "owl_swin.families.swin_weights",
    "open_image": "owl_swin.image",
    "open_parts": "owl_swin.huge",
    "panoptic_categories": "owl_swin.map_formats",
    "pipeline": "owl_swin.pipelines",
    "to_coco": "owl_swin.formats",
    "to_csv": "owl_swin.formats",
    "to_fiftyone": "owl_swin.formats",
    "to_label_image": "owl_swin.map_formats",
    "to_label_studio": "owl_swin.label_studio",
    "to_legend": "owl_swin.map_formats",
    "to_panoptic_image": "owl_swin.map_formats",
    "to_record": "owl_swin.formats",
    "to_video_record": "owl_swin.formats",
    "to_voc": "owl_swin.formats",
    "to_yolo": "owl_swin.formats",
    "video_writer": "owl_swin.video_output",
    "yolo_data": "owl_swin.formats",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_MODULES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
