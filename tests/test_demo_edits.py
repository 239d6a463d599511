"""Boxes edited by hand in the demo: what becomes of them when the model answers otherwise, and in each form."""

import ast
import csv
import io
import json
import math
import xml.etree.ElementTree as ET
from dataclasses import replace

import pytest
import torch
from picture_files import noise

gr = pytest.importorskip("gradio")

from owl_swin import Detections, QueryError, draw_detections, to_fiftyone, to_yolo  # noqa: E402
from owl_swin.demo import edits, examples, naming, showing, showing_layout, terms  # noqa: E402
from owl_swin.demo.asking import Question  # noqa: E402
from owl_swin.demo.edits import Edit, Edits, Mark, annotate, read_edit  # noqa: E402
from owl_swin.demo.models import Models  # noqa: E402
from owl_swin.demo.photos import take_photo  # noqa: E402
from owl_swin.demo.session import Session  # noqa: E402

BY, OTHER = ("nano", 96), ("nano", 192)
CAT, DOG = (10.0, 10.0, 50.0, 50.0), (60.0, 10.0, 90.0, 40.0)


def found(*rows) -> Detections:
    """Detections of (name, box) in a picture of 60 x 90, with falling scores."""
    names = ("a cat", "a dog")
    boxes = torch.tensor([box for _, box in rows]).reshape(-1, 4)
    labels = torch.tensor([names.index(name) for name, _ in rows], dtype=torch.long)
    n = len(rows)
    return Detections(boxes, torch.linspace(0.9, 0.5, n), labels, names, (60, 90), torch.arange(n))


def shown(result: Detections) -> list:
    return [(one.name, one.box_xyxy, None if math.isnan(one.score) else round(one.score, 2)) for one in result]


def event(number=1, was=None, now=None, undo=False, reset=False) -> Edit:
    return Edit(number, was, now, undo, reset)


def told(name, box, hand=None) -> dict:
    return {"label": name, "box": list(box), "hand": hand}


def after(*events, by=BY) -> Edits:
    state = Edits()
    for one in events:
        state = read_edit(state, one, (60, 90), by)
    return state


def test_an_edit_of_another_photo_or_one_that_is_refused_is_heard_and_changes_nothing(detector):
    on = naming.Handlers(Models(detector))
    session = Session(naming.Named(Question(take_photo(noise(60, 90), "here.png"))))
    now = {"was": None, "now": told("a cat", CAT, "h1"), "undo": False, "reset": False}

    def edited(number: int, of=None, **more) -> dict:
        event = gr.EventData(None, {"edits": [{**now, "number": number, **more}], "of": of})
        return on.on_edited(event, session, 0.2, 0.5)[1]

    assert edited(1, of="gone")["edited"] == 1 and not session.value.asked.edits
    with pytest.warns(UserWarning, match="four numbers"):
        assert edited(2, now=told("a cat", [math.nan] * 4, "h1"))["edited"] == 2
    assert not session.value.asked.edits
    assert edited(3, of=session.value.asked.photo.key)["edited"] == 3 and len(session.value.asked.edits.drawn) == 1


@pytest.mark.parametrize("tab", [naming, showing])
def test_edits_that_come_in_another_order_or_twice_are_done_once_in_the_order_in_which_they_were_made(tab, detector):
    question = Question(take_photo(noise(60, 90), "here.png"))
    on = tab.Handlers(Models(detector))
    session = Session(naming.Named(question) if tab is naming else examples.Shown(target=question))
    view = (0.2, 0.5) if tab is naming else (0.2, 0.5, showing_layout.BOXES)
    drawn = {"number": 1, "was": None, "now": told("a cat", CAT, "h1"), "undo": False, "reset": False}
    moved = {**drawn, "number": 2, "was": drawn["now"], "now": told("a cat", DOG, "h1")}
    undone = {"number": 3, "was": None, "now": None, "undo": True, "reset": False}

    def come(*edits) -> tuple:
        on.on_edited(gr.EventData(None, {"edits": list(edits)}), session, *view)
        now = (session.value.asked if tab is naming else session.value.target).edits
        return now.number, [one.box_xyxy for one in now.drawn]

    assert come(drawn, undone, moved) == (3, [tuple(CAT)])
    assert come(drawn) == come(moved, drawn) == (3, [tuple(CAT)])
    with pytest.warns(UserWarning, match="its number"):
        come({"number": "x"})
    assert come() == (3, [tuple(CAT)])


