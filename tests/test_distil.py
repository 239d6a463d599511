"""`owl-swin distil`: a student in its teacher's text space, out of pictures that nobody labelled."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_tiny_model
from owl_checkpoints import save_owl
from PIL import Image
from safetensors.torch import load_file
from test_cli import assert_one_sentence, owl_swin  # noqa: F401
from training_data import NAMES, TINY_MODEL, detect_settings, train_config, write_shapes

from owl_swin.config import ModelConfig, from_mapping, read_toml
from owl_swin.data.config import DataConfig
from owl_swin.data.scene import Scene
from owl_swin.data.scenes import load_scenes
from owl_swin.detector import Detector
from owl_swin.distillation import seen as teacher_pass
from owl_swin.distillation.run import Distillation, distil
from owl_swin.errors import CheckpointError, ConfigError
from owl_swin.families.owl_swin import load_checkpoint, save_checkpoint
from owl_swin.labelling.names import label_names
from owl_swin.locks import hold_lock
from owl_swin.models.heads import cell_centres
from owl_swin.training.augment import mosaic
from owl_swin.training.distributed import Process
from owl_swin.training.loop import train
from owl_swin.training.sampling import annotated
from owl_swin.training.student import build_student, student_config, text_cosines
from owl_swin.training.tasks.detect import DetectTask
from owl_swin.training.tasks.image import start_model
from owl_swin.training.tasks.student import StudentConfig
from owl_swin.training.taught import TaughtBatch, TaughtWeights, embed_loss, image_embed_loss, taught_batch

ALONE = Process(0, 1, torch.device("cpu"))
OTHER_TEXTS = ["a dog", "a very small wooden chair", "Süßigkeit", "red"]


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    """Photos, a teacher, a student's file, and names."""
    folder = tmp_path_factory.mktemp("material")
    write_shapes(folder / "set")
    (folder / "set" / "images").rename(folder / "Photos")
    save_checkpoint(folder / "teacher.safetensors", make_tiny_model(), {"name": "the teacher", "licence": ["free"]})
    (folder / "student.toml").write_text(TINY_MODEL)
    (folder / "names.txt").write_text("\n".join(NAMES[:2]) + "\nblue square, blue box\n")
    (folder / "others.txt").write_text("a dog\n")
    return folder


