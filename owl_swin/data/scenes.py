"""Sets of pictures with boxes and names, for detection: one door to the readers of all forms."""

import logging
from dataclasses import replace
from pathlib import Path

from owl_swin.data.broken import reading, report_broken
from owl_swin.data.coco import read_coco, read_lvis
from owl_swin.data.config import DETECT_KINDS, DataConfig
from owl_swin.data.label_scenes import read_label_scenes
from owl_swin.data.label_studio import read_label_studio
from owl_swin.data.naming import images_folder
from owl_swin.data.panoptic import read_panoptic
from owl_swin.data.scene import (
    PictureCache,
    Scene,
    Scenes,
    merge_same_names,
    readable,
    without_missing,
    without_rare,
)
from owl_swin.data.tiles import read_sheets
from owl_swin.data.visual_genome import read_visual_genome
from owl_swin.data.voc import read_voc
from owl_swin.data.yolo import read_yolo
from owl_swin.errors import DataError

logger = logging.getLogger("owl_swin")

__all__ = ["PictureCache", "Scene", "Scenes", "load_scenes", "read_coco", "readable"]


def load_scenes(config: DataConfig, cache: PictureCache | None = None, *, masks: bool = False) -> Scenes:
    """Reads one set with boxes, and with ``masks`` those that it has. Broken entries are left out, listed in ``broken``
    and counted in a warning.

    Pictures are opened later, when they are drawn, and kept in ``cache``; here only their files are looked for.
    """
    if config.kind not in DETECT_KINDS:
        known = ", ".join(DETECT_KINDS)
        raise DataError(f"{config.path}: sets of kind {config.kind!r} have no boxes to detect; those of {known} have")
    with reading(config.path, f"a set of kind {config.kind!r}"):
        scenes = _read(config, masks)
    there = without_missing(scenes.scenes, scenes.broken)
    if config.max_pictures:
        there = there[: config.max_pictures]
    scenes = merge_same_names(replace(scenes, scenes=there, cache=cache or PictureCache(0)))
    if config.min_per_class:
        scenes = without_rare(scenes, config.min_per_class)
    if not scenes.scenes or not scenes.names:
        first = f"; the first of {len(scenes.broken)} problems: {scenes.broken[0]}" if scenes.broken else ""
        held = f"{len(scenes.scenes)} pictures and {len(scenes.names)} names"
        raise DataError(f"{config.path}: holds {held}, need both{first}")
    report_broken(config.path, scenes.broken)
    if not any(len(scene.labels) or len(scene.vague_labels) for scene in scenes.scenes):
        logger.warning("%s: holds no box: all that its pictures show is background", config.path)
    return scenes


def _read(config: DataConfig, masks: bool) -> Scenes:
    path = Path(config.path)
    if config.kind == "voc":
        return read_voc(path, config.images)
    if config.kind == "yolo":
        return read_yolo(path, config.images, config.split, ignore_below=config.ignore_below)
    if config.kind == "label_studio":
        return read_label_studio(path, config.images)
    if config.kind == "label_maps":
        return read_label_scenes(path, config.images, config.names, config.ignore_values)
    if config.kind == "sheets":
        return read_sheets(path, config.split, config.names)
    folder = images_folder(path, config.images)
    if config.kind == "visual_genome":
        return read_visual_genome(path, folder)
    if config.kind == "coco_panoptic":
        return read_panoptic(path, folder, masks=masks)
    read = {"coco": read_coco, "lvis": read_lvis}[config.kind]
    return read(path, folder, ignore_below=config.ignore_below, masks=masks)
