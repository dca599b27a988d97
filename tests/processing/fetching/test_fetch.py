"""Addresses are fetched within limits, and never become a door into the private network."""

import ipaddress
import socket
import time
from http.server import BaseHTTPRequestHandler

import httpx
import pytest

from infinitevl.errors import InputError
from infinitevl.processing.fetching import fetch as module
from infinitevl.processing.fetching.fetch import fetch
from infinitevl.processing.fetching.public_ip import is_public
from infinitevl.processing.pictures.opening import open_image
from tests.processing.media import encoded, make_picture
from tests.processing.server import body, redirect, served


def test_a_picture_at_an_address_is_opened() -> None:
    with served({"/a.png": body(encoded(make_picture()))}) as (address, _):
        assert open_image(f"{address}/a.png", allow_private=True).size == (84, 56)


def test_a_private_address_is_refused_without_a_request() -> None:
    with served({"/a.png": body(b"secret")}) as (address, asked):
        for host in ("127.0.0.1", "localhost", "[::1]", "0177.0.0.1", "2130706433"):
            with pytest.raises(InputError, match=r"public address|not be found|Invalid IPv4"):
                fetch(f"{address.replace('127.0.0.1', host)}/a.png")
        assert asked == []


def test_a_redirect_into_the_private_network_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with served({"/secret": body(b"secret")}) as (inside, secrets):
        with served({"/": redirect(f"{inside}/secret")}) as (outside, _):
            port = outside.rpartition(":")[2]
            resolve, look_up = module._resolve, socket.getaddrinfo

            def pretend(host: str, *rest: object, **options: object) -> list:
                return look_up(host.replace("public.test", "127.0.0.1"), *rest, **options)

            monkeypatch.setattr(socket, "getaddrinfo", pretend)
            monkeypatch.setattr(module, "_resolve", lambda host, _: resolve(host, host == "public.test"))
            with pytest.raises(InputError, match="not a public address"):
                fetch(f"http://public.test:{port}/")
        assert secrets == []


def test_a_name_that_changes_its_address_is_looked_up_once(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[httpx.Request] = []

    def send(self: httpx.Client, request: httpx.Request, stream: bool) -> httpx.Response:
        seen.append(request)
        return httpx.Response(200, content=b"ok", request=request)

    answers = iter(["93.184.216.34", "127.0.0.1"])
    monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **k: [(0, 0, 0, "", (next(answers), 0))])
    monkeypatch.setattr(httpx.Client, "send", send)
    assert fetch("https://rebinding.test:8443/a.png?b=c") == b"ok"
    assert str(seen[0].url) == "https://93.184.216.34:8443/a.png?b=c"
    assert seen[0].headers["host"] == "rebinding.test:8443"
    assert seen[0].extensions["sni_hostname"] == "rebinding.test"


def test_one_private_address_among_public_ones_is_enough_to_refuse(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [(0, 0, 0, "", ("93.184.216.34", 0)), (0, 0, 0, "", ("10.0.0.1", 0))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **k: found)
    with pytest.raises(InputError, match=r"10\.0\.0\.1"):
        fetch("http://mixed.test/")


@pytest.mark.parametrize(
    "address",
    """127.0.0.1 10.1.2.3 172.16.0.1 192.168.1.1 169.254.169.254 0.0.0.0 100.64.0.1 224.0.0.1 240.0.0.1
    255.255.255.255 192.0.2.1 ::1 :: fe80::1 fc00::1 ff02::1 ::ffff:127.0.0.1 ::ffff:10.0.0.1 64:ff9b::7f00:1
    2002:7f00:1:: 2001:0:7f00:1::""".split(),
)
def test_an_address_that_leads_inside_is_not_public(address: str) -> None:
    assert not is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    "address", ["93.184.216.34", "8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"]
)
def test_an_address_of_the_internet_is_public(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))


def test_redirects_are_followed_but_not_for_ever() -> None:
    answers = {"/1": redirect("/2"), "/2": redirect("/3"), "/3": body(b"found"), "/loop": redirect("/loop")}
    with served(answers) as (address, asked):
        assert fetch(f"{address}/1", allow_private=True) == b"found"
        with pytest.raises(InputError, match="redirects more than 5 times"):
            fetch(f"{address}/loop", allow_private=True)
        assert asked.count("/loop") == 6


def test_a_redirect_to_a_file_is_refused() -> None:
    refused = pytest.raises(InputError, match=r"not an http\(s\) address")
    with served({"/": redirect("file:///etc/passwd")}) as (address, _), refused:
        fetch(f"{address}/", allow_private=True)


def test_more_bytes_than_the_limit_are_refused() -> None:
    with served({"/": body(b"x" * 100_000)}) as (address, _):
        assert len(fetch(f"{address}/", allow_private=True, max_bytes=100_000)) == 100_000
        with pytest.raises(InputError, match="more than 99999 bytes"):
            fetch(f"{address}/", allow_private=True, max_bytes=99_999)


def test_a_server_that_drips_is_given_up() -> None:
    def drip(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        for _ in range(100):
            handler.wfile.write(b"x")
            handler.wfile.flush()
            time.sleep(0.02)

    with served({"/": drip}) as (address, _), pytest.raises(InputError, match="too slow"):
        fetch(f"{address}/", allow_private=True, total_timeout=0.1)


@pytest.mark.parametrize("status", [404, 500])
def test_an_answer_other_than_success_is_an_input_error(status: int) -> None:
    with served({"/": body(b"", status)}) as (address, _), pytest.raises(InputError, match=str(status)):
        fetch(f"{address}/", allow_private=True)


@pytest.mark.parametrize(
    "address", ["http://", "http://[", "http://a b/", "http://127.0.0.1:1/x", "http://no.such.invalid/"]
)
def test_an_address_that_leads_nowhere_is_an_input_error(address: str) -> None:
    with pytest.raises(InputError):
        open_image(address, allow_private=True)
