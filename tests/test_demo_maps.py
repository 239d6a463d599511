"""The tab "Map it", in Python and in a browser, and the worked examples of "Inside Swin"."""

import base64
import io
import json
import re
import shlex
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from colour_detector import colour_detector
from PIL import Image, ImageDraw
from typer.testing import CliRunner

pytest.importorskip("gradio")
from demo_pages import NEEDS_BROWSER, fill, go_to, opened, set_slider, until, upload

from owl_swin import Detector, Exemplar, Query, QueryError
from owl_swin.cli.main import app as cli
from owl_swin.demo.mapping import UNNAMED, Handlers, Mapped, show
from owl_swin.demo.models import Models
from owl_swin.demo.photos import SHOWN_PX, take_photo
from owl_swin.demo.session import Session
from owl_swin.demo.worked import attention_example, patches_example


@pytest.fixture(scope="module")
def colours():
    return colour_detector()


@pytest.fixture(scope="module")
def scene() -> Image.Image:
    image = Image.new("RGB", (480, 320), (0, 0, 255))
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, 200, 480, 320), fill=(0, 255, 0))
    draw.ellipse((60, 60, 180, 180), fill=(255, 0, 0))
    draw.rectangle((400, 0, 480, 320), fill=(128, 128, 128))
    return image


def pixels(value: dict) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(value["map"]["src"].partition(",")[2]))))


def test_the_page_gets_the_map_of_segment(colours, scene):
    mapped = Mapped().named(colours, "sky, green,red").of(colours, take_photo(scene, "scene.png"))
    value, _ = show(colours, mapped, 0.3)
    found = colours.segment(scene, ["sky", "green", "red"], threshold=0.3)
    assert (pixels(value)[..., 0] == found.labels.numpy() + 1).all()
    assert np.abs(pixels(value)[..., 1] - 255 * found.scores.numpy()).max() <= 0.5
    assert [one["name"] for one in value["map"]["areas"]] == ["sky", "green", "red"]
    assert value["map"]["areas"][0]["share"] == pytest.approx(found.shares()[0])
    none, nothing = show(colours, mapped, 0.95)
    assert nothing["files"] == []
    assert none["map"]["areas"] == [] and "Nothing reaches the threshold of 0.95" in none["note"]["text"]


