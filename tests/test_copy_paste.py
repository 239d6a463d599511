"""Things cut out of a set and pasted on its pictures: their boxes, what they cover, and what is no longer known."""

import json
import random

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from owl_swin.cli.main import app
from owl_swin.data.coco import read_coco
from owl_swin.data.cutouts import Cutout, find_cutouts
from owl_swin.data.paste import Ground, Sizes, grounds_of, paste_scenes
from owl_swin.detections import Detections
from owl_swin.errors import DataError, OwlSwinError
from owl_swin.labelling.cutting import cut_out
from owl_swin.masks import BoxMasks
from owl_swin.rle import decode_rle, encode_rle

SIDE = 200
RED, GREY = (220, 0, 0), (90, 90, 90)


def disc(box) -> np.ndarray:
    x0, y0, x1, y1 = box
    ys, xs = np.mgrid[:SIDE, :SIDE] + 0.5
    return ((xs - (x0 + x1) / 2) / (x1 - x0)) ** 2 + ((ys - (y0 + y1) / 2) / (y1 - y0)) ** 2 <= 0.25


def write_set(folder, annotations, **image):
    """One grey picture with a red disc in each box (xyxy); masks where an annotation has ``masked``."""
    folder.mkdir()
    picture = np.full((SIDE, SIDE, 3), GREY, np.uint8)
    rows = []
    for number, one in enumerate(annotations, 1):
        x0, y0, x1, y1 = one["box"]
        picture[disc(one["box"])] = RED
        row = {"id": number, "image_id": 1, "category_id": one.get("of", 1), "bbox": [x0, y0, x1 - x0, y1 - y0]}
        row |= {"segmentation": encode_rle(disc(one["box"]))} if one.get("masked") else {}
        rows.append(row | {key: one[key] for key in ("score", "iscrowd") if key in one})
    Image.fromarray(picture).save(folder / "a.png")
    content = {
        "images": [{"id": 1, "file_name": "a.png", "width": SIDE, "height": SIDE, **image}],
        "annotations": rows,
        "categories": [{"id": 1, "name": "ball"}, {"id": 2, "name": "cup"}],
    }
    (folder / "set.json").write_text(json.dumps(content))
    return folder / "set.json"


def read(path, **options):
    return read_coco(path, path.parent, masks=True, **options)


@pytest.fixture
def things(tmp_path) -> list[Cutout]:
    Image.new("RGBA", (40, 40), (0, 0, 255, 255)).save(tmp_path / "blue.png")
    return [Cutout(tmp_path / "blue.png", "brick")]


# --- Cut out ---------------------------------------------------------------------------------------------------------


def test_a_thing_leaves_its_photograph_with_its_shape_its_name_and_where_it_was_cut_off(tmp_path):
    path = write_set(
        tmp_path / "set",
        [
            {"box": (20, 30, 80, 70), "masked": True},
            {"box": (0, 120, 60, 180), "masked": True, "of": 2},
            {"box": (100, 100, 110, 190), "masked": True},  # narrow
            {"box": (150, 150, 200, 200), "masked": True},  # in the corner
            {"box": (120, 20, 180, 60), "masked": True, "score": 0.3},
            {"box": (120, 80, 180, 120)},  # whose shape nobody knows
        ],
    )
    made = cut_out(read(path), tmp_path / "things")
    assert (made.kept, made.small, made.unmasked) == (2, 2, 1)
    first, second = find_cutouts(tmp_path / "things")
    assert (first.name, first.touches, second.name, second.touches) == ("ball", (), "cup", ("left",))
    pixels = np.asarray(Image.open(first.path)).astype(int)
    assert pixels.shape == (40, 60, 4)
    solid = pixels[..., 3] > 200
    assert abs(solid.mean() - np.pi / 4) < 0.06 and np.abs(pixels[solid][:, :3] - RED).max() == 0
    assert pixels[0, 0, 3] == 0


