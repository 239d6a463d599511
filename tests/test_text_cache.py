"""Embeddings of long lists of texts on disk: the same to the bit, never of another model, and never in the way."""

import errno
import os
import time
from pathlib import Path

import pytest
import torch
from conftest import make_tiny_model
from processes import forked

from owl_swin import ConfigError, Detector
from owl_swin.families import load
from owl_swin.families.owl_swin import save_checkpoint
from owl_swin.text_cache import LEAST_TEXTS, VARIABLE, TextCache, computed_by, open_text_cache

NAMES = [f"a thing of kind {i}" for i in range(300)]
BY = ["weights", "cpu"]


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "texts"


@pytest.fixture
def fresh(model_file, folder):
    """A detector as a new process has it."""

    def make(**settings):
        return Detector.from_pretrained(model_file, **{"device": "cpu", "text_cache": folder, **settings})

    return make


def embeds(detector, names=NAMES):
    return detector.encode_queries(names).query_embeds


def forbid(detector):
    """From here on the text encoder fails."""

    def encode_text(ids):
        raise AssertionError("texts are encoded again")

    detector.model.encode_text = encode_text
    return detector


def files(folder):
    return sorted(path for path in folder.iterdir()) if folder.exists() else []


def test_a_new_process_reads_what_another_has_encoded_and_it_is_the_same_to_the_bit(fresh, folder):
    plain, cached = fresh(text_cache=False), fresh()
    without = embeds(plain)
    assert not files(folder)
    first = embeds(cached)
    assert len(files(folder)) == 2, "one for each batch that goes through the encoder"
    read = embeds(forbid(fresh()))
    assert torch.equal(without, first) and torch.equal(without, read)
    assert read.dtype == without.dtype and not read.is_inference()
    # Order and number decide what is computed together, so another list is another question.
    others = [NAMES[::-1], NAMES[:299], [*NAMES[:299], "a hat"], [name.upper() + "!" for name in NAMES]]
    for names in others:
        assert torch.equal(embeds(cached, names), embeds(plain, names))
    # The first batch of two of these is the one that is known.
    assert len(files(folder)) == 2 + 2 + 1 + 1 + 2


def test_short_lists_are_not_kept(fresh, folder):
    detector = fresh()
    embeds(detector, NAMES[: LEAST_TEXTS - 1])
    assert not files(folder)
    embeds(detector, NAMES[:LEAST_TEXTS])
    assert len(files(folder)) == 1


def test_nothing_is_taken_for_what_it_is_not(fresh, folder, tmp_path, monkeypatch):
    detector = fresh()
    embeds(detector)
    save_checkpoint(tmp_path / "other.safetensors", make_tiny_model(seed=1), {})
    expected = Detector.from_pretrained(tmp_path / "other.safetensors", device="cpu", text_cache=False)
    other = Detector.from_pretrained(tmp_path / "other.safetensors", device="cpu", text_cache=folder)
    assert torch.equal(embeds(other), embeds(expected)) and len(files(folder)) == 4
    assert torch.equal(embeds(fresh(dtype="bfloat16")), embeds(fresh(dtype="bfloat16", text_cache=False)))
    assert len(files(folder)) == 6
    for name, value in {
        "torch.get_num_threads": lambda: 77,
        "torch.__version__": "2.0.0",
        "torch.backends.cpu.get_cpu_capability": lambda: "none",
    }.items():
        with monkeypatch.context() as patch:
            patch.setattr(name, value)
            from owl_swin.text_cache import _processor

            _processor.cache_clear()
            before = len(files(folder))
            embeds(detector)
            assert len(files(folder)) == before + 2, name
            _processor.cache_clear()
    embeds(forbid(detector))
    assert computed_by(torch.device("cpu")) == computed_by(torch.device("cpu"))


def test_weights_that_changed_are_neither_read_nor_kept(fresh, folder):
    known = embeds(fresh())
    changed = fresh()
    _ = changed.fingerprint
    changed.model.text_encoder.tower.text_projection.mul_(-1)
    assert torch.equal(embeds(changed), -known)
    assert torch.equal(embeds(changed.to(torch.float32)), -known)
    rounded = fresh().to(torch.bfloat16)
    before = embeds(rounded)
    assert len(files(folder)) == 4
    back = rounded.to(torch.float32)
    assert not torch.equal(embeds(back), known) and not torch.equal(embeds(back), before)
    assert len(files(folder)) == 4
    # A network that the caller holds, and may train, has no cache.
    embeds(Detector(make_tiny_model(), device="cpu"))
    assert len(files(folder)) == 4
    assert torch.equal(embeds(forbid(fresh().with_image_size(64))), known)


@pytest.mark.parametrize("harm", ["cut", "empty", "noise", "flipped", "another's", "folder", "head only"])
def test_a_damaged_file_is_encoded_again_and_replaced(fresh, folder, harm):
    detector = fresh()
    known = embeds(detector)
    embeds(detector, [f"{name} once" for name in NAMES])
    first, second = [path for path in files(folder) if path.stat().st_size > 16_000]
    content = first.read_bytes()
    if harm == "folder":
        first.unlink()
        first.mkdir()
    else:
        flipped = bytearray(content)
        flipped[-5] ^= 1
        harmed = {
            "cut": content[:-7],
            "empty": b"",
            "noise": bytes(range(256)) * 4,
            "flipped": bytes(flipped),
            "another's": second.read_bytes(),
            "head only": content[:200],
        }
        first.write_bytes(harmed[harm])
    assert torch.equal(embeds(detector), known)
    if harm != "folder":
        assert torch.equal(embeds(forbid(detector)), known)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EIO, errno.EDQUOT])
