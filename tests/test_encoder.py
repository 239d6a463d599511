"""How pictures get through the encoder: many at a time, in tiles, in another size, precision or process."""

import io
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_tiny_model
from picture_files import encode, noise
from PIL import Image
from test_detector import ALL, SOME, score_table
from torch.testing import assert_close

from owl_swin import huge
from owl_swin.detections import Detections
from owl_swin.detector import Detector
from owl_swin.devices import pick_device
from owl_swin.errors import ConfigError, ImageError, QueryError
from owl_swin.exemplar import Exemplar
from owl_swin.image import open_reduced
from owl_swin.models.owl_swin import OwlSwin
from owl_swin.queries import Query

# --- Streams -------------------------------------------------------------------------------------------------------


def test_a_stream_gives_what_a_batch_gives_in_order(detector):
    pictures = [noise(60 + 7 * i, 90, seed=i) for i in range(7)]
    found = list(detector.stream(iter(pictures), ["cat", "dog"], batch_size=3, **ALL))
    assert found == detector.detect_batch(pictures, ["cat", "dog"], batch_size=3, **ALL)
    assert [one.image_hw for one in found] == [(picture.height, picture.width) for picture in pictures]


def test_what_came_before_the_pictures_failed_is_still_answered(detector, picture):
    def pictures():
        yield from [picture] * 5
        raise RuntimeError("the camera is gone")

    found = []
    with pytest.raises(RuntimeError, match="the camera is gone"):
        found.extend(detector.stream(pictures(), ["cat"], batch_size=4))
    assert len(found) == 5


def test_thresholds_for_other_queries_are_refused_before_the_first_picture(detector):
    with pytest.raises(QueryError, match="one for each of the 1 queries"):
        detector.stream([], ["cat"], threshold=[0.1, 0.2])
    with pytest.raises(QueryError, match="one for each of the 1 queries"):
        detector.detect_batch(["missing.png"], ["cat"], threshold=[0.1, 0.2])


def test_thresholds_by_name_go_to_the_pictures_that_are_asked_for_the_name(detector, picture):
    asked, limits = [["cat"], ["dog", "cat"], None], {"cat": 0.6, "object": 0.5}
    own = [{"cat": 0.6}, {"cat": 0.6}, {"object": 0.5}]
    expected = [detector.detect(picture, queries, threshold=limit) for queries, limit in zip(asked, own, strict=True)]
    assert detector.detect_batch([picture] * 3, asked, batch_size=1, threshold=limits) == expected
    assert [len(found) for found in expected] != [0, 0, 0]
    with pytest.raises(QueryError, match="threshold names 'bird', which is none of the queries"):
        detector.detect_batch([picture] * 3, asked, threshold={"bird": 0.5})


@pytest.mark.parametrize("method", ["detect_batch", "encode_images", "stream"])
@pytest.mark.parametrize("one", [io.BytesIO(b"two\nlines"), memoryview(b"ab"), np.zeros((2, 4, 4, 3), np.uint8)])
def test_one_thing_that_is_made_of_parts_is_no_list_of_pictures(detector, method, one):
    with pytest.raises(QueryError, match=f"{method} takes a list of pictures, got a single {type(one).__name__}"):
        getattr(detector, method)(one)


@pytest.mark.parametrize(
    "queries", [[["cat"], 3], [["cat"], "dog"], [3, ["cat"]], [[["cat"]], ["dog"]], [[{}], None], 3, b"cat"]
)
def test_queries_that_are_neither_one_list_nor_lists_are_said(detector, picture, queries):
    with pytest.raises(
        QueryError, match=r"a text query must be a string|queries must be a list|a list of queries for each"
    ):
        detector.detect_batch([picture, picture], queries)


