"""The rows of the built-in model's table: what is drawn, what is asked, and which answers are right."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random

from builtin.world import splits
from builtin.world.flag_forms import OUTLINES_OF
from builtin.world.frames import Painter, Style
from builtin.world.packs import Textures, World
from builtin.world.streams import StreamSize, stream_sample
from builtin.world.tasks import (
    ABOUT,
    CHAT,
    Sample,
    Turn,
    about_foreign,
    about_kind,
    about_unknown,
    paint,
    picture_sample,
    refuses,
    text_sample,
)
from builtin.world.wide import wear

Make = Callable[[Random, int], Sample]
_KNOWN_SORTS = ("thing", "thing", "sign", "digit", "flag", "group")
_WORDED = ("read", "name", "describe", "count", "place", "colour", "shape", "flag", "digit", "kind")
_TOLD = ("first sign", "last sign", "keyed sign", "now", "first thing", "signs", "count", "before", "after")


@dataclass(frozen=True)
class Scene:
    """A world to draw from, with its pictures."""

    world: World
    textures: Textures
    style: Style

    def styled(self, **changes) -> "Scene":
        """The same world drawn in another style."""
        return replace(self, style=replace(self.style, **changes))


@dataclass(frozen=True)
class Task:
    """One row of the table: how to make a sample, what share of the samples it gets, which answers count."""

    name: str
    scene: Scene
    make: Make
    share: float = 1.0
    right: Callable[[Turn, str], bool] = Turn.accepts


def tasks(seen: Scene, unseen: Scene, lengths: list[int]) -> list[Task]:
    """Every row of the table."""
    rows = [
        Task("read, seen fonts", seen, _read(seen), 2),
        Task("read, unseen font families", unseen, _read(unseen), 2),
        Task("digits (MNIST)", unseen, lambda rng, n: _digit(unseen, rng, n), 4),
        Task("name, seen hands", seen, lambda rng, n: _name(seen, rng, None)),
        Task("name, unseen drawings", unseen, lambda rng, n: _name(unseen, rng, n), 2),
        Task("kind, unseen concepts", seen, lambda rng, n: _kind(seen, rng)),
        Task("flag", seen, lambda rng, n: picture_sample(seen.world, seen.style, rng, "flag"), 0.5),
        Task("facts, sums and talk", seen, lambda rng, n: text_sample(seen.world, rng), 0.5),
    ]
    rows += [
        Task(f"{name} in a scene", seen, _about_group(seen, name), 0.5)
        for name in ("count", "colour", "shape", "place", "describe")
    ]
    for task in ("first sign", "keyed sign", "last sign"):
        rows += [Task(f"{task} after {n} frames", seen, _stream(seen, task, n), _share(n)) for n in lengths]
    for task in ("before", "after", "count", "seen", "signs", "now", "first thing", "sign colour"):
        rows.append(Task(f"{task} in a stream of 16", seen, _stream(seen, task, 16), 0.3))
    rows.append(Task("summary of 3 frames", seen, _stream(seen, "summary", 3), 0.3))
    rows += [
        Task(f"{task} in a stream of 4", seen, _stream(seen, task, 4), 0.3) for task in ("before", "after")
    ]
    return rows + _wide_tasks(unseen) + _refusals(seen, unseen) + _worded_tasks(seen)


def _wide_tasks(unseen: Scene) -> list[Task]:
    """Pictures as people show them, in the split's own fonts, drawings and outlines."""
    small = unseen.styled(wide=1.0)
    return [
        Task("read, unseen families, 1 to 8 characters", unseen, _read(unseen, 8), 2),
        Task("read, unseen families, any place and size", small, _small_sign(small)),
        Task("read, unseen families, damaged", unseen, _damaged(_read(unseen, 6), 0.4)),
        Task("name, unseen drawings, damaged", unseen, _damaged(lambda rng, n: _name(unseen, rng, n), 1.0)),
        Task("flag in an unseen outline", unseen, _flag(unseen), 0.5),
        Task("flag as a circle", unseen, _flag(unseen, "circle"), 0.5),
    ]


def _refusals(seen: Scene, unseen: Scene) -> list[Task]:
    """What is to be refused, and what is not: of known pictures fewer refusals are better."""
    foreign = lambda rng, n: _foreign(unseen, rng, n)  # noqa: E731
    by_hand = seen.styled(own_words=1.0)
    return [
        Task("foreign pictures refused", unseen, foreign, 1, _refused),
        Task("kind of a foreign picture", unseen, foreign, 0.5),
        Task("known pictures refused", unseen, lambda rng, n: _known(unseen, rng), 2, _refused),
        Task(
            "known pictures refused, damaged",
            unseen,
            _damaged(lambda rng, n: _known(unseen, rng), 0.5),
            1,
            _refused,
        ),
        Task("unanswerable questions refused", by_hand, lambda rng, n: _unknown(by_hand, rng), 0.5, _refused),
    ]


