"""Outlines of what the demo found: on the photo, with edits, of several photos, and in what leaves the page."""

import json
import re
import shlex
import threading
import zipfile
from dataclasses import asdict, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from picture_files import noise
from PIL import Image, ImageDraw
from pycocotools import mask as coco_masks
from typer.testing import CliRunner

gr = pytest.importorskip("gradio")

from owl_swin import BoxMasks, Detections, Detector  # noqa: E402
from owl_swin.cli.main import app as cli  # noqa: E402
from owl_swin.demo import batch, exports, naming, showing, showing_layout, terms  # noqa: E402
from owl_swin.demo.asking import Question  # noqa: E402
from owl_swin.demo.bundles import Answered, write_bundle  # noqa: E402
from owl_swin.demo.edits import Edit, read_edit  # noqa: E402
from owl_swin.demo.examples import Example, Shown  # noqa: E402
from owl_swin.demo.models import Models  # noqa: E402
from owl_swin.demo.outlines import MOST_POINTS, path_of, paths_of  # noqa: E402
from owl_swin.demo.photos import take_photo  # noqa: E402
from owl_swin.demo.session import Session  # noqa: E402
from owl_swin.demo.settings import outlines_choice  # noqa: E402


def ring(side: int = 64) -> torch.Tensor:
    """Logits [1, S, S] of a disc with a round hole."""
    u = (torch.arange(side) + 0.5) / side * 2 - 1
    radius = (u[:, None] ** 2 + u**2).sqrt()
    return (10 * torch.minimum(0.9 - radius, radius - 0.4))[None]


def polygons(path: str) -> list[np.ndarray]:
    """The closed polygons [N, 2] of a path."""
    found = []
    for part in re.findall(r"M([^z]*)z", path):
        start, ways = part.split("l")
        steps = np.array([start.split(), *np.array(ways.split()).reshape(-1, 2)], dtype=float)
        found.append(steps.cumsum(0))
    return found


def filled(path: str, image_hw) -> np.ndarray:
    """Which pixels a path covers by the rule "evenodd"."""
    covered = np.zeros(image_hw, dtype=bool)
    for polygon in polygons(path):
        sheet = Image.new("1", image_hw[::-1])
        ImageDraw.Draw(sheet).polygon([tuple(point) for point in polygon], fill=1)
        covered ^= np.asarray(sheet)
    return covered


@pytest.mark.parametrize("image_hw, box", [((60, 90), (10, 5, 70, 50)), ((1000, 3000), (200, 100, 1900, 800))])
def test_a_path_covers_the_pixels_of_its_mask_and_leaves_its_holes(image_hw, box):
    masks = BoxMasks(ring(), torch.tensor([box], dtype=torch.float32), image_hw)
    path = path_of(masks, 0)
    assert len(polygons(path)) == 2
    ours, theirs = filled(path, image_hw), masks[0].numpy()
    assert (ours & theirs).sum() / (ours | theirs).sum() > 0.94  # PIL draws the border too
    assert len(path) < 1000


def test_paths_stay_short_whatever_the_mask():
    torch.manual_seed(0)
    masks = BoxMasks(torch.randn(1, 40, 40), torch.tensor([[0.0, 0.0, 5472.0, 3648.0]]), (3648, 5472))
    assert 0 < sum(map(len, polygons(path_of(masks, 0)))) <= MOST_POINTS
    many = BoxMasks(ring().expand(30, -1, -1), masks.boxes_px.expand(30, -1), masks.image_hw)
    rows = torch.zeros(30, dtype=torch.long)
    found = Detections(many.boxes_px, rows / 1.0, rows, ("a cat",), masks.image_hw, rows, masks=many)
    assert sum(map(len, paths_of(replace(found, patches=torch.arange(30)), {}))) < 40_000
    nothing = BoxMasks(torch.full((1, 4, 4), -1.0), masks.boxes_px, masks.image_hw)
    assert path_of(nothing, 0) == ""
    thin = BoxMasks(torch.ones(1, 4, 4), torch.tensor([[0.0, 0.0, 1.0, 4000.0]]), (4000, 1))
    assert len(polygons(path_of(thin, 0))) == 1


