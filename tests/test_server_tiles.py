"""Pictures that clients have shown to the model in tiles: the same answers as in Python, within the server's bounds."""

import asyncio
import io
import json

import pytest
from http_client import ask, b64, detect
from picture_files import encode, noise, turned
from PIL import Image

from owl_swin import RegionIndex, Tiles
from owl_swin.formats import to_record
from owl_swin.server import tiled
from owl_swin.server.app import create_app
from owl_swin.server.settings import ServerSettings
from owl_swin.server.turns import PixelRoom

WIDE = encode(noise(130, 250, seed=1))
ASKED = {"queries": ["a red mug", "a dog"], "threshold": 0.3}


@pytest.fixture(scope="module")
def app(detector):
    app = create_app(detector, ServerSettings(max_request_tiles=40, max_batch=4))
    yield app
    app.state.serving.close()


def expected(detector, content, tiles, name="images[0]"):
    found = detector.detect(content, ASKED["queries"], tiles=tiles, threshold=ASKED["threshold"])
    assert len(found) > 3
    return to_record(name, found)


def same(answer, record):
    for one, other in zip(answer["detections"], record["detections"], strict=True):
        assert (one["label"], one["query"]) == (other["label"], other["query"])
        assert one["score"] == pytest.approx(other["score"], abs=1e-4)
        assert one["box"] == pytest.approx(other["box"], abs=0.05)
    assert (answer["width"], answer["height"]) == (record["width"], record["height"])
    return True


@pytest.mark.numeric
@pytest.mark.parametrize(
    "content",
    [WIDE, encode(noise(60, 90)), turned(noise(130, 250, seed=3), 6), encode(noise(250, 130), "JPEG")],
    ids=["wide", "smaller than a tile", "turned", "JPEG"],
)
def test_tiles_find_what_detect_finds_in_them(app, detector, content):
    answer = detect(app, images=[{"content": b64(content)}], tile=96, overlap=0.3, **ASKED)
    assert answer.status_code == 200, answer.text
    assert same(answer.json()["results"][0], expected(detector, content, Tiles(96, 0.3)))


def test_forms_lines_and_drawings_have_tiles_too(app, detector):
    record = expected(detector, WIDE, Tiles(96))
    fields = {"query": ASKED["queries"], "threshold": "0.3", "tile": "96"}
    files = [("images", ("a.png", WIDE)), ("images", ("b.png", b"no")), ("images", ("c.png", WIDE))]
    (answer,) = ask(app, "POST", "/v1/detect", data=fields, files=files[:1]).json()["results"]
    assert same(answer, record)
    accept = {"Accept": "application/x-ndjson"}
    lines = ask(app, "POST", "/v1/detect", data=fields, files=files, headers=accept).text.splitlines()
    by_index = {line["index"]: line for line in map(json.loads, lines)}
    assert sorted(by_index) == [0, 1, 2] and by_index[1]["error"]["code"] == "invalid_image"
    assert same(by_index[0], record) and same(by_index[2], record)
    drawn = ask(app, "POST", "/v1/detect", data=fields, files=files[:1], headers={"Accept": "image/png"})
    assert Image.open(io.BytesIO(drawn.content)).size == (250, 130)


def test_too_many_tiles_are_refused_before_anything_is_decoded(app, monkeypatch):
    monkeypatch.setattr(tiled, "read_tiles", None)
    n = Tiles(32, 0.5).count((130, 250))
    answer = detect(app, images=[{"content": b64(WIDE)}], tile=32, overlap=0.5)
    assert answer.json()["code"] == "too_many_tiles"
    assert f"have {n} tiles together, at most 40 a request; give larger tiles" in answer.json()["detail"]
    assert ask(app, "GET", "/v1/model").json()["limits"]["max_request_tiles"] == 40
    lines = ask(
        app, "POST", "/v1/detect", json={"images": [{"content": b64(WIDE)}], "tile": 32, "overlap": 0.5},
        headers={"Accept": "application/x-ndjson"},
    )  # fmt: skip
    assert json.loads(lines.text)["error"]["code"] == "too_many_tiles"


