"""Clients of the API: those of the documentation as they stand there, and those that generators make of its schema."""

import html
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
from http_client import ask, running
from openapi_spec_validator import OpenAPIV31SpecValidator
from picture_files import encode, noise
from PIL import Image

from owl_swin.formats import to_record
from owl_swin.server.app import create_app
from owl_swin.server.settings import ServerSettings

TOKEN = "open-sesame"
# Where `make generators` puts them: they need other versions of what the tests need.
GENERATORS = Path(__file__).parent.parent / "out" / "generators"
SEARCHED = os.pathsep.join([str(GENERATORS / "bin"), str(GENERATORS / "node_modules" / ".bin"), os.environ["PATH"]])
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def needs(program: str, advice: str = "make generators"):
    """Skips a test where a program is missing."""
    there = shutil.which(program, path=SEARCHED) is not None
    return pytest.mark.skipif(not there, reason=f"NO {program}: its clients are not tested here; {advice}")


@pytest.fixture(scope="module")
def server(detector):
    settings = {"token": TOKEN, "allow_origins": ("*",), "max_batch": 1}
    with running(detector, **settings) as server:
        yield server


@pytest.fixture(scope="module")
def document(server):
    return httpx.get(f"{server.url}/openapi.json", headers={"Authorization": f"Bearer {TOKEN}"}).json()


@pytest.fixture
def photos(tmp_path):
    """Two pictures and a file that is none."""
    for i, name in enumerate(("kitchen.png", "Flur ü.png")):
        (tmp_path / name).write_bytes(encode(noise(60, 90, seed=i)))
    (tmp_path / "broken.png").write_bytes(b"no picture")
    return [tmp_path / name for name in ("kitchen.png", "Flur ü.png", "broken.png")]


def example(server, language: str) -> str:
    """The client of the documentation."""
    page = httpx.get(f"{server.url}/docs", headers={"Authorization": f"Bearer {TOKEN}"}).text
    return html.unescape(re.search(rf"<h2 id='{language}'>.*?</h2><pre>(.*?)</pre>", page, re.DOTALL)[1])


