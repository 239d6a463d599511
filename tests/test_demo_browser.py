"""The demo in a real browser. `make screenshots` runs those tests that leave pictures, in out/screens/."""

import io
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY, make_tiny_model
from picture_files import encode, noise
from PIL import Image, ImageChops, ImageStat

sync_api = pytest.importorskip("playwright.sync_api")

from demo_pages import (  # noqa: E402
    NEEDS_BROWSER,
    count,
    drop,
    fill,
    go_to,
    inaccessible,
    keep_picture,
    opened,
    paste,
    served,
    set_slider,
    skip_without_axe,
    unfold,
    until,
    upload,
    watched,
)

from owl_swin import CheckpointError, Detector, RegionIndex  # noqa: E402
from owl_swin.demo import showing  # noqa: E402
from owl_swin.demo.models import Models  # noqa: E402
from owl_swin.demo.photos import meant  # noqa: E402

pytestmark = NEEDS_BROWSER
TABS = ("Name it", "Show it", "Map it", "Video", "Search", "Inside Swin")


@pytest.fixture(scope="module")
def page(browser, detector):
    with opened(browser, detector) as one:
        yield one


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for seed in range(3):
        (folder / f"blocks{seed}.png").write_bytes(encode(noise(120, 180, seed)))
    return folder


def test_a_name_gives_boxes_a_table_and_files(page, photos, detector, monkeypatch):
    go_to(page, "Name it")
    with page.expect_file_chooser() as chooser:
        page.click("#name-stage .owl-empty")
    chooser.value.set_files(photos / "blocks0.png")
    page.wait_for_selector("#name-stage .owl-there")
    until(page, "document.activeElement.closest('#name-stage .owl-zooms')")  # keys go on from there
    upload(page, "name-upload", {"name": "no photo & such.png", "mimeType": "image/png", "buffer": b"no picture"})
    page.get_by_text("no photo & such.png: not a picture").wait_for()
    assert page.locator("#name-stage .owl-there").count() == 1 and page.locator("#name-stage .error").count() == 0
    page.fill("#name-text textarea, #name-text input", "a cat, a dog ORIGIN")
    page.keyboard.press("Enter")
    page.wait_for_selector("#name-stage tbody tr, #name-stage .owl-action")
    many = len(
        detector.detect(photos / "blocks0.png", ["a cat", "a dog ORIGIN"], threshold=0.02, nms_iou=0.5, top_k=100)
    )
    monkeypatch.setattr(detector.model, "encode_image", None)  # sliders do without the model
    set_slider(page, "name-threshold", 0.02)
    until(page, f"{count('#name-stage .owl-box')} == {many} && {count('#name-stage tbody tr')} == {many}")
    page.focus("#name-stage tbody tr")
    assert page.locator("#name-stage .owl-box.owl-active").count() == 1
    with page.expect_download() as download:
        page.get_by_role("link", name="COCO").first.click()
    assert download.value.suggested_filename == "blocks0.coco.json"
    assert Path(download.value.path()).read_text().count('"bbox"') == many
    page.locator("#name-chips .owl-chip-name").first.press("Enter")  # hides the cats
    cats = "document.querySelector('#name-chips .owl-hidden strong').textContent == 'a cat'"
    until(
        page, f"document.querySelector('#name-chips .owl-hidden') && {cats} && {count('#name-stage .owl-box')} < {many}"
    )
    assert page.evaluate("document.activeElement.className") == "owl-chip-name"  # where the key was pressed
    page.locator("#name-chips .owl-chip-name").first.click()
    until(page, f"{count('#name-stage .owl-box')} == {many}")
    assert "name=a+cat&at=&name=a+dog+ORIGIN" in page.url and "threshold=0.02" in page.url
    with page.expect_download() as download:
        page.get_by_role("button", name="Picture").first.click()
    with Image.open(download.value.path()) as drawn, Image.open(photos / "blocks0.png") as plain:
        assert drawn.size == plain.size and ImageChops.difference(drawn.convert("RGB"), plain).getbbox()
    page.get_by_role("button", name="Python").click()
    page.get_by_text("detector.detect('blocks0.png', ['a cat', 'a dog ORIGIN'], threshold=0.02").wait_for()
    page.get_by_role("button", name="curl").click()
    page.get_by_text(f"{page.evaluate('location.origin')}/v1/detect").wait_for()
    set_slider(page, "name-threshold", 1)
    page.get_by_text("Nothing reaches the threshold of 1.00").wait_for()
    page.locator("#name-chips .owl-chip-action").first.click()  # shows the cats from where there are any
    page.wait_for_selector("#name-stage .owl-box")
    page.locator("#name-chips .owl-limit").first.fill("7")
    page.locator("#name-chips .owl-limit").first.press("Enter")
    assert page.locator("#name-chips .owl-limit").first.input_value() == "1"
    page.locator("#name-chips .owl-limit").first.fill("")
    page.locator("#name-chips .owl-limit").first.press("Tab")
    page.get_by_text("Nothing reaches the threshold of 1.00").wait_for()
    page.click("#name-stage .owl-action")
    page.wait_for_selector("#name-stage .owl-box")


