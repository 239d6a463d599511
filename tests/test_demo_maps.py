"""The tab "Map it", in Python and in a browser, and the worked examples of "Inside Swin"."""

import base64
import io
import re

import numpy as np
import pytest
import torch
from colour_detector import colour_detector
from PIL import Image, ImageDraw

pytest.importorskip("gradio")
from demo_pages import NEEDS_BROWSER, chromium, go_to, opened, set_slider, until, upload

from owl_swin import QueryError
from owl_swin.demo.mapping import UNNAMED, Mapped, show
from owl_swin.demo.photos import SHOWN_PX, take_photo
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
    value = show(colours, mapped, 0.3)
    found = colours.segment(scene, ["sky", "green", "red"], threshold=0.3)
    assert (pixels(value)[..., 0] == found.labels.numpy() + 1).all()
    assert np.abs(pixels(value)[..., 1] - 255 * found.scores.numpy()).max() <= 0.5
    assert [one["name"] for one in value["map"]["areas"]] == ["sky", "green", "red"]
    assert value["map"]["areas"][0]["share"] == pytest.approx(found.shares()[0])
    none = show(colours, mapped, 0.95)
    assert none["map"]["areas"] == [] and "Nothing reaches the threshold of 0.95" in none["note"]["text"]


def test_a_photo_is_encoded_once_and_names_are_kept_for_the_next(colours, scene):
    network = colours.model
    large = take_photo(scene.resize((2 * SHOWN_PX, SHOWN_PX)), "large.png")
    mapped = Mapped().named(colours, "sky").of(colours, large)
    passes = network.passes
    again = mapped.named(colours, " sky ,")
    assert again is mapped and show(colours, again, 0.2)["width"] == 2 * SHOWN_PX
    assert pixels(show(colours, again, 0.5)).shape[:2] == (SHOWN_PX // 2, SHOWN_PX)
    assert network.passes == passes
    assert show(colours, mapped.named(colours, ""), 0.2)["note"]["text"] == UNNAMED
    assert show(colours, Mapped(), 0.2)["src"] == ""
    with pytest.raises(QueryError, match="at most 100 names"):
        Mapped().named(colours, ",".join(map(str, range(101))))


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
def page(colours):
    with chromium() as browser, opened(browser, colours) as page:
        yield page


@NEEDS_BROWSER
def test_the_mouse_over_an_area_says_what_it_is(page, scene, tmp_path):
    scene.save(tmp_path / "scene.png")
    go_to(page, "Map it")
    page.fill("#map-text textarea, #map-text input", "sky, green, red")
    upload(page, "map-upload", tmp_path / "scene.png")
    until(page, "document.querySelectorAll('#map-stage .owl-legend button').length === 3")
    until(page, "document.querySelector('#map-stage .owl-map').dataset.drawn")
    place = page.locator("#map-stage .owl-frame").bounding_box()

    def over(x: float, y: float) -> str:
        page.mouse.move(place["x"] + place["width"] * x / 480, place["y"] + place["height"] * y / 320)
        return page.inner_text("#map-stage .owl-tip")

    assert over(250, 100).startswith("sky 0.8") and over(120, 120).startswith("red 0.8")
    assert over(200, 280).startswith("green") and over(450, 150) == "nothing that was named"
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
