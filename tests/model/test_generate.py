"""`generate` of transformers over the state."""

import pytest
import torch

from infinitevl.errors import InputError, StateError
from infinitevl.model.hf_cache import StateCache
from infinitevl.model.infinitevl import InfiniteVLModel
from infinitevl.model.positions import token_kinds
from tests.support import prompt_inputs, relative_error, tiny_model, tiny_tokenizer


@pytest.fixture(scope="module")
def model():
    model = tiny_model()
    model.generation_config.eos_token_id = None
    return model


def greedy_without_a_state(model, ids, num_new, **inputs):
    """Every token from a whole new read: the definition."""
    with torch.no_grad():
        for _ in range(num_new):
            logits = model(input_ids=ids, use_cache=False, **inputs).logits
            ids = torch.cat([ids, logits[:, -1:].argmax(-1)], dim=1)
    return ids


@pytest.fixture
def ids():
    return torch.randint(0, 400, (1, 20), generator=torch.Generator().manual_seed(0))


def test_greedy_answers_equal_reading_everything_again(model, ids):
    given = model.generate(ids, max_new_tokens=25, do_sample=False)
    assert torch.equal(given, greedy_without_a_state(model, ids, 25))


def test_greedy_answers_about_pictures_equal_reading_everything_again(model):
    inputs = prompt_inputs(model.config)
    given = model.generate(**inputs, max_new_tokens=10, do_sample=False)
    prompt = inputs.pop("input_ids")
    assert torch.equal(given, greedy_without_a_state(model, prompt, 10, **inputs))


def test_generate_feeds_one_token_a_step(model, ids, monkeypatch):
    widths, forward = [], InfiniteVLModel.forward

    def counting(self, input_ids, *args, **kwargs):
        widths.append(input_ids.shape[1])
        return forward(self, input_ids, *args, **kwargs)

    monkeypatch.setattr(InfiniteVLModel, "forward", counting)
    model.generate(ids, max_new_tokens=6, do_sample=False)
    assert widths == [20] + [1] * 5


def test_left_padded_rows_answer_as_they_would_alone(model, ids):
    short = ids[:, :7]
    batch = torch.cat([ids, torch.cat([torch.zeros(1, 13, dtype=torch.int64), short], 1)])
    mask = torch.ones_like(batch)
    mask[1, :13] = 0
    given = model.generate(batch, attention_mask=mask, max_new_tokens=12, do_sample=False)
    for row, prompt in enumerate((ids, short)):
        alone = model.generate(prompt, max_new_tokens=12, do_sample=False)
        assert torch.equal(given[row, 20:], alone[0, prompt.shape[1] :])


def test_right_padded_rows_answer_as_they_would_alone(model, ids):
    short = ids[:, :7]
    batch = torch.cat([ids, torch.cat([short, torch.zeros(1, 13, dtype=torch.int64)], 1)])
    mask = torch.ones_like(batch)
    mask[1, 7:] = 0
    cache = StateCache()
    with torch.no_grad():
        logits = model(input_ids=batch, attention_mask=mask, past_key_values=cache, use_cache=True).logits
    first = torch.stack([logits[0, -1], logits[1, 6]]).argmax(-1, keepdim=True)
    ids_so_far = torch.cat([batch, first], 1)
    mask = torch.cat([mask, torch.ones(2, 1, dtype=mask.dtype)], 1)
    given = model.generate(
        ids_so_far, attention_mask=mask, past_key_values=cache, max_new_tokens=11, do_sample=False
    )
    for row, prompt in enumerate((ids, short)):
        alone = model.generate(prompt, max_new_tokens=12, do_sample=False)
        assert torch.equal(given[row, 20:], alone[0, prompt.shape[1] :])


