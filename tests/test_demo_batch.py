"""Several photos in the demo, without a browser: which are taken, what is said of each, and what is left out."""

import json
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from picture_files import BAD_FILES, encode, noise

gr = pytest.importorskip("gradio")

from owl_swin.demo import batch, batching, naming  # noqa: E402
from owl_swin.demo.asking import Question  # noqa: E402
from owl_swin.demo.batch import Rest, coming, photos_of, turned_to, without  # noqa: E402
from owl_swin.demo.bundles import FORMS  # noqa: E402
from owl_swin.demo.models import Models  # noqa: E402
from owl_swin.demo.photos import take_photo  # noqa: E402
from owl_swin.demo.pieces import Upload  # noqa: E402
from owl_swin.demo.session import Session  # noqa: E402


@pytest.fixture(scope="module")
def uploads(tmp_path_factory):
    """Four photos and two files that are none, the first of them before the photos."""
    folder = tmp_path_factory.mktemp("batch")
    files = {f"day {i}/Käse & {i}.png": encode(noise(60, 90 + 10 * i, i)) for i in range(4)}
    files = {"bad <1>.jpg": BAD_FILES["text.jpg"][0], **files, "bad 2.jpg": BAD_FILES["cut.jpg"][0]}
    sent = []
    for number, (name, content) in enumerate(files.items()):
        (folder / f"{number}").write_bytes(content)
        sent.append(Upload(str(folder / f"{number}"), name))
    return sent


@pytest.fixture
def tab(detector):
    """The handlers of the tab, those of its strip, and what a visitor has in it."""
    on = naming.Handlers(Models(detector))
    session = Session(naming.Named())
    on.on_find("a cat, a dog", session)
    return on, on.batch, session


def all_of(session):
    return photos_of(session.value.asked, session.value.rest)


def names(session) -> list[str]:
    return [one.photo.name for one in all_of(session)]


def come(strip, session, *uploads, **options):
    """Uploads, and what the page then asks for until none is to come: the strip in the end, and how many steps."""
    _, value = strip.on_photos(list(uploads), session, **options)
    steps = 0
    while value["waiting"]:
        value, steps = strip.on_next(session)[1], steps + 1
    return value, steps


def click(session, index):
    photo = all_of(session)[index].photo
    return gr.EventData(None, {"key": photo.key, "name": photo.name})


def badges(strip, session, threshold=0.02):
    return strip.on_marks(session, threshold, 0.5)[0].props["marks"]["badges"]


def test_photos_come_one_after_another_and_what_is_none_is_named_and_left_out(tab, uploads, detector):
    _, strip, session = tab
    value, steps = come(strip, session, *uploads)
    assert names(session) == [f"day {i}/Käse & {i}.png" for i in range(4)]
    assert steps == 4 and [item["caption"] for item in value["items"]] == [f"Käse & {i}.png" for i in range(4)]
    assert value["note"].startswith("Left out: bad <1>.jpg: not a picture") and "bad 2.jpg: " in value["note"]
    found = [detector.detect(one.photo.open(), ["a cat", "a dog"], threshold=0.3, top_k=100) for one in all_of(session)]
    best = [one.scores[0] if len(one) else one.best.score for one in found]
    assert badges(strip, session, 0.3) == [f"{len(f)} · {b:.2f}" for f, b in zip(found, best, strict=True)]
    assert strip.on_marks(session, 0.3, 0.5)[1] == {"photos": 4, "forms": list(FORMS)}


def test_a_photo_that_is_added_while_another_comes_is_asked_for(tab, uploads):
    """Though as many are to come as before: the page asks after each turn."""
    _, strip, session = tab
    _, before = strip.on_photos(uploads[1:3], session)
    strip.on_next(session)  # its answer is on its way
    _, after = strip.on_photos([uploads[3]], session, add=True)
    assert before["waiting"] == after["waiting"] == 1 and before["turn"] != after["turn"]
    _, same = strip.on_photos([uploads[4]], session, add=True)
    assert same["turn"] == after["turn"]  # not twice while the next one comes


