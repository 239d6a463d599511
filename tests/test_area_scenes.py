"""Sets that say what each pixel shows: COCO panoptic and label maps, read and learned from."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from training_data import write_model
from typer.testing import CliRunner

from owl_swin.cli.main import app
from owl_swin.config import MasksConfig, ModelConfig, read_toml
from owl_swin.data.config import DataConfig
from owl_swin.data.guess import guess_kind
from owl_swin.data.label_maps import read_label_maps
from owl_swin.data.map_files import read_label_map, read_segment_map
from owl_swin.data.masks import LabelledPart
from owl_swin.data.scenes import load_scenes
from owl_swin.errors import ConfigError, DataError, ImageError
from owl_swin.models.owl_swin import OwlSwin
from owl_swin.training.config import DetectConfig, TrainConfig
from owl_swin.training.distributed import Process
from owl_swin.training.mask_teaching import dense_targets, shown_by_patches
from owl_swin.training.tasks.detect import DetectTask

SKY, CAT, CROWD = 7, 300, 70000  # ids of segments: one, two and three bytes


def write_panoptic(folder, n=3):
    """Pictures whose upper half is sky; below a cat at the left, and a crowd of cats at the right."""
    maps = folder / "set"
    for own in (maps, folder / "images"):
        own.mkdir(parents=True)
    images, annotations = [], []
    ids = np.zeros((40, 60), np.int64)
    ids[:20], ids[22:38, 4:24], ids[25:40, 40:60] = SKY, CAT, CROWD
    for i in range(n):
        Image.fromarray((ids[..., None] % 251).repeat(3, 2).astype(np.uint8)).save(folder / "images" / f"{i}.jpg")
        png = np.stack([ids % 256, ids // 256 % 256, ids // 65536], -1).astype(np.uint8)
        Image.fromarray(png).save(maps / f"{i}.png")
        images.append({"id": i, "file_name": f"{i}.jpg", "width": 60, "height": 40})
        segments = [
            {"id": SKY, "category_id": 2, "iscrowd": 0, "bbox": [0, 0, 60, 20], "area": 1200},
            {"id": CAT, "category_id": 1, "iscrowd": 0, "bbox": [4, 22, 20, 16], "area": 320},
            {"id": CROWD, "category_id": 1, "iscrowd": 1, "bbox": [40, 25, 20, 15], "area": 300},
        ]
        annotations.append({"image_id": i, "file_name": f"{i}.png", "segments_info": segments})
    categories = [
        {"id": 1, "name": "cat", "isthing": 1},
        {"id": 2, "name": "sky-other-merged", "isthing": 0},
        {"id": 3, "name": "wall-brick", "isthing": 0},
    ]
    path = folder / "set.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return path


def test_things_of_a_panoptic_set_have_boxes_and_stuff_has_areas(tmp_path):
    path = write_panoptic(tmp_path)
    assert guess_kind(str(path)) == "coco_panoptic"
    scenes = load_scenes(DataConfig("coco_panoptic", str(path), str(tmp_path / "images")), masks=True)
    assert scenes.names == [["cat"], ["sky"], ["brick wall"]] and not scenes.broken
    scene = scenes.scenes[0]
    assert scene.boxes.tolist() == [[4, 22, 24, 38]] and scene.labels.tolist() == [0] and scene.scores is None
    assert scene.vague_labels.tolist() == [1, 0] and scene.area_labels.tolist() == [1, 0]
    assert [int(mask.pixels().sum()) for mask in scene.masks] == [320, 1200, 300]
    assert scene.absent(3).tolist() == [2]
    plain = load_scenes(DataConfig("coco_panoptic", str(path), str(tmp_path / "images"))).scenes[0]
    assert plain.boxes.tolist() == scene.boxes.tolist() and plain.masks == () and len(plain.area_labels) == 0


def test_what_is_wrong_in_a_panoptic_set_is_named(tmp_path):
    path = write_panoptic(tmp_path)
    content = json.loads(path.read_text())
    content["annotations"][0]["segments_info"] = [
        {"id": 1, "category_id": 9, "bbox": [0, 0, 5, 5]},
        {"id": 2, "category_id": 1, "bbox": [0, 0, 0, 5]},
        {"id": 3, "category_id": 1},
        "x",
    ]
    content["annotations"] += [{"image_id": 99, "file_name": "a.png", "segments_info": []}, {"image_id": 1}, 3]
    path.write_text(json.dumps(content))
    (tmp_path / "set" / "2.png").unlink()
    scenes = load_scenes(DataConfig("coco_panoptic", str(path), str(tmp_path / "images")), masks=True)
    said = "\n".join(scenes.broken)
    for part in ("segment 1: unknown category 9", "segment 2: empty box", "'bbox'", "unknown picture 99",
                 "'file_name'", "2.png: no such label map"):  # fmt: skip
        assert part in said, part
    assert len(scenes.scenes) == 3 and scenes.scenes[2].masks == () and len(scenes.scenes[2].boxes) == 1


def test_training_and_evaluation_read_a_panoptic_set_alike(tmp_path):
    path = write_panoptic(tmp_path, 2)
    maps = read_label_maps(path, tmp_path / "images")
    scenes = load_scenes(DataConfig("coco_panoptic", str(path), str(tmp_path / "images")), masks=True)
    assert [[name] for name in maps.names] == scenes.names == [["cat"], ["sky"], ["brick wall"]]
    labels, scene = maps.pictures[0].labels(), scenes.scenes[0]
    for mask, row in zip(scene.masks, [*scene.labels, *scene.vague_labels], strict=True):
        assert (labels[mask.pixels()] == row).all()
    Image.new("L", (60, 40)).save(tmp_path / "set" / "1.png")  # of classes, not of segments
    for read in (maps.pictures[1].labels, LabelledPart(tmp_path / "set" / "1.png", 1).pixels):
        with pytest.raises(ImageError, match=r"1\.png: a panoptic map is RGB, this is of the kind L"):
            read()


def test_a_damaged_map_is_an_image_error(tmp_path):
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n cut off")
    Image.new("CMYK", (2, 2)).save(tmp_path / "b.tif")
    for read in (read_label_map, read_segment_map):
        with pytest.raises(ImageError, match=r"a\.png: "):
            read(tmp_path / "a.png")
        with pytest.raises(ImageError, match="CMYK"):
            read(tmp_path / "b.tif")
        with pytest.raises(ImageError, match=r"c\.png: .*No such file"):
            read(tmp_path / "c.png")


def write_maps(folder):
    """Two pictures with maps of ADE20K's kind: 0 is nothing, the left third wall, the rest sky, a cat in the middle."""
    for own in (folder / "maps", folder / "images"):
        own.mkdir(parents=True)
    labels = np.full((48, 60), 3, np.uint8)
    labels[:, :20], labels[16:32, 24:44], labels[40:] = 1, 2, 0
    for i in range(2):
        Image.fromarray(labels).save(folder / "maps" / f"{i}.png")
        Image.fromarray((labels * 60)[..., None].repeat(3, 2)).save(folder / "images" / f"{i}.jpg")
    (folder / "names.txt").write_text("wall\ncat, kitty\nsky\nsea\n")
    return DataConfig(
        "label_maps", str(folder / "maps"), str(folder / "images"), names=str(folder / "names.txt"), ignore_values=(0,)
    )


