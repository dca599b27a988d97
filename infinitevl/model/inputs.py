"""What a caller passes to `forward`, checked and brought into one form."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from infinitevl.config import InfiniteVLConfig
from infinitevl.errors import InputError, StateError
from infinitevl.model.positions import PADDING, token_kinds
from infinitevl.state import StreamState


def check_tokens(input_ids: Tensor | None, inputs_embeds: Tensor | None, vocab_size: int, width: int) -> None:
    """See that there are tokens, as ids or as embeddings.

    Raises:
        InputError: both or neither were given, another shape or dtype, or (on the CPU, where looking costs
            nothing) ids that are no rows of the embedding table.
    """
    if (input_ids is None) == (inputs_embeds is None):
        raise InputError("pass either input_ids or inputs_embeds, and not both.")
    given: Any = inputs_embeds if input_ids is None else input_ids
    name, axes = ("inputs_embeds", 3) if input_ids is None else ("input_ids", 2)
    if not isinstance(given, Tensor):
        raise InputError(f"{name} is {type(given).__name__}; give a tensor (return_tensors='pt').")
    if given.dim() != axes or not given.shape[1] or (axes == 3 and given.shape[2] != width):
        wanted = "[batch, tokens]" if axes == 2 else f"[batch, tokens, {width}]"
        raise InputError(f"{name} has shape {tuple(given.shape)}; give {wanted} with at least one token.")
    if given.is_floating_point() != (axes == 3) or given.dtype == torch.bool:
        raise InputError(f"{name} is {given.dtype}; ids are whole numbers, embeddings have a point.")
    if axes == 2 and given.device.type == "cpu" and given.numel() and not torch.compiler.is_compiling():
        least, most = (int(end) for end in torch.aminmax(given))
        if least < 0 or most >= vocab_size:
            raise InputError(
                f"input_ids are between {least} and {most}; this model knows 0 to {vocab_size - 1}. Use the "
                "processor that belongs to it."
            )


def kept_positions(logits_to_keep: int | Tensor, num_tokens: int) -> slice | Tensor:
    """Which positions get logits: the last so many (0: all), or those that a tensor names.

    Raises:
        InputError: neither a count from 0 on nor positions of these tokens.
    """
    if type(logits_to_keep) is int and logits_to_keep >= 0:
        return slice(-logits_to_keep, None)
    if isinstance(logits_to_keep, Tensor) and not logits_to_keep.is_floating_point():
        known = logits_to_keep if logits_to_keep.device.type == "cpu" else logits_to_keep[:0]
        if logits_to_keep.dim() < 2 and bool(((known < num_tokens) & (known >= -num_tokens)).all()):
            return logits_to_keep
    raise InputError(
        f"logits_to_keep is {logits_to_keep!r}; give how many of the last positions (0: all), or a tensor of "
        f"positions below {num_tokens}."
    )


def check_labels(labels: Tensor, logits: Tensor, name: str = "labels") -> None:
    """See that there is a label, a whole number, for each position that got logits [B, T, vocabulary]."""
    if labels.shape != logits.shape[:2] or labels.is_floating_point():
        raise InputError(
            f"{name} are {labels.dtype} of shape {tuple(labels.shape)}, the logits are of shape "
            f"{tuple(logits.shape)}. Give int64 [batch, tokens], and leave out logits_to_keep beside them."
        )


def new_columns(attention_mask: Tensor | None, embeds: Tensor) -> Tensor | None:
    """Which of the new tokens count, bool [B, T]; None where all do.

    Raises:
        InputError: a mask of another shape than [B, at least T].
    """
    if attention_mask is None:
        return None
    if not isinstance(attention_mask, Tensor):
        raise InputError(f"attention_mask is {type(attention_mask).__name__}; give a tensor [batch, tokens].")
    if attention_mask.dim() != 2:
        raise InputError(
            f"attention_mask has {attention_mask.dim()} axes; give [batch, tokens] with 0 at padding. "
            "Which tokens see which follows from the architecture."
        )
    counts = attention_mask[:, -embeds.shape[1] :].bool().to(embeds.device)
    if counts.shape != embeds.shape[:2]:
        raise InputError(
            f"attention_mask has shape {tuple(attention_mask.shape)}, the tokens {tuple(embeds.shape[:2])}. "
            "Give one column for every token so far, or for every new one."
        )
    return None if bool(counts.all()) else counts


def new_kinds(
    input_ids: Tensor | None,
    mm_token_type_ids: Tensor | None,
    embeds: Tensor,
    counts: Tensor | None,
    config: InfiniteVLConfig,
) -> Tensor:
    """TEXT, IMAGE, VIDEO or PADDING for each new token: int64 [B, T].

    Token ids say it themselves; embeddings are text unless mm_token_type_ids says otherwise.

    Raises:
        InputError: mm_token_type_ids has another shape than the tokens.
    """
    if input_ids is not None:
        kinds = token_kinds(input_ids, config).to(embeds.device)
    elif mm_token_type_ids is None:
        kinds = torch.zeros(embeds.shape[:2], dtype=torch.int64, device=embeds.device)
    else:
        kinds = mm_token_type_ids[:, -embeds.shape[1] :].to(embeds.device)
    if kinds.shape != embeds.shape[:2]:
        raise InputError(
            f"mm_token_type_ids has shape {tuple(kinds.shape)}, the embeddings {tuple(embeds.shape[:2])}. "
            "Give one number for each token."
        )
    return kinds if counts is None else kinds.masked_fill(~counts, PADDING)


def axis_positions(position_ids: Tensor, embeds: Tensor) -> Tensor:
    """Positions that a caller chose, as int64 [3, B, T].

    Args:
        position_ids: [B, T], the same on every axis; [3, B, T], time, height and width; or [4, B, T], whose
            first row (transformers' places in the text) has no use here.

    Raises:
        InputError: another shape, or no whole numbers.
    """
    batch, tokens = embeds.shape[:2]
    if position_ids.is_floating_point() or position_ids.dtype == torch.bool:
        raise InputError(f"position_ids is {position_ids.dtype}; positions are whole numbers, int64.")
    if position_ids.shape == (batch, tokens):
        position_ids = position_ids.expand(3, -1, -1)
    if position_ids.shape not in ((3, batch, tokens), (4, batch, tokens)):
        raise InputError(
            f"position_ids has shape {tuple(position_ids.shape)}; for these tokens it is {(batch, tokens)}, "
            f"{(3, batch, tokens)} or {(4, batch, tokens)}. Or leave it out: it is worked out then."
        )
    return position_ids[-3:].to(embeds.device, torch.int64)


def packed_lengths(
    sequence_lengths: Sequence[int] | Tensor,
    embeds: Tensor,
    position_ids: Tensor | None,
    counts: Tensor | None,
    past: object,
) -> list[int]:
    """The lengths of sequences that share the one row of embeds [1, T, C].

    Raises:
        InputError: they do not fill the row, or come with what a packed row cannot have.
    """
    lengths = [int(length) for length in sequence_lengths]
    if embeds.shape[0] != 1 or sum(lengths) != embeds.shape[1] or min(lengths, default=0) < 1:
        raise InputError(
            f"sequence_lengths is {lengths} for tokens of shape {tuple(embeds.shape[:2])}. Give one row, and "
            "the positive lengths that fill it."
        )
    if position_ids is None:
        raise InputError("sequence_lengths needs position_ids that start anew in each sequence.")
    if counts is not None or past is not None:
        raise InputError("sequence_lengths allows no padding (attention_mask) and no past_key_values.")
    return lengths


def without_starts(labels: Tensor, sequence_lengths: Sequence[int] | Tensor) -> Tensor:
    """Labels [1, T] without those of first tokens, which a sequence before would have to guess."""
    lengths = torch.as_tensor(sequence_lengths, device=labels.device)
    return labels.index_fill(1, lengths.cumsum(0) - lengths, -100)


def taken_alone(name: str, arguments: Mapping[str, Any]) -> Any:
    """The one argument that may be there, or None.

    Raises:
        InputError: names any other.
    """
    if unknown := sorted(set(arguments) - {name}):
        raise InputError(f"forward has no arguments {unknown}. Check their names, or leave them out.")
    return arguments.get(name)


def check_no_gradients(tensors: Iterable[Tensor]) -> None:
    """See that no gradient of these weights and inputs has to pass through a state.

    Raises:
        InputError: gradients are recorded, and one of them asks for its own.
    """
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        raise InputError(
            "a state (past_key_values or use_cache=True) was asked for while gradients are recorded, but it "
            "is changed in place. Call the model under torch.no_grad(), or train with use_cache=False."
        )


def check_batch(state: StreamState, embeds: Tensor) -> None:
    """See that a state has a row for each row of the new tokens [B, T, C].

    Raises:
        StateError: another number of rows.
    """
    if state.batch_size != embeds.shape[0]:
        raise StateError(
            f"the state (past_key_values) holds a batch of {state.batch_size}, the new tokens are a batch of "
            f"{embeds.shape[0]}. Give tokens for each of its rows, or choose rows with state.select(index)."
        )


def check_attentions(wanted: bool | None) -> None:
    """Refuse attention weights, which not every layer has."""
    if wanted:
        raise InputError("output_attentions is not available: a Gated DeltaNet has no attention weights.")