def test_what_is_not_edited_stays_as_it_was_found():
    result = found(("a cat", CAT), ("a dog", DOG))
    assert annotate(result, Edits(), BY) == result
    assert not Edits()


def test_a_box_that_is_moved_and_named_has_no_score_and_one_that_goes_is_gone():
    moved = after(
        event(1, told("a cat", CAT), told("a lynx", (12, 10, 52, 50), "h1")), event(2, told("a dog", DOG), None)
    )
    result = annotate(found(("a cat", CAT), ("a dog", DOG)), moved, BY)
    assert shown(result) == [("a lynx", (12, 10, 52, 50), None)]
    assert result.names == ("a cat", "a dog", "a lynx") and result.patches.tolist() == [-1]
    again = read_edit(moved, event(3, told("a lynx", (12, 10, 52, 50), "h1"), None), (60, 90), BY)
    assert shown(annotate(found(("a cat", CAT)), again, BY)) == [] and again.number == 3


def test_edits_hold_for_whatever_threshold_and_names_come_next():
    state = after(event(1, told("a dog", DOG), None), event(2, None, told("a bird", (0, 0, 9, 9), "h1")))
    bird = ("a bird", (0, 0, 9, 9), None)
    assert shown(annotate(found(), state, BY)) == [bird]  # a threshold that nothing reaches
    assert shown(annotate(found(("a cat", CAT), ("a dog", DOG)), state, BY)) == [("a cat", CAT, 0.9), bird]
    twins = found(("a dog", DOG), ("a dog", DOG), ("a cat", DOG))
    assert [row[0] for row in shown(annotate(twins, state, BY))] == ["a dog", "a cat", "a bird"]  # one for one


@pytest.mark.parametrize("by, kept", [(BY, 1), (OTHER, 0)])
def test_what_was_taken_away_is_known_again_in_another_look_at_the_photo(by, kept):
    """There its box differs a little; in the same look one that differs is another."""
    state = after(event(1, told("a cat", CAT), None))
    assert len(annotate(found(("a cat", (13.0, 10.0, 53.0, 50.0))), state, by)) == kept
    line = (5.0, 5.0, 5.0, 20.0)  # has no area
    assert len(annotate(found(("a cat", line)), after(event(1, told("a cat", line), None)), BY)) == 0


def test_undo_goes_back_step_by_step_and_takes_back_all_too():
    state = after(event(1, told("a cat", CAT), None), event(2, None, told("a bird", (0, 0, 9, 9), "h1")))
    cleared = read_edit(state, event(3, reset=True), (60, 90), BY)
    assert not cleared and len(cleared.before) == 3
    back = read_edit(cleared, event(4, undo=True), (60, 90), BY)
    assert (back.gone, back.drawn, back.number) == (state.gone, state.drawn, 4)
    for number in (5, 6, 7):  # one more than there are
        back = read_edit(back, event(number, undo=True), (60, 90), BY)
    assert (back.gone, back.drawn, back.before) == ((), (), ())


@pytest.mark.parametrize(
    "now",
    [
        told("", CAT, "h1"),
        told("a cat", (1, 2, 3), "h1"),
        told("a cat", (1, 2, 3, math.nan), "h1"),
        told("a cat", (1, 2, 3, "x"), "h1"),
        told("a cat", CAT, None),
        {"label": "a cat"},
        "no box",
    ],
)
def test_a_box_that_means_nothing_is_refused(now):
    with pytest.raises(QueryError):
        after(event(1, None, now))