def test_a_disk_that_takes_nothing_is_no_error(fresh, folder, monkeypatch, number):
    def fail(*_):
        raise OSError(number, os.strerror(number))

    known = embeds(fresh(text_cache=False), NAMES[:70])
    monkeypatch.setattr(os, "fsync", fail)
    assert torch.equal(embeds(fresh(), NAMES[:70]), known)
    assert not files(folder), "nothing half-written stays"


def test_a_place_that_is_no_folder_is_no_error(fresh, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "below", "/proc/nowhere", "a\0b"):
        assert embeds(fresh(text_cache=place), NAMES[:70]).shape == (70, 16)
    monkeypatch.delenv(VARIABLE)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)

    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    assert open_text_cache() is None


def test_where_the_cache_is(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    for value, place in {
        "": ".cache/owl_swin/texts",
        " ": ".cache/owl_swin/texts",
        str(tmp_path / "elsewhere"): "elsewhere",
        "~/mine": "mine",
    }.items():
        monkeypatch.setenv(VARIABLE, value)
        assert open_text_cache().folder == open_text_cache(True).folder == tmp_path / place
        assert open_text_cache(False) is None
        assert open_text_cache(str(tmp_path / "given")).folder == tmp_path / "given"
    for value in ("off", "OFF", "0", "no", "false"):
        monkeypatch.setenv(VARIABLE, value)
        assert open_text_cache() is None
    monkeypatch.delenv(VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert open_text_cache().folder == tmp_path / "xdg" / "owl_swin" / "texts"
    assert load("nano").text_cache.folder == tmp_path / "xdg" / "owl_swin" / "texts"
    with pytest.raises(ConfigError, match="text_cache must be a folder, or False for none, got 5"):
        open_text_cache(5)


def test_a_server_keeps_nothing_of_its_clients_on_disk(model_file, folder, monkeypatch):
    from owl_swin.server.cluster import Recipe

    monkeypatch.setenv(VARIABLE, str(folder))
    embeds(Recipe(str(model_file), "cpu")._detector("cpu"))
    assert not files(folder)


def ids(i, n=4):
    return torch.full((n, 3), i)


def ask(cache, i, n=4):
    """One batch whose embeddings are its number, 64 bytes; and whether they were computed."""
    computed = []

    def encode(batch):
        computed.append(batch)
        return batch[:, :1].float().expand(-1, 4).clone()

    (answer,) = cache.embeddings([ids(i, n)], BY, encode)
    assert torch.equal(answer, torch.full((n, 4), float(i)))
    return bool(computed)


def test_what_was_not_used_for_the_longest_goes_first_and_files_of_others_stay(folder):
    folder.mkdir()
    foreign = [folder / "model.safetensors", folder / f"{'g' * 64}.safetensors", folder / ".0123456789ab.part"]
    for path in foreign:
        path.write_bytes(bytes(10_000))
    dead = folder / ".ba9876543210.part"
    dead.write_bytes(bytes(10_000))
    os.utime(dead, (1, 1))
    cache = TextCache(folder, max_bytes=1200)
    assert [ask(cache, i) for i in range(3)] == [True] * 3
    for path in files(folder):
        if path not in foreign:
            os.utime(path, (time.time() - 99, time.time() - 99))
    assert not dead.exists() and not ask(cache, 0)
    assert ask(cache, 3)
    while_full = [path for path in files(folder) if path not in foreign]
    assert sum(path.stat().st_size for path in while_full) <= 1200 + 64 + 400
    for i in range(4, 9):
        ask(cache, i)
        assert not ask(cache, 0), "what is used stays"
    assert all(path.exists() for path in foreign)
    assert len(files(folder)) - len(foreign) < 8


def test_a_list_that_does_not_fit_does_not_push_itself_out(folder):
    cache, computed = TextCache(folder, max_bytes=2000), []

    def encode(batch):
        computed.append(int(batch[0, 0]))
        return batch[:, :1].float().expand(-1, 64).clone()  # 256 bytes for each text

    batches = [ids(i, 2) for i in range(10)]
    for _ in range(2):
        answers = list(cache.embeddings(batches, BY, encode))
        assert [int(one[0, 0]) for one in answers] == list(range(10))
    assert len(computed) < 20 and computed[:10] == list(range(10))
    assert 0 not in computed[10:] and 9 in computed[10:]


def ask_often(folder, seed):
    cache = TextCache(folder, max_bytes=1500)
    for i in range(20):
        ask(cache, (i * seed) % 11)


def test_what_another_process_removes_while_it_is_opened_is_computed_anew(folder, monkeypatch):
    cache = TextCache(folder)
    assert ask(cache, 1) and not ask(cache, 1)

    def gone(path, *_):  # what PyTorch raises, which opens the file after safetensors did
        raise RuntimeError(f"unable to open file <{path}> in read-only mode: No such file or directory (2)")

    with monkeypatch.context() as patched:
        patched.setattr("owl_swin.files.safe_open", gone)
        assert ask(cache, 1)
    assert not ask(cache, 1)


def test_processes_share_a_folder_that_is_too_small_for_them(folder):
    children = [forked.Process(target=ask_often, args=(folder, seed)) for seed in (1, 3)]
    for child in children:
        child.start()
    ask_often(folder, 5)
    for child in children:
        child.join()
        assert child.exitcode == 0
    assert not [path for path in files(folder) if path.suffix == ".part"]
    assert sum(path.stat().st_size for path in files(folder)) < 4000
