"""Several photos, videos and the camera in the demo, in a real browser whose camera only pretends."""

import threading
import zipfile

import pytest
from picture_files import encode, noise

pytest.importorskip("av")
pytest.importorskip("playwright.sync_api")

from demo_pages import NEEDS_BROWSER, count, drop, fill, go_to, keep_picture, opened, set_slider, until, upload
from test_demo_browser import TABS, photograph
from videos import make_video, moving

from owl_swin.demo import batching

pytestmark = NEEDS_BROWSER


@pytest.fixture(scope="module")
def page(browser, masked_detector):
    with opened(browser, masked_detector) as one:
        yield one


def photo(name: str, seed: int) -> dict:
    return {"name": name, "mimeType": "image/png", "buffer": encode(noise(60, 90, seed))}


ITEMS = count("#name-batch .owl-item")
LOOKED_AT = "document.querySelector('#name-stage img').alt"


def test_several_photos_stand_in_a_strip_and_leave_as_a_zip(page, tmp_path):
    go_to(page, "Name it")
    fill(page, "name-text", "a cat")
    page.keyboard.press("Enter")
    bad = {"name": "no & photo.png", "mimeType": "image/png", "buffer": b"no picture"}
    upload(page, "name-upload", photo("a.png", 1), bad, photo("b & <b>.png", 2), photo("a.png", 3))
    until(page, f"{ITEMS} == 3")
    page.locator("#name-batch .owl-stop").wait_for(state="hidden")
    page.get_by_text("Left out: no & photo.png: not a picture").wait_for()
    set_slider(page, "name-threshold", 0.02)
    page.get_by_text("in 3 of them").wait_for()
    page.locator("#name-batch .owl-item > button").nth(2).click()
    until(page, f"{LOOKED_AT} == 'b & <b>.png' && document.querySelector('#name-stage .owl-box')")
    badge = page.inner_text("#name-batch .owl-item:nth-child(2) em")
    assert badge.split()[0] == str(page.locator("#name-stage .owl-box").count())
    page.keyboard.press("ArrowRight")
    until(page, f"{LOOKED_AT} == 'a.png' && document.activeElement.getAttribute('aria-pressed') == 'true'")
    (tmp_path / "dropped.png").write_bytes(encode(noise(60, 90, 4)))
    drop(page, "name-stage", tmp_path / "dropped.png")
    until(page, f"{ITEMS} == 4")
    with page.expect_download() as download:
        page.locator("#name-zips").get_by_role("button", name="YOLO").press("Enter")
    with zipfile.ZipFile(download.value.path()) as bundle:
        assert bundle.namelist()[1:] == [f"labels/{name}.txt" for name in ("a", "b & _b_", "a-2", "dropped")]
    assert download.value.suggested_filename == "photos.yolo.zip"
    page.locator("#name-batch .owl-remove").first.press("Enter")
    until(page, f"{ITEMS} == 3")
    page.click("#name-camera .owl-open")
    until(page, "!document.querySelector('#name-camera .owl-take').disabled")
    page.locator("#name-camera .owl-take").evaluate("one => { one.click(); one.click(); }")  # one picture
    page.locator("#name-batch .owl-item", has_text="camera ").wait_for()
    page.get_by_text("4 photos, ").wait_for()
    page.click(".owl-theme")
    photograph(page, "batch-dark", ["Name it"])
    page.click(".owl-theme")
    page.set_viewport_size({"width": 390, "height": 844})
    photograph(page, "batch-phone", ["Name it"])
    for tab in TABS:
        assert page.get_by_role("tab", name=tab).is_visible()  # and not behind a menu
    page.set_viewport_size({"width": 1280, "height": 900})


def test_photos_that_are_still_to_come_can_be_stopped(page, monkeypatch):
    taken, stopped = [], threading.Event()

    def slowly(*given):
        if len(taken) == 2:
            assert stopped.wait(20)
        taken.append(take_next(*given))
        return taken[-1]

    take_next = batching.take_next
    monkeypatch.setattr(batching, "take_next", slowly)
    go_to(page, "Name it")
    if page.is_visible("text=Remove all"):
        page.click("text=Remove all")
    until(page, f"{ITEMS} == 0")
    upload(page, "name-upload", *(photo(f"{i}.png", i) for i in range(9)))
    until(page, f"{ITEMS} == 3")
    page.click("#name-batch .owl-stop")
    page.locator("#name-batch .owl-stop").wait_for(state="hidden")
    stopped.set()
    page.get_by_text("3 photos, ").wait_for()  # and not the fourth, which was on its way
    page.get_by_role("button", name="Remove all").click()
    page.wait_for_selector("#name-stage .owl-empty")


