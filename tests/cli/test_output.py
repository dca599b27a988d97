"""Standard input and output of any kind: ASCII alone, closed, full, or not UTF-8."""

import os
import subprocess
import sys

import pytest

ASK = "import sys; from infinitevl.cli.output import *; prepare_streams(); "


def run(program: str, stdin: bytes = b"", **settings: str) -> subprocess.CompletedProcess[bytes]:
    environment = os.environ | {"PYTHONUTF8": "0"} | settings
    return subprocess.run(
        [sys.executable, "-c", ASK + program], input=stdin, capture_output=True, env=environment, check=False
    )


def test_a_terminal_without_the_characters_shows_question_marks() -> None:
    done = run("write('caf\\u00e9 \\u2713\\n')", PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stdout) == (0, b"caf? ?\n")


def test_json_stays_json_in_ascii() -> None:
    assert run("print_json({'a': '\\u2713'})", PYTHONIOENCODING="ascii").stdout == b'{"a": "\\u2713"}\n'
    assert run("print_json({'a': '\\u2713'})", PYTHONIOENCODING="utf-8").stdout == '{"a": "✓"}\n'.encode()


def test_a_line_that_is_not_utf_8_is_told() -> None:
    done = run(
        "\ntry: read_line()\nexcept InputError as error: print(error)",
        "naïve\n".encode("latin-1"),
        PYTHONIOENCODING="utf-8:strict",
    )
    assert done.returncode == 0 and b"not UTF-8 text" in done.stdout


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_is_told() -> None:
    program = "\ntry: write('x')\nexcept InfiniteVLError as error: print(error, file=sys.stderr)"
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-c", ASK + program], stdout=full, stderr=subprocess.PIPE, check=False
        )
    assert b"No space left" in done.stderr and b"Traceback" not in done.stderr


def test_a_reader_that_has_gone_is_told_once() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    program = (
        "\ntry: write('x')\nexcept InfiniteVLError as error: print(error, file=sys.stderr)\nprint('more')"
    )
    done = subprocess.run(
        [sys.executable, "-c", ASK + program], stdout=writing, stderr=subprocess.PIPE, check=False
    )
    os.close(writing)
    assert done.returncode == 0 and b"has gone" in done.stderr and b"BrokenPipe" not in done.stderr


def test_a_closed_standard_output_takes_what_comes() -> None:
    call = ["sh", "-c", f'exec "{sys.executable}" -c "{ASK}write(str(1))" >&-']
    done = subprocess.run(call, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_closed_standard_input_is_an_empty_one() -> None:
    program = ASK + "print(sys.stdin.isatty(), repr(sys.stdin.read()))"
    done = subprocess.run(
        ["sh", "-c", 'exec "$0" -c "$1" <&-', sys.executable, program], capture_output=True, check=False
    )
    assert done.stdout == b"False ''\n", done.stderr


def test_a_password_in_an_address_is_not_shown() -> None:
    told = "print_error(InputError('rtsp://me:s3@cr3t@camera/1 is lost, as is http://host/a@b'))"
    shown = run(told).stderr
    assert b"rtsp://***@camera/1 is lost, as is http://host/a@b" in shown and b"cr3t" not in shown