class Finds:
    """Answers with boxes of these names, each with the mask of the disc in it."""

    def __init__(self, *answers):
        self.answers, self.asked = answers, []

    def detect(self, picture, names, **options):
        self.asked.append((names, options))
        boxes = torch.tensor([box for _, box in self.answers], dtype=torch.float32)
        labels = torch.tensor([names.index(name) for name, _ in self.answers])
        logits = torch.stack([torch.tensor(disc(box)[box[1] : box[3], box[0] : box[2]]) for _, box in self.answers])
        masks = BoxMasks(logits.float() * 20 - 10, boxes, (SIDE, SIDE))
        scores = torch.linspace(0.9, 0.1, len(boxes))
        return Detections(boxes, scores, labels, tuple(names), (SIDE, SIDE), torch.arange(len(boxes)), masks=masks)


def test_a_thing_without_a_mask_gets_that_of_what_the_model_finds_in_its_place_under_its_name(
    tmp_path, masked_detector
):
    boxes = [(20, 20, 80, 80), (110, 20, 170, 80), (20, 110, 80, 170)]
    path = write_set(tmp_path / "set", [{"box": box, "of": 1 + (i == 2)} for i, box in enumerate(boxes)])
    model = Finds(("ball", (24, 22, 84, 82)), ("ball", (125, 20, 185, 80)), ("ball", (20, 110, 80, 170)))
    made = cut_out(read(path), tmp_path / "things", model)
    assert (made.kept, made.small, made.unmasked) == (1, 0, 2)  # one lies too far away, one has another name
    (thing,) = find_cutouts(tmp_path / "things")
    alpha = np.asarray(Image.open(thing.path).getchannel("A")) > 127
    assert alpha.shape == (60, 60) and (alpha == disc((24, 22, 84, 82))[20:80, 20:80]).mean() > 0.97
    ((names, options),) = model.asked
    assert names == ["ball", "cup"]
    masked_detector.detect(path.parent / "a.png", names, **options)  # which a real one takes


def test_some_names_and_so_many_of_each_and_what_cannot_be_is_said(tmp_path):
    boxes = [(20 + 60 * i, 20 + 60 * j, 65 + 60 * i, 65 + 60 * j) for i in range(2) for j in range(2)]
    path = write_set(tmp_path / "set", [{"box": box, "masked": True, "of": 1 + i % 2} for i, box in enumerate(boxes)])
    assert cut_out(read(path), tmp_path / "a", names=["cup"]).kept == 2
    assert cut_out(read(path), tmp_path / "b", without=["cup"], most=1).kept == 1
    with pytest.raises(DataError, match="the set has no class called 'mug'"):
        cut_out(read(path), tmp_path / "c", names=["mug"])
    bare = write_set(tmp_path / "bare", [{"box": boxes[0]}])
    with pytest.raises(DataError, match="nothing was cut out: 0 boxes are too small or cut off, 1 have no mask"):
        cut_out(read(bare), tmp_path / "d")
    assert cut_out(read(path), tmp_path / "a").kept == 4  # ours of before
    (tmp_path / "a" / "cutouts.json").write_text('{"images": []}')
    with pytest.raises(OwlSwinError, match="name another folder for --to"):
        cut_out(read(path), tmp_path / "a")


# --- Pasted on what has boxes ----------------------------------------------------------------------------------------


def pasted(things, path, folder, **options):
    """The set that comes of it, with its records by picture."""
    grounds = grounds_of(read(path))
    options = {"pictures": 40, "most_things": 2, "sizes": Sizes((0.2, 0.5)), "longer_side_px": 100, **options}
    target = paste_scenes(things, grounds, folder, **options)
    content = json.loads(target.read_text())
    names = {one["id"]: one["name"] for one in content["categories"]}
    of = {image["id"]: [] for image in content["images"]}
    for one in content["annotations"]:
        of[one["image_id"]].append((names[one["category_id"]], one))
    return target, content, of