def test_boxes_stay_in_the_photo_and_are_bounded_in_number(monkeypatch):
    assert after(event(1, None, told(" x " * 200, (99, -5, -3, 70), "h1"))).drawn == (
        Mark((" x " * 200).strip()[:200], (0, 0, 90, 60), "h1"),
    )
    monkeypatch.setattr(edits, "MOST_DRAWN", 1)
    with pytest.raises(QueryError, match="at most 1 boxes"):
        after(event(1, None, told("x", CAT, "h1")), event(2, None, told("x", CAT, "h2")))


def test_another_photo_has_no_edits_and_their_numbers_go_on():
    photo = take_photo(noise(60, 90), "blocks.png")
    question = Question(photo).edited(None, event(7, None, told("x", CAT, "h1")))
    assert question.edits.drawn and question.of(photo).edits == Edits(number=7)


def test_every_form_holds_the_edited_boxes_and_says_that_they_have_no_score(detector):
    photo = take_photo(noise(60, 90), "blocks.png")
    named = naming.ask(detector, naming.Named(Question(photo), terms.with_names(detector, (), ["a cat"])))
    first = naming.find(detector, named, 0.02, 0.5)[0]
    asked = named.asked.edited(None, event(1, told(first.name, first.box_xyxy), told("bird, small", CAT, "h1")))
    stage, _, given = naming.show(detector, replace(named, asked=asked), 0.02, 0.5)
    n = len(stage["boxes"])
    assert stage["boxes"][-1] == {
        "box": CAT, "label": "bird, small", "score": None, "query": 1, "patch": None, "hand": "h1",
    }  # fmt: skip
    assert first.box_xyxy not in [mark["box"] for mark in stage["boxes"]]
    assert (stage["names"], stage["edited"], stage["undo"]) == (["a cat", "bird, small"], 1, True)
    files = {file["label"]: file.get("text", "") for file in given["files"]}
    *others, last = json.loads(files["JSON"])["detections"]
    assert last["label"] == "bird, small" and last["score"] is None and all(row["score"] > 0 for row in others)
    coco = json.loads(files["COCO"])
    assert len(coco["annotations"]) == n and "score" not in coco["annotations"][-1]
    assert [one["name"] for one in coco["categories"]] == ["a cat", "bird, small"]
    assert files["YOLO"].splitlines()[-1] == "1 0.333333 0.500000 0.444444 0.666667"
    things = ET.fromstring(files["VOC"]).findall("object")
    assert len(things) == n and things[-1].find("score") is None and things[0].find("score") is not None
    rows = list(csv.DictReader(io.StringIO(files["CSV"])))
    assert len(rows) == n and (rows[-1]["label"], rows[-1]["score"]) == ("bird, small", "")
    (task,) = json.loads(files["Label Studio"])
    (annotation,) = task["annotations"]
    assert "predictions" not in task and len(annotation["result"]) == n
    assert not [one for one in annotation["result"] if "score" in one]
    copied = {one["label"]: one["copy"] for one in given["copies"]}
    assert json.loads(copied["JSON"]) == json.loads(files["JSON"])
    assert ast.literal_eval(copied["Python"].removeprefix("annotation = ")) == json.loads(files["JSON"])
    assert set(copied) == {"Python", "JSON"} and "ask the model anew" in given["note"]
    nothing, _, given = naming.show(detector, replace(named, asked=asked), 1.0, 0.5)
    assert [mark["label"] for mark in nothing["boxes"]] == ["bird, small"] and nothing["note"] is None


def test_a_box_without_a_score_is_drawn_and_handed_to_other_libraries_as_one():
    result = annotate(found(("a cat", CAT)), after(event(1, None, told("a dog", DOG, "h1"))), BY)
    assert draw_detections(noise(60, 90), result).size == (90, 60)
    assert [row["confidence"] for row in to_fiftyone(result)] == [pytest.approx(0.9), None]
    assert [len(line.split()) for line in to_yolo(result, with_scores=True).splitlines()] == [6, 5]