def test_one_that_is_none_leaves_the_photo_that_is_there(tab, uploads):
    _, strip, session = tab
    strip.on_photos([uploads[1]], session)
    with pytest.warns(UserWarning, match="bad &lt;1&gt;.jpg"):
        strip.on_photos([uploads[0]], session)
    assert names(session) == [uploads[1].name]
    assert strip.on_marks(session, 0.2, 0.5)[1]["photos"] == 0  # of one photo there is no zip
    strip.on_photos([uploads[2]], session)
    assert names(session) == [uploads[2].name]  # one photo takes the place of one
    come(strip, session, uploads[1], add=True)
    come(strip, session, uploads[3])  # and joins several
    assert names(session) == [uploads[i].name for i in (2, 1, 3)]


def test_a_click_shows_another_photo_with_the_same_names(tab, uploads, detector):
    on, strip, session = tab
    come(strip, session, *uploads)
    strip.on_picked(click(session, 2), session)
    stage, _, _, marks, _ = on.on_view(session, 0.02, 0.5)
    photo = all_of(session)[2].photo
    assert stage["alt"] == photo.name == session.value.asked.photo.name and marks.props["marks"]["chosen"] == 2
    found = detector.detect(photo.open(), ["a cat", "a dog"], threshold=0.02, nms_iou=0.5, top_k=100)
    assert [mark["box"] for mark in stage["boxes"]] == [one.box_xyxy for one in found]
    twice = click(session, 2)
    strip.on_removed(twice, session)
    with pytest.warns(UserWarning, match="is not here any more"):
        strip.on_removed(twice, session)
    assert len(all_of(session)) == 3 and photo.name not in names(session)
    assert session.value.asked.photo.name == names(session)[2]
    with pytest.warns(UserWarning, match="x is not here any more"):
        strip.on_picked(gr.EventData(None, {"key": "gone", "name": "x"}), session)
    strip.on_cleared(session)
    assert names(session) == [] and on.on_view(session, 0.02, 0.5)[0]["src"] == ""


def test_boxes_edited_by_hand_stay_with_their_photo_and_are_in_the_zip(tab, uploads):
    on, strip, session = tab
    come(strip, session, *uploads[1:3])
    drawn = {"box": [1, 1, 20, 20], "label": "a bird", "hand": "h1"}
    edit = {"was": None, "now": drawn, "undo": False, "reset": False, "number": 7}
    edit = gr.EventData(None, {"edits": [edit]})
    on.on_edited(edit, session, 0.02, 0.5)
    n_boxes = badges(strip, session)[0].split()[0]
    strip.on_picked(click(session, 1), session)
    assert session.value.asked.edits.number == 7 and not session.value.asked.edits
    assert "a bird" not in [mark["label"] for mark in on.on_view(session, 0.02, 0.5)[0]["boxes"]]
    assert badges(strip, session)[0].split()[0] == n_boxes
    strip.on_picked(click(session, 0), session)
    assert on.on_view(session, 0.02, 0.5)[0]["boxes"][-1]["label"] == "a bird"
    files = zipped(strip, session, "YOLO")
    assert '2: "a bird"' in files["data.yaml"] and files["labels/day 0/Käse & 0.txt"].splitlines()[-1].startswith("2 ")
    tasks = json.loads(zipped(strip, session, "Label Studio")["tasks.json"])
    assert [next(key for key in task if key != "data") for task in tasks] == ["annotations", "predictions"]


def drawn(photo, number, label, hand) -> gr.EventData:
    """A box drawn on a photo, as the page tells it."""
    now = {"box": [1, 1, 20, 20], "label": label, "hand": hand}
    edit = {"was": None, "now": now, "undo": False, "reset": False, "number": number}
    return gr.EventData(None, {"edits": [edit], "of": photo.key})


