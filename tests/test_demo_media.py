"""Videos and the camera on the pages of the demo, in a real browser with a camera that only pretends."""

import pytest
from test_demo_browser import ARGUMENTS, CHROMIUM, SCREENS, go_to, opened, photograph, until, upload
from videos import make_video, moving

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="NO BROWSER: videos and the camera are not tried in one here")
sync_api = pytest.importorskip("playwright.sync_api")
pytest.importorskip("av")

CAMERA = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]


@pytest.fixture(scope="module")
def page(detector):
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=[*ARGUMENTS, *CAMERA])
        with opened(browser, detector) as one:
            yield one
        browser.close()


def test_a_video_is_looked_at_by_keys_and_its_things_are_gone_to(page, tmp_path):
    go_to(page, "Video")
    with page.expect_file_chooser() as chooser:
        page.click("#video-stage .owl-empty")
    chooser.value.set_files(make_video(tmp_path / "a & b.mp4", moving(12)))
    page.get_by_text("a & b.mp4: 1.").filter(has_text="96 × 64 pixels").wait_for()
    upload(page, "video-upload", {"name": "no & video.mp4", "mimeType": "video/mp4", "buffer": b"#EXTM3U\na.mp4\n"})
    page.get_by_text("no & video.mp4: not a video").wait_for()
    page.fill("#video-threshold input[type=number]", "0.02")
    page.fill("#video-text textarea, #video-text input", "a cat")
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
    page.screenshot(path=SCREENS / "video-camera.png")
    page.wait_for_timeout(400)
    page.click("#video-camera .owl-take")
    page.get_by_text("1280 × 720 pixels").wait_for()
    assert page.is_visible("#video-camera .owl-open") and page.is_hidden("#video-camera video")


def test_a_camera_that_is_not_given_is_said(page):
    go_to(page, "Video")
    refused = "async () => { throw new DOMException('no', 'NotAllowedError'); }"
    page.evaluate(f"() => {{ navigator.mediaDevices.getUserMedia = {refused}; }}")
    page.click("#video-camera .owl-open")
    page.get_by_text("Allow it for this page").wait_for()
    assert page.is_visible("#video-camera .owl-open") and page.is_hidden("#video-camera .owl-take")