def test_beam_search_finds_what_an_exhaustive_search_over_its_beams_finds(model, ids):
    """Two beams, scored by whole new reads: the reordered state must not mix beams up."""
    given = model.generate(ids, max_new_tokens=6, num_beams=2, do_sample=False, length_penalty=0.0)
    beams = [(0.0, ids)]
    with torch.no_grad():
        for _ in range(6):
            grown = []
            for score, tokens in beams:
                log_probs = model(input_ids=tokens, use_cache=False).logits[0, -1].log_softmax(-1)
                top = log_probs.topk(4)
                for value, token in zip(top.values, top.indices, strict=True):
                    grown.append((score + value.item(), torch.cat([tokens, token.view(1, 1)], 1)))
            beams = sorted(grown, key=lambda beam: -beam[0])[:2]
    assert torch.equal(given, beams[0][1])


def test_beams_keep_the_pictures_of_their_row(model):
    single, other = prompt_inputs(model.config), prompt_inputs(model.config, seed=1)
    alone = [model.generate(**x, max_new_tokens=5, num_beams=3, do_sample=False)[0] for x in (single, other)]
    both = {name: torch.cat([single[name], other[name]]) for name in single}
    given = model.generate(**both, max_new_tokens=5, num_beams=3, do_sample=False)
    assert all(torch.equal(x, y) for x, y in zip(given, alone, strict=True))


def test_sampling_is_repeatable_and_differs_between_seeds(model, ids):
    runs = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        runs.append(model.generate(ids, max_new_tokens=12, do_sample=True, temperature=1.5))
    assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[0], runs[2])


def test_several_samples_of_one_prompt_continue_it(model, ids):
    torch.manual_seed(0)
    given = model.generate(ids, max_new_tokens=4, do_sample=True, num_return_sequences=3)
    assert given.shape == (3, 24) and (given[:, :20] == ids).all()


def test_a_second_turn_with_the_cache_equals_one_without(model, ids):
    cache = StateCache()
    first = model.generate(ids, max_new_tokens=5, do_sample=False, past_key_values=cache)
    both = torch.cat([first, torch.randint(0, 400, (1, 9))], 1)
    # The last token of an answer was never read: transformers hands it over with the next turn.
    given = model.generate(both, max_new_tokens=8, do_sample=False, past_key_values=cache)
    assert torch.equal(given, model.generate(both, max_new_tokens=8, do_sample=False))


def test_two_conversations_on_one_model_do_not_disturb_each_other(model):
    def steps(cache, inputs):
        logits = model(**inputs, past_key_values=cache, use_cache=True).logits[:, -1:]
        while True:
            yield logits
            logits = model(input_ids=logits.argmax(-1), past_key_values=cache).logits

    picture, text = prompt_inputs(model.config), {"input_ids": torch.randint(0, 400, (1, 33))}
    with torch.no_grad():
        alone = [[next(run) for _ in range(8)] for run in (steps(StateCache(), picture),)]
        a, b = steps(StateCache(), picture), steps(StateCache(), text)
        mixed = []
        for _ in range(8):
            mixed.append(next(a))
            next(b)
    assert all(torch.equal(x, y) for x, y in zip(alone[0], mixed, strict=True))


def test_a_teacher_with_full_attention_generates_and_says_when_it_is_full():
    model = tiny_model(layer_types=["full_attention", "linear_attention"] * 2)
    model.generation_config.eos_token_id = None
    ids = torch.randint(0, 400, (1, 20))
    given = model.generate(ids, max_new_tokens=8, do_sample=False)
    assert torch.equal(given, greedy_without_a_state(model, ids, 8))
    with pytest.raises(StateError, match="room for 24 tokens"), torch.no_grad():
        model(input_ids=torch.zeros(1, 25, dtype=torch.int64), past_key_values=StateCache(max_length=24))


@pytest.mark.parametrize("settings", [{}, {"num_beams": 3}])
def test_answers_to_embeddings_equal_those_to_ids(model, settings):
    inputs = prompt_inputs(model.config)
    wanted = model.generate(**inputs, max_new_tokens=8, do_sample=False, **settings)
    ids = inputs.pop("input_ids")
    with torch.no_grad():
        embeds = model.get_input_embeddings()(ids)
    kinds = token_kinds(ids, model.config)
    given = model.generate(
        inputs_embeds=embeds, mm_token_type_ids=kinds, **inputs, max_new_tokens=8, do_sample=False, **settings
    )
    assert torch.equal(given, wanted[:, 40:])