def test_an_edit_that_a_click_on_another_photo_overtakes_is_of_the_photo_that_it_was_made_on(tab, uploads):
    on, strip, session = tab
    pasted = [uploads[1]._replace(name="image.png"), uploads[1]._replace(name="image.png"), uploads[2]]
    come(strip, session, *pasted)
    first, second, third = (one.photo for one in all_of(session))
    strip.on_picked(click(session, 1), session)
    for _ in range(2):  # the page tells again what it has no answer to
        on.on_edited(drawn(first, 1, "a bird", "h1"), session, 0.02, 0.5)
    assert session.value.asked.photo.key == second.key and session.value.asked.edits.number == 1
    on.on_edited(drawn(second, 2, "a nest", "h2"), session, 0.02, 0.5)
    on.on_edited(drawn(third, 3, "an egg", "h3"), session, 0.02, 0.5)
    made = [[mark.name for mark in one.edits.drawn] for one in all_of(session)]
    assert made == [["a bird"], ["a nest"], ["an egg"]]
    strip.on_picked(click(session, 0), session)
    assert on.on_view(session, 0.02, 0.5)[0]["edited"] == 3
    on.on_edited(drawn(second, 5, "a twig", "h5"), session, 0.02, 0.5)
    on.on_edited(drawn(first, 4, "a wing", "h4"), session, 0.02, 0.5)  # overtaken by the next, which was of another
    made = [[mark.name for mark in one.edits.drawn] for one in all_of(session)]
    assert made == [["a bird", "a wing"], ["a nest", "a twig"], ["an egg"]]
    assert on.on_view(session, 0.02, 0.5)[0]["edited"] == 5


def test_of_photos_of_one_name_a_click_that_comes_twice_takes_one(tab, uploads):
    _, strip, session = tab
    come(strip, session, *[uploads[1]._replace(name="image.jpg")] * 3)
    one = click(session, 0)
    strip.on_removed(one, session)
    with pytest.warns(UserWarning, match="image.jpg is not here any more"):
        strip.on_removed(one, session)
    assert len(all_of(session)) == 2


def test_no_zip_leaves_out_what_is_still_to_be_looked_at(tab, uploads):
    on, strip, session = tab
    come(strip, session, *uploads)
    on.on_size(session, list(on.models.sizes())[1])
    event, visitor = gr.EventData(None, {"form": "JSON"}), SimpleNamespace(session_hash="a")
    with pytest.warns(UserWarning, match="3 photos are still to be looked at"):
        assert list(strip.on_zip(event, session, 0.02, 0.5, visitor)) == []
    while strip.strip(session.value)["waiting"]:
        strip.on_next(session)
    assert len(zipped(strip, session, "JSON")) == 4


def zipped(strip, session, form) -> dict[str, str]:
    event, visitor = gr.EventData(None, {"form": form}), SimpleNamespace(session_hash="a")
    *_, (_folder, value) = strip.on_zip(event, session, 0.02, 0.5, visitor)
    with zipfile.ZipFile(value["file"]["path"]) as bundle:
        return {name: bundle.read(name).decode() for name in bundle.namelist()}


def test_another_size_is_looked_at_photo_by_photo(tab, uploads):
    on, strip, session = tab
    come(strip, session, *uploads[1:4])
    on.on_size(session, list(on.models.sizes())[1])
    assert badges(strip, session)[1:] == ["", ""]
    value = strip.strip(session.value)
    steps = 0
    while value["waiting"]:
        value, steps = strip.on_next(session)[1], steps + 1
    assert steps == 2 and all(one.encoded.embeddings.grid_hw[1] == 12 for one in all_of(session))


def test_photos_that_have_no_room_at_another_size_are_left_out(tab, uploads, monkeypatch):
    on, strip, session = tab
    come(strip, session, *uploads[1:4])
    size = session.value.asked.encoded.nbytes
    monkeypatch.setattr(batch, "MOST_LOOK_BYTES", 5 * size)  # one photo of twice the size, and one more
    _, value = on.on_size(session, list(on.models.sizes())[1])
    steps = 0
    while value["waiting"] and steps < 9:
        value, steps = strip.on_next(session)[1], steps + 1
    assert names(session) == [uploads[1].name, uploads[2].name]
    assert f"{uploads[3].name}: 2 photos are as many as there is room for" in value["note"]