def test_lists_of_queries_may_come_one_after_another(detector, picture):
    asked = [["cat"], ["dog"]]
    assert detector.detect_batch([picture] * 2, iter(asked)) == detector.detect_batch([picture] * 2, asked)
    each = (iter(own) for own in asked)
    assert detector.detect_batch([picture] * 2, each) == detector.detect_batch([picture] * 2, asked)
    assert detector.detect_batch([picture] * 2, iter(asked[0])) == detector.detect_batch([picture] * 2, asked[0])


@pytest.mark.parametrize("options", [{"threshold": 0.1}, 0.1])
def test_options_of_another_kind_are_refused(detector, picture, options):
    with pytest.raises(QueryError, match="options must be DetectOptions, got"):
        detector.detect(picture, ["cat"], options=options)


def test_a_precision_may_be_the_only_argument_as_in_torch(detector):
    assert detector.to(torch.bfloat16).dtype == torch.bfloat16


class Counted:
    """Pictures that are made when they are asked for; ``ahead`` is how many were before each result."""

    def __init__(self):
        self.made, self.ahead = 0, []

    def __iter__(self):
        while True:
            self.made += 1
            yield noise(40, 40, seed=self.made)


def test_a_stream_reads_at_most_a_batch_ahead_of_an_endless_source(detector):
    source = Counted()
    for i, _ in enumerate(detector.stream(source, ["cat"], batch_size=3)):
        source.ahead.append(source.made - i)
        if i == 7:
            break
    assert source.ahead == [3, 2, 1, 3, 2, 1, 3, 2]


@pytest.mark.parametrize("ask", ["encode_images", "detect_batch"])
def test_pictures_are_read_a_batch_at_a_time_and_kept_in_the_size_of_the_model(detector, monkeypatch, ask):
    """Large pictures are not all open together: while a batch is encoded, the next one is read and no other."""
    events = []
    passed = OwlSwin.encode_image
    monkeypatch.setattr(huge, "open_reduced", lambda source, side: events.append("open") or open_reduced(source, side))
    monkeypatch.setattr(
        OwlSwin, "encode_image", lambda self, pixels: events.append(len(pixels)) or passed(self, pixels)
    )
    getattr(detector, ask)([encode(noise(40, 40))] * 5, batch_size=2)
    passes = [place for place, event in enumerate(events) if event != "open"]
    assert [events[place] for place in passes] == [2, 2, 1]
    opened = [events[:place].count("open") for place in passes]
    assert all(low <= count <= high for count, low, high in zip(opened, (2, 4, 5), (4, 5, 5), strict=True))


def test_the_next_batch_of_a_list_is_read_while_one_is_encoded(detector, monkeypatch):
    reading, encoding = threading.Event(), threading.Event()
    passed, opened = OwlSwin.encode_image, []

    def open_second_late(source, side):
        opened.append(source)
        if len(opened) == 2:
            assert encoding.wait(20), "it was read before the first was encoded"
            reading.set()
        return open_reduced(source, side)

    def encode_while_reading(self, pixels):
        encoding.set()
        assert reading.wait(20), "it was encoded before the second was read"
        return passed(self, pixels)

    monkeypatch.setattr(huge, "open_reduced", open_second_late)
    monkeypatch.setattr(OwlSwin, "encode_image", encode_while_reading)
    assert len(detector.encode_images([encode(noise(40, 40))] * 2, batch_size=1)) == 2


def test_a_list_that_is_left_in_the_middle_leaves_no_reader_behind(detector, picture):
    before = threading.active_count()
    stream = detector.stream([picture] * 20, ["cat"], batch_size=2)
    next(stream)
    stream.close()
    assert threading.active_count() == before


def test_one_unreadable_picture_is_an_error_in_its_place(detector, picture):
    pictures = [picture, b"no picture", "missing.jpg", picture]
    found = list(detector.stream(pictures, ["cat"], on_error="return"))
    assert [type(one) for one in found] == [Detections, ImageError, ImageError, Detections]
    assert "not a picture" in str(found[1]) and "missing.jpg" in str(found[2])
    assert found[0] == found[3]


