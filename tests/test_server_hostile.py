"""Requests that mean harm, or are merely broken: each is refused with a status and a code, and the server lives on."""

import contextlib
import gzip
import io
import json
import socket
import struct
import time
import zlib

import pytest
from http_client import ask, b64, read_answer, running
from picture_files import BAD_FILES, bmp_that_skips, encode, noise, png_claiming, tiff_of_tiles
from PIL import Image, PngImagePlugin

from owl_swin.detector import Detector
from owl_swin.server.app import create_app
from owl_swin.server.settings import ServerSettings

PICTURE = encode(noise(60, 90))
LIMITS = {
    "max_body_bytes": 2**20, "max_pixels": 10**6, "max_request_pixels": 2 * 10**6, "max_images": 3, "max_queries": 20,
    "max_exemplars": 3,
}  # fmt: skip


@pytest.fixture(scope="module")
def app(detector):
    app = create_app(detector, ServerSettings(**LIMITS, url_hosts=("localhost", "pictures.example")))
    yield app
    app.state.serving.close()


def post(path="/v1/detect", **options):
    return ("POST", path, options)


def told(**body):
    """A request as JSON, with a good picture unless another is given."""
    return post(json={"images": [{"content": b64(PICTURE)}], **body})


def raw(body: bytes, kind="application/json", path="/v1/detect", **headers):
    return post(path, content=body, headers={"Content-Type": kind, **headers})


def picture(content: bytes):
    return told(images=[{"content": b64(content)}])


def form(*parts: tuple[str, bytes], tail: bytes = b"--b--\r\n", head: bytes = b""):
    body = b"".join(b"--b\r\nContent-Disposition: %s\r\n\r\n%s\r\n" % (p[0].encode(), p[1]) for p in parts)
    return raw(head + body + tail, "multipart/form-data; boundary=b")


def saved(content: bytes):
    return told(queries=[{"saved": {"content": b64(content)}}])


def fetched(url: str):
    return told(images=[{"url": url}])


def shown(box):
    return told(queries=[{"exemplars": [{"image": {"content": b64(PICTURE)}, "box": box}]}])


def animation(form: str) -> bytes:
    content = io.BytesIO()
    noise(20, 20).save(content, form, save_all=True, append_images=[noise(20, 20, 1)], duration=50)
    return content.getvalue()


def png_text_bomb() -> bytes:
    """A small picture with 100 MB of text, compressed."""
    info = PngImagePlugin.PngInfo()
    info.add_text("Comment", "a" * 100_000_000, zip=True)
    return encode(noise(20, 20), pnginfo=info)


