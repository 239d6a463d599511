"""Folders and hub names of OWL-ViT and OWLv2: what is read of them, and one sentence where that cannot be."""

import json
import re
import shutil
import socket

import pytest
import torch
from fake_hub import FakeHub, serving
from huggingface_hub import constants
from owl_checkpoints import save_clip_tokenizer, save_owl
from picture_files import noise

from owl_swin.detector import Detector
from owl_swin.errors import CheckpointError, QueryError
from owl_swin.families import load
from owl_swin.families.owl_swin import load_checkpoint
from owl_swin.families.owl_vit import BROAD_NAMES, BROAD_TEMPLATE, FolderTokenizer
from owl_swin.tokenizer import get_tokenizer

TEXTS = ["a red mug", "Émile's bicycle!", "24 fish & chips", "猫", "two   spaces", "don't"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("owl") / "tiny-owlvit"
    save_owl(folder, "owlvit")
    return folder


@pytest.fixture
def changed(folder, tmp_path):
    """A copy of the folder to be damaged."""
    return shutil.copytree(folder, tmp_path / "copy")


def test_the_vocabulary_of_a_folder_is_that_of_clip(tmp_path):
    """Whether in the two files that are published or in the one that transformers writes today."""
    import transformers

    save_clip_tokenizer(tmp_path)
    clip = get_tokenizer(16)
    assert clip.has_vocabulary(json.loads((tmp_path / "vocab.json").read_text(encoding="utf-8")))
    transformers.CLIPTokenizer.from_pretrained(tmp_path).save_pretrained(tmp_path / "new")
    assert (tmp_path / "new" / "tokenizer.json").is_file()
    for folder in (tmp_path, tmp_path / "new"):
        own = FolderTokenizer(folder, 16)
        assert own.vocab_size == 49408
        assert torch.equal(own(TEXTS), clip(TEXTS))
        long = ["word " * 40]
        assert torch.equal(own(long), clip(long))
        assert own([]).shape == (0, 16)


def test_the_tokenizer_of_the_folder_comes_first(tmp_path):
    words = ["a</w>", "dog</w>", "<|startoftext|>", "<|endoftext|>"]
    (tmp_path / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    save_owl(tmp_path, "owlv2", vocab_size=len(words))
    assert load(tmp_path).tokenize(["a a"])[0, :4].tolist() == [2, 0, 0, 3]


def test_a_model_is_called_by_its_folder_and_knows_what_it_is(folder):
    detector = Detector.from_pretrained(folder)
    spec = detector.spec
    assert detector.name == "tiny-owlvit"
    assert (spec.family, spec.image_size, spec.stride, spec.embed_dim) == ("owlvit", 64, 16, 24)
    assert (spec.has_objectness, spec.has_image_embed) == (False, True)


def test_what_looks_like_a_thing_to_a_model_without_objectness_is_what_a_broad_name_fits(folder):
    detector, picture = Detector.from_pretrained(folder), noise(50, 80)
    queries = detector.encode_queries([BROAD_TEMPLATE.format(name) for name in BROAD_NAMES])
    encoded = detector.encode_image(picture)
    expected = detector.score(encoded, queries).amax(-1)
    torch.testing.assert_close(encoded.objectness_logits(), expected, atol=1e-5, rtol=0)
    found = detector.detect(picture, threshold=0.0)
    assert found.names == ("object",)
    assert found.scores[0] == pytest.approx(float(expected.sigmoid().max()), abs=1e-5)


def test_colours_are_those_that_the_folder_names(changed):
    (changed / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0, 0, 0], "image_std": [1, 1, 0.5]}))
    preprocess = load(changed).preprocess
    white = torch.full((1, 3, 2, 2), 255, dtype=torch.uint8)
    assert preprocess.normalise(white)[0, :, 0, 0].tolist() == [1, 1, 2]


