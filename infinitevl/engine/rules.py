"""Watch rules: a question that is asked again and again, and what its answers turn on and off."""

import math
import re
import unicodedata
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

from infinitevl.errors import InputError
from infinitevl.model.positions import MICROSECONDS, to_microseconds

ANSWER_TOKENS = 16  # of the answer to a rule, whose first words decide
_ARTICLES = ("a", "an", "the")
_LONGEST = 1e9  # seconds


@dataclass(frozen=True)
class WatchRule:
    """A question to a stream, and the answer to it that is waited for.

    Args:
        question: is asked word for word.
        every: seconds of the stream from one time to the next: the rule is due at the first frame, and then
            at the first frame in each period of so many seconds, counted from second 0.
        expect: an answer counts as yes if it begins with these words. Letter case, punctuation and a leading
            "a", "an" or "the" do not matter.
        confirm: answers in a row that must be yes before the rule turns on, which makes an event.
        release: answers in a row that must not be yes before it turns off.
        cooldown: seconds after an event in which the rule does not turn on again. What lasts longer turns it
            on afterwards.

    Raises:
        InputError: no question, no word to expect, or a number that cannot be.
    """

    question: str
    every: float
    expect: str = "yes"
    confirm: int = 1
    release: int = 1
    cooldown: float = 0.0

    def __post_init__(self) -> None:
        if not isinstance(self.question, str) or not self.question.strip():
            raise InputError(f"the question of a rule is empty or no text: {self.question!r}.")
        if not isinstance(self.expect, str) or not words_of(self.expect):
            raise InputError(
                f"expect is {self.expect!r}; give the words that an answer begins with, such as 'yes'."
            )
        _check_seconds("every", self.every, smallest=1 / MICROSECONDS)
        _check_seconds("cooldown", self.cooldown, smallest=0.0)
        _check_count("confirm", self.confirm)
        _check_count("release", self.release)

    def matches(self, answer: str) -> bool:
        """Whether an answer counts as yes."""
        expected = words_of(self.expect)
        return words_of(answer)[: len(expected)] == expected

    def period_of(self, time: float) -> int:
        """Number of the period in which a second of the stream lies."""
        return to_microseconds(time) // to_microseconds(self.every)


@dataclass
class RuleState:
    """How a rule stands after the answers so far.

    num_against: answers in a row that speak against `is_on`. asked_in: the period of the newest question.
    told_at: second of the newest event.
    """

    rule: WatchRule
    is_on: bool = False
    num_against: int = 0
    asked_in: int | None = None
    told_at: float | None = None

    def is_due(self, time: float) -> bool:
        """Whether the rule is to be asked after a frame at this second."""
        return self.asked_in is None or self.rule.period_of(time) > self.asked_in

    def note_asked(self, time: float) -> None:
        """Remember that the rule was asked after the frame at this second."""
        self.asked_in = self.rule.period_of(time)

    def push(self, answer: str, time: float) -> bool:
        """Take the answer about the frame at this second; return whether it makes an event."""
        if self.rule.matches(answer) == self.is_on:
            self.num_against = 0
            return False
        self.num_against += 1
        if self.is_on:
            if self.num_against >= self.rule.release:
                self.is_on, self.num_against = False, 0
            return False
        if self.num_against < self.rule.confirm or self._is_cooling(time):
            return False
        self.is_on, self.num_against, self.told_at = True, 0, time
        return True

    def reset(self) -> None:
        """Forget all answers: the stream is another one from now on."""
        self.is_on, self.num_against, self.asked_in, self.told_at = False, 0, None, None

    def _is_cooling(self, time: float) -> bool:
        return self.told_at is not None and time - self.told_at < self.rule.cooldown


@dataclass(frozen=True, eq=False)
class WatchEvent:
    """A rule has turned on.

    answer: the one that turned it on. time: seconds of the stream. frame_index: of the frame that the answer
    is about, from 0. picture: that frame, as it was observed.
    """

    rule: WatchRule
    question: str
    answer: str
    time: float
    frame_index: int
    picture: Any


def words_of(text: str) -> list[str]:
    """The words of a text as they are compared: without case and punctuation, without a leading article."""
    words = re.findall(r"[^\W_]+", unicodedata.normalize("NFKC", text).casefold())
    return words[1:] if len(words) > 1 and words[0] in _ARTICLES else words


def _check_seconds(name: str, value: Any, smallest: float) -> None:
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    if not is_number or not (math.isfinite(value) and smallest <= value <= _LONGEST):
        raise InputError(f"{name} is {value!r}; give seconds, from {smallest:g} to {_LONGEST:g}.")


def _check_count(name: str, value: Any) -> None:
    if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
        raise InputError(f"{name} is {value!r}; give a whole number of answers, at least 1.")