def numbers(page) -> list[float]:
    return [float(page.input_value(f"#show-{name} input") or 0) for name in ("xmin", "ymin", "xmax", "ymax")]


def has_box(page, box) -> None:
    until(
        page,
        "box => ['xmin', 'ymin', 'xmax', 'ymax'].every((name, i) => "
        "Math.abs(document.querySelector(`#show-${name} input`).value - box[i]) < 2)",
        box,
    )


def test_a_box_drawn_by_mouse_is_looked_for(page, photos, monkeypatch):
    go_to(page, "Show it")
    unfold(page, "Type the box, or add words", "#show-words")
    upload(page, "show-source-upload", photos / "blocks0.png")
    page.wait_for_selector("#show-source .owl-there")
    page.wait_for_selector("#show-xmin input")
    frame = page.locator("#show-source .owl-frame")
    frame.scroll_into_view_if_needed()
    place = frame.bounding_box()

    def at(x, y):
        return place["x"] + place["width"] * x / 180, place["y"] + place["height"] * y / 120

    page.mouse.move(*at(20, 10))
    page.mouse.down()
    page.mouse.move(*at(60, 40))
    page.mouse.move(*at(100, 80))
    page.mouse.up()
    has_box(page, [20, 10, 100, 80])
    page.mouse.click(*at(150, 20))  # two clicks are two corners
    page.wait_for_function("!document.querySelector('#show-xmin input').value")  # the box that went is not used
    assert page.locator("#show-source .owl-draft").count() == 0
    page.mouse.click(*at(170, 50))
    has_box(page, [150, 20, 170, 50])
    page.keyboard.press("ArrowLeft")  # 2 % of the width
    has_box(page, [146.4, 20, 166.4, 50])
    with monkeypatch.context() as slowly:
        came = threading.Event()
        slowly.setattr(showing, "meant", lambda *told: came.set() or time.sleep(0.5) or meant(*told))
        page.keyboard.press("ArrowLeft")
        assert came.wait(20)
        page.click("#show-add")  # before the server has taken in what was drawn
        page.wait_for_selector("#show-examples .owl-item")
        has_box(page, [142.8, 20, 162.8, 50])
    frame.press("ArrowLeft")
    has_box(page, [139.2, 20, 159.2, 50])
    page.locator("#show-examples .owl-item > button").first.click()
    has_box(page, [142.8, 20, 162.8, 50])
    page.locator("#show-examples .owl-remove").click()
    until(page, f"{count('#show-examples .owl-item')} == 0")
    page.fill("#show-xmin input", "40")
    page.press("#show-xmin input", "Enter")
    until(page, "document.querySelector('#show-source .owl-draft').getAttribute('x') == 40")
    page.click("#show-add")
    page.wait_for_selector("#show-examples .owl-yes")
    paste(page, photos / "blocks0.png")  # the place without a photo takes it, and no other
    page.wait_for_selector("#show-target .owl-there")
    set_slider(page, "show-threshold", 0.02)
    page.wait_for_selector("#show-target .owl-box")
    width = page.locator("#show-target .owl-frame").bounding_box()["width"]
    page.locator("#show-target").get_by_label("Larger").click()
    assert page.locator("#show-target .owl-frame").bounding_box()["width"] == pytest.approx(1.5 * width, rel=0.02)
    plain = page.get_attribute("#show-target img", "src")
    page.get_by_label("Where it fits").check()
    until(page, "src => document.querySelector('#show-target img').src != src", plain)
    page.click("#show-add-not")
    page.wait_for_selector("#show-examples .owl-no")
    colour = page.eval_on_selector(".owl-remove", "one => getComputedStyle(one).backgroundColor")
    assert colour == "rgba(12, 15, 20, 0.82)"  # seen on photos of any colour
    page.locator("#show-examples .owl-yes .owl-remove").evaluate("one => { one.click(); one.click(); }")
    until(page, f"{count('#show-examples .owl-item')} == 1")
    assert numbers(page)[0] == 40
    draft = page.locator("#show-source .owl-draft")
    assert draft.get_attribute("x") == "40"
    frame.scroll_into_view_if_needed()
    place = frame.bounding_box()
    session = page.context.new_cdp_session(page)
    for kind, points in [("Start", [(20, 60), (30, 60)]), ("Move", [(5, 60), (60, 60)]), ("End", [])]:
        touches = [dict(zip("xy", at(*point), strict=True), id=i) for i, point in enumerate(points)]
        session.send("Input.dispatchTouchEvent", {"type": f"touch{kind}", "touchPoints": touches})
    page.wait_for_selector("#show-source .owl-zoomed")  # two fingers draw nothing
    assert draft.get_attribute("x") == "40" and numbers(page)[0] == 40
    drop(page, "show-source", photos / "blocks0.png")  # once more
    until(page, f"{count('#show-source .owl-draft')} == 0")
    assert page.evaluate(BESIDE)
    assert page.locator("#show-examples .owl-no").count() == 1  # two quick clicks took one away


