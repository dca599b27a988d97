import pytest
from typer.testing import CliRunner

from infinitevl.cli import app
from infinitevl.cli.chat import Chat, Quit
from infinitevl.errors import InputError
from tests.processing.server import body, served


class FakeConversation:
    def __init__(self):
        self.heard = []

    def say(self, content, *, on_text, max_new_tokens):
        self.heard.append(content)
        on_text("piece")
        return f"answer {len(self.heard)}"


@pytest.fixture
def started():
    return []


@pytest.fixture
def chat(started):
    def start():
        started.append(FakeConversation())
        return started[-1]

    return Chat(start, max_new_tokens=5)


def ignore(text):
    pass


def test_what_is_attached_goes_with_the_next_message_only(chat, started, tmp_path):
    picture = tmp_path / "a cat.png"
    picture.touch()
    assert "next message" in chat.take(f"/image {picture}")
    chat.say("what?", ignore)
    chat.say("and?", ignore)
    assert started[0].heard == [
        [{"type": "image", "image": str(picture)}, {"type": "text", "text": "what?"}],
        [{"type": "text", "text": "and?"}],
    ]


def test_an_address_needs_no_file(chat, started):
    chat.attach("video", "https://example.org/clip.mp4")
    chat.say("what?", ignore)
    assert started[0].heard[0][0] == {"type": "video", "video": "https://example.org/clip.mp4"}


def test_a_missing_file_is_said_before_the_message_is(chat):
    with pytest.raises(InputError, match=r"no image at 'nope\.png'"):
        chat.take("/image nope.png")


def test_reset_starts_a_new_conversation_and_forgets_what_was_attached(chat, started):
    chat.attach("image", "https://example.org/a.png")
    chat.take("/reset")
    chat.say("who are you?", ignore)
    assert [conversation.heard for conversation in started] == [
        [],
        [[{"type": "text", "text": "who are you?"}]],
    ]


def test_quit_ends(chat):
    with pytest.raises(Quit):
        chat.take("/quit")


@pytest.mark.parametrize("line", ["/picture a.png", "/imagea.png", "/"])
def test_an_unknown_command_is_answered_with_those_that_there_are(chat, line):
    with pytest.raises(InputError, match="/reset"):
        chat.take(line)


@pytest.mark.parametrize("name", ["/image", "/video"])
@pytest.mark.parametrize("end", ["", " ", "\t \n"])
def test_a_command_without_its_path_is_told_what_it_needs_and_not_that_it_is_none(chat, name, end):
    with pytest.raises(InputError) as error:
        chat.take(name + end)
    assert str(error.value) == f"{name} needs a path: {name} PATH"


def test_any_space_may_stand_before_a_path(chat):
    assert chat.take(" /image\thttps://example.org/a cat.png ") == (
        "https://example.org/a cat.png goes with your next message"
    )


def test_a_message_is_no_command(chat):
    assert chat.take("what is 1/2 of it?") is None


def test_a_picture_of_a_private_network_is_fetched_where_it_is_allowed(tiny_folder, picture):
    with open(picture, "rb") as file, served({"/a.png": body(file.read())}) as (address, asked):
        command = ["chat", "--image", f"{address}/a.png", "--prompt", "what?", "--model", tiny_folder]
        command += ["--device", "cpu", "--max-new-tokens", "2"]
        refused = CliRunner().invoke(app, command)
        told = " ".join(refused.stderr.split())
        assert refused.exit_code == 2 and "--allow-private" in told and asked == []
        allowed = CliRunner().invoke(app, [*command, "--allow-private"])
    assert allowed.exit_code == 0, allowed.stderr
    assert asked == ["/a.png"]


def test_a_password_of_an_attached_address_is_not_shown(chat):
    assert chat.take("/image http://me:hush@127.0.0.1:9/a.png") == (
        "http://***@127.0.0.1:9/a.png goes with your next message"
    )


def test_the_built_in_model_says_once_what_it_knows(tiny_folder, monkeypatch, picture):
    command = ["chat", "--device", "cpu", "--max-new-tokens", "2"]
    for model, times in (([], 1), (["--model", tiny_folder], 0)):
        result = CliRunner().invoke(app, [*command, *model], input="Hello\nHello\n")
        assert result.exit_code == 0, result.stderr
        assert result.stderr.count("built-in model knows") == times
        assert "knows" not in result.stdout
