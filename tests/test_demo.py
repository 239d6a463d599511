"""What the pages of the demo show, without a browser."""

import ast
import base64
import copy
import json
import runpy
import shlex
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from picture_files import encode, noise
from torch.testing import assert_close
from typer.testing import CliRunner

gr = pytest.importorskip("gradio")

from owl_swin import ArchiveError, Detector, Exemplar, ImageError, Query, QueryError  # noqa: E402
from owl_swin.cli.main import app as cli  # noqa: E402
from owl_swin.demo import (  # noqa: E402
    app,
    archived,
    asking,
    examples,
    exports,
    filling,
    inside,
    models,
    naming,
    results,
    searching,
    showing,
    showing_layout,
    terms,
)
from owl_swin.demo.asking import Question  # noqa: E402
from owl_swin.demo.photos import board, samples, take_photo  # noqa: E402
from owl_swin.demo.pieces import Upload, rows, upload_button  # noqa: E402
from owl_swin.demo.refusals import Refused, errors_shown, explain, pick  # noqa: E402
from owl_swin.demo.session import Session  # noqa: E402
from owl_swin.demo.settings import threshold_slider  # noqa: E402
from owl_swin.server.app import build_demo as served_demo  # noqa: E402

DEMO = Path(__file__).parent.parent / "demo"
MODULES = sorted(DEMO.glob("*.py"))


@pytest.fixture
def photo(picture):
    return take_photo(picture, "blocks.png")


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.name)
def test_the_pages_know_the_public_face_alone(path):
    tree = ast.parse(path.read_text())
    modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    own = {name for name in modules if name.split(".")[0] == "owl_swin"}
    assert own <= {"owl_swin", "owl_swin.demo"} | {f"owl_swin.demo.{other.stem}" for other in MODULES}
    assert len(path.read_text().splitlines()) <= 400
    assert ast.get_docstring(tree)


@pytest.mark.parametrize("name", [*(path.name for path in DEMO.glob("*.js")), "style.css", "app.py", "pieces.py"])
def test_nothing_comes_from_elsewhere(name):
    text = (DEMO / name).read_text().replace("http://www.w3.org/2000/svg", "")
    assert not [word for word in ("http:", "https:", "@import", "url(") if word in text]


def test_the_file_starts_from_a_checkout(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))  # what it sets is of its own process
    monkeypatch.setattr(sys, "argv", ["demo/app.py", "--help"])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(DEMO / "app.py"), run_name="__main__")
    assert end.value.code == 0
    assert "--index" in capsys.readouterr().out


@pytest.fixture(scope="module")
def blocks(masked_detector):
    return app.build_demo(masked_detector)


def test_no_click_is_lost_or_repeated_while_the_one_before_is_at_work(blocks):
    """Gradio drops what comes meanwhile ("once"), or does the first again in the place of the last ("always_last")."""
    wired = list(blocks.fns.values())
    assert {one.trigger_mode for one in wired if one.collects_event_data} == {"multiple"}
    assert {one.name: one.trigger_mode for one in wired if one.name in ("on_size", "on_outlines", "on_words")} == {
        "on_size": "always_last",  # what they set is asked for, not told
        "on_outlines": "always_last",
        "on_words": "always_last",
    }
    assert not [one.name for one in wired if one.trigger_after is not None and one.trigger_mode == "once"]


def test_the_memory_of_visitors_is_bounded_mounted_or_launched(blocks, detector, monkeypatch):
    mounted = gr.routes.App.create_app(blocks)
    assert mounted.state_holder.capacity == app.SESSIONS
    launched = {}
    monkeypatch.setattr(gr.Blocks, "launch", lambda blocks, **options: launched.update(options))
    monkeypatch.setattr(Detector, "from_pretrained", lambda *_, **__: detector)
    monkeypatch.setattr(sys, "argv", ["demo/app.py"])
    app.main()
    assert launched["state_session_capacity"] == app.SESSIONS


def test_what_a_forgotten_session_showed_is_said_to_be_gone():
    assert pick(("a", "b"), 1) == "b"
    with pytest.raises(Refused, match="left for too long"):
        pick((), 1)
    with pytest.raises(Refused):
        pick(("a", "b"), -1)  # of a page that was tampered with


def test_a_handler_that_takes_long_starts_again_from_what_another_changed_meanwhile():
    session = Session(("a",))
    other = copy.deepcopy(session)
    attempts = []

    def long(value):
        attempts.append(value)
        if len(attempts) == 1:
            session.change(lambda value: (*value, "b"))
        return (*value, "c")

    assert session.change(long) == session.value == ("a", "b", "c")
    assert attempts == [("a",), ("a", "b")]
    with pytest.raises(ZeroDivisionError):
        session.change(lambda value: 1 / 0)
    assert session.value == ("a", "b", "c") and other.value == ("a",)  # of another visitor