@pytest.fixture
def place(material, tmp_path, monkeypatch):
    """A copy of it to be in."""
    shutil.copytree(material, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call(place, steps=4, **more):
    """Distils in this process; settings beside ``stop_after`` and ``allow_changes`` are the run's."""
    options = {key: more.pop(key) for key in ("stop_after", "allow_changes") if key in more}
    settings = {"student": "student.toml", "output": "run", "steps": steps, "batch_size": 2, "device": "cpu"} | more
    photos = tuple(str(path) for path in sorted((place / "Photos").iterdir()))
    what = Distillation(photos, settings.pop("teacher", "teacher.safetensors"), label_names(NAMES[:2]))
    return distil(what, from_mapping(StudentConfig, settings), **options)


def weights(folder):
    return load_file(Path(folder) / "state.safetensors")


# --- The whole -----------------------------------------------------------------------------------------------------


def test_a_student_learns_of_its_teacher_and_any_text_works(owl_swin, place):  # noqa: F811
    (place / "Photos" / "broken.jpg").write_bytes(b"no picture")
    (place / "run").mkdir()
    asked = ("--queries", "names.txt", "--unlabelled", "others.txt", "--steps", "40", "--batch-size", "3")
    command = ("distil", "Photos", "--teacher", "teacher.safetensors", "--student", "student.toml", "--output", "run")
    (place / "recipe.toml").write_text("log_every = 1\noptim = {image_lr = 4e-3, heads_lr = 4e-3}\n")
    run = owl_swin(*command, *asked, "--recipe", "recipe.toml", "--device", "cpu")
    assert run.code == 0, run.err
    assert "left out: Photos/broken.jpg: not a picture" in run.err
    rows = dict(line.split("  ", 1) for line in run.out.splitlines())
    assert rows["student"].strip() == "run/model.safetensors" and rows["cosine, texts"].strip() == "1.000"
    assert "11 learned from, 1 held out, 0 without a sure box" in run.out
    assert {"agreement, AP", "names not labelled, AP50", "speed", "parameters", "file"} <= rows.keys()
    # It learned what the teacher thinks, also where it was not taught.
    first, *_, last = (json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines())
    assert last["embed"] < first["embed"] / 2 and last["image_embed"] < first["image_embed"] / 2
    figures = json.loads(Path("run/comparison.json").read_text())
    assert figures["patch_cosine"] > 0.6 and figures["unlabelled"]["n_images"] == 1
    # Its text space is the teacher's.
    teacher, student = (Detector.from_pretrained(file, device="cpu") for file in ("teacher.safetensors", "run"))
    torch.testing.assert_close(
        *(detector.encode_queries(OTHER_TEXTS).query_embeds for detector in (student, teacher)), atol=2e-3, rtol=0
    )
    assert student.spec.alignment_scale == pytest.approx(teacher.spec.alignment_scale, rel=1e-3)
    card = load_checkpoint("run")[1]
    assert card["teacher"]["name"] == "the teacher" and card["teacher"]["fingerprint"] == teacher.fingerprint
    assert "Of the teacher: free" in card["licence"] and len(card["results"]) == 5
    assert "A student of the teacher" in owl_swin("info", "run").out
    # What the teacher saw is two ordinary sets.
    learned, kept_back = (
        load_scenes(DataConfig("coco", f"run/{file}.json", "Photos")) for file in ("labels", "held_out")
    )
    names = [{scene.source.name for scene in scenes.scenes} for scenes in (learned, kept_back)]
    assert not names[0] & names[1] and len(names[0] | names[1]) == 12
    assert learned.names[2] == ["blue square", "blue box"] and learned.scenes[0].scores.min() >= 0.1


def test_a_killed_run_goes_on_to_the_bit_and_asks_the_teacher_once(place, monkeypatch):
    straight = call(place, output="straight")
    assert straight.steps == 4 and straight.comparison is not None
    half = call(place, stop_after=2)
    assert half.steps == 2 and half.comparison is None
    monkeypatch.setattr(teacher_pass, "_look", lambda *_: pytest.fail("what it saw is kept"))
    done = call(place)
    ours, theirs = weights("run"), weights("straight")
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert done.comparison.agreement.figures == straight.comparison.agreement.figures
    again = call(place)  # a finished run is compared once more
    assert again.steps == 4 and again.comparison.patch_cosine == done.comparison.patch_cosine


def test_a_kill_while_the_teacher_looks_costs_one_part(place, monkeypatch):
    monkeypatch.setattr(teacher_pass, "CHUNK", 5)
    look, looked = teacher_pass._look, []

    def cut_off(paths, *more):
        if len(looked) == 2:
            raise KeyboardInterrupt
        looked.append(len(paths))
        return look(paths, *more)

    monkeypatch.setattr(teacher_pass, "_look", cut_off)
    with pytest.raises(KeyboardInterrupt):
        call(place, steps=1)
    (place / "run" / "teacher" / "000001.safetensors").write_bytes(b"half")
    looked.clear()
    call(place, steps=1)
    assert looked == [5, 2]  # the damaged part and the one that was missing


def test_what_a_teacher_saw_by_other_settings_is_looked_at_again(place, monkeypatch):
    call(place, steps=1)
    teacher = load_checkpoint(place / "teacher.safetensors")[0]
    teacher.config = replace(teacher.config, rivals=1.0)
    save_checkpoint(place / "teacher.safetensors", teacher, {"name": "the teacher"})
    look, looked = teacher_pass._look, []
    monkeypatch.setattr(teacher_pass, "_look", lambda paths, *more: (looked.append(len(paths)), look(paths, *more))[1])
    call(place, steps=1, allow_changes=True)
    assert looked


def test_settings_pictures_and_teacher_stay_what_a_run_began_with(place):
    call(place, stop_after=1)
    with pytest.raises(ConfigError, match=r"embed_weight 1\.0 \(now 2\.0\)"):
        call(place, embed_weight=2.0)
    Image.new("RGB", (80, 80)).save(place / "Photos" / "new.png")
    with pytest.raises(ConfigError, match=r"pictures '12 pictures, \w+' \(now '13 pictures"):
        call(place)
    save_checkpoint(place / "teacher.safetensors", make_tiny_model(3), {"name": "another"})
    with pytest.raises(ConfigError, match=r"teacher 'the teacher \w+ at 96 px' \(now 'another"):
        call(place)
    assert call(place, allow_changes=True).steps == 4


# --- What is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--teacher", "no-such-model"], "no-such-model: no such model"),
        (["--student", "absent.toml"], "absent.toml: cannot read this configuration file"),
        (["--queries", "absent.txt"], "absent.txt: expected a file with a name on each line"),
        (["--text", "absent.safetensors"], "student.toml: embed_dim is 32, and the text space of the teacher tiny_for"),
        (["--held-out", "1"], "held_out is a share of the pictures between 0 and 1, got 1.0"),
        (["--steps", "0"], "steps, batch_size, accumulate and log_every must be at least 1"),
        (["--steps", "-3"], "steps, batch_size, accumulate and log_every must be at least 1"),
        (["--image-size", "16"], "image_size must be at least 32 pixels"),
        (["--recipe", "wrong.toml"], "wrong.toml: unknown key 'stepps'; did you mean 'steps'?"),
        (["--recipe", "text.toml"], "text.toml: optim.text_lr must be 0"),
        (["--unlabelled", "names.txt"], "all names that were not to be labelled are among those that are"),
        (["--output", "names.txt/run"], "names.txt/run: cannot write in this folder"),
    ],
)
def test_a_wrong_call_is_one_sentence(owl_swin, place, arguments, said):  # noqa: F811
    (place / "wrong.toml").write_text("stepps = 3\n")
    (place / "text.toml").write_text("[optim]\ntext_lr = 1e-4\n")
    usual = {"--teacher": "teacher.safetensors", "--student": "student.toml", "--queries": "names.txt"}
    usual |= {"--output": "run"} | dict(zip(arguments[::2], arguments[1::2], strict=True))
    assert_one_sentence(owl_swin("distil", "Photos", *(part for pair in usual.items() for part in pair)), said)
    assert not Path("run").exists()


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["Photos"], "say with --student what is to be made"),
        (["Photos", "--student", "student.toml", "--output", "run"], "there is nothing to look for"),
        (["configs/train/distil_text.toml"], "by `owl-swin distil-text configs/train/distil_text.toml`"),
        (["Empty"], "Empty: there is no picture in this folder"),
        (["https://a.org/b.jpg"], "https://a.org/b.jpg: expected pictures that are files"),
        (["One"], "a student needs at least 2 pictures, one of which is held out; 1 could be read"),
        (["Own"], "there is no picture to learn from"),  # but what the run has drawn
        (["Broken"], "none of 2 pictures can be read; the first: Broken/a.png: not a picture"),
    ],
)
def test_too_little_to_learn_from_is_one_sentence(owl_swin, place, arguments, said):  # noqa: F811
    for name in ("Empty", "One", "Broken", "Own/run"):
        Path(name).mkdir(parents=True)
    shutil.copy("Photos/0.png", "Own/run/found-10.png")
    shutil.copy("Photos/0.png", "One")
    for name in ("a.png", "b.png"):
        (Path("Broken") / name).write_bytes(b"no picture")
    if len(arguments) == 1 and arguments[0] in ("Empty", "One", "Own", "Broken", "https://a.org/b.jpg"):
        output = "Own/run" if arguments == ["Own"] else "run"
        arguments = [*arguments, "--teacher", "teacher.safetensors", "--student", "student.toml", "--output", output]
        arguments += ["--query", "a dog", "--device", "cpu"]
    run = owl_swin("distil", *arguments)
    assert run.code == 2 and run.out == "" and said in run.err.splitlines()[-1]