# Whether a file that is dropped beside all places leaves the page where it is.
BESIDE = """() => {
  const dataTransfer = new DataTransfer();
  dataTransfer.items.add(new File(["x"], "x.png", { type: "image/png" }));
  return ["dragover", "drop"].every((kind) =>
    !document.body.dispatchEvent(new DragEvent(kind, { bubbles: true, cancelable: true, dataTransfer })));
}"""


@pytest.fixture
def gate(monkeypatch):
    """A door that the model waits before, which is open until it is cleared; what waits is counted."""
    door = threading.Event()
    door.set()
    door.waiting = 0
    for name in ("encode_image", "encode_queries"):
        monkeypatch.setattr(Detector, name, behind(door, getattr(Detector, name)))
    yield door
    door.set()


def behind(door, method):
    def waits(self, *given, **options):
        door.waiting += 1
        door.wait(20)
        return method(self, *given, **options)

    return waits


@contextmanager
def model_at_work(page, gate, stage: str):
    """While the model is at work on what is done first in here, until the page shows that it is done."""
    gate.clear()
    gate.waiting = 0
    yield
    gate.set()
    page.wait_for_selector(f"#{stage} .wrap.hide", state="attached")


def moved_meanwhile(page, gate, stage: str, slider: str, acts) -> None:
    """Each act makes the model work; the threshold is moved before it is done, and must hold for its answer."""
    for number, act in enumerate(acts):
        set_slider(page, slider, 0.01)
        page.wait_for_selector(f"#{stage} .owl-box")
        with model_at_work(page, gate, stage):
            act()
            set_slider(page, slider, 1)
            page.get_by_text("Nothing reaches the threshold of 1.00").locator("visible=true").wait_for()
        page.wait_for_timeout(150)
        assert page.locator(f"#{stage} .owl-box").count() == 0, f"{stage}, act {number}"


def test_a_threshold_moved_while_the_model_works_holds_for_its_answer(page, photos, gate):
    go_to(page, "Name it")
    page.locator("#name-samples button").first.click()
    page.wait_for_selector("#name-chips .owl-chip")
    unfold(page, "More settings", "label:has-text('finest')")
    acts = [
        lambda: (page.fill("#name-text input, #name-text textarea", "a tree"), page.keyboard.press("Enter")),
        lambda: page.locator("#name-stage .owl-likes button").first.click(),
        lambda: page.locator("label:has-text('finest')").locator("visible=true").click(),
        lambda: page.locator("#name-samples button").nth(1).click(),
        lambda: upload(page, "name-upload", photos / "blocks1.png"),
    ]
    moved_meanwhile(page, gate, "name-stage", "name-threshold", acts)
    go_to(page, "Show it")
    unfold(page, "Type the box, or add words", "#show-words")
    unfold(page, "More settings", "label:has-text('finest')")
    page.click("#show-try")
    page.wait_for_selector("#show-examples .owl-yes")
    page.locator("#show-samples button").first.click()
    acts = [
        lambda: page.click("#show-add"),
        lambda: page.click("#show-add-not"),
        lambda: page.locator("#show-examples .owl-remove").last.click(),
        lambda: page.press("#show-words input, #show-words textarea", "Enter"),
        lambda: page.locator("label:has-text('finest')").locator("visible=true").click(),
        lambda: page.get_by_role("button", name="Look in the same photo").click(),
        lambda: upload(page, "show-target-upload", photos / "blocks1.png"),
        lambda: page.click("#show-try"),
    ]
    moved_meanwhile(page, gate, "show-target", "show-threshold", acts)