def test_boxes_of_the_picture_stay_and_go_as_much_as_they_are_covered(things, tmp_path):
    path = write_set(tmp_path / "set", [{"box": (40, 40, 120, 160), "masked": True, "score": 0.8}])
    target, content, of = pasted(things, path, tmp_path / "out", sizes=Sizes((0.2, 0.9)), pictures=80)
    seen = {"whole": 0, "crowd": 0, "gone": 0}
    for image in content["images"]:
        assert (image["width"], image["height"]) == (100, 100)
        pixels = np.asarray(Image.open(target.parent / "images" / image["file_name"])).astype(int)
        blue = np.abs(pixels - (0, 0, 255)).sum(-1) < 120
        covered = blue[20:80, 20:60].mean()
        balls = [one for name, one in of[image["id"]] if name == "ball"]
        if covered > 0.8:
            assert balls == []
            seen["gone"] += 1
        elif covered < 0.7:
            (ball,) = balls
            assert ball["bbox"] == [20, 20, 40, 60] and ball["score"] == pytest.approx(0.8)
            if abs(covered - 0.4) > 0.05:
                assert ball["iscrowd"] == int(covered > 0.4)
                seen["crowd" if covered > 0.4 else "whole"] += 1
            mask = decode_rle(ball["segmentation"])
            assert not (mask & blue).any() or (mask & blue).sum() < 0.05 * mask.sum()
        assert all(name in ("ball", "brick") for name, _ in of[image["id"]])
    assert min(seen.values()) > 0
    scenes = read_coco(target, target.parent / "images")
    crowded = [scene for scene in scenes.scenes if len(scene.unknown)]
    assert crowded and all(0 not in scene.absent(3).tolist() for scene in crowded)  # "ball" is neither there nor absent
    assert [ways[0] for ways in scenes.names] == ["ball", "brick", "cup"]


def test_what_is_not_known_of_a_picture_is_not_known_of_it_afterwards(things, tmp_path):
    crowd = [{"box": (10, 10, 60, 60), "iscrowd": 1, "of": 2}]
    _, content, _ = pasted(things, write_set(tmp_path / "set", crowd), tmp_path / "out", pictures=3)
    cup = next(one["id"] for one in content["categories"] if one["name"] == "cup")
    assert all(image["not_exhaustive_category_ids"] == [cup] for image in content["images"])
    path = write_set(tmp_path / "lvis", crowd[:0], neg_category_ids=[2])
    target, content, _ = pasted(things, path, tmp_path / "out2", pictures=3)
    assert all(image["neg_category_ids"] == [cup] for image in content["images"])
    scenes = read_coco(target, target.parent / "images")
    assert all(scene.absent(3).tolist() == [2] for scene in scenes.scenes)


def test_names_of_another_set_are_not_absent_where_nobody_looked_for_them(things, tmp_path):
    grounds = grounds_of(read(write_set(tmp_path / "a", [{"box": (40, 40, 120, 160)}])))
    other = write_set(tmp_path / "b", [{"box": (40, 40, 120, 160)}])
    other.write_text(other.read_text().replace("ball", "moon").replace("cup", "sun"))
    target = paste_scenes(things, [*grounds, *grounds_of(read(other))], tmp_path / "out", pictures=12)
    scenes = read_coco(target, target.parent / "images")
    names = [ways[0] for ways in scenes.names]
    absent = {tuple(names[row] for row in scene.absent(len(names)) if names[row] != "brick") for scene in scenes.scenes}
    assert absent <= {("cup",), ("sun",), ("ball", "cup"), ("moon", "sun")} and len(absent) > 1


def test_a_set_is_not_pasted_on_itself_and_what_cannot_be_read_is_left_out(things, tmp_path, caplog):
    path = write_set(tmp_path / "set", [{"box": (40, 40, 120, 160)}])
    target, _, _ = pasted(things, path, tmp_path / "out", pictures=3)
    before = target.read_text()
    grounds = grounds_of(read_coco(target, target.parent / "images"))
    with pytest.raises(DataError, match="are to be pasted on and would be written over"):
        paste_scenes(things, grounds, tmp_path / "out", pictures=3)
    assert target.read_text() == before
    (target.parent / "images" / "000001.jpg").write_bytes(b"no picture")
    paste_scenes(things, grounds, tmp_path / "more", pictures=8)
    assert "left out" in caplog.text and "000001.jpg" in caplog.text
    for number in (0, 2):
        (target.parent / "images" / f"00000{number}.jpg").write_bytes(b"no picture")
    with pytest.raises(DataError, match="none of 100 pictures drawn"):
        paste_scenes(things, grounds_of(read_coco(target, target.parent / "images")), tmp_path / "none", pictures=1)


