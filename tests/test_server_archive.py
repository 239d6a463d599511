"""The archive behind the server: uploads, searches by JSON and by form, and a second writer."""

import io
import json
import threading
from types import SimpleNamespace

import pydantic_core
import pytest
from http_client import ask, b64
from picture_files import encode, noise, turned
from PIL import Image
from test_huge import planes, tiff

from owl_swin.errors import ArchiveError, QueryError
from owl_swin.exemplar import Exemplar
from owl_swin.image import open_image
from owl_swin.index import ranking
from owl_swin.index.lock import only_writer
from owl_swin.index.region_index import RegionIndex
from owl_swin.server.app import create_app


@pytest.fixture(scope="module")
def archive(detector, tmp_path_factory):
    index = RegionIndex.open(str(tmp_path_factory.mktemp("archive") / "a.lance"), detector, create=True)
    app = create_app(detector, index=index)
    yield app, index
    app.state.serving.close()


def test_uploads_are_found_shown_and_more_like_them_found(archive, detector):
    app, index = archive
    files = [("images", (f"../{i}.png", encode(noise(60, 90, seed=i)))) for i in range(3)]
    added = ask(app, "POST", "/v1/images", files=files)
    assert added.status_code == 200, added.text
    assert (added.json()["added"], added.json()["skipped"]) == (3, [])
    again = ask(app, "POST", "/v1/images", files=files[:1])
    assert (again.json()["added"], again.json()["unchanged"]) == (0, 1)
    shown = {"exemplars": [{"image": {"content": b64(files[1][1][1])}, "box": [10, 10, 60, 50]}]}
    answer = ask(app, "POST", "/v1/search", json={"query": shown, "limit": 5})
    assert answer.status_code == 200, answer.text
    matches = answer.json()["matches"]
    expected = index.search(Exemplar(files[1][1][1], (10, 10, 60, 50)), limit=5)
    assert [(one["region"], one["score"]) for one in matches] == [(one.region, one.score) for one in expected]
    more = ask(app, "POST", "/v1/search", json={"like_region": matches[0]["region"], "limit": 1})
    assert more.json()["matches"][0]["region"] == matches[0]["region"]
    picture = ask(app, "GET", matches[0]["thumbnail"] + "?size=32")
    assert picture.headers["content-type"] == "image/jpeg" and picture.content[:2] == b"\xff\xd8"
    assert ask(app, "GET", matches[0]["thumbnail"] + "?size=32").content == picture.content
    assert ask(app, "GET", "/v1/model").json()["archive"]["images"] == 3


def test_thumbnails_are_decoded_where_uploads_are_and_of_every_kind_that_is_indexed(archive, monkeypatch):
    app, index = archive
    index.add_images([("a.ppm", encode(noise(70, 110, seed=9), "PPM"))])
    found = index.search(Exemplar(noise(70, 110, seed=9), (0, 0, 110, 70)), limit=1000)
    (image_id,) = {one.image_id for one in found if one.path == "a.ppm"}
    readers, asked = app.state.serving.readers, []
    run = readers.run
    monkeypatch.setattr(readers, "run", lambda lane, pixels, work: asked.append(pixels) or run(lane, pixels, work))
    answer = ask(app, "GET", f"/v1/images/{image_id}?size=20")
    assert answer.status_code == 200, answer.text
    assert Image.open(io.BytesIO(answer.content)).size == (20, 13)
    assert asked == [0, 70 * 110]


@pytest.mark.parametrize(
    "path, status, code",
    [
        ("/v1/images/nope", 404, "no_such_image"),
        ("/v1/images/x%00y", 404, "no_such_image"),
    ],
)
def test_pictures_that_the_archive_has_not_are_not_found(archive, path, status, code):
    answer = ask(archive[0], "GET", path)
    assert answer.status_code == status
    assert answer.json()["code"] == code


@pytest.mark.parametrize("method, path", [("POST", "/v1/search"), ("GET", "/v1/model"), ("GET", "/v1/images/abc")])
def test_an_archive_that_fails_is_no_mistake_of_the_client_and_its_place_stays_in_the_log(
    detector, method, path, caplog
):
    def fail(*_, **__):
        raise ArchiveError("/srv/secret/a.lance: the archive cannot be read (No space left on device)")

    index = SimpleNamespace(search=fail, stats=fail, picture_file=fail, tiles=None, close=lambda: None)
    app = create_app(detector, index=index)
    answer = ask(app, method, path, json={"query": "a dog"} if method == "POST" else None)
    app.state.serving.close()
    assert (answer.status_code, answer.json()["code"]) == (503, "archive_failed")
    assert "secret" not in answer.text and "/srv/secret/a.lance: the archive cannot be read (No space" in caplog.text
    described = app.openapi()["paths"][path.replace("abc", "{image_id}")][method.lower()]
    assert "archive_failed" in json.dumps(described)


def test_a_thumbnail_is_forgotten_with_its_picture(detector, tmp_path):
    index = RegionIndex.open(str(tmp_path / "a.lance"), detector, create=True)
    app = create_app(detector, index=index)
    index.add_images([("a.png", encode(noise(60, 90, seed=30)))])
    (image_id,) = {one.image_id for one in index.search("a dog")}
    assert [ask(app, "GET", f"/v1/images/{image_id}").status_code for _ in range(2)] == [200, 200]
    assert index.holds(image_id) and not index.holds("gone") and not index.holds("../a")
    index.forget_images([image_id])
    assert ask(app, "GET", f"/v1/images/{image_id}").status_code == 404
    app.state.serving.close()


