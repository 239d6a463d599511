"""Models in a folder and on the hub: written for strangers, and read back the same."""

import json
import socket
from dataclasses import replace
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
from conftest import TINY, make_tiny_model
from fake_hub import FakeHub, serving
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file

from owl_swin.cli.main import main
from owl_swin.detector import Detector
from owl_swin.errors import CheckpointError, ConfigError, OwlSwinError
from owl_swin.models.network import Pretrained
from owl_swin.publishing import FILES, MARK, markdown_table, model_card
from owl_swin.training.initial import load_init

CARD = {
    "name": "Käfer | finder",
    "description": ["Finds beetles."],
    "data": ["Boxes: 3 pictures."],
    "limits": ["Small ones are missed."],
    "licence": ["Apache-2.0"],
    "results": [{"what": "beetles: AP50", "value": "9.6 (8.1 to 10.6)", "command": "owl-swin eval detect"}],
}


@pytest.fixture(scope="module")
def beetles():
    return Detector(make_tiny_model(), card=CARD, device="cpu")


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with serving(FakeHub(folder=tmp_path / "hub"), monkeypatch, tmp_path / "cache") as hub:
        yield hub


def same(detector, other, picture):
    assert detector.fingerprint == other.fingerprint and detector.card == other.card
    assert detector.detect(picture, ["a", "b"], threshold=0) == other.detect(picture, ["a", "b"], threshold=0)


def test_a_folder_gives_the_same_model_back(beetles, picture, tmp_path):
    folder = beetles.save_pretrained(tmp_path / "new" / "beetles")
    assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)
    same(beetles, Detector.from_pretrained(folder, device="cpu"), picture)


def test_any_reader_of_safetensors_can_read_the_weights(beetles, tmp_path):
    beetles.save_pretrained(tmp_path)
    tensors, own = load_file(tmp_path / "model.safetensors"), beetles.model.state_dict()
    assert tensors.keys() == own.keys() and all(torch.equal(tensors[key], own[key]) for key in own)
    settings = json.loads((tmp_path / "config.json").read_text())
    assert settings["model_type"] == "owl_swin" and settings["config"]["image"]["embed_dim"] == TINY.image.embed_dim


def test_weights_that_another_program_wrote_again_are_read_by_the_settings_beside_them(beetles, picture, tmp_path):
    beetles.save_pretrained(tmp_path)
    save_file(load_file(tmp_path / "model.safetensors"), tmp_path / "model.safetensors", {"format": "pt"})
    same(beetles, Detector.from_pretrained(tmp_path, device="cpu"), picture)
    (tmp_path / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"holds no owl_swin model .format 'pt', expected"):
        Detector.from_pretrained(tmp_path)


def test_the_size_of_pictures_is_kept(beetles, picture, tmp_path):
    larger = beetles.with_image_size(160)
    larger.save_pretrained(tmp_path)
    assert Detector.from_pretrained(tmp_path).image_size == 160 and beetles.model.config.image_size == 96
    same(larger, Detector.from_pretrained(tmp_path, device="cpu"), picture)


def test_int8_is_smaller_and_nearly_the_same(beetles, picture, tmp_path):
    sizes = []
    for int8 in (False, True):
        beetles.save_pretrained(tmp_path, int8=int8)
        sizes.append((tmp_path / "model.safetensors").stat().st_size)
    assert sizes[1] < 0.6 * sizes[0]
    exact, rounded = (one.encode_queries(["a"]).query_embeds for one in (beetles, Detector.from_pretrained(tmp_path)))
    assert 0.99 < (exact * rounded.cpu()).sum() < 1.0001


def test_the_card_has_what_the_hub_asks_for_and_our_table(beetles, tmp_path):
    text = (beetles.save_pretrained(tmp_path) / "README.md").read_text(encoding="utf-8")
    data = ModelCard(text).data
    assert (data.pipeline_tag, data.library_name, data.license) == (
        "zero-shot-object-detection",
        "owl_swin",
        "apache-2.0",
    )
    assert "# Käfer | finder" in text and "## Limits\n\nSmall ones are missed." in text
    assert markdown_table(CARD) in text and "beetles: AP50 | 9.6 (8.1 to 10.6)" in text