def test_a_photo_is_encoded_once_however_many_ask(detector, photo, monkeypatch):
    question, seen = Question(photo), []
    encode_image = Detector.encode_image
    monkeypatch.setattr(
        Detector,
        "encode_image",
        lambda self, one, **options: seen.append(self.image_size) or encode_image(self, one, **options),
    )
    asking_ = [threading.Thread(target=question.look.by, args=(detector, photo)) for _ in range(3)]
    for thread in asking_:
        thread.start()
    for thread in asking_:
        thread.join()
    question.look.by(detector.with_image_size(192), photo)
    assert seen == [96, 192] and question.of(photo).encoded is None


# --- Name it ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given, value", [(0.3, 0.3), (0, 0.01), (7, 1), (None, 0.2)])
def test_a_number_that_is_still_being_typed_is_the_nearest_that_there_is(given, value):
    assert threshold_slider("x").preprocess(given) == value


@pytest.mark.parametrize(
    "text, names",
    [
        ("", []),
        (" , \n ", []),
        ("a cat", ["a cat"]),
        ("a cat, a red mug\na dog;a cat", ["a cat", "a red mug", "a dog"]),
    ],
)
def test_names_stand_between_commas_and_lines(text, names):
    assert asking.split_names(text) == names


def assert_alike(one, other) -> None:
    """The same detections, but for how sums were rounded."""
    assert one.names == other.names and one.labels.tolist() == other.labels.tolist()
    assert_close(one.boxes, other.boxes, atol=1e-3, rtol=1e-4)
    assert_close(one.scores, other.scores, atol=1e-5, rtol=1e-4)


def named(detector, photo, *names) -> naming.Named:
    return naming.ask(detector, naming.Named(Question(photo), terms.with_names(detector, (), names)))


def test_more_names_than_one_visitor_may_ask_are_refused(detector):
    with pytest.raises(QueryError, match="at most 100 names at once, got 101"):
        asking.split_names(",".join(str(number) for number in range(101)))
    many = terms.with_names(detector, (), [str(number) for number in range(99)])
    with pytest.raises(QueryError, match="at most 100 names at once, got 101"):
        terms.with_names(detector, many, ["a", "b"])


def test_nothing_is_asked_before_there_is_a_photo(detector):
    stage, chips, downloads = naming.show(detector, named(detector, None, "a cat"), 0.5, 0.5)
    assert stage["src"] == "" and stage["title"]
    assert downloads == {"files": [], "copies": []}
    assert [item["name"] for item in chips["items"]] == ["a cat"]


def test_a_moved_slider_gives_what_detect_gives_without_a_look_at_the_photo(detector, photo, monkeypatch):
    asked = named(detector, photo, "a cat", "a dog")
    monkeypatch.setattr(detector.model, "encode_image", None)  # from here on it cannot be called
    again = naming.ask(detector, replace(asked, terms=terms.with_names(detector, asked.terms, ["a dog"])))
    counts = []
    for threshold in (0.05, 0.5, 0.9, 1.0):
        stage, chips, downloads = naming.show(detector, again, threshold, 0.5)
        found = detector.detect(asked.asked.encoded, ["a cat", "a dog"], threshold=threshold, top_k=100)
        assert [(mark["box"], mark["label"]) for mark in stage["boxes"]] == [(one.box_xyxy, one.name) for one in found]
        assert [item["text"].split()[0] for item in chips["items"]] == [
            str(n) if (n := int((found.labels == i).sum())) else "none" for i in range(2)
        ]
        files = {file["label"]: file.get("text", "") for file in downloads["files"]}
        assert list(files) == ["Picture", "JSON", "COCO", "YOLO", "VOC", "CSV", "Label Studio", "Query"]
        assert json.loads(files["JSON"])["detections"] == found.to_dicts()
        tasks = json.loads(files["Label Studio"])
        assert len(json.loads(files["COCO"])["annotations"]) == len(tasks[0]["predictions"][0]["result"]) == len(found)
        assert len(files["YOLO"].splitlines()) == files["VOC"].count("<object>") == len(found)
        assert len(files["CSV"].splitlines()) == len(found) + 1
        counts.append(len(found))
    assert counts[0] > counts[1] > counts[2] > counts[3] == 0


def test_without_names_it_is_anything(detector, photo):
    stage, *_ = naming.show(detector, named(detector, photo), 0.01, 1)
    assert {mark["label"] for mark in stage["boxes"]} == {"object"}


