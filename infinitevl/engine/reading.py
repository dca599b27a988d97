"""How sessions drive the model: take tokens into a state, and let the state answer."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from infinitevl.engine.sampling import Sampling, TextBuilder, pick
from infinitevl.model.infinitevl import InfiniteVLForConditionalGeneration
from infinitevl.model.positions import text_positions
from infinitevl.state import StreamState


def read_embeds(
    model: InfiniteVLForConditionalGeneration, state: StreamState, embeds: Tensor, position_ids: Tensor
) -> Tensor:
    """Take embedded tokens [B, T, C] at position_ids [3, B, T] into the state: last hidden state [B, C]."""
    return model.model.language_model(embeds, position_ids, state)[:, -1]


def read_text(model: InfiniteVLForConditionalGeneration, state: StreamState, token_ids: list[int]) -> Tensor:
    """Take text into the state; every row reads the same tokens. Returns the last hidden state [B, C]."""
    ids = torch.tensor(token_ids, device=state.length.device).expand(state.batch_size, -1)
    positions = text_positions(state.next_position, len(token_ids))
    return read_embeds(model, state, model.model.embed(ids), positions)


def generate_tokens(
    model: InfiniteVLForConditionalGeneration,
    state: StreamState,
    hidden: Tensor,
    sampling: Sampling,
    stop_ids: set[int],
) -> Iterator[int]:
    """Tokens of an answer, one stream at a time; a stop token is not yielded.

    The state takes a token in when the next one is asked for: whoever shows tokens need not wait for that.

    Args:
        hidden: [1, C], the last hidden state of the question.
    """
    for _ in range(sampling.max_new_tokens):
        token = pick(_answer_logits(model, hidden), sampling)
        if int(token) in stop_ids:
            return
        yield int(token)
        positions = text_positions(state.next_position, 1)
        out = model.model.language_model(model.model.embed(token[:, None]), positions, state, one_token=True)
        hidden = out[:, -1]


def _answer_logits(model: InfiniteVLForConditionalGeneration, hidden: Tensor) -> Tensor:
    """[B, C] -> [B, vocabulary]; an answer never holds the place of a picture or video, as in `generate`."""
    logits = model.lm_head(hidden)
    for place in (model.config.image_token_id, model.config.video_token_id):
        logits[:, place] = -torch.inf
    return logits


def answer(
    model: InfiniteVLForConditionalGeneration,
    tokenizer: Any,
    state: StreamState,
    prompt_hidden: Tensor,
    sampling: Sampling,
    on_text: Callable[[str], None] | None = None,
) -> str:
    """The answer as text; `on_text` receives it piece by piece. The state ends after its last token."""
    builder = TextBuilder(tokenizer)
    show = on_text or (lambda piece: None)
    for token in generate_tokens(model, state, prompt_hidden, sampling, stop_ids(model)):
        if piece := builder.push(token):
            show(piece)
    if piece := builder.finish():
        show(piece)
    return builder.text


def stop_ids(model: InfiniteVLForConditionalGeneration) -> set[int]:
    """Tokens that end an answer: those of the generation config and of the model's config."""
    found: set[int] = set()
    for ids in (model.generation_config.eos_token_id, model.config.eos_token_id):
        found |= {ids} if isinstance(ids, int) else set(ids or ())
    return found