def test_the_next_name_may_be_typed_while_the_model_works(page, photos, gate):
    go_to(page, "Name it")
    upload(page, "name-upload", photos / "blocks0.png")
    page.wait_for_selector("#name-stage .owl-there")
    field = page.locator("#name-text input, #name-text textarea")
    fill(page, "name-text", "a bridge")
    with model_at_work(page, gate, "name-stage"):
        field.press("Enter")
        while not gate.waiting:
            page.wait_for_timeout(20)
        field.fill("a tunnel")
        gate.set()
    page.locator("#name-chips .owl-chip").get_by_text("a bridge").wait_for()
    page.wait_for_timeout(150)
    assert field.input_value() == "a tunnel"
    field.press("Enter")
    page.locator("#name-chips .owl-chip").get_by_text("a tunnel").wait_for()
    until(page, "!document.querySelector('#name-text input, #name-text textarea').value")
    for name in ("a bridge", "a tunnel"):
        page.get_by_label(f"Remove {name}").click()
        page.get_by_label(f"Remove {name}").wait_for(state="detached")


def test_a_folder_is_indexed_and_searched(page, photos):
    go_to(page, "Search")
    fill(page, "search-folder", str(photos))
    page.click("#search-index")
    page.get_by_text("3 of 3 photos").wait_for()
    page.get_by_text("3 photos and").wait_for()
    set_slider(page, "search-threshold", 0)
    fill(page, "search-text", "a cat")
    page.keyboard.press("Enter")
    page.wait_for_selector("#search-photo .owl-box")
    assert page.locator("#search-results .owl-item").count() > 3
    page.locator("#search-results .owl-item button").nth(2).click()
    page.wait_for_selector("#search-results .owl-item:nth-child(3) [aria-pressed=true]")
    before = page.inner_text("#search-results")
    page.click("#search-more")
    until(page, "text => document.querySelector('#search-results').innerText != text", before)
    assert page.inner_text("#search-results em >> nth=0").startswith(("0.", "1."))
    field = "document.querySelector('#search-text textarea, #search-text input').value"
    until(page, f"{field}.startsWith('more like blocks')")
    page.click("#search-back")
    until(page, "text => document.querySelector('#search-results').innerText == text", before)
    until(page, f"{field} == 'a cat'")
    set_slider(page, "search-threshold", 1)
    page.locator("#search-photo").get_by_text("Nothing reaches the threshold").wait_for()  # without another click
    fill(page, "search-folder", "")
    page.click("#search-index")
    page.get_by_text("write the path of a folder").wait_for()  # and not: the folder that the demo was started in


def seen_of(page, stage: str) -> tuple[Image.Image, list[float]]:
    """A picture of the middle of what is seen of a photo, and which of its pixels that are."""
    middle = page.evaluate(
        """stage => {
          const scroll = document.querySelector(`#${stage} .owl-scroll`).getBoundingClientRect();
          const frame = document.querySelector(`#${stage} .owl-frame`);
          const [place, whole] = [frame.getBoundingClientRect(), frame.querySelector("svg").viewBox.baseVal];
          const [left, top] = ["left", "top"].map((side) => Math.round(Math.max(scroll[side], place[side])) + 20);
          const scale = whole.width / place.width;
          const box = [left - place.left, top - place.top, left + 100 - place.left, top + 100 - place.top];
          return { left, top, box: box.map((value) => value * scale) };
        }""",
        stage,
    )
    clip = {"x": middle["left"], "y": middle["top"], "width": 100, "height": 100}
    return Image.open(io.BytesIO(page.screenshot(clip=clip))).convert("RGB"), middle["box"]


