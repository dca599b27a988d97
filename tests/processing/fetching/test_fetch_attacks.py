"""No trick of an address or of a server reaches the private network, holds a caller, or fills the memory."""

import gzip
import ipaddress
import socket
import time
import zlib
from http.server import BaseHTTPRequestHandler

import pytest

from infinitevl.errors import InputError
from infinitevl.processing.fetching import fetch as module
from infinitevl.processing.fetching.fetch import fetch
from infinitevl.processing.fetching.public_ip import is_public
from infinitevl.processing.pictures.opening import open_image
from tests.processing.server import Answer, body, redirect, served

TRICKS = """
127.0.0.1 127.1 127.0.1 0 0.0.0.0 2130706433 017700000001 0177.0.0.1 0x7f.0.0.1 0x7f000001 0x7f.1 127.0.0.1.
localhost LOCALHOST localhost. [::1] [::] [::ffff:127.0.0.1] [::ffff:7f00:1] [0:0:0:0:0:ffff:7f00:1]
[::127.0.0.1] [::ffff:0:127.0.0.1] [64:ff9b::7f00:1] [64:ff9b::10.0.0.1] [64:ff9b:1::7f00:1] [2002:7f00:1::]
[2002:a00:1::1] [2001:0:7f00:1::] [fe80::1] [fe80::1%25lo] [fc00::1] [fd12:3456::1] [fec0::1] [ff02::1]
[2001:4860::5efe:7f00:1] [2001:4860::200:5efe:a00:1] 10.0.0.1 172.16.0.1 192.168.0.1 169.254.169.254
2852039166 0xa9fea9fe 0251.0376.0251.0376 100.64.0.1 198.18.0.1 192.88.99.1 224.0.0.1 255.255.255.255
user@127.0.0.1 8.8.8.8@127.0.0.1 8.8.8.8:80@127.0.0.1 8.8.8.8%40127.0.0.1 8.8.8.8%00@127.0.0.1
127.0.0.1%23@127.0.0.1 [::ffff:169.254.169.254] [2001:db8::1] [100::1] 127。0。0。1 ①②⑦.⓪.⓪.①
ｌｏｃａｌｈｏｓｔ 127.0.0.1\\@127.0.0.1 127.0.0.1%2f.example.invalid 127.0.0.1%20 %31%32%37.0.0.1
""".split()


def test_there_are_enough_tricks() -> None:
    assert len(set(TRICKS)) >= 60


@pytest.fixture(scope="module")
def secret() -> object:
    """A server on all addresses of this machine, and what it was asked."""
    with served({"/a.png": body(b"secret")}) as (address, asked):
        yield address.rpartition(":")[2], asked


@pytest.mark.parametrize("host", TRICKS)
def test_no_form_of_a_private_address_is_reached(secret: tuple[str, list[str]], host: str) -> None:
    port, asked = secret
    with pytest.raises(InputError):
        fetch(f"http://{host}:{port}/a.png", total_timeout=10)
    assert asked == []


