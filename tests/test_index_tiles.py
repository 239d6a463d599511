"""An archive whose pictures are shown to the model in tiles too."""

import json

import numpy as np
import pytest
import torch
from archives import counts, fill
from picture_files import encode, noise
from PIL import Image
from test_huge import planes, tiff
from test_search import run  # noqa: F401

from owl_swin import ArchiveError, Detections, Detector, RegionIndex, Tiles
from owl_swin.image import open_image
from owl_swin.index import cluster, regions
from owl_swin.index.sheet import sheet_of_matches
from owl_swin.index.store import Card
from owl_swin.postprocess import DetectOptions
from owl_swin.tiling import FoundInView, join_views

TILES = Tiles(96, overlap=0.25)


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "wide.png").write_bytes(encode(noise(130, 250, seed=1)))
    (folder / "small.png").write_bytes(encode(noise(60, 90, seed=2)))
    turned = Image.Exif()
    turned[0x0112] = 6
    (folder / "turned.jpg").write_bytes(encode(noise(120, 200, seed=3), form="JPEG", exif=turned))
    return folder


@pytest.fixture
def tiled(tmp_path, detector):
    with RegionIndex.open(tmp_path / "tiled.lance", detector, create=True, tiles=TILES) as made:
        yield made


def n_whole(detector, picture):
    """How many regions a picture has without tiles."""
    found, _ = regions.regions_of_picture(detector, enumerate(detector.encode_image(picture).views), 20)
    return len(found.boxes)


def expected(detector, path, query):
    """Boxes and scores of all regions of a picture, as the detector finds and scores them."""
    found = detector.detect(path, None, tiles=TILES, threshold=0.0, nms_iou=0.5, top_k=100_000)
    scores = detector.score(detector.encode_image(path, tiles=TILES), query).sigmoid()[found.patches, 0]
    return sorted(
        [*map(round, box), round(score, 3)] for box, score in zip(found.boxes.tolist(), scores.tolist(), strict=True)
    )


def test_regions_of_one_kind_are_what_detect_finds_in_the_same_tiles_each_once(tiled, photos, detector, monkeypatch):
    monkeypatch.setattr(regions, "ALIKE", -2)
    assert counts(tiled.add_folder(photos, regions=1000)) == (3, 0, 0, 0, 0)
    query = detector.encode_queries(["a red mug"])
    matches = tiled.search(query, limit=5000, exact=True)
    for path in photos.iterdir():
        own = [match for match in matches if match.path == str(path)]
        width, height = open_image(path).size
        assert {(match.width, match.height) for match in own} == {(width, height)}
        assert sorted([*map(round, m.box_xyxy), round(m.score, 3)] for m in own) == expected(detector, path, query)
    # More than of the picture alone: that is what tiles are for.
    with RegionIndex.open(tiled._store.uri + "-whole.lance", detector, create=True) as whole:
        whole.add_folder(photos, regions=1000)
        assert tiled.stats().n_regions > 1.5 * whole.stats().n_regions


@pytest.mark.parametrize(
    "embeds, expected",
    [
        ([(1, 0), (1, 0), (1, 0)], [[0, 0, 150, 90]]),  # all are parts of the largest
        ([(1, 0), (0, 1), (0, 1)], [[0, 0, 150, 90], [70, 20, 120, 60]]),  # a person before a wall
        ([(0, 1), (0, 1), (1, 0)], [[0, 0, 150, 90], [97, 20, 120, 60]]),
    ],
)
def test_a_thing_that_a_seam_cuts_becomes_a_part_of_its_like_alone(embeds, expected):
    boxes = [(0, 0, 150, 90), (70, 20, 113, 60), (97, 20, 120, 60)]
    crops = [None, (0, 0, 113, 100), (97, 0, 200, 100)]
    found = {}
    for number, (box, crop) in enumerate(zip(boxes, crops, strict=True)):
        one = (torch.tensor([box], dtype=torch.float32), torch.tensor([0.5 - number / 10]), torch.tensor([0]))
        found[number] = FoundInView(Detections(*one, ("thing",), (100, 200), torch.tensor([0])), crop, 1)
    rows = {number: torch.tensor([embed], dtype=torch.float32) for number, embed in enumerate(embeds)}
    options = DetectOptions(threshold=0, nms_across=True)
    joined = join_views(regions._by_kind(found, rows), options)
    assert sorted(joined.boxes.tolist()) == expected


def test_the_number_of_regions_is_one_of_each_view(tiled, photos, monkeypatch):
    tiled.add_folder(photos, regions=2)
    numbers = {picture.path.rsplit("/", 1)[-1]: picture.n_regions for picture in tiled._store.pictures()}
    n_tiles = TILES.count((130, 250))
    assert numbers["small.png"] == 2 < numbers["wide.png"] <= 2 * (1 + n_tiles)
    monkeypatch.setattr(regions, "MOST_REGIONS", 3)
    (photos / "other.png").write_bytes(encode(noise(130, 250, seed=9)))
    tiled.add_folder(photos, regions=2)
    assert {p.path.rsplit("/", 1)[-1]: p.n_regions for p in tiled._store.pictures()} == {**numbers, "other.png": 3}


