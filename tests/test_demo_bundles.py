"""A batch of photos leaves the demo as a zip in each form."""

import io
import json
import threading
import xml.etree.ElementTree as ET
import zipfile
from pathlib import PurePosixPath, PureWindowsPath

import pytest
from picture_files import noise
from PIL import Image, ImageChops

pytest.importorskip("gradio")

from owl_swin import to_coco, to_csv, to_label_studio, to_record, to_voc, to_yolo
from owl_swin.demo.bundles import FORMS, PICTURES, Answered, free_paths, write_bundle
from owl_swin.demo.photos import take_photo
from owl_swin.demo.running import Stopped

NAMES = ["trip/day 1/Käse & Brot #1.jpg", "trip/day 2/Käse & Brot #1.jpg", "a.png", "a.jpg", "A.jpg", "day.1/no ending"]
PATHS = [*NAMES[:3], "a-2.jpg", "A-3.jpg", "day.1/no ending"]


@pytest.mark.parametrize(
    "names, paths",
    [
        ([], []),
        (NAMES, PATHS),
        (["1.jpg", "1.jpg", "1-2.jpg"], ["1.jpg", "1-2.jpg", "1-2-2.jpg"]),
        (["../../etc/passwd.jpg", "/etc/passwd.jpg"], ["etc/passwd.jpg", "etc/passwd-2.jpg"]),
        (["C:\\Users\\me\\a.jpg", "CON.jpg", "sub/nul"], ["C_/Users/me/a.jpg", "_CON.jpg", "sub/_nul"]),
        (["<img src=x onerror=alert(1)>.png", "a\r\n\x00.gif"], ["_img src=x onerror=alert(1)_.png", "a___.gif"]),
        (["", " / ./..", ".hidden.jpg", "a. "], ["photo", "photo-2", ".hidden.jpg", "a"]),
        (["a.jpg", "a.txt/b.jpg", "\udc80.jpg"], ["a.jpg", "a.txt_/b.jpg", "_.jpg"]),
        (["猫.jpg", "e\u0301.jpg", "\u00e9.jpg"], ["猫.jpg", "\u00e9.jpg", "\u00e9-2.jpg"]),
        (["x" * 300 + ".jpeg", "f/" * 30 + "a.jpg"], ["x" * 55 + ".jpeg", "f/" * 8 + "a.jpg"]),
    ],
)
def test_paths_in_a_zip_are_those_of_the_photos_safe_and_each_once(names, paths):
    assert free_paths(names) == paths
    for path in paths:
        assert not PurePosixPath(path).is_absolute() and not PureWindowsPath(path).drive and ".." not in path.split("/")


@pytest.fixture(scope="module")
def batch(detector):
    found = []
    for seed, name in enumerate(NAMES):
        photo = take_photo(noise(60, 90 + seed, seed), name)
        found.append(Answered(photo, detector.detect(photo.open(), ["a cat", 'a "dog", <b>'], threshold=0.3)))
    assert any(len(one.found) for one in found)
    return found


def files_of(path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as bundle:
        assert bundle.testzip() is None
        return {name: bundle.read(name) for name in bundle.namelist()}


def written(form, batch, folder) -> dict[str, bytes]:
    path = folder / "batch.zip"
    assert list(write_bundle(path, form, batch, threading.Event())) == list(range(1, len(batch) + 1))
    return files_of(path)


def test_each_form_of_a_batch_holds_all_its_photos(batch, tmp_path):
    stems, found = [path.removesuffix(".jpg").removesuffix(".png") for path in PATHS], [one.found for one in batch]
    files = written("JSON", batch, tmp_path)
    assert {name: json.loads(text) for name, text in files.items()} == {
        f"{stem}.json": to_record(path, one) for stem, path, one in zip(stems, PATHS, found, strict=True)
    }
    assert json.loads(written("COCO", batch, tmp_path)["annotations.json"]) == to_coco(PATHS, found)
    files = written("YOLO", batch, tmp_path)
    assert '0: "a cat"' in files.pop("data.yaml").decode()
    assert files == {f"labels/{s}.txt": to_yolo(one).encode() for s, one in zip(stems, found, strict=True)}
    files = written("VOC", batch, tmp_path)
    assert list(files) == [f"Annotations/{stem}.xml" for stem in stems]
    assert files["Annotations/a-2.xml"].decode() == to_voc("a-2.jpg", found[3])
    assert written("CSV", batch, tmp_path)["detections.csv"].decode() == to_csv(PATHS, found)
    files = written("Label Studio", batch, tmp_path)
    assert json.loads(files["tasks.json"]) == to_label_studio(PATHS, found)
    assert [one.get("value") for one in ET.fromstring(files["interface.xml"]).iter("Label")] == list(found[0].names)
    pictures = written(PICTURES, batch, tmp_path)
    assert list(pictures) == [f"{stem}.jpg" for stem in stems]
    for content, one in zip(pictures.values(), batch, strict=True):
        with Image.open(io.BytesIO(content)) as drawn:
            assert drawn.size == one.photo.open().size
            if len(one.found):
                assert ImageChops.difference(drawn.convert("RGB"), one.photo.open()).getbbox()


@pytest.mark.parametrize("form", FORMS)
def test_a_batch_that_is_stopped_or_empty_is_no_error(form, batch, tmp_path):
    stop = threading.Event()
    steps = write_bundle(tmp_path / "a.zip", form, batch, stop)
    assert next(steps) == 1
    stop.set()
    with pytest.raises(Stopped):
        next(steps)
    assert list(write_bundle(tmp_path / "b.zip", form, [], threading.Event())) == []
    assert zipfile.is_zipfile(tmp_path / "b.zip")
