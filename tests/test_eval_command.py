"""`owl-swin eval`: one JSON object on stdout, a table on stderr, one sentence for what cannot be."""

import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import TINY, make_tiny_model
from PIL import Image
from training_data import NAMES, one_shape, write_captions, write_json, write_labelled, write_shapes

from owl_swin.cli.evaluate import app
from owl_swin.cli.evaluation_options import figures_table
from owl_swin.cli.main import main
from owl_swin.config import CalibrationConfig, MasksConfig
from owl_swin.evaluation.report import Report
from owl_swin.families.owl_swin import load_checkpoint, save_checkpoint

PROTOCOLS = [command.name or command.callback.__name__ for command in app.registered_commands]
CONTRACT = {"protocol", "n_images", "n_boxes", "AP", "AP50", "per_class", "ci95"}


@pytest.fixture
def evaluate(monkeypatch, capsys, model_file):
    """Runs `owl-swin eval` in this process with the tiny model: exit code, result (or stdout), stderr."""

    def run(protocol, *arguments, model=True):
        given = ["--model", model_file] if model else []
        monkeypatch.setattr(sys, "argv", ["owl-swin", "eval", protocol, *map(str, [*arguments, *given])])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        return ended.value.code or 0, json.loads(out) if out.startswith("{") else out, err

    return run


@pytest.fixture
def shapes(tmp_path):
    path = write_shapes(tmp_path / "shapes", 6)
    return ["--annotations", path, "--images", path.parent / "images"]


def test_tiles_are_measured_as_detect_shows_them(evaluate, shapes, detector):
    from owl_swin.data.truth import read_truth
    from owl_swin.evaluation.class_queries import encode_classes
    from owl_swin.evaluation.detection import ask_by_name
    from owl_swin.tiling import Tiles

    whole, tiled = (evaluate("detect", *shapes, *extra) for extra in ((), ("--tile", 40, "--overlap", 0.5)))
    assert (whole[0], tiled[0]) == (0, 0)
    assert tiled[1]["protocol"] == f"{whole[1]['protocol']}, with Tiles(size=40, overlap=0.5)"
    truth = read_truth(shapes[1], shapes[3])
    rows = ask_by_name(detector, truth, [], tiles=Tiles(40, 0.5))
    record = truth["images"][0]
    alone = detector.detect(
        record["source"], encode_classes(detector, truth), tiles=Tiles(40, 0.5), threshold=0, top_k=100
    )
    scores = [row["score"] for row in rows if row["image_id"] == record["id"]]
    assert scores == pytest.approx(alone.scores.tolist(), abs=1e-4) and len(scores) > 10
    code, _, err = evaluate("detect", *shapes, "--overlap", 0.5)
    assert code == 2 and "--overlap is for --tile" in err


def test_the_protocols_are_these():
    assert sorted(PROTOCOLS) == [
        "absence",
        "calibrate",
        "classify",
        "detect",
        "diagnose",
        "lvis",
        "odinw",
        "oneshot",
        "retrieve",
        "segment",
        "split",
    ]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_help_of_each_protocol_holds_an_example(evaluate, protocol):
    code, out, _ = evaluate(protocol, "--help", model=False)
    assert code == 0 and f"Example: owl-swin eval {protocol} " in " ".join(out.split())


@pytest.mark.parametrize(
    "protocol, options, keys",
    [
        ("detect", ["--classes", f"{NAMES[0]}, {NAMES[1]}"], {"AP75", "AP_small", "AP_medium", "AP_large"}),
        ("lvis", [], {"APr", "APc", "APf", "AP_fixed", "APr_fixed"}),
        ("split", ["--base", ",".join(NAMES[:2]), "--novel", ",".join(NAMES[2:])], {"AP50_base", "AP50_novel"}),
        ("oneshot", ["--shots", 2, "--draws", 2, "--seen", NAMES[0]], {"shots", "draws", "AP50_seen"}),
        ("oneshot", ["--draws", 1, "--absent"], {"shots", "draws"}),
        ("absence", ["--recall", 0.3], {"auroc", "auroc_pooled", "fppi", "false_alarms", "recall"}),
        ("absence", ["--with", "exemplar"], {"auroc"}),
        ("calibrate", [], {"d_ece", "reliability"}),
    ],
)
def test_each_protocol_gives_its_keys(evaluate, shapes, tmp_path, protocol, options, keys):
    out = tmp_path / "new" / "result.json"
    code, result, err = evaluate(protocol, *shapes, *options, "--json", out)
    assert code == 0 and result.keys() >= CONTRACT | keys
    assert json.loads(out.read_text()) == result
    assert result["n_images"] == 6 and "AP50" in err and " to " in err