def test_what_was_cut_off_at_an_edge_lies_at_that_edge_again(things, tmp_path):
    path = write_set(tmp_path / "set", [])
    for touches, mirrored in ((("left",), ("left", "right")), (("bottom",), ("bottom",))):
        cut = [things[0]._replace(touches=touches)]
        _, _, of = pasted(cut, path, tmp_path / touches[0], most_things=1, pictures=12)
        sides = set()
        for ((_, one),) in of.values():
            x, y, w, h = one["bbox"]
            near = {"left": x <= 1, "top": y <= 1, "right": x + w >= 99, "bottom": y + h >= 99}
            sides |= {side for side in mirrored if near[side]}
            assert any(near[side] for side in mirrored)
        assert sides == set(mirrored)


def test_sizes_follow_the_thing_or_the_photograph():
    rng = random.Random(0)
    scales = [Sizes(scales=(0.5, 2.0)).scale((400, 300), (40, 20), rng) for _ in range(200)]
    assert 0.5 <= min(scales) < 0.7 and 1.6 < max(scales) <= 2.0
    assert {Sizes(scales=(0.1, 0.1)).scale((400, 300), (40, 20), rng)} == {0.5}  # 5 % of the photograph
    assert Sizes(scales=(99, 99)).scale((400, 300), (40, 20), rng) == pytest.approx(8.5)
    for wrong in ({"shares": (0.5, 0.1)}, {"shares": (0, 0.5)}, {"scales": (2, 1)}, {"scales": (0, 1)}):
        with pytest.raises(DataError, match="the smaller first"):
            Sizes(**wrong)
    with pytest.raises(DataError, match="give one of them"):
        Sizes((0.1, 0.2), (1, 2))


def test_rare_names_come_as_often_as_they_are_asked_to(things, tmp_path):
    path = write_set(tmp_path / "set", [])
    many = [*things * 30, things[0]._replace(name="rare")]
    shares = []
    for balance in (1.0, 0.0):
        _, _, of = pasted(many, path, tmp_path / f"{balance}", most_things=1, balance=balance, pictures=60)
        shares.append(np.mean([name == "rare" for own in of.values() for name, _ in own]))
    assert shares[0] < 0.15 and 0.3 < shares[1] < 0.7
    with pytest.raises(DataError, match="balance must lie in 0 to 1"):
        paste_scenes(many, [Ground(read(path).scenes[0], ["ball"], read(path))], tmp_path / "x", pictures=1, balance=2)


# --- On the command line ---------------------------------------------------------------------------------------------


def call(*arguments: object):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_the_commands_make_a_set_that_is_read(tmp_path):
    path = write_set(tmp_path / "set", [{"box": (40, 40, 120, 160), "masked": True}])
    run = call("cutouts", path, "--images", path.parent, "--to", tmp_path / "things", "--model", "")
    assert run.exit_code == 0, run.exception
    assert run.stdout.strip() == str(tmp_path / "things" / "cutouts.json") and "1 cut-outs; left: 0" in run.stderr
    asked = ["--to", tmp_path / "out", "--pictures", 5, "--scales", "0.3,0.6", "--balance", 0.25]
    run = call("paste", tmp_path / "things", "--on", path, "--images", path.parent, *asked)
    assert run.exit_code == 0, run.exception
    scenes = read_coco(tmp_path / "out" / "annotations.json", tmp_path / "out" / "images")
    assert sum(len(scene.labels) for scene in scenes.scenes) > 5
    wrong = call("paste", tmp_path / "things", "--on", path.parent, "--images", path.parent, *asked)
    assert "--images names the pictures of 1 sets, and --on names 0" in str(wrong.exception)
    none = call("cutouts", tmp_path / "nowhere.json", "--to", tmp_path / "more", "--model", "")
    assert isinstance(none.exception, OwlSwinError) and not (tmp_path / "more").exists()


def test_a_model_without_masks_cuts_nothing_out(model_file, tmp_path):
    path = write_set(tmp_path / "set", [{"box": (40, 40, 120, 160)}])
    run = call("cutouts", path, "--images", path.parent, "--to", tmp_path / "things", "--model", model_file)
    assert "makes no masks; name a model that does" in str(run.exception) and not (tmp_path / "things").exists()