def test_an_unreadable_picture_is_raised_in_its_turn(detector, picture):
    found = detector.stream([picture, picture, b"no picture", picture], ["cat"])
    assert next(found) == next(found)
    with pytest.raises(ImageError, match="not a picture"):
        next(found)


def test_what_a_stream_is_asked_is_checked_before_any_picture(detector):
    for wrong in ({"on_error": "skip"}, {"batch_size": 0}, {"batch_size": 1.5}, {"threshold": 2}):
        with pytest.raises(QueryError, match=next(iter(wrong))):
            detector.stream(["missing.jpg"], ["cat"], **wrong)
    with pytest.raises(QueryError, match="must name something"):
        detector.stream(["missing.jpg"], [" "])


def test_a_prepared_picture_is_the_picture(detector, picture):
    prepared = detector.prepare(picture)
    expected = detector.detect(picture, ["cat"], **SOME)
    assert detector.detect(prepared, ["cat"], **SOME) == expected
    assert detector.detect_batch([prepared], ["cat"], **SOME) == [expected]
    assert [pixels.shape for pixels in detector.prepare(noise(3000, 4000)).pixels] == [(3, 64, 96)]


@pytest.mark.parametrize("call", ["detect_batch", "encode_images", "stream"])
@pytest.mark.parametrize(
    "one", ["a.jpg", b"bytes", Path("a.jpg"), np.zeros((4, 4, 3)), torch.zeros(3, 4, 4), 3, noise(4, 4)]
)
def test_a_single_picture_in_place_of_a_list_says_what_to_call(detector, call, one):
    with pytest.raises(QueryError, match=rf"{call} takes a list of pictures, got a single {type(one).__name__}; call"):
        getattr(detector, call)(one)


def test_a_list_in_place_of_one_picture_says_what_to_call(detector, picture):
    with pytest.raises(QueryError, match="detect takes one picture, got a list of 2; call detect_batch for several"):
        detector.detect([picture, picture], ["cat"])


def test_one_at_a_time_gives_what_each_gives_alone_to_the_bit(detector):
    pictures = [noise(60 + i % 2, 90, seed=i) for i in range(6)]
    alone = [detector.detect(picture, ["cat", "dog"], **ALL) for picture in pictures]
    assert detector.detect_batch(pictures, ["cat", "dog"], batch_size=1, **ALL) == alone
    assert list(detector.stream(pictures, ["cat", "dog"], batch_size=1, **ALL)) == alone


# --- Sizes and tiles -----------------------------------------------------------------------------------------------


def test_one_picture_may_be_looked_at_in_another_size(detector, picture):
    larger = detector.with_image_size(128)
    assert (detector.image_size, larger.image_size) == (96, 128)
    assert detector.detect(picture, ["cat"], image_size=128, **ALL) == larger.detect(picture, ["cat"], **ALL)
    assert larger.fingerprint == detector.fingerprint and larger.model is detector.model


def test_tiles_are_seen_beside_the_whole_picture_and_their_boxes_lie_in_it(detector):
    large, tile = noise(192, 288, seed=3), (96, 64, 192, 160)
    everything = ALL | {"nms_iou": None}
    whole = detector.detect(large, ["cat"], **everything)
    part = detector.detect(large.crop(tile), ["cat"], **everything)
    tiled = detector.detect(large, ["cat"], tiles=[tile], **everything)
    assert len(tiled) == len(whole) + len(part)
    from_tile = tiled.patches >= len(detector.encode_image(large).embeddings.class_embeds)
    moved = part.boxes + torch.tensor([96, 64, 96, 64])
    order = part.patches.argsort()
    inside = tiled[from_tile]
    inside = inside[inside.patches.argsort()]
    assert_close(inside.scores, part.scores[order])
    # Boxes that reach past the tile are cut by the picture and not by the tile.
    within = (part.boxes[order] > 0).all(1) & (part.boxes[order] < 96).all(1)
    assert within.any()
    assert_close(inside.boxes[within], moved[order][within])
    encoded = detector.encode_image(large, tiles=[tile])
    assert len(encoded.views) == 2 and encoded.image_hw == (192, 288)
    assert detector.detect(encoded, ["cat"], **everything) == tiled
    assert detector.similarity(encoded, ["cat"]).shape == detector.similarity(large, ["cat"]).shape


