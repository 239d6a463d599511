"""A page of the demo in Chromium, for the tests that drive it."""

import base64
import os
import shutil
import threading
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlparse

import pytest

pytest.importorskip("gradio")
sync_api = pytest.importorskip("playwright.sync_api")

try:
    import axe_playwright_python.base as axe
except ImportError:
    axe = None

from owl_swin.demo.app import build_demo  # noqa: E402
from owl_swin.server.app import build_demo as served_demo  # noqa: E402
from owl_swin.server.app import create_app  # noqa: E402
from owl_swin.server.run import bind, make_server  # noqa: E402
from owl_swin.server.settings import ServerSettings  # noqa: E402

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
NEEDS_BROWSER = pytest.mark.skipif(
    CHROMIUM is None, reason="NO BROWSER: the demo is not tested in one here; install it (Debian: apt install chromium)"
)
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--use-fake-device-for-media-stream",  # a camera that only pretends
    "--use-fake-ui-for-media-stream",
]
# Where pictures of the pages are left, by `make screenshots`.
SCREENS = os.environ.get("OWL_SWIN_SCREENS", "")
# Longer than any page takes: on a busy machine three tests gave up after twenty seconds.
WAIT_MS = 60_000


@contextmanager
def chromium():
    """The browser."""
    with sync_api.sync_playwright() as playwright:
        one = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield one
        one.close()


@contextmanager
def opened(browser, detector, **options):
    """A page of the demo; what the browser complains of, or asks of other machines, fails the test."""
    blocks = build_demo(detector, folders=True, **options)
    os.environ.setdefault("NO_PROXY", "127.0.0.1")
    _, url, _ = blocks.launch(
        server_name="127.0.0.1", prevent_thread_lock=True, quiet=True, footer_links=[], run_history=False
    )
    with watched(browser, url) as page:
        yield page
    blocks.close(verbose=False)


@contextmanager
def watched(browser, url: str):
    """A page at an address, watched as ``opened`` says."""
    page = browser.new_page(viewport={"width": 1280, "height": 900}, reduced_motion="reduce")  # nothing to wait for
    page.set_default_timeout(WAIT_MS)
    wrong = []
    page.on("console", lambda message: wrong.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("request", lambda request: wrong.append(request.url) if outside(request.url, url) else None)
    page.goto(url)
    page.wait_for_selector("#name-stage .owl-empty")
    yield page
    page.close()
    assert wrong == []


@contextmanager
def served(detector, index):
    """The address of what ``owl-swin serve`` serves, demo and archive included, from a thread of this process."""
    settings = ServerSettings(port=0, drain_s=0.1)
    listening = bind("127.0.0.1", 0)
    server = make_server(create_app(detector, settings, index=index, demo=served_demo), settings)
    thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{listening.getsockname()[1]}/"
    server.drain()
    thread.join(20)
    assert not thread.is_alive()


def outside(asked: str, own: str) -> bool:
    return urlparse(asked).scheme not in ("data", "blob") and urlparse(asked).netloc != urlparse(own).netloc


def go_to(page, tab: str) -> None:
    page.get_by_role("tab", name=tab).click()


def upload(page, button: str, *files) -> None:
    page.set_input_files(f"input[type=file]:has(+ #{button})", list(files))


def drop(page, stage: str, file: Path) -> None:
    """Drops a file on a stage, as from a folder of the desktop."""
    _hand_over(page, file, f"#{stage} .owl-stage", "DragEvent", "drop", "dataTransfer")


def paste(page, file: Path) -> None:
    """Pastes a file into the page."""
    _hand_over(page, file, "body", "ClipboardEvent", "paste", "clipboardData")


def _hand_over(page, file: Path, *to: str) -> None:
    page.evaluate(
        """([name, content, selector, type, kind, key]) => {
          const files = new DataTransfer();
          const bytes = Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0));
          files.items.add(new File([bytes], name, { type: "image/png" }));
          const options = { bubbles: true, cancelable: true, [key]: files };
          document.querySelector(selector).dispatchEvent(new window[type](kind, options));
        }""",
        [file.name, base64.b64encode(file.read_bytes()).decode(), *to],
    )


def unfold(page, title: str, inside: str) -> None:
    """Opens what is folded away under a title of the tab that is seen."""
    if not page.locator(inside).locator("visible=true").count():
        page.get_by_text(title).locator("visible=true").click()
        page.locator(inside).locator("visible=true").first.wait_for()


def fill(page, field: str, text: str) -> None:
    """Types into the field with that id, and again where it is gone: Gradio fills a field anew a moment after a tab or
    a fold has brought it, which is before anybody could have typed."""
    selector = f"#{field} textarea, #{field} input"
    for _ in range(100):
        page.fill(selector, text)
        page.wait_for_timeout(100)
        if page.input_value(selector) == text:
            return
    raise AssertionError(f"#{field} does not keep {text!r}")


def inaccessible(page, *, colours: bool = True, structure: bool = True) -> list[str]:
    """What axe-core finds in what is seen that is against WCAG 2.2 (A and AA) or good practice, but for trifles: of its
    ``colours``, and of the ``structure``, which another look of the same page need not be searched for again."""
    if axe is None or not (colours or structure):
        return []
    if not page.evaluate("Boolean(window.axe)"):
        page.evaluate(axe.AXE_SCRIPT)
    tags = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
    only = {"type": "tag", "values": tags} if structure else {"type": "rule", "values": ["color-contrast"]}
    rules = {"color-contrast": {"enabled": colours}}
    options = {"resultTypes": ["violations"], "runOnly": only, "rules": rules, "preload": False}
    found = page.evaluate("options => axe.run(document, options)", options)["violations"]
    serious = [one for one in found if one["impact"] in ("moderate", "serious", "critical")]
    return [f"{one['help']}: {node['html'][:200]}" for one in serious for node in one["nodes"]]


def skip_without_axe() -> None:
    """At the end of a test that looked for what is inaccessible."""
    if axe is None:
        pytest.skip("NO AXE: what is inaccessible was not looked for; install it (pip install axe-playwright-python)")


def keep_picture(page, name: str, **options) -> None:
    """Leaves a picture of the page, where pictures are wanted."""
    if SCREENS:
        page.screenshot(path=Path(SCREENS) / f"{name}.png", **options)


def set_slider(page, name: str, value: float) -> None:
    field = page.locator(f"#{name} input[type=number]")
    field.fill(str(value))
    field.press("Enter")


def until(page, script: str, argument=None) -> None:
    page.wait_for_function(script, arg=argument)


def count(selector: str) -> str:
    return f"document.querySelectorAll('{selector}').length"
