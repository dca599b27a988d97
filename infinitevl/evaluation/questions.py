"""Questions with a time in a stream: `30s: what is on the sign?`, `every 10s: who is it?`."""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

from infinitevl.errors import InputError

# A first word that starts with a digit and ends with a colon is meant as a time; "10:30 is ..." is not,
# because a digit follows its colon.
_TIMED = re.compile(r"\s*(?P<every>(?i:every)\s+)?(?P<time>[+-]?\d\S*):(?!\d)\s*(?P<text>.*)", re.DOTALL)
_EXPECTED = re.compile(r"(?P<question>.*)\s=(?P<expect>.*)", re.DOTALL)
_NUMBER = re.compile(r"\d+(\.\d*)?|\.\d+")
_UNITS = re.compile(r"(?:(?P<h>\d+)h)?(?:(?P<m>\d+)m)?(?:(?P<s>\d+(?:\.\d+)?)s)?")
_CLOCK = re.compile(r"(?:(?P<h>\d+):)?(?P<m>\d+):(?P<s>\d+(?:\.\d+)?)")


@dataclass(frozen=True)
class TimedQuestion:
    """A question and the second of the stream at which it is asked; None means at the end.

    every: seconds from one time to the next, for a question that is asked again and again.
    """

    text: str
    at: float | None = None
    every: float | None = None

    def is_due(self, moment: float, including: bool) -> bool:
        """Whether it is meant for a time before `moment`, or at it too."""
        return self.at is not None and (self.at < moment or (including and self.at == moment))

    def repeated(self, moment: float, including: bool) -> "TimedQuestion":
        """Return a repeated question at the next multiple of its period that is not due at `moment`."""
        assert self.every is not None
        count = max(1, math.floor(moment / self.every))
        question = replace(self, at=count * self.every)
        while question.is_due(moment, including):
            count += 1
            question = replace(self, at=count * self.every)
        return question


def parse_question(line: str) -> TimedQuestion:
    """Read `TIME: question`, `every TIME: question` or a bare question, as in `1m30s: how many dogs so far?`.

    Raises:
        InputError: the question is empty, or the word before its colon looks like a time but is not one.
    """
    match = _TIMED.fullmatch(line)
    at, text = (parse_time(match["time"]), match["text"]) if match else (None, line)
    if not text.strip():
        raise InputError(f"there is no question in {line!r}; write it as '30s: what is on the sign?'")
    if not (match and match["every"]):
        return TimedQuestion(text.strip(), at)
    if not at:
        raise InputError(f"{line!r} would be asked without end; give a time above 0, as in 'every 10s: ...'")
    return TimedQuestion(text.strip(), at, every=at)


def parse_time(text: str) -> float:
    """Seconds in `30s`, `1m30s`, `1h2m3.5s`, `00:30` or `1:02:03`.

    Raises:
        InputError: `text` has none of these forms.
    """
    match = _UNITS.fullmatch(text) or _CLOCK.fullmatch(text)
    if match is None or (":" in text and not _is_clock(match)):
        raise InputError(
            f"{text!r} is not a time; write 30s, 1m30s, 1h2m3s, 00:30 or 1:02:03 before the question's colon"
        )
    return int(match["h"] or 0) * 3600 + int(match["m"] or 0) * 60 + float(match["s"] or 0)


def parse_condition(line: str) -> tuple[str, str]:
    """Question and expected answer of `Is it red?`, which expects yes, or `What is on the sign? = STOP`.

    Raises:
        InputError: the question or the expected answer is empty.
    """
    match = _EXPECTED.fullmatch(line)
    question, expect = (match["question"], match["expect"]) if match else (line, "yes")
    is_half = line.strip().startswith("=") or line.strip().endswith("=")
    if is_half or not question.strip() or not expect.strip():
        raise InputError(f"{line!r} is no condition; write 'Is it red?' or 'What is on the sign? = STOP'")
    return question.strip(), expect.strip()


def parse_period(text: str) -> float:
    """Seconds in `10s`, `1m30s` or `2.5`.

    Raises:
        InputError: no such time, or none above 0.
    """
    seconds = float(text) if _NUMBER.fullmatch(text) else parse_time(text)
    if not 0 < seconds < math.inf:
        raise InputError(f"{text!r} is no period; give a time above 0, as in 10s, 1m30s or 2.5")
    return seconds


def in_order(questions: Iterable[TimedQuestion]) -> list[TimedQuestion]:
    """Sort by time, those for the end last; equal times keep their order."""
    return sorted(questions, key=lambda question: float("inf") if question.at is None else question.at)


def _is_clock(match: re.Match[str]) -> bool:
    return float(match["s"]) < 60 and (match["h"] is None or int(match["m"]) < 60)


def tidy(text: str) -> str:
    """An answer as it is compared: in small letters, without outer spaces and a final stop."""
    return " ".join(text.strip().rstrip(".").lower().split())
