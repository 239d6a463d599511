"""The demo in a browser behind a proxy that shows the server below a path, and takes that path away."""

import asyncio
import shutil
import threading

import httpx
import pytest
import uvicorn
from http_client import running
from picture_files import encode, noise

from owl_swin.server.app import build_demo
from owl_swin.server.run import bind

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
ROOT = "/tools/owl"


class Proxy:
    """Passes on what is asked below ROOT, without it, and says by which name it was asked, as nginx is told to do."""

    def __init__(self, target: str):
        self._target, self.outside = target, []
        self._client = httpx.AsyncClient(timeout=60, trust_env=False, verify=False)

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            return
        path = scope["raw_path"].decode()
        if not path.startswith(f"{ROOT}/"):
            self.outside.append(path)
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        headers = [(name, value) for name, value in scope["headers"] if name not in (b"host", b"accept-encoding")]
        host = dict(scope["headers"])[b"host"]
        headers += [(b"x-forwarded-host", host), (b"x-forwarded-proto", b"http")]
        url = f"{self._target}{path.removeprefix(ROOT)}?{scope['query_string'].decode()}"
        async with self._client.stream(scope["method"], url, headers=headers, content=body) as answer:
            await send({"type": "http.response.start", "status": answer.status_code, "headers": answer.headers.raw})
            async for part in answer.aiter_raw():
                await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


@pytest.mark.skipif(CHROMIUM is None, reason="NO BROWSER: the demo is not tried behind a proxy here")
def test_the_demo_works_below_the_path_of_a_proxy(detector, tmp_path):
    sync_api = pytest.importorskip("playwright.sync_api")
    (tmp_path / "noise.png").write_bytes(encode(noise(60, 90)))
    with running(detector, demo=build_demo, root_path=ROOT) as server:
        proxy, listening = Proxy(server.url), bind("127.0.0.1", 0)
        front = uvicorn.Server(uvicorn.Config(proxy, lifespan="off", log_level="error", timeout_graceful_shutdown=1))
        thread = threading.Thread(target=lambda: asyncio.run(front.serve([listening])), daemon=True)
        thread.start()
        with sync_api.sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
            page = browser.new_page()
            page.set_default_timeout(20_000)
            wrong = []
            page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
            page.on("response", lambda answer: wrong.append(answer.url) if answer.status >= 400 else None)
            page.goto(f"http://localhost:{listening.getsockname()[1]}{ROOT}/")
            page.wait_for_selector("#name-stage .owl-empty")
            page.set_input_files("input[type=file]:has(+ #name-upload)", tmp_path / "noise.png")
            page.wait_for_selector("#name-stage .owl-there")
            page.goto(f"http://localhost:{listening.getsockname()[1]}{ROOT}/docs")
            assert page.get_by_role("heading", name="owl_swin API").is_visible()
            page.get_by_role("link", name="openapi.json").click()
            page.wait_for_url(f"**{ROOT}/openapi.json")
            browser.close()
        front.should_exit = True
        thread.join(20)
        listening.close()
    assert wrong == []
    assert set(proxy.outside) <= {"/favicon.ico"}  # which a browser asks of every host by itself