def test_a_photo_is_encoded_once_and_names_are_kept_for_the_next(colours, scene):
    network = colours.model
    large = take_photo(scene.resize((2 * SHOWN_PX, SHOWN_PX)), "large.png")
    mapped = Mapped().named(colours, "sky").of(colours, large)
    passes = network.passes
    again = mapped.named(colours, " sky ,")
    assert again is mapped and show(colours, again, 0.2)[0]["width"] == 2 * SHOWN_PX
    assert pixels(show(colours, again, 0.5)[0]).shape[:2] == (SHOWN_PX // 2, SHOWN_PX)
    assert network.passes == passes
    assert show(colours, mapped.named(colours, ""), 0.2)[0]["note"]["text"] == UNNAMED
    assert show(colours, Mapped(), 0.2)[0]["src"] == ""
    with pytest.raises(QueryError, match="at most 100 names"):
        Mapped().named(colours, ",".join(map(str, range(101))))


def fetched(on, session, label: str, threshold: float) -> bytes:
    """What one of the downloads holds."""
    value = on.on_wanted(SimpleNamespace(label=label), session, threshold)
    made = [one for one in value["files"] if "base64" in one and one["label"] != "Query"]
    assert [one["label"] for one in made] == [label]
    return base64.b64decode(made[0]["base64"])


def test_downloads_hold_the_map_in_the_pixels_of_the_photo(colours, scene, tmp_path, monkeypatch):
    large = scene.resize((SHOWN_PX + 160, 400))
    mapped = Mapped().named(colours, "sky, green, red").of(colours, take_photo(large, "trip/a scene.png"))
    on, session = Handlers(Models(colours, ["nano"])), Session(mapped)
    shown = on.on_view(session, 0.3)[1]
    assert [one.get("text", "") for one in shown["files"]] == [None] * 4 + [""]  # made when somebody wants one
    found = colours.segment(large, ["sky", "green", "red"], threshold=0.3)
    labels = Image.open(io.BytesIO(fetched(on, session, "Label map", 0.3)))
    assert (np.asarray(labels) == np.where(found.labels < 0, 255, found.labels)).all()
    legend = json.loads(fetched(on, session, "Legend", 0.3))
    assert (legend["image"], legend["map"]) == ("trip/a scene.png", "a scene.map.png")
    assert [one["name"] for one in legend["classes"]] == ["sky", "green", "red"]
    with zipfile.ZipFile(io.BytesIO(fetched(on, session, "COCO panoptic", 0.3))) as bundle:
        bundle.extractall(tmp_path)
    panoptic = json.loads((tmp_path / "panoptic.json").read_text())
    (annotation,) = panoptic["annotations"]
    ids = np.asarray(Image.open(tmp_path / "panoptic" / annotation["file_name"])).astype(int) @ [1, 256, 65536]
    names = {one["id"]: one["name"] for one in panoptic["categories"]}
    areas = {names[one["category_id"]]: int((ids == one["id"]).sum()) for one in annotation["segments_info"]}
    assert areas == {name: int(found.mask(name).sum()) for name in found.names}
    assert Image.open(io.BytesIO(fetched(on, session, "Picture", 0.3))).width == large.width
    copied = {one["label"]: one["copy"] for one in shown["copies"]}
    (tmp_path / "trip").mkdir()
    large.save(tmp_path / "trip" / "a scene.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Detector, "from_pretrained", lambda *_, **__: colours)
    exec(copied["Python"], {})
    assert (np.asarray(Image.open("a scene.map.png")) == np.asarray(labels)).all()
    result = CliRunner().invoke(cli, shlex.split(copied["command line"])[1:])
    assert result.exit_code == 0, result.output
    assert (np.asarray(Image.open("maps/a scene.png")) == np.asarray(labels)).all()
    words = shlex.split(copied["curl"])
    request = json.loads(words[words.index("--form-string") + 1].removeprefix("request="))
    assert request == {"queries": ["sky", "green", "red"], "threshold": 0.3} and words[-1] == "ORIGIN/v1/segment"


def test_what_is_shown_is_mapped_beside_what_is_named(colours, scene):
    on, session = Handlers(Models(colours)), Session(Mapped().named(colours, "sky").of(colours, take_photo(scene)))
    on.on_drawn(SimpleNamespace(box=[90, 90, 150, 150]), session)  # in the red disc
    _, strip = on.on_add(True, session, "sky", " a ball ")
    assert [(one["caption"], one["kind"]) for one in strip["items"]] == [("a ball", "yes")]
    stage, files = on.on_view(session, 0.3)
    exemplar = Exemplar(scene, (90, 90, 150, 150), name="a ball")
    found = colours.segment(scene, ["sky", Query("a ball", exemplars=[exemplar])], threshold=0.3)
    assert [one["name"] for one in stage["map"]["areas"]] == ["sky", "a ball"]
    assert (pixels(stage)[..., 0] == found.labels.numpy() + 1).all()
    assert "load_queries" in files["copies"][0]["copy"] and len(files["copies"]) == 2
    loaded = colours.load_queries(base64.b64decode(files["files"][-1]["base64"]))
    assert loaded.names == ("sky", "a ball")
    on.on_drawn(SimpleNamespace(box=[10, 10, 50, 50]), session)
    with pytest.warns(UserWarning, match="say what “a cloud” is"):
        on.on_add(False, session, "sky", "a cloud")
    on.on_add(False, session, "sky", "a ball")
    assert [one["kind"] for one in on.on_removed(SimpleNamespace(index=0), session)[1]["items"]] == []
    assert [one["name"] for one in on.on_view(session, 0.3)[0]["map"]["areas"]] == ["sky"]
    on.on_names(session, "")
    assert on.on_view(session, 0.3)[0]["note"]["text"] == UNNAMED


def test_the_formula_is_worked_out_from_its_matrices():
    text = attention_example()
    found = [
        torch.tensor([[float(n) for n in row.split("&")] for row in body.split(r"\\")])
        for body in re.findall(r"begin\{pmatrix\}(.*?)\\end", text)
    ]
    q, k, v, products, scaled, weights, out = found
    assert q.tolist() == [[1, 2], [3, 4]] and k.tolist() == [[2, 1], [0, 1]] and v.tolist() == [[0, 2], [1, 3]]
    assert products.tolist() == [[4, 2], [10, 4]]
    assert torch.allclose(scaled, products / 2**0.5, atol=1e-3)
    assert torch.allclose(weights, torch.tensor([[0.804, 0.196], [0.986, 0.014]]), atol=1e-3)
    expected = torch.nn.functional.scaled_dot_product_attention(q[None], k[None], v[None])[0]
    assert torch.allclose(out, expected, atol=1e-3)
    assert attention_example([[0, 1]], [[1, 0]], [[5, 6]]).count("pmatrix") == 14  # any sizes


def test_patches_are_counted_and_not_copied():
    text = patches_example()
    assert "| 256 × 256 px | 256 | 65,536 |" in text and "| 1,920 × 1,920 px | 14,400 | 207,360,000 |" in text
    assert "**3,164 times**" in text and text.count("**56 times**") == 2
    assert "**16 times**" in patches_example((64, 128))


@pytest.fixture(scope="module")
def page(browser, colours):
    with opened(browser, colours) as page:
        yield page


@NEEDS_BROWSER
def test_the_mouse_over_an_area_says_what_it_is(page, scene, tmp_path):
    scene.save(tmp_path / "scene.png")
    go_to(page, "Map it")
    fill(page, "map-text", "sky, green, red")
    upload(page, "map-upload", tmp_path / "scene.png")
    until(page, "document.querySelectorAll('#map-stage .owl-legend button').length === 3")
    until(page, "document.querySelector('#map-stage .owl-map').dataset.drawn")
    place = page.locator("#map-stage .owl-frame").bounding_box()

    for x, y, what in (
        (250, 100, "sky 0.8"),
        (120, 120, "red 0.8"),
        (200, 280, "green"),
        (450, 150, "nothing that was"),
    ):
        page.mouse.move(place["x"] + place["width"] * x / 480, place["y"] + place["height"] * y / 320)
        until(page, "what => document.querySelector('#map-stage .owl-tip').innerText.startsWith(what)", what)
    legend = page.locator("#map-stage .owl-legend button")
    assert legend.all_inner_texts()[0].split("\n")[0] == "sky"
    legend.nth(2).click()
    assert legend.nth(2).get_attribute("aria-pressed") == "true"
    drawn = page.evaluate(
        """() => { const canvas = document.querySelector('#map-stage .owl-map');
                   const at = (x, y) => [...canvas.getContext('2d').getImageData(x, y, 1, 1).data];
                   return [at(120, 120), at(250, 100), at(450, 150)]; }"""
    )
    assert drawn[0][3] > drawn[1][3] > 0 and drawn[2][3] == 0
    set_slider(page, "map-threshold", 0.95)
    page.get_by_text("Nothing reaches the threshold of 0.95").wait_for()
    assert not page.locator("#map-stage .owl-legend button").count()
    set_slider(page, "map-threshold", 0.3)
    page.wait_for_selector("#map-stage .owl-legend button")
    with page.expect_download() as download:
        page.locator("#map-files").get_by_role("button", name="Label map").click()
    assert download.value.suggested_filename == "scene.map.png"
    with Image.open(download.value.path()) as labels:
        assert labels.size == (480, 320) and [labels.getpixel(at) for at in ((250, 100), (120, 120), (450, 150))] == [
            0,
            2,
            255,
        ]
    page.get_by_text("Show it where words do not say it").click()
    fill(page, "map-name", "a wall")
    frame = page.locator("#map-source .owl-frame")
    frame.scroll_into_view_if_needed()
    place = frame.bounding_box()
    page.mouse.move(place["x"] + place["width"] * 410 / 480, place["y"] + 10)
    page.mouse.down()
    page.mouse.move(place["x"] + place["width"] * 470 / 480, place["y"] + 60, steps=3)
    page.mouse.up()
    page.click("#map-add")
    until(page, "document.querySelectorAll('#map-stage .owl-legend button').length === 4")
    assert page.inner_text("#map-examples .owl-item span") == "a wall"
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.get_by_label("Take away: example, from scene.png").click()
    until(page, "document.querySelectorAll('#map-stage .owl-legend button').length === 3")