def test_an_archive_remembers_its_tiles(tiled, photos, detector, tmp_path):
    uri = tmp_path / "tiled.lance"
    tiled.add_folder(photos)
    with RegionIndex.open(uri, detector) as again:
        assert again.tiles == again.stats().tiles == TILES
        assert counts(again.add_folder(photos)) == (0, 0, 0, 3, 0)
        (photos / "small.png").write_bytes(encode(noise(130, 250, seed=4)))
        again.add_folder(photos)
        (picture,) = (one for one in again._store.pictures() if "small" in one.path)
        assert picture.n_regions > n_whole(detector, noise(130, 250, seed=4))
    RegionIndex.open(uri, detector, tiles=TILES).close()
    for other in (64, Tiles(96, 0.5)):
        with pytest.raises(ArchiveError, match=r"encoded in tiles of 96 pixels with an overlap of 0\.25, not in tiles"):
            RegionIndex.open(uri, detector, tiles=other)
    RegionIndex.open(tmp_path / "whole.lance", detector, create=True).close()
    with pytest.raises(ArchiveError, match="were encoded whole, not in tiles of 96 pixels"):
        RegionIndex.open(tmp_path / "whole.lance", detector, create=True, tiles=96)


@pytest.mark.parametrize("tiles", [{"size": 3, "overlap": 0.2}, {"side": 640}, "640", 640, [640]])
def test_a_card_with_tiles_that_mean_nothing_is_damaged(tiles):
    card = json.loads(Card("a", "b", 96, 16, tiles=TILES).to_json())
    assert Card.from_json("x", json.dumps(card)).tiles == TILES
    with pytest.raises(ArchiveError, match="description is damaged"):
        Card.from_json("x", json.dumps({**card, "tiles": tiles}))


def test_uploads_are_shown_in_the_tiles_of_the_archive(tiled):
    report = tiled.add_images([("a.png", encode(noise(130, 250, seed=1))), ("b.png", b"no")], regions=2)
    assert counts(report) == (1, 0, 0, 0, 1) and report.regions > 2
    assert "not a picture" in report.skipped[0][1] and "b.png" not in report.skipped[0][1]


def test_a_picture_beyond_the_bound_of_others_is_indexed_found_and_drawn(detector, tmp_path, monkeypatch):
    for module in ("huge", "image", "index.sheet"):
        monkeypatch.setattr(f"owl_swin.{module}.MAX_PIXELS", 20_000)
    monkeypatch.setattr("owl_swin.huge.MAX_WHOLE_PIXELS", 20_000)
    monkeypatch.setattr("owl_swin.index.folder.MAX_FILE_BYTES", 10_000)
    monkeypatch.setattr(open_image, "__kwdefaults__", {"max_pixels": 20_000})
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "large.tif").write_bytes(tiff(planes(noise(130, 250, seed=1)), tiled=True, blockxsize=64, blockysize=64))
    with RegionIndex.open(tmp_path / "whole.lance", detector, create=True) as whole:
        assert "has more than 10000 bytes" in whole.add_folder(folder).skipped[0][1]
    with RegionIndex.open(tmp_path / "a.lance", detector, create=True, tiles=TILES) as archive:
        assert counts(archive.add_folder(folder)) == (1, 0, 0, 0, 0)
        matches = archive.search("a mug", limit=100)
        assert {(match.width, match.height) for match in matches} == {(250, 130)}
        seen = min(matches, key=lambda match: match.box_xyxy[2] - match.box_xyxy[0])
        sheet = sheet_of_matches(archive, [seen, matches[0]], [0, 0])
        assert sheet.getpixel((10, 10)) != (211, 211, 211), "the grey cell of a picture that is gone"
        (folder / "large.tif").write_bytes(b"other")
        gone = sheet_of_matches(archive, [seen], [0])
        assert gone.getpixel((10, 10)) == (211, 211, 211)


def test_a_file_that_changes_while_its_tiles_are_read_is_skipped(tiled, photos, monkeypatch):
    real = Detector.views

    def views(self, source, **settings):
        yield from real(self, source, **settings)
        (photos / "wide.png").write_bytes(encode(noise(130, 250, seed=5)))

    monkeypatch.setattr(Detector, "views", views)
    report = tiled.add_folder(photos)
    assert [reason for path, reason in report.skipped if "wide" in path] == [
        "the file changes while it is read; index again when it is complete"
    ]


def test_workers_elsewhere_are_told_the_tiles(tiled, detector, tmp_path):
    folder = fill(tmp_path / "two", 2)
    (folder / "wide.png").write_bytes(encode(noise(130, 250, seed=1)))
    worker = cluster._Worker.__new__(cluster._Worker)
    worker._detector, worker._regions, worker._tiles = detector, 20, TILES
    told = []

    def engine(paths, known, tiles):
        told.append(tiles)
        yield from cluster._from_rows(worker({"path": np.array(list(paths))}))

    assert counts(tiled.add_folder(folder, engine=engine)) == (3, 0, 0, 0, 0)
    assert told == [TILES]
    (wide,) = (one for one in tiled._store.pictures() if "wide" in one.path)
    assert wide.n_regions > n_whole(detector, noise(130, 250, seed=1))


def test_the_command_makes_and_keeps_an_archive_in_tiles(run, photos, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    code, out, _ = run("index", "photos", "--to", "a.lance", "--tile", "96", "--overlap", "0.5")
    assert code == 0 and "3 added" in out
    code, out, _ = run("index", "photos", "--to", "a.lance")
    assert code == 0 and "0 added, 0 changed, 0 removed, 3 unchanged" in out
    code, out, _ = run("search", "a.lance", "--query", "x", "--format", "jsonl", "--limit", "500")
    boxes = torch.tensor([list(json.loads(line)["box"].values()) for line in out.splitlines()])
    assert code == 0 and (boxes[:, 2] <= 250).all() and len(boxes) > 30
    for arguments, sentence in [
        (("--tile", "96"), "with an overlap of 0.5, not in tiles of 96 pixels with an overlap of 0.2; leave"),
        (("--overlap", "0.2"), "--overlap is for --tile"),
        (("--tile", "8"), "the side of tiles must be a whole number of pixels"),
    ]:
        code, _, err = run("index", "photos", "--to", "a.lance", *arguments)
        assert code == 2 and sentence in err and len(err.strip().splitlines()) == 1
