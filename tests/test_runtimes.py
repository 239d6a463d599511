"""Exported folders find what the model finds that they were made from, and say what they cannot do."""

import copy
import ctypes
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY, make_tiny_model
from picture_files import noise
from typer.testing import CliRunner

from owl_swin.cli.main import app
from owl_swin.detector import Detector
from owl_swin.devices import pick_device
from owl_swin.errors import CheckpointError, ConfigError, MissingExtraError, OwlSwinError, QueryError
from owl_swin.exemplar import Exemplar
from owl_swin.families import load, of_module
from owl_swin.families.owl_preprocess import Owlv2Preprocess
from owl_swin.families.owl_swin import save_checkpoint
from owl_swin.models.network import Pretrained
from owl_swin.models.owl_swin import OwlSwin
from owl_swin.models.owl_vit import OwlVit, OwlVitConfig, TowerConfig
from owl_swin.runtimes import export as exporting
from owl_swin.runtimes.export import export, export_spec
from owl_swin.runtimes.quantise import calibration_pixels
from owl_swin.tokenizer import get_tokenizer

SMALL = replace(TINY, image=replace(TINY.image, depths=(1, 1, 2, 1)))
SHAPES = [(1, 400), (400, 1), (33, 33), (500, 375), (375, 500), (768, 1024), (2000, 30), (97, 101), (240, 427)]
TEXTS = ["a dog", "ein rotes Auto!", "ナイーブ “quotes” 🐈", "a " * 40]
EXAMPLE = Path(__file__).parent.parent / "demo" / "onnx_without_torch.py"
GRAPHS = [("onnx", "onnx"), ("onnx", "openvino"), ("openvino", "openvino")]


@pytest.fixture(scope="session")
def tiny_model() -> OwlSwin:
    """With few blocks, some of them shifted, so that tracing is quick."""
    return make_tiny_model(config=SMALL)


@pytest.fixture(scope="session")
def detector(tiny_model) -> Detector:
    return Detector(tiny_model, card={"name": "tiny_for_tests"}, device="cpu")