def test_what_is_said_of_names_that_compete_is_what_their_answers_have(competing_detector, photo):
    asked = named(competing_detector, photo, "a cat", "a dog", "a car")
    best = terms.best_of(competing_detector, asked.asked.encoded, asked.terms, 0.5)
    alone = competing_detector.similarity(asked.asked.encoded, ["a cat", "a dog", "a car"]).amax((1, 2)).tolist()
    assert best[alone.index(max(alone))] == pytest.approx(max(alone))
    assert any(now < before - 0.001 for now, before in zip(best, alone, strict=True))  # somebody lost
    for place, score in enumerate(best):
        found = competing_detector.detect(
            asked.asked.encoded, ["a cat", "a dog", "a car"], threshold=score - 1e-6, nms_iou=0.5
        )
        assert (found.labels == place).any()
    _, chips, _ = naming.show(competing_detector, asked, 0.999, 0.5)
    for item, score in zip(chips["items"], best, strict=True):
        assert item["text"] == f"none above 1.00, best {score:.2f}"


def test_a_hidden_name_takes_nothing_from_those_that_are_seen(competing_detector, photo):
    asked = named(competing_detector, photo, "a cat", "a dog", "a car")
    for hidden in range(3):
        some = replace(asked, terms=tuple(replace(t, hidden=i == hidden) for i, t in enumerate(asked.terms)))
        names = [term.name for term in some.terms if not term.hidden]
        stage, chips, _ = naming.show(competing_detector, some, 0.01, 0.5)
        found = competing_detector.detect(asked.asked.encoded, names, threshold=0.01, nms_iou=0.5, top_k=100)
        assert [(mark["box"], mark["label"], mark["score"]) for mark in stage["boxes"]] == [
            (one.box_xyxy, one.name, pytest.approx(one.score)) for one in found
        ]
        assert [item["hidden"] for item in chips["items"]] == [i == hidden for i in range(3)]


def test_a_name_has_its_own_threshold_or_one_that_is_offered_and_can_be_hidden(detector, photo):
    asked = named(detector, photo, "a cat", "a dog")
    best = detector.similarity(asked.asked.encoded, ["a cat", "a dog"]).amax((1, 2)).tolist()
    cat, dog = asked.terms
    stage, chips, _ = naming.show(detector, asked, 0.999, 0.5)
    assert stage["boxes"] == [] and stage["note"]["value"] < 0.999
    for item, score in zip(chips["items"], best, strict=True):
        assert item["text"] == f"none above 1.00, best {score:.2f}"
        assert score - 0.01 < item["suggested"] <= score
    own = replace(asked, terms=(cat, replace(dog, threshold=0.02)))
    stage, chips, _ = naming.show(detector, own, 0.999, 0.5)
    assert {(mark["label"], mark["query"]) for mark in stage["boxes"]} == {("a dog", 1)}
    hidden = replace(own, terms=(cat, replace(own.terms[1], hidden=True)))
    stage, chips, downloads = naming.show(detector, hidden, 0.02, 0.5)
    assert {mark["label"] for mark in stage["boxes"]} == {"a cat"}
    assert "a dog" not in "".join(one["copy"] for one in downloads["copies"])
    nothing = replace(asked, terms=tuple(replace(one, hidden=True) for one in asked.terms))
    stage, _, downloads = naming.show(detector, nothing, 0.02, 0.5)
    assert stage["note"] == naming.HIDDEN and downloads["copies"] == []


def test_a_found_box_is_an_example_beside_the_name(detector, photo):
    asked = named(detector, photo, "a cat", "a dog")
    box = (10.0, 10.0, 50.0, 50.0)
    more = terms.with_example(detector, asked.terms, 1, examples.Example.of(photo, box, True))
    more = terms.with_example(detector, more, 1, examples.Example.of(photo, (0.0, 0.0, 9.0, 9.0), False))
    negatives = [Exemplar(photo.open(), (0, 0, 9, 9))]
    query = Query("a dog", texts=["a dog"], exemplars=[Exemplar(photo.open(), box)], negatives=negatives)
    encoded = detector.encode_image(photo.open())
    found = naming.find(detector, naming.ask(detector, replace(asked, terms=more)), 0.02, 0.5)
    assert_alike(found, detector.detect(encoded, ["a cat", query], threshold=0.02, nms_iou=0.5, top_k=100))
    _, chips, _ = naming.show(detector, naming.ask(detector, replace(asked, terms=more)), 0.02, 0.5)
    assert [item["with"] for item in chips["items"]] == ["", "1 example, 1 not"]
    (alone,) = terms.with_example(detector, (), 0, examples.Example.of(photo, box, True))
    assert (alone.name, alone.named) == (examples.THING, False)
    with pytest.raises(QueryError, match="name what you look for first"):
        terms.with_example(detector, (), 0, examples.Example.of(photo, box, False))


