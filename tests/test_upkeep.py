"""What keeps an archive whole and quick: its making, writes that fail, settling, and forgetting uploads."""

import os
import time
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from archives import counts, fill, held, held_until_waited_for
from picture_files import encode, noise

from owl_swin import ArchiveError, ImageError, RegionIndex
from owl_swin.bench.search import _n_cores
from owl_swin.bench.synthetic import Synthetic
from owl_swin.index import cluster, regions
from owl_swin.index.lance import LanceStore
from owl_swin.index.store import Card, RegionFilter


@pytest.fixture
def photos(tmp_path):
    return fill(tmp_path / "photos", 4)


@pytest.fixture(params=["lance", "milvus"])
def index(request, tmp_path, detector):
    uri = str(tmp_path / "a.lance") if request.param == "lance" else f"milvus://{tmp_path}/a.db/photos"
    with RegionIndex.open(uri, detector, create=True) as made:
        yield made


@pytest.fixture
def lance(tmp_path, detector):
    with RegionIndex.open(tmp_path / "a.lance", detector, create=True) as made:
        yield made


def uploads(n: int, first: int = 0) -> list[tuple[str, bytes]]:
    return [(f"{i}.png", encode(noise(60, 70, seed=i))) for i in range(first, first + n)]


# --- Making one ----------------------------------------------------------------------------------------------------


def test_an_archive_is_made_by_one_at_a_time(tmp_path, detector, monkeypatch):
    with held_until_waited_for(str(tmp_path / "b.lance"), monkeypatch) as waited:
        RegionIndex.open(tmp_path / "b.lance", detector, create=True).close()
        assert waited.is_set()


@pytest.mark.parametrize("table", ["pictures", "regions"])
def test_an_archive_whose_making_was_killed_can_be_made(tmp_path, detector, photos, table):
    (tmp_path / "b.lance" / f"{table}.lance" / "_versions").mkdir(parents=True)
    with pytest.raises(ArchiveError, match="there is no archive here"):
        RegionIndex.open(tmp_path / "b.lance", detector)
    with RegionIndex.open(tmp_path / "b.lance", detector, create=True) as made:
        assert made.add_folder(photos).added == 4


def test_a_folder_of_other_things_is_left_as_it_was(tmp_path, detector, photos):
    before = sorted(photos.iterdir())
    with pytest.raises(ArchiveError, match="other things in it"):
        RegionIndex.open(photos, detector, create=True)
    assert sorted(photos.iterdir()) == before


# --- Writes that fail ----------------------------------------------------------------------------------------------


def failing(index, monkeypatch, collection: str) -> None:
    """Writing of "_regions" or "_pictures" fails as on a full disk."""
    store = index._store
    real, where = store._put, getattr(store, collection)

    def put(place, *arguments):
        if place is where:
            raise OSError("No space left on device")
        return real(place, *arguments)

    monkeypatch.setattr(store, "_put", put)


def test_a_write_that_fails_at_once_leaves_what_was_known(lance, photos, monkeypatch):
    lance.add_folder(photos)
    before = held(lance)
    for i, picture in enumerate(sorted(photos.iterdir())):
        picture.write_bytes(encode(noise(50, 50, seed=70 + i)))
    with monkeypatch.context() as full, pytest.raises(ArchiveError, match="No space"):
        failing(lance, full, "_regions")
        lance.add_folder(photos)
    lance.add_images([])  # the next writer clears up
    assert held(lance) == before
    assert counts(lance.add_folder(photos)) == (0, 4, 0, 0, 0)


def test_a_write_that_fails_half_way_leaves_whole_pictures(lance, photos, monkeypatch):
    lance.add_folder(photos)
    (photos / "0.png").write_bytes(encode(noise(50, 50, seed=70)))
    with monkeypatch.context() as full, pytest.raises(ArchiveError, match="No space"):
        failing(lance, full, "_pictures")
        lance.add_folder(photos)
    lance.add_images([])
    held(lance)
    assert lance.stats().n_images == 3
    assert counts(lance.add_folder(photos)) == (1, 0, 0, 3, 0)


def test_bytes_of_an_upload_that_was_not_finished_are_dropped(index, monkeypatch):
    index.add_images(uploads(1))
    kept = index.search("x", limit=1)[0].image_id
    lost: list[str] = []
    real = index._store.write
    monkeypatch.setattr(index._store, "write", lambda p, r, u: (lost.extend(u), real(p, r, u)))
    with monkeypatch.context() as full, pytest.raises(ArchiveError, match="No space"):
        failing(index, full, "_pictures")
        index.add_images(uploads(1, first=5))
    assert len(lost) == 1 and index._store.content(lost[0]) is not None
    index.add_images([])
    assert index._store.content(lost[0]) is None
    assert index._store.content(kept) is not None


# --- Settling ------------------------------------------------------------------------------------------------------


def test_uploads_of_one_call_are_one_write_and_tell_how_many_are_left(lance, monkeypatch):
    told = []
    report = lance.add_images([*uploads(5), *uploads(1), ("bad", b"no")], progress=told.append)
    assert counts(report) == (5, 0, 0, 1, 1)
    assert lance._store.unsettled() == 1
    assert [(now.done, now.total) for now in told] == [(i, 7) for i in range(1, 8)]
    held(lance)
    monkeypatch.setattr("owl_swin.index.update.PART_BYTES", 1)
    lance.add_images(uploads(2, first=10))
    assert lance._store.unsettled() == 3