@pytest.fixture
def photo():
    return take_photo(noise(60, 90), "blocks.png")


@pytest.fixture
def encoded(monkeypatch):
    """What was asked of the encoder: of each photo, whether with masks."""
    seen, encode_image = [], Detector.encode_image

    def sees(self, one, **options):
        seen.append(options.get("masks", False))
        return encode_image(self, one, **options)

    monkeypatch.setattr(Detector, "encode_image", sees)
    return seen


@pytest.fixture
def tab(masked_detector, photo):
    """The handlers of the tab, and a visitor who asked for two names in a photo."""
    on = naming.Handlers(Models(masked_detector))
    session = Session(naming.Named(Question(photo), terms.with_names(masked_detector, (), ["a cat", "a dog"])))
    on.ask(session, lambda named: named)
    return on, session


def text_of(on, session, label: str, *view) -> str:
    """What one of the downloads holds."""
    value = on.on_wanted(session, *view)
    return next(one["text"] for one in value["files"] if one["label"] == label)


def edits_of(**one) -> SimpleNamespace:
    """What the page tells of one edit."""
    return SimpleNamespace(edits=[asdict(Edit(**one))])


def test_the_switch_adds_outlines_and_the_photo_is_encoded_with_masks_once(masked_detector, photo, encoded):
    on = naming.Handlers(Models(masked_detector))
    session = Session(naming.Named(Question(photo), terms.with_names(masked_detector, (), ["a cat"])))
    on.ask(session, lambda named: named)
    stage, _, files, *_ = on.on_view(session, 0.02, 0.5)
    assert stage["boxes"] and not any("outline" in mark for mark in stage["boxes"])
    assert all(one.get("text") != None for one in files["files"][1:-1])  # noqa: E711
    on.on_outlines(session, True)
    outlined, _, files, *_ = on.on_view(session, 0.02, 0.5)
    found = masked_detector.detect(photo.open(), ["a cat"], threshold=0.02, nms_iou=0.5, top_k=100, masks=True)
    assert [{**mark, "outline": None} for mark in outlined["boxes"]] == [
        {**mark, "outline": None} for mark in stage["boxes"]
    ]
    assert [mark.get("outline", "") for mark in outlined["boxes"]] == [
        path_of(found.masks, i) for i in range(len(found))
    ]
    assert [one["label"] for one in files["files"] if one.get("text", "") is None] == [
        "JSON", "COCO", "YOLO", "VOC", "CSV", "Label Studio",
    ]  # fmt: skip
    on.on_outlines(session, False)
    assert on.on_view(session, 0.02, 0.5)[0]["boxes"] == stage["boxes"]
    on.on_outlines(session, True)
    assert encoded == [False, True]
    few = on.on_view(session, float(found.scores[2]), 0.5)[0]["boxes"]
    assert few == outlined["boxes"][: len(few)] and 0 < len(few) < len(found)


def test_a_hidden_name_takes_its_outlines_with_it(tab):
    on, session = tab
    on.on_outlines(session, True)
    on.on_tuned(SimpleNamespace(name="a cat", hidden=True, threshold=None), session, 0.02, 0.5)
    boxes = on.on_view(session, 0.02, 0.5)[0]["boxes"]
    assert {mark["label"] for mark in boxes} == {"a dog"} and any("outline" in mark for mark in boxes)
    coco = json.loads(text_of(on, session, "COCO", 0.02, 0.5))
    assert len(coco["annotations"]) == len(boxes)