def test_a_saved_query_asks_the_same_again(detector, photo):
    asked = named(detector, photo, "a cat")
    liked = terms.with_example(detector, asked.terms, 0, examples.Example.of(photo, (10.0, 10.0, 50.0, 50.0), True))
    before = naming.ask(detector, replace(asked, terms=liked))
    *_, downloads = naming.show(detector, before, 0.02, 0.5)
    (saved,) = [base64.b64decode(file["base64"]) for file in downloads["files"] if file["label"] == "Query"]
    loaded = terms.with_file(detector, terms.with_names(detector, (), ["a dog", "a cat"]), saved)
    assert [term.name for term in loaded] == ["a dog", "a cat"]
    after = naming.ask(detector, replace(asked, terms=loaded[1:]))
    assert_alike(naming.find(detector, after, 0.02, 0.5), naming.find(detector, before, 0.02, 0.5))
    with pytest.raises(QueryError, match="came from a file"):
        terms.with_example(detector, loaded, 1, examples.Example.of(photo, None, True))
    with pytest.raises(QueryError):
        terms.with_file(detector, (), b"no queries")


@pytest.mark.parametrize("names", [[], ["a cat"], ["a cat", 'it\'s a "dog"']])
@pytest.mark.parametrize("own", [None, 0.1])
def test_copied_code_gives_what_stands_on_the_page(detector, photo, tmp_path, monkeypatch, names, own):
    asked = named(detector, photo, *names)
    asked = replace(asked, terms=tuple(replace(term, threshold=own) for term in asked.terms))
    found = naming.find(detector, asked, 0.02, 0.7)
    call = exports.Call("nano", names, terms.thresholds_of(asked.terms, 0.02), 0.7)
    photo.source.save(tmp_path / photo.name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Detector, "from_pretrained", lambda *_, **__: detector)
    scope = {}
    exec(exports.as_python(photo, call), scope)
    assert_alike(scope["found"], found)
    result = CliRunner().invoke(cli, [*shlex.split(exports.as_command(photo, call))[1:], "--format", "jsonl"])
    rows = json.loads(result.stdout)["detections"]
    assert [row["label"] for row in rows] == [one.name for one in found]
    assert [row["score"] for row in rows] == pytest.approx(found.scores.tolist(), abs=1e-5)
    words = shlex.split(exports.as_curl(photo, call))
    request = json.loads(words[words.index("--form-string") + 1].removeprefix("request="))
    answer = detector.detect(
        photo.open(), request.get("queries"), threshold=request["threshold"], nms_iou=request["nms_iou"], top_k=100
    )
    assert_alike(answer, found)
    assert words[2] == 'images=@"blocks.png"'
    assert "./-v.png" in shlex.split(exports.as_command(replace(photo, name="-v.png"), call))  # no option


def test_the_call_of_a_server_is_only_given_where_one_answers(detector, photo):
    for served in (True, False):
        on = naming.Handlers(models.Models(detector, served=served))
        *_, files, _, _ = on.on_view(Session(named(detector, photo, "a cat")), 0.02, 0.7)
        assert ("curl" in [one["label"] for one in files["copies"]]) is served


def test_copied_code_asks_the_model_and_the_size_that_were_served(detector, photo):
    served = detector.with_image_size(64)
    on = naming.Handlers(models.Models(served, ["runs/mine.safetensors"]))
    *_, files, _, _ = on.on_view(Session(named(served, photo, "a cat")), 0.02, 0.7)
    code = {one["label"]: one["copy"] for one in files["copies"]}
    assert "from_pretrained('runs/mine.safetensors', image_size=64)" in code["Python"]
    assert "--image-size 64 --model runs/mine.safetensors" in code["command line"] and "/v1/detect" in code["curl"]


def test_a_link_into_an_open_window_says_nothing_of_what_is_as_at_the_start(detector, photo):
    on = naming.Handlers(models.Models(detector))
    session = Session(named(detector, photo, "a cat"))
    link = {"names": [], "thresholds": [], "threshold": None, "model": ""}
    assert on.on_link(gr.EventData(None, {**link, "again": False}), session, 0.5)[0] == 0.5
    assert [term.name for term in session.value.terms] == ["a cat"]
    assert on.on_link(gr.EventData(None, {**link, "again": True}), session, 0.5)[0] == 0.2
    assert session.value.terms == () and session.value.asked.photo is photo
    on.on_link(gr.EventData(None, {**link, "names": ["a dog"], "thresholds": [0.3], "again": True}), session, 0.5)
    assert [(term.name, term.threshold) for term in session.value.terms] == [("a dog", 0.3)]