def test_label_maps_are_areas_without_boxes(tmp_path):
    scenes = load_scenes(write_maps(tmp_path))
    assert scenes.names == [["wall"], ["cat", "kitty"], ["sky"], ["sea"]]
    for scene in scenes.scenes:
        assert len(scene.boxes) == 0 and scene.area_labels.tolist() == [0, 1, 2] and scene.absent(4).tolist() == [3]
        assert scene.vague_boxes.tolist() == [[0, 0, 20, 40], [24, 16, 44, 32], [20, 0, 60, 40]]
        assert [int(mask.pixels().sum()) for mask in scene.masks] == [800, 320, 40 * 40 - 320]


def test_label_maps_that_cannot_be_read_are_named_and_left_out(tmp_path):
    config = write_maps(tmp_path)
    (tmp_path / "maps" / "1.png").write_bytes(b"no map")
    scenes = load_scenes(config)
    assert len(scenes.scenes) == 1 and len(scenes.broken) == 1 and "1.png" in scenes.broken[0]
    Image.fromarray(np.full((48, 60), 200, np.uint8)).save(tmp_path / "maps" / "0.png")
    with pytest.raises(DataError, match="200"):
        load_scenes(config)
    with pytest.raises(ConfigError, match=r"data\.names"):
        replace(config, names="")


