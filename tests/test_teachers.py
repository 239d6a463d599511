"""Teachers of transformers: their answers are the models' own, each name by its own place, alone or with others."""

import json
import shutil

import pytest
import torch
import transformers
from owl_checkpoints import save_clip_tokenizer, save_owl
from picture_files import noise
from safetensors.torch import load_file, save_file
from teacher_checkpoints import (
    bert_tokenizer,
    clip_tokenizer,
    save_grounding_dino,
    save_omdet_turbo,
    save_sam3,
    save_sam3_video,
)
from torch.testing import assert_close

from owl_swin.boxes import pairwise_iou
from owl_swin.detector import Detector
from owl_swin.errors import CheckpointError, DataError, QueryError
from owl_swin.labelling.names import LabelSpace, label_names
from owl_swin.labelling.run import LabelOptions, label_pictures
from owl_swin.teachers.detector import DetectorTeacher
from owl_swin.teachers.grounding_dino import make_captions
from owl_swin.teachers.load import load_teacher
from owl_swin.teachers.omdet_turbo import make_tasks

SAVE = {
    "grounding-dino": save_grounding_dino,
    "mm-grounding-dino": lambda folder: save_grounding_dino(folder, "MMGroundingDino"),
    "omdet-turbo": save_omdet_turbo,
    "sam3": save_sam3,
}
GROUNDING = ["grounding-dino", "mm-grounding-dino"]
PICTURES = [noise(60, 90), noise(90, 60, seed=1), noise(60, 90, seed=2)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("teachers")
    return {kind: save(root / kind) for kind, save in SAVE.items()}


@pytest.fixture(scope="module")
def teachers(folders):
    return {kind: load_teacher(folder, device="cpu") for kind, folder in folders.items()}


def original(folder, model_class="AutoModelForZeroShotObjectDetection"):
    model = getattr(transformers, model_class).from_pretrained(folder).eval().requires_grad_(False)
    return model, transformers.AutoProcessor.from_pretrained(folder)


def of_label(found, label):
    own = found.labels == label
    return found.scores[own], found.boxes[own]


# --- The models' own answers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", GROUNDING)
def test_a_name_has_the_mean_of_its_own_tokens(folders, teachers, kind):
    model, processor = original(folders[kind])
    inputs = processor(images=PICTURES[0], text=[["cat", "caterpillar"]], return_tensors="pt")
    tokens = processor.tokenizer.convert_ids_to_tokens(inputs["input_ids"][0])
    assert tokens == ["[CLS]", "cat", ".", "cat", *(f"##{letter}" for letter in "erpillar"), ".", "[SEP]"]
    answer = model(**inputs)
    fits = answer.logits[0].sigmoid()
    x, y, w, h = (answer.pred_boxes[0] * torch.tensor([90, 60, 90, 60])).unbind(-1)
    boxes = torch.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], -1)
    (found,) = teachers[kind].find(PICTURES[:1], [("cat", "caterpillar")], 0.0)
    for label, scores in enumerate([fits[:, 1], fits[:, 3:12].mean(1)]):
        own, places = of_label(found, label)
        assert_close(own, scores.sort(descending=True).values, atol=1e-5, rtol=0)
        assert_close(places, boxes[scores.argsort(descending=True)], atol=1e-2, rtol=0)


def test_omdet_turbo_answers_as_its_processor(folders, teachers):
    model, processor = original(folders["omdet-turbo"])
    names = ["cat", "a dog", "cap"]
    inputs = processor(PICTURES[0], text=names, text_kwargs={"max_length": 24}, return_tensors="pt")
    (expected,) = processor.post_process_grounded_object_detection(
        model(**inputs), text_labels=names, threshold=0.0, nms_threshold=0.5, target_sizes=[(60, 90)], max_num_det=36
    )
    (found,) = teachers["omdet-turbo"].find(PICTURES[:1], [tuple(names)], 0.0)
    assert len(found) == len(expected["scores"]) > 3
    order = expected["scores"].argsort(descending=True)
    assert_close(found.scores, expected["scores"][order], atol=1e-5, rtol=0)
    assert found.labels.tolist() == expected["labels"][order].tolist()
    clipped = found.boxes.clamp(min=0, max=90)
    assert (pairwise_iou(clipped, expected["boxes"][order]).diagonal() > 0.99).all()


def test_sam3_encodes_a_picture_once_for_all_texts(folders, teachers):
    model, processor = original(folders["sam3"], "Sam3Model")
    teacher, seen = load_teacher(folders["sam3"], device="cpu"), []
    teacher._architecture._model.vision_encoder.register_forward_hook(lambda *_: seen.append(1))
    found = teacher.find(PICTURES, [("cat", "a dog")] * 3, 0.0)
    assert len(seen) == 1
    for picture, one in zip(PICTURES, found, strict=True):
        for label, text in enumerate(["cat", "a dog"]):
            inputs = processor(images=picture, text=text, return_tensors="pt")
            sizes = inputs.pop("original_sizes").tolist()
            (expected,) = processor.post_process_object_detection(model(**inputs), 0.0, sizes)
            scores, boxes = of_label(one, label)
            order = expected["scores"].argsort(descending=True)
            assert_close(scores, expected["scores"][order], atol=1e-5, rtol=0)
            assert_close(boxes, expected["boxes"][order], atol=1e-2, rtol=0)