def test_code_for_visitors_does_not_say_where_the_model_lies_on_the_server(detector, tmp_path, monkeypatch):
    (tmp_path / "mine.safetensors").write_bytes(b"")
    asked = []
    monkeypatch.setattr(app, "build_demo", lambda *_, choice, **__: asked.append(choice.source()))
    for source in (str(tmp_path / "mine.safetensors"), "me/beetles", ""):
        served_demo(detector, source=source)
    assert asked == ["mine.safetensors", "me/beetles", "tiny_for_tests"]


def test_nothing_found_says_how_near_it_was_and_what_to_do(detector, photo):
    asked = named(detector, photo, "a cat").asked
    best = float(detector.similarity(asked.encoded, ["a cat"]).max())
    note = asking.note_of_nothing(detector, asked, 0.999, instead="look twice")
    assert "“a cat”" in note["text"] and f"{best:.2f}" in note["text"]
    assert best - 0.01 < note["value"] <= best
    assert asking.answer(detector, asked, note["value"], 1)


def test_marks_say_which_patch_answered(detector, photo):
    encoded = detector.encode_image(photo.open())
    found = detector.detect(encoded, ["a cat"], threshold=0.0, top_k=1)
    height, width = encoded.embeddings.grid_hw
    row, column = divmod(int(found.patches[0]), width)
    (mark,) = rows(found, encoded)
    assert mark["patch"] == pytest.approx(
        (column * 90 / width, row * 60 / height, (column + 1) * 90 / width, (row + 1) * 60 / height)
    )


def test_finer_is_the_same_model_on_a_larger_picture(detector):
    sizes = asking.scales(detector)
    assert [one.image_size for one in sizes.values()] == [96, 192, 288]
    assert all(one.model is detector.model for one in sizes.values())


@pytest.mark.parametrize("size, sizes", [(1536, [1536, 3072]), (2049, [2049]), (4096, [4096])])
def test_sizes_beyond_what_a_detector_takes_are_not_offered(tiny_model, size, sizes):
    large = Detector(tiny_model, device="cpu", image_size=size)
    assert [one.image_size for one in asking.scales(large).values()] == sizes


def test_a_mistake_is_told_as_its_sentence_and_nothing_on_the_page_changes():
    @errors_shown
    def wrong():
        raise QueryError("the box is <empty>")

    @errors_shown
    def wrong_later():
        yield 1
        raise QueryError("the box is <empty>")

    @errors_shown
    def broken():
        raise RuntimeError("a secret of the server")

    with pytest.warns(UserWarning, match="the box is &lt;empty&gt;"):
        assert wrong() == gr.skip()
    with pytest.warns(UserWarning, match="the box is"):
        assert list(wrong_later()) == [1]
    with pytest.warns(UserWarning, match="a fault of the program") as told:
        assert broken() == gr.skip()
    assert "secret" not in str(told[0].message)


def test_an_upload_that_is_no_picture_is_called_by_its_name_and_not_by_its_place(tmp_path):
    (tmp_path / "a1b2.png").write_bytes(b"no picture")
    with pytest.raises(ImageError) as error:
        take_photo(tmp_path / "a1b2.png", "Käse & Brot #1.png")
    assert str(error.value).startswith("Käse & Brot #1.png: ")
    assert explain(ImageError("is damaged", of=tmp_path / "x.png")) == (
        "This photo cannot be used",
        "x.png: is damaged",
    )


def test_uploads_keep_their_folders_and_signs():
    button = upload_button("Add", file_count="directory")
    payload = button.data_model(root=[{"path": "/tmp/1/a b.png", "orig_name": "trip/day 1/a&b.png"}])
    assert button.preprocess(payload) == [Upload("/tmp/1/a b.png", "trip/day 1/a&b.png")]
    assert button.preprocess(None) is None


# --- Show it ---------------------------------------------------------------------------------------------------------


def test_examples_words_and_negatives_are_one_query(photo):
    box = (10.0, 10.0, 50.0, 50.0)
    both = (examples.Example(photo, box, True), examples.Example(photo, None, False))
    query = examples.as_query(both, "a mug, a red mug", 0.7)
    assert query.name == "a mug" and query.texts == ("a mug", "a red mug") and query.weight == 0.7
    assert [one.box_xyxy for one in query.exemplars] == [box]
    assert [one.box_xyxy for one in query.negatives] == [None]
    assert examples.as_query(both[1:], "", 0.5) is None
    assert examples.as_query(both[:1], "", 0.5).name == examples.THING