def test_pictures_without_a_sure_box_are_said(place):
    with pytest.raises(
        ValueError, match=r"none of 11 pictures has a box that the teacher gives a score of 1; the best"
    ):
        call(place, picture_threshold=1.0)


def test_a_teacher_that_answers_with_nan_is_refused(place, monkeypatch):
    from owl_swin.models.heads import BoxHead

    monkeypatch.setattr(BoxHead, "forward", lambda self, patches, *_: patches[..., :4] * torch.nan)
    with pytest.raises(ValueError, match=r"0\.png: the teacher the teacher answers with NaN or infinity"):
        call(place)


def test_a_second_run_in_a_folder_is_refused(place):
    settings = detect_settings(place / "train", output=str(place / "run"))
    (place / "run").mkdir()
    with hold_lock(place / "run" / ".run.lock", busy=ConfigError, failed=lambda error: error):
        for begin in (lambda: call(place), lambda: train(train_config(settings))):
            with pytest.raises(ConfigError, match=rf"run: process {os.getpid()} on .* has a run in this folder"):
                begin()
    assert [path.name for path in (place / "run").iterdir()] == [".run.lock"]


# --- The text space ------------------------------------------------------------------------------------------------


def test_a_tower_that_reads_otherwise_than_the_teacher_is_refused(place, monkeypatch):
    from owl_swin.encoder import Encoder

    texts = Encoder.texts
    monkeypatch.setattr(Encoder, "texts", lambda self, given: texts(self, [text[::-1] for text in given]))
    with pytest.raises(ValueError, match=r"reads texts otherwise .*owl-swin distil-text"):
        call(place)
    assert not (place / "run" / "state.safetensors").exists()