def test_tiles_wait_for_the_model_a_few_at_a_time_and_are_not_kept(app, monkeypatch):
    serving, waiting, most = app.state.serving, 0, []
    submit = serving.batcher.submit
    serving.images._values.clear()

    def counted(picture, then, lane):
        nonlocal waiting
        future = submit(picture, then, lane)
        waiting += picture is not None
        most.append(waiting)

        def done(_):
            nonlocal waiting
            waiting -= picture is not None

        future.add_done_callback(done)
        return future

    monkeypatch.setattr(serving.batcher, "submit", counted)
    pictures = [{"content": b64(encode(noise(130, 250, seed=seed)))} for seed in range(3)]
    answer = detect(app, images=pictures, tile=96, **ASKED)
    assert answer.status_code == 200 and len(answer.json()["results"]) == 3
    assert max(most) == serving.settings.tiles_at_once == 4 and len(most) > 3 * 4
    assert len(serving.images) == 0 and serving.waiting == 0
    # What is known of the whole picture says nothing of its tiles.
    detect(app, images=pictures[:1], **ASKED)
    assert len(serving.images) == 1
    again = detect(app, images=pictures[:1], tile=96, **ASKED)
    assert again.json()["results"][0] == answer.json()["results"][0]


def test_a_small_queue_has_room_for_as_many_pictures_in_tiles_as_without(detector):
    app = create_app(detector, ServerSettings(max_images=3, queue_size=4))
    answer = detect(app, images=[{"content": b64(WIDE)}] * 3, tile=96, **ASKED)
    app.state.serving.close()
    assert answer.status_code == 200 and app.state.serving.settings.tiles_at_once == 1


def test_who_gets_no_answer_in_time_holds_nothing(detector):
    app = create_app(detector, ServerSettings(timeout_s=0.002))
    answer = detect(app, images=[{"content": b64(WIDE)}] * 2, tile=32, **ASKED)
    assert answer.json()["code"] == "timeout"
    serving = app.state.serving
    serving.close()
    assert serving.waiting == 0 and not serving.tiled._held and not serving.tiled._waiting


def test_uploads_to_an_archive_in_tiles_are_bounded_too(detector, tmp_path):
    index = RegionIndex.open(str(tmp_path / "a.lance"), detector, create=True, tiles=Tiles(64))
    app = create_app(detector, ServerSettings(max_request_tiles=12), index=index)
    small, large = encode(noise(60, 90)), encode(noise(400, 400))
    added = ask(app, "POST", "/v1/images", files=[("images", ("a.png", WIDE)), ("images", ("b.png", small))])
    assert added.json().get("added") is None and added.json()["code"] == "too_many_tiles"
    added = ask(app, "POST", "/v1/images", files=[("images", ("b.png", small))])
    assert added.json()["added"] == 1
    assert ask(app, "POST", "/v1/images", files=[("images", ("c.png", large))]).json()["code"] == "too_many_tiles"
    app.state.serving.close()


def test_pictures_are_held_decoded_within_a_bound_in_the_order_of_their_coming():
    room, began = PixelRoom(10), []

    async def hold(name, pixels, until):
        async with room.hold(pixels):
            began.append(name)
            await until.wait()

    async def run():
        ends = {name: asyncio.Event() for name in "abcde"}
        sizes = {"a": 6, "b": 4, "c": 99, "d": 1, "e": 1}
        tasks = {name: asyncio.create_task(hold(name, sizes[name], ends[name])) for name in "abcde"}
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert began == ["a", "b"]
        tasks["d"].cancel()
        for name in "ab":
            ends[name].set()
        await asyncio.wait([tasks["a"], tasks["b"]])
        await asyncio.sleep(0)
        assert began == ["a", "b", "c"]  # larger than all, so alone
        tasks["c"].cancel()
        ends["e"].set()
        await asyncio.wait([tasks["e"]])
        assert began == ["a", "b", "c", "e"] and room._held == 0 and not room._waiting

    asyncio.run(run())