@pytest.fixture(scope="session")
def model_file(tiny_model, tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    save_checkpoint(path, tiny_model, {"name": "tiny_for_tests"}, int8=False)
    return path


@pytest.fixture(scope="session")
def folders(tiny_model, tmp_path_factory) -> dict[str, Path]:
    """The tiny model as exported for each runtime."""
    root = tmp_path_factory.mktemp("exported")
    pretrained = replace(of_module(tiny_model), card={"name": "tiny_for_tests"})
    for runtime in ("onnx", "openvino"):
        export(pretrained, root / runtime, runtime)
    return {runtime: root / runtime for runtime in ("onnx", "openvino")}


@pytest.fixture(scope="session")
def owlv2() -> Pretrained:
    torch.manual_seed(0)
    tower = TowerConfig(width=32, mlp_width=64, layers=2, heads=4)
    network = OwlVit(OwlVitConfig("tiny", "owlv2", tower, tower, 64, 16, 16, 49408, 24, True))
    network = network.eval().requires_grad_(False)
    return Pretrained(network, Owlv2Preprocess(16, 64, content_only=True), get_tokenizer(16), {"name": "tiny"})


def logits(detector: Detector, shape: tuple[int, int], queries) -> torch.Tensor:
    return detector.score(detector.encode_image(noise(*shape)), queries)


# --- The same results ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("written, run", GRAPHS)
def test_pictures_of_any_shape_get_the_logits_and_boxes_of_the_model(folders, detector, written, run):
    other = Detector.from_pretrained(folders[written], runtime=run)
    asked, same = detector.encode_queries(TEXTS), other.encode_queries(TEXTS)
    for shape in SHAPES:
        torch.testing.assert_close(logits(other, shape, same), logits(detector, shape, asked), atol=1e-4, rtol=0)
        ours, theirs = (one.encode_image(noise(*shape)) for one in (detector, other))
        torch.testing.assert_close(theirs.boxes_px(), ours.boxes_px(), atol=1e-2, rtol=1e-4)
        torch.testing.assert_close(theirs.embeddings.image_embed, ours.embeddings.image_embed, atol=1e-4, rtol=0)
        assert theirs.embeddings.grid_hw == ours.embeddings.grid_hw


def test_it_is_the_same_model_to_archives_and_saved_queries(folders, detector, tmp_path):
    other = Detector.from_pretrained(folders["onnx"])
    assert other.spec == detector.spec and other.name == detector.name
    detector.encode_queries(["a dog"]).save(tmp_path / "dog.safetensors")
    assert other.detect(noise(60, 90), other.load_queries(tmp_path / "dog.safetensors"), threshold=0).names


def test_exemplars_classes_tiles_and_batches_work_as_ever(folders, detector):
    other = Detector.from_pretrained(folders["onnx"], image_size=128)
    ours = detector.with_image_size(128)
    shown = [Exemplar(noise(60, 90), (10, 10, 50, 40)), Exemplar(noise(40, 30))]
    torch.testing.assert_close(other.encode_exemplars(shown), ours.encode_exemplars(shown), atol=1e-4, rtol=0)
    classes = [one.classify(noise(60, 90), TEXTS).probabilities for one in (other, ours)]
    torch.testing.assert_close(*classes, atol=1e-4, rtol=0)
    pictures = [noise(60, 90), noise(90, 60), noise(61, 91)]
    together = other.detect_batch(pictures, TEXTS[:2], threshold=0)
    for picture, found in zip(pictures, together, strict=True):
        torch.testing.assert_close(found.scores, ours.detect(picture, TEXTS[:2], threshold=0).scores, atol=1e-4, rtol=0)


def test_published_swin_weights_that_pad_otherwise_get_frames_of_photographs(tmp_path):
    torch.manual_seed(0)
    config = replace(SMALL, image_size=64, image=replace(SMALL.image, padding="torchvision"))
    model = OwlSwin(config).eval().requires_grad_(False)
    export(of_module(model), tmp_path / "out")
    ours, other = Detector(model, device="cpu"), Detector.from_pretrained(tmp_path / "out")
    for shape in [(90, 120), (120, 90), (100, 100)]:
        asked = ours.encode_queries(TEXTS)
        torch.testing.assert_close(logits(other, shape, asked), logits(ours, shape, asked), atol=1e-4, rtol=0)


def test_a_model_of_the_owl_family_is_exported_in_its_one_frame(owlv2, tmp_path):
    export(owlv2, tmp_path / "owl")
    ours = Detector(replace(owlv2, preprocess=replace(owlv2.preprocess, content_only=False)), device="cpu")
    other = Detector.from_pretrained(tmp_path / "owl")
    asked, same = ours.encode_queries(TEXTS), other.encode_queries(TEXTS)
    for shape in [(30, 90), (90, 30), (64, 64)]:
        torch.testing.assert_close(logits(other, shape, same), logits(ours, shape, asked), atol=1e-4, rtol=0)
    assert not other.spec.any_size
    with pytest.raises(QueryError, match=r"frames \(height x width\) of 64x64, not 128x128"):
        other.detect(noise(30, 90), ["a dog"], image_size=128)
    with pytest.raises(ConfigError, match="family owlv2 is exported for its"):
        export(owlv2, tmp_path / "other", sizes=[(32, 64)])


# --- Stated frames -------------------------------------------------------------------------------------------------


def test_of_stated_frames_each_picture_gets_the_one_where_it_is_largest(tiny_model, detector, tmp_path):
    export(of_module(tiny_model), tmp_path / "out", sizes=[(96, 96), (64, 96)])
    other = Detector.from_pretrained(tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").glob("image*")) == ["image_64x96.onnx", "image_96x96.onnx"]
    asked = detector.encode_queries(["a dog"])
    for shape in [(64, 96), (200, 200)]:  # which are frames of their own
        torch.testing.assert_close(logits(other, shape, asked), logits(detector, shape, asked), atol=1e-4, rtol=0)
    frames = {shape: other.prepare(noise(*shape)).frames[0] for shape in [(90, 40), (20, 90), (70, 90)]}
    assert {shape: (frame.model_hw, frame.content_hw) for shape, frame in frames.items()} == {
        (90, 40): ((96, 96), (96, 43)),
        (20, 90): ((64, 96), (21, 96)),
        (70, 90): ((64, 96), (64, 96)),
    }
    box = torch.tensor([[5.0, 10.0, 30.0, 80.0]])
    there = frames[90, 40].from_image(box)
    torch.testing.assert_close(there[0] * 96, torch.tensor([17.5 * 43 / 40, 48.0, 25 * 43 / 40, 70 * 96 / 90]))
    torch.testing.assert_close(frames[90, 40].to_image(there), box)
    exemplar = Exemplar(noise(60, 90), (10, 10, 50, 40))
    torch.testing.assert_close(
        other.encode_exemplars([exemplar]), detector.encode_exemplars([exemplar]), atol=1e-4, rtol=0
    )
    with pytest.raises(QueryError, match=r"has frames .* of 96x96, 64x96, and none for image_size 640"):
        other.detect(noise(60, 90), ["a dog"], image_size=640)


@pytest.mark.parametrize("size", [(100, 96), (0, 96), (96, 8192)])
def test_a_frame_that_no_model_has_is_refused(tiny_model, tmp_path, size):
    with pytest.raises(ConfigError, match="multiples of 32 from 32 to 4096"):
        export(of_module(tiny_model), tmp_path / "out", sizes=[size])
    assert not list(tmp_path.iterdir())


# --- int8 ----------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform != "linux", reason="the stack is looked at as Linux has it")
def test_graphs_leave_the_stack_of_signal_handlers_alone(folders):
    """OpenVINO gives the thread one of its own and takes it away with the graph; the next signal ended the process."""
    openvino = pytest.importorskip("owl_swin.runtimes.openvino")

    def stack():
        now = openvino._SignalStack()
        assert ctypes.CDLL(None).sigaltstack(None, ctypes.byref(now)) == 0
        return now.start, now.flags, now.size

    before = stack()
    path = next(folders["openvino"].glob("*.xml"))
    first, second = openvino.open_graph(path), openvino.open_graph(path)
    assert stack() == before
    del first
    assert stack() == before
    del second
    assert stack() == before


def test_int8_keeps_what_patches_say(owlv2, tmp_path):
    export(owlv2, tmp_path / "out", "openvino", photographs=[noise(64, 96, seed=seed) for seed in (1, 2)])
    assert "FakeQuantize" in (tmp_path / "out" / "image_64x64.xml").read_text()
    whole = replace(owlv2, preprocess=replace(owlv2.preprocess, content_only=False))
    detectors = (Detector(whole, device="cpu"), Detector.from_pretrained(tmp_path / "out"))
    ours, theirs = (one.encode_image(noise(30, 50)).embeddings.class_embeds for one in detectors)
    assert 0.95 < (ours * theirs).sum(-1).mean() < 0.99999
    assert json.loads((tmp_path / "out" / "spec.json").read_text())["precision"] == "int8"


def test_calibration_shows_every_photograph_in_the_frame_of_most(tiny_model, tmp_path, caplog):
    spec = export_spec(of_module(tiny_model), "onnx", [])
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    photographs = [noise(60, 90), noise(90, 60), noise(61, 91), tmp_path / "broken.jpg"]
    assert [one.shape for one in calibration_pixels(spec, None, photographs)] == [(1, 3, 64, 96)] * 3
    assert "left out of calibration" in caplog.text and "broken.jpg" in caplog.text
    assert [one.shape for one in calibration_pixels(spec, (96, 96), photographs[:2])] == [(1, 3, 96, 96)] * 2
    assert len(calibration_pixels(spec, (32, 32), [noise(8, 8)] * 400)) == 128
    with pytest.raises(ConfigError, match="none that can be read"):
        calibration_pixels(spec, None, photographs[3:])


# --- On the command line -------------------------------------------------------------------------------------------


def call(*arguments: object):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_what_is_exported_on_the_command_line_detects_there(model_file, tmp_path):
    picture, folder = tmp_path / "a.png", tmp_path / "out"
    noise(60, 90).save(picture)
    run = call(
        "export", model_file, "--to", folder, "--runtime", "onnx", "--sizes", "64x96,96x96", "--image-size", "96"
    )
    assert run.exit_code == 0 and run.stdout.startswith(f"{folder}  ")
    found = [
        call("detect", picture, "--query", "a dog", "--threshold", "0", "--format", "jsonl", "--model", *model)
        for model in ([model_file], [folder, "--runtime", "openvino"])
    ]
    ours, theirs = (json.loads(one.stdout)["detections"] for one in found)
    assert [one["label"] for one in theirs] == ["a dog"] * len(ours)
    assert theirs[0]["score"] == pytest.approx(ours[0]["score"], abs=1e-3)


def test_info_says_what_a_folder_holds(folders):
    said = call("info", folders["openvino"])
    assert said.exit_code == 0, said.exception
    assert "exported for openvino in float32; frames (height x width): all whose sides are multiples" in said.stdout
    assert json.loads(call("info", folders["onnx"], "--format", "json").stdout)["export"]["text_graph"] == "text.onnx"


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["--sizes", "64x64"], "--sizes is for --runtime onnx or openvino"),
        (["--int8", "photos"], "--int8 is for --runtime onnx or openvino"),
        (
            ["--runtime", "onnx", "--sizes", "64"],
            "--sizes are heights and widths in pixels, as in 640x640,480x640, got '64'",
        ),
        (["--runtime", "tensorrt"], "exported for the runtime onnx or openvino, got 'tensorrt'"),
        (["--runtime", "onnx", "--images", "photos"], "--annotations and --images, both"),
        (["--runtime", "onnx", "--int8", "nowhere"], "int8 needs photographs to calibrate on"),
    ],
)
def test_export_says_what_it_cannot_write(model_file, tmp_path, arguments, sentence):
    run = call("export", model_file, "--to", tmp_path / "out", *arguments)
    assert isinstance(run.exception, OwlSwinError) and sentence in str(run.exception)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "command",
    [
        ["detect", "a.png", "--query", "a dog"],
        ["index", ".", "--to", "archive.lance"],
        ["serve"],
        ["eval", "detect", "--annotations", "a.json", "--images", "."],
        ["eval", "oneshot", "--annotations", "a.json", "--images", "."],
    ],
)
def test_runtime_reaches_the_model(command, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    noise(60, 90).save("a.png")
    asked = []

    def from_pretrained(*_: object, **settings: object):
        asked.append(settings["runtime"])
        raise ConfigError("far enough")

    monkeypatch.setattr(Detector, "from_pretrained", from_pretrained)
    assert str(call(*command, "--runtime", "openvino").exception) == "far enough"
    assert asked == ["openvino"]


# --- What cannot be ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("package, runtime", [("onnxruntime", "onnx"), ("openvino", "openvino")])
def test_a_runtime_that_is_not_installed_names_what_to_install(
    folders, tiny_model, monkeypatch, tmp_path, package, runtime
):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=rf"owl_swin\[{runtime}\]"):
        Detector.from_pretrained(folders[runtime], runtime=runtime)
    with pytest.raises(MissingExtraError, match=rf"owl_swin\[{runtime}\]"):
        export(of_module(tiny_model), tmp_path / "out", runtime)


