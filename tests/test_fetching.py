"""Pictures by URL: which addresses are of the open internet, which hosts are asked, what is believed of an answer."""

import http.server
import threading
import time
from contextlib import suppress

import pytest
from picture_files import encode, noise

from owl_swin.addresses import is_public, is_url
from owl_swin.errors import AddressRefusedError, NotFetchedError
from owl_swin.fetching import fetch

PICTURE = encode(noise(60, 90))

# One address at least of every block of IANA's registries of special purposes, and of every way to wrap IPv4 in IPv6.
SPECIAL = [
    "0.0.0.0", "0.1.2.3", "10.1.2.3", "100.64.0.1", "100.127.255.255", "127.0.0.1", "127.255.255.254",
    "169.254.169.254", "172.16.0.1", "172.31.255.255", "192.0.0.1",
    "192.0.0.8", "192.0.0.9", "192.0.0.10", "192.0.0.170", "192.0.0.171",
    "192.0.2.1", "192.31.196.1", "192.52.193.1", "192.88.99.1", "192.168.1.1", "192.175.48.1", "198.18.0.1",
    "198.19.255.255", "198.51.100.1", "203.0.113.1", "224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255",
    "::", "::1", "::127.0.0.1", "::93.184.216.34", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:93.184.216.34",
    "::ffff:0:7f00:1", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::1", "64:ff9b:1:ffff::5db8:d822", "100::1",
    "100:0:0:1::1", "2001::1", "2001:0:4136:e378:8000:63bf:3fff:fdd2", "2001:1::1", "2001:1::2", "2001:1::3",
    "2001:2::1", "2001:3::1", "2001:4:112::1", "2001:10::1", "2001:20::1", "2001:30::1", "2001:db8::1", "2002:7f00:1::",
    "2002:5db8:d822::1", "2620:4f:8000::1", "3fff::1", "3fff:fff::1", "5f00::1", "fc00::1", "fd12:3456::1",
    "fe80::1", "fe80::1%eth0", "fec0::1", "feff::1", "ff02::1", "2606:2800:220:1:0:5efe:10.0.0.1",
    "2606:2800:220:1:200:5efe:127.0.0.1",
]  # fmt: skip
PUBLIC = [
    "93.184.216.34", "1.1.1.1", "100.63.255.255", "100.128.0.1", "172.15.255.255", "172.32.0.1", "192.0.1.1",
    "198.17.255.255", "198.20.0.1", "223.255.255.255", "2606:2800:220:1::1", "2001:200::1", "2001:4860:4860::8888",
    "2003::1", "2a00:1450::1", "64:ff9b::5db8:d822", "2606:2800:220:1:0:5efe:5db8:d822",
]  # fmt: skip


@pytest.mark.parametrize("address", SPECIAL)
def test_an_address_for_a_special_purpose_is_not_public(address):
    assert not is_public(address)


@pytest.mark.parametrize("address", PUBLIC)
def test_an_address_of_the_open_internet_is_public(address):
    assert is_public(address)


class Pictures(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/drip.png":
            self.wfile.write(b"HTTP/1.1 200 OK\r\nX: ")
        if self.path == "/drip.png?body":
            self.wfile.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
        if self.path.startswith("/drip.png"):
            with suppress(OSError):  # until nobody reads any more
                while True:
                    self.wfile.write(b"x")
                    time.sleep(0.05)
        if self.path == "/moved.png":
            self.send_response(302)
            self.send_header("Location", "http://127.0.0.1/a.png")
            self.end_headers()
            return
        if self.path.startswith("/on/"):
            self.send_response(301)
            self.send_header("Location", self.path.removeprefix("/on") if self.path != "/on/" else "")
            self.end_headers()
            return
        self.send_response(200 if self.path.startswith("/a.png") else 404)
        self.end_headers()
        self.wfile.write(PICTURE if self.path != "/a.png?long" else bytes(10**6))

    def log_message(self, *arguments):
        pass


@pytest.fixture(scope="module")
def host():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Pictures)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"localhost:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_picture_is_fetched_from_a_named_host_at_the_address_that_was_checked(host):
    checked = []

    def allow(address):
        checked.append(address)
        return True

    assert fetch(f"http://{host}/a.png", [host], max_bytes=10**5, allow_address=allow) == PICTURE
    assert "127.0.0.1" in checked