@pytest.mark.parametrize(
    "fields, box",
    [((None, 1, 2, 3), None), ((1, 2, 3, 4), (1, 2, 3, 4)), ((30, 4, 1, 2), (1, 2, 30, 4))],
)
def test_four_numbers_are_a_box_whichever_corners_come_first(fields, box):
    assert examples.box_of(fields) == box


@pytest.mark.parametrize("view", [showing_layout.BOXES, showing_layout.HEAT])
def test_an_example_is_found_in_its_own_photo(detector, photo, view):
    shown = examples.Shown(photo, None, (examples.Example.of(photo, (10.0, 10.0, 50.0, 50.0), True),), Question(photo))
    stage, downloads = showing.show_target(detector, examples.search(detector, shown), 0.05, 0.5, view)
    assert stage["boxes"] and [file["label"] for file in downloads["files"]][::7] == ["Picture", "Query"]
    assert (stage["src"] == photo.src) == (view == showing_layout.BOXES)
    assert all((mark["patch"] is not None) == (view == showing_layout.HEAT) for mark in stage["boxes"])


def test_without_examples_the_photo_stands_there_with_a_hint(detector, photo):
    shown = examples.search(detector, examples.Shown(target=Question(photo)))
    stage, _ = showing.show_target(detector, shown, 0.2, 0.5, showing_layout.BOXES)
    assert stage["src"] == photo.src and "example" in stage["note"]["text"]


def test_the_samples_are_there_and_their_boxes_lie_in_them():
    assert [one.title for one in samples()] == ["Astronaut", "Cat", "Coffee", "Photographer", "Launch", "Clock"]
    for one in samples():
        photo = take_photo(one.path)
        x0, y0, x1, y1 = one.box_xyxy
        assert 0 <= x0 < x1 <= photo.width and 0 <= y0 < y1 <= photo.height
    assert (board(40).width, board(40).height) == (120, 80)


# --- Search ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def archive(detector):
    return filling.Archive.own(detector)


def uploads(*paths) -> list[Upload]:
    return [Upload(str(path), path.name) for path in paths]


def never() -> threading.Event:
    return threading.Event()


def ask_text(detector, searched, text, **changes):
    return results.ask_text(detector, replace(searched, threshold=0.0, **changes), text)


def test_an_archive_of_ones_own_is_filled_searched_and_gone(detector, archive, tmp_path, monkeypatch):
    paths = [tmp_path / name for name in ("a.png", "b.png", "broken.png", "notes.txt")]
    for seed, path in enumerate(paths[:2]):
        path.write_bytes(encode(noise(60, 90, seed)))
    paths[2].write_bytes(b"no picture")
    paths[3].write_text("no picture by name")
    (last,) = filling.index_files(archive, filling.pictures_of(uploads(*paths)), never())
    assert "3 of 3 photos" in last and "1 could not be read: broken.png" in last
    assert "**2 photos**" in filling.stats_text(archive)
    searched = ask_text(detector, results.Searched(archive), "a cat")
    strip, stage = results.show_matches(searched), results.show_match(searched)
    assert {item["caption"] for item in strip["items"]} == {"a.png", "b.png"}
    assert (stage["boxes"][0]["score"], stage["boxes"][0]["label"]) == (searched.matches[0].score, "a cat")
    monkeypatch.setattr(archive.index, "picture_file", None)  # from here on no photo can be read again
    for chosen in range(len(searched.matches)):
        assert results.show_match(replace(searched, chosen=chosen))["src"].startswith("data:image/jpeg")
    nothing = ask_text(detector, replace(searched, threshold=1.0), "a cat", filters=results.Filters(paths="*.jpg"))
    assert nothing.matches == () and "pass the filters" in results.show_match(nothing)["note"]["text"]
    folder = archive.folder.name
    archive.folder.cleanup()
    assert not Path(folder).exists()


