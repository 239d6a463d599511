"""Everything that runs on a GPU leaves tensors where they are: on a second device that any machine has.

``second_device`` refuses what a GPU refuses; results are those of the CPU, whose kernels it uses.
"""

import json
from contextlib import nullcontext
from dataclasses import astuple, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from owl_checkpoints import save_owl
from picture_files import noise
from second_device import second_device
from torch.testing import assert_close
from training_data import align_settings, detect_settings, train_config, write_captions, write_labelled, write_shapes
from training_runs import ALONE

from owl_swin import Detector, Exemplar, Query, draw_detections, draw_heat_map
from owl_swin.evaluation.absence import evaluate_absence
from owl_swin.evaluation.detection import evaluate_detection
from owl_swin.evaluation.diagnosis import evaluate_diagnosis
from owl_swin.index.regions import regions_of_picture
from owl_swin.training import loop

PICTURE = noise(60, 90)
SHOWN = Exemplar(PICTURE, (3, 4, 30, 40))
QUERIES = [
    "a dog",
    Query("mug", texts=["mug", "cup"], exemplars=[SHOWN, Exemplar(PICTURE), SHOWN], negatives=["cat", SHOWN]),
]


@pytest.fixture(params=["cuda", "mps"])
def device(request, monkeypatch):
    with second_device(request.param, monkeypatch) as device:
        yield device


def test_what_a_gpu_refuses_is_refused(device):
    here, there = torch.arange(3.0), torch.arange(3.0, device=device)
    assert there.device == device and (there + torch.tensor(1.0)).tolist() == [1, 2, 3]
    assert there[here.long()].device == device
    refused = [
        lambda: here + there,
        lambda: torch.stack([here, there]),
        lambda: torch.where(there > 0, here, there),
        lambda: here[there.long()],
        lambda: here.index_put_((torch.arange(3),), there),
        lambda: here.add_(there),
        lambda: torch.nn.Linear(3, 2)(there),
    ]
    for wrong in refused:
        with pytest.raises(RuntimeError, match="device"):
            wrong()
    for wrong in (lambda: there.numpy(), lambda: np.asarray(there)):
        with pytest.raises(TypeError, match="numpy"):
            wrong()
    if device.type == "mps":
        with pytest.raises(TypeError, match="float64"):
            there.double()


def test_gradients_are_where_the_weights_are(device):
    layer = torch.nn.Linear(3, 2).to(device)
    layer(torch.ones(1, 3, device=device)).sum().backward()
    assert layer.weight.grad.device == device and layer.weight.grad.tolist() == [[1, 1, 1]] * 2


@pytest.mark.parametrize(
    "settings", [{}, {"masks": True}, {"masks": True, "tiles": 48}, {"tiles": 48, "nms_iou": None}]
)
def test_detections(device, masked_detector, settings):
    settings = {"threshold": 0.01, "box_voting": True, "rivals": 0.5, "objectness": 0.0} | settings
    there = masked_detector.to(device)
    found, expected = (one.detect(PICTURE, QUERIES, **settings) for one in (there, masked_detector))
    assert found.boxes.device == device and len(found)
    for name in ("boxes", "scores", "labels", "patches"):
        assert_close(getattr(found, name).cpu(), getattr(expected, name))
    if settings.get("masks"):
        assert found.masks.to("cpu") == expected.masks
        assert found.masks.to_tensor().device == device
    assert found.to_dicts() == expected.to_dicts() and found[[0, 2]].boxes.device == device
    draw_detections(PICTURE, found)


@pytest.mark.parametrize("tiles", [None, 48])
def test_maps(device, masked_detector, tiles):
    there = masked_detector.to(device)
    found, expected = (one.segment(PICTURE, QUERIES, threshold=0.01, tiles=tiles) for one in (there, masked_detector))
    assert torch.equal(found.labels.cpu(), expected.labels)
    assert_close(found.scores.cpu(), expected.scores)
    assert found.shares() == expected.shares()


def test_whole_pictures_patches_and_attention(device, detector):
    there = detector.to(device)
    found, expected = (one.classify(PICTURE, ["a dog", "a cat"]) for one in (there, detector))
    assert found.probabilities.device == device
    assert_close(found.probabilities.cpu(), expected.probabilities)
    assert_close(there.classify(PICTURE, [SHOWN, Exemplar(PICTURE)]).probabilities.sum().cpu(), torch.tensor(1.0))
    for queries in (None, QUERIES):
        heat = there.similarity(PICTURE, queries)
        assert_close(heat.cpu(), detector.similarity(PICTURE, queries))
    draw_heat_map(PICTURE, heat[0])
    for mine, own in zip(there.attention(PICTURE), detector.attention(PICTURE), strict=True):
        assert_close(mine.of_patch(1, 2).cpu(), own.of_patch(1, 2))


def test_queries_go_over_files_and_between_devices(device, detector, tmp_path):
    there = detector.to(device)
    there.encode_queries(QUERIES).save(tmp_path / "queries")
    for one in (there, detector):
        for queries in (
            one.load_queries(tmp_path / "queries"),
            there.encode_queries(QUERIES),
            detector.encode_queries(QUERIES),
        ):
            assert_close(
                one.detect(PICTURE, queries, threshold=0.01).to("cpu").scores,
                detector.detect(PICTURE, QUERIES, threshold=0.01).scores,
            )


@pytest.mark.parametrize("family", ["owlvit", "owlv2"])
def test_the_owl_family(device, family, tmp_path):
    save_owl(tmp_path, family)
    here = Detector.from_pretrained(tmp_path, device="cpu")
    there = Detector.from_pretrained(tmp_path, device=device)
    assert there.spec.search_norm == pytest.approx(here.spec.search_norm)
    found, expected = (one.detect(PICTURE, [SHOWN, "a dog"], threshold=0.01) for one in (there, here))
    assert len(found) and found.boxes.device == device
    assert_close(found.boxes.cpu(), expected.boxes)


@pytest.mark.parametrize("tiles", [None, 48])
def test_regions_of_an_archive(device, detector, tiles):
    there = detector.to(device)
    found, expected = (regions_of_picture(one, one.views(PICTURE, tiles=tiles), 12) for one in (there, detector))
    for mine, own in zip(astuple(found[0]), astuple(expected[0]), strict=True):
        np.testing.assert_allclose(mine, own, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("evaluate", [evaluate_detection, evaluate_absence, evaluate_diagnosis])
def test_measuring(device, evaluate, detector, tmp_path):
    path = write_shapes(tmp_path, 4)
    there, here = (evaluate(one, path, tmp_path / "images") for one in (detector.to(device), detector))
    assert there.figures == pytest.approx(here.figures, nan_ok=True)


def masks_too(settings):
    path = Path(settings["model"])
    path.write_text(path.read_text() + "\n[masks]\ndim = 8\nwidth = 16\n")
    return settings


RUNS = {
    "scenes at once": lambda folder: detect_settings(folder, detect={"matching": "aligned", "exemplars": 2}),
    "scene by scene": lambda folder: masks_too(
        detect_settings(folder, detect={"matching": "hungarian", "exemplars": 2}, masks={"warmup_steps": 1})
    ),
    "alignment": lambda folder: align_settings(
        folder,
        [
            {"kind": "labelled", "path": str(write_labelled(folder / "l")), "images": str(folder / "l" / "images")},
            {"kind": "captions", "path": str(write_captions(folder / "c"))},
        ],
    ),
}


@pytest.mark.parametrize("run", RUNS)
def test_training(run, monkeypatch, tmp_path):
    config = train_config(RUNS[run](tmp_path) | {"steps": 2, "batch_size": 2})
    losses = []
    with second_device("cuda", monkeypatch) as device:
        # On the device a second call goes on from the file of the first.
        for place, steps in ((device, (1, 1)), (ALONE.device, (1,))):
            process = replace(ALONE, device=place)
            monkeypatch.setattr(loop, "started_process", lambda _, process=process: nullcontext(process))
            for count in steps:
                torch.manual_seed(0)
                folder = loop.train(replace(config, output=str(tmp_path / place.type)), stop_after=count)
            losses.append([json.loads(line)["loss"] for line in (folder / "metrics.jsonl").open()])
    (first, _), (expected,) = losses
    assert first == pytest.approx(expected, rel=1e-3)
