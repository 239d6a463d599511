"""Model files: what is written comes back, and nothing else is taken for a model."""

import json
import pickle
import re
from dataclasses import replace

import pytest
import torch
from conftest import TINY
from safetensors.torch import save_file
from torch.testing import assert_close

from owl_swin.config import TextConfig
from owl_swin.errors import CheckpointError
from owl_swin.families.owl_swin import checkpoint_path, load_checkpoint, save_checkpoint
from owl_swin.families.weights import ROW_SCALE, dequantise, quantise_rows, read_tensors
from owl_swin.models.owl_swin import OwlSwin

QUANTISED = "text_encoder.tower.token_embedding.weight"
PLAIN = "image_projection.weight"


@pytest.fixture
def stored(model_file):
    """Tensors and metadata of a good file, to be changed by a test."""
    return read_tensors(model_file)


@pytest.fixture
def write(tmp_path):
    def write(tensors, metadata):
        path = tmp_path / "changed.safetensors"
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, path, metadata=metadata)
        return path

    return write


# --- There and back ------------------------------------------------------------------------------------------------


def test_a_model_comes_back_with_its_card_and_config(tiny_model, tmp_path):
    path = tmp_path / "model.safetensors"
    save_checkpoint(path, tiny_model, {"name": "Eule 🦉", "results": [1]})
    model, card = load_checkpoint(path)
    assert card == {"name": "Eule 🦉", "results": [1]}
    assert model.config == TINY
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    before, after = tiny_model.state_dict(), model.state_dict()
    assert before.keys() == after.keys()
    for key in before:
        assert after[key].dtype == torch.float32
        assert (after[key] - before[key]).abs().max() <= before[key].abs().max() / 250, key


def test_without_int8_only_half_precision_is_lost(tiny_model, tmp_path):
    save_checkpoint(tmp_path / "model.safetensors", tiny_model, {}, int8=False)
    model, _ = load_checkpoint(tmp_path / "model.safetensors")
    for key, tensor in tiny_model.state_dict().items():
        assert torch.equal(model.state_dict()[key], tensor.half().float())


def test_a_loaded_model_is_complete(model_file):
    model, _ = load_checkpoint(model_file)
    ids = torch.tensor([[49406, 2368, 49407] + [0] * 9])
    assert not any(tensor.is_meta for tensor in [*model.parameters(), *model.buffers()])
    assert model.encode_text(ids).isfinite().all()


def test_a_loaded_model_with_a_published_text_tower_has_the_mask_that_no_file_holds(tmp_path):
    config = replace(TINY, embed_dim=384, text=TextConfig(open_clip="PE-Core-S-16-384"))
    settings = {"text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}}
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("open_clip.get_model_config", lambda name: {"embed_dim": 384, **settings})
        model = OwlSwin(config)
        save_checkpoint(tmp_path / "published.safetensors", model, {})
        loaded, _ = load_checkpoint(tmp_path / "published.safetensors")
    assert torch.equal(loaded.text_encoder.tower.attn_mask, model.text_encoder.tower.attn_mask)


def test_saving_what_was_loaded_changes_nothing(model_file, tmp_path):
    model, card = load_checkpoint(model_file)
    save_checkpoint(tmp_path / "again.safetensors", model, card)
    tensors, metadata = read_tensors(tmp_path / "again.safetensors")
    first_tensors, first_metadata = read_tensors(model_file)
    assert metadata == first_metadata
    assert tensors.keys() == first_tensors.keys()
    assert all(torch.equal(tensors[key], first_tensors[key]) for key in tensors)


def test_a_folder_stands_for_the_model_in_it(tiny_model, tmp_path):
    save_checkpoint(tmp_path / "model.safetensors", tiny_model, {"name": "x"})
    assert load_checkpoint(tmp_path)[1] == {"name": "x"}
    assert checkpoint_path(str(tmp_path)) == tmp_path / "model.safetensors"


def test_large_matrices_are_stored_as_int8(stored):
    tensors, metadata = stored
    assert tensors[QUANTISED].dtype == torch.int8
    assert tensors[QUANTISED + ROW_SCALE].shape == (49408,)
    assert tensors[PLAIN].dtype == torch.float16
    assert json.loads(metadata["card"])["name"] == "tiny_for_tests"


@pytest.mark.parametrize("shape", [(3, 5), (4, 2, 3, 3), (1, 1)])
def test_quantised_rows_are_right_to_half_a_step(shape):
    torch.manual_seed(0)
    tensor = torch.randn(shape) * torch.tensor([1e-3, 1, 50, 7])[: shape[0]].view(-1, *[1] * (len(shape) - 1))
    values, scale = quantise_rows(tensor)
    assert values.dtype == torch.int8
    assert scale.shape == shape[:1]
    back = dequantise({"w": values, "w" + ROW_SCALE: scale}, "test")["w"]
    steps = (back - tensor).abs().flatten(1).amax(1) / scale.float()
    assert (steps <= 0.57).all()  # half a step, and what float16 loses of 127 steps


def test_a_row_of_zeros_stays_zero():
    values, scale = quantise_rows(torch.zeros(2, 3))
    assert_close(dequantise({"w": values, "w" + ROW_SCALE: scale}, "test")["w"], torch.zeros(2, 3))


# --- Writing -------------------------------------------------------------------------------------------------------


def test_a_write_that_fails_leaves_the_old_file_and_nothing_half_written(tiny_model, tmp_path, monkeypatch):
    def full_disk(tensors, path, metadata):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    path = tmp_path / "model.safetensors"
    path.write_bytes(b"old")
    monkeypatch.setattr("safetensors.torch.save_file", full_disk)
    with pytest.raises(CheckpointError, match=r"cannot write the model here .*No space left"):
        save_checkpoint(path, tiny_model, {})
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]
    assert path.read_bytes() == b"old"


