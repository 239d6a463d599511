"""Masks through the HTTP API: as the Python call gives them, drawn, bounded, and refused where the model has none."""

import io

import numpy as np
import pytest
from http_client import ask, b64
from picture_files import encode, noise
from PIL import Image
from pycocotools import mask as coco_masks

from owl_swin.formats import to_record
from owl_swin.server import tasks
from owl_swin.server.app import create_app
from owl_swin.server.schemas import MOST_MASKS
from owl_swin.server.settings import ServerSettings

CAT = encode(noise(60, 90))
ALL = {"threshold": 0.3, "top_k": 20}


@pytest.fixture(scope="module")
def app(masked_detector):
    app = create_app(masked_detector, ServerSettings(max_batch=1))
    yield app
    app.state.serving.close()


@pytest.fixture(scope="module")
def plain_app(detector):
    app = create_app(detector, ServerSettings(max_batch=1))
    yield app
    app.state.serving.close()


def post(app, **fields):
    body = {"images": [{"content": b64(CAT), "name": "cat.png"}], "queries": ["cat", "dog"], **ALL, **fields}
    headers = {"Accept": "image/png"} if body.pop("png", False) else {}
    return ask(app, "POST", "/v1/detect", json=body, headers=headers)


def test_masks_are_those_of_the_python_call(app, masked_detector):
    expected = to_record("cat.png", masked_detector.detect(CAT, ["cat", "dog"], masks=True, **ALL))
    plain = to_record("cat.png", masked_detector.detect(CAT, ["cat", "dog"], **ALL))
    for _ in range(2):  # the second time from the encodings that are kept, which know what they were made for
        assert post(app, masks=True).json() == {"results": [expected]}
        assert post(app).json() == {"results": [plain]}
    rows = expected["detections"]
    assert rows and all(coco_masks.decode(row["segmentation"]).shape == (60, 90) for row in rows)


def test_a_form_and_tiles_have_masks(app, masked_detector):
    found = masked_detector.detect(CAT, ["cat"], masks=True, tiles=48, **ALL)
    form = {"query": ["cat"], "threshold": "0.3", "top_k": "20", "masks": "true", "tile": "48"}
    answer = ask(app, "POST", "/v1/detect", files={"images": ("cat.png", CAT)}, data=form)
    (record,) = answer.json()["results"]
    assert len(found) == len(record["detections"]) > 0
    for row, mask in zip(record["detections"], found.masks, strict=True):
        assert (coco_masks.decode(row["segmentation"]) != mask.numpy()).mean() < 0.01  # other batches round otherwise


def drawn(app, **fields):
    return np.asarray(Image.open(io.BytesIO(post(app, png=True, **fields).content))).astype(int)


def test_masks_are_drawn_on_the_picture(app, monkeypatch):
    rows = post(app, masks=True).json()["results"][0]["detections"]
    inside = sum(coco_masks.decode(row["segmentation"]) for row in rows) > 0
    plain = drawn(app)
    assert np.abs(drawn(app, masks=True) - plain).sum(-1)[inside].mean() > 20
    monkeypatch.setattr(tasks, "MOST_DRAWN_PIXELS", 0)
    assert np.array_equal(drawn(app, masks=True), plain)


def test_a_model_without_masks_refuses(plain_app, app):
    answer = post(plain_app, masks=True)
    assert answer.status_code == 422 and answer.json()["code"] == "invalid_query"
    assert "finds boxes and makes no masks" in answer.json()["detail"]
    assert [ask(one, "GET", "/v1/model").json()["masks"] for one in (plain_app, app)] == [False, True]


def test_masks_are_bounded(app):
    answer = post(app, masks=True, top_k=MOST_MASKS + 1)
    assert answer.status_code == 422 and f"at most {MOST_MASKS} boxes a picture with masks" in answer.json()["detail"]
    assert post(app, top_k=MOST_MASKS + 1).status_code == 200
    assert post(app, masks=1).status_code == 422


def test_the_document_says_what_masks_are(app):
    document = ask(app, "GET", "/openapi.json").json()["components"]["schemas"]
    assert document["DetectIn"]["properties"]["masks"]["type"] == "boolean"
    assert set(document["RunLengths"]["properties"]) == {"size", "counts"}
    assert "segmentation" not in document["DetectionOut"]["required"]
