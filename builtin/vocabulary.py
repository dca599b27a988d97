"""The built-in model's vocabulary: a byte-level BPE in which every capital and figure is a token of its own.

So a sign is written character by character, and a string that was never seen costs no more than any other.
"""

from collections.abc import Iterator
from pathlib import Path
from random import Random

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from builtin.world.frames import Style
from builtin.world.packs import World, read_meta
from builtin.world.splits import TRAIN, rng_of
from builtin.world.streams import StreamSize, stream_sample
from builtin.world.tasks import pair_sample, picture_sample, text_sample
from infinitevl.errors import InputError
from infinitevl.processing.prompt.template import CHAT_TEMPLATE, DEFAULT_SYSTEM, END, SPECIAL_TOKENS

VOCABULARY_SIZE = 2048
PIECES = r"[A-Z0-9]| ?[a-z]+|\s+|[^\sA-Za-z0-9]+"


def train_tokenizer(pack: Path, out: Path) -> None:
    """Learn the merges on questions and answers of the training split."""
    tokenizer = Tokenizer(models.BPE())
    pieces = pre_tokenizers.Split(Regex(PIECES), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pieces, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=list(SPECIAL_TOKENS),
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(_texts(World([read_meta(pack)])), trainer)
    tokenizer.save(str(out))
    print(f"{out}: {tokenizer.get_vocab_size()} tokens")


def _texts(world: World) -> Iterator[str]:
    rng = rng_of(TRAIN, 0)
    style = Style.of(world, TRAIN)
    for concept in world.concepts:
        yield from (concept.label, concept.label, concept.kind)
    for country in world.countries:
        yield from (country.name, country.capital, country.currency, country.continent)
    for _ in range(6000):
        yield f"system\n{DEFAULT_SYSTEM}\nuser\nassistant\n"
        yield from _spoken(world, style, rng)


def _spoken(world: World, style: Style, rng: Random) -> Iterator[str]:
    samples = [picture_sample(world, style, rng), pair_sample(world, style, rng), text_sample(world, rng)]
    samples.append(stream_sample(world, style, rng, StreamSize(rng.randint(2, 4))))
    for sample in samples:
        for turn in sample.turns:
            yield from (turn.question, turn.answer)


def open_tokenizer(path: Path) -> Tokenizer:
    """The vocabulary of `builtin.build_data`; InputError where it is not there."""
    if not path.is_file():
        raise InputError(
            f"there is no vocabulary {path}. Build the data first, with `python -m builtin.build_data`, or "
            "say where it is."
        )
    return Tokenizer.from_file(str(path))


def wrap_tokenizer(path: Path) -> PreTrainedTokenizerFast:
    """The same vocabulary as transformers knows it, with the chat template."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(path),
        eos_token=END,
        pad_token=SPECIAL_TOKENS[0],
        model_max_length=131072,
        additional_special_tokens=list(SPECIAL_TOKENS[1:]),
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer
