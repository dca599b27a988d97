"""Which strings, names and seeds belong to training, validation and test: a fixed rule, so that no list can
drift."""

import hashlib
from random import Random

TRAIN, VALIDATION, TEST = "train", "validation", "test"
SPLITS = (TRAIN, VALIDATION, TEST)


def _share(text: str) -> int:
    """A number 0..99 that depends on the text alone."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") % 100


def split_of_string(text: str) -> str:
    """The split that owns a sign's text: 12 % test, 4 % validation, the rest training."""
    share = _share("string:" + text)
    return TEST if share < 12 else VALIDATION if share < 16 else TRAIN


def held_out_kind(label: str) -> bool:
    """Whether the kind of this concept is never asked for in training (10 % of the concepts)."""
    return _share("kind:" + label) < 10


def held_out_drawing(hand: str, label: str) -> bool:
    """Whether this drawing is kept for validation: 8 % of two hands, so that unseen drawings can be
    scored."""
    return hand in ("fxemoji", "noto-v1") and _share(f"drawing:{hand}:{label}") < 8


def rng_of(split: str, *numbers: int) -> Random:
    """A random source whose seed names its split, so that no two splits share one."""
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; valid: {', '.join(SPLITS)}")
    return Random(f"{split}/" + "/".join(map(str, numbers)))