@pytest.fixture
def task(tmp_path):
    """Detection on label maps by a tiny model with a mask branch."""
    made = write_model(tmp_path)
    torch.manual_seed(0)
    model = OwlSwin(replace(read_toml(made["model"], ModelConfig), masks=MasksConfig(8, 16)))
    config = TrainConfig(
        "detect", made["model"], str(tmp_path / "run"), (write_maps(tmp_path),), batch_size=2, image_size=96,
        detect=DetectConfig(mosaic=(1.0,)),
    )  # fmt: skip
    return DetectTask(config, model, Process(0, 1, torch.device("cpu")))


def test_areas_teach_what_places_show_and_no_boxes(task):
    batch = task.batch(0)
    parts = task.step_losses(batch)
    assert parts["l1"] == parts["giou"] == parts["mask"] == 0 and parts["dense_name"] > 0
    parts["loss"].backward()
    assert task.model.masks.dense_head.embed.weight.grad.abs().sum() > 0


def test_places_have_the_names_of_their_areas(task):
    batch = task.batch(0)
    model = task.model.eval()
    with torch.no_grad():
        images = model.encode_with_masks(batch.pixels.float() / 255)
        texts = task.bank.embed(model, batch.texts)
        rows, columns = torch.meshgrid(*(torch.arange(n) + 0.5 for n in images.grid_hw), indexing="ij")
        centres = torch.stack([columns / images.grid_hw[1], rows / images.grid_hw[0]], -1).flatten(0, 1)
        scene = task._matched(images[0], centres, texts, batch, 0)[1]
    known = batch.masks[0].covering(scene.vague_rows)[0]
    assert known.all() and len(scene.boxes) == 0
    places = scene.with_areas(known)
    shown, may = shown_by_patches(images[0], places, batch.masks[0], centres, warm=False)
    targets, owners, learns = dense_targets(places, shown, may, centres)
    names = [task.names[int(batch.classes[column])] for column in places.asked]
    # Grey levels of the pictures are 60 times the numbers of their maps, of which 3 is sky.
    grey = torch.nn.functional.adaptive_avg_pool2d(batch.pixels[0].float()[:1], images.grid_hw).flatten()
    sky = (grey - 180).abs() < 4
    assert sky.any() and (targets[sky, names.index("sky")] == 1).all() and (targets.sum(1) <= 1).all()
    assert (learns[sky, names.index("sky")] == 1).all() and (learns[owners >= 0].mean() > 0.8)


def test_info_counts_masks_and_areas(tmp_path):
    path = write_panoptic(tmp_path / "panoptic")
    config = write_maps(tmp_path / "maps")
    for arguments, lines in (
        ([path, "--images", path.parent / "images"], "3 of the boxes have one; 6 areas"),
        ([config.path, "--kind", "label_maps", "--images", config.images, "--names", config.names, "--ignore", "0"],
         "0 of the boxes have one; 6 areas"),
    ):  # fmt: skip
        answer = CliRunner().invoke(app, ["info", *map(str, arguments)])
        assert answer.exit_code == 0 and lines in answer.output, answer.output
