"""Teachers by name: a model of ours, of the OWL family, or of transformers."""

from pathlib import Path

from owl_swin.detector import Detector
from owl_swin.teachers.detector import DetectorTeacher
from owl_swin.teachers.teacher import Teacher


def load_teacher(
    source: str | Path, *, device: str = "auto", dtype: str | None = None, image_size: int | None = None
) -> Teacher:
    """The teacher of a name, file or folder; what cannot be read raises CheckpointError."""
    return DetectorTeacher(Detector.from_pretrained(source, device=device, dtype=dtype, image_size=image_size))
