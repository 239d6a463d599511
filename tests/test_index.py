"""The archive of regions: what goes in, what stays, what comes out, and that nothing harms it."""

import json
import os
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from archives import counts, fill, held
from conftest import make_tiny_model
from picture_files import BAD_FILES, encode, noise
from processes import forked

from owl_swin import ArchiveError, Detector, Exemplar, ImageError, Query, QueryError, RegionIndex
from owl_swin.index.folder import read_picture
from owl_swin.index.paths import from_text, glob_pattern, like_pattern, to_text
from owl_swin.index.region_index import open_store
from owl_swin.index.store import Card, RegionFilter
from owl_swin.picture_files import walk


@pytest.fixture
def photos(tmp_path):
    return fill(tmp_path / "photos")


@pytest.fixture(params=["lance", "milvus"])
def uri(request, tmp_path):
    return str(tmp_path / "a.lance") if request.param == "lance" else f"milvus://{tmp_path}/a.db/photos"


@pytest.fixture
def index(uri, detector):
    with RegionIndex.open(uri, detector, create=True) as made:
        yield made


@pytest.fixture
def lance(tmp_path, detector):
    with RegionIndex.open(tmp_path / "a.lance", detector, create=True) as made:
        yield made


# --- What goes in --------------------------------------------------------------------------------------------------


def test_only_what_is_new_changed_or_gone_is_touched(index, photos):
    assert counts(index.add_folder(photos)) == (6, 0, 0, 0, 0)
    before = held(index)
    assert counts(index.add_folder(photos)) == (0, 0, 0, 6, 0)
    assert held(index) == before
    (photos / "0.png").write_bytes(encode(noise(60, 60, seed=50)))
    (photos / "1.png").unlink()
    (photos / "new.png").write_bytes(encode(noise(60, 60, seed=51)))
    assert counts(index.add_folder(photos)) == (1, 1, 1, 4, 0)
    held(index)
    assert index.stats().n_images == 6