def _worded_tasks(seen: Scene) -> list[Task]:
    """The same questions in the wordings of the templates, and in those that are held back."""
    rows = []
    for name, share in (("templates", 0.0), ("unseen wordings", 1.0)):
        scene = seen.styled(own_words=share)
        rows.append(Task(f"about one picture, {name}", scene, _worded(scene)))
        rows.append(Task(f"about a stream of 8, {name}", scene, _told(scene), 0.6))
    return rows


def _refused(turn: Turn, answer: str) -> bool:
    return refuses(answer)


def _share(num_frames: int) -> float:
    return min(0.5, 32 / num_frames)


def _read(scene: Scene, longest: int = 6) -> Make:
    def make(rng: Random, number: int) -> Sample:
        painter = Painter(scene.world, scene.style, rng)
        frame = painter.sign(painter.string(1 + number % longest))
        return Sample(CHAT, [frame], [Turn("What does the sign say?", frame.name, "read")])

    return make


def _digit(scene: Scene, rng: Random, number: int) -> Sample:
    frame = Painter(scene.world, scene.style, rng).digit(number % len(scene.world.digit_labels))
    return Sample(CHAT, [frame], [Turn("Which digit is this?", frame.name, "digit")])


def _name(scene: Scene, rng: Random, number: int | None) -> Sample:
    known = scene.style.concepts
    concept = rng.choice(known) if number is None else known[number % len(known)]
    frame = Painter(scene.world, scene.style, rng).thing(concept)
    return Sample(
        CHAT, [frame], [Turn("What is this?", frame.name, "name", scene.world.concepts[concept].aliases)]
    )


def _kind(scene: Scene, rng: Random) -> Sample:
    held_out = [c for c in scene.style.concepts if splits.held_out_kind(scene.world.concepts[c].label)]
    painter = Painter(scene.world, scene.style, rng)
    frame = painter.thing(rng.choice(held_out))
    return Sample(CHAT, [frame], [about_kind(painter, frame)])


def _about_group(scene: Scene, task: str) -> Make:
    def make(rng: Random, number: int) -> Sample:
        while True:
            sample = picture_sample(scene.world, scene.style, rng, "group")
            turns = [turn for turn in sample.turns if turn.task == task]
            if turns:
                return Sample(CHAT, sample.frames, turns)

    return make


def _stream(scene: Scene, task: str, num_frames: int) -> Make:
    def make(rng: Random, number: int) -> Sample:
        while True:
            signs = rng.randint(min(2, num_frames), min(8, num_frames))
            try:
                return stream_sample(scene.world, scene.style, rng, StreamSize(num_frames, signs), task)
            except KeyError:  # these frames do not allow the question
                continue

    return make


def _small_sign(scene: Scene) -> Make:
    def make(rng: Random, number: int) -> Sample:
        frame = (painter := Painter(scene.world, scene.style, rng)).sign(painter.string(1 + number % 8))
        return Sample(CHAT, [frame], [Turn("What does the sign say?", frame.name, "read")])

    return make


def _damaged(make: Make, most: float) -> Make:
    """The same samples, dark, soft, coarse or compressed; `most` as of `draw_damage`."""

    def again(rng: Random, number: int) -> Sample:
        sample = make(rng, number)
        for frame in sample.frames:
            frame.picture.damage = wear(rng, 1.0, most)
        return sample

    return again


def _flag(scene: Scene, outline: str | None = None) -> Make:
    def make(rng: Random, number: int) -> Sample:
        own = OUTLINES_OF[scene.style.split]
        frame = Painter(scene.world, scene.style, rng).flag(outline or own[number % len(own)])
        return Sample(CHAT, [frame], [Turn("Which country is this?", frame.name, "flag")])

    return make


def _foreign(scene: Scene, rng: Random, number: int) -> Sample:
    """Every foreign picture in turn."""
    painter = Painter(scene.world, scene.style, rng)
    frame = painter.foreign(number % len(scene.world.foreign_kinds))
    return Sample(CHAT, [frame], about_foreign(painter, frame))


def _known(scene: Scene, rng: Random) -> Sample:
    return picture_sample(scene.world, scene.style, rng, rng.choice(_KNOWN_SORTS))


def _unknown(scene: Scene, rng: Random) -> Sample:
    painter = Painter(scene.world, scene.style, rng)
    frame = paint(painter, rng.choice(_KNOWN_SORTS))
    return Sample(CHAT, [frame], [about_unknown(painter)])


def _worded(scene: Scene) -> Make:
    """Questions about one picture, of every task in turn."""

    def make(rng: Random, number: int) -> Sample:
        wanted = _WORDED[number % len(_WORDED)]
        sort = {"read": "sign", "digit": "digit", "flag": "flag", "name": "thing", "kind": "thing"}.get(
            wanted, "group"
        )
        while True:
            painter = Painter(scene.world, scene.style, rng)
            frame = paint(painter, sort)
            turns = [turn for turn in ABOUT[sort](painter, frame) if turn.task == wanted]
            if turns:
                return Sample(CHAT, [frame], turns[:1])

    return make


def _told(scene: Scene) -> Make:
    """Questions about a stream, of every task in turn."""
    return lambda rng, number: _stream(scene, _TOLD[number % len(_TOLD)], 8)(rng, number)