def test_sam3_is_found_within_its_model_for_video(teachers, tmp_path):
    teacher = load_teacher(save_sam3_video(tmp_path / "video"), device="cpu")
    (expected,), (found,) = (one.find(PICTURES[:1], [("cat",)], 0.0) for one in (teachers["sam3"], teacher))
    assert found == expected and len(found) > 0


# --- What holds for all of them ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", SAVE)
def test_a_picture_has_the_same_answer_alone_or_with_others(teachers, kind):
    texts = [("cat", "dog"), ("cat", "dog"), ("dog",)]
    together = teachers[kind].find(PICTURES, texts, 0.05)
    for picture, own, found in zip(PICTURES, texts, together, strict=True):
        (alone,) = teachers[kind].find([picture], [own], 0.05)
        assert found.names == own and found.image_hw == (picture.height, picture.width)
        assert len(found) == len(alone) > 0 and (found.scores >= 0.05).all()
        assert_close(found.scores, alone.scores, atol=1e-5, rtol=0)
        assert_close(found.boxes, alone.boxes, atol=1e-2, rtol=0)


@pytest.mark.parametrize("kind", SAVE)
@pytest.mark.parametrize("shape", [(1, 4000), (4000, 1), (1, 1), (7, 300)])
def test_any_shape_of_picture_is_seen(teachers, kind, shape):
    picture = noise(*shape)
    (found,) = teachers[kind].find([picture], [("cat",)], 0.0)
    assert len(found) > 0 and found.boxes.isfinite().all()
    assert found.boxes[:, 0::2].max() <= 1.6 * shape[1] and found.boxes[:, 1::2].max() <= 1.6 * shape[0]


@pytest.mark.parametrize("kind", SAVE)
def test_pictures_of_another_size_are_for_those_that_can(teachers, kind):
    if kind in GROUNDING:
        (small,), (large,) = (
            one.find(PICTURES[:1], [("cat",)], 0.0) for one in (teachers[kind], teachers[kind].at_scale(2))
        )
        assert small.scores.tolist() != large.scores.tolist()
        assert teachers[kind].at_scale(2).identity != teachers[kind].identity
    else:
        with pytest.raises(QueryError, match="sees pictures in one size"):
            teachers[kind].at_scale(2)
    assert teachers[kind].at_scale(1).identity == teachers[kind].identity


def test_the_size_of_pictures_is_that_of_their_longer_side(folders):
    assert load_teacher(folders["grounding-dino"], device="cpu", image_size=320).identity["scale"] == 2
    assert load_teacher(folders["omdet-turbo"], device="cpu", image_size=64).identity["scale"] == 1
    with pytest.raises(QueryError, match="sam3 sees pictures in one size, 56 pixels"):
        load_teacher(folders["sam3"], device="cpu", image_size=112)


# --- Captions and tasks --------------------------------------------------------------------------------------------


def test_names_that_do_not_fit_get_another_caption():
    tokenizer = bert_tokenizer()
    texts = ["cat", "dog", "aaaa", "St. Cat?", "a" * 90, "cat dog"]
    captions = make_captions(texts, tokenizer, 12)
    shown = [tokenizer.decode(caption.ids[0, 1:-1]) for caption in captions]
    assert shown == ["cat. dog. aaaa.", "st cat.", f"{'a' * 9}.", "cat dog."]
    assert [caption.texts for caption in captions] == [(0, 1, 2), (3,), (4,), (5,)]
    assert captions[0].shares[2].tolist() == [0, 0, 0, 0, 0, 0.25, 0.25, 0.25, 0.25, 0, 0]
    assert captions[1].shares[0, 1:4].tolist() == [pytest.approx(1 / 3)] * 3
    for caption in captions:
        assert caption.ids.shape[1] <= 12
        assert_close(caption.shares.sum(1), torch.ones(len(caption.texts)))