def test_what_was_stopped_or_removed_meanwhile_does_not_come_back(tab, uploads, monkeypatch):
    _, strip, session = tab
    strip.on_photos(uploads[1:], session)
    real = batch.take_next

    def slow(*given):
        result = real(*given)
        strip.on_stopped(session)  # while a photo is looked at
        return result

    monkeypatch.setattr(batching, "take_next", slow)
    assert strip.on_next(session)[1]["waiting"] == 0
    assert names(session) == [uploads[1].name]


def test_photos_and_their_bytes_have_a_bound_together(tab, uploads, monkeypatch):
    _, strip, session = tab
    monkeypatch.setattr(batch, "MOST_PHOTOS", 2)
    value, _ = come(strip, session, *uploads[1:5])
    assert len(names(session)) == 2 and value["note"].count("at most 2 photos at once") == 2
    monkeypatch.setattr(batch, "MOST_PHOTOS", 60)
    monkeypatch.setattr(batch, "MOST_BYTES", sum(Path(one.path).stat().st_size for one in uploads[1:4]))
    value, _ = come(strip, session, uploads[4], uploads[3], add=True)
    assert len(names(session)) == 3 and f"{uploads[4].name}: the photos may have" in value["note"]
    monkeypatch.setattr(batch, "MOST_BYTES", 10**9)
    for bound, text in [("MOST_LOOK_BYTES", "as many as there is room for"), ("MOST_LOOKS_BYTES", "all visitors")]:
        with monkeypatch.context() as patch:
            patch.setattr(batch, bound, 0)
            value, _ = come(strip, session, uploads[4])
        assert text in value["note"] and value["note"].startswith(f"Left out: {uploads[4].name}: ")
        assert len(names(session)) == 3
    value, _ = come(strip, session, *[uploads[0]] * 9)
    assert value["note"].endswith("; and 4 more.")


@pytest.mark.parametrize(
    "n, at, place, left", [(1, 0, 0, None), (3, 0, 0, 0), (3, 2, 2, 1), (3, 2, 0, 1), (3, 0, 2, 0)]
)
def test_a_photo_less(n, at, place, left):
    photos = [Question(take_photo(noise(8, 8, i), str(i))) for i in range(n)]
    asked, rest = turned_to(photos[0], Rest(after=tuple(photos[1:])), at)
    asked, rest = without(asked, rest, place)
    assert [one.photo.name for one in photos_of(asked, rest)] == [str(i) for i in range(n) if i != place]
    assert (None if asked.photo is None else len(rest.before)) == left


def test_files_that_are_still_to_come_count(uploads):
    rest = coming(Question(), Rest(), uploads)
    assert rest.waiting == tuple(uploads) and coming(Question(), rest, uploads).waiting == tuple(uploads) * 2


def test_answers_of_all_photos_leave_as_a_zip_which_can_be_stopped(tab, uploads):
    _, strip, session = tab
    come(strip, session, *uploads)
    visitor = SimpleNamespace(session_hash="a")
    for form in FORMS:
        *steps, (folder, value) = strip.on_zip(gr.EventData(None, {"form": form}), session, 0.02, 0.5, visitor)
        assert [step[1]["done"] for step in steps] == [0, 1, 2, 3, 4]
        assert (
            value["file"]["path"] == f"{folder.name}/photos.{FORMS[form]}.zip" and Path(value["file"]["path"]).exists()
        )
    steps = strip.on_zip(gr.EventData(None, {"form": "COCO"}), session, 0.02, 0.5, visitor)
    assert next(steps)[1]["busy"] == "COCO"
    strip.on_zip_stopped(visitor)
    assert list(steps)[-1][1] == {"photos": 4, "forms": list(FORMS)}
    with pytest.warns(UserWarning, match="First choose some photos"):
        assert list(strip.on_zip(gr.EventData(None, {"form": "EXE"}), session, 0.02, 0.5, visitor)) == []