@pytest.mark.parametrize(
    "path, sentence",
    [
        ("/moved.png", "302, a redirect, which is not followed"),
        ("/none.png", "404"),
        ("/a.png?long", "more than 100000 bytes"),
    ],
)
def test_what_a_host_answers_is_not_believed(host, path, sentence):
    with pytest.raises(NotFetchedError, match=sentence):
        fetch(f"http://{host}{path}", [host], max_bytes=10**5, allow_address=lambda address: True)


@pytest.mark.parametrize("path", ["/drip.png", "/drip.png?body"])
def test_a_host_that_drips_holds_nobody_beyond_the_time(host, path):
    done = []

    def ask():
        with pytest.raises(NotFetchedError, match="took too long"):
            fetch(f"http://{host}{path}", [host], max_bytes=10**5, allow_address=lambda _: True, timeout_s=0.3)
        done.append(True)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(20)
    assert done


@pytest.mark.parametrize("named", ["localhost", "localhost:80", "LOCALHOST:80"])
def test_a_standard_port_may_be_said_or_left_away(named):
    with pytest.raises(AddressRefusedError, match="not of the open internet"):  # which is looked at after the name
        fetch("http://localhost/a.png", [named], max_bytes=10**5)


def test_a_named_host_with_a_private_address_is_not_asked(host):
    with pytest.raises(AddressRefusedError, match="not of the open internet"):
        fetch(f"http://{host}/a.png", [host], max_bytes=10**5)


def test_without_a_list_every_host_of_the_open_internet_is_asked(host):
    assert fetch(f"http://{host}/a.png", None, max_bytes=10**5, allow_address=lambda address: True) == PICTURE
    with pytest.raises(AddressRefusedError, match="not of the open internet"):
        fetch(f"http://{host}/a.png", None, max_bytes=10**5)


def test_a_host_that_is_not_on_the_list_is_not_asked(host):
    with pytest.raises(AddressRefusedError, match="pictures are not fetched from there"):
        fetch(f"http://{host}/a.png", ["localhost"], max_bytes=10**5, allow_address=lambda address: True)


def test_redirects_are_followed_as_often_as_asked_and_each_is_checked(host):
    asked = {"max_bytes": 10**5, "allow_address": lambda address: True}
    assert fetch(f"http://{host}/on/on/a.png", None, redirects=2, **asked) == PICTURE
    with pytest.raises(NotFetchedError, match="301, a redirect, which is not followed"):
        fetch(f"http://{host}/on/on/a.png", None, redirects=1, **asked)
    with pytest.raises(AddressRefusedError, match=r"127\.0\.0\.1: pictures are not fetched from there"):
        fetch(f"http://{host}/moved.png", [host], redirects=1, **asked)
    with pytest.raises(NotFetchedError, match="a redirect, which is not followed"):
        fetch(f"http://{host}/on/", None, redirects=9, **asked)


@pytest.mark.parametrize(
    "url, sentence",
    [
        ("file:///etc/passwd", "must be http or https"),
        ("http://user@localhost/", "without a user"),
        ("http://[::1", "cannot be read"),
        ("http://localhost:99999/", "cannot be read"),
        ("http://localhost/a b", "must be written as %xx"),
    ],
)
def test_a_url_that_cannot_be_read_is_refused(url, sentence):
    with pytest.raises(AddressRefusedError, match=sentence):
        fetch(url, None, max_bytes=10**5)


def test_what_is_a_url():
    assert is_url("HTTPS://example.com/a.png") and is_url("http://x")
    assert not is_url("http.png") and not is_url("file:///a.png") and not is_url("C:/http://a")