def test_a_folder_of_sets(evaluate, tmp_path):
    write_shapes(tmp_path / "sets" / "shapes", 3).rename(tmp_path / "sets" / "shapes" / "test.json")
    code, result, err = evaluate("odinw", "--annotations", tmp_path / "sets")
    assert code == 0 and result.keys() >= CONTRACT | {"sets"} and "shapes" in err


def test_whole_pictures(evaluate, tmp_path):
    labelled = write_labelled(tmp_path / "set")
    code, result, _ = evaluate("classify", "--annotations", labelled, "--images", labelled.parent / "images")
    assert code == 0 and {"protocol", "n_images", "top1", "top5", "per_class", "ci95"} <= result.keys()
    code, result, err = evaluate("retrieve", "--annotations", write_captions(tmp_path / "tars", 4), "--split", "train")
    assert code == 0 and "image_to_text_r1" in err and result["n_captions"] == 8


def test_the_cure_is_written_in_a_model_and_drawn(evaluate, shapes, tmp_path, model_file):
    fit = write_shapes(tmp_path / "fit", 10)
    model, plot = tmp_path / "out" / "new.safetensors", tmp_path / "out" / "plot.png"
    files = ["--fit", fit, "--fit-images", fit.parent / "images", "--to", model, "--plot", plot]
    code, result, _ = evaluate("calibrate", *shapes, *files)
    assert code == 0 and result["d_ece"] < result["d_ece_before"]
    calibration = load_checkpoint(model)[0].config.calibration
    assert calibration.text_scale == pytest.approx(1 / result["temperature"], rel=1e-2)
    assert calibration.exemplar_scale == 1 and load_checkpoint(model_file)[0].config.calibration == CalibrationConfig()
    assert Image.open(plot).width > 600
    assert plot.is_file() and model.is_file()
    code, again, _ = evaluate("calibrate", *shapes, "--model", model, model=False)
    assert again["d_ece"] == pytest.approx(result["d_ece"], abs=0.2)
    assert again["AP50"] == result["AP50"]


def test_what_is_fitted_on_a_part_of_the_pictures_is_not_written(evaluate, shapes, tmp_path):
    fit = write_shapes(tmp_path / "fit", 10)
    (fit.parent / "images" / "3.png").write_bytes(b"no picture")
    model, plot = tmp_path / "new.safetensors", tmp_path / "plot.png"
    files = ["--fit", fit, "--fit-images", fit.parent / "images", "--to", model, "--plot", plot]
    code, result, err = evaluate("calibrate", *shapes, *files)
    assert code == 2 and len(result["broken"]) == 1 and "3.png" in err.strip().splitlines()[-1]
    assert not model.exists() and not plot.exists()


def test_names_may_come_from_a_file(evaluate, shapes, tmp_path):
    (tmp_path / "names.txt").write_text(f"{NAMES[0]}\n\n{NAMES[2]}\n")
    _, result, _ = evaluate("detect", *shapes, "--classes", tmp_path / "names.txt")
    assert set(result["per_class"]) == {NAMES[0], NAMES[2]}


@pytest.mark.parametrize(
    "protocol, options, sentence",
    [
        ("detect", ["--classes", "zebra"], "has no class 'zebra'"),
        ("detect", ["--classes", " , "], "names no class"),
        ("detect", ["--classes", ",".join(f"thing {i}" for i in range(600))], "has no class 'thing 0'"),
        ("split", ["--base", NAMES[0], "--novel", NAMES[0]], "no class in both"),
        ("oneshot", ["--shots", 0], "at least 1"),
        ("oneshot", ["--exemplars", "none.json"], "none.json: cannot be read"),
        ("absence", ["--recall", 2], "recall must lie in"),
        ("calibrate", ["--to", "x.safetensors"], "--fit"),
        ("calibrate", ["--fit", "none.json", "--to", "x.bin"], "must end in .safetensors"),
        ("detect", ["--image-size", 3], "image_size"),
    ],
)
def test_what_cannot_be_gets_one_sentence(evaluate, shapes, protocol, options, sentence):
    code, out, err = evaluate(protocol, *shapes, *options)
    assert code == 2 and out == ""
    last = err.strip().splitlines()[-1]
    assert last.startswith("owl-swin: ") and sentence in last