def run(*command, cwd: Path, **environment: str) -> str:
    given = {**os.environ, "PATH": SEARCHED, "NO_PROXY": "127.0.0.1,localhost", **environment}
    ended = subprocess.run([*map(str, command)], cwd=cwd, env=given, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def check(said: dict, photos: list[Path], detector) -> None:
    """What a client found is what the Python call finds."""
    expected = [to_record(photo.name, detector.detect(photo, ["a cat"])) for photo in photos[:2]]
    assert said["first"] == expected[0]["detections"] and said["first"]
    rows = sorted(said["each"], key=lambda row: row["index"])
    assert rows[:2] == [{"index": i, **one} for i, one in enumerate(expected)]
    assert rows[2]["error"]["code"] == "invalid_image"
    assert len(rows) == 3


# --- The documentation ---------------------------------------------------------------------------------------------


def test_the_python_client_of_the_documentation_runs_as_it_stands(server, photos, detector, tmp_path):
    (tmp_path / "client.py").write_text(example(server, "python"))
    access = {"OWL_SWIN_URL": server.url, "OWL_SWIN_TOKEN": TOKEN}
    said = run(sys.executable, "client.py", "a cat", *(photo.name for photo in photos), cwd=tmp_path, **access)
    first, *each = map(json.loads, said.splitlines())
    check({**first, "each": each}, photos, detector)
    assert Image.open(tmp_path / "kitchen_found.png").size == (90, 60)
    with pytest.raises(AssertionError, match=r"unauthorized: send the token.*\(request [0-9a-f]{32}\)"):
        run(sys.executable, "client.py", "a cat", photos[0].name, cwd=tmp_path, OWL_SWIN_URL=server.url)


USE = """
const each = [];
const options = { token: "open-sesame" };
for await (const row of detectEach(server, pictures, ["a cat"], options)) each.push(row);
const first = await detect(server, pictures[0], ["a cat"], options);
const png = [...new Uint8Array(await (await annotate(server, pictures[0], ["a cat"], options)).arrayBuffer())];
const refused = await detect(server, pictures[0], ["a cat"]).catch((error) => error.message);
"""


def check_javascript(said: dict, photos, detector) -> None:
    check(said, photos, detector)
    assert said["png"][:4] == list(b"\x89PNG")
    assert re.fullmatch(r"unauthorized: send the token.* \(request [0-9a-f]{32}\)", said["refused"])


@needs("node", "install Node 20")
def test_the_javascript_client_of_the_documentation_runs_in_node(server, photos, detector, tmp_path):
    (tmp_path / "client.mjs").write_text(example(server, "javascript"))
    (tmp_path / "use.mjs").write_text(
        'import { readFile } from "node:fs/promises";\n'
        'import { annotate, detect, detectEach } from "./client.mjs";\n'
        "const [server, ...names] = process.argv.slice(2);\n"
        "const pictures = await Promise.all(names.map(async (name) => new File([await readFile(name)], name)));\n"
        f"{USE}console.log(JSON.stringify({{ first, each, png: png.slice(0, 4), refused }}));\n"
    )
    said = run("node", "use.mjs", server.url, *(photo.name for photo in photos), cwd=tmp_path)
    check_javascript(json.loads(said), photos, detector)


@pytest.mark.skipif(CHROMIUM is None, reason="NO BROWSER: pages of other origins are not tested in one here")
def test_the_javascript_client_of_the_documentation_runs_in_a_page_of_another_origin(
    server, photos, detector, tmp_path
):
    sync_api = pytest.importorskip("playwright.sync_api")
    (tmp_path / "client.mjs").write_text(example(server, "javascript"))
    (tmp_path / "index.html").write_text("<!doctype html><title>an application</title>")
    handler = type("Quiet", (SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
    pages = ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(tmp_path)))
    threading.Thread(target=pages.serve_forever, daemon=True).start()
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page()
        page.goto(f"http://localhost:{pages.server_port}/index.html")
        said = page.evaluate(
            """async ([server, names]) => {
              const { annotate, detect, detectEach } = await import("/client.mjs");
              const fetched = async (name) => new File([await (await fetch(encodeURI(name))).blob()], name);
              const pictures = await Promise.all(names.map(fetched));"""
            + USE
            + "return { first, each, png: png.slice(0, 4), refused }; }",
            [server.url, [photo.name for photo in photos]],
        )
        browser.close()
    pages.shutdown()
    pages.server_close()
    check_javascript(said, photos, detector)


# --- The schema ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{}, {"token": TOKEN, "root_path": "/owl"}])
def test_the_document_is_valid_by_the_schema_of_openapi_itself(detector, settings):
    app = create_app(detector, ServerSettings(**settings))
    headers = {"Authorization": f"Bearer {TOKEN}"}
    document = ask(app, "GET", "/openapi.json", headers=headers).json()
    app.state.serving.close()
    assert document["openapi"].startswith("3.1.")
    assert [error.message for error in OpenAPIV31SpecValidator(document).iter_errors()] == []


@needs("openapi-python-client")
def test_a_generated_python_client_works_unchanged(server, document, photos, detector, tmp_path):
    (tmp_path / "openapi.json").write_text(json.dumps(document))
    (tmp_path / "config.yml").write_text("post_hooks: []\n")
    where = ["--path", "openapi.json", "--output-path", "owl_client", "--meta", "none", "--config", "config.yml"]
    run("openapi-python-client", "generate", *where, cwd=tmp_path)
    (tmp_path / "use.py").write_text(
        "import base64, json, sys\n"
        "from pathlib import Path\n"
        "from owl_client import AuthenticatedClient\n"
        "from owl_client.api.default import classify, detect, embed, model, similarity\n"
        "from owl_client.models import ClassifyIn, DetectFilesBody, DetectIn, EmbedIn, ExemplarIn, File, QueryIn\n"
        "from owl_client.models import SavedIn, SimilarityIn\n"
        "from owl_client.types import File as Upload\n"
        "url, token, name = sys.argv[1:]\n"
        "client = AuthenticatedClient(url, token)\n"
        "content = Path(name).read_bytes()\n"
        "image = File(content=base64.b64encode(content).decode(), name=name)\n"
        "found = detect.sync(client=client, body=DetectIn(images=[image], queries=['a cat']))\n"
        "form = DetectFilesBody(images=[Upload(Path(name).open('rb'), name)], query=['a cat'])\n"
        "sent = detect.sync(client=client, body=form)\n"
        "mug = QueryIn(name='mug', texts=['a mug'], exemplars=[ExemplarIn(image=image, box=[0, 0, 20, 20])])\n"
        "kept = SavedIn(saved=File(content=embed.sync(client=client, body=EmbedIn(queries=['a cat'])).queries))\n"
        "mugs = detect.sync(client=client, body=DetectIn(images=[image], queries=[mug, kept], threshold=[0.0, 0.1]))\n"
        "classes = classify.sync(client=client, body=ClassifyIn(images=[image], queries=['a cat', mug.texts[0]]))\n"
        "maps = similarity.sync(client=client, body=SimilarityIn(images=[image], queries=['a cat']))\n"
        "wrong = detect.sync(client=client, body=DetectIn(images=[]))\n"
        "said = {'found': found.to_dict(), 'sent': sent.to_dict(), 'mugs': mugs.to_dict(), 'code': wrong.code}\n"
        "said |= {'model': model.sync(client=client).name, 'classes': classes.to_dict(), 'maps': maps.to_dict()}\n"
        "print(json.dumps(said))\n"
    )
    said = json.loads(run(sys.executable, "use.py", server.url, TOKEN, photos[0].name, cwd=tmp_path))
    expected = {"results": [to_record(photos[0].name, detector.detect(photos[0], ["a cat"]))]}
    assert said["found"] == said["sent"] == expected
    assert {row["query"] for row in said["mugs"]["results"][0]["detections"]} == {0, 1}
    assert len(said["classes"]["results"][0]["classes"]) == 2 and said["maps"]["results"][0]["maps"][0]["scores"]
    assert (said["model"], said["code"]) == ("tiny_for_tests", "invalid_request")


@needs("openapi-typescript")
@needs("tsc")
def test_generated_typescript_types_say_what_may_be_left_out_and_what_comes(document, tmp_path):
    (tmp_path / "openapi.json").write_text(json.dumps(document))
    run("openapi-typescript", "openapi.json", "-o", "api.d.ts", cwd=tmp_path)
    (tmp_path / "use.ts").write_text(
        'import type { components, paths } from "./api";\n'
        'type Asked = components["schemas"]["DetectIn"];\n'
        'type Answered = paths["/v1/detect"]["post"]["responses"][200]["content"]["application/json"];\n'
        'type Refused = paths["/v1/detect"]["post"]["responses"][422]["content"]["application/problem+json"];\n'
        'type Line = paths["/v1/detect"]["post"]["responses"][200]["content"]["application/x-ndjson"];\n'
        'const image = { content: "aGVsbG8=" };\n'
        'export const least: Asked = { images: [image], queries: ["a dog"] };\n'
        "export const most: Asked = { images: [image], threshold: [0.1], queries: [{ exemplars: [{ image }] }] };\n"
        "export const first = (found: Answered): number => found.results[0].detections[0].box.xmin;\n"
        "export const code = (problem: Refused): string => problem.code;\n"
        "export const wrong = (line: Line): string | undefined => line.error?.detail;\n"
        "// @ts-expect-error a threshold is no text\n"
        'export const bad: Asked = { threshold: "0.2" };\n'
    )
    run("tsc", "--noEmit", "--strict", "--skipLibCheck", "false", "use.ts", cwd=tmp_path)