def zoom_in(page, photo: Image.Image, stage: str) -> None:
    """By its button, until one cannot; then what is seen are the photo's own pixels."""
    page.locator(f"#{stage} .owl-frame").scroll_into_view_if_needed()

    def unlike() -> float:
        shown, box = seen_of(page, stage)
        expected = photo.resize(shown.size, Image.Resampling.BILINEAR, box)
        return ImageStat.Stat(ImageChops.difference(shown, expected)).mean[0]

    larger = page.locator(f"#{stage}").get_by_label("Larger")
    for _ in range(7):
        larger.click()
    sharp = f"(document.querySelector('#{stage} .owl-frame').dataset.sharp || '').split(' ')"
    whole = f"document.querySelector('#{stage} .owl-sharp')?.naturalWidth == {sharp}[2] - {sharp}[0]"
    until(page, whole)
    assert unlike() < 15
    before = page.evaluate(sharp)
    page.evaluate(f"document.querySelector('#{stage} .owl-scroll').scrollBy(900, 100)")
    until(page, f"before => String({sharp}) != before && {whole}", ",".join(before))
    assert unlike() < 15
    page.evaluate(f"document.querySelectorAll('#{stage} .owl-sharp').forEach((one) => one.style.visibility = 'hidden')")
    assert unlike() > 30  # of the copy alone


def test_zoomed_into_a_photo_shows_its_own_pixels_on_each_tab(page, tmp_path):
    cells = np.random.default_rng(0).integers(0, 256, (60, 2000, 3), dtype=np.uint8)
    photo = Image.fromarray(cells).resize((8000, 240), Image.Resampling.NEAREST)
    photo.save(tmp_path / "fine & large.png")
    go_to(page, "Name it")
    if page.is_visible("text=Remove all"):
        page.click("text=Remove all")
    upload(page, "name-upload", tmp_path / "fine & large.png")
    until(page, "document.querySelector('#name-stage img').alt == 'fine & large.png'")
    zoom_in(page, photo, "name-stage")
    go_to(page, "Show it")
    upload(page, "show-source-upload", tmp_path / "fine & large.png")
    until(page, "document.querySelector('#show-source img').alt == 'fine & large.png'")
    zoom_in(page, photo, "show-source")
    go_to(page, "Search")
    stats = page.inner_text("#search-stats")  # of the photos of another test, where it ran before
    upload(page, "search-files", tmp_path / "fine & large.png")
    said = "document.querySelector('#search-stats').innerText"
    until(page, f"text => {said}.includes('photos and') && {said} != text", stats)
    set_slider(page, "search-threshold", 0)
    fill(page, "search-text", "fine")
    page.keyboard.press("Enter")
    page.locator("#search-results .owl-item button", has_text="fine & large.png").first.click()
    until(page, "document.querySelector('#search-photo img').alt.endsWith('fine & large.png')")
    zoom_in(page, photo, "search-photo")


def test_swin_is_walked_through_by_clicks_and_keys(page, photos):
    go_to(page, "Inside Swin")
    large = io.BytesIO()
    with Image.open(photos / "blocks0.png") as photo:
        photo.resize((5400, 3600)).save(large, "JPEG")
    upload(page, "inside-upload", {"name": "large.jpg", "mimeType": "image/jpeg", "buffer": large.getvalue()})
    page.get_by_text("Stage 1, block 1: W-MSA").wait_for()
    page.click("#inside-next")
    page.get_by_text("Stage 1, block 2: SW-MSA").wait_for()
    page.wait_for_selector("#inside-stage .owl-part")
    page.locator("#inside-stage .owl-frame").click(position={"x": 3, "y": 3})
    until(page, f"{count('#inside-stage .owl-part')} == 4")  # the window that the cyclic shift put together
    page.keyboard.press("ArrowRight")
    until(page, "document.querySelector('#inside-stage .owl-cell').getAttribute('x') > 0")
    page.get_by_label("All blocks so far").check()
    until(page, f"{count('#inside-stage .owl-part')} == 0")
    page.locator("#inside-blocks .owl-item button").last.click()
    page.get_by_text("Stage 4, block 2: SW-MSA").wait_for()