def test_many_single_uploads_are_settled_now_and_then(lance, monkeypatch):
    monkeypatch.setattr("owl_swin.index.region_index.SETTLE_AFTER", 4)
    left = []
    for i in range(7):
        lance.add_images(uploads(1, first=i))
        left.append(lance._store.unsettled())
    assert left == [1, 2, 3, 1, 2, 3, 1]
    assert len({match.image_id for match in lance.search("x", limit=999)}) == 7


def test_an_index_whose_training_was_killed_is_trained_by_the_next_run(lance, photos, monkeypatch):
    monkeypatch.setattr("owl_swin.index.lance.INDEX_FROM", 10)

    def killed(_):
        raise KeyboardInterrupt

    with monkeypatch.context() as first, pytest.raises(KeyboardInterrupt):
        first.setattr(LanceStore, "_index", killed)
        lance.add_folder(photos)
    assert not lance._store._regions.list_indices()
    assert counts(lance.add_folder(photos)) == (0, 0, 0, 4, 0)
    assert len(lance._store._regions.list_indices()) == 1


@pytest.fixture
def many(tmp_path, monkeypatch):
    """2000 regions with an index of 8 partitions, of which one is looked at first."""
    for name, value in (("INDEX_FROM", 1000), ("PARTITION", 250), ("PROBES", 1)):
        monkeypatch.setattr(f"owl_swin.index.lance.{name}", value)
    store = LanceStore(str(tmp_path / "many.lance"), create=Card("none", "0", 320, 256))
    store.write(*Synthetic(0).rows(100, 0))
    store.settle()
    yield store
    store.close()


def test_a_narrow_condition_is_looked_for_in_the_whole_index(many):
    (rows,) = (rows[:20] for rows in [next(many.scan(RegionFilter()))])
    assert len(many.nearest(rows.vectors(16.0)[0], 64, RegionFilter(path_like=rows.path[0]))) == 20


def test_an_index_that_a_kill_left_beside_a_new_one_is_dropped(many, monkeypatch):
    many.write(*Synthetic(1).rows(200, 100))
    with monkeypatch.context() as first, pytest.raises(KeyboardInterrupt):
        first.setattr(many._regions, "drop_index", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
        many.settle()
    assert len(many._regions.list_indices()) == 2
    many.settle()
    assert [index.name for index in many._regions.list_indices()] == ["vector_of_6000"]


# --- Forgetting uploads --------------------------------------------------------------------------------------------


def test_uploads_are_forgotten_with_their_bytes(index, photos):
    same = (photos / "0.png").read_bytes()
    index.add_folder(photos)
    index.add_images([*uploads(2), ("same.png", same)])
    found = {match.path: match.image_id for match in index.search("x", limit=999, exact=True)}
    first, in_folder, both = found["0.png"], found[str(photos / "1.png")], index._store.pictures()
    both = next(picture.image_id for picture in both if picture.path == "same.png")
    assert index.forget_images([first, first, in_folder, both, "nothing", "' or true"]) == 2
    assert index._store.content(first) is None and index._store.content(both) is None
    with pytest.raises(ImageError, match="no picture"):
        index.open_picture(first)
    assert np.array_equal(np.asarray(index.open_picture(both)), np.asarray(noise(48, 80, seed=0)))
    assert index.stats().n_images == 5
    held(index)
    assert counts(index.add_images(uploads(1))) == (1, 0, 0, 0, 0)
    assert index.open_picture(first).size == (70, 60)


def test_forgotten_bytes_leave_the_disk(lance, tmp_path, monkeypatch):
    lance.add_images(uploads(3))
    files = Path(tmp_path, "a.lance", "uploads.lance", "data")

    def n_bytes() -> int:
        return sum(file.stat().st_size for file in files.iterdir())

    before = n_bytes()
    ids = {match.image_id for match in lance.search("x", limit=999)}
    assert lance.forget_images(sorted(ids)[:2]) == 2
    assert n_bytes() > before  # another process may be reading them
    monkeypatch.setattr("owl_swin.index.lance.KEEP_VERSIONS", timedelta(milliseconds=1))
    for _ in range(50):  # a clock may be set back between two versions
        lance._store.settle()
        if n_bytes() < before / 2:
            break
        time.sleep(0.05)
    assert n_bytes() < before / 2


def test_forgetting_waits_and_says_for_whom(lance, photos, monkeypatch):
    lance.add_folder(photos)
    holders = []
    with held_until_waited_for(lance._store.uri, monkeypatch):
        assert lance.forget(photos, wait=True, waiting=holders.append) == 4
    assert len(holders) == 1 and f"process {os.getpid()} on" in holders[0]


# --- Other machines ------------------------------------------------------------------------------------------------


def test_a_worker_lets_go_of_the_files_before_it_encodes(detector, tmp_path, monkeypatch):
    folder = fill(tmp_path / "ten", 10)
    worker = cluster._Worker.__new__(cluster._Worker)
    worker._detector, worker._regions, worker._tiles = detector, 20, None
    given, real = [], regions.encode_pictures
    monkeypatch.setattr(
        regions, "encode_pictures", lambda d, contents, n: (given.append(contents), real(d, contents, n))[1]
    )
    rows = worker({"path": np.array([str(path) for path in sorted(folder.iterdir())])})
    assert len(rows["path"]) == 10 == sum(map(len, given))
    assert all(len(batch) <= regions.BATCH and not any(one.content for one, _ in batch) for batch in given)


def test_cores_are_counted_where_the_system_does_not_tell_which(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert _n_cores() == os.cpu_count()