@pytest.mark.parametrize("use_cache", [True, False])
def test_an_answer_never_holds_the_place_of_a_picture(ids, use_cache):
    model = tiny_model(tie_word_embeddings=False)
    config = model.config
    model.generation_config.eos_token_id = None
    with torch.no_grad():
        model.lm_head.weight[config.image_token_id] = model.lm_head.weight[3] * 5
        model.lm_head.weight[config.video_token_id] = -model.lm_head.weight[3] * 5
    settings = {"max_new_tokens": 6, "use_cache": use_cache}
    for given in (
        model.generate(ids, do_sample=False, **settings),
        model.generate(ids, do_sample=True, top_k=1, **settings),
    ):
        places = (given == config.image_token_id) | (given == config.video_token_id)
        assert given.shape == (1, 26) and not places.any()


def test_decoding_that_takes_tokens_back_is_refused_by_transformers_own_words(model, ids):
    with pytest.raises(ValueError, match="not supported with stateful models"):
        model.generate(ids, max_new_tokens=4, prompt_lookup_num_tokens=3)
    with pytest.raises(ValueError, match="not supported with stateful models"):
        model.generate(ids, max_new_tokens=4, assistant_model=tiny_model())


def test_autocast_generates_and_stays_close_to_float32(model, ids):
    with torch.no_grad():
        wanted = model(input_ids=ids).logits
    with torch.autocast("cpu", torch.bfloat16):
        given = model.generate(ids, max_new_tokens=20, do_sample=False)
        with torch.no_grad():
            out = model(input_ids=ids[:, :10])
            parts = [out.logits]
            for token in ids[:, 10:].split(1, dim=1):
                parts.append(model(input_ids=token, past_key_values=out.past_key_values).logits)
    assert given.shape == (1, 40)
    assert relative_error(torch.cat(parts, 1), wanted) < 0.05


def test_caches_of_other_kinds_and_settings_without_meaning_are_refused(model, ids):
    from transformers import DynamicCache

    with pytest.raises(InputError, match="StateCache"):
        model(input_ids=ids, past_key_values=DynamicCache())
    with pytest.raises(InputError, match="cache_implementation"):
        model.generate(ids, max_new_tokens=2, cache_implementation="static")
    with pytest.raises(InputError, match="output_attentions"):
        model(input_ids=ids, output_attentions=True)


def test_grids_that_do_not_fit_the_prompt_are_refused(model):
    inputs = prompt_inputs(model.config)
    with pytest.raises(InputError, match="6 image tokens"):
        model(
            **{
                **inputs,
                "pixel_values": inputs["pixel_values"][:16],
                "image_grid_thw": torch.tensor([[1, 4, 4]]),
            }
        )
    with pytest.raises(InputError, match="image_grid_thw"):
        model(input_ids=inputs["input_ids"])


def right_padded(ids):
    """A row of 20 tokens and one of 7, padded behind; the mask that says so."""
    batch = torch.cat([ids, torch.cat([ids[:, :7], torch.zeros(1, 13, dtype=torch.int64)], 1)])
    mask = torch.ones_like(batch)
    mask[1, 7:] = 0
    return batch, mask


@pytest.mark.parametrize("settings", [{}, {"num_beams": 2}, {"use_cache": False}])
def test_a_prompt_padded_on_the_right_is_answered_as_if_alone(model, ids, settings):
    batch, mask = right_padded(ids)
    given = model.generate(batch, attention_mask=mask, max_new_tokens=8, do_sample=False, **settings)
    assert torch.equal(given[:, :20], batch)
    for row, prompt in enumerate((ids, ids[:, :7])):
        alone = model.generate(prompt, max_new_tokens=8, do_sample=False, **settings)
        assert torch.equal(given[row, 20:], alone[0, prompt.shape[1] :])