def test_downloads_hold_the_masks_and_a_box_that_was_moved_has_none(tab):
    on, session = tab
    on.on_outlines(session, True)
    before = on.on_view(session, 0.02, 0.5)[0]["boxes"]
    was = {**before[0], "hand": None}
    now = {**was, "box": [1, 2, 30, 40], "hand": "h1"}
    event = edits_of(number=1, was=was, now=now)
    _, stage, *_ = on.on_edited(event, session, 0.02, 0.5)
    assert [mark.get("outline") for mark in stage["boxes"]] == [*(one.get("outline") for one in before[1:]), None]
    found = naming.find(on.models.detector(), session.value, 0.02, 0.5)
    coco = json.loads(text_of(on, session, "COCO", 0.02, 0.5))
    *rows, moved = coco["annotations"]
    for row, mask in zip(rows, list(found.masks)[1:], strict=True):
        assert (coco_masks.decode(row["segmentation"]) == mask.numpy()).all() and row["area"] == mask.sum()
    assert moved["bbox"] == [1, 2, 29, 38] and moved["area"] == 29 * 38 and "segmentation" not in moved
    *rows, moved = json.loads(text_of(on, session, "JSON", 0.02, 0.5))["detections"]
    assert all("segmentation" in row for row in rows) and "segmentation" not in moved
    (task,) = json.loads(text_of(on, session, "Label Studio", 0.02, 0.5))
    kinds = [region["type"] for region in task["annotations"][0]["result"]]
    assert kinds.count("rectanglelabels") == 1 + sum(not mask.any() for mask in list(found.masks)[1:])
    assert kinds.count("polygonlabels") >= len(rows) - kinds.count("rectanglelabels")
    assert text_of(on, session, "YOLO", 0.02, 0.5).splitlines()[-1].count(" ") == 8
    copied = on.on_wanted(session, 0.02, 0.5)["copies"]
    assert json.loads(copied[1]["copy"])["detections"][-1] == moved
    renamed = {**before[1], "hand": None}
    event = edits_of(number=2, was=renamed, now={**renamed, "label": "a lynx", "hand": "h2"})
    lynx = on.on_edited(event, session, 0.02, 0.5)[1]["boxes"][-1]
    assert (lynx["label"], lynx["outline"]) == ("a lynx", before[1]["outline"])  # its box is the same
    *_, row = json.loads(text_of(on, session, "JSON", 0.02, 0.5))["detections"]
    assert row["segmentation"] == found.masks.rle_of(1) and row["score"] is None
    session.change(lambda named: replace(named, asked=replace(named.asked, edits=named.asked.edits.undone())))
    undone = edits_of(number=3, undo=True)
    assert on.on_edited(undone, session, 0.02, 0.5)[1]["boxes"] == before


def test_copied_code_asks_for_masks(tab, masked_detector, photo, tmp_path, monkeypatch):
    on, session = tab
    on.on_outlines(session, True)
    found = naming.find(masked_detector, session.value, 0.02, 0.7)
    call = exports.Call("tiny_for_tests", ["a cat", "a dog"], 0.02, 0.7, masks=True)
    assert on.on_view(session, 0.02, 0.7)[2]["copies"] == exports.copies(photo, call)
    photo.source.save(tmp_path / photo.name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Detector, "from_pretrained", lambda *_, **__: masked_detector)
    scope = {}
    exec(exports.as_python(photo, call), scope)
    assert scope["found"].masks == found.masks
    lines = CliRunner().invoke(cli, shlex.split(exports.as_command(photo, call))[1:]).stdout
    assert [row["segmentation"] for row in json.loads(lines)["detections"]] == found.rle()
    words = shlex.split(exports.as_curl(photo, call))
    assert json.loads(words[words.index("--form-string") + 1].removeprefix("request="))["masks"] is True


