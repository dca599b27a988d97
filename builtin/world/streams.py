"""Streams of frames, and questions about what came when: the first sign, a sign by its colour, what came
before."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from random import Random

from builtin.world.frames import Frame, Painter, Style
from builtin.world.packs import World
from builtin.world.shapes import SIGN_COLOURS
from builtin.world.tasks import ABOUT, STREAM, Sample, Turn, listing, paint

WORDING = {
    "first sign": (
        "What was on the first sign?",
        "What did the first sign say?",
        "Read the first sign.",
        "Which text was on the first sign?",
    ),
    "last sign": (
        "What was on the last sign?",
        "What did the latest sign say?",
        "Read the last sign.",
        "Which text was on the latest sign?",
    ),
    "keyed sign": (
        "What is the sign on the {} picture?",
        "What did the {} sign say?",
        "Read the {} sign.",
        "What was written on the {} sign?",
        "Which text was on the {} picture?",
    ),
    "sign colour": ("What color was the sign {}?", "On which color was {} written?"),
    "first thing": ("What was the first thing?", "What came first?", "What did the stream begin with?"),
    "now": ("What is on the picture now?", "What do you see now?", "What is the latest picture?"),
    "before": ("What came before {}?", "What was right before {}?", "What did you see just before {}?"),
    "after": ("What came after {}?", "What was right after {}?", "What did you see just after {}?"),
    "count": ("How many {}s so far?", "How many {}s have you seen?", "How often did you see {}?"),
    "signs": ("How many signs so far?", "How many signs have you seen?"),
    "seen": ("Has {} appeared?", "Have you seen {}?", "Was there {}?"),
    "summary": ("Summarise what you saw.", "What did you see, in order?", "List what you saw."),
}
_TELLING = {
    "before": 3,
    "after": 3,
    "first thing": 1.5,
    "count": 1.5,
    "seen": 1.5,
    "sign colour": 1,
    "now": 0.5,
}
_TELLING |= {"signs": 0.5, "summary": 1}  # how often tasks about the order and number of frames are asked
_FOREIGN_SHARE = 0.03  # of the frames in a wide style
DISTRACTORS = {"thing": 0.62, "digit": 0.16, "group": 0.12, "flag": 0.10}
MAX_SUMMARY = 4


@dataclass(frozen=True)
class StreamSize:
    """How many frames, how many signs among them (None: any number), how many questions."""

    num_frames: int
    num_signs: int | None = None
    num_turns: int = 3
    rate: float | None = 2.0  # frames a second; None: any, with unsteady times


def stream_sample(
    world: World, style: Style, rng: Random, size: StreamSize, task: str | None = None
) -> Sample:
    """A stream and questions asked after its last frame; `task` asks for one task alone.

    Every sign has a colour of its own, so that a colour names one sign.
    """
    painter = Painter(world, style, rng)
    frames = paint_frames(painter, size)
    times = frame_times(rng, size)
    makers = questions_about(painter, frames)
    if task is not None:
        return Sample(STREAM, frames, [makers[task]()], times)
    weights = {"keyed sign": 4.0, "first sign": 2.0, "last sign": 1.5}
    names = list(makers)
    chosen = rng.choices(names, [weights.get(name, 1.0) for name in names], k=size.num_turns)
    turns: list[Turn] = []
    for name in chosen:
        turn = makers[name]()
        if all(turn.question != other.question for other in turns):
            turns.append(turn)
    return Sample(STREAM, frames, turns, times)


def keyed_sample(world: World, style: Style, rng: Random, num_frames: int, num_signs: int) -> Sample:
    """A stream in which every sign is asked for by its colour, in any order: the practice of keyed recall."""
    painter = Painter(world, style, rng)
    size = StreamSize(num_frames, num_signs)
    frames = paint_frames(painter, size)
    signs = [frame for frame in frames if frame.sort == "sign"]
    return Sample(
        STREAM,
        frames,
        [_keyed(painter, sign) for sign in rng.sample(signs, len(signs))],
        frame_times(rng, size),
    )


def order_sample(world: World, style: Style, rng: Random, size: StreamSize) -> Sample:
    """A stream asked for what came before, after and first, what came at all, how often: practice of these.

    As many questions as there are turns; a question about two neighbours is about others than those before.
    """
    painter = Painter(world, style, rng)
    frames = paint_frames(painter, size)
    makers = questions_about(painter, frames)
    names = [name for name in _TELLING if name in makers]
    turns: dict[str, Turn] = {}
    for name in rng.choices(names, [_TELLING[name] for name in names], k=2 * size.num_turns):
        turn = makers[name]()
        turns.setdefault(f"{turn.task} {turn.answer}", turn)
    return Sample(STREAM, frames, list(turns.values())[: size.num_turns], frame_times(rng, size))


def recall_sample(world: World, style: Style, rng: Random, size: StreamSize) -> Sample:
    """A stream asked for its first sign, its last one, each by its colour, and their number, in any order."""
    painter = Painter(world, style, rng)
    frames = paint_frames(painter, size)
    turns = _recall_turns(painter, [frame for frame in frames if frame.sort == "sign"])
    return Sample(STREAM, frames, turns, frame_times(rng, size))


def long_sample(world: World, style: Style, rng: Random, size: StreamSize, pool: Sequence[Frame]) -> Sample:
    """As `recall_sample` with at least one sign, whose other frames are those of `pool`, again and again.

    Frames that show the same picture are the same object.
    """
    assert size.num_signs, "a stream without signs has nothing to recall"
    painter = Painter(world, style, rng)
    signs = [painter.sign(colour=colour) for colour in rng.sample(SIGN_COLOURS, size.num_signs)]
    frames = rng.choices(pool, k=size.num_frames)
    for place, sign in zip(_early_places(rng, size.num_frames, len(signs)), signs, strict=True):
        frames[place] = sign
    turns = _recall_turns(painter, signs)
    if rng.random() < 0.5:  # before an answer about the same sign gives it away
        turns.sort(key=lambda turn: turn.task != "first sign")
    return Sample(STREAM, frames, turns, frame_times(rng, size))


def paint_pool(world: World, style: Style, rng: Random, count: int) -> list[Frame]:
    """Frames without signs."""
    painter = Painter(world, style, rng)
    return [paint(painter, sort) for sort in rng.choices(*zip(*DISTRACTORS.items(), strict=True), k=count)]


def _early_places(rng: Random, num_frames: int, num_signs: int) -> list[int]:
    """Where signs stand, in order: in half of the streams anywhere, in others with much to come after.

    These have all signs in their first eighth, or the first one in its first quarter.
    """
    crowded = rng.random() < 0.25
    room = max(num_signs, num_frames // 8) if crowded else num_frames
    places = sorted(rng.sample(range(room), num_signs))
    if not crowded and rng.random() < 1 / 3:
        places[0] = rng.randint(0, min(places[0], num_frames // 32))
    return places


def _recall_turns(painter: Painter, signs: list[Frame]) -> list[Turn]:
    """The first sign, the last one, how many, each by its colour, in any order."""
    makers = questions_about(painter, signs)
    turns = [makers["first sign"](), makers["last sign"](), makers["signs"]()]
    turns += [_keyed(painter, sign) for sign in signs]
    painter.rng.shuffle(turns)
    return turns


def paint_frames(painter: Painter, size: StreamSize) -> list[Frame]:
    """Signs at random moments among other pictures; some concepts come back, so that counting has a point."""
    rng = painter.rng
    most = min(len(SIGN_COLOURS), size.num_frames)
    num_signs = (
        size.num_signs if size.num_signs is not None else rng.randint(1 if rng.random() < 0.9 else 0, most)
    )
    places = set(rng.sample(range(size.num_frames), num_signs))
    colours = rng.sample(SIGN_COLOURS, num_signs)
    familiar = rng.sample(painter.style.concepts, 3)
    frames = []
    for number in range(size.num_frames):
        if number in places:
            frames.append(painter.sign(colour=colours.pop()))
        elif rng.random() < 0.25:
            frames.append(painter.thing(rng.choice(familiar)))
        elif painter.style.wide > 0 and painter.world.foreign_kinds and rng.random() < _FOREIGN_SHARE:
            frames.append(painter.foreign())
        else:
            frames.append(paint(painter, rng.choices(list(DISTRACTORS), list(DISTRACTORS.values()))[0]))
    return frames


def frame_times(rng: Random, size: StreamSize) -> list[float]:
    """Seconds of each frame, from 0."""
    if size.rate is not None:
        return [number / size.rate for number in range(size.num_frames)]
    gap, unsteady = 1 / rng.uniform(0.5, 8), rng.random() < 0.5
    times = [0.0]
    while len(times) < size.num_frames:
        times.append(times[-1] + gap * (rng.uniform(0.6, 1.4) if unsteady else 1.0))
    return [round(time, 3) for time in times]


def questions_about(painter: Painter, frames: list[Frame]) -> dict[str, Callable[[], Turn]]:
    """For each task that these frames allow, a function that makes one question."""
    rng = painter.rng
    signs = [frame for frame in frames if frame.sort == "sign"]
    makers: dict[str, Callable[[], Turn]] = {
        "now": lambda: _now(painter, frames[-1]),
        "signs": lambda: Turn(_ask(painter, "signs"), str(len(signs)), "signs"),
        "seen": lambda: _seen(painter, frames),
    }
    if signs:
        makers["first sign"] = lambda: _turn(painter, "first sign", signs[0])
        makers["last sign"] = lambda: _turn(painter, "last sign", signs[-1])
        makers["keyed sign"] = lambda: _keyed(painter, rng.choice(signs))
        makers["sign colour"] = lambda: _sign_colour(painter, rng.choice(signs))
    if frames[0].name and frames[0].sort != "foreign":
        makers["first thing"] = lambda: _turn(painter, "first thing", frames[0])
    pairs = _neighbours(frames)
    if pairs:
        makers["before"] = lambda: _neighbour(painter, "before", *rng.choice(pairs))
        makers["after"] = lambda: _neighbour(painter, "after", *rng.choice(pairs))
    things = [frame for frame in frames if frame.sort == "thing"]
    if things:
        makers["count"] = lambda: _count(painter, rng.choice(things), frames)
    if len(frames) <= MAX_SUMMARY and all(f.name and f.sort != "foreign" for f in frames):
        makers["summary"] = lambda: Turn(_ask(painter, "summary"), summary(frames), "summary")
    return makers


def called(frame: Frame) -> str:
    """How a question names a frame: 'the red sign', 'the cat', 'the digit 4', 'the flag of France'."""
    names = {
        "sign": f"the {frame.colour} sign",
        "digit": f"the digit {frame.name}",
        "flag": f"the flag of {frame.name}",
    }
    return names.get(frame.sort, f"the {frame.name}")


def summary(frames: list[Frame]) -> str:
    """What was seen, in order: 'the red sign AB1, the cat and the digit 4'."""
    return listing([f"{called(f)} {f.name}" if f.sort == "sign" else called(f) for f in frames])


def _ask(painter: Painter, task: str, *words: str) -> str:
    return painter.ask(f"stream {task}", WORDING[task], *words)


def _turn(painter: Painter, task: str, frame: Frame) -> Turn:
    return Turn(_ask(painter, task), frame.name, task)


def _now(painter: Painter, frame: Frame) -> Turn:
    """What is on a frame; of one without a name, a question about it."""
    if frame.name and frame.sort != "foreign":
        return _turn(painter, "now", frame)
    found = ABOUT[frame.sort](painter, frame)[0]
    return replace(found, question=_ask(painter, "now")) if frame.sort == "foreign" else found


def _keyed(painter: Painter, sign: Frame) -> Turn:
    return Turn(_ask(painter, "keyed sign", sign.colour), sign.name, "keyed sign")


def _sign_colour(painter: Painter, sign: Frame) -> Turn:
    return Turn(_ask(painter, "sign colour", sign.name), sign.colour, "sign colour")


def _neighbours(frames: list[Frame]) -> list[tuple[Frame, Frame]]:
    """Frames in a row of which either can be named without doubt."""
    names = [called(frame) for frame in frames]
    clear = [
        frame.sort not in ("group", "foreign") and names.count(name) == 1
        for frame, name in zip(frames, names, strict=True)
    ]
    return [(frames[i], frames[i + 1]) for i in range(len(frames) - 1) if clear[i] and clear[i + 1]]


def _neighbour(painter: Painter, task: str, first: Frame, second: Frame) -> Turn:
    asked, wanted = (second, first) if task == "before" else (first, second)
    return Turn(_ask(painter, task, called(asked)), wanted.name, task)


def _count(painter: Painter, thing: Frame, frames: list[Frame]) -> Turn:
    number = sum(frame.concept == thing.concept for frame in frames)
    return Turn(_ask(painter, "count", thing.name), str(number), "count so far")


def _seen(painter: Painter, frames: list[Frame]) -> Turn:
    rng = painter.rng
    things = [frame.concept for frame in frames if frame.sort == "thing"]
    shown = bool(things) and rng.random() < 0.5
    concept = rng.choice(things) if shown else rng.choice(painter.style.concepts)
    grouped = {item.name for frame in frames for item in frame.items}
    label = painter.world.concepts[concept].label
    answer = "yes" if concept in things or label in grouped else "no"
    return Turn(_ask(painter, "seen", f"the {label}"), answer, "seen")
