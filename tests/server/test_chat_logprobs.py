"""Log-probabilities in chats: with the tokens of the shown text, streamed as whole, for every choice."""

import pytest
from openai import OpenAI

from infinitevl.engine.answers import Answer
from infinitevl.engine.chat import ChatSession
from infinitevl.engine.logprobs import TokenLogprob
from infinitevl.engine.sampling import Sampling, TextBuilder
from infinitevl.server.jobs import Choice, Ended, Piece, StopText
from tests.engine.test_sampling import tokens_of
from tests.server.serving import MODEL, Running
from tests.support import tiny_model, tiny_processor, tiny_tokenizer

HELLO = [{"role": "user", "content": "word says the sign"}]
ASKED = {"model": MODEL, "messages": HELLO, "max_tokens": 24, "logprobs": True, "top_logprobs": 4}


@pytest.fixture
def client(server: Running) -> OpenAI:
    return OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def as_text(content) -> str:
    return b"".join(bytes(each.bytes) for each in content).decode(errors="replace")


def test_they_are_those_of_the_engine(client: OpenAI) -> None:
    (choice,) = client.chat.completions.create(**ASKED).choices
    chat = ChatSession(tiny_model(), tiny_processor())
    answer = chat.begin(HELLO[0]["content"], Sampling(24, logprobs=4))
    assert chat.finish(answer) == choice.message.content == as_text(choice.logprobs.content)
    assert len(choice.logprobs.content) == len(answer.logprobs) > 0
    for given, wanted in zip(choice.logprobs.content, answer.logprobs, strict=True):
        assert abs(given.logprob - wanted.logprob) < 1e-4 and given.logprob <= 0
        assert [top.logprob for top in given.top_logprobs] == sorted(
            (top.logprob for top in given.top_logprobs), reverse=True
        )
        assert len(given.top_logprobs) == 4
        assert given.top_logprobs[0].token == given.token  # nothing was drawn


def test_a_streamed_answer_has_the_same_for_each_of_its_choices(client: OpenAI) -> None:
    settings = ASKED | {"n": 2, "temperature": 1.0, "seed": 3}
    whole = client.chat.completions.create(**settings).choices
    assert whole[0].message.content != whole[1].message.content
    found: list[list] = [[], []]
    for chunk in client.chat.completions.create(**settings, stream=True):
        for choice in chunk.choices:
            found[choice.index] += choice.logprobs.content if choice.logprobs else []
    for choice in whole:
        assert as_text(choice.logprobs.content) == choice.message.content
        assert found[choice.index] == choice.logprobs.content


def test_zero_alternatives_are_none(client: OpenAI) -> None:
    for asked in ({"logprobs": True}, {"logprobs": True, "top_logprobs": 0}):
        request = {"model": MODEL, "messages": HELLO, "max_tokens": 3, **asked}
        (choice,) = client.chat.completions.create(**request).choices
        assert [each.top_logprobs for each in choice.logprobs.content] == [[]] * 3


def test_who_does_not_ask_gets_none_beside_one_who_does(client: OpenAI) -> None:
    request = {"model": MODEL, "messages": HELLO, "max_tokens": 3}
    for stream in (False, True):
        answer = client.chat.completions.create(**request, stream=stream)
        for part in answer if stream else [answer]:
            assert all(choice.logprobs is None for choice in part.choices)


def test_they_end_where_a_stop_string_cuts(client: OpenAI) -> None:
    (whole,) = client.chat.completions.create(**ASKED).choices
    text = whole.message.content
    stop = text[len(text) // 2 : len(text) // 2 + 3]
    (cut,) = client.chat.completions.create(**ASKED, stop=[stop]).choices
    kept = cut.logprobs.content
    assert cut.message.content == text[: text.index(stop)]
    assert kept == whole.logprobs.content[: len(kept)] and as_text(kept).startswith(cut.message.content)
    assert len(as_text(kept[:-1])) < len(cut.message.content) <= len(as_text(kept))


def shown(tokens: list[int], stops: list[str]) -> tuple[list[Piece], Ended]:
    """What a choice hands on when these tokens come one by one."""
    events: list = []
    sampling = Sampling(100, logprobs=0)
    choice = Choice(0, sampling, StopText(stops), events.append)
    answer = Answer(None, sampling, TextBuilder(tiny_tokenizer()), choice.on_text)
    choice.answer = answer
    for token in tokens:
        answer.logprobs.append(TokenLogprob(token, -0.5))
        answer.tokens.append(token)
        answer._keep(answer.builder.push(token))
        answer.tell(wait=True)
    if not choice.stop.is_met:
        answer.close()
        answer.tell(wait=True)
    choice.end("stop")
    return events[:-1], events[-1]


SPECIAL = tiny_tokenizer().convert_tokens_to_ids("<|image_pad|>")
WORD = tiny_tokenizer().get_vocab()["word"]


def test_the_tokens_of_one_character_come_with_it() -> None:
    pieces, _ = shown(tokens_of("a€b"), [])
    assert [(piece.text, len(piece.logprobs)) for piece in pieces] == [("a", 1), ("€", 3), ("b", 1)]


def test_text_that_is_held_back_holds_its_tokens_back() -> None:
    pieces, _ = shown(tokens_of("abab x"), ["abc"])
    assert [(piece.text, len(piece.logprobs)) for piece in pieces] == [("ab", 2), ("ab ", 3), ("x", 1)]


def test_a_token_that_is_cut_in_the_middle_comes_with_its_beginning() -> None:
    pieces, _ = shown([WORD, WORD], ["dw"])
    assert [(piece.text, len(piece.logprobs)) for piece in pieces] == [("wor", 1)]


def test_tokens_without_text_come_with_what_follows_or_at_the_end() -> None:
    pieces, _ = shown([*tokens_of("a"), SPECIAL, *tokens_of("b"), SPECIAL], [])
    assert [(piece.text, len(piece.logprobs)) for piece in pieces] == [("a", 1), ("b", 2), ("", 1)]


def test_half_a_character_at_the_end_is_shown_with_its_tokens() -> None:
    pieces, _ = shown(tokens_of("a€".encode()[:-1]), [])
    assert [(piece.text, len(piece.logprobs)) for piece in pieces] == [
        ("a", 1),
        ("\N{REPLACEMENT CHARACTER}", 2),
    ]
