"""What leaves the page: an answer in the forms of other programs, and the code that gives the same answer."""

import base64
import json
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pprint import pformat
from typing import Any, Protocol

from owl_swin import Detections, QueryEmbeddings, to_coco, to_csv, to_label_studio, to_record, to_voc, to_yolo
from owl_swin.demo.photos import Photo

TOP_K = 100
OUTLINED = "VOC and CSV have no place for outlines; they hold the boxes."
EDITED = "These hold the boxes as you edited them. Calls for the command line and curl would ask the model anew."


class Named(Protocol):
    """A photo or a video: what it is called."""

    @property
    def name(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Call:
    """What was asked, for code that asks it again: names (empty: anything), or a file of queries in their place.

    ``image_size`` is None where it is the model's own, and ``as_served`` says whether it is the server's. ``masks``:
    outlines too.
    """

    model: str
    names: Sequence[str]
    threshold: float | Sequence[float]
    overlap: float
    image_size: int | None = None
    from_file: bool = False
    masks: bool = False
    as_served: bool = True


def downloads(
    photo: Photo, found: Detections, stage: str = "", *, edited: bool = False, later: bool = False
) -> list[dict[str, Any]]:
    """The answer as files; the picture with its boxes is drawn by the page from what ``stage``, an id, shows.

    Boxes made by hand have no score: null in JSON, an empty field in CSV, and none in COCO and VOC. What was ``edited``
    is an annotation of Label Studio and no prediction, which has no scores at all. ``later``: without the texts, for
    which the page asks when somebody wants one.
    """
    stem, (one, all_) = _stem(photo), ([photo.name], [found])

    def tasks() -> list[dict[str, Any]]:
        made = to_label_studio(one, all_)
        return [annotation(task) for task in made] if edited else made

    forms: dict[str, tuple[str, Callable[[], str]]] = {
        "JSON": ("json", lambda: json.dumps(to_record(photo.name, found), indent=1)),
        "COCO": ("coco.json", lambda: json.dumps(to_coco(one, all_), indent=1)),
        "YOLO": ("txt", lambda: to_yolo(found)),
        "VOC": ("xml", lambda: to_voc(photo.name, found)),
        "CSV": ("csv", lambda: to_csv(one, all_)),
        "Label Studio": ("label-studio.json", lambda: json.dumps(tasks(), indent=1)),
    }
    picture = [{"label": "Picture", "name": f"{stem}.boxes.png", "stage": stage}] if stage else []
    files = [
        {"label": label, "name": f"{stem}.{end}", "text": None if later else text()}
        for label, (end, text) in forms.items()
    ]
    return [*picture, *files]


def annotation(task: dict[str, Any]) -> dict[str, Any]:
    """A Label Studio task whose predictions somebody has looked through."""
    results = [result for prediction in task["predictions"] for result in prediction["result"]]
    without = [{key: value for key, value in one.items() if key != "score"} for one in results]
    return {"data": task["data"], "annotations": [{"result": without}]}


def edited_copies(photo: Photo, found: Detections, *, later: bool = False) -> list[dict[str, Any]]:
    """The boxes themselves: no question to a model gives what was edited by hand. ``later`` is that of downloads()."""
    if later:
        return [{"label": label, "copy": None} for label in ("Python", "JSON")]
    record = to_record(photo.name, found)
    python = f"annotation = {pformat(record, width=110, sort_dicts=False)}\n"
    return [{"label": "Python", "copy": python}, {"label": "JSON", "copy": json.dumps(record) + "\n"}]


def query_file(photo: Photo, queries: QueryEmbeddings | None) -> list[dict[str, str]]:
    """The queries as a file that "Load a query", `--query-file` and load_queries read."""
    if queries is None:
        return []
    name, content = query_file_name(photo), base64.b64encode(queries.to_bytes()).decode()
    return [{"label": "Query", "name": name, "base64": content}]


def query_file_name(photo: Named) -> str:
    """What the file of queries is called."""
    return f"{_stem(photo)}.queries.safetensors"


def copies(photo: Photo, call: Call) -> list[dict[str, str]]:
    """The same question as Python, for the command line, and, where the server can be asked so, for curl."""
    texts = {"Python": as_python(photo, call), "command line": as_command(photo, call)}
    if not call.from_file and call.as_served:
        texts["curl"] = as_curl(photo, call)
    return [{"label": label, "copy": text} for label, text in texts.items()]


def as_python(photo: Photo, call: Call) -> str:
    """The call of the library."""
    options = [] if call.model == "nano" else [repr(call.model)]
    options += [] if call.image_size is None else [f"image_size={call.image_size}"]
    queries = [repr(list(call.names))] if call.names else []
    if call.from_file:
        queries = [f"detector.load_queries({query_file_name(photo)!r})"]
    threshold = call.threshold if isinstance(call.threshold, float | int) else list(call.threshold)
    settings = [f"threshold={threshold!r}", f"nms_iou={call.overlap!r}", f"top_k={TOP_K}"]
    settings += ["masks=True"] if call.masks else []
    return (
        "from owl_swin import Detector\n\n"
        f"detector = Detector.from_pretrained({', '.join(options)})\n"
        f"found = detector.detect({', '.join([repr(photo.name), *queries, *settings])})\n"
        "print(found.to_dicts())\n"
    )


def as_command(photo: Named, call: Call) -> str:
    """The command."""
    words = ["owl-swin", "detect", as_path(photo.name)]
    words += [word for name in ([] if call.from_file else call.names) for word in ("--query", name)]
    words += ["--query-file", query_file_name(photo)] if call.from_file else []
    if isinstance(call.threshold, float | int):
        words += ["--threshold", f"{call.threshold:g}"]
    else:
        pairs = zip(call.names, call.threshold, strict=True)
        words += [word for name, limit in pairs for word in ("--threshold", f"{name}={limit:g}")]
    words += ["--nms-iou", f"{call.overlap:g}", "--top-k", str(TOP_K)]
    words += ["--masks", "--format", "jsonl"] if call.masks else []
    words += [] if call.image_size is None else ["--image-size", str(call.image_size)]
    words += [] if call.model == "nano" else ["--model", call.model]
    return shlex.join(words) + "\n"


def as_path(name: str) -> str:
    """A file in the folder of a command, which takes none that begins with "-" for an option."""
    return f"./{name}" if name.startswith("-") else name


def as_curl(photo: Photo, call: Call) -> str:
    """The request to a server of `owl-swin serve`; ``ORIGIN`` is put in by the page."""
    asked = {"queries": list(call.names)} if call.names else {}
    threshold = call.threshold if isinstance(call.threshold, float | int) else list(call.threshold)
    masks = {"masks": True} if call.masks else {}
    request = json.dumps({**asked, "threshold": threshold, "nms_iou": call.overlap, "top_k": TOP_K, **masks})
    name = photo.name.replace("\\", "\\\\").replace('"', '\\"')
    words = ["curl", "-F", f'images=@"{name}"', "--form-string", f"request={request}"]
    return shlex.join(words) + " ORIGIN/v1/detect\n"


def note_on(found: Detections, *, edited: bool) -> str:
    """What is to be said of downloads."""
    return " ".join([EDITED] * edited + [OUTLINED] * (found.masks is not None))


def stage_files(
    files: Sequence[dict[str, Any]], copied: Sequence[dict[str, Any]] = (), *, note: str = ""
) -> dict[str, Any]:
    """What the row of downloads shows, and a note below it."""
    value: dict[str, Any] = {"files": list(files), "copies": list(copied)}
    return {**value, "note": note} if note else value


def where_served(files: dict[str, Any], served: bool) -> dict[str, Any]:
    """The row of downloads without the request to a server, where none answers beside the pages."""
    return files if served else {**files, "copies": [one for one in files["copies"] if one["label"] != "curl"]}


def _stem(photo: Named) -> str:
    return photo.name.replace("\\", "/").rsplit("/", 1)[-1].rsplit(".", 1)[0] or "photo"
