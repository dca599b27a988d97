"""Score watch rules of the built-in model on streams with known events.

    python -m builtin.watching --streams 20

A stream is a row of scenes of a few seconds. One target appears in several of them, at times that are known;
the other scenes show other things of the small world, with strings of the test split. A rule asks what is on
the picture now and expects the target's name. An event within one period of an appearance is a hit.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

import numpy as np

import infinitevl
from builtin.demo_stream import draw
from builtin.world.frames import Frame, Painter, Style
from builtin.world.packs import Textures, World, load_world
from builtin.world.splits import TEST
from infinitevl.engine.rules import words_of
from infinitevl.engine.session import StreamSession

KINDS = ("sign", "thing", "digit", "flag")
QUESTION = "What is on the picture now?"
EVERY = 2.0  # seconds from one question to the next
NOISE = 4.0  # of each pixel, so that no two frames of a scene are the same
_SCENES, _TARGETS = 6, 2  # of a stream, and how many of them show the target
_LENGTHS = (3, 4, 5)  # seconds of a scene, a frame each


@dataclass
class Score:
    """Events of rules beside those that there were; delays in seconds of the stream."""

    num_hits: int = 0
    num_false: int = 0
    num_missed: int = 0
    delays: list[float] = field(default_factory=list)

    @property
    def precision(self) -> float:
        """Share of the rules' events that are right."""
        return self.num_hits / max(1, self.num_hits + self.num_false)

    @property
    def recall(self) -> float:
        """Share of the appearances that were told."""
        return self.num_hits / max(1, self.num_hits + self.num_missed)

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall."""
        return 2 * self.num_hits / max(1, 2 * self.num_hits + self.num_false + self.num_missed)

    def line(self, kind: str) -> dict[str, Any]:
        """As one line of JSON."""
        return {
            "kind": kind,
            "question": QUESTION,
            "appearances": self.num_hits + self.num_missed,
            "events": self.num_hits + self.num_false,
            "precision": round(self.precision, 3),
            "recall": round(self.recall, 3),
            "f1": round(self.f1, 3),
            "mean_delay": round(float(np.mean(self.delays)), 2) if self.delays else None,
            "largest_delay": max(self.delays, default=None),
            "every": EVERY,
        }

    def add(self, starts: Sequence[float], told: Sequence[float]) -> None:
        """Count the events of one stream; each appearance is told by one event at the most."""
        left = list(told)
        for start in starts:
            hit = next((time for time in left if start <= time <= start + EVERY), None)
            if hit is None:
                self.num_missed += 1
            else:
                left.remove(hit)
                self.num_hits += 1
                self.delays.append(hit - start)
        self.num_false += len(left)


def scenes_of(world: World, kind: str, rng: Random) -> tuple[Frame, list[Frame]]:
    """A target, and scenes that show it now and then, never twice in a row."""
    painter = Painter(world, Style.of(world, TEST, strong=False), rng)
    makers = {"sign": painter.sign, "thing": painter.thing, "digit": painter.digit, "flag": painter.flag}
    target, others = makers[kind](), []
    while len(others) < _SCENES - _TARGETS:
        other = makers[rng.choice((kind, *KINDS))]()
        if words_of(other.name) != words_of(target.name):
            others.append(other)
    places = rng.sample(range(len(others) + 1), _TARGETS)
    scenes = []
    for place in range(len(others) + 1):
        scenes += [target] if place in places else []
        scenes += others[place : place + 1]
    return target, scenes


def score(kind: str, num_streams: int, model: Any, processor: Any, world: World, textures: Textures) -> Score:
    """Watch so many streams with a rule each."""
    total = Score()
    for seed in range(num_streams):
        rng = Random(f"{kind} {seed}")
        target, scenes = scenes_of(world, kind, rng)
        noise, told, starts, time = np.random.default_rng(seed), [], [], 0.0
        session = StreamSession(model, processor)
        session.watch(
            QUESTION,
            every=EVERY,
            expect=target.name,
            on_event=lambda event, told=told: told.append(event.time),
        )
        for scene, picture in zip(scenes, draw(world, textures, scenes), strict=True):
            starts += [time] if scene is target else []
            for _ in range(rng.choice(_LENGTHS)):
                pixels = np.asarray(picture) + noise.normal(0, NOISE, (*picture.size, 3))
                session.observe(pixels.clip(0, 255).astype(np.uint8), at=time)
                time += 1.0
        total.add(starts, told)
    return total


def main() -> None:
    """Print a line of JSON for each kind of event."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--streams", type=int, default=20, help="streams of each kind; default: 20")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), help="default: all")
    options = parser.parse_args()
    model, processor = infinitevl.load(device="cpu")
    world, textures = load_world()
    for kind in options.kinds:
        print(
            json.dumps(score(kind, options.streams, model, processor, world, textures).line(kind)), flush=True
        )


if __name__ == "__main__":
    main()