def test_more_of_a_kind_leaves_itself_out_says_what_was_asked_and_has_a_way_back(detector, archive, tmp_path):
    for seed in range(2):
        (tmp_path / f"{seed}.png").write_bytes(encode(noise(60, 90, seed)))
    list(filling.index_files(archive, uploads(*tmp_path.glob("*.png")), never()))
    first = replace(ask_text(detector, results.Searched(archive), "a cat"), chosen=1)
    match = first.matches[1]
    like = results.ask_like(first, match)
    assert like.matches and match.region not in [one.region for one in like.matches]
    assert like.asked.text.startswith(f"more like {match.path} at ") and like.asked.label == "match"
    assert results.ask_text(detector, like, like.asked.text).asked is like.asked  # Enter in the field asks it again
    shown = results.ask_example(detector, like, take_photo(noise(60, 90), "x.png"), (1.0, 2.0, 30.0, 40.0))
    assert shown.asked.text == "what is shown in x.png at 1, 2, 30, 40"
    assert results.go_back(shown).asked == like.asked
    back = results.go_back(results.go_back(shown))
    assert (back.matches, back.chosen, back.before) == (first.matches, 1, ())
    with pytest.raises(QueryError, match="write what to search for"):
        results.ask_text(detector, back, " ")


def test_pages_follow_one_another_and_filters_are_those_of_the_command_line(detector, archive, tmp_path, monkeypatch):
    monkeypatch.setattr(results, "LIMIT", 4)
    for seed in range(3):
        (tmp_path / f"{seed}.png").write_bytes(encode(noise(60, 90, seed)))
    list(filling.index_files(archive, uploads(*tmp_path.glob("*.png")), never()))
    first = ask_text(detector, results.Searched(archive), "a cat")
    second = results.find(first, 1)
    assert first.more and results.page_text(second) == "Results 5 to 8"
    assert second.matches == tuple(archive.index.search("a cat", limit=4, offset=4, per_image=3))
    assert results.find(second, 99).page == 0  # a page that a higher threshold took away
    for filters, kept in [
        (results.Filters(paths="1.*"), {"1.png"}),
        (results.Filters(newer="2999-01-01"), set()),
        (results.Filters(older="7d"), set()),
        (results.Filters(min_side=1e6), set()),
        (results.Filters(per_photo=1, exact=True), {"0.png", "1.png", "2.png"}),
    ]:
        assert {one.path for one in results.find(replace(first, filters=filters)).matches} == kept
    with pytest.raises(QueryError, match="newer_than wants a date"):
        results.find(replace(first, filters=results.Filters(newer="soon")))