@pytest.mark.parametrize("place", ["missing/model.safetensors", "file/model.safetensors", "folder"])
def test_a_place_that_cannot_be_written_is_named(tiny_model, tmp_path, place):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    with pytest.raises(CheckpointError, match=f"{place}: cannot write the model here"):
        save_checkpoint(tmp_path / place, tiny_model, {})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder"]


# --- What is no model ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["missing", "missing.safetensors", "nul\0", "x" * 5000])
def test_a_model_that_is_not_there_is_named_with_what_there_is(tmp_path, source):
    with pytest.raises(CheckpointError, match=r"no such model; give a \.safetensors file, a folder .* or nano"):
        load_checkpoint(tmp_path / source)


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="holds no weights"):
        load_checkpoint(tmp_path)


class Bomb:
    """Unpickling this would end the tests."""

    def __reduce__(self):
        return (pytest.exit, ("a pickle was run",))


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".pkl", ".ckpt"])
def test_pickled_weights_are_refused_by_name(tmp_path, suffix):
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(CheckpointError, match=r"pickled weights .* convert them to safetensors"):
        load_checkpoint(path)


def damaged(content: bytes) -> dict[str, bytes]:
    noise = torch.randint(0, 256, (5000,), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return {
        "empty": b"",
        "shorter than a header": content[:7],
        "cut in the header": content[:500],
        "cut in the weights": content[:-10],
        "with bytes to spare": content + b"x",
        "random": noise.numpy().tobytes(),
        "zeros": bytes(100),
        "huge header": b"\xff" * 100,
        "a pickle under another name": pickle.dumps(Bomb()),
    }


@pytest.mark.parametrize("kind", damaged(b""))
def test_a_damaged_file_is_refused(model_file, tmp_path, kind):
    path = tmp_path / "model.safetensors"
    path.write_bytes(damaged(model_file.read_bytes())[kind])
    with pytest.raises(CheckpointError, match=f"^{re.escape(str(path))}: not a whole safetensors file"):
        load_checkpoint(path)


@pytest.mark.parametrize("metadata", [None, {}, {"format": "pt"}, {"format": "owl_swin-2"}])
def test_safetensors_of_another_program_are_refused(write, metadata):
    path = write({"encoder.layer.0.weight": torch.zeros(2, 2)}, metadata)
    with pytest.raises(CheckpointError, match=r"holds no owl_swin model .* expected 'owl_swin-1'"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    "change, sentence",
    [
        (lambda t: t.pop(PLAIN), f"missing: {PLAIN}"),
        (lambda t: [t.pop(key) for key in list(t) if key.startswith("box_head")], "missing: .* and 3 more"),
        (lambda t: t.update(extra=torch.zeros(1)), "unexpected: extra"),
        (lambda t: t.update({PLAIN: torch.zeros(16, 31)}), f"of another shape: {PLAIN}"),
        (lambda t: t.update({PLAIN: torch.full((16, 32), float("nan"))}), f"not finite: {PLAIN}"),
        (lambda t: t.update({PLAIN: torch.full((16, 32), float("inf"))}), f"not finite: {PLAIN}"),
        (lambda t: t[QUANTISED + ROW_SCALE].fill_(float("nan")), f"not finite: {QUANTISED}"),
        (lambda t: t.pop(QUANTISED + ROW_SCALE), r"\[49408, 16\] has 0 row scales"),
        (lambda t: t.update({QUANTISED + ROW_SCALE: torch.ones(3)}), r"\[49408, 16\] has 3 row scales"),
    ],
)
def test_weights_that_do_not_fit_are_named(stored, write, change, sentence):
    tensors, metadata = stored
    change(tensors)
    path = write(tensors, metadata)
    with pytest.raises(CheckpointError, match=f"{re.escape(str(path))}: weights do not fit the model; .*{sentence}"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    "key, value, sentence",
    [
        ("config", None, "its configuration cannot be read"),
        ("config", "{", "its configuration cannot be read"),
        ("config", "[]", "must be a table"),
        ("config", '{"embed_dimm": 3}', "unknown key 'embed_dimm'; did you mean 'embed_dim'"),
        ("config", '{"embed_dim": "3"}', "'embed_dim' must be int"),
        ("config", '{"embed_dim": 0}', "embed_dim must be at least 1"),
        ("config", "{}", "weights do not fit the model"),  # the defaults are another model
        ("card", None, "its configuration cannot be read"),
        ("card", "{", "its configuration cannot be read"),
        ("card", "[]", "its model card must be a JSON object, got list"),
    ],
)
def test_wrong_metadata_is_named(stored, write, key, value, sentence):
    tensors, metadata = stored
    if value is None:
        del metadata[key]
    else:
        metadata[key] = value
    with pytest.raises(CheckpointError, match=f"changed.safetensors: .*{sentence}"):
        load_checkpoint(write(tensors, metadata))