@pytest.mark.parametrize(
    "licence, given, expected",
    [
        (None, None, (None, None)),
        (None, "mit", ("mit", None)),
        (["Apache-2.0."], None, ("apache-2.0", None)),
        (["Apache-2.0 for what is ours; some data allow research use only."], None, ("other", "see-model-card")),
    ],
)
def test_a_licence_is_named_where_it_is_one(licence, given, expected):
    data = ModelCard(model_card({"licence": licence}, "a/x", licence=given)).data
    assert (data.license, data.get("license_name")) == expected


def test_a_bar_in_a_row_makes_no_column():
    row = {"what": "a | b", "value": 1, "command": "x | y"}
    assert markdown_table({"results": [row]}).splitlines()[-1] == r"| a \| b | 1 | `x \| y` |"


@pytest.mark.parametrize("results", [None, "none", 3, ["a"], [{"what": "a\nb"}]])
def test_a_card_that_somebody_made_by_hand_is_written_too(results, tmp_path):
    detector = Detector(make_tiny_model(), card={"name": "two\nlines", "results": results}, device="cpu")
    text = (detector.save_pretrained(tmp_path) / "README.md").read_text()
    assert "\n# two lines\n" in text and text.count("| a b |  | `` |") == (results == [{"what": "a\nb"}])
    assert Detector.from_pretrained(tmp_path).card == detector.card


def test_a_card_that_is_no_json_is_one_sentence(tmp_path):
    detector = Detector(make_tiny_model(), card={"name": "x", "made_of": object()}, device="cpu")
    with pytest.raises(CheckpointError, match="a model card holds texts, numbers, lists and tables of these"):
        detector.save_pretrained(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_card_of_somebody_is_kept(beetles, tmp_path, caplog):
    card = beetles.save_pretrained(tmp_path) / "README.md"
    card.write_text("old " + MARK)
    beetles.save_pretrained(tmp_path)
    assert "# Käfer" in card.read_text(encoding="utf-8") and caplog.messages == []
    card.write_text("mine")
    beetles.save_pretrained(tmp_path)
    assert card.read_text() == "mine" and "kept as it is" in caplog.messages[0]


def test_what_cannot_be_written_is_one_sentence(beetles, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OwlSwinError, match="cannot write in this folder"):
        beetles.save_pretrained(tmp_path / "file")
    other = SimpleNamespace(spec=replace(beetles.spec, family="owlvit"))
    with pytest.raises(CheckpointError, match="of the family 'owlvit' cannot be saved by owl_swin; it came from trans"):
        Detector(Pretrained(other, None, None)).save_pretrained(tmp_path / "copy")
    for licence in ("my own: ü", "apache 2.0\n", "-"):
        with pytest.raises(ConfigError, match="licence must be what the hub calls one, as"):
            beetles.save_pretrained(tmp_path / "copy", licence=licence)
    assert not (tmp_path / "copy").exists()


def test_the_hub_gives_back_what_was_sent(hub, beetles, picture):
    address = beetles.push_to_hub("me/beetles", token="hf_mine", commit_message="First beetles")
    assert address.endswith("/me/beetles") and hub.writers == {"Bearer hf_mine"} and hub.messages == ["First beetles"]
    same(beetles, Detector.from_pretrained("me/beetles", device="cpu"), picture)
    assert 'from_pretrained("me/beetles")' in (hub.repositories["me/beetles", "main"] / "README.md").read_text()


def test_a_branch_of_the_hub_is_its_own(hub, beetles, picture):
    other = Detector(make_tiny_model(seed=1), card=CARD, device="cpu")
    beetles.push_to_hub("me/beetles", token="hf_mine")
    other.push_to_hub("me/beetles", token="hf_mine", revision="second")
    same(other, Detector.from_pretrained("me/beetles", revision="second", token="hf_mine", device="cpu"), picture)
    same(beetles, Detector.from_pretrained("me/beetles", device="cpu"), picture)


def test_a_card_on_the_hub_that_somebody_wrote_is_kept(hub, beetles):
    beetles.push_to_hub("me/beetles", token="hf_mine")
    card = hub.repositories["me/beetles", "main"] / "README.md"
    card.write_text("mine")
    beetles.push_to_hub("me/beetles", token="hf_mine", int8=True)
    assert card.read_text() == "mine" and (card.parent / "model.safetensors").is_file()


@pytest.mark.parametrize(
    "status, code, sentence",
    [
        (401, "", "does not know who writes there; run `hf auth login`"),
        (403, "", "the token may not write there"),
        (404, "RepoNotFound", "no such user or organisation"),
        (400, "", "cannot be sent to the hub"),
    ],
)
def test_refusals_of_the_hub_are_one_sentence(hub, beetles, status, code, sentence):
    hub.refusals["me/beetles"] = status, code
    with pytest.raises(CheckpointError, match=f"^me/beetles: .*{sentence}") as refusal:
        beetles.push_to_hub("me/beetles", token="hf_mine")
    assert "\n" not in str(refusal.value) and "hf_mine" not in str(refusal.value)


def test_offline_nothing_is_sent(beetles, monkeypatch):
    with pytest.raises(CheckpointError, match="no possible name of a model on the hub"):
        beetles.push_to_hub("a/b/c", token="hf_mine")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match="HF_HUB_OFFLINE is set, so nothing can be sent"):
        beetles.push_to_hub("me/beetles", token="hf_mine")