def test_a_video_is_looked_at_by_keys_and_its_things_are_gone_to(page, tmp_path):
    go_to(page, "Video")
    with page.expect_file_chooser() as chooser:
        page.click("#video-stage .owl-empty")
    chooser.value.set_files(make_video(tmp_path / "a & b.mp4", moving(12)))
    page.get_by_text("a & b.mp4: 1.").filter(has_text="96 × 64 pixels").wait_for()
    upload(page, "video-upload", {"name": "no & video.mp4", "mimeType": "video/mp4", "buffer": b"#EXTM3U\na.mp4\n"})
    page.get_by_text("no & video.mp4: not a video").wait_for()
    page.fill("#video-threshold input[type=number]", "0.02")
    fill(page, "video-text", "a cat")
    page.keyboard.press("Enter")
    page.wait_for_selector("#video-stage .owl-things tbody tr")
    player = "document.querySelector('#video-stage video')"
    until(page, f"{player}.videoWidth == 96 && {player}.duration > 1")
    assert not page.is_visible("#video-stop")
    page.locator("#video-stage .owl-go").last.focus()
    page.keyboard.press("Enter")
    until(page, f"{player}.paused && {player}.currentTime > 0")
    for label, name in [("Video", "a & b.boxes.mp4"), ("JSON lines", "a & b.jsonl")]:
        with page.expect_download() as download:
            page.get_by_role("link", name=label).click()
        assert download.value.suggested_filename == name
        assert len(download.value.path().read_bytes()) > 500
    page.click(".owl-theme")
    photograph(page, "video-dark", ["Video"])
    page.click(".owl-theme")
    page.set_viewport_size({"width": 390, "height": 844})
    photograph(page, "video-phone", ["Video"])
    page.set_viewport_size({"width": 1280, "height": 900})


def test_a_video_of_the_camera_is_recorded_and_the_camera_goes_off(page):
    go_to(page, "Video")
    page.locator("#video-camera .owl-open").press("Enter")
    until(page, "!document.querySelector('#video-camera .owl-take').disabled")
    assert page.evaluate("document.activeElement.textContent") == "Start recording"
    track = page.evaluate_handle("document.querySelector('#video-camera video').srcObject.getTracks()[0]")
    page.keyboard.press("Escape")
    assert track.evaluate("one => one.readyState") == "ended" and page.is_visible("#video-camera .owl-open")
    page.click("#video-camera .owl-open")
    until(page, "!document.querySelector('#video-camera .owl-take').disabled")
    page.click("#video-camera .owl-take")
    page.get_by_text("s left.").wait_for()
    keep_picture(page, "video-camera")
    page.wait_for_timeout(400)
    page.click("#video-camera .owl-take")
    page.get_by_text("1280 × 720 pixels").wait_for()
    assert page.is_visible("#video-camera .owl-open") and page.is_hidden("#video-camera video")


def test_the_camera_shows_the_thing_and_what_to_look_in(page):
    go_to(page, "Show it")
    for stage in ("source", "target"):
        page.click(f"#show-{stage}-camera .owl-open")
        until(page, f"!document.querySelector('#show-{stage}-camera .owl-take').disabled")
        page.click(f"#show-{stage}-camera .owl-take")
        until(page, f"document.querySelector('#show-{stage} img').alt.startsWith('camera ')")
        assert page.is_hidden(f"#show-{stage}-camera video")
    page.focus("#show-source .owl-frame")
    page.keyboard.press("Enter")  # a box in the middle
    page.click("#show-add")
    page.locator("#show-examples .owl-yes").wait_for()
    set_slider(page, "show-threshold", 0.01)
    page.wait_for_selector("#show-target .owl-box")


def test_a_camera_that_is_not_given_is_said(page):
    go_to(page, "Video")
    page.evaluate(SLOW_CAMERA)
    page.click("#video-camera .owl-open")
    go_to(page, "Search")
    page.evaluate("goOn()")
    until(page, "window.given?.getTracks().every((one) => one.readyState == 'ended')")  # it does not stay on unseen
    go_to(page, "Video")
    assert page.is_visible("#video-camera .owl-open")
    refused = "async () => { throw new DOMException('no', 'NotAllowedError'); }"
    page.evaluate(f"() => {{ navigator.mediaDevices.getUserMedia = {refused}; }}")
    page.click("#video-camera .owl-open")
    page.get_by_text("Allow it for this page").wait_for()
    assert page.is_visible("#video-camera .owl-open") and page.is_hidden("#video-camera .owl-take")


# A camera that starts when ``goOn`` is called.
SLOW_CAMERA = """() => {
  const real = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);
  navigator.mediaDevices.getUserMedia = async (wanted) => {
    await new Promise((started) => { window.goOn = started; });
    return (window.given = await real(wanted));
  };
}"""
