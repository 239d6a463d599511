"""What leaves "Map it": a map in the forms of other programs, and the code that makes the same."""

import base64
import io
import json
import shlex
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from PIL import Image

from owl_swin import SemanticMap, draw_semantic_map, panoptic_categories, to_label_image, to_legend, to_panoptic_image
from owl_swin.demo.bundles import free_paths
from owl_swin.demo.exports import as_path, query_file_name
from owl_swin.demo.photos import Photo

# Longest side of the drawing.
DRAWN_PX = 4096
QUALITY = 90


@dataclass(frozen=True, slots=True)
class MapCall:
    """What was asked, for code that asks it again: names, or a file of queries in their place; ``image_size`` is None
    where it is the model's own."""

    model: str
    names: Sequence[str]
    threshold: float
    from_file: bool = False
    image_size: int | None = None


def _drawing(photo: Photo, found: SemanticMap) -> bytes:
    picture = photo.open().copy()
    picture.thumbnail((DRAWN_PX, DRAWN_PX))
    content = io.BytesIO()
    draw_semantic_map(picture, found.resized((picture.height, picture.width))).save(content, "JPEG", quality=QUALITY)
    return content.getvalue()


def _png(image: Image.Image) -> bytes:
    content = io.BytesIO()
    image.save(content, "PNG")
    return content.getvalue()


def _labels(photo: Photo, found: SemanticMap) -> bytes:
    return _png(to_label_image(found))


def _legend(photo: Photo, found: SemanticMap) -> bytes:
    legend = {"image": photo.name, "map": f"{_stem(photo)}.map.png", **to_legend(found)}
    return (json.dumps(legend, indent=1) + "\n").encode()


def _panoptic(photo: Photo, found: SemanticMap) -> bytes:
    """A set of one picture, as `owl-swin segment --format coco-panoptic` writes sets."""
    (height, width), (image, segments), name = found.image_hw, to_panoptic_image(found), f"{_stem(photo)}.png"
    panoptic = {
        "images": [{"id": 1, "file_name": photo.name, "width": width, "height": height}],
        "annotations": [{"image_id": 1, "file_name": name, "segments_info": segments}],
        "categories": panoptic_categories(found.names),
    }
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as bundle:
        bundle.writestr("panoptic.json", json.dumps(panoptic) + "\n")
        bundle.writestr(f"panoptic/{name}", _png(image), zipfile.ZIP_STORED)  # packed already
    return content.getvalue()


# The forms of a map: how its file ends, and what makes it.
FORMS: dict[str, tuple[str, Callable[[Photo, SemanticMap], bytes]]] = {
    "Picture": ("map.jpg", _drawing),
    "Label map": ("map.png", _labels),
    "Legend": ("map.json", _legend),
    "COCO panoptic": ("panoptic.zip", _panoptic),
}


def downloads(photo: Photo, found: SemanticMap | None = None, wanted: str = "") -> list[dict[str, Any]]:
    """The forms of a map as files: the one that is ``wanted`` is made of what was ``found``, the others are to be asked
    for, as of a large photo each takes seconds."""
    files: list[dict[str, Any]] = []
    for label, (end, make) in FORMS.items():
        file = {"label": label, "name": f"{_stem(photo)}.{end}", "text": None}
        if label == wanted and found is not None:
            file = {**file, "text": "", "base64": base64.b64encode(make(photo, found)).decode()}
        files.append(file)
    return files


def copies(photo: Photo, call: MapCall) -> list[dict[str, str]]:
    """The same question as Python, for the command line, and, where the server can be asked so, for curl."""
    file, threshold = query_file_name(photo), f"{call.threshold:g}"
    options = [] if call.model == "nano" else [repr(call.model)]
    options += [] if call.image_size is None else [f"image_size={call.image_size}"]
    asked = f"detector.load_queries({file!r})" if call.from_file else repr(list(call.names))
    python = (
        "from owl_swin import Detector, to_label_image\n\n"
        f"detector = Detector.from_pretrained({', '.join(options)})\n"
        f"found = detector.segment({photo.name!r}, {asked}, threshold={call.threshold!r})\n"
        f"print({{found.names[label]: share for label, share in found.shares().items() if label >= 0}})\n"
        f"to_label_image(found).save({f'{_stem(photo)}.map.png'!r})\n"
    )
    words = ["owl-swin", "segment", as_path(photo.name), "--threshold", threshold, "--save", "maps"]
    words += ["--query-file", file] if call.from_file else []
    words += [word for name in ([] if call.from_file else call.names) for word in ("--query", name)]
    words += [] if call.image_size is None else ["--image-size", str(call.image_size)]
    words += [] if call.model == "nano" else ["--model", call.model]
    texts = {"Python": python, "command line": shlex.join(words) + "\n"}
    if not call.from_file:
        request = json.dumps({"queries": list(call.names), "threshold": call.threshold})
        name = photo.name.replace("\\", "\\\\").replace('"', '\\"')
        words = ["curl", "-F", f'images=@"{name}"', "--form-string", f"request={request}"]
        texts["curl"] = shlex.join(words) + " ORIGIN/v1/segment\n"
    return [{"label": label, "copy": text} for label, text in texts.items()]


def _stem(photo: Photo) -> str:
    return PurePosixPath(free_paths([photo.name])[0]).stem
