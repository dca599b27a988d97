"""Makes batches of rows of token ids: expands placeholders, truncates, pads."""

from transformers import PreTrainedTokenizerBase

from infinitevl.errors import InputError
from infinitevl.processing.processor.call_options import CallOptions


def expand_pads(ids: list[list[int]], pad: int, counts: list[int], name: str) -> list[list[int]]:
    """Repeats each `pad` once per token of its medium. Raises InputError unless `counts` has one each."""
    found = sum(row.count(pad) for row in ids)
    if found != len(counts):
        raise InputError(
            f"The text has {found} x {name} and {len(counts)} were given. Put one for each picture or video "
            "into the text, or use apply_chat_template."
        )
    left = iter(counts)
    return [[each for token in row for each in [token] * (next(left) if token == pad else 1)] for row in ids]


def truncate(ids: list[list[int]], pads: set[int], side: str, options: CallOptions) -> list[list[int]]:
    """Truncates rows to max_length if asked for. Raises InputError where a picture or video would be cut."""
    length = options.max_length
    if not options.truncation or length is None:
        return ids
    if any(pads & set(row) and len(row) > length for row in ids):
        raise InputError(
            f"max_length {length} would cut through a text with pictures or videos. "
            "Raise it, or give smaller pictures."
        )
    kept = slice(-length, None) if side == "left" else slice(length)
    return [row[kept] for row in ids]


def pad_batch(
    ids: list[list[int]], kinds: dict[int, int], tokenizer: PreTrainedTokenizerBase, options: CallOptions
) -> dict[str, list[list[int]]]:
    """Pads rows as asked: input_ids, attention_mask and mm_token_type_ids (`kinds` of the token, else 0)."""
    length = _padded_length([len(row) for row in ids], tokenizer, options)
    is_left = (options.padding_side or tokenizer.padding_side) == "left"

    def pad(row: list[int], value: int) -> list[int]:
        filling = [value] * (length - len(row))
        return filling + row if is_left else row + filling

    batch = {
        "input_ids": [pad(row, tokenizer.pad_token_id) for row in ids],
        "attention_mask": [pad([1] * len(row), 0) for row in ids],
    }
    if options.return_mm_token_type_ids:
        batch["mm_token_type_ids"] = [pad([kinds.get(token, 0) for token in row], 0) for row in ids]
    return batch


def _padded_length(lengths: list[int], tokenizer: PreTrainedTokenizerBase, options: CallOptions) -> int:
    """Returns the length to which rows are padded; 0 for no padding."""
    if options.padding in (False, "do_not_pad"):
        if options.return_tensors and len(set(lengths)) > 1:
            raise InputError(f"Texts of {lengths} tokens make no tensor. Pass padding=True.")
        return 0
    if options.padding not in (True, "longest", "max_length"):
        raise InputError(f"padding is {options.padding!r}; valid are True, False, 'longest', 'max_length'.")
    if tokenizer.pad_token_id is None:
        raise InputError("The tokenizer has no pad token. Set tokenizer.pad_token = '<|endoftext|>'.")
    length = max(lengths, default=0)
    if options.padding == "max_length" and options.max_length is not None:
        length = max(length, options.max_length)
    multiple = options.pad_to_multiple_of or 1
    return -(-length // multiple) * multiple