def png_bomb(side: int) -> bytes:
    """A whole and honest PNG of a few kilobytes that unpacks to side x side pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes((side // 8 + 1) * side), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def saved_head(n_tensors: int = 0, **fields) -> bytes:
    """A file of saved queries that has a head only."""
    tensors = {f"t{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(n_tensors)}
    made = {"names": [], "routes": [], "extra_routes": [], "fingerprint": "", **fields}
    metadata = {"format": "owl_swin-queries-1", "queries": json.dumps(made)}
    head = json.dumps({"__metadata__": metadata, **tensors}).encode()
    return struct.pack("<Q", len(head)) + head


def nested(depth: int) -> list:
    value: list = []
    for _ in range(depth):
        value = [value]
    return value


SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'
XXE = b'<!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]><svg>&e;</svg>'
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) run\n"
IMAGE = 'form-data; name="images"; filename="a.png"'
INVALID_JSON, INVALID, IMAGE_CODE, QUERY = "invalid_json", "invalid_request", "invalid_image", "invalid_query"
COMPLEX = "body_too_complex"

# kind: (request, status, code)
HOSTILE = {
    # The body as such
    "empty body": (raw(b""), 400, INVALID_JSON),
    "not JSON": (raw(b"hello"), 400, INVALID_JSON),
    "JSON cut off": (raw(b'{"images": [{"content": "aGVs'), 400, INVALID_JSON),
    "JSON followed by more": (raw(b"{} {}"), 400, INVALID_JSON),
    "JSON 100 000 deep": (raw(b"[" * 100_000), 413, COMPLEX),
    "JSON 1000 deep": (raw(b"[" * 1000), 400, INVALID_JSON),
    "objects 10 000 deep": (raw(b'{"images":' * 10_000), 400, INVALID_JSON),
    "bytes that are no UTF-8": (raw(b'{"queries": ["\xff\xfe"]}'), 400, INVALID_JSON),
    "half a surrogate": (raw(b'{"queries": ["\\ud800"]}'), 400, INVALID_JSON),
    "UTF-16": (raw('{"queries": ["a"]}'.encode("utf-16")), 400, INVALID_JSON),
    "a list": (raw(b"[]"), 422, INVALID),
    "null": (raw(b"null"), 422, INVALID),
    "a number of 5000 digits": (raw(b'{"top_k": ' + b"9" * 5000 + b"}"), 400, INVALID_JSON),
    "unknown field": (told(querys=["a"]), 422, INVALID),
    "__proto__": (raw(b'{"__proto__": {"admin": true}}'), 422, INVALID),
    "no picture": (told(images=[]), 422, INVALID),
    "plain text": (raw(b"a dog", "text/plain"), 415, "unsupported_media_type"),
    "no Content-Type": (post(content=b"{}"), 415, "unsupported_media_type"),
    "urlencoded form": (post(data={"query": "a dog"}), 415, "unsupported_media_type"),
    "XML": (raw(XXE, "application/xml"), 415, "unsupported_media_type"),
    "gzip-encoded body": (
        raw(gzip.compress(bytes(10**8)), **{"Content-Encoding": "gzip"}),
        415,
        "encoded_body",
    ),
    "deflate twice": (raw(b"x", **{"Content-Encoding": "deflate, deflate"}), 415, "encoded_body"),
    "2 MB where 1 MB is read": (raw(bytes(2 * 2**20)), 413, "body_too_large"),
    "Content-Length of 10 GB": (raw(b"x", **{"Content-Length": "10000000000"}), 413, "body_too_large"),
    "Content-Length of 10^30": (raw(b"x", **{"Content-Length": "1" + "0" * 30}), 413, "body_too_large"),
    "Content-Length below zero": (raw(b"x", **{"Content-Length": "-1"}), 400, "invalid_content_length"),
    # Many values
    "500 000 numbers as queries": (raw(b'{"images": [], "queries": [' + b"1," * 500_000 + b"1]}"), 413, COMPLEX),
    "10 000 numbers as queries": (raw(b'{"images": [], "queries": [' + b"1," * 10_000 + b"1]}"), 422, INVALID),
    "300 000 empty pictures": (raw(b'{"images": [' + b"{}," * 300_000 + b"{}]}"), 413, COMPLEX),
    "9 000 empty pictures": (raw(b'{"images": [' + b"{}," * 9_000 + b"{}]}"), 422, INVALID),
    "100 000 unknown keys": (raw(b"{" + b'"k":1,' * 100_000 + b'"k":1}'), 413, COMPLEX),
    "9 000 unknown keys": (raw(b"{" + b'"k":1,' * 9_000 + b'"k":1}'), 422, INVALID),
    "lists in lists, 100 000 times": (raw(b'{"queries": [' + b"[[]]," * 100_000 + b"1]}"), 413, COMPLEX),
    "an unknown list of 400 000 nulls": (raw(b'{"x": [' + b"0," * 400_000 + b"0]}"), 413, COMPLEX),
    "200 000 corners of a box": (
        raw(b'{"queries": [{"exemplars": [{"image": {"content": ""}, "box": [' + b"1," * 200_000 + b"1]}]}]}"),
        413,
        COMPLEX,
    ),
    "500 000 numbers in a form": (form(('form-data; name="request"', b"[" + b"1," * 500_000 + b"1]")), 413, COMPLEX),
    # Numbers and types
    "threshold NaN": (raw(b'{"threshold": NaN}'), 422, INVALID),
    "threshold Infinity": (raw(b'{"threshold": Infinity}'), 422, INVALID),
    "threshold 1e400": (raw(b'{"threshold": 1e400}'), 422, INVALID),
    "threshold -1": (told(threshold=-1), 422, INVALID),
    "threshold as text": (told(threshold="0.3"), 422, INVALID),
    "threshold true": (told(threshold=True), 422, INVALID),
    "thresholds without queries to match": (told(queries=["a"], threshold=[0.1, 0.2]), 422, QUERY),
    "top_k 0": (told(top_k=0), 422, INVALID),
    "top_k 10^18": (told(top_k=10**18), 422, INVALID),
    "top_k 2.5": (told(top_k=2.5), 422, INVALID),
    "tiles of 31 pixels": (told(tile=31), 422, INVALID),
    "tiles of 10^18 pixels": (told(tile=10**18), 422, INVALID),
    "tiles of 640.5 pixels": (told(tile=640.5), 422, INVALID),
    "tiles true": (told(tile=True), 422, INVALID),
    "tiles as a list of boxes": (told(tile=[[0, 0, 10, 10]] * 1000), 422, INVALID),
    "tiles that overlap whole": (told(tile=64, overlap=1), 422, INVALID),
    "tiles that overlap by NaN": (raw(b'{"tile": 64, "overlap": NaN}'), 422, INVALID),
    "an overlap without tiles": (told(overlap=0.5), 422, INVALID),
    "tiles in a form as text": (form((IMAGE, PICTURE), ('form-data; name="tile"', b"many")), 422, INVALID),
    "tiles in a form of 5000 digits": (form((IMAGE, PICTURE), ('form-data; name="tile"', b"9" * 5000)), 422, INVALID),
    "tiles of what is classified": (
        post("/v1/classify", json={"images": [{"content": b64(PICTURE)}], "queries": ["a"], "tile": 64}),
        422,
        INVALID,
    ),
    "a hundred thousand tiles of a picture": (
        told(images=[{"content": b64(png_bomb(999))}], tile=32, overlap=0.9),
        422,
        "too_many_tiles",
    ),
    "too many tiles of three pictures together": (
        told(images=[{"content": b64(encode(noise(300, 300)))}] * 3, tile=32),
        422,
        "too_many_tiles",
    ),
    "tiles of a picture that claims 20 000 x 20 000": (
        told(images=[{"content": b64(png_claiming(20_000, 20_000))}], tile=4096),
        422,
        "image_too_large",
    ),
    "tiles of a picture that is cut off": (
        told(images=[{"content": b64(encode(noise(200, 200))[:200])}], tile=64),
        422,
        IMAGE_CODE,
    ),
    "nms_iou 2": (told(nms_iou=2), 422, INVALID),
    "weight NaN": (raw(b'{"queries": [{"texts": ["a"], "weight": NaN}]}'), 422, INVALID),
    # Queries
    "10 000 queries": (told(queries=["a"] * 10_000), 422, "too_many_queries"),
    "10 000 texts of one query": (told(queries=[{"texts": ["a"] * 10_000}]), 422, "too_many_queries"),
    "10 000 negatives": (told(queries=[{"texts": ["a"], "negatives": ["b"] * 10_000}]), 422, "too_many_queries"),
    "a text of 500 000 characters": (told(queries=["a" * 500_000]), 422, QUERY),
    "an empty text": (told(queries=[""]), 422, QUERY),
    "a text of blanks": (told(queries=[" \t\n"]), 422, QUERY),
    "no queries in the list": (told(queries=[]), 422, QUERY),
    "a number as query": (told(queries=[1]), 422, INVALID),
    "a query of nothing": (told(queries=[{}]), 422, QUERY),
    "only negatives": (told(queries=[{"negatives": ["a"]}]), 422, QUERY),
    "too many exemplars": (
        told(queries=[{"exemplars": [{"image": {"content": b64(PICTURE)}}] * 4}]),
        422,
        "too_many_queries",
    ),
    "box of three numbers": (shown([1, 2, 3]), 422, INVALID),
    "box inverted": (shown([50, 50, 10, 10]), 422, QUERY),
    "box outside": (shown([1000, 1000, 2000, 2000]), 422, QUERY),
    "box of huge numbers": (shown([-1e308, -1e308, 1e308, 1e308]), 422, QUERY),
    "exemplar that is no picture": (
        told(queries=[{"exemplars": [{"image": {"content": b64(b"x")}}]}]),
        422,
        IMAGE_CODE,
    ),
    "saved query: noise": (saved(bytes(range(256)) * 40), 422, QUERY),
    "saved query: pickle": (saved(b"\x80\x04\x95cos\nsystem\n(S'id'\ntR."), 422, QUERY),
    "saved query: header of 2^60 bytes": (saved(struct.pack("<Q", 2**60) + b"{}"), 422, QUERY),
    "saved query: 3000 tensors": (saved(saved_head(3000)), 422, QUERY),
    "saved query: 100 000 names": (saved(saved_head(names=[""] * 100_000)), 422, QUERY),
    "saved query: names 900 deep": (saved(saved_head(names=nested(900))), 422, QUERY),
    "saved query: names 9000 deep": (
        saved(saved_head().replace(b'names\\": []', b'names\\": ' + b"[" * 9000)),
        422,
        QUERY,
    ),
    "saved query: empty": (saved(b""), 422, QUERY),
    # Pictures
    **{f"picture file: {name}": (picture(content), 422, IMAGE_CODE) for name, (content, _) in BAD_FILES.items()
       if name not in ("bomb.png", "large.png")},
    "picture that claims 20 000 x 20 000": (picture(png_claiming(20_000, 20_000)), 422, "image_too_large"),
    "picture that claims 2^31 x 2^31": (picture(png_claiming(2**31 - 1, 2**31 - 1)), 422, "image_too_large"),
    "PNG bomb, 12 000 x 12 000 in 20 kB": (picture(png_bomb(12_000)), 422, "image_too_large"),
    "PNG with 100 MB of text": (picture(png_text_bomb()), 422, IMAGE_CODE),
    "animated GIF": (picture(animation("GIF")), 422, IMAGE_CODE),
    "animated WebP": (picture(animation("WEBP")), 422, IMAGE_CODE),
    "animated PNG": (picture(animation("PNG")), 422, IMAGE_CODE),
    "TIFF of two pages": (picture(animation("TIFF")), 422, IMAGE_CODE),
    "TIFF of 100 pixels in a tile of 4 000 000": (picture(tiff_of_tiles(2000)), 422, "image_too_large"),
    "TIFF whose tile has two sizes": (picture(tiff_of_tiles(2000, 16)), 422, "image_too_large"),
    "BMP whose one step skips 255 rows": (picture(bmp_that_skips(60_000)), 422, IMAGE_CODE),
    "PNG of one row of 100 000 pixels": (picture(png_claiming(100_000, 1)), 422, "image_too_large"),
    "SVG with a script": (picture(SVG), 422, IMAGE_CODE),
    "SVG that names a file": (picture(XXE), 422, IMAGE_CODE),
    "EPS program": (picture(EPS), 422, IMAGE_CODE),
    "gzip bomb as picture": (picture(gzip.compress(bytes(10**8))), 422, IMAGE_CODE),
    "PDF": (picture(b"%PDF-1.7\n1 0 obj\n"), 422, IMAGE_CODE),
    "base64 with foreign letters": (told(images=[{"content": "a*b~"}]), 422, INVALID),
    "base64 cut off": (told(images=[{"content": b64(PICTURE)[:-3]}]), 422, INVALID),
    "base64 of letters beyond ASCII": (told(images=[{"content": "äöü="}]), 422, INVALID),
    "data URL that is not base64": (told(images=[{"content": "data:image/svg+xml,<svg/>"}]), 422, INVALID),
    "picture given twice over": (told(images=[{"content": "", "url": "http://a"}]), 422, INVALID),
    "path in place of a picture": (told(images=["/etc/passwd"]), 422, INVALID),
    "file that was not uploaded": (told(images=[{"file": "../../etc/passwd"}]), 422, INVALID),
    "four pictures where three are read": (told(images=[{"content": b64(PICTURE)}] * 4), 422, "too_many_images"),
    "a picture's name of 10 000 characters": (
        told(images=[{"content": b64(PICTURE), "name": "a" * 10_000}]),
        422,
        INVALID,
    ),
    "three grey pictures of 1 MP where 2 MP are read": (
        told(images=[{"content": b64(png_bomb(999 + i))} for i in range(-2, 1)]),
        422,
        "too_many_pixels",
    ),
    "exemplars of 3 MP where 2 MP are read": (
        told(queries=[{"exemplars": [{"image": {"content": b64(png_bomb(996 + i))}} for i in range(3)]}]),
        422,
        "too_many_pixels",
    ),
    "an exemplar that claims 20 000 x 20 000": (
        told(queries=[{"exemplars": [{"image": {"content": b64(png_claiming(20_000, 20_000))}}]}]),
        422,
        "image_too_large",
    ),
    # URLs
    "URL of a host not named": (fetched("http://example.com/a.png"), 403, "url_not_allowed"),
    "URL of this machine": (fetched("http://localhost/a.png"), 403, "url_not_allowed"),
    "URL of another port": (fetched("http://localhost:22/"), 403, "url_not_allowed"),
    "URL of a cloud's metadata": (fetched("http://169.254.169.254/latest/"), 403, "url_not_allowed"),
    "URL of a file": (fetched("file:///etc/passwd"), 403, "url_not_allowed"),
    "URL with a user": (fetched("http://pictures.example@127.0.0.1/"), 403, "url_not_allowed"),
    "URL with a line break": (fetched("http://localhost/a\r\nHost: b"), 403, "url_not_allowed"),
    "URL with a bad port": (fetched("http://localhost:99999/"), 403, "url_not_allowed"),
    "URL that is none": (fetched("http://[::1"), 403, "url_not_allowed"),
    # Forms
    "form without boundary": (raw(b"--b\r\n", "multipart/form-data"), 400, "invalid_multipart"),
    "form with a boundary of 10 000 letters": (
        raw(b"x", "multipart/form-data; boundary=" + "b" * 10_000),
        400,
        "invalid_multipart",
    ),
    "form without its end": (form((IMAGE, PICTURE), tail=b""), 400, "invalid_multipart"),
    "form cut off in a picture": (
        form(tail=b"--b\r\nContent-Disposition: " + IMAGE.encode() + b"\r\n\r\n" + PICTURE[:50]),
        400,
        "invalid_multipart",
    ),
    "form of another boundary": (form((IMAGE, PICTURE), head=b"--c\r\n"), 400, "invalid_multipart"),
    "form of 1000 parts": (form(*[('form-data; name="query"', b"a")] * 1000), 400, "invalid_multipart"),
    "form with a header of 100 kB": (form((IMAGE + "; x=" + "a" * 100_000, PICTURE)), 400, "invalid_multipart"),
    "part without a name": (form(("form-data", b"x")), 400, "invalid_multipart"),
    "part of an unknown name": (form((IMAGE, PICTURE), ('form-data; name="path"', b"/")), 422, INVALID),
    "threshold in a form as text": (form((IMAGE, PICTURE), ('form-data; name="threshold"', b"x")), 422, INVALID),
    "threshold in a form NaN": (form((IMAGE, PICTURE), ('form-data; name="threshold"', b"nan")), 422, INVALID),
    "threshold in a form twice": (form(*[('form-data; name="threshold"', b"0.1")] * 2), 422, INVALID),
    "query in a form that is no UTF-8": (form((IMAGE, PICTURE), ('form-data; name="query"', b"\xff")), 422, INVALID),
    "part in base64": (
        raw(
            b'--b\r\nContent-Disposition: form-data; name="images"\r\n'
            b"Content-Transfer-Encoding: base64\r\n\r\nYQ==\r\n--b--",
            "multipart/form-data; boundary=b",
        ),
        415,
        "encoded_body",
    ),
    "JSON and fields in one form": (
        form(('form-data; name="request"', b"{}"), ('form-data; name="top_k"', b"1")),
        422,
        INVALID,
    ),
    # Forms of the answer
    "a form that is not offered": (post(json={}, headers={"Accept": "text/html"}), 406, "not_acceptable"),
    "an Accept of 20 000 entries": (post(json={}, headers={"Accept": "a/b;q=1," * 20_000}), 406, "not_acceptable"),
    "several pictures as one": (
        post(json={"images": [{"content": b64(PICTURE)}] * 2}, headers={"Accept": "image/png"}),
        422,
        INVALID,
    ),
    "lines of no picture": (post(json={"images": []}, headers={"Accept": "application/x-ndjson"}), 422, INVALID),
    "17 maps of a picture": (
        post("/v1/similarity", json={"images": [{"content": b64(PICTURE)}], "queries": ["a"] * 17}),
        422,
        INVALID,
    ),
    "a template of templates": (
        post("/v1/classify", json={"images": [{"content": b64(PICTURE)}], "queries": ["a"], "templates": ["{}" * 99]}),
        422,
        INVALID,
    ),
    "more texts in templates than queries": (
        post("/v1/classify", json={"images": [{"content": b64(PICTURE)}], "queries": ["a", "b", "c", "d", "e"]}),
        422,
        "too_many_queries",
    ),
    # Paths and methods
    "path that is not there": (("GET", "/v1/nope", {}), 404, "not_found"),
    "path that climbs": (("GET", "/v1/images/..%2f..%2fetc%2fpasswd", {}), 404, "not_found"),
    "thumbnail without an archive": (("GET", "/v1/images/1", {}), 404, "no_archive"),
    "thumbnail of 10^9 pixels": (("GET", "/v1/images/1?size=1000000000", {}), 422, INVALID),
    "search without an archive": (post("/v1/search", json={"query": "a"}), 404, "no_archive"),
    "search for nothing": (post("/v1/search", json={}), 422, INVALID),
    "wrong method": (("DELETE", "/v1/detect", {}), 405, "method_not_allowed"),
    "page of another site": (post(json={}, headers={"Origin": "https://evil.example"}), 403, "cross_origin"),
    "Origin that is none": (post(json={}, headers={"Origin": "http://[x"}), 403, "cross_origin"),
    "Host that is none": (post(json={}, headers={"Host": "[x"}), 400, "invalid_header"),
    "Host of port 99999": (post(json={}, headers={"Host": "localhost:99999"}), 400, "invalid_header"),
    "X-Forwarded-Host that is none": (post(json={}, headers={"X-Forwarded-Host": "[x"}), 400, "invalid_header"),
    "path with a line break": (("GET", "/v1/a%0aERROR%20forged", {}), 404, "not_found"),
    "name of another host": (post(json={}, headers={"Host": "evil.example"}), 403, "wrong_host"),
}  # fmt: skip


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_request_is_refused_and_the_server_lives(app, kind):
    (method, path, options), status, code = HOSTILE[kind]
    answer = ask(app, method, path, **options)
    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text[:500]
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["status"] == status and len(answer.text) < 5000
    for inside in ("Traceback", "/tmp", "site-packages", "root:"):
        assert inside not in answer.text
    assert ask(app, "GET", "/healthz").status_code == 200


def test_after_all_of_it_nothing_is_held_and_pictures_are_found(app):
    answer = ask(app, *told(queries=["cat"])[:2], json={"images": [{"content": b64(PICTURE)}], "threshold": 0.0})
    assert answer.status_code == 200 and answer.json()["results"][0]["detections"]
    assert (app.state.serving.waiting, app.state.serving.held_bytes, len(app.state.serving.batcher)) == (0, 0, 0)


def test_at_least_a_hundred_kinds_are_tried():
    assert len(HOSTILE) >= 100


# --- Over a socket: what only a real connection can do -------------------------------------------------------------

HEAD = b"POST /v1/detect HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


class SlowDetector(Detector):
    """Takes a while, so that a client has the time to go away."""

    encoded = 0

    def encode_images(self, images, **options):
        self.encoded += len(images)
        time.sleep(0.2)
        return super().encode_images(images, **options)


@pytest.fixture(scope="module")
def slow(tiny_model):
    return SlowDetector(tiny_model, device="cpu")


@pytest.fixture(scope="module")
def server(slow):
    limits = {"max_body_bytes": 2**20, "head_timeout_s": 0.4, "body_timeout_s": 0.4, "max_connections": 20}
    with running(slow, max_batch=1, **limits) as server:
        yield server


WIRE = {
    "Content-Length of 10 GB": (HEAD + b"Content-Length: 10000000000\r\n\r\n{", 413, "body_too_large"),
    "chunks without end": (
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + (b"10000\r\n" + bytes(65536) + b"\r\n") * 40,
        413,
        "body_too_large",
    ),
    "a chunk of 2^64 bytes": (
        HEAD + b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n{",
        408,
        "request_timeout",
    ),
    "a chunk's size that is none": (HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", 400, "invalid_http"),
    "two lengths": (HEAD + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}", 400, "invalid_http"),
    "a length that is none": (HEAD + b"Content-Length: abc\r\n\r\n{}", 400, "invalid_http"),
    "less body than promised": (HEAD + b"Content-Length: 100\r\n\r\n{", 408, "request_timeout"),
    "no HTTP": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 hello\r\n\r\n", 400, "invalid_http"),
    "HTTP/0.9": (b"GET /\r\n\r\n", 400, "invalid_http"),
    "no Host": (b"GET /v1/model HTTP/1.1\r\n\r\n", 400, "invalid_http"),
    "a head of 200 kB": (b"GET /v1/model HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 200_000, 400, "invalid_http"),
    "a header with a line break": (b"GET / HTTP/1.1\r\nHost: a\nb: \x00\r\n\r\n", 400, "invalid_http"),
    "slow-loris: a head that does not end": (b"GET /v1/model HTTP/1.1\r\nHost: loc", 408, "request_timeout"),
    "a connection that says nothing": (b"", 408, "request_timeout"),
}


@pytest.mark.parametrize("kind", WIRE)
def test_hostile_bytes_on_the_wire_are_refused(server, kind):
    sent, status, code = WIRE[kind]
    answered, problem = server.send(sent)
    assert (answered, problem.get("code")) == (status, code)
    assert server.send(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n") == (200, {"status": "ok"})


def test_a_body_that_began_quickly_may_not_drip_for_as_long_as_it_saved(server):
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(HEAD + b"Content-Length: 1000000\r\n\r\n" + b" " * 900_000)  # 55 s of 16 KiB each
        began = time.monotonic()
        connection.settimeout(0.1)
        answer = b""
        while not answer and time.monotonic() - began < 20:
            connection.sendall(b" ")
            with contextlib.suppress(TimeoutError):
                answer = connection.recv(100)
        assert answer.startswith(b"HTTP/1.1 408")


def test_nothing_is_said_after_an_answer_that_ends_a_body(server, caplog):
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 5000)
        for _ in range(3):
            connection.sendall(b"1\r\nx\r\n" * 5000)
            time.sleep(0.05)
        assert read_answer(connection)[0] == 400
    assert server.send(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n") == (200, {"status": "ok"})
    assert "write" not in caplog.text and "Exception" not in caplog.text


def test_slow_loris_that_drips_is_cut_off(server):
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(HEAD + b"Content-Length: 1000\r\n\r\n")
        for _ in range(100):
            try:
                connection.sendall(b" ")
            except OSError:
                break
            time.sleep(0.05)
            connection.settimeout(0.001)
            try:
                if connection.recv(1, socket.MSG_PEEK):
                    break
            except TimeoutError:
                continue
            finally:
                connection.settimeout(10)
        assert read_answer(connection)[0] == 408


def test_one_connection_too_many_is_told_so(server):
    held = [socket.create_connection(("127.0.0.1", server.port), timeout=10) for _ in range(20)]
    try:
        status, problem = server.send(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert (status, problem["code"]) == (503, "busy")
    finally:
        for connection in held:
            connection.close()
    time.sleep(0.1)
    assert server.send(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")[0] == 200


def test_the_work_of_a_client_that_went_away_is_dropped(server, slow):
    body = [json.dumps({"images": [{"content": b64(encode(noise(60, 90, seed)))}]}).encode() for seed in range(6)]
    before = slow.encoded
    connections = []
    for content in body:
        connection = socket.create_connection(("127.0.0.1", server.port), timeout=10)
        connection.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(content) + content)
        connections.append(connection)
    time.sleep(0.1)  # the first is with the model, the others wait
    for connection in connections[1:5]:
        connection.close()
    assert read_answer(connections[0])[0] == read_answer(connections[5])[0] == 200
    assert slow.encoded - before < 6
    serving = server.server.serving
    assert (serving.waiting, serving.held_bytes, len(serving.batcher)) == (0, 0, 0)


def test_a_picture_of_another_model_size_is_found_by_its_own_pixels(server):
    wide = Image.new("RGB", (200, 20), "white")
    body = json.dumps({"images": [{"content": b64(encode(wide))}], "threshold": 0.0}).encode()
    status, answer = server.send(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)
    assert (status, answer["results"][0]["width"], answer["results"][0]["height"]) == (200, 200, 20)


DOCS = b"GET /docs HTTP/1.1\r\nHost: localhost\r\n\r\n"


def many_answers_unread(server) -> socket.socket:
    """A client that asks for more than the system takes on its way to it, and reads nothing."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 * 1024)
    connection.connect(("127.0.0.1", server.port))
    connection.settimeout(10)
    connection.sendall(DOCS * 300)
    return connection


def wait_until(met) -> bool:
    for _ in range(200):
        if met():
            return True
        time.sleep(0.05)
    return False


def test_a_client_that_does_not_read_its_answers_is_cut_off(server, monkeypatch):
    monkeypatch.setattr("owl_swin.server.run.UNREAD_S", 0.2)
    connections = server.server.server_state.connections
    assert wait_until(lambda: not connections)
    with many_answers_unread(server):
        assert wait_until(lambda: connections)
        assert wait_until(lambda: not connections)


def test_a_client_that_reads_slowly_gets_all_of_its_answers(server, monkeypatch):
    monkeypatch.setattr("owl_swin.server.run.UNREAD_S", 0.5)
    got = bytearray()
    with many_answers_unread(server) as connection:
        while got.count(b"HTTP/1.1 200") < 300 and (part := connection.recv(65536)):
            got += part
            time.sleep(0.001)
    assert got.count(b"HTTP/1.1 200") == 300