def test_a_folder_is_indexed_with_news_and_its_mistakes_are_told(detector, archive, tmp_path):
    for name in ("0.png", "1.png", "day 2/2.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(encode(noise(60, 90, int(name[-5]))))
    news = list(filling.index_folder(archive, tmp_path, never()))
    assert 'aria-valuenow="100"' in news[-1] and "3 of 3 photos" in news[-1]
    searched = ask_text(detector, results.Searched(archive), "a cat")
    titles = [item["title"].split(",")[0] for item in results.show_matches(searched)["items"]]
    assert set(titles) == {"0.png", "1.png", "day 2/2.png"}  # not where they lie on the server
    (tmp_path / "1.png").unlink()
    archived._copies.clear()
    gone = replace(searched, chosen=titles.index("1.png"))
    assert results.show_match(gone)["text"].startswith("1.png: is gone or has changed")
    with pytest.raises(ArchiveError, match="nowhere"):
        list(filling.index_folder(archive, tmp_path / "nowhere", never()))
    with pytest.raises(ArchiveError, match="write the path of a folder"):
        filling.named_folder("  ")


def test_what_was_done_when_adding_is_stopped_is_kept(archive, tmp_path):
    for seed in range(20):
        (tmp_path / f"{seed}.png").write_bytes(encode(noise(60, 90, seed)))
    stop = threading.Event()
    news = filling.index_folder(archive, tmp_path, stop)
    next(news)
    stop.set()
    assert "Stopped after" in list(news)[-1]
    kept = archive.index.stats().n_images
    assert kept >= 1
    steps = filling.index_files(archive, uploads(*sorted(tmp_path.glob("*.png"))), stop := threading.Event())
    assert "8 of 20" in next(steps)
    gone = threading.Event()  # a page that is closed ends the work for it
    news = filling.index_folder(archive, tmp_path, gone)
    next(news)
    news.close()
    assert gone.is_set()
    stop.set()
    assert "Stopped after 8 of 20 photos" in list(steps)[-1]


@pytest.fixture
def attached(detector, tmp_path):
    archive = filling.Archive.own(detector)
    archive.index.add_images([("theirs.png", encode(noise(60, 90)))])
    return archive


def turns(steps) -> list:
    """The steps that turned the tab to another archive."""
    return [step for step in steps if isinstance(step[2], Session)]


def test_adding_turns_to_ones_own_archive_and_back(detector, attached, tmp_path):
    (tmp_path / "mine.png").write_bytes(encode(noise(60, 90, 1)))
    session = Session(ask_text(detector, results.Searched(attached), "a cat"))
    own = searching.own_of(detector, session)
    assert session.value.archive is attached and session.value.matches
    news = filling.index_files(own, uploads(tmp_path / "mine.png"), never())
    assert len(turns(searching.adding(session, own, news))) == 1
    after = session.value
    assert after.archive is own and after.matches == () and own.index.stats().n_images == 1
    searching.turned_to(session, attached)
    assert session.value.archive is attached and session.value.own is own
    assert searching.own_of(detector, session) is own
    assert attached.index.stats().n_images == 1


def test_adding_nothing_loses_nothing(detector, attached, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    session = Session(results.Searched(attached))
    own = searching.own_of(detector, session)
    steps = list(searching.adding(session, own, filling.index_files(own, uploads(tmp_path / "broken.png"), never())))
    assert "1 could not be read" in steps[-1][0]
    assert turns(steps) == [] and session.value.archive is attached
    with pytest.raises(ImageError, match="no picture among these files"):
        filling.pictures_of(uploads(tmp_path / "notes.txt"))


# --- Inside Swin -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def looked(detector):
    return inside.look(detector, take_photo(noise(192, 256), "blocks.png"))


def test_every_block_is_there(looked):
    assert [(one.stage, one.block) for one in looked.blocks] == [(s, b) for s in range(4) for b in range(2)]
    assert [one.grid_hw for one in looked.blocks[::2]] == [(48, 64), (24, 32), (12, 16), (6, 8)]
    assert [inside.kind(one) for one in looked.blocks[:2]] == ["W-MSA", "SW-MSA"]


def test_windows_are_drawn_where_they_are_cut(looked):
    plain, shifted = looked.blocks[4:6]  # 12 x 16 patches of 16 px, windows of 4
    assert [line[1] for line in inside.borders(plain, looked.photo) if line[0] == 0] == [64, 128]
    assert [line[1] for line in inside.borders(shifted, looked.photo) if line[0] == 0] == [32, 96, 160]
    assert inside.window_parts(plain, looked.photo, (0, 5)) == [(64, 0, 128, 64)]
    assert inside.window_parts(shifted, looked.photo, (3, 3)) == [(32, 32, 96, 96)]
    corners = [(0, 0, 32, 32), (224, 0, 256, 32), (0, 160, 32, 192), (224, 160, 256, 192)]
    assert inside.window_parts(shifted, looked.photo, (0, 0)) == corners


def test_what_reaches_a_patch_grows_from_its_window_over_the_photo(looked):
    reached = [inside.reach(looked.blocks, last, looked.cell(looked.blocks[last])) for last in range(8)]
    for share in reached:
        assert share.shape == (48, 64)
        assert_close(share.sum(), torch.tensor(1.0))
    seen = [int((share > 0).sum()) for share in reached]
    assert seen[0] == 16  # the patch's window of 4 x 4
    assert seen == sorted(seen) and seen[1] > 16 and seen[-1] > 48 * 64 / 2


def test_the_words_carry_the_numbers_of_the_block(looked):
    text = inside.words(looked, inside.BLOCK)
    assert "48 × 64 patches of 4 px, in 192 windows of 4 × 4" in text
    assert f"{192 * 16**2:,} pairs" in text and f"{(48 * 64) ** 2:,}" in text


@pytest.mark.parametrize("view", [inside.BLOCK, inside.REACH])
def test_a_block_is_shown_with_all_others_beside_it(looked, view):
    stage, strip, text = inside.show(looked, view, 0)
    assert stage["lines"] and stage["cell"] and len(strip["items"]) == 8 and strip["chosen"] == 0
    assert text.startswith("## Stage 1, block 1")


def test_attention_takes_a_size_of_its_own(detector, picture):
    assert detector.attention(picture)[0].grid_hw == (16, 24)
    assert detector.attention(picture, image_size=192)[0].grid_hw == (32, 48)
    assert detector.image_size == 96 and detector.attention(picture)[0].grid_hw == (16, 24)  # for that look alone


@pytest.mark.parametrize("size, side", [(96, 256), (384, 384), (1536, 512)])
def test_what_is_attended_to_is_looked_at_in_a_size_that_can_be_kept(tiny_model, photo, size, side):
    looked = inside.look(Detector(tiny_model, device="cpu", image_size=size), photo)
    assert looked.blocks[0].grid_hw[1] == side // 4


def test_a_stem_is_named_as_what_it_is(looked):
    of_a_hybrid = replace(looked, blocks=tuple(b for b in looked.blocks if b.stage >= 2), chosen=0)
    text = inside.words(of_a_hybrid, inside.BLOCK)
    assert "stem" in text and "patches of 16 px" in text and "merged" not in text
