"""Log-probabilities of answers: the model's own, the same in any company, and nothing where nobody asks."""

import copy

import pytest
import torch
from transformers.convert_slow_tokenizer import bytes_to_unicode

from infinitevl import ChatSession, Engine, InputError, Sampling, StreamSession
from infinitevl.engine import engine as engines
from infinitevl.engine.answers import NUM_RECENT, AnswerRows
from infinitevl.engine.graph_runner import GraphRunner
from infinitevl.engine.logprobs import MAX_LOGPROBS, TokenNames
from tests.engine.test_chat import CONVERSATIONS
from tests.engine.test_graph_runner import with_graphs
from tests.support import random_frame, tiny_tokenizer

__all__ = ["with_graphs"]  # a fixture
LENGTH = NUM_RECENT + 9  # the device keeps the last ones alone


def taught(model, processor, content, tokens):
    """log-softmax of the logits that the model itself has for an answer: [T, vocabulary]."""
    inputs = processor.turn_inputs(content, system="You are a helpful assistant.")
    num_read = inputs["input_ids"].shape[1]
    ids = torch.cat([inputs["input_ids"], torch.tensor([tokens])], dim=1)
    others = {name: value for name, value in inputs.items() if "pixel" in name or "grid" in name}
    with torch.no_grad():
        logits = model(input_ids=ids, **others, use_cache=False).logits
    return logits[0, num_read - 1 : -1].float().log_softmax(-1)


@pytest.mark.parametrize("temperature", [0.0, 1.5])
@pytest.mark.parametrize("name", ["text", "a picture, then text"])
def test_they_are_those_of_the_model_whatever_the_temperature(model, processor, name, temperature):
    content = CONVERSATIONS[name][0]
    chat = ChatSession(model, processor)
    answer = chat.begin(content, Sampling(LENGTH, temperature, 0.9, 3, logprobs=MAX_LOGPROBS))
    chat.finish(answer)
    wanted = taught(model, processor, content, answer.tokens)
    assert [each.token for each in answer.logprobs] == answer.tokens and len(answer.tokens) == LENGTH
    own = torch.tensor([each.logprob for each in answer.logprobs])
    assert torch.allclose(own, wanted.gather(1, torch.tensor(answer.tokens)[:, None])[:, 0], atol=1e-4)
    assert abs(own.sum() - wanted.gather(1, torch.tensor(answer.tokens)[:, None]).sum()) < 1e-3
    best = wanted.topk(MAX_LOGPROBS)
    values = torch.tensor([[value for _, value in each.likeliest] for each in answer.logprobs])
    assert torch.allclose(values, best.values, atol=1e-4)
    for each, row in zip(answer.logprobs, wanted, strict=True):
        assert all(abs(row[token] - value) < 1e-4 for token, value in each.likeliest)


SAMPLINGS = [
    Sampling(12, logprobs=0),
    Sampling(9),
    Sampling(15, temperature=1.2, seed=4, logprobs=5),
    Sampling(7, temperature=0.8, seed=5),
]


def watched(engine, number):
    stream = StreamSession.on(engine)
    stream.observe(random_frame(number))
    return stream


def told(engine, samplings):
    """Tokens and log-probabilities of answers that grow together."""
    streams = [watched(engine, number) for number in range(len(samplings))]
    answers = [stream.begin("what?", each) for stream, each in zip(streams, samplings, strict=True)]
    for stream, answer in zip(streams, answers, strict=True):
        stream.finish(answer)
    return [(answer.tokens, answer.logprobs) for answer in answers]


@pytest.mark.parametrize("on_graphs", [False, True])
def test_company_changes_neither_tokens_nor_log_probabilities(model, processor, with_graphs, on_graphs):
    if not on_graphs:
        with_graphs.setattr(engines, "_can_capture", lambda model: False)
    engine = Engine(model, processor, num_slots=8)
    assert isinstance(engine.runner, GraphRunner) == on_graphs
    together = told(engine, SAMPLINGS)
    for number, (sampling, (tokens, logprobs)) in enumerate(zip(SAMPLINGS, together, strict=True)):
        stream = watched(Engine(model, processor), number)
        alone = stream.begin("what?", sampling)
        stream.finish(alone)
        assert alone.tokens == tokens
        assert [each.token for each in logprobs] == ([] if sampling.logprobs is None else tokens)
        for one, other in zip(alone.logprobs, logprobs, strict=True):
            assert abs(one.logprob - other.logprob) < 1e-4
            assert [token for token, _ in one.likeliest] == [token for token, _ in other.likeliest]
            assert len(one.likeliest) == sampling.logprobs


def test_where_nobody_asks_nothing_is_computed(model, processor, monkeypatch):
    monkeypatch.setattr("infinitevl.engine.logprobs.LogprobRows.keep_", None)
    monkeypatch.setattr("infinitevl.engine.logprobs.LogprobRows.report", None)
    engine = Engine(model, processor, num_slots=4)
    assert [logprobs for _, logprobs in told(engine, SAMPLINGS[1:2])] == [[]]


def test_a_small_vocabulary_gives_all_of_it():
    rows = AnswerRows(2, set(), set(), torch.device("cpu"))
    logits = torch.tensor([[0.0, 1.0, 2.0]])
    rows.logprobs.keep_(torch.tensor([1]), torch.tensor([3]), logits.log_softmax(-1), torch.tensor([0]))
    values, tokens = rows.logprobs.report(torch.tensor([1]))
    assert tokens[0, 3, :3].tolist() == [2, 1, 0] and values[0, 3, 0] == values[0, 3, 3]


@pytest.mark.parametrize("count", [-1, 21, 2.0, True, "1", float("nan")])
def test_counts_that_cannot_be_are_refused(count):
    with pytest.raises(InputError, match="logprobs must be a whole number from 0 to 20, or None"):
        Sampling(logprobs=count)


TEXT = "añ€ 😀 the sign"


def test_bytes_of_tokens_are_the_text_and_parts_of_characters_have_names():
    tokenizer, names = tiny_tokenizer(), TokenNames(tiny_tokenizer())
    tokens = [tokenizer.get_vocab()[bytes_to_unicode()[byte]] for byte in TEXT.encode()]
    assert b"".join(names.data(token) for token in tokens).decode() == TEXT
    assert [names.text(token) for token in tokens[:4]] == ["a", r"bytes:\xc3", r"bytes:\xb1", r"bytes:\xe2"]
    words = tokenizer("the sign says")["input_ids"]
    assert "".join(names.text(token) for token in words) == "the sign says"


def test_special_and_unused_tokens_have_a_name_and_no_bytes():
    tokenizer = copy.deepcopy(tiny_tokenizer())
    tokenizer.add_tokens(["día"])
    names = TokenNames(tokenizer)
    special, added = tokenizer.convert_tokens_to_ids(["<|image_pad|>", "día"])
    assert (names.text(special), names.data(special)) == ("<|image_pad|>", b"")
    assert (names.text(added), names.data(added)) == ("día", "día".encode())
    assert (names.text(511), names.data(511)) == ("", b"")