def test_a_search_that_nobody_waits_for_ends(archive, monkeypatch):
    app, index = archive
    index.add_images([("b.png", encode(noise(60, 90, seed=31)))])
    stop, scored = threading.Event(), []
    stop.set()
    monkeypatch.setattr(ranking, "score_rows", lambda *_: scored.append(1))
    with pytest.raises(QueryError, match="the search was stopped"):
        index.search("a dog", exact=True, stop=stop)
    assert not scored
    stops = []
    monkeypatch.setattr(index, "search", lambda *_, stop, **__: stops.append(stop) or [])
    assert ask(app, "POST", "/v1/search", json={"query": "a dog"}).status_code == 200
    assert stops[0].is_set()


def test_names_that_are_no_text_come_as_text(archive):
    app, index = archive
    index.add_images([("caf\udce9.jpg", encode(noise(60, 90, seed=21)))])
    answer = ask(app, "POST", "/v1/search", json={"query": "a dog", "limit": 1000})
    paths = {one["path"] for one in pydantic_core.from_json(answer.content)["matches"]}  # which reads strictly
    assert "caf\ufffd.jpg" in paths


def test_a_region_that_is_not_there_is_a_wrong_query(archive):
    answer = ask(archive[0], "POST", "/v1/search", json={"like_region": "nope"})
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_query")


def test_a_form_asks_what_json_asks(archive):
    app, _ = archive
    fields = {
        "query": "a red mug",
        "limit": "3",
        "offset": "1",
        "path_glob": "*.png",
        "exact": "true",
        "per_image": "2",
    }
    told = {"query": "a red mug", "limit": 3, "offset": 1, "path_glob": "*.png", "exact": True, "per_image": 2}
    # Multipart, as curl -F sends it.
    by_form = ask(app, "POST", "/v1/search", files=[(name, (None, value)) for name, value in fields.items()])
    assert by_form.status_code == 200, by_form.text
    assert by_form.json() == ask(app, "POST", "/v1/search", json=told).json()
    assert len(by_form.json()["matches"]) == 3


@pytest.mark.parametrize(
    "fields, sentence",
    [
        ([("query", "a"), ("query", "b")], "the field query comes 2 times, a search is for one"),
        ([("query", "a"), ("exact", "yes")], "expected true or false, got 'yes'"),
        ([("query", "a"), ("top_k", "3")], "#/top_k"),
    ],
)
def test_a_form_that_means_no_search_is_refused(archive, fields, sentence):
    answer = ask(archive[0], "POST", "/v1/search", files=[(name, (None, value)) for name, value in fields])
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")
    assert sentence in answer.json()["detail"]


def test_the_form_of_a_search_is_documented(archive):
    search = ask(archive[0], "GET", "/openapi.json").json()["paths"]["/v1/search"]["post"]
    form = search["requestBody"]["content"]["multipart/form-data"]["schema"]["properties"]
    assert form["query"]["type"] == "string" and form["limit"]["maximum"] == 1000
    assert {"request", "offset", "path_glob", "like_region", "exact", "newer_than"} <= form.keys()


def test_while_another_process_writes_to_the_archive_uploads_are_refused_and_searches_answered(archive, tmp_path):
    app, index = archive
    files = [("images", ("late.png", encode(noise(60, 90, seed=9))))]
    with only_writer(index._store.uri, wait=False):
        refused = ask(app, "POST", "/v1/images", files=files)
        found = ask(app, "POST", "/v1/search", json={"query": "a red mug"})
    assert (refused.status_code, refused.json()["code"]) == (503, "archive_busy")
    assert int(refused.headers["retry-after"]) > 0
    assert str(tmp_path.parent) not in refused.text
    assert found.status_code == 200
    assert app.state.serving.waiting == 0
    assert ask(app, "POST", "/v1/images", files=files).json()["added"] == 1


def test_thumbnails_of_an_archive_in_tiles_may_be_of_huge_pictures(detector, tmp_path, monkeypatch):
    for module in ("owl_swin.huge", "owl_swin.image", "owl_swin.server.pictures"):
        monkeypatch.setattr(f"{module}.MAX_PIXELS", 10_000)
    monkeypatch.setattr(open_image, "__kwdefaults__", {"max_pixels": 10_000})
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "large.tif").write_bytes(tiff(planes(noise(130, 250)), tiled=True, blockxsize=64, blockysize=64))
    (folder / "turned.jpg").write_bytes(turned(noise(130, 250), 6))
    with RegionIndex.open(str(tmp_path / "a.lance"), detector, create=True, tiles=96) as index:
        index.add_folder(folder)
        app = create_app(detector, index=index)
        found = {one.path.rsplit("/")[-1]: one for one in index.search("x", limit=200)}
        for name, size in (("large.tif", (100, 52)), ("turned.jpg", (100, 52))):
            answer = ask(app, "GET", f"/v1/images/{found[name].image_id}?size=100")
            assert answer.status_code == 200, answer.text
            assert Image.open(io.BytesIO(answer.content)).size == size
        (folder / "large.tif").write_bytes(b"something else")
        gone = ask(app, "GET", f"/v1/images/{found['large.tif'].image_id}?size=90")
        assert gone.json()["code"] == "no_such_image"
        app.state.serving.close()
