"""The choice of a model in the demo: what is offered, loaded and kept, and what becomes of what was asked before."""

import base64
import shlex
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
from conftest import TINY, make_tiny_model
from owl_checkpoints import save_owl
from picture_files import encode, noise

gr = pytest.importorskip("gradio")

from owl_swin import CheckpointError, Detector, QueryError  # noqa: E402
from owl_swin.demo import app, examples, inside, models, naming, showing, showing_layout, terms  # noqa: E402
from owl_swin.demo.asking import Question, scales  # noqa: E402
from owl_swin.demo.models import Models, listed  # noqa: E402
from owl_swin.demo.photos import take_photo  # noqa: E402
from owl_swin.demo.pieces import chips_piece  # noqa: E402
from owl_swin.demo.refusals import Refused  # noqa: E402
from owl_swin.demo.session import Session  # noqa: E402


@pytest.fixture(scope="module")
def other() -> Detector:
    return Detector(make_tiny_model(7, replace(TINY, name="other")), device="cpu")


@pytest.fixture
def choice(detector, other):
    """The tiny detector, another one, a third, and one that cannot be read."""
    loads = []

    def load(source: str) -> Detector:
        loads.append(source)
        if source == "broken":
            raise CheckpointError("is damaged", of=source)
        return other

    made = Models(detector, ["nano", "/models/other.safetensors", "third", "broken"], load)
    made.loads = loads
    return made


@pytest.fixture
def photo(picture):
    return take_photo(picture, "blocks.png")


OTHER = "/models/other.safetensors"


