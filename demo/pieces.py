"""The pieces of the pages that Gradio has not: photos with boxes, small pictures, names, downloads (see *.js)."""

from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import gradio as gr

from owl_swin import Detections, EncodedImage
from owl_swin.demo.photos import SHOWN_PX, Photo

HERE = Path(__file__).parent
SCRIPTS = ("stage.js", "zoom.js", "drawing.js", "editing.js", "pieces.js", "camera.js", "clip.js", "batch.js", "map.js")
SCRIPT = "".join((HERE / name).read_text() for name in SCRIPTS)
STYLE = (HERE / "style.css").read_text()
# Put into the page with a piece, so that pages look and work the same wherever the Blocks are mounted.
HEAD = f"<script>{SCRIPT}</script>"
HOW = "or click to choose one, or paste one"
NO_PHOTO = ("Drop a photo here", HOW)

# How events run: none is part of an API, and one that needs the model says that it is at work.
QUIET: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
BUSY: dict[str, Any] = {"api_visibility": "private", "show_progress": "minimal"}

R = TypeVar("R")
# The page takes no notice of a value that is the one before, though it may have been drawn on since.
_drawn_on = count()


class Upload(NamedTuple):
    """A file that a visitor sent: where it lies here, and what it is called there, with the folder it came in."""

    path: str
    name: str


def stage(
    mode: str,
    *,
    upload: str = "",
    table: bool = False,
    likes: bool = False,
    edits: bool = False,
    empty: tuple[str, str] = NO_PHOTO,
    **options: Any,
) -> gr.HTML:
    """A place for one photo. ``mode``: "look", "draw" (tells "drawn"), "point" (tells "pointed").

    ``upload``: id of the upload button that takes what is dropped or pasted here. With ``table``, what is marked is
    listed below, and with ``likes`` each can be clicked as an example, or as what it is not, which "liked" tells; a
    note may offer a number, which clicking it tells by "asked". With ``edits`` boxes can be moved, named, drawn and
    taken away, which "edited" tells. What the copy of a photo is too coarse for is asked for by "zoomed". ``empty``:
    title and text without a photo.
    """
    return gr.HTML(
        value=no_photo(*empty),
        html_template='<div class="owl-stage"></div>',
        js_on_load='owlStage(element, props, trigger, watch); // "drawn" "pointed" "asked" "liked" "edited" "zoomed"',
        head=HEAD,
        apply_default_css=False,
        mode=mode,
        upload=upload,
        table=table,
        likes=likes,
        edits=edits,
        part={},
        **options,
    )


def strip(*, grid: bool = False, empty: str = "", items: Sequence[dict[str, Any]] = (), **options: Any) -> gr.HTML:
    """Small pictures to click; tells "picked" and "removed", each with the index."""
    return gr.HTML(
        value=strip_value(items, empty=empty),
        html_template='<div class="owl-strip"></div>',
        js_on_load='owlStrip(element, props, trigger, watch); // "picked" "removed"',
        head=HEAD,
        apply_default_css=False,
        grid=grid,
        **options,
    )


def chips_piece(**options: Any) -> gr.HTML:
    """Names with their colour and how they fare; tells "tuned" {name, hidden or threshold} and "removed" {name}.

    The address of the page carries the model, the names, the thresholds, whether things are outlined, and the tab; one
    that it is opened with is told by "linked" {model, names, thresholds, threshold}, and by a click on the outlines.
    """
    return gr.HTML(
        value={"items": []},
        html_template='<div class="owl-chips"></div>',
        js_on_load='owlChips(element, props, trigger, watch); // "tuned" "removed" "linked"',
        head=HEAD,
        apply_default_css=False,
        **options,
    )


def files(**options: Any) -> gr.HTML:
    """Downloads that are made in the page. One whose content is not there yet tells "wanted" {label}."""
    return gr.HTML(
        value={"files": [], "copies": []},
        html_template='<div class="owl-files"></div>',
        js_on_load='owlFiles(element, props, trigger, watch); // "wanted"',
        head=HEAD,
        apply_default_css=False,
        **options,
    )


def upload_button(label: str, **options: Any) -> gr.UploadButton:
    """A button whose handler gets Uploads, one or a list: Gradio's own gives paths, whose names lack folders and signs.

    What is no picture is for the handler to refuse, by name.
    """
    button = gr.UploadButton(label, **options)

    def uploads(payload: Any) -> Any:
        if payload is None:
            return None
        many = [Upload(one.path, one.orig_name or Path(one.path).name) for one in getattr(payload, "root", [payload])]
        return many[0] if button.file_count == "single" else many

    button.preprocess = uploads  # type: ignore[method-assign]
    return button


def no_photo(title: str = NO_PHOTO[0], text: str = NO_PHOTO[1]) -> dict[str, Any]:
    """What a stage shows before there is a photo."""
    return {"src": "", "title": title, "text": text}


def stage_value(photo: Photo | None, *, src: str = "", note: dict[str, Any] | None = None, **marks: Any) -> dict:
    """What a stage shows: the photo, or ``src`` in its place, and the marks on it, all in pixels of the photo.

    Of the photo itself the page may ask for more pixels than its copy has, where it is ``reduced``.
    """
    if photo is None:
        return no_photo()
    shown = {"src": src or photo.src, "width": photo.width, "height": photo.height, "alt": photo.name, "key": photo.key}
    return {**shown, "reduced": not src and max(photo.width, photo.height) > SHOWN_PX, "note": note, **marks}


def draw_value(photo: Photo, box_xyxy: Sequence[float] | None) -> dict:
    """What a stage to draw on shows: the photo with the box so far, whatever was drawn on the page meanwhile."""
    return stage_value(photo, draft=list(box_xyxy) if box_xyxy else None, number=next(_drawn_on))


def strip_value(items: Sequence[dict[str, Any]], *, empty: str = "", chosen: int = -1) -> dict[str, Any]:
    """What a strip shows: items of src, title, caption, badge, kind and removable; ``empty`` where there are none."""
    return {"items": list(items), "empty": empty, "chosen": chosen}


def rows(
    found: Detections,
    encoded: EncodedImage | None = None,
    hands: Sequence[str] = (),
    paths: Sequence[str] | None = None,
) -> list[dict[str, Any]]:
    """Detections as marks for a stage; with the encoded picture, also where the patch lies that answered.

    The last of them are those made by hand, of which ``hands`` tells which they are; ``paths`` are the outlines of all.
    """
    places: list[Any] = [None] * len(found)
    if encoded is not None and len(found) > len(hands):
        by_model = found.patches[: len(found) - len(hands)].cpu()
        places[: len(by_model)] = [tuple(place) for place in encoded.views[0].patches_px(by_model).tolist()]
    keys = [""] * (len(found) - len(hands)) + list(hands)
    return [
        {
            "box": one.box_xyxy,
            "label": one.name,
            "score": None if hand else one.score,
            "query": one.query,
            "patch": place,
            "hand": hand,
            **({"outline": path} if path else {}),
        }
        for one, place, hand, path in zip(found, places, keys, paths or [""] * len(found), strict=True)
    ]


def cell_box(
    cell: tuple[int, int], grid_hw: tuple[int, int], image_hw: tuple[int, int]
) -> tuple[float, float, float, float]:
    """The place of one cell (row, column) of an even grid over a picture, xyxy pixels."""
    (row, column), (rows_, columns), (height, width) = cell, grid_hw, image_hw
    x, y = width / columns, height / rows_
    return (column * x, row * y, (column + 1) * x, (row + 1) * y)
