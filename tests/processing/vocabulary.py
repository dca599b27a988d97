"""Tokenizers: a small one, and the real Qwen2.5 one from the dashscope wheel's vocabulary (Apache-2.0)."""

import base64
import contextlib
import os
import subprocess
import sys
import zipfile
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from infinitevl.processing.prompt.template import SPECIAL_TOKENS

WHEEL = "dashscope==2.0.2"
VOCABULARY = "dashscope/resources/qwen.tiktoken"
NUM_RANKS = 151_643
SPECIAL = (
    "<|endoftext|> <|im_start|> <|im_end|> <|object_ref_start|> <|object_ref_end|> <|box_start|> <|box_end|> "
    "<|quad_start|> <|quad_end|> <|vision_start|> <|vision_end|> <|vision_pad|> <|image_pad|> <|video_pad|>"
).split()
PLAIN = (
    "<tool_call> </tool_call> <|fim_prefix|> <|fim_middle|> <|fim_suffix|> <|fim_pad|> <|repo_name|> "
    "<|file_sep|>"
).split()


QWEN_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
CORPUS = ["system user assistant You are a helpful assistant. What is this? Describe the video.\n"] * 3


def byte_level_bpe(model: models.BPE) -> Tokenizer:
    """A tokenizer that cuts and spells text as Qwen's does."""
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN_PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def small_tokenizer() -> PreTrainedTokenizerFast:
    """400 tokens, with Qwen's special ones at the end."""
    backend = byte_level_bpe(models.BPE())
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator(CORPUS, trainer)
    backend.add_special_tokens(list(SPECIAL_TOKENS))
    backend.add_tokens(["<tool_call>", "</tool_call>"])
    return wrapped(backend)


def wrapped(backend: Tokenizer) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )


def wheel(cache: Path) -> Path | None:
    """The wheel's path: named by INFINITEVL_DASHSCOPE_WHEEL, kept in `cache`, or downloaded; None without."""
    if named := os.environ.get("INFINITEVL_DASHSCOPE_WHEEL"):
        return Path(named)
    if not any(cache.glob("dashscope-2.0.2-*.whl")):
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "--dest",
            str(cache),
            WHEEL,
        ]
        with contextlib.suppress(subprocess.TimeoutExpired):
            subprocess.run(command, check=False, capture_output=True, timeout=120)
    return next(cache.glob("dashscope-2.0.2-*.whl"), None)


def qwen_tokenizer(path: Path) -> PreTrainedTokenizerFast:
    ranks = _ranks(zipfile.ZipFile(path).read(VOCABULARY))
    spelling = _byte_characters()
    vocabulary = {"".join(spelling[byte] for byte in token): rank for token, rank in ranks.items()}
    merges = [_last_merge(token, ranks, spelling) for token in ranks if len(token) > 1]
    backend = byte_level_bpe(models.BPE(vocab=vocabulary, merges=merges))
    backend.add_special_tokens([AddedToken(each, special=True, normalized=False) for each in SPECIAL])
    backend.add_tokens([AddedToken(each, special=False, normalized=False) for each in PLAIN])
    return wrapped(backend)


def _ranks(lines: bytes) -> dict[bytes, int]:
    pairs = (line.split() for line in lines.splitlines() if line)
    return {base64.b64decode(token): int(rank) for token, rank in pairs}


def _byte_characters() -> dict[int, str]:
    """The printable character that stands for each byte in a byte-level BPE, as GPT-2 chose them."""
    shown = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {byte: chr(byte) for byte in shown} | {byte: chr(256 + n) for n, byte in enumerate(hidden)}


def _last_merge(token: bytes, ranks: dict[bytes, int], spelling: dict[int, str]) -> tuple[str, str]:
    """The two tokens whose merge, with all earlier ranks applied first, makes this one."""
    parts = [bytes([byte]) for byte in token]
    limit = ranks[token]
    while len(parts) > 2:
        _, index = min(
            (ranks[parts[i] + parts[i + 1]], i)
            for i in range(len(parts) - 1)
            if ranks.get(parts[i] + parts[i + 1], limit) < limit
        )
        parts[index : index + 2] = [parts[index] + parts[index + 1]]
    left, right = ("".join(spelling[byte] for byte in part) for part in parts)
    return left, right