@pytest.mark.parametrize("host", TRICKS)
def test_no_redirect_to_one_is_followed(
    secret: tuple[str, list[str]], host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    port, asked = secret
    resolve, look_up = module._resolve, socket.getaddrinfo
    monkeypatch.setattr(
        socket,
        "getaddrinfo",
        lambda name, *a, **k: look_up(name.replace("public.test", "127.0.0.1"), *a, **k),
    )
    # The first server stands for a public one; the check of what was connected to cannot know that.
    monkeypatch.setattr(module, "_resolve", lambda name, _: resolve(name, name == "public.test"))
    monkeypatch.setattr(module, "is_public", lambda _: False)
    with served({"/": redirect(f"http://{host}:{port}/a.png")}) as (outside, _), pytest.raises(InputError):
        fetch(f"http://public.test:{outside.rpartition(':')[2]}/", total_timeout=10)
    assert asked == []


def test_what_was_connected_to_is_checked_again(
    secret: tuple[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if the look-up had been deceived, or a router led a public address home."""
    port, asked = secret
    monkeypatch.setattr(module, "_resolve", lambda *_: [ipaddress.ip_address("127.0.0.1")])
    with pytest.raises(InputError, match=r"led to 127\.0\.0\.1"):
        fetch(f"http://public.test:{port}/a.png")
    assert asked == []


def test_no_proxy_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    with served({"/a.png": body(b"from the server")}) as (address, asked):
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, "http://127.0.0.1:9")
        assert fetch(f"{address}/a.png", allow_private=True) == b"from the server"
        assert asked == ["/a.png"]


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "1.1.1.1", "2606:4700::1111", "2a00:1450:4001::200e", "2002:808:808::1"]
)
def test_public_addresses_stay_public(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    "address",
    [
        "http://xn--/",
        "http://xn--a.xn--/x",
        "http://" + "a" * 300 + ".test/",
        "http://127.0.0.1/" + "a" * 100_000,
        "http://a..b/",
        "http://[::1",
        "http://[::1]x/",
        "http://127.0.0.1:99999/",
        "http://127.0.0.1:-1/",
        "http://half\ud83d.test/",
        "http://127.0.0.1/\ud83d",
        "http://\x00/",
        "http://user:pa ss@/",
        "https://",
        "ftp://127.0.0.1/",
    ],
)
def test_an_address_that_cannot_be_meant_is_an_input_error(address: str) -> None:
    for use in (fetch, open_image):
        with pytest.raises(InputError) as caught:
            use(address)
        assert len(str(caught.value)) < 700


@pytest.mark.parametrize(
    "target", ["http://[::1", "http://xn--/", "http://\x7f/", "//", "http:///x", "\\\\x\\y"]
)
def test_a_redirect_that_leads_nowhere_is_an_input_error(target: str) -> None:
    with served({"/": redirect(target)}) as (address, _), pytest.raises(InputError):
        fetch(f"{address}/", allow_private=True)


def test_a_password_in_an_address_is_not_repeated() -> None:
    with pytest.raises(InputError) as caught:
        fetch("http://me:hush@127.0.0.1:1/", allow_private=True)
    assert "hush" not in str(caught.value)


def packed(data: bytes, encoding: str) -> Answer:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Encoding", encoding)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data)

    return answer


def test_a_packed_body_is_unpacked_within_the_limit() -> None:
    plain = bytes(100_000)
    answers = {
        "/gzip": packed(gzip.compress(plain), "gzip"),
        "/zlib": packed(zlib.compress(plain), "deflate"),
        "/parts": packed(gzip.compress(plain[:1]) + gzip.compress(plain[1:]), "GZIP"),
        "/plain": packed(plain, "identity"),
        "/twice": packed(gzip.compress(gzip.compress(plain)), "gzip, gzip"),
        "/other": packed(plain, "br"),
        "/cut": packed(gzip.compress(plain)[:-12], "gzip"),
        "/wrong": packed(plain, "gzip"),
    }
    with served(answers) as (address, _):
        for path in ("gzip", "zlib", "parts", "plain"):
            assert fetch(f"{address}/{path}", allow_private=True, max_bytes=100_000) == plain
            with pytest.raises(InputError, match="more than 99999 bytes"):
                fetch(f"{address}/{path}", allow_private=True, max_bytes=99_999)
        for path, words in (
            ("twice", "packed as 'gzip, gzip'"),
            ("other", "packed as 'br'"),
            ("cut", "ends too early"),
            ("wrong", "cannot be unpacked"),
        ):
            with pytest.raises(InputError, match=words):
                fetch(f"{address}/{path}", allow_private=True)


def test_a_bomb_takes_no_more_memory_than_the_limit() -> None:
    import tracemalloc

    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    bomb = b"".join(packer.compress(bytes(2**20)) for _ in range(200)) + packer.flush()
    with served({"/": packed(bomb, "gzip")}) as (address, _):
        tracemalloc.start()
        with pytest.raises(InputError, match="more than 1000000 bytes"):
            fetch(f"{address}/", allow_private=True, max_bytes=1_000_000)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 20 * 2**20


def dripping(first: bytes, drop: bytes) -> Answer:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(first)
        for _ in range(200):
            handler.wfile.write(drop)
            handler.wfile.flush()
            time.sleep(0.02)

    return answer


@pytest.mark.parametrize(
    ("first", "drop"),
    [
        (b"", b""),
        (b"", b"H"),
        (b"HTTP/1.1 200 OK\r\n", b"a: b\r\n"),
        (b"HTTP/1.1 200 OK\r\nx: ", b"y"),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        (b"", b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n"),
        (b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\n\r\n\x1f\x8b\x08\x08\0\0\0\0\0\0", b"n"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", b"1;x=y\r\na\r\n"),
        (b"HTTP/1.1 200 OK\r\n\r\n", b"a"),
    ],
)
def test_whatever_drips_is_given_up_in_time(first: bytes, drop: bytes) -> None:
    with served({"/": dripping(first, drop)}) as (address, _):
        start = time.monotonic()
        with pytest.raises(InputError):
            fetch(f"{address}/", allow_private=True, total_timeout=0.3)
        assert time.monotonic() - start < 2


def test_a_look_up_that_takes_for_ever_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **k: time.sleep(3))
    start = time.monotonic()
    with pytest.raises(InputError, match="too slow"):
        fetch("http://slow.test/", total_timeout=0.2)
    assert time.monotonic() - start < 2
