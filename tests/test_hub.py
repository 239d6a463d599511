"""Models by their names on the hub: fetched whole, or refused with one sentence."""

import re
import socket

import huggingface_hub
import pytest
import torch
from fake_hub import FakeHub, serving
from safetensors.torch import save_file

from owl_swin.errors import CheckpointError
from owl_swin.families.hub import fetch_snapshot, is_hub_name, near_published
from owl_swin.families.weights import read_folder


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with serving(FakeHub(), monkeypatch, tmp_path / "cache") as hub:
        yield hub


@pytest.fixture
def published(hub, tmp_path):
    """Writes files of a model to the hub."""

    def publish(name="someone/model", revision="main", files=("config.json", "model.safetensors"), text="{}"):
        folder = tmp_path / "hub" / name.replace("/", "-") / revision
        folder.mkdir(parents=True)
        for file in files:
            (folder / file).write_text(text)
        hub.repositories[name, revision] = folder

    return publish


def refuse_sockets(monkeypatch):
    def refuse(*args, **settings):
        raise OSError("no network in this test")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.mark.parametrize(
    "source, expected",
    [
        ("google/owlv2-base-patch16-ensemble", True),
        ("a/b", True),
        ("nano", False),
        ("", False),
        ("a/b/c", False),
        ("./model", False),
        ("../model", False),
        ("~/model", False),
        ("/model", False),
        ("runs/model.safetensors", False),
        ("runs/ü", False),
        ("a/\0", False),
        ("a/" + "b" * 300, False),
    ],
)
def test_which_names_are_of_the_hub(source, expected):
    assert is_hub_name(source) is expected


def test_a_folder_of_that_name_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert is_hub_name("runs/model")
    (tmp_path / "runs" / "model").mkdir(parents=True)
    assert not is_hub_name("runs/model")


def test_a_name_that_begins_as_a_folder_here_is_a_path_and_the_hub_is_not_asked(hub, published, tmp_path, monkeypatch):
    published(name="models/tiny", text="of the hub")
    published(name="models/other", text="of the hub")
    (tmp_path / "models" / "tinny").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as offline:
        refuse_sockets(offline)
        said = (
            r"no such file or folder in the folder models here \(did you mean the folder models/tinny\?\); .*hf downl"
        )
        refuses(said, "models/tiny")
        refuses("in the folder models here; for a model of this name on the hub", "models/other")
    # What can only be meant of the hub, and what came from it before.
    assert (fetch_snapshot("models/tiny", revision="main") / "config.json").read_text() == "of the hub"
    assert (fetch_snapshot("models/tiny") / "config.json").read_text() == "of the hub"


def test_a_model_may_be_refused_before_its_weights_are_fetched(hub, published):
    def refuse(folder):
        seen.extend(path.name for path in folder.iterdir())
        raise CheckpointError("of another kind", of="someone/model")

    published()
    seen = []
    refuses("of another kind", "someone/model", check=refuse)
    assert seen == ["config.json"]
    assert "model.safetensors" in {path.name for path in fetch_snapshot("someone/model", check=seen.append).iterdir()}


@pytest.mark.parametrize(
    "text, meant",
    [
        ("https://huggingface.co/google/owlvit-base-patch32/tree/main", "google/owlvit-base-patch32"),
        ("hf.co/me/beetles", "me/beetles"),
        ("owlv2-base-patch16-ensemble", "google/owlv2-base-patch16-ensemble"),
        ("owlv2-base-patch16-ensembel", "google/owlv2-base-patch16-ensemble"),
        ("google/owlv2-base-patch16-ensembel", "google/owlv2-base-patch16-ensemble"),
        ("google/owlv2-base-patch16-ensemble", None),
        ("runs/beetles", None),
        ("", None),
    ],
)
def test_what_a_name_may_mean(text, meant):
    assert near_published(text) == meant


def test_a_model_is_fetched_without_what_is_not_read(hub, published):
    published(files=("config.json", "model.safetensors", "merges.txt", "pytorch_model.bin", "README.md"))
    folder = fetch_snapshot("someone/model")
    assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors", "merges.txt"}


def test_revision_and_token_are_passed_on(hub, published):
    published(text="old")
    published(revision="v2", text="new")
    assert (fetch_snapshot("someone/model", revision="v2", token="hf_secret") / "config.json").read_text() == "new"
    assert hub.tokens == {"Bearer hf_secret"}


def test_what_was_fetched_is_there_without_a_network(hub, published, monkeypatch):
    published()
    folder = fetch_snapshot("someone/model")
    refuse_sockets(monkeypatch)
    huggingface_hub.close_session()
    assert fetch_snapshot("someone/model") == folder
    refuses("not wholly downloaded before and the hub cannot be reached .no network in this test.", "someone/other")