def test_the_served_pages_name_things_and_turn_between_archives(browser, masked_detector, photos, tmp_path):
    index = RegionIndex.open(tmp_path / "archive.lance", masked_detector, create=True)
    index.add_folder(photos)
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "notes.txt").write_text("no picture")
    asked = "name=a+cat&at=0.02&threshold=0.3&outlines=1"
    with served(masked_detector, index) as url, watched(browser, f"{url}#{asked}") as page:
        page.wait_for_selector("#name-chips .owl-chip")  # what the link asks for
        assert page.input_value("#name-chips .owl-limit") == "0.02"
        assert page.input_value("#name-threshold input[type=number]") == "0.3"
        until(page, "document.querySelector('#name-outlines input').checked")
        until(page, "asked => location.hash === '#' + asked", asked)
        upload(page, "name-upload", photos / "blocks0.png")
        page.wait_for_selector("#name-stage path.owl-outline", state="attached")
        page.locator("#name-stage .owl-likes button").first.click()
        page.get_by_text("1 example", exact=True).wait_for()
        go_to(page, "Search")
        page.get_by_text("3 photos and").wait_for()
        upload(page, "search-folder-upload", tmp_path / "texts")
        page.get_by_text("there is no picture among these files").wait_for()
        fill(page, "search-text", "a cat")
        page.keyboard.press("Enter")
        page.wait_for_selector("#search-photo .owl-box")  # the server's archive is still there
        (tmp_path / "texts" / "day 1").mkdir()
        (tmp_path / "texts" / "day 1" / "a & b.png").write_bytes((photos / "blocks0.png").read_bytes())
        upload(page, "search-folder-upload", tmp_path / "texts")
        page.get_by_text("1 photos and").wait_for()
        page.keyboard.press("Enter")
        page.get_by_text("texts/day 1/a & b.png").wait_for()
        page.click("#search-attached")
        page.get_by_text("3 photos and").wait_for()


def choose_model(page, label: str) -> None:
    page.click("#owl-model input")
    page.get_by_role("option", name=label).click()


def test_a_model_is_chosen_and_one_that_cannot_be_had_leaves_the_one_before(browser, detector, photos):
    other = Detector(make_tiny_model(7, replace(TINY, name="other")), device="cpu")

    def load(source: str) -> Detector:
        if source == "damaged":
            raise CheckpointError("is damaged", of=source)
        return other

    choice = Models(detector, ["nano", "other", "damaged"], load)
    with opened(browser, detector, choice=choice) as page:
        upload(page, "name-upload", photos / "blocks0.png")
        page.wait_for_selector("#name-stage .owl-there")
        page.fill("#name-text textarea, #name-text input", "a cat")
        page.keyboard.press("Enter")
        page.wait_for_selector("#name-chips .owl-chip")
        set_slider(page, "name-threshold", 0.02)
        many = len(detector.detect(photos / "blocks0.png", ["a cat"], threshold=0.02, nms_iou=0.5, top_k=100))
        until(page, f"{count('#name-stage tbody tr')} == {many}")
        before = page.inner_text("#name-stage tbody")
        choose_model(page, "other")
        page.locator("#owl-model-said").get_by_text("other · 96 px").wait_for()
        page.locator("#name-outlines-not").get_by_text("No outlines: other finds boxes").wait_for()
        until(page, "text => document.querySelector('#name-stage tbody').innerText != text", before)
        after = page.inner_text("#name-stage tbody")
        page.get_by_role("button", name="Python").locator("visible=true").click()
        page.get_by_text("Detector.from_pretrained('other')").wait_for()
        choose_model(page, "damaged")
        page.get_by_text("damaged: is damaged").wait_for()
        until(page, "document.querySelector('#owl-model input').value == 'other'")
        assert page.inner_text("#name-stage tbody") == after and "#model=other&name=a+cat" in page.url
        page.set_viewport_size({"width": 390, "height": 844})
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        keep_picture(page, "phone-models")
        assert inaccessible(page, colours=False) == []
        page.set_viewport_size({"width": 1280, "height": 900})
        page.focus("#owl-model input")  # with keys alone
        page.keyboard.press("Control+a")
        page.keyboard.type("nano")
        page.keyboard.press("Enter")
        until(page, "text => document.querySelector('#name-stage tbody')?.innerText == text", before)
        keep_picture(page, "models")
        assert "model=" not in page.url
        page.evaluate("location.hash = 'model=other&name=a+tree&at='")  # a link, into the same window
        page.locator("#owl-model-said").get_by_text("other · 96 px").wait_for()
        page.locator("#name-chips .owl-chip").get_by_text("a tree").wait_for()
        until(page, "location.hash.includes('model=other&name=a+tree')")
        go_to(page, "Search")
        page.evaluate("location.hash = 'name=a+bush&at='")  # one to the first tab and model, which says of neither
        page.locator("#owl-model-said").get_by_text("tiny_for_tests · 96 px").wait_for()
        page.locator("#name-chips .owl-chip").get_by_text("a bush").wait_for()
        until(page, "location.hash.includes('name=a+bush') && !location.hash.includes('model')")


