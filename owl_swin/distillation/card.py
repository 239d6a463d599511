"""The card of a student: above all, who its teacher was."""

from collections.abc import Mapping, Sequence
from typing import Any

from owl_swin.detector import Detector
from owl_swin.labelling.names import LabelName
from owl_swin.training.tasks.student import StudentConfig

# Names that a card spells out.
MOST_NAMES = 12
WITHOUT_IMAGE_EMBED = (
    "The teacher makes nothing of whole pictures: what the student says of them, in classification and retrieval, is "
    "the mean of its patches."
)


def student_card(
    name: str,
    teacher: Detector,
    source: str,
    names: Sequence[LabelName],
    counts: Mapping[str, int],
    config: StudentConfig,
) -> dict[str, Any]:
    """Sentences for `owl-swin info`, and the teacher's name, family and weights for programs."""
    spec, listed = teacher.spec, ", ".join(one.name for one in names[:MOST_NAMES])
    more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    texts = "learned the teacher's texts (`owl-swin distil-text`)" if config.text else "is the teacher's own"
    start = f", from {', '.join(config.init)}" if config.init else ", from random weights"
    licence = teacher.card.get("licence") or []
    return {
        "name": name,
        "teacher": {
            "name": teacher.name,
            "source": source,
            "family": spec.family,
            "fingerprint": spec.fingerprint,
            "image_size": teacher.image_size,
        },
        "description": [
            f"A student of {teacher.name} ({spec.family}, weights {spec.fingerprint[:12]}), by `owl-swin distil`.",
            f"It lives in its teacher's text space of {spec.embed_dim} dimensions; its text encoder {texts}.",
        ],
        "data": [
            f"{counts['learned from']} pictures that nobody labelled, with the teacher's boxes, scores and embeddings "
            f"at {teacher.image_size} px for {len(names)} names: {listed}{more}.",
            f"{counts['held out']} more were held out to compare the two; their truth below is what the teacher found.",
        ],
        "recipe": [
            f"{config.steps} steps of {config.batch_size * config.accumulate} scenes{start}; boxes from a score of "
            f"{config.threshold:g}, pictures with one of {config.picture_threshold:g}; seed {config.seed}."
        ],
        "limits": [
            "What the teacher gets wrong, the student was taught. Agreement with it is no accuracy: measure that on "
            "true boxes with `owl-swin eval detect`.",
            *([] if spec.has_image_embed else [WITHOUT_IMAGE_EMBED]),
        ],
        "licence": [
            "A student is made of its teacher's answers and of the pictures: the terms of both hold for it.",
            *(f"Of the teacher: {sentence}" for sentence in ([licence] if isinstance(licence, str) else licence)),
        ],
    }