def test_broken_pictures_are_told(evaluate, tmp_path, shapes):
    (tmp_path / "shapes" / "images" / "0.png").write_bytes(b"no picture")
    code, result, err = evaluate("detect", *shapes)
    assert code == 2 and len(result["broken"]) == 1
    last = err.strip().splitlines()[-1]
    assert last.startswith("owl-swin: these figures are not of the whole set: ") and "0.png" in last


ON_BOXES = [
    ("detect", []),
    ("lvis", []),
    ("split", ["--base", NAMES[0], "--novel", NAMES[1]]),
    ("oneshot", ["--draws", 1]),
    ("absence", []),
    ("absence", ["--with", "exemplar"]),
    ("calibrate", []),
    ("diagnose", []),
]


def test_every_protocol_is_asked_with_pictures_that_are_not_there():
    # The four others read sets of their own kinds, in the tests below.
    assert {protocol for protocol, _ in ON_BOXES} | {"classify", "retrieve", "odinw", "segment"} == set(PROTOCOLS)


@pytest.mark.parametrize("protocol, options", ON_BOXES)
def test_pictures_that_are_not_there_are_no_result(evaluate, tmp_path, shapes, protocol, options):
    (tmp_path / "shapes" / "images" / "0.png").unlink()
    code, result, err = evaluate(protocol, *shapes, *options)
    assert code == 2 and "0.png" in err.strip().splitlines()[-1] and result["n_images"] == 6
    code, out, err = evaluate(protocol, *shapes[:2], "--images", tmp_path, *options)
    assert code == 2 and out == "" and "none of its 6 pictures is there" in err and "/6 pictures" not in err