def test_the_pages_fit_light_dark_and_narrow_and_are_photographed(browser):
    with opened(browser, Detector.from_pretrained(device="cpu")) as page:
        photograph(page, "empty", ["Name it"])
        page.locator("#name-samples button").first.click()
        outlined(page, "name")
        go_to(page, "Show it")
        page.click("#show-try")
        outlined(page, "show")
        go_to(page, "Map it")
        page.locator("#map-samples button").first.click()
        page.wait_for_selector("#map-stage .owl-legend button")
        go_to(page, "Search")
        page.click("#search-try")
        page.wait_for_selector("#search-photo .owl-box")
        go_to(page, "Inside Swin")
        page.locator("#inside-samples button").first.click()
        page.get_by_text("Stage 3, block 1: W-MSA").wait_for()
        page.click("#inside-next")
        page.get_by_text("Stage 3, block 2: SW-MSA").wait_for()
        photograph(page, "light", TABS)
        page.click(".owl-theme")
        photograph(page, "dark", TABS)
        page.set_viewport_size({"width": 390, "height": 844})
        photograph(page, "phone-dark", TABS[:1])
        page.click(".owl-theme")
        photograph(page, "phone", TABS)
        page.evaluate("document.querySelector('#inside-stage').append(document.createElement('button'))")
        assert skip_without_axe() or "Buttons must have discernible text" in str(inaccessible(page))


def outlined(page, tab: str) -> None:
    """Switches the outlines of a tab on, with what the model then finds in its photo."""
    stage = {"name": "#name-stage", "show": "#show-target"}[tab]
    page.wait_for_selector(f"{stage} tbody tr")
    page.locator(f"#{tab}-outlines input").check()
    page.wait_for_selector(f"{stage} path.owl-outline", state="attached")


def photograph(page, look: str, tabs) -> None:
    """Pictures of the tabs under out/screens/; no page is wider than its window, no text is as dark as its ground, and
    axe finds nothing: of colours in dark, of all else on a phone, and of both else."""
    page.add_style_tag(content="* { transition: none !important; animation: none !important; }")
    for tab in tabs:
        go_to(page, tab)
        page.mouse.move(1, 1)
        faults = inaccessible(page, colours="phone" not in look, structure="dark" not in look)
        assert faults == [], f"{tab}, {look}"
        width, window = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
        assert width <= window, f"{tab}, {look}: {width} pixels in a window of {window}"
        assert page.evaluate(FAINT) == [], f"{tab}, {look}: text that can hardly be read"
        keep_picture(page, f"{look}-{tab.lower().replace(' ', '-')}", full_page=True)


# Texts whose contrast with what lies behind them is below 4.5 : 1 (WCAG AA), of those that are seen.
FAINT = """() => {
  const numbers = (colour) => (colour.match(/[\\d.]+/g) || []).map(Number);
  const light = (c) => c.slice(0, 3).map((v) => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = (node) => {
    for (; node; node = node.parentElement) {
      const c = numbers(getComputedStyle(node).backgroundColor);
      if (c.length && (c.length < 4 || c[3] > 0.5)) return c;
    }
    return [255, 255, 255];
  };
  const faint = [];
  for (const node of document.querySelectorAll("main *, .app *")) {
    const own = [...node.childNodes].some((child) => child.nodeType === 3 && child.textContent.trim());
    const style = getComputedStyle(node);
    if (!own || node.offsetParent === null || style.visibility === "hidden" || node.closest(".owl-labels")) continue;
    const [a, b] = [light(numbers(style.color)), light(ground(node))].sort((x, y) => y - x);
    if ((a + 0.05) / (b + 0.05) < 4.5) faint.push(node.textContent.trim().slice(0, 40) + " " + style.color);
  }
  return faint;
}"""