def test_embeddings_padded_on_the_right_are_answered_as_if_alone(model, ids):
    batch, mask = right_padded(ids)
    embeds = model.get_input_embeddings()(batch)
    given = model.generate(inputs_embeds=embeds, attention_mask=mask, max_new_tokens=8, do_sample=False)
    for row, prompt in enumerate((ids, ids[:, :7])):
        alone = model.generate(prompt, max_new_tokens=8, do_sample=False)
        assert torch.equal(given[row], alone[0, prompt.shape[1] :])


def test_a_picture_in_a_row_padded_on_the_right_is_seen(model):
    inputs = prompt_inputs(model.config)
    prompt = inputs.pop("input_ids")
    filled = torch.cat([prompt, torch.zeros(1, 5, dtype=torch.int64)], 1)
    mask = torch.ones_like(filled)
    mask[:, -5:] = 0
    given = model.generate(filled, attention_mask=mask, max_new_tokens=6, do_sample=False, **inputs)
    alone = model.generate(prompt, max_new_tokens=6, do_sample=False, **inputs)
    assert torch.equal(given[:, filled.shape[1] :], alone[:, prompt.shape[1] :])


def test_a_chunk_of_padding_alone_behind_a_prompt_is_refused(model, ids):
    batch, mask = right_padded(ids)
    with pytest.raises(InputError, match="padding alone"):
        model.generate(batch, attention_mask=mask, max_new_tokens=2, prefill_chunk_size=6)
    given = model.generate(
        batch.flip(1), attention_mask=mask.flip(1), max_new_tokens=4, do_sample=False, prefill_chunk_size=6
    )
    wanted = model.generate(batch.flip(1), attention_mask=mask.flip(1), max_new_tokens=4, do_sample=False)
    assert torch.equal(given, wanted)


def test_what_only_generate_knows_does_not_reach_forward(model, ids):
    tokenizer = tiny_tokenizer()
    wanted = model.generate(ids, max_new_tokens=12, do_sample=False)
    word = tokenizer.decode(wanted[0, 22])
    given = model.generate(ids, max_new_tokens=12, do_sample=False, stop_strings=[word], tokenizer=tokenizer)
    assert 20 < given.shape[1] <= 23 and torch.equal(given, wanted[:, : given.shape[1]])
    given = model.generate(ids, max_new_tokens=12, do_sample=False, cache_position=torch.arange(20))
    assert torch.equal(given, wanted)
    beams = model.generate(ids, max_new_tokens=4, num_beams=2, do_sample=False)
    given = model.generate(ids, max_new_tokens=4, num_beams=2, do_sample=False, assistant_model=model)
    assert torch.equal(given, beams)
    with pytest.raises(ValueError, match="max_new_token"):
        model.generate(ids, max_new_token=4)


BEAMS = {"num_beams": 3, "num_return_sequences": 2}


@pytest.mark.parametrize(
    "options", [BEAMS, {"do_sample": True, "num_return_sequences": 3}], ids=["beams", "draws"]
)
@pytest.mark.parametrize("wrap", [StateCache, lambda state: state], ids=["cache", "state"])
def test_several_answers_grow_from_one_given_state(model, ids, options, wrap):
    longer, state = torch.cat([ids, ids.flip(1)], dim=1), model.allocate_state()
    with torch.no_grad():
        model(ids, past_key_values=state)
    answers = []
    for past in (None, wrap(state.fork())):
        torch.manual_seed(0)
        answers.append(model.generate(longer, past_key_values=past, max_new_tokens=6, **options))
    assert torch.equal(*answers)


def test_new_tokens_alone_go_on_beside_a_mask_over_everything(model, ids):
    with torch.no_grad():
        past = model(ids, use_cache=True).past_key_values
    longer = torch.cat([ids, ids[:, :6]], dim=1)
    mask = torch.ones_like(longer)
    given = model.generate(
        ids[:, :6], attention_mask=mask, past_key_values=past, max_new_tokens=4, do_sample=False
    )
    whole = model.generate(longer, max_new_tokens=4, do_sample=False)
    assert torch.equal(given[:, 6:], whole[:, 26:])