def test_the_model_that_ships_asks_for_no_network(monkeypatch, picture, tmp_path):
    def refuse(*args, **settings):
        raise AssertionError("the network was asked for")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    detector = Detector.from_pretrained()
    detector.detect(picture, ["a dog"])
    folder = detector.save_pretrained(tmp_path / "user" / "model")
    monkeypatch.chdir(tmp_path)
    assert Detector.from_pretrained("user/model").fingerprint == detector.fingerprint
    assert "license: other" in (folder / "README.md").read_text(encoding="utf-8")


def test_a_revision_of_what_is_no_model_of_the_hub_is_refused(beetles, tmp_path):
    beetles.save_pretrained(tmp_path)
    for source in ("nano", tmp_path):
        with pytest.raises(CheckpointError, match="a revision is one of a model on the hub, got 'v2'"):
            Detector.from_pretrained(source, revision="v2")


def test_the_command_line_sends_a_model_and_reads_it_by_its_name(hub, beetles, tmp_path, monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.setattr("sys.argv", ["owl-swin", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main()
        return stop.value.code, *capsys.readouterr()

    beetles.save_pretrained(tmp_path / "run")
    monkeypatch.setenv("HF_TOKEN", "hf_mine")
    code, out, _ = run("push", tmp_path / "run", "me/beetles", "--licence", "mit", "--folder", tmp_path / "look")
    assert (code, out) == (0, f"{tmp_path / 'look'}\n") and hub.messages == []
    card = (tmp_path / "look" / "README.md").read_text(encoding="utf-8")
    assert "license: mit" in card and 'from_pretrained("me/beetles")' in card
    code, out, _ = run("push", tmp_path / "run", "me/beetles", "--message", "Beetles", "--int8")
    assert code == 0 and out.endswith("/me/beetles\n") and hub.messages == ["Beetles"]
    code, out, _ = run("info", "me/beetles")
    assert code == 0 and out.startswith("Käfer | finder  (") and "beetles: AP50" in out
    copy = tmp_path / "copy.safetensors"
    assert run("export", "me/beetles", "--to", copy)[0] == 0 and Detector.from_pretrained(copy).card == CARD
    code, _, err = run("push", tmp_path / "run", "beetles")
    assert (code, err) == (2, 'owl-swin: beetles: no possible name of a model on the hub; give one as "user/name"\n')
    code, _, err = run("info", "me/bugs")
    assert code == 2 and err.startswith("owl-swin: me/bugs: no such model on the hub, and no such folder here")


def test_training_starts_from_a_model_of_the_hub(hub, beetles):
    beetles.push_to_hub("me/beetles", token="hf_mine")
    model = make_tiny_model(seed=1)
    load_init(model, "me/beetles")
    assert Detector(model).fingerprint == beetles.fingerprint
