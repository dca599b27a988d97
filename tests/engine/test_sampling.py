"""What an answer's tokens are drawn from, and how its text grows."""

import numpy as np
import pytest
import torch
from transformers.convert_slow_tokenizer import bytes_to_unicode

from infinitevl.engine.engine import Engine
from infinitevl.engine.sampling import Sampling, TextBuilder, draws
from infinitevl.engine.sampling import pick as pick_rows
from infinitevl.errors import InputError
from tests.support import tiny_model, tiny_processor, tiny_tokenizer


def pick(logits, sampling):
    """A token for each row, drawn with numbers of its own."""
    rows = torch.arange(len(logits))
    heat = min(float(sampling.temperature), torch.finfo(torch.float32).max)
    heat, share = (torch.full((len(logits),), value) for value in (heat, sampling.top_p))
    return pick_rows(logits, heat, share, draws(torch.full_like(rows, sampling.first_seed()), rows))


LOGITS = torch.tensor([[2.0, 1.0, 0.0, -30.0]]).expand(4000, -1)


@pytest.mark.parametrize("temperature", [0.2, 1.0, 4.0])
def test_tokens_are_drawn_as_the_temperature_says(temperature):
    torch.manual_seed(0)
    drawn = pick(LOGITS, Sampling(temperature=temperature)).bincount(minlength=4) / len(LOGITS)
    assert torch.allclose(drawn, (LOGITS[0] / temperature).softmax(-1), atol=0.03)


def test_top_p_leaves_out_what_is_unlikely():
    torch.manual_seed(0)
    assert pick(LOGITS, Sampling(temperature=1.0, top_p=0.8)).unique().tolist() == [0, 1]


@pytest.mark.parametrize("temperature", [0, 1e-5, 1e-40, 5e-324, np.float32(1e-9)])
def test_a_temperature_near_zero_takes_the_likeliest_token(temperature):
    assert pick(LOGITS * 1000, Sampling(temperature=temperature)).unique().tolist() == [0]


def test_an_endless_temperature_draws_from_all_tokens():
    assert len(pick(LOGITS, Sampling(temperature=float("inf"))).unique()) == 4


@pytest.mark.parametrize("name", ["max_new_tokens", "temperature", "top_p"])
@pytest.mark.parametrize("value", [-1, None, "1", float("nan")])
def test_values_that_no_answer_can_have_are_refused(name, value):
    with pytest.raises(InputError, match=f"{name} must be .*not {value!r}"):
        Sampling(**{name: value})


def test_the_longest_answer_is_a_whole_number_of_tokens():
    for value in (2.5, 2.0, np.float64(3)):
        with pytest.raises(InputError, match="max_new_tokens must be a whole number"):
            Sampling(max_new_tokens=value)
    assert Sampling(max_new_tokens=np.int64(3)).max_new_tokens == 3


TEXTS = {
    "plain": "the sign says word",
    "characters of several tokens": "añ€ 😀🏳️‍🌈 漢字",
    "a replacement character of its own": "a\ufffdb \ufffd",
    "bytes that are no text": b"ok \x80\xff \xe2\x82 \xf0\x9f\x98x\xe2",
}


def tokens_of(text):
    """One token a byte."""
    data = text if isinstance(text, bytes) else text.encode()
    return [tiny_tokenizer().get_vocab()[bytes_to_unicode()[byte]] for byte in data]


@pytest.mark.parametrize("name", TEXTS)
def test_text_that_grows_token_by_token_is_the_text_of_all_tokens(name):
    tokens, builder = tokens_of(TEXTS[name]), TextBuilder(tiny_tokenizer())
    pieces = [builder.push(token) for token in tokens] + [builder.finish()]
    assert "".join(pieces) == builder.text == tiny_tokenizer().decode(tokens)


def test_a_character_is_shown_with_its_last_token():
    builder = TextBuilder(tiny_tokenizer())
    assert [builder.push(token) for token in tokens_of("a€b")] == ["a", "", "", "€", "b"]
    assert builder.finish() == ""


def test_a_long_answer_is_not_decoded_again_for_each_token():
    class Counting:
        num_decoded = 0

        def decode(self, tokens, **kwargs):
            self.num_decoded += len(tokens)
            return tiny_tokenizer().decode(tokens, **kwargs)

    counting = Counting()
    builder = TextBuilder(counting)
    for token in tokens_of("the sign €") * 100:
        builder.push(token)
    assert builder.text == "the sign €" * 100 and counting.num_decoded < 10 * 1200


def test_a_token_is_shown_before_the_model_reads_it():
    engine, lengths = Engine(tiny_model(), tiny_processor()), []
    slot = engine.take()
    hidden = engine.read(slot, [1, 2, 3])
    answer = engine.scheduler.begin(slot, hidden, Sampling(max_new_tokens=2))
    answer.builder.push = lambda token: str(lengths.append(int(slot.state.length)) or "")
    engine.scheduler.finish(answer, to_the_end=True)
    assert lengths == [3, 4] and int(slot.state.length) == 5


def test_numbers_to_draw_with_are_even_and_depend_on_seed_and_index_alone():
    rows = torch.arange(20_000)
    numbers = draws(torch.full_like(rows, 7), rows)
    assert numbers.min() >= 0 and numbers.max() < 1
    assert torch.histc(numbers, 10, 0, 1).div(2000).sub(1).abs().max() < 0.1
    assert torch.equal(draws(torch.tensor([7]), torch.tensor([123]))[0], numbers[123])
    other = draws(torch.full_like(rows, 8), rows)
    assert abs(torch.corrcoef(torch.stack([numbers, other]))[0, 1]) < 0.03
    assert abs(torch.corrcoef(torch.stack([numbers[1:], numbers[:-1]]))[0, 1]) < 0.03