@pytest.mark.parametrize("tile", [(0, 0, 91, 10), (5, 5, 5, 10), (0.5, 0, 10, 10), (-1, 0, 5, 5), 3, "abcd"])
def test_a_tile_that_is_not_in_the_picture_is_refused(detector, picture, tile):
    with pytest.raises(QueryError, match=r"a tile is xmin, ymin, xmax, ymax in whole pixels .* 90x60"):
        detector.detect(picture, ["cat"], tiles=[tile])


def test_size_and_tiles_of_what_was_encoded_cannot_change(detector, picture):
    for ready in (detector.prepare(picture), detector.encode_image(picture)):
        for settings in ({"image_size": 64}, {"tiles": [(0, 0, 9, 9)]}):
            with pytest.raises(QueryError, match="prepared or encoded already"):
                detector.detect(ready, ["cat"], **settings)


BYTES = b"x" * 9_000_000


@pytest.mark.parametrize(
    "ask",
    [
        lambda d, p: d.detect(p, ["cat"], threshold=BYTES),
        lambda d, p: d.detect(p, ["cat"], nms_iou=BYTES),
        lambda d, p: d.detect(p, ["cat"], top_k=BYTES),
        lambda d, p: d.detect(p, ["cat"], image_size=BYTES),
        lambda d, p: d.detect(p, ["cat"], tiles=[BYTES]),
        lambda d, p: d.detect(p, [Exemplar(p, BYTES)]),
        lambda d, p: d.detect(p, "x" * 9_000_000),
        lambda d, p: d.detect_batch([p], ["cat"], batch_size=BYTES),
        lambda d, p: d.detect_batch(BYTES, ["cat"]),
        lambda d, p: d.classify(p, "x" * 9_000_000),
        lambda d, p: d.classify(p, ["cat"], templates=["x" * 9_000_000]),
        lambda d, p: Query("x" * 9_000_000),
        lambda d, p: Query("mug", texts="x" * 9_000_000),
        lambda d, p: d.encode_queries([BYTES]),
    ],
)
def test_no_wrong_value_fills_the_screen(detector, picture, ask):
    with pytest.raises(QueryError) as caught:
        ask(detector, picture)
    assert len(str(caught.value)) < 1000


# --- Where it computes ---------------------------------------------------------------------------------------------


def test_the_caller_s_module_stays_as_it_is():
    model = make_tiny_model().train().requires_grad_(True)
    detector = Detector(model, device="cpu", dtype="bfloat16")
    assert model.training and all(module.training for module in model.modules())
    assert all(parameter.dtype == torch.float32 and parameter.requires_grad for parameter in model.parameters())
    assert not detector.model.training
    ready = make_tiny_model()
    assert Detector(ready, device="cpu").model is ready  # nothing to change: no copy


@pytest.mark.parametrize("dtype", ["bfloat16", "half", torch.bfloat16])
def test_half_precision_finds_nearly_the_same(detector, picture, dtype):
    half = detector.to(dtype=dtype)
    assert half.dtype in (torch.bfloat16, torch.float16) and detector.dtype == torch.float32
    assert half.fingerprint == detector.fingerprint
    queries = detector.encode_queries(["cat", Exemplar(picture, (10, 10, 50, 50))])
    exact, rough = (score_table(one.detect(picture, queries, **ALL)) for one in (detector, half))
    assert 0 < (exact - rough).abs().nanmean() < 0.05
    found = half.detect(picture, ["cat"], threshold=0)
    assert {found.boxes.dtype, found.scores.dtype} == {torch.float32}