def test_content_decides_not_the_times_of_the_file(lance, photos):
    lance.add_folder(photos)
    picture = photos / "0.png"
    times = picture.stat()
    picture.write_bytes(encode(noise(48, 80, seed=77)))
    os.utime(picture, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert counts(lance.add_folder(photos)) == (0, 1, 0, 5, 0)
    os.utime(photos / "1.png", (1, 1))
    assert counts(lance.add_folder(photos)) == (0, 0, 0, 6, 0)
    assert (
        len(lance.search("x", older_than=2, limit=100))
        == lance._store.pictures_of(read_picture(str(photos / "1.png")).image_id)[0].n_regions
    )


def test_a_picture_that_moved_or_was_copied_is_not_encoded_again(lance, photos, monkeypatch):
    lance.add_folder(photos)
    regions = lance.stats().n_regions
    shutil.copy(photos / "0.png", photos / "copy.png")
    (photos / "1.png").rename(photos / "moved.png")
    monkeypatch.setattr(lance, "_detector", None)  # it is not there to be asked
    monkeypatch.setattr("owl_swin.index.regions.encode_pictures", lambda *_: iter(()))
    assert counts(lance.add_folder(photos)) == (2, 0, 1, 5, 0)
    held(lance)
    assert lance.stats().n_regions > regions


def test_files_that_were_renumbered_are_all_there(lance, photos, monkeypatch):
    """A part that was written may have been written over the last place of what the next file holds."""
    monkeypatch.setattr("owl_swin.index.update.PART", 2)
    lance.add_folder(photos)
    names = [path.name for path in sorted(photos.iterdir())]
    for old, new in reversed(list(zip(names, [*names[1:], "6.png"], strict=True))):
        (photos / old).rename(photos / new)
    (photos / "0.png").write_bytes(encode(noise(60, 60, seed=50)))
    told = []
    assert counts(lance.add_folder(photos, progress=told.append)) == (1, 6, 0, 0, 0)
    held(lance)
    assert lance.stats().n_images == len({match.image_id for match in lance.search("x", limit=999)}) == 7
    assert (told[-1].done, told[-1].total) == (7, 7)


def test_copies_of_a_picture_are_found_once_and_under_any_of_their_paths(index, photos):
    shutil.copytree(photos, photos / "backup")
    index.add_folder(photos)
    found = index.search("x", limit=1000)
    assert len({match.region for match in found}) == len(found) == index.stats().n_regions // 2
    only = index.search("x", limit=1000, path_glob="backup/*", exact=True)
    assert {m.region for m in only} == {m.region for m in found}
    assert all("/backup/" in match.path for match in only)


def test_folders_of_one_archive_do_not_touch_one_another(lance, photos, tmp_path):
    lance.add_folder(photos)
    other = fill(tmp_path / "photos2", 2)
    (other / "1.png").write_bytes(encode(noise(50, 50, seed=60)))
    assert counts(lance.add_folder(other)) == (2, 0, 0, 0, 0)
    assert lance.stats().n_images == 8
    assert lance.forget(other) == 2
    assert lance.stats().n_images == 6


NAMES = [b"caf\xe9.png", b"\xff\xfe.png", "späte Größe.png".encode(), b"a\\xe9\nb'\"%_.png"]


def test_names_that_are_no_text_come_back_whole(index, tmp_path):
    folder = tmp_path / "odd"
    folder.mkdir()
    for i, name in enumerate(NAMES):
        with open(os.path.join(os.fsencode(folder), name), "wb") as file:
            file.write(encode(noise(50, 50, seed=i)))
    index.add_folder(folder)
    found = index.search("x", limit=4, per_image=1, path_glob="odd/*.png")
    assert {os.fsencode(Path(match.path).name) for match in found} == set(NAMES)
    assert all(index.open_picture(match.image_id).size == (50, 50) for match in found)
    assert counts(index.add_folder(folder)) == (0, 0, 0, 4, 0)


def test_an_upload_of_a_name_that_no_file_can_have_goes_in_and_the_others_with_it(index):
    added = index.add_images([("\ud800.jpg", encode(noise(50, 50, seed=1))), ("b.jpg", encode(noise(50, 50, seed=2)))])
    assert counts(added)[0] == 2
    assert {match.path for match in index.search("x", limit=4, per_image=1)} == {"?.jpg", "b.jpg"}


def test_an_archive_is_written_where_it_was_opened(detector, photos, tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    with RegionIndex.open("b.lance", detector, create=True) as index:
        monkeypatch.chdir(tmp_path / "elsewhere")
        assert counts(index.add_folder(photos))[0] > 0
    assert not list((tmp_path / "elsewhere").iterdir())
    with RegionIndex.open(tmp_path / "b.lance", detector) as index:
        assert index.stats().n_images


@pytest.mark.parametrize("path", ["/a/b.jpg", "/a\\b", "/\udce9", "/\\xe9", "/\\\udce9\\\\x41", "/a\nb"])
def test_a_path_as_text_and_back(path):
    assert from_text(to_text(path)) == path
    to_text(path).encode("utf-8")


@pytest.mark.parametrize(
    "glob, path, expected",
    [
        ("*.jpg", "/a/b/c.jpg", True),
        ("b/*.jpg", "/a/b/c.jpg", True),
        ("/a/*", "/a/b/c.jpg", True),
        ("b/*", "/a/bb/c.jpg", False),
        ("/b/*", "/a/b/c.jpg", False),
        ("b/?.jpg", "/a/b/cc.jpg", False),
        ("b/[a-c].jpg", "/a/b/c.jpg", True),
        ("b/*_1%.jpg", "/a/b/x_1%.jpg", True),
        ("caf\udce9/*", "/caf\udce9/x", True),
    ],
)
def test_globs_of_paths(glob, path, expected):
    assert bool(glob_pattern(glob).fullmatch(path)) is expected
    loose = like_pattern(glob).split("%")  # what the store filters by lets every match through
    assert not expected or all(part in to_text(path) for part in loose)


# --- What is passed over -------------------------------------------------------------------------------------------


def test_broken_files_are_skipped_with_the_reason(lance, photos):
    for name, (content, _) in BAD_FILES.items():
        (photos / name).write_bytes(content)
    (photos / "folder.jpg").mkdir()
    (photos / "notes.txt").write_text("no picture")
    (photos / "nowhere.jpg").symlink_to(photos / "not there")
    os.mkfifo(photos / "pipe.jpg")
    report = lance.add_folder(photos)
    assert counts(report) == (6, 0, 0, 0, len(BAD_FILES) + 2)
    reasons = {Path(path).name: reason for path, reason in report.skipped}
    assert all(part in reasons[name] for name, (_, part) in BAD_FILES.items())
    assert "No such file" in reasons["nowhere.jpg"] and "no file" in reasons["pipe.jpg"]


def test_circles_of_links_end_and_every_folder_is_entered_once(photos):
    (photos / "deep").mkdir()
    (photos / "deep" / "up").symlink_to(photos)
    (photos / "self").symlink_to("self")
    (photos / "a link").symlink_to(photos / "deep")
    (photos / "deep" / "7.png").write_bytes(b"")
    found = [Path(path).relative_to(photos).as_posix() for path in walk(str(photos), lambda *_: None)]
    assert found == [*(f"{i}.png" for i in range(6)), "deep/7.png"]


def test_a_folder_of_a_hundred_thousand_names_is_walked(tmp_path):
    for start in (0, 50_000):  # a file takes no more links than some ten thousands
        (tmp_path / f"{start}.jpg").touch()
        for i in range(start + 1, start + 50_000):
            os.link(tmp_path / f"{start}.jpg", tmp_path / f"{i}.jpg")
    assert sum(1 for _ in walk(str(tmp_path), lambda *_: None)) == 100_000


def test_a_folder_that_cannot_be_read_keeps_its_pictures(lance, photos, monkeypatch):
    fill(photos / "closed", 2)
    lance.add_folder(photos)
    real = os.scandir

    def refuse(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(os, "scandir", refuse)
    report = lance.add_folder(photos)
    assert (report.removed, len(report.skipped)) == (0, 1)
    assert lance.stats().n_images == 8


@pytest.mark.parametrize("what", ["missing", "file", "empty"])
def test_a_folder_without_pictures_is_one_sentence_and_changes_nothing(lance, photos, tmp_path, what):
    lance.add_folder(photos)
    folder = tmp_path / what
    if what == "file":
        folder.write_text("")
    if what == "empty":
        folder.mkdir()
    sentences = {"empty": "holds no pictures", "file": "expected a folder of pictures, got a file"}
    with pytest.raises(ArchiveError, match=sentences.get(what, "cannot be read")):
        lance.add_folder(folder)
    for picture in photos.iterdir():
        picture.unlink()
    with pytest.raises(ArchiveError, match="the archive knows 6 of it"):  # a disk that is not mounted looks like this
        lance.add_folder(photos)
    assert lance.stats().n_images == 6


def test_a_picture_that_changes_while_it_is_read_is_of_one_moment(photos, monkeypatch):
    path = photos / "0.png"
    real, times = os.fstat, iter(range(1000))

    def moving(number):
        path.touch()
        os.utime(path, (next(times), next(times)))
        return real(number)

    monkeypatch.setattr(os, "fstat", moving)
    with pytest.raises(ImageError, match="changes while it is read"):
        read_picture(str(path))


def test_nan_of_the_model_skips_the_picture(tmp_path, photos):
    model = make_tiny_model()
    model.class_head.shift_scale.bias[1] = torch.nan
    detector = Detector(model, device="cpu")
    with RegionIndex.open(tmp_path / "nan.lance", detector, create=True) as index:
        report = index.add_folder(photos)
        assert counts(report) == (0, 0, 0, 0, 6)
        assert "NaN" in report.skipped[0][1]
        assert index.search("x") == []


# --- What comes out ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def filled(detector, tmp_path_factory):
    folder = fill(tmp_path_factory.mktemp("photos"), 8)
    with RegionIndex.open(tmp_path_factory.mktemp("archive") / "a.lance", detector, create=True) as index:
        index.add_folder(folder)
        yield index


QUERIES = {
    "text": "a red mug",
    "exemplar": Exemplar(noise(60, 90, seed=3), (10, 10, 50, 50)),
    "both, with negatives": Query("x", ["a", "b"], [Exemplar(noise(60, 90))], ["a cup", Exemplar(noise(50, 50))], 0.3),
}


@pytest.mark.numeric
@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("query", QUERIES.values(), ids=QUERIES)
def test_scores_are_those_of_detect(filled, detector, query, exact):
    matches = filled.search(query, limit=100, exact=exact)
    assert [m.score for m in matches] == sorted((m.score for m in matches), reverse=True)
    assert len(matches) == filled.stats().n_regions
    for match in matches[::7]:
        found = detector.detect(filled.open_picture(match.image_id), [query], threshold=0, nms_iou=None)
        same = (found.boxes - torch.tensor(match.box_xyxy)).abs().sum(1).argmin()
        assert torch.allclose(found.boxes[same], torch.tensor(match.box_xyxy), atol=1e-2)
        assert float(found.scores[same]) == pytest.approx(match.score, abs=1e-3)


def test_regions_of_a_picture_are_different_ones(filled):
    from torchvision.ops import box_iou

    matches = filled.search("x", limit=1000)
    for image_id in {match.image_id for match in matches}:
        boxes = torch.tensor([match.box_xyxy for match in matches if match.image_id == image_id])
        assert 1 < len(boxes) <= 20
        assert (box_iou(boxes, boxes) - torch.eye(len(boxes))).max() <= 0.5 + 1e-3


def test_pages_follow_one_another(filled):
    whole = filled.search("x", limit=30)
    assert [*filled.search("x", limit=10), *filled.search("x", limit=20, offset=10)] == whole
    assert filled.search("x", limit=10, offset=5000) == []


@pytest.mark.numeric
def test_filters(filled):
    everything = filled.search("x", limit=1000)
    high = filled.search("x", limit=1000, threshold=0.5)
    assert high == [match for match in everything if match.score >= 0.5]
    one_each = filled.search("x", limit=1000, per_image=1)
    assert len(one_each) == 8 == len({match.image_id for match in one_each})
    large = filled.search("x", limit=1000, min_side_px=30)
    sides = [min(x1 - x0, y1 - y0) for x0, y0, x1, y1 in (match.box_xyxy for match in everything)]
    assert large == [match for match, side in zip(everything, sides, strict=True) if side >= 30]
    assert {Path(m.path).name for m in filled.search("x", limit=99, path_glob="[01].png")} == {"0.png", "1.png"}
    now = time.time()
    assert filled.search("x", newer_than=now + 9) == [] == filled.search("x", older_than=now - 999)


def test_more_like_a_region_finds_it_first(filled):
    region = filled.search("x", limit=3)[2].region
    assert filled.search(filled.more_like(region), limit=1)[0].region == region
    for wrong in ("", "nothing", f"{region}9", "'; drop-1"):
        with pytest.raises(QueryError, match="no region"):
            filled.more_like(wrong)


@pytest.mark.parametrize(
    "settings",
    [
        {"limit": 0},
        {"limit": 2.5},
        {"offset": -1},
        {"per_image": 0},
        {"threshold": 2},
        {"threshold": float("nan")},
        {"min_side_px": float("inf")},
        {"newer_than": float("nan")},
        {"older_than": "yesterday"},
    ],
)
def test_settings_that_mean_nothing(filled, settings):
    with pytest.raises(QueryError):
        filled.search("x", **settings)


def test_one_query_at_a_time(filled, detector):
    with pytest.raises(QueryError, match="one query at a time"):
        filled.search(detector.encode_queries(["a", "b"]))


def test_queries_of_another_model_are_refused(filled, detector):
    queries = detector.encode_queries(["a"])
    for other, sentence in (
        (replace(queries, fingerprint="f" * 64), "made by another model"),
        (replace(queries, query_embeds=torch.eye(8)[:1]), "have 8 dimensions, the model has 16"),
    ):
        for search in (filled.search, filled.search_all):
            with pytest.raises(QueryError, match=sentence):
                search(other)


def test_uploads_are_kept_and_never_taken_for_paths(index, photos):
    content = encode(noise(60, 90, seed=90))
    big = encode(noise(400, 400, seed=91), "BMP")
    report = index.add_images([("../../etc/passwd.png", content), ("bad", b"no"), ("big.bmp", big)])
    assert counts(report) == (2, 0, 0, 0, 1)
    assert counts(index.add_images([("again.png", content)])) == (0, 0, 0, 1, 0)
    match = index.search("x", limit=1, path_glob="*.png")[0]
    assert match.path == "../../etc/passwd.png"
    assert np.array_equal(np.asarray(index.open_picture(match.image_id)), np.asarray(noise(60, 90, seed=90)))
    large = index.search("x", limit=1, path_glob="*.bmp")[0]
    assert index.open_picture(large.image_id).size == (400, 400)
    index.add_folder(photos)
    assert index.stats().n_images == 8


def test_a_picture_whose_file_changed_is_not_shown(lance, photos):
    lance.add_folder(photos)
    match = lance.search("x", limit=1)[0]
    Path(match.path).write_bytes(encode(noise(64, 64, seed=123)))
    with pytest.raises(ImageError, match="gone or has changed"):
        lance.open_picture(match.image_id)
    with pytest.raises(ImageError, match="no picture"):
        lance.open_picture("../x")


# --- What an archive is --------------------------------------------------------------------------------------------


def test_archives_that_are_not_there_or_of_another_kind(tmp_path, detector):
    with pytest.raises(ArchiveError, match="there is no archive here"):
        RegionIndex.open(tmp_path / "none.lance", detector)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "mine.txt").write_text("precious")
    with pytest.raises(ArchiveError, match="other things in it"):
        RegionIndex.open(tmp_path / "photos", detector, create=True)
    for wrong in ("milvus://host", "milvus:///x.db", "milvus://host:1/a-b"):
        with pytest.raises(ArchiveError, match="an archive in Milvus is"):
            RegionIndex.open(wrong, detector)


def test_another_models_archive_is_refused(uri, detector, index):
    index.close()
    with pytest.raises(ArchiveError, match="of the model 'tiny_for_tests'"):
        RegionIndex.open(uri, Detector(make_tiny_model(seed=1), device="cpu"))
    with pytest.raises(ArchiveError, match="encoded at 96 pixels"):
        RegionIndex.open(uri, Detector(detector.model, device="cpu", image_size=128))
    RegionIndex.open(uri, detector).close()


def test_another_versions_archive_is_refused(tmp_path, detector, lance, monkeypatch):
    monkeypatch.setattr("owl_swin.index.store.FORMAT", "owl_swin-regions-0")
    with pytest.raises(ArchiveError, match="format 'owl_swin-regions-2', expected 'owl_swin-regions-0'"):
        RegionIndex.open(tmp_path / "a.lance", detector)


def test_the_length_of_vectors_is_the_models_and_stays_the_archives(uri, detector, monkeypatch):
    monkeypatch.setattr("owl_swin.models.owl_swin.SEARCH_NORM", 40.0)
    other = Detector(make_tiny_model(), card={"name": "tiny_for_tests"}, device="cpu")
    with RegionIndex.open(uri, other, create=True) as index:
        index.add_images([("a.png", encode(noise(60, 90)))])
        assert index._store.card().search_norm == 40.0
        assert vector_lengths(index) == pytest.approx(40.0, rel=1e-4)
    with RegionIndex.open(uri, detector) as index:  # whose model would make vectors of length 16
        index.add_images([("b.png", encode(noise(60, 90, seed=1)))])
        assert vector_lengths(index) == pytest.approx(40.0, rel=1e-4)
        assert index.search("x", limit=10) == index.search("x", limit=10, exact=True)


def vector_lengths(index: RegionIndex) -> np.ndarray:
    """Lengths of the vectors as they are stored."""
    store = index._store
    if hasattr(store, "_client"):
        vectors = [row["vector"] for row in store._rows(store._regions, "", ["vector"])]
    else:
        vectors = store._regions.to_arrow()["vector"].to_pylist()
    return np.linalg.norm(np.array(vectors), axis=1)


def test_an_archive_whose_card_does_not_say_the_length_of_its_vectors(tmp_path, detector, photos, monkeypatch):
    card = Card("tiny_for_tests", detector.fingerprint, 96, 16)
    old = {key: value for key, value in json.loads(card.to_json()).items() if key != "search_norm"}
    assert Card.from_json("", json.dumps(old)) == card
    with monkeypatch.context() as patch:
        patch.setattr(Card, "to_json", lambda _: json.dumps(old))
        RegionIndex.open(tmp_path / "a.lance", detector, create=True).close()
    with RegionIndex.open(tmp_path / "a.lance", detector) as index:
        index.add_folder(photos)
        assert vector_lengths(index) == pytest.approx(16.0, rel=1e-4)
    for wrong in (0, -1, "x", None, float("inf")):
        with pytest.raises(ArchiveError, match="description is damaged"):
            Card.from_json("", json.dumps({**old, "search_norm": wrong}))


def test_a_damaged_archive_is_one_sentence(tmp_path, detector, lance, photos):
    lance.add_folder(photos)
    for file in (tmp_path / "a.lance" / "regions.lance").rglob("*"):
        if file.is_file():
            file.write_bytes(b"damage")
    with (
        pytest.raises(ArchiveError, match=r"a\.lance") as error,
        RegionIndex.open(tmp_path / "a.lance", detector) as it,
    ):
        it.search("x")
    assert "\n" not in str(error.value)


def test_an_archive_that_vanishes_is_one_sentence_and_can_be_made_again(tmp_path, detector, photos, lance):
    lance.add_folder(photos)
    shutil.rmtree(tmp_path / "a.lance")
    with pytest.raises(ArchiveError):
        lance.search("x")
    with RegionIndex.open(tmp_path / "a.lance", detector, create=True) as again:
        assert counts(again.add_folder(photos)) == (6, 0, 0, 0, 0)


# --- Processes that die or compete ---------------------------------------------------------------------------------


def _tiny() -> Detector:
    torch.set_num_threads(1)
    return Detector(make_tiny_model(), card={"name": "tiny_for_tests"}, device="cpu")


def _index_until(uri: str, folder: str, step: int) -> None:
    """Indexes, two pictures a part, and is killed before a certain change of a certain table."""
    import owl_swin.index.update as update
    from owl_swin.index.lance import LanceStore

    update.PART = 2
    left = step

    def killing(change):
        def wrapper(*arguments, **more):
            nonlocal left
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return change(*arguments, **more)

        return wrapper

    with RegionIndex.open(uri, _tiny(), create=True) as index:
        assert isinstance(index._store, LanceStore)
        for table in (index._store._pending, index._store._regions, index._store._pictures):
            for name in ("add", "delete", "merge_insert"):
                setattr(table, name, killing(getattr(table, name)))
        index.add_folder(folder)


@pytest.fixture
def reference(tmp_path, detector):
    """What an archive of the folder holds that nothing disturbed."""
    folder = fill(tmp_path / "photos")
    with RegionIndex.open(tmp_path / "undisturbed.lance", detector, create=True) as index:
        index.add_folder(folder)
        return held(index)


def test_killed_at_any_moment_nothing_is_lost_or_doubled(tmp_path, detector, reference):
    uri, folder = str(tmp_path / "a.lance"), str(tmp_path / "photos")
    # A part is four changes, of which the first names it and the last says that it is complete.
    for step in (1, 2, 3, 6):
        killed = forked.Process(target=_index_until, args=(uri, folder, step))
        killed.start()
        killed.join(60)
        assert killed.exitcode == -signal.SIGKILL, step
    with RegionIndex.open(uri, detector) as index:
        index.add_folder(folder)
        assert held(index) == reference
        (tmp_path / "photos" / "0.png").write_bytes(encode(noise(70, 70, seed=33)))
    changing = forked.Process(target=_index_until, args=(uri, folder, 2))  # the regions are new, their picture is old
    changing.start()
    changing.join(60)
    assert changing.exitcode == -signal.SIGKILL
    with RegionIndex.open(uri, detector) as index:
        assert index.add_folder(folder).skipped == ()
        assert len(held(index)) > 0 and index.stats().n_images == 6


def _hold(uri: str, folder: str, begun, seconds: float) -> None:
    def dawdle(_):
        begun.set()
        time.sleep(seconds)

    with RegionIndex.open(uri, _tiny(), create=True) as index:
        index.add_folder(folder, progress=dawdle)


def test_a_second_writer_says_so_or_waits_and_a_dead_one_holds_nothing(tmp_path, detector, reference):
    uri, folder = str(tmp_path / "a.lance"), str(tmp_path / "photos")
    begun = forked.Event()
    first = forked.Process(target=_hold, args=(uri, folder, begun, 60))
    first.start()
    assert begun.wait(60)
    with RegionIndex.open(uri, detector) as index:
        assert index.search("x") == []  # readers are not kept out
        with pytest.raises(ArchiveError, match=f"process {first.pid} on .* is writing to this archive"):
            index.add_folder(folder)

        def kill(holder: str) -> None:
            assert str(first.pid) in holder
            first.kill()

        index.add_folder(folder, wait=True, waiting=kill)
        assert held(index) == reference
    first.join(60)


def _fill_disk(uri: str, folder: str, told) -> None:
    """No file may grow beyond a few kB: writing ends as on a full disk."""
    import resource

    with RegionIndex.open(uri, _tiny(), create=True) as index:
        index.add_folder(folder)
        fill(Path(folder), 40)
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (8000, 8000))
        try:
            index.add_folder(folder)
        except ArchiveError as error:
            told.put(str(error))
        told.put("")


def test_a_full_disk_is_one_sentence_and_the_archive_stays_usable(tmp_path, detector, reference):
    uri, folder = str(tmp_path / "a.lance"), str(tmp_path / "photos")
    told = forked.Queue()
    writer = forked.Process(target=_fill_disk, args=(uri, folder, told))
    writer.start()
    sentence = told.get(timeout=60)
    writer.join(60)
    assert "the archive cannot be written" in sentence and "\n" not in sentence
    with RegionIndex.open(uri, detector) as index:
        assert len(index.search("x", limit=1000)) >= len(reference)
        fill(Path(folder), 40)
        assert index.add_folder(folder).skipped == ()
        assert index.stats().n_images == 40
        held(index)


# --- Many regions, many machines -----------------------------------------------------------------------------------


def test_the_index_of_a_large_archive_finds_what_exact_search_finds(tmp_path, monkeypatch):
    from owl_swin.bench.synthetic import Synthetic
    from owl_swin.index.lance import LanceStore
    from owl_swin.index.ranking import LEAST_FETCH

    monkeypatch.setattr("owl_swin.index.lance.INDEX_FROM", 1000)
    monkeypatch.setattr("owl_swin.index.lance.PARTITION", 250)
    store = LanceStore(str(tmp_path / "many.lance"), create=Card("none", "0", 320, 256))
    made = Synthetic(0)
    store.write(*made.rows(100, 0))
    store.settle()
    store.write(*made.rows(50, 100))  # joins the index that is there
    store.settle()
    assert [index.name for index in store._regions.list_indices()] == ["vector_of_2000"]
    vectors = np.concatenate([rows.vectors(16.0) for rows in store.scan(RegionFilter())])
    for query in made.embeds(5):
        asked = np.zeros(264, np.float32)
        asked[:256], asked[256] = query, 1
        best = np.sort(vectors @ asked)[-10:]
        nearest = store.nearest(
            asked, LEAST_FETCH, RegionFilter()
        )  # of 8 bits a number; the best of them are chosen exactly
        assert np.allclose(np.sort(nearest.vectors(16.0) @ asked)[-10:], best, atol=1e-4)
    store.close()


def test_vectors_order_as_logits_do():
    from owl_swin.bench.synthetic import Synthetic

    made = Synthetic(0)
    _, rows = made.rows(10, 0)
    query = made.names(1)[0]
    logits = (rows.embeds @ query + rows.shift) * rows.scale
    vectors = rows.vectors(16.0)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 16, atol=0.01)
    assert np.allclose(vectors[:, :256] @ query + vectors[:, 256], logits, atol=0.01)
    longer = replace(rows, scale=rows.scale * 9)
    assert np.isfinite(longer.vectors(16.0)).all()


def test_a_store_opens_by_its_uri(tmp_path):
    with pytest.raises(ArchiveError):
        open_store(tmp_path / "none")