def test_a_small_tower_learns_the_teachers_texts_and_is_given_to_a_student(place, monkeypatch):
    from test_distil_text import CNTLIST_REV, DATA_NOUN

    from owl_swin.training.distil_text import distil as distil_text
    from owl_swin.training.tasks import text as text_task
    from owl_swin.training.tasks.text import DistilConfig

    readings = text_task._readable_tokens  # of all 40,000 the teacher takes long to read
    monkeypatch.setattr(text_task, "_readable_tokens", lambda given: dict(list(readings(given).items())[::200]))
    (place / "wordnet").mkdir()
    (place / "wordnet" / "data.noun").write_text(DATA_NOUN)
    (place / "wordnet" / "cntlist.rev").write_text(CNTLIST_REV)
    (place / "small.toml").write_text(TINY_MODEL.replace("embed_dim = 32", "embed_dim = 16", 1))
    settings = {"model": "small.toml", "teacher": "model:teacher.safetensors", "wordnet": "wordnet", "output": "text"}
    settings |= {"phrases": 40, "steps": 40, "batch_size": 32, "learning_rate": 1e-2, "warmup_steps": 5}
    folder = distil_text(from_mapping(DistilConfig, settings))
    first, *_, last = (json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines())
    assert last["cosine"] > max(first["cosine"] + 0.1, 0.8)
    done = call(place, steps=1, student="small.toml", text="text/text.safetensors")
    assert 0.5 < done.comparison.text_cosine < 0.9999
    kept, given = load_checkpoint("run")[0].text_encoder.tower, load_file("text/text.safetensors")
    torch.testing.assert_close(kept.ln_final.weight, given["tower.ln_final.weight"], atol=1e-3, rtol=0)
    with pytest.raises(ConfigError, match=r"student\.toml: embed_dim is 32, and the text space of the teacher"):
        distil_text(from_mapping(DistilConfig, settings | {"model": "student.toml", "output": "other"}))


@pytest.mark.parametrize("family", ["owlvit", "owlv2"])
def test_the_text_encoder_of_an_owl_is_kept_in_the_student(tmp_path, family):
    save_owl(tmp_path / "owl", family)
    teacher = Detector.from_pretrained(tmp_path / "owl", device="cpu")
    (tmp_path / "student.toml").write_text(TINY_MODEL)
    base = read_toml(tmp_path / "student.toml", ModelConfig)
    config = student_config(base, teacher.model, "", "student.toml")
    assert config.embed_dim == 24 and config.image == base.image and config.text.activation == "quick_gelu"
    model = build_student(config, teacher)
    save_checkpoint(tmp_path / "student.safetensors", model, {}, int8=False)
    student = Detector.from_pretrained(tmp_path / "student.safetensors", device="cpu")
    long = "a text of many more tokens than sixteen, " * 3
    for made, least in ((model, 0.99999), (student.model, 0.9999)):
        assert text_cosines(made, teacher, [*OTHER_TEXTS, long]).min() > least


def test_an_owl_teaches_a_student(place):
    save_owl(place / "owl", "owlv2")
    done = call(place, teacher="owl", steps=2, picture_threshold=0.0, threshold=0.0)
    assert done.comparison.text_cosine > 0.999 and done.comparison.image_sizes == (64, 96)
    network, card = load_checkpoint("run")
    assert card["teacher"]["family"] == "owlv2" and "mean of its patches" in card["limits"][1]
    assert torch.equal(network.image_projection.weight, network.class_head.embed.weight)  # OWLv2 has none to teach