def test_whole_pictures_that_are_not_there_are_no_result(evaluate, tmp_path):
    labelled = write_labelled(tmp_path / "set")
    images = labelled.parent / "images"
    (images / "0.png").write_bytes(b"no picture")
    code, result, err = evaluate("classify", "--annotations", labelled, "--images", images)
    assert code == 2 and result["n_images"] == 7 and "0.png" in err.strip().splitlines()[-1]
    code, out, err = evaluate("classify", "--annotations", labelled, "--images", tmp_path)
    assert code == 2 and out == "" and "none of its 8 pictures is there" in err
    records = [{"id": i, "file_name": f"{i}.png"} for i in range(8)]
    captions = [{"image_id": i, "caption": "a square"} for i in range(8)]
    path = write_json(tmp_path / "captions.json", {"images": records, "annotations": captions})
    code, result, err = evaluate("retrieve", "--annotations", path, "--images", images)
    assert code == 2 and result["n_images"] == 7 and "0.png" in err.strip().splitlines()[-1]
    code, out, err = evaluate("retrieve", "--annotations", path, "--images", tmp_path)
    assert code == 2 and out == "" and "none of its 8 pictures is there" in err
    tars = write_captions(tmp_path / "tars", 4)
    content = (tars / "train-000.tar").read_bytes()
    (tars / "train-000.tar").write_bytes(content[: len(content) // 2])
    code, result, err = evaluate("retrieve", "--annotations", tars, "--split", "train")
    assert code == 2 and 0 < result["n_images"] < 4 and "not a whole tar file" in err


def test_a_set_of_the_folder_that_cannot_be_read_is_no_result(evaluate, tmp_path):
    for name in "ab":
        write_shapes(tmp_path / "sets" / name, 2).rename(tmp_path / "sets" / name / "test.json")
    (tmp_path / "sets" / "b" / "test.json").write_text("{}")
    code, result, err = evaluate("odinw", "--annotations", tmp_path / "sets")
    assert code == 2 and len(result["sets"]) == 1 and "test.json: not a COCO detection file" in err
    (tmp_path / "sets" / "a" / "images" / "1.png").unlink()
    code, result, _ = evaluate("odinw", "--annotations", tmp_path / "sets" / "a")
    assert code == 2 and "1.png" in result["broken"][0]


def test_a_sheet_that_is_cut_off_is_named_and_the_others_count(evaluate, tmp_path):
    manifest = {"tile_px": 24, "sheet_grid": [1, 2], "classes": list(NAMES), "val": []}
    for row in range(2):
        sheet = Image.new("RGB", (48, 24))
        for place in range(2):
            sheet.paste(one_shape(NAMES[2 * row + place], 24), (24 * place, 0))
        sheet.save(tmp_path / f"sheet-{row}.png")
        manifest["val"].append({"sheet": f"sheet-{row}.png", "labels": [2 * row, 2 * row + 1]})
    content = (tmp_path / "sheet-1.png").read_bytes()
    (tmp_path / "sheet-1.png").write_bytes(content[: len(content) // 2])
    code, result, err = evaluate("classify", "--annotations", write_json(tmp_path / "manifest.json", manifest))
    assert code == 2 and result["n_images"] == 2 and "4/4 pictures" in err
    assert len(result["broken"]) == 1 and "sheet-1.png: the picture is damaged or cut off" in result["broken"][0]


def test_classes_with_commas_in_their_names_are_chosen(evaluate, tmp_path, shapes):
    path = tmp_path / "shapes" / "shapes.json"
    content = json.loads(path.read_text())
    content["categories"][0]["name"] = "red square, scarlet tile"
    write_json(path, content)
    (tmp_path / "names.txt").write_text("\ufeffred square, scarlet tile\n", encoding="utf-8")
    for named in ("red square, scarlet tile", "scarlet tile", tmp_path / "names.txt"):
        _, result, _ = evaluate("detect", *shapes, "--classes", named)
        assert set(result["per_class"]) == {"red square, scarlet tile"}


def test_the_table_gives_figures_their_own_intervals():
    result = {"AP": 1.0, "AP50": 2.0, "AP50_novel": None, "auroc": 50.0, "ci95": [1.5, 2.5], "ci95_auroc": [40.0, 60.0]}
    result |= {"per_class": {}, "n_images": 3, "sets": [{"set": "a", "AP": 1.0, "AP50": None}]}
    assert [line.split() for line in figures_table(Report.from_json(result))] == [
        ["AP", "1.00"],
        ["AP50", "2.00", "(1.50", "to", "2.50)"],
        ["AP50_novel", "none"],
        ["auroc", "50.00", "(40.00", "to", "60.00)"],
        ["a", "1.00", "none"],
    ]


def test_an_empty_set_works_for_every_protocol(evaluate, tmp_path):
    empty = write_json(tmp_path / "test.json", {"images": [], "annotations": [], "categories": []})
    places = ["--annotations", empty, "--images", tmp_path]
    for protocol in ("detect", "lvis", "oneshot", "absence", "calibrate"):
        code, result, err = evaluate(protocol, *places)
        assert code == 0 and result["AP50"] is result["ci95"] is None, err
    assert evaluate("odinw", "--annotations", tmp_path)[1]["AP50"] is None
    assert evaluate("retrieve", *places)[1]["ci95"] is None
    code, result, _ = evaluate("classify", *places)
    assert code == 0 and result["top1"] is None


@pytest.fixture(scope="module")
def masked_file(tmp_path_factory):
    """A model with masks whose right answers happen to score higher than its wrong ones."""
    model = make_tiny_model(4, config=replace(TINY, masks=MasksConfig(dim=8, width=16)))
    path = tmp_path_factory.mktemp("model") / "masked.safetensors"
    save_checkpoint(path, model, {"name": "masked"})
    return path


def test_a_model_with_masks_is_measured_and_calibrated_as_any(evaluate, shapes, tmp_path, masked_file):
    settings = [*shapes, "--model", masked_file]
    assert evaluate("diagnose", *settings, model=False)[0] == 0
    fit, to = write_shapes(tmp_path / "fit", 10), tmp_path / "new.safetensors"
    files = ["--fit", fit, "--fit-images", fit.parent / "images", "--to", to]
    assert evaluate("calibrate", *settings, *files, model=False)[0] == 0
    (before, _), (after, _) = load_checkpoint(masked_file), load_checkpoint(to)
    assert after.spec.has_masks and after.config.calibration.text_scale != 1
    for name, value in before.state_dict().items():
        assert torch.equal(value, after.state_dict()[name])


def write_maps(folder, n=4):
    """Pictures of squares, whose label map has the square's number, 1 to 4, and 0 beside it; and the list of names."""
    path = write_shapes(folder, n)
    (folder / "maps").mkdir()
    content = json.loads(path.read_text())
    for record in content["images"]:
        labels = np.zeros((record["height"], record["width"]), dtype=np.uint8)
        for thing in content["annotations"]:
            if thing["image_id"] == record["id"]:
                x, y, w, h = map(int, thing["bbox"])
                labels[y : y + h, x : x + w] = thing["category_id"]
        Image.fromarray(labels).save((folder / "maps" / record["file_name"]).with_suffix(".png"))
    names = folder / "names.txt"
    names.write_text("".join(f"{c['id']}: {c['name']}\n" for c in content["categories"]))
    return ["--annotations", folder / "maps", "--images", folder / "images", "--names", names]


def test_maps_are_measured(evaluate, tmp_path, masked_file):
    files, out = write_maps(tmp_path / "set", 2), tmp_path / "new" / "a.json"
    code, whole, err = evaluate("segment", *files, "--ignore", 0, "--model", masked_file, "--json", out, model=False)
    assert code == 0 and whole.keys() >= {"mIoU", "ci95", "pixel_accuracy", "mean_accuracy", "n_pixels"}
    assert json.loads(out.read_text()) == whole and "mIoU" in err
    options = ["--nothing", 0, "--novel", NAMES[0], "--threshold", 0.6, "--tile", 40, "--model", masked_file]
    code, result, _ = evaluate("segment", *files, *options, model=False)
    assert code == 0 and {"mIoU_base", "mIoU_novel", "mIoU_harmonic"} <= result.keys()
    assert "(nothing)" in result["per_class"] and result["n_pixels"] > whole["n_pixels"]


@pytest.mark.parametrize(
    "options, sentence",
    [
        (["--ignore", 0], "no masks"),
        (["--names", "none.txt"], "none.txt: cannot be read"),
        (["--base", NAMES[0]], "need novel ones"),
        (["--classes", "zebra"], "has no class 'zebra'"),
    ],
)
def test_maps_that_cannot_be_measured_get_one_sentence(evaluate, tmp_path, options, sentence):
    code, out, err = evaluate("segment", *write_maps(tmp_path / "set", 1), *options)
    last = err.strip().splitlines()[-1]
    assert code == 2 and out == "" and last.startswith("owl-swin: ") and sentence in last


@pytest.mark.parametrize("route", ["text", "exemplar"])
def test_scores_of_maps_are_calibrated(evaluate, tmp_path, masked_file, route):
    files, fit = write_maps(tmp_path / "set"), write_maps(tmp_path / "fit", 6)
    to, plot = tmp_path / "new.safetensors", tmp_path / "plot.png"
    how = ["--maps", "--ignore", 0, "--with", route]
    options = [*how, "--fit", fit[1], "--fit-images", fit[3], "--to", to, "--plot", plot]
    code, result, _ = evaluate("calibrate", *files, *options, "--model", masked_file, model=False)
    assert code == 0 and result["d_ece"] < result["d_ece_before"] and plot.is_file()
    calibration = load_checkpoint(to)[0].config.calibration
    fitted = {name: getattr(calibration, name) for name in (f"map_{route}_scale", f"map_{route}_bias")}
    assert fitted[f"map_{route}_scale"] == pytest.approx(1 / result["temperature"], rel=1e-2)
    assert calibration == CalibrationConfig(**fitted)
    code, again, _ = evaluate("calibrate", *files, *how, "--model", to, model=False)
    assert (again["d_ece"], again["mIoU"]) == (pytest.approx(result["d_ece"], abs=0.02), result["mIoU"])
    code, out, err = evaluate("calibrate", *files[:4], "--names", files[5])
    assert code == 2 and out == "" and "label maps" in err.strip().splitlines()[-1]