def test_a_precision_that_is_none_is_refused(detector):
    for wrong in ("int8", torch.int64, 16):
        with pytest.raises(ConfigError, match="dtype must be one of float32, bfloat16, float16, half"):
            detector.to(dtype=wrong)


def test_auto_is_the_accelerator_that_torch_finds(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: torch.device("meta"))
    assert pick_device("auto") == torch.device("meta")
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: None)
    assert pick_device("auto") == torch.device("cpu")


def test_what_is_found_are_ordinary_tensors(detector, picture):
    encoded = detector.encode_image(picture)
    found = detector.detect(encoded, ["cat"], **ALL)
    queries = detector.encode_queries(["cat", Exemplar(picture)])
    tensors = [encoded.embeddings.class_embeds, found.boxes, found.scores, queries.query_embeds, found[:2].boxes]
    tensors += [detector.classify(picture, ["cat", "dog"]).probabilities, detector.similarity(picture, ["cat"])]
    for tensor in tensors:
        assert not tensor.is_inference()
        (tensor.clone().requires_grad_(True) * tensor).sum().backward()  # may be kept for a gradient


def test_an_encoded_picture_keeps_no_batch_alive(detector, picture):
    one = detector.encode_images([picture] * 4)[2].embeddings
    assert one.class_embeds.untyped_storage().nbytes() == one.class_embeds.nbytes


FORKED = """
import os, sys, torch
from PIL import Image
from owl_swin import Detector
torch.set_num_threads(2)
detector = Detector.from_pretrained(sys.argv[1], device="cpu")
picture = Image.effect_noise((640, 640), 80).convert("RGB")
before = detector.detect(picture, ["cat"], threshold=0, image_size=640)
child = os.fork()
if child == 0:
    here = detector.detect(picture, ["cat"], threshold=0, image_size=640)
    os._exit(0 if abs(float(here.scores[0] - before.scores[0])) < 1e-4 and torch.get_num_threads() == 1 else 3)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_detector_works_in_a_forked_process_and_says_that_it_is_slower(model_file):
    run = subprocess.run(
        [sys.executable, "-c", FORKED, str(model_file)], capture_output=True, text=True, timeout=120, check=True
    )
    assert run.stdout == "0\n"
    assert run.stderr.count("forked after the model was loaded and computes with one thread") == 1
    assert "'spawn'" in run.stderr


def test_a_large_photo_file_gives_what_the_opened_photo_gives(detector):
    y, x = np.mgrid[0:600, 0:900]
    photo = Image.fromarray(np.stack([x * 255 // 900, y * 255 // 600, (x + y) % 256], -1).astype(np.uint8))
    file = io.BytesIO()
    photo.save(file, "JPEG", quality=95)
    of_file, opened = detector.encode_image(file.getvalue()), detector.encode_image(Image.open(file))
    assert of_file.image_hw == opened.image_hw == (600, 900)
    assert (of_file.boxes_px() - opened.boxes_px()).abs().mean() < 9  # a hundredth of the picture
    alone = detector.detect(file.getvalue(), ["cat"], **ALL)
    assert alone == detector.detect_batch([file.getvalue()], ["cat"], **ALL)[0]
    assert alone == detector.detect(detector.prepare(file.getvalue()), ["cat"], **ALL)
    assert alone == detector.detect(of_file, ["cat"], **ALL)


def test_any_number_of_texts_is_encoded_some_at_a_time(detector, monkeypatch):
    sizes, passed = [], OwlSwin.encode_text
    monkeypatch.setattr(OwlSwin, "encode_text", lambda self, ids: sizes.append(len(ids)) or passed(self, ids))
    monkeypatch.setattr("owl_swin.encoder.TEXTS_AT_ONCE", 3)
    names = [f"thing {i}" for i in range(7)]
    together = detector.encode_queries(names).query_embeds
    assert sizes == [3, 3, 1]
    alone = torch.cat([detector.encode_queries([name]).query_embeds for name in names])
    assert_close(together, alone, atol=1e-5, rtol=0)