def test_several_photos_are_outlined_one_after_another_and_their_zip_holds_it(tab, encoded, tmp_path):
    on, session = tab
    others = [Question(take_photo(noise(60, 100, seed), f"{seed}.png")) for seed in (1, 2)]
    for one in others:
        batch.look_at(on.models.detector(), one, False)
    session.change(lambda named: replace(named, rest=batch.Rest(after=tuple(others))))
    del encoded[:]
    _, strip = on.on_outlines(session, True)
    assert strip["waiting"] == 2 and encoded == [True]
    badges = on.batch.on_marks(session, 0.02, 0.5)[0].props["marks"]["badges"]
    assert all(badges)  # also of those that are still to be outlined
    while strip["waiting"]:
        strip = on.batch.on_next(session)[1]
    assert encoded == [True] * 3
    on.batch.on_picked(gr.EventData(None, {"index": 2, "name": "2.png"}), session)
    assert any("outline" in mark for mark in on.on_view(session, 0.02, 0.5)[0]["boxes"]) and encoded == [True] * 3
    named = session.value
    photos = batch.photos_of(named.asked, named.rest)
    answers = [Answered(one.photo, on.found_in(named, one, 0.02, 0.5, True)) for one in photos]
    list(write_bundle(tmp_path / "a.zip", "Label Studio", answers, threading.Event()))
    with zipfile.ZipFile(tmp_path / "a.zip") as bundle:
        assert b"PolygonLabels" in bundle.read("interface.xml") and b"polygonlabels" in bundle.read("tasks.json")
    (bundled,) = [one for one in on.batch._answers(named, photos, 0.02, 0.5) if one.photo.name == "1.png"]
    assert bundled.found == answers[1].found and len(bundled.found.masks)


def test_a_model_without_masks_says_so_and_the_wish_is_kept(masked_detector, detector, photo):
    there, why_not = outlines_choice(masked_detector)
    assert there["visible"] and not why_not["visible"]
    choice = Models(masked_detector, ["nano", "plain"], lambda _: detector)
    on, session = naming.Handlers(choice), Session(naming.Named(Question(photo)))
    on.ask(session, lambda named: named)
    on.on_outlines(session, True)
    *_, there, why_not = on.on_model(session, Session("plain"))
    assert not there["visible"] and why_not["visible"] and "tiny\\_for\\_tests finds boxes" in why_not["value"]
    assert not any("outline" in mark for mark in on.on_view(session, 0.02, 0.5)[0]["boxes"])
    *_, there, why_not = on.on_model(session, Session("nano"))
    assert there["visible"] and not why_not["visible"]
    assert any("outline" in mark for mark in on.on_view(session, 0.02, 0.5)[0]["boxes"])


def test_what_is_shown_by_example_is_outlined_too(masked_detector, photo, encoded):
    example = Example.of(photo, (10.0, 10.0, 50.0, 50.0), True)
    on = showing.Handlers(Models(masked_detector))
    session = Session(Shown(photo, None, (example,), Question(photo)))
    on.ask(session, lambda shown: shown)
    on.on_outlines(session, True)
    stage, files = on.on_view(session, 0.02, 0.5, showing_layout.BOXES)
    assert any("outline" in mark for mark in stage["boxes"]) and not stage["heat"] and encoded == [False, True]
    assert files["files"][1]["text"] is None
    assert on.on_view(session, 0.02, 0.5, showing_layout.HEAT)[0]["heat"]
    coco = json.loads(text_of(on, session, "COCO", 0.02, 0.5, showing_layout.BOXES))
    assert all("segmentation" in one for one in coco["annotations"])


def test_a_box_drawn_where_nothing_was_found_has_no_mask(masked_detector, photo):
    drawn = {"label": "a bird", "box": [1, 2, 30, 40], "hand": "h1"}
    edit = Edit(number=1, now=drawn)
    question = Question(photo, outlines=True)
    on = naming.Handlers(Models(masked_detector))
    session = Session(naming.Named(question, terms.with_names(masked_detector, (), ["a cat"])))
    on.ask(
        session,
        lambda named: replace(named, asked=replace(named.asked, edits=read_edit(question.edits, edit, (60, 90), None))),
    )
    (mark,) = on.on_view(session, 1.0, 0.5)[0]["boxes"]
    assert mark["label"] == "a bird" and "outline" not in mark
