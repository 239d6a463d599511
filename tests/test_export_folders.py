"""Exported folders beside what else lies there, and what others do with a model in the meantime."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import TINY, make_tiny_model
from picture_files import noise
from typer.testing import CliRunner

from owl_swin.cli.main import app
from owl_swin.detector import Detector
from owl_swin.errors import CheckpointError, OwlSwinError, QueryError
from owl_swin.families import of_module
from owl_swin.families.owl_swin import load_checkpoint, save_checkpoint
from owl_swin.files import new_folder
from owl_swin.runtimes import export as exporting
from owl_swin.runtimes.export import export

SMALL = replace(TINY, image=replace(TINY.image, depths=(1, 1, 1, 1)))


@pytest.fixture(scope="module")
def model():
    return make_tiny_model(config=SMALL)


@pytest.fixture(scope="module")
def written(model, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "onnx"
    export(of_module(model), folder)
    return folder


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(exporting, "traced", lambda *_: b"a graph")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.usefixtures("quick")
def test_no_file_of_another_goes_with_an_export(model, written, tmp_path):
    mine = {"README.md": "how I use it", ".gitignore": "*.bin"}
    shutil.copytree(written, tmp_path / "kept")
    for name, text in mine.items():
        (tmp_path / "kept" / name).write_text(text)
    api = tmp_path / "api"
    api.mkdir()
    (api / "spec.json").write_text('{"openapi": "3.1.0"}')
    (api / "thesis.tex").write_text("years")
    for folder in (tmp_path / "kept", api):
        before = contents(folder)
        with pytest.raises(OwlSwinError, match="the folder holds other files; name a new one"):
            export(of_module(model), folder)
        assert contents(folder) == before


@pytest.mark.usefixtures("quick")
def test_a_folder_that_is_there_stays_the_same_one(model, written, tmp_path, monkeypatch):
    for begun in (False, True):
        folder = tmp_path / f"out_{begun}"
        shutil.copytree(written, folder) if begun else folder.mkdir()
        place = folder.stat().st_ino
        monkeypatch.chdir(folder)
        export(of_module(model), Path(), masks=False)
        assert folder.stat().st_ino == place and Path("text.onnx").read_bytes() == b"a graph"
        assert sorted(contents(folder)) == ["image.onnx", "spec.json", "text.onnx", "tokenizer.json"]


def test_the_mark_of_a_folder_goes_first_and_comes_last(tmp_path, monkeypatch):
    (tmp_path / "mark").write_text("old")
    (tmp_path / "data").write_text("old")
    steps, failing = [], [0]
    replace_ = os.replace

    def step(file, to):
        steps.append(sorted(contents_of_files(tmp_path).items()))
        if len(steps) == failing[0]:
            raise OSError(5, "Input/output error")
        replace_(file, to)

    def write():
        steps.clear()
        with new_folder(tmp_path, what="it", own=lambda _: ("mark", "data", "../other"), mark="mark") as part:
            (part / "data").write_text("new")
            (part / "mark").write_text("new")

    monkeypatch.setattr("os.replace", step)
    (tmp_path / ".left.part").mkdir()  # by a process that was killed
    for failing[0] in (1, 2, 3, 4):
        with pytest.raises(OwlSwinError, match="cannot write it here"):
            write()
        assert contents_of_files(tmp_path) == {"mark": "old", "data": "old"}
    failing[0] = 0
    write()
    assert steps == [[("data", "old"), ("mark", "old")], [("data", "old")], [], [("data", "new")]]
    assert contents_of_files(tmp_path) == {"mark": "new", "data": "new"} and len(list(tmp_path.iterdir())) == 2


def test_a_folder_says_nothing_of_files_elsewhere(model, written, tmp_path):
    folder = shutil.copytree(written, tmp_path / "out")
    (tmp_path / "mine.txt").write_text("mine")
    said = json.loads((folder / "spec.json").read_text())
    said |= {"image_graphs": ["../mine.txt", ".", ""], "text_graph": str(tmp_path / "mine.txt")}
    (folder / "spec.json").write_text(json.dumps(said))
    with pytest.raises(OwlSwinError, match="the folder holds other files"):
        export(of_module(model), folder)
    assert (tmp_path / "mine.txt").read_text() == "mine"


def contents_of_files(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir() if path.is_file()}


def test_a_folder_that_was_written_again_gives_no_answers_of_two_models(model, written, tmp_path):
    folder = shutil.copytree(written, tmp_path / "out")
    loaded = Detector.from_pretrained(folder)
    loaded.encode_queries(["a dog"])
    export(of_module(make_tiny_model(1, SMALL)), folder)
    with pytest.raises(CheckpointError, match=r"out: was written again since it was loaded; load it anew"):
        loaded.detect(noise(60, 90), ["a dog"])


def test_boxes_of_owl_follow_the_frame_in_a_graph(tmp_path):
    model = make_tiny_model(config=replace(SMALL, heads=replace(SMALL.heads, box_form="owl")))
    export(of_module(model), tmp_path / "out")
    ours, theirs = Detector(model, device="cpu"), Detector.from_pretrained(tmp_path / "out")
    for shape in ((60, 90), (90, 60), (200, 40)):
        boxes = [one.encode_image(noise(*shape)).embeddings.pred_boxes for one in (theirs, ours)]
        torch.testing.assert_close(*boxes, atol=1e-4, rtol=0)


def test_the_size_that_was_asked_for_holds_beside_larger_frames(model, tmp_path):
    sizes = [(64, 64), (96, 96), (160, 160)]
    assert exporting.export_spec(of_module(model), "onnx", sizes).network.image_size == 96
    assert exporting.export_spec(of_module(model), "onnx", sizes[::2]).network.image_size == 160
    save_checkpoint(tmp_path / "m.safetensors", model, {})
    asked = ["--runtime", "onnx", "--sizes", "64x64,160x160", "--image-size", "96"]
    run = CliRunner().invoke(app, ["export", str(tmp_path / "m.safetensors"), "--to", str(tmp_path / "out"), *asked])
    assert "none of --sizes has the longer side of --image-size, 96" in str(run.exception)
    assert not (tmp_path / "out").exists()


CALIBRATE = "eval calibrate --annotations a.json --images . --fit b.json --model RUN --to RUN"


@pytest.mark.parametrize(
    "command",
    [
        "export RUN --to RUN/model.safetensors --rivals 0",
        "push RUN me/x --int8 --folder RUN",
        f"{CALIBRATE}/model.safetensors",
        f"{CALIBRATE}/other.safetensors --plot b.json",
    ],
)
def test_no_command_writes_over_the_model_that_it_reads(model, tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    Path("RUN").mkdir()
    Path("b.json").write_text("{}")
    save_checkpoint(Path("RUN/model.safetensors"), model, {}, exact=True)
    before = contents(Path("RUN"))
    run = CliRunner().invoke(app, command.split())
    assert isinstance(run.exception, OwlSwinError), run.output
    assert "would be written over" in str(run.exception)
    assert contents(Path("RUN")) == before and Path("b.json").read_text() == "{}"


def test_what_is_compiled_or_exported_is_saved_or_says_why_not(model, written, tmp_path):
    save_checkpoint(tmp_path / "m.safetensors", model, {"name": "tiny"}, exact=True)
    Detector.from_pretrained(tmp_path / "m.safetensors", runtime="compile").save_pretrained(tmp_path / "out")
    assert load_checkpoint(tmp_path / "out")[0].spec == load_checkpoint(tmp_path / "m.safetensors")[0].spec
    with pytest.raises(CheckpointError, match="an exported model cannot be saved as weights; save the model"):
        Detector.from_pretrained(written).save_pretrained(tmp_path / "other")


@pytest.fixture
def fresh_compiler():
    """A compiler that counts from 0 what it has compiled, and leaves no count."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.usefixtures("fresh_compiler")
