"""Code that was written for transformers' pipeline runs with ours: the same calls on both, of one OWL-ViT."""

import base64
import itertools
import json
import pickle
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import numpy as np
import pytest
import torch
from conftest import make_tiny_model
from owl_checkpoints import save_clip_tokenizer, save_owl
from picture_files import encode, noise

import owl_swin
from owl_swin import pipelines
from owl_swin.detector import Detector
from owl_swin.errors import AddressRefusedError, ConfigError, ImageError, QueryError
from owl_swin.fetching import fetch
from owl_swin.image import open_image
from owl_swin.pipelines import pipeline

TASK = "zero-shot-object-detection"
LABELS = ["a cat", "a dog"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    import transformers

    folder = tmp_path_factory.mktemp("owl")
    save_owl(folder, "owlvit", size=64)
    save_clip_tokenizer(folder)
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "CLIPTokenizer"}))
    transformers.OwlViTImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def both(folder):
    import transformers

    return [make(TASK, model=str(folder), device=-1) for make in (transformers.pipeline, pipeline)]


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    path = tmp_path_factory.mktemp("photo") / "photo.png"
    noise(60, 90).save(path)
    return path


def form(answer):
    """What an answer is made of: the types, keys and their order, at all depths, of lists their first element."""
    if isinstance(answer, dict):
        return {key: form(value) for key, value in answer.items()}, list(answer)
    if isinstance(answer, list):
        return [form(one) for one in answer[:1]]
    return type(answer)


CALLS = {
    "a path": lambda pipe, photo: pipe(str(photo), candidate_labels=LABELS),
    "a PIL picture, by position": lambda pipe, photo: pipe(noise(60, 90), LABELS),
    "by keyword": lambda pipe, photo: pipe(image=noise(60, 90), candidate_labels=LABELS),
    "a text with commas": lambda pipe, photo: pipe(noise(60, 90), candidate_labels="a cat,a dog, a bird"),
    "the old name of the labels": lambda pipe, photo: pipe(noise(60, 90), text_queries=LABELS),
    "a dict": lambda pipe, photo: pipe({"image": str(photo), "candidate_labels": LABELS}),
    "a list of dicts": lambda pipe, photo: pipe(
        [{"image": str(photo), "candidate_labels": LABELS}, {"image": noise(9, 5), "candidate_labels": ["a cat"]}]
    ),
    "a list of pictures": lambda pipe, photo: pipe([noise(60, 90), noise(30, 40)], candidate_labels=LABELS),
    "a list of pictures with labels each": lambda pipe, photo: pipe(
        [noise(60, 90), noise(30, 40)], candidate_labels=[["a cat"], LABELS]
    ),
    "a generator": lambda pipe, photo: list(
        pipe({"image": picture, "candidate_labels": LABELS} for picture in (noise(60, 90), noise(30, 40)))
    ),
    "a threshold that nothing reaches": lambda pipe, photo: pipe(noise(60, 90), LABELS, threshold=0.9999),
    "the best ones": lambda pipe, photo: pipe(noise(60, 90), LABELS, top_k=2, threshold=0.0),
    "base64": lambda pipe, photo: pipe(base64_of(photo), LABELS),
    "base64 of a small picture, without a head": lambda pipe, photo: pipe(small_in_base64(), LABELS),
    "no best ones chosen": lambda pipe, photo: pipe(noise(60, 90), LABELS, top_k=0),
    "a batch": lambda pipe, photo: pipe([noise(60, 90)] * 3, candidate_labels=LABELS, batch_size=2),
    "no picture": lambda pipe, photo: pipe([], candidate_labels=LABELS),
}


def small_in_base64():
    return base64.b64encode(encode(noise(4, 4))).decode()


def base64_of(photo):
    return "data:image/png;base64," + base64.b64encode(photo.read_bytes()).decode()


@pytest.mark.parametrize("call", CALLS)
def test_the_same_call_has_an_answer_of_the_same_form(call, both, photo):
    theirs, ours = (CALLS[call](pipe, photo) for pipe in both)
    assert form(ours) == form(theirs)
    many = bool(theirs) and isinstance(theirs[0], list)
    assert [len(one) > 0 for one in (ours if many else [ours])] == [
        len(one) > 0 for one in (theirs if many else [theirs])
    ]
    for one, other in zip(ours, theirs, strict=True) if many else [(ours, theirs)]:
        assert [row["score"] for row in one] == sorted((row["score"] for row in one), reverse=True)
        assert {row["label"] for row in one} <= {row["label"] for row in other}