@pytest.mark.parametrize(
    "status, code, sentence",
    [
        (403, "GatedRepo", "accept the terms at http://127.0.0.1:[0-9]*/someone/gated, then run `hf auth login`"),
        (401, "GatedRepo", "accept the terms at"),
        (404, "RepoNotFound", r"no such model on the hub, and no such folder here; where it is private"),
        (401, "", "(no such model on the hub|the hub refuses the token)"),
    ],
)
def test_refusals_of_the_hub_are_one_sentence(hub, status, code, sentence):
    hub.refusals["someone/gated"] = status, code
    refuses(sentence, "someone/gated", token="hf_secret")


def refuses(sentence, name, **settings):
    with pytest.raises(CheckpointError, match=sentence) as refusal:
        fetch_snapshot(name, **settings)
    text = str(refusal.value)
    assert text.startswith(f"{name}: ") and "\n" not in text and "hf_secret" not in text


def test_other_failures_are_one_sentence(hub, published, tmp_path, monkeypatch):
    published()
    published(name="someone/empty", files=("config.json",))
    refuses("holds no weights; a model has model.safetensors", "someone/empty")
    refuses("has no revision 'v9'", "someone/model", revision="v9")
    refuses("holds no tokenizer.json", "someone/model", required=("config.json", "tokenizer.json"))
    refuses("no possible name", "some--one/mo..del")
    (tmp_path / "someone").mkdir()
    (tmp_path / "someone" / "mordel").mkdir()
    monkeypatch.chdir(tmp_path)
    refuses("did you mean the folder someone/mordel", "someone/mordal")


def test_a_download_that_was_broken_off_is_said_when_offline(hub, published, monkeypatch):
    published(files=("config.json", "model.safetensors"))
    hub.broken.add("model.safetensors")
    refuses("the hub cannot be reached|cannot be fetched", "someone/model")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    refuses("only a part of the model was downloaded", "someone/model")
    refuses("was not downloaded before and HF_HUB_OFFLINE is set", "someone/other")


@pytest.mark.parametrize(
    "error, sentence",
    [
        (
            OSError(28, "No space left on device", "/cache/blob"),
            "cannot be stored (/cache/blob: No space left on device)",
        ),
        (PermissionError(13, "Permission denied"), "cannot be stored (Permission denied); HF_HOME says where"),
        (ConnectionResetError("reset\nby peer"), "cannot be fetched from the hub (reset); a folder that holds"),
    ],
)
def test_a_download_that_the_disk_or_the_line_ends_is_one_sentence(error, sentence, monkeypatch):
    def fail(*args, **settings):
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    refuses(re.escape(sentence), "someone/model")


def test_a_model_with_pickled_weights_alone_names_the_command_that_converts(hub, published):
    published(files=("config.json", "pytorch_model.bin"))
    refuses(r"pickled \(pytorch_model.bin\).*python -c .*from_pretrained\('someone/model'\)", "someone/model")


def test_once_downloaded_no_network_is_needed(hub, published, monkeypatch):
    published()
    folder = fetch_snapshot("someone/model")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert fetch_snapshot("someone/model") == folder


PARTS = {"model-1.safetensors": {"a": torch.ones(2)}, "model-2.safetensors": {"b": torch.zeros(3)}}


def test_weights_in_parts_are_read_together(tmp_path):
    places = ", ".join(f'"{key}": "{part}"' for part, tensors in PARTS.items() for key in tensors)
    (tmp_path / "model.safetensors.index.json").write_text(f'{{"weight_map": {{{places}}}}}')
    for part, tensors in PARTS.items():
        with pytest.raises(CheckpointError, match="parts of this model are not there, as after a broken download: mod"):
            read_folder(tmp_path)
        save_file(tensors, tmp_path / part)
    assert {key: value.tolist() for key, value in read_folder(tmp_path)[0].items()} == {"a": [1, 1], "b": [0, 0, 0]}


@pytest.mark.parametrize(
    "files, sentence",
    [
        ({}, "holds no weights; a model's folder has model.safetensors"),
        ({"pytorch_model.bin": "x"}, r"its weights are pickled \(pytorch_model.bin\).*python -c .*save_pretrained"),
        ({"model.safetensors": "version https://git-lfs.github.com/spec/v1\n"}, "run `git lfs pull`"),
        ({"model.safetensors": "x"}, "not a whole safetensors file"),
        ({"model.safetensors.index.json": "{"}, "the list of the parts of a model cannot"),
        ({"model.safetensors.index.json": '{"weight_map": {"a": "../b.safetensors"}}'}, "1 of the 1 parts"),
    ],
)
def test_folders_without_whole_weights_are_refused(files, sentence, tmp_path):
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(CheckpointError, match=sentence):
        read_folder(tmp_path)