def test_a_folder_is_one_model_or_a_choice_of_those_in_it(tmp_path):
    for name in ("a.safetensors", "b.safetensors", "notes.txt", "theirs/config.json", "graph/spec.json", "no/x.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
    inside_ = [str(tmp_path / name) for name in ("a.safetensors", "b.safetensors", "graph", "theirs")]
    assert listed([tmp_path]) == inside_
    assert listed([tmp_path / "theirs", "nano", str(tmp_path), "nano"]) == [inside_[3], "nano", *inside_[:3]]
    assert listed([tmp_path / "no", tmp_path / "nowhere"]) == [str(tmp_path / "no"), str(tmp_path / "nowhere")]


def test_labels_are_short_and_tell_models_apart(detector, tmp_path):
    for name in ("a/model.safetensors", "b/model.safetensors", "c.safetensors"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    sources = [str(tmp_path / name) for name in ("a/model.safetensors", "b/model.safetensors", "c.safetensors")]
    assert Models(detector, [*sources, "google/owlvit-base-patch32"]).labels == (
        *sources[:2], "c.safetensors", "google/owlvit-base-patch32",
    )  # fmt: skip


def test_only_what_was_listed_is_loaded_and_one_beside_the_first_is_kept(choice, detector, other):
    assert choice.detector() is choice.detector("nano") is detector
    assert choice.detector(OTHER).fingerprint == choice.detector(OTHER).fingerprint == other.fingerprint
    choice.detector("third")
    choice.detector(OTHER)
    assert choice.loads == [OTHER, "third", OTHER]  # the one between took its place
    for label in ("/etc/passwd", "other", "google/owlvit-base-patch32"):
        with pytest.raises(Refused, match="choose one of nano"):
            choice.sizes(label)
    with pytest.raises(CheckpointError, match="is damaged"):
        choice.sizes("broken")
    assert choice.detector("third", "no such size").image_size == 96
    assert choice.source("third") == "third" and choice.source() == "nano"


def chosen_steps(choice, label: str, session: Session) -> list:
    """What the field and the words beside it become, step by step."""
    with gr.Blocks() as blocks:
        models.wire(models.build(choice), [])
    (event,) = [one for one in blocks.fns.values() if one.name == "on_choice"]
    return [(said, field) for said, field, _ in event.fn(label, session)]


def test_a_model_that_cannot_be_had_is_told_and_the_one_before_stays(choice):
    session = Session("")
    steps = chosen_steps(choice, "third", session)
    assert steps == [("Loading third …", gr.skip()), ("other · 96 px · cpu", "third")] and session.value == "third"
    with pytest.warns(UserWarning, match="is damaged"):
        steps = chosen_steps(choice, "broken", session)
    assert steps[-1] == ("other · 96 px · cpu", "third") and session.value == "third"
    chosen_steps(choice, "nano", session)
    assert session.value == ""


def test_a_link_chooses_a_model_that_is_on_offer_and_else_is_told_so(choice, detector):
    def follow(choice, label: str, again: bool = False):
        with gr.Blocks() as blocks:
            models.follow_link(models.build(choice), chips_piece())
        (event,) = [one for one in blocks.fns.values() if one.name == "on_link"]
        return event.fn(SimpleNamespace(model=label, again=again))

    assert follow(choice, OTHER) == OTHER and follow(choice, "") == gr.skip()
    assert follow(choice, "", again=True) == "nano"  # pasted into a window where another was chosen
    with pytest.warns(UserWarning, match="The link asks for &#x27;nowhere&#x27;, and here there is nano, "):
        assert follow(choice, "nowhere") == gr.skip()
    alone = Models(detector)
    assert follow(alone, alone.labels[0]) == gr.skip()
    with pytest.warns(UserWarning, match="here there is tiny_for_tests"):
        follow(alone, OTHER)


def test_another_model_is_asked_the_same_and_code_calls_it(choice, detector, other, photo):
    names = terms.with_names(detector, (), ["a cat", "a dog"])
    names = (replace(names[0], threshold=0.3, hidden=True), names[1])
    names = terms.with_example(detector, names, 1, examples.Example.of(photo, (10.0, 10.0, 50.0, 50.0), True))
    session, on = Session(naming.Named(Question(photo), names)), naming.Handlers(choice)
    on.ask(session, lambda named: named)
    assert session.value.asked.look.finder[0] == detector.fingerprint
    _, size, *_ = on.on_model(session, Session(OTHER))
    now = session.value
    assert now.asked.look.finder == (other.fingerprint, 96) and size["value"] == "normal (96 px)"
    assert [(t.name, t.threshold, t.hidden, len(t.examples)) for t in now.terms] == [
        ("a cat", 0.3, True, 0),
        ("a dog", None, False, 1),
    ]
    again = terms.with_example(other, terms.with_names(other, (), ["a dog"]), 0, now.terms[1].examples[0])
    found = naming.find(other, now, 0.02, 0.5)
    assert len(found) and found.scores.tolist() == pytest.approx(
        other.detect(now.asked.encoded, now.terms[0].embeds + again[0].embeds, threshold=[0.3, 0.02], nms_iou=0.5,
                     top_k=100).scores.tolist(), abs=1e-5,
    )  # fmt: skip
    session.change(lambda named: replace(named, terms=terms.with_names(other, (), ["a cat"])))
    on.ask(session, lambda named: named)
    _, _, files, *_ = on.on_view(session, 0.02, 0.5)
    copied = {one["label"]: one["copy"] for one in files["copies"]}
    assert f"Detector.from_pretrained({OTHER!r})" in copied["Python"]
    assert shlex.split(copied["command line"])[-2:] == ["--model", OTHER]
    assert on.on_model(session, Session(OTHER)) == (session, *[gr.skip()] * 4)  # nothing to do


@pytest.mark.parametrize("family", ["owlvit", "owlv2"])
def test_a_checkpoint_of_the_owl_family_is_chosen_loaded_and_asked(family, detector, photo, tmp_path):
    """As transformers writes it, from a folder of models that the starter of the demo named."""
    save_owl(tmp_path / family, family)
    choice, session = Models(detector, ["nano", *listed([tmp_path])]), Session("")
    steps = chosen_steps(choice, family, session)
    owl = Detector.from_pretrained(tmp_path / family, device="cpu")
    assert steps == [(f"Loading {family} …", gr.skip()), (models.about(owl), family)] and session.value == family
    named, on = (
        Session(naming.Named(Question(photo), terms.with_names(detector, (), ["a cat"]))),
        naming.Handlers(choice),
    )
    _, size, *_ = on.on_model(named, session)
    assert size["choices"] == list(scales(owl)) and size["value"] == "normal (64 px)"
    stage, _, files, *_ = on.on_view(named, 0.02, 0.5)
    expected = owl.detect(photo.open(), ["a cat"], threshold=0.02, nms_iou=0.5, top_k=100)
    assert [mark["score"] for mark in stage["boxes"]] == pytest.approx(expected.scores.tolist(), abs=1e-5)
    assert len(expected) and str(tmp_path / family) in files["copies"][0]["copy"]
    one = examples.Example.of(photo, (10.0, 10.0, 50.0, 50.0), True)
    shown = Session(examples.Shown(photo, None, (one,), Question(photo)))
    showing.Handlers(choice).on_model(shown, session)
    assert shown.value.target.done and shown.value.target.queries.fingerprint == owl.fingerprint
    with pytest.warns(UserWarning, match="no Swin Transformer that shows its windows"):
        inside.Handlers(choice).on_model(Session(inside.Looked(photo)), session)


def test_queries_of_a_file_stay_with_their_model_and_that_is_told(choice, detector, other, photo, tmp_path):
    content = detector.encode_queries(["a cat"]).to_bytes()
    named = naming.Named(Question(photo), terms.with_names(detector, (), ["a dog"]))
    session, on = (
        Session(replace(named, terms=terms.with_file(detector, named.terms, content))),
        naming.Handlers(choice),
    )
    with pytest.warns(UserWarning, match="“a cat” came from a file of queries"):
        on.on_model(session, Session("third"))
    assert [term.name for term in session.value.terms] == ["a dog"]
    with pytest.raises(QueryError, match="made by another model"):
        terms.with_file(other, session.value.terms, content)
    _, _, files, *_ = on.on_view(session, 0.02, 0.5)
    (saved,) = [base64.b64decode(file["base64"]) for file in files["files"] if file["label"] == "Query"]
    assert terms.with_file(other, (), saved)[0].name == "a dog"
    with pytest.raises(QueryError, match="made by another model"):
        detector.load_queries(saved)


def test_edits_stay_when_another_model_looks(choice, photo):
    on, session = naming.Handlers(choice), Session(naming.Named(Question(photo)))
    on.ask(session, lambda named: named)
    edits = session.value.asked.edits.put(None, naming_mark("a bird"), None)
    session.change(lambda named: replace(named, asked=replace(named.asked, edits=edits)))
    on.on_model(session, Session("third"))
    stage, *_ = on.on_view(session, 1.0, 0.5)
    assert [mark["label"] for mark in stage["boxes"]] == ["a bird"]


def naming_mark(name: str):
    from owl_swin.demo.edits import Mark

    return Mark(name, (1.0, 2.0, 30.0, 40.0), "h1")


def test_examples_are_shown_to_another_model_and_a_refusal_is_told(choice, detector, other, photo, monkeypatch):
    one = examples.Example.of(photo, (10.0, 10.0, 50.0, 50.0), True)
    session, on = Session(examples.Shown(photo, None, (one,), Question(photo))), showing.Handlers(choice)
    on.ask(session, lambda shown: shown)
    on.on_model(session, Session("third"))
    assert session.value.target.queries.fingerprint == other.fingerprint
    on.on_model(session, Session(""))
    assert session.value.target.queries.fingerprint == detector.fingerprint

    def refuses(*_):
        raise QueryError("this model takes no examples")

    monkeypatch.setattr(Detector, "encode_queries", refuses)
    with pytest.warns(UserWarning, match="takes no examples"):
        on.on_model(session, Session("third"))
    target = session.value.target
    assert (target.model, target.queries, target.done) == ("third", None, False)  # nothing of the other model stays
    stage, _ = on.on_view(session, 0.02, 0.5, showing_layout.BOXES)
    assert stage["src"] and not stage.get("boxes")


def test_windows_are_those_of_the_model_that_is_chosen(choice, photo, monkeypatch):
    session, on = Session(inside.Looked()), inside.Handlers(choice)
    on.look(session, take_photo(noise(60, 90), "blocks.png"), Session("third"))
    assert session.value.blocks
    monkeypatch.setattr(Detector, "has_attention", False)
    with pytest.warns(UserWarning, match="no Swin Transformer"):
        on.on_model(session, Session(""))
    assert session.value.photo is None


def test_what_was_listed_at_the_start_can_be_chosen(detector, monkeypatch, tmp_path):
    (tmp_path / "mine.safetensors").write_bytes(encode(noise(2, 2)))
    built, loads = {}, []
    monkeypatch.setattr(gr.Blocks, "launch", lambda blocks, **options: built.update(blocks=blocks))
    monkeypatch.setattr(Detector, "from_pretrained", lambda source, **_: loads.append(source) or detector)
    monkeypatch.setattr(sys, "argv", ["demo/app.py", "--model", str(tmp_path), "--model", "google/owlvit-base-patch16"])
    app.main()
    (field,) = [one for one in built["blocks"].blocks.values() if getattr(one, "elem_id", "") == "owl-model"]
    assert [label for label, _ in field.choices][:3] == ["mine.safetensors", "google/owlvit-base-patch16", "nano"]
    assert set(models.PUBLISHED) < {label for label, _ in field.choices}
    assert loads == [str(tmp_path / "mine.safetensors")]  # the others when they are chosen