def test_an_older_file_may_hold_what_is_counted(changed):
    from safetensors.torch import load_file, save_file

    tensors = load_file(changed / "model.safetensors")
    tensors["owlvit.text_model.embeddings.position_ids"] = torch.arange(16)[None]
    tensors["box_bias"] = torch.zeros(16, 4)
    save_file(
        {name: t.half() if t.is_floating_point() else t for name, t in tensors.items()}, changed / "model.safetensors"
    )
    detector = Detector.from_pretrained(changed)
    assert detector.dtype == torch.float32
    assert len(detector.detect(noise(30, 30), ["a dog"], threshold=0.0)) > 0


def _pickled(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def _cut(folder):
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])


def _without_weights(folder):
    (folder / "model.safetensors").unlink()


def _whole_numbers(folder):
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    save_file({name: tensor.to(torch.int8) for name, tensor in tensors.items()}, folder / "model.safetensors")


def _settings(**changes):
    def change(folder):
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return change


@pytest.mark.parametrize(
    "damage, sentence",
    [
        (_pickled, r"pytorch_model\.bin.*python -c .*save_pretrained\('converted'\)"),
        (_without_weights, "holds no weights; a model's folder has model.safetensors"),
        (_cut, "not a whole safetensors file"),
        (_settings(vision_config={"patch_size": 16, "image_size": [64, 32]}), "a square has one side"),
        (_settings(vision_config={"hidden_size": 30}), "12 heads do not divide"),
        (_settings(text_config={"hidden_act": "relu"}), "hidden_act must be one of quick_gelu, gelu"),
        (_settings(projection_dim=99), "do not fit the model; .*of another shape"),
        (_settings(model_type="owlv2"), "do not fit the model; missing: "),
        (
            _settings(model_type="grounding-dino"),
            "of the kind 'grounding-dino'; .* models of owl_swin, owlvit and owlv2",
        ),
        (_settings(model_type=["owlvit"]), "of the kind .'owlvit'.; a Detector reads"),
        (_settings(vision_config={"num_hidden_layers": 10**7}), "10000000 layers of 768 are more than any model has"),
        (_settings(vision_config={"hidden_size": 12 * 10**12}), "are more than any model has"),
        (_settings(vision_config={"image_size": 10**12}), "its sizes make no model"),
        (_whole_numbers, "do not fit the model; of another type: "),
        (lambda folder: (folder / "config.json").write_text("{"), "not a JSON file"),
        (lambda folder: (folder / "config.json").write_text("[]"), "must be a JSON object"),
        (lambda folder: (folder / "vocab.json").write_text("{"), "its tokenizer cannot be read"),
        (lambda folder: (folder / "vocab.json").write_text('{"a": 0}'), "its tokenizer cannot be read"),
        (lambda folder: (folder / "tokenizer.json").write_text("{"), "its tokenizer cannot be read"),
        (lambda folder: (folder / "preprocessor_config.json").write_text('{"image_mean": 3}'), "cannot be read"),
        (
            lambda folder: (folder / "preprocessor_config.json").write_text('{"image_std": [1, NaN, 1]}'),
            "three numbers",
        ),
    ],
)
def test_what_cannot_be_read_is_one_sentence(changed, damage, sentence):
    damage(changed)
    with pytest.raises(CheckpointError, match=sentence) as caught:
        load(changed)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("file", ["", "config.json", "model.safetensors"])
def test_a_folder_is_known_by_its_files_and_by_its_place_at_home(file, folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder.parent))
    detector = Detector.from_pretrained(f"~/{folder.name}/{file}")
    assert (detector.name, detector.spec.family) == ("tiny-owlvit", "owlvit")
    with pytest.raises(CheckpointError, match=rf"tiny-owlvitt: no such model \(did you mean .*/{folder.name}\?\)"):
        load(f"~/{folder.name}t")


def test_a_folder_without_a_model_is_not_said_to_be_missing(folder, tmp_path):
    with pytest.raises(CheckpointError, match="holds no weights; a model's folder has"):
        load(tmp_path)
    shutil.copy(folder / "model.safetensors", tmp_path)
    with pytest.raises(CheckpointError, match=r"holds no owl_swin model .*no config.json beside it says"):
        load(tmp_path)


def test_what_reads_our_own_files_alone_says_what_it_was_given(folder):
    with pytest.raises(CheckpointError, match=r"holds no owl_swin model .*; it is of the kind 'owlvit'"):
        load_checkpoint(folder)