def test_auto_takes_the_runtime_that_is_there(folders, detector, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    other = Detector.from_pretrained(folders["onnx"])
    assert len(other.detect(noise(60, 90), ["a dog"], threshold=0))


def test_a_runtime_that_does_not_fit_is_refused_in_one_sentence(folders, model_file):
    with pytest.raises(
        ConfigError, match="runtime must be one of auto, torch, compile, onnx, openvino, got 'tensorrt'"
    ):
        Detector.from_pretrained(model_file, runtime="tensorrt")
    with pytest.raises(
        ConfigError, match=r"no exported model.*owl-swin export .*tiny.safetensors --to FOLDER --runtime onnx"
    ):
        Detector.from_pretrained(model_file, runtime="onnx")
    for runtime in ("torch", "compile"):
        with pytest.raises(ConfigError, match="graphs for the runtime onnx or openvino, and not for"):
            Detector.from_pretrained(folders["onnx"], runtime=runtime)
    with pytest.raises(ConfigError, match="graphs for the runtime openvino, and not for 'onnx'"):
        Detector.from_pretrained(folders["openvino"], runtime="onnx")
    with pytest.raises(ConfigError, match="is an export already"):
        export(load(folders["onnx"]), folders["onnx"].parent / "again")


def test_an_export_says_that_it_has_one_precision_and_computes_on_the_processor(folders):
    with pytest.raises(ConfigError, match="keeps the precision it was written with"):
        Detector.from_pretrained(folders["onnx"], dtype="half")
    with pytest.raises(ConfigError, match="computes on the CPU"):
        Detector.from_pretrained(folders["onnx"], device="meta")
    network = load(folders["onnx"]).network
    assert pick_device("auto", network).type == "cpu"


@pytest.mark.parametrize(
    "change, sentence",
    [
        (lambda said: said | {"format": "owl_swin-export-9"}, r"format 'owl_swin-export-9', and this version .* reads"),
        (lambda said: [], "write it again"),
        (lambda said: said | {"sizes": 7}, "does not say what a model needs"),
        (lambda said: said | {"network": said["network"] | {"colour": 1}}, "does not say what a model needs"),
        (lambda said: said | {"preprocess": {"kind": "fisheye"}}, "does not say what a model needs"),
        (lambda said: said | {"network": said["network"] | {"box_voting": "no"}}, "'box_voting' must be bool"),
        (lambda said: said | {"network": said["network"] | {"nms_iou": 7}}, "nms_iou must be a number"),
        (lambda said: said | {"network": said["network"] | {"rivals": -1.0}}, "rivals must be a number"),
        (lambda said: said | {"runtime": "tensorrt"}, "tensorrt"),
    ],
)
def test_a_folder_of_another_version_or_damaged_is_refused(folders, tmp_path, change, sentence):
    folder = copied(folders["onnx"], tmp_path)
    said = json.loads((folder / "spec.json").read_text())
    (folder / "spec.json").write_text(json.dumps(change(said)))
    with pytest.raises(CheckpointError, match=sentence):
        Detector.from_pretrained(folder)


def test_a_folder_that_was_written_before_models_said_how_boxes_vote_is_read(folders, tmp_path):
    folder = copied(folders["onnx"], tmp_path)
    said = json.loads((folder / "spec.json").read_text())
    older = {key: value for key, value in said["network"].items() if key not in ("nms_iou", "box_voting", "rivals")}
    (folder / "spec.json").write_text(json.dumps(said | {"network": older}))
    spec = Detector.from_pretrained(folder).spec
    assert (spec.nms_iou, spec.box_voting, spec.rivals) == (0.5, False, 0)


@pytest.mark.parametrize("runtime", ["onnx", "openvino"])
def test_a_graph_that_is_cut_off_or_lost_is_refused(folders, tmp_path, runtime):
    folder = copied(folders["onnx"], tmp_path)
    graph = folder / "image.onnx"
    graph.write_bytes(graph.read_bytes()[:20_000])
    with pytest.raises(CheckpointError, match=r"image.onnx: cannot be read"):
        Detector.from_pretrained(folder, runtime=runtime).detect(noise(60, 90), ["a dog"])
    graph.unlink()
    with pytest.raises(CheckpointError, match=r"image.onnx is not there"):
        Detector.from_pretrained(folder, runtime=runtime)


def copied(folder: Path, to: Path) -> Path:
    to.mkdir(exist_ok=True)
    for path in folder.iterdir():
        (to / path.name).write_bytes(path.read_bytes())
    return to


# --- The folder ----------------------------------------------------------------------------------------------------


def test_an_export_that_fails_leaves_nothing_and_one_that_succeeds_replaces_another(
    tiny_model, folders, monkeypatch, tmp_path
):
    folder = copied(folders["openvino"], tmp_path / "out")
    before = (folder / "spec.json").read_bytes()

    def full(*_: object) -> bytes:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(exporting, "traced", lambda *_: b"a graph")
    with monkeypatch.context() as patched:
        patched.setattr(exporting, "_text_graph", full)
        with pytest.raises(OwlSwinError, match=r"cannot write the exported model here \(No space left on device\)"):
            export(of_module(tiny_model), folder)
    assert (folder / "spec.json").read_bytes() == before and [path.name for path in tmp_path.iterdir()] == ["out"]
    export(of_module(tiny_model), folder)
    assert not list(folder.glob("*.xml")) and [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_folder_that_was_named_from_another_place_is_found(folders, tmp_path, monkeypatch):
    copied(folders["onnx"], tmp_path / "out")
    monkeypatch.chdir(tmp_path)
    loaded = Detector.from_pretrained("out")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert loaded.encode_queries(["a dog"]).query_embeds.shape[0] == 1


def test_a_folder_with_other_files_is_left_alone(tiny_model, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(OwlSwinError, match="the folder holds other files; name a new one"):
        export(of_module(tiny_model), tmp_path)
    with pytest.raises(OwlSwinError, match="there is a file of that name"):
        export(of_module(tiny_model), tmp_path / "notes.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_the_folder_is_used_without_pytorch(folders, detector, tmp_path):
    picture, texts = tmp_path / "a picture.png", ["A  red\tMug", "naïve café's 12 dogs", "x " * 50]
    noise(120, 90).save(picture)
    arguments = ["", str(folders["onnx"]), str(picture), *texts]
    program = (
        f"import runpy, sys; sys.modules['torch'] = None; sys.argv = {arguments!r}; runpy.run_path({str(EXAMPLE)!r})"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    said = [line.split(" ", 5) for line in run.stdout.splitlines()]
    assert [line[5] for line in said] == texts
    encoded = detector.encode_image(noise(120, 90))
    scores = detector.score(encoded, detector.encode_queries(texts)).sigmoid().max(0)
    np.testing.assert_allclose([float(line[0]) for line in said], scores.values, atol=2e-3)
    for line, patch in zip(said, scores.indices, strict=True):
        box = torch.tensor([float(value) for value in line[1:5]])
        limits = torch.tensor([90, 120, 90, 120])
        torch.testing.assert_close(box.clamp(min=0).minimum(limits), encoded.boxes_px()[patch], atol=1.0, rtol=0)


def test_a_compiled_model_finds_the_same_and_can_be_copied(model_file, monkeypatch):
    # The compiler's own work takes a minute; that all of the encoder is one graph is what can break here.
    compile_ = torch.compile
    kept = {"backend": "eager", "fullgraph": True}
    torch.compiler.reset()  # which counts what a process compiles
    monkeypatch.setattr(torch, "compile", lambda *args, **kwargs: compile_(*args, **kwargs, **kept))
    plain, other = Detector.from_pretrained(model_file), Detector.from_pretrained(model_file, runtime="compile")
    found = other.detect(noise(60, 90), ["a dog"], threshold=0)
    torch.testing.assert_close(found.scores, plain.detect(noise(60, 90), ["a dog"], threshold=0).scores)
    assert other.fingerprint == plain.fingerprint and len(other.attention(noise(60, 90))) == 5
    assert copy.deepcopy(other.model).spec == plain.spec