def test_a_compiled_model_takes_more_frames_than_its_compiler(model, tmp_path, monkeypatch):
    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda *args, **kwargs: compile_(*args, **kwargs, backend="eager"))
    save_checkpoint(tmp_path / "m.safetensors", model, {}, exact=True)
    plain, other = (Detector.from_pretrained(tmp_path / "m.safetensors", runtime=one) for one in ("torch", "compile"))
    plain, other = (one.with_image_size(416) for one in (plain, other))
    for side in range(32, 32 * 13, 32):
        scores = [one.detect(noise(side, 416), ["a dog"], threshold=0).scores for one in (other, plain)]
        torch.testing.assert_close(*scores, atol=1e-4, rtol=0)


def test_a_picture_that_another_model_encoded_is_refused(model, picture):
    ours, other = (Detector(make_tiny_model(seed, SMALL), device="cpu") for seed in (0, 1))
    encoded = ours.encode_image(picture)
    assert len(ours.with_image_size(64).detect(encoded, ["a dog"], threshold=0))
    for ask in (other.detect, lambda one, names: other.score(one, other.encode_queries(names)), other.similarity):
        with pytest.raises(QueryError, match="this picture was encoded by another model"):
            ask(encoded, ["a dog"])
    with pytest.raises(QueryError, match="this picture was encoded by another model"):
        other.detect_batch([encoded], ["a dog"])


def test_a_card_of_numbers_is_read_and_forges_no_line(model, tmp_path):
    row = {"what": "AP50\x1b[2J", "value": 23.7}
    save_checkpoint(tmp_path / "m.safetensors", model, {"results": [row], "description": "a\nb"})
    run = CliRunner().invoke(app, ["info", str(tmp_path / "m.safetensors")])
    assert run.exit_code == 0, run.exception
    assert "  AP50\\x1b[2J  23.7\n" in run.stdout and "  a\\nb\n" in run.stdout
    assert json.loads(CliRunner().invoke(app, ["info", str(tmp_path / "m.safetensors"), "--format", "json"]).stdout)