def test_a_model_of_another_vocabulary_is_not_read_with_that_of_clip(tmp_path):
    save_owl(tmp_path, "owlvit", vocab_size=100)
    with pytest.raises(CheckpointError, match="knows 100 tokens, but CLIP's tokenizer has 49408"):
        load(tmp_path)


def test_pictures_are_classified_as_transformers_does_where_that_was_trained(folder, tmp_path):
    import transformers

    picture, names = noise(40, 70), ["a dog", "a red mug", "a bicycle"]
    detector = Detector.from_pretrained(folder)
    theirs = transformers.OwlViTModel.from_pretrained(folder).eval()
    images = transformers.OwlViTImageProcessor(size={"height": 64, "width": 64})
    with torch.no_grad():
        outputs = theirs(
            input_ids=get_tokenizer(16)(names), pixel_values=images(picture, return_tensors="pt").pixel_values
        )
    found = detector.classify(picture, names, templates=["{}"])
    torch.testing.assert_close(found.probabilities, outputs.logits_per_image[0].softmax(-1), atol=1e-4, rtol=0)

    save_owl(tmp_path, "owlv2")
    with pytest.raises(QueryError, match="was never trained to compare whole pictures with texts"):
        Detector.from_pretrained(tmp_path).classify(picture, names)


# --- The hub -------------------------------------------------------------------------------------------------------


def test_a_checkpoint_of_the_hub_is_called_by_its_name_and_kept(folder, monkeypatch, tmp_path):
    with serving(FakeHub({("google/owl", "main"): folder}), monkeypatch, tmp_path / "cache"):
        detector = Detector.from_pretrained("google/owl")
        assert detector.name == "google/owl"
        assert detector.fingerprint == Detector.from_pretrained(folder).fingerprint
        with pytest.raises(CheckpointError, match="google/owls: no such model on the hub, and no such folder here"):
            Detector.from_pretrained("google/owls")
        with pytest.raises(
            CheckpointError, match=r"no such model.*\(did you mean google/owlv2-base-patch16-ensemble\?\)"
        ):
            Detector.from_pretrained("google/owl2-base-patch16-ensembel")
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        assert Detector.from_pretrained("google/owl").name == "google/owl"
        with pytest.raises(CheckpointError, match=r"HF_HUB_OFFLINE is set.*a folder that holds the model can be given"):
            Detector.from_pretrained("google/other")


def test_the_weights_of_another_kind_are_not_fetched(changed, monkeypatch, tmp_path):
    _settings(model_type="llama")(changed)
    hub = FakeHub({("some/llama", "main"): changed}, broken={"model.safetensors"})
    with serving(hub, monkeypatch, tmp_path / "cache"), pytest.raises(CheckpointError, match=r"some/llama: .*'llama'"):
        load("some/llama")


def test_a_download_that_was_cut_off_is_not_taken_for_the_model(changed, monkeypatch, tmp_path):
    _cut(changed)
    hub = serving(FakeHub({("google/owl", "main"): changed}), monkeypatch, tmp_path / "cache")
    with hub, pytest.raises(CheckpointError, match="not a whole safetensors file"):
        load("google/owl")


def test_pickled_weights_are_converted_by_the_command_that_the_refusal_names(folder, changed, monkeypatch, tmp_path):
    from safetensors.torch import load_file

    torch.save(load_file(changed / "model.safetensors"), changed / "pytorch_model.bin")
    (changed / "model.safetensors").unlink()
    with pytest.raises(CheckpointError) as refused:
        load(changed)
    command = re.search(r'python -c "(.*)"', str(refused.value)).group(1)
    monkeypatch.chdir(tmp_path)
    exec(command, {})
    converted = Detector.from_pretrained("converted")
    assert converted.fingerprint == Detector.from_pretrained(folder).fingerprint


def test_the_model_that_ships_asks_nobody(monkeypatch):
    def refuse(*args, **settings):
        raise AssertionError("a network call")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    found = Detector.from_pretrained(image_size=64).detect(noise(40, 40), ["a dog"], threshold=0.0)
    assert len(found) > 0