def test_the_answers_are_those_of_transformers_within_the_picture(both):
    """All of them without suppression, boxes to the pixel that rounding decides; transformers leaves them unclipped."""
    theirs = both[0](noise(60, 90), LABELS, threshold=0.3)
    ours = both[1](noise(60, 90), LABELS, threshold=0.3, nms_iou=None)
    assert len(ours) == len(theirs) > 3
    assert [row["label"] for row in ours] == [row["label"] for row in theirs]
    assert np.allclose([row["score"] for row in ours], [row["score"] for row in theirs], atol=1e-4)
    corners = [[list(row["box"].values()) for row in rows] for rows in (ours, theirs)]
    assert np.abs(np.array(corners[0]) - np.array(corners[1]).clip(0, [90, 60, 90, 60])).max() <= 1


def test_labels_are_the_caller_s_own_strings(both):
    found = both[1](noise(60, 90), "ein Käfer,日本 ", threshold=0)
    assert {row["label"] for row in found} == {"ein Käfer", "日本 "}


@pytest.fixture(scope="module")
def nano():
    return pipeline(TASK, model=Detector(make_tiny_model(), device="cpu"), threshold=0.0)


def test_what_transformers_does_not_take_is_taken_too(nano, photo, picture):
    expected = nano(photo, LABELS)
    array = np.asarray(noise(60, 90))
    for same in (photo.read_bytes(), array, torch.from_numpy(array.copy()).permute(2, 0, 1), [str(photo)]):
        found = nano(same, LABELS)
        assert (found[0] if isinstance(same, list) else found) == expected
    assert nano(base64.b64encode(photo.read_bytes() + b" " * 4096).decode(), LABELS) == expected
    assert nano(nano.detector.prepare(picture), LABELS) == nano(nano.detector.encode_image(picture), LABELS)
    assert [row["label"] for row in nano(photo, [owl_swin.Exemplar(picture)])][:1] == ["exemplar"]


def test_base64_may_look_like_a_name_that_is_too_long(nano):
    contents = (encode(noise(32, 32, seed)) for seed in itertools.count())
    content = next(one for one in contents if b"/" not in base64.b64encode(one)[:256])
    text = base64.b64encode(content).decode()
    asked = {"candidate_labels": ["cat"]}
    assert len(text) < 4096 and nano(text, **asked) == nano(open_image(content), **asked)


def test_a_data_set_is_read_one_by_one(nano):
    class Photos:
        seen = 0

        def __len__(self):
            return 3

        def __getitem__(self, i):
            Photos.seen += 1
            return noise(20 + i, 30)

    answers = nano(Photos(), candidate_labels=LABELS)
    assert Photos.seen == 0 and next(answers) and Photos.seen == 1
    assert len(list(answers)) == 2


def test_labels_are_encoded_once(nano, monkeypatch, picture):
    nano(picture, ["once"])
    monkeypatch.setattr(Detector, "encode_queries", lambda *args: pytest.fail("encoded again"))
    assert len(nano(picture, ["once"])) == len(nano([picture, picture], ["once"])[1]) > 0


@pytest.fixture
def website(photo):
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(photo.read_bytes())

        def log_message(self, *args):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/photo.png"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_url_is_fetched_from_the_open_internet_alone(nano, website, photo, monkeypatch):
    with pytest.raises(AddressRefusedError, match=r"127.0.0.1: has an address that is not of the open internet"):
        nano(website, LABELS)
    monkeypatch.setattr(pipelines, "fetch", partial(fetch, allow_address=lambda address: True))
    assert nano(website, LABELS, timeout=5) == nano(photo, LABELS)