def test_a_teacher_without_embeddings_is_told_what_else_it_can_do(place):
    (place / "dino").mkdir()
    (place / "dino" / "config.json").write_text('{"model_type": "grounding-dino"}')
    with pytest.raises(CheckpointError, match=r"dino: reads names and pictures together.*`owl-swin label`"):
        call(place, teacher="dino")


# --- The loss ------------------------------------------------------------------------------------------------------


def test_what_was_said_of_a_box_stays_with_it_through_crops_and_mosaics():
    """The embedding of a box is its colour, and that of its picture the mean of all."""
    colours = np.eye(4, dtype=np.float16)
    boxes = np.array([[0, 0, 40, 40], [80, 0, 120, 40], [0, 80, 40, 120], [80, 80, 120, 120]], np.float32)
    scenes = []
    for shift in range(4):
        pixels = np.zeros((120, 120, 3), np.uint8)
        own = np.roll(np.arange(4), shift)
        for box, colour in zip(boxes.astype(int), own, strict=True):
            pixels[box[1] : box[3], box[0] : box[2]] = 60 * (colour + 1)
        scene = Scene(Path("a"), boxes, own, embeds=colours[own], image_embed=colours[shift])
        scenes.append((scene, Image.fromarray(pixels)))
    for seed, drawn in enumerate([scenes[:1], scenes, scenes[::-1]] * 4):
        pictures = [annotated(picture, scene, np.ones(4)) for scene, picture in drawn]
        canvas = mosaic(pictures, (160, 160), np.random.default_rng(seed), min_kept=0.9, zoom=0.5)
        taught = taught_batch([[scene for scene, _ in drawn]], [canvas.rows])
        assert len(taught.boxes[0]) == len(canvas.boxes)
        for box, said in zip(canvas.boxes, taught.boxes[0], strict=True):
            x, y = ((box[:2] + box[2:]) / 2).astype(int)
            assert canvas.pixels[y, x, 0] == 60 * (int(said.argmax()) + 1)
        assert taught.images[0].tolist() == pytest.approx([1, 0, 0, 0] if len(drawn) == 1 else [0.25] * 4)


def test_the_embedding_loss_is_one_less_the_cosine_of_what_is_known():
    said = torch.tensor([[2.0, 0], [0, 3], [0, 0]])
    patches = torch.tensor([[1.0, 0], [1, 0], [1, 0]])
    assert embed_loss(patches, said, torch.tensor([0.5, 0.25, 1])).item() == pytest.approx(0.25)
    assert embed_loss(patches[:0], said[:0], torch.zeros(0)).item() == 0
    assert image_embed_loss(patches, TaughtBatch([], said)).item() == pytest.approx(0.5)
    assert image_embed_loss(patches[2:], TaughtBatch([], said[2:])).item() == 0


def test_boxes_that_are_merged_keep_what_was_said_of_the_first(place):
    settings = detect_settings(place / "train")
    task = DetectTask(train_config(settings), start_model(train_config(settings), torch.device("cpu"))[0], ALONE)
    batch = task.batch(0)
    task.taught = TaughtWeights(1.0, 0.0)
    boxes = torch.tensor([[0.5, 0.5, 0.4, 0.4], [0.5, 0.5, 0.41, 0.4], [0.2, 0.2, 0.2, 0.2]])
    said = torch.eye(3, 32)
    scene = replace(
        batch,
        boxes=[boxes],
        labels=[torch.tensor([0, 1, 0])],
        scores=[torch.tensor([0.5, 0.9, 0.0])],
        asked=[torch.arange(len(batch.classes))],
        taught=TaughtBatch([said], said[:1]),
    )
    image = task.model.eval().encode_image(torch.zeros(1, 3, 64, 64))[0]
    texts, centres = task.bank.embed(task.model, batch.texts).float(), cell_centres((4, 4)) / 4
    for row, expected in ((0, 0.0), (1, 1.0), (2, 1.0)):
        same = replace(image, class_embeds=said[[row]].expand(16, -1))
        logits, matched = task._matched(same, centres, texts, scene, 0)
        losses = task._scene_losses(same, matched, logits, centres, texts, None, scene, 0)
        assert losses["embed"].item() == pytest.approx(expected)