def test_every_name_has_the_answer_of_its_caption(teachers):
    names = ("cat", "dog", "caterpillar", "bird", "mug")
    (many,) = teachers["grounding-dino"].find(PICTURES[:1], [names], 0.0)
    (first,) = teachers["grounding-dino"].find(PICTURES[:1], [names[:4]], 0.0)
    (last,) = teachers["grounding-dino"].find(PICTURES[:1], [names[4:]], 0.0)
    for label in range(5):
        expected = of_label(first, label) if label < 4 else of_label(last, 0)
        assert_close(of_label(many, label), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("text", ["...", " ", "\u200b"])
def test_a_name_without_a_token_is_refused(text):
    with pytest.raises(QueryError, match="has nothing that the teacher could read"):
        make_captions(["cat", text], bert_tokenizer(), 24)


def test_tasks_hold_all_names():
    texts = ["cat", "dog", "a" * 30, "owl"]
    assert make_tasks(texts, clip_tokenizer(), 24) == [
        ("Detect cat, dog.", range(2)),
        (f"Detect {'a' * 30}.", range(2, 3)),
        ("Detect owl.", range(3, 4)),
    ]


def test_names_in_several_tasks_are_all_found(teachers):
    names = ("owl", "cat", "dog", "fox", "bee", "ant")
    (found,) = teachers["omdet-turbo"].find(PICTURES[:1], [names], 0.0)
    assert set(found.labels.tolist()) == set(range(6))


# --- A set made with one, and what is refused ----------------------------------------------------------------------


@pytest.mark.parametrize("kind", SAVE)
def test_a_set_is_made_with_each_of_them(teachers, tmp_path, kind):
    for i, picture in enumerate(PICTURES):
        picture.save(tmp_path / f"{i}.png")
    space = LabelSpace(label_names(["cat", "dog, hound"]))
    options = LabelOptions(0.0, 0.0, batch_size=2)
    label_pictures([tmp_path / f"{i}.png" for i in range(3)], tmp_path / "l.json", teachers[kind], space, options)
    made = json.loads((tmp_path / "l.json").read_text())
    assert len(made["images"]) == 3 and {a["category_id"] for a in made["annotations"]} == {1, 2}
    assert made["info"]["teacher"]["kind"] == kind
    for a in made["annotations"]:
        image = made["images"][a["image_id"] - 1]
        x, y, w, h = a["bbox"]
        assert min(x, y) >= 0 and min(w, h) > 0 and x + w <= image["width"] + 0.01 and y + h <= image["height"] + 0.01


def test_weights_that_are_no_numbers_are_found_out(folders, tmp_path):
    folder = shutil.copytree(folders["sam3"], tmp_path / "sam3")
    weights = load_file(folder / "model.safetensors")
    weights["text_projection.weight"][:] = float("nan")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    PICTURES[0].save(tmp_path / "0.png")
    with pytest.raises(DataError, match=r"0\.png: the teacher sam3 gave a score of nan"):
        label_pictures(
            [tmp_path / "0.png"], tmp_path / "l.json", load_teacher(folder), LabelSpace(label_names(["cat"]))
        )


def drop_weights(folder):
    weights = load_file(folder / "model.safetensors")
    save_file(
        {k: v for k, v in weights.items() if "text_projection" not in k}, folder / "model.safetensors", {"format": "pt"}
    )


@pytest.mark.parametrize(
    "harm, said",
    [
        (drop_weights, r"weights do not fit the model; missing or of another shape: .*text_projection"),
        (lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"), "no .safetensors weights"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"half"), "transformers cannot load this model"),
        (lambda folder: (folder / "tokenizer.json").write_text("{"), "transformers cannot load this model"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json: cannot be read as JSON"),
        (lambda folder: (folder / "config.json").write_text('{"model_type": "bert"}'), "bert"),
    ],
)
def test_a_folder_that_is_not_whole_is_refused(folders, tmp_path, harm, said):
    folder = shutil.copytree(folders["grounding-dino"], tmp_path / "teacher")
    harm(folder)
    with pytest.raises(CheckpointError, match=said) as refused:
        load_teacher(folder, device="cpu")
    assert "\n" not in str(refused.value)


def test_a_model_of_ours_is_a_teacher_too(model_file):
    teacher = load_teacher(model_file, device="cpu", image_size=128)
    assert isinstance(teacher, DetectorTeacher) and teacher.identity["image_size"] == 128


def test_a_model_of_the_owl_family_is_a_teacher_too(tmp_path):
    save_owl(tmp_path / "owl", "owlv2")
    save_clip_tokenizer(tmp_path / "owl")
    PICTURES[0].save(tmp_path / "0.png")
    teacher = load_teacher(tmp_path / "owl", device="cpu")
    label_pictures(
        [tmp_path / "0.png"], tmp_path / "l.json", teacher, LabelSpace(label_names(["cat", "dog"])), LabelOptions(0, 0)
    )
    made = json.loads((tmp_path / "l.json").read_text())
    found = Detector.from_pretrained(tmp_path / "owl").detect(PICTURES[0], ["cat", "dog"], threshold=0)
    rows = [(a["category_id"] - 1, a["score"]) for a in made["annotations"]]
    assert rows == [(one.query, pytest.approx(one.score, abs=1e-6)) for one in found] and len(rows) > 2
    known = {"name", "weights", "dtype", "image_size", "nms_iou", "rivals", "box_voting", "calibration"}
    assert set(made["info"]["teacher"]) == known