@pytest.mark.parametrize(
    "call, error, sentence",
    [
        (lambda pipe: pipe("nowhere.jpg", LABELS), ImageError, "nowhere.jpg: cannot read this file"),
        (
            lambda pipe: pipe(noise(9, 9)),
            QueryError,
            "candidate_labels must be a list of what to look for, .* got None",
        ),
        (lambda pipe: pipe(noise(9, 9), []), QueryError, r"candidate_labels must be a list .* got \[\]"),
        (lambda pipe: pipe({"picture": 1}), ImageError, r"got the keys \['picture'\]"),
        (lambda pipe: pipe(3, LABELS), ImageError, "expected a picture, or several, got int"),
        (lambda pipe: pipe("data:image/png;base64,???", LABELS), ImageError, "not a picture in base64"),
        (lambda pipe: pipe([noise(9, 9)], [["a"], ["b"]]), QueryError, "2 lists of candidate_labels for 1 pictures"),
        (lambda pipe: pipe([noise(9, 9)], [["a"], "b"]), QueryError, "or a list of lists, one a picture"),
        (lambda pipe: pipe(noise(9, 9), LABELS, treshold=1), ConfigError, "unknown setting 'treshold'; there are thr"),
        (lambda pipe: pipe(noise(9, 9), LABELS, threshold=2), QueryError, "threshold"),
        (lambda pipe: pipe(noise(9, 9), LABELS, top_k=-1), QueryError, "top_k must be a whole number"),
        (lambda pipe: pipe([noise(9, 9)], LABELS, batch_size=-1), QueryError, "batch_size must be at least 1, got -1"),
        (
            lambda pipe: pipe([noise(9, 9)], LABELS, batch_size=1.5),
            QueryError,
            "batch_size must be at least 1, got 1.5",
        ),
        (lambda pipe: pipe("iVBORw0KGgo?", LABELS), ImageError, "not a picture in base64"),
    ],
)
def test_a_wrong_call_is_one_sentence(nano, call, error, sentence):
    with pytest.raises(error, match=sentence):
        call(nano)


@pytest.mark.parametrize(
    "settings, sentence",
    [
        ({"task": "object-detection"}, "does 'zero-shot-object-detection' and nothing else, got 'object-detection'"),
        ({"tokenizer": object()}, "brings its own tokenizer; leave it out"),
        ({"device": 1.5}, "device must be a number, a name or a torch.device, got 1.5"),
        ({"dtype": "float128"}, "dtype must be one of float32"),
        ({"thresh": 1}, "unknown setting 'thresh'"),
        ({"model_kwargs": {"quantization_config": 4}}, "unknown setting 'quantization_config' in model_kwargs; there"),
    ],
)
def test_a_wrong_setting_is_one_sentence(settings, sentence):
    with pytest.raises(ConfigError, match=sentence):
        pipeline(**{"model": Detector(make_tiny_model(), device="cpu"), **settings})


def test_what_snippets_say_beside_the_model_is_taken(tmp_path):
    Detector(make_tiny_model(), device="cpu").save_pretrained(tmp_path)
    name = str(tmp_path)
    pipe = pipeline(model=name, task=TASK, tokenizer=name, use_fast=True, torch_dtype=torch.bfloat16, device="cpu")
    assert (pipe.task, pipe.device.type, pipe.detector.dtype) == (TASK, "cpu", torch.bfloat16)
    assert pipeline(TASK, pipe.detector, dtype="float32", device=-1).detector.dtype == torch.float32
    assert pipeline(TASK, make_tiny_model(), dtype="auto", device_map="cpu").model.spec.family == "owl_swin"
    loading = {"torch_dtype": "bfloat16", "attn_implementation": "sdpa", "image_size": 96}
    pipe = pipeline(TASK, name, device_map={"": "cpu"}, model_kwargs=loading)
    assert (pipe.detector.dtype, pipe.detector.image_size, pipe.device.type) == (torch.bfloat16, 96, "cpu")


def test_a_pipeline_goes_to_another_process(nano):
    other = pickle.loads(pickle.dumps(nano))
    assert other(noise(20, 30), LABELS) == nano(noise(20, 30), LABELS) != []


def test_labels_that_can_be_read_once_are_for_all_pictures(nano):
    pictures = [noise(20, 30), noise(30, 20)]
    assert nano(pictures, (label for label in LABELS)) == nano(pictures, LABELS)
    assert list(nano(iter(pictures), iter(LABELS))) == nano(pictures, LABELS, batch_size=1)
