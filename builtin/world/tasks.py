"""Questions about one picture, or about none, with their true answers."""

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

from builtin.world.frames import Frame, Painter, Style
from builtin.world.packs import World
from builtin.world.shapes import COLOURS, SHAPES
from builtin.world.splits import TRAIN, held_out_kind
from builtin.world.wordings import CANNOT_KNOW
from infinitevl.evaluation.questions import tidy

CHAT, STREAM, TEXT = "chat", "stream", "text"


@dataclass(frozen=True)
class Turn:
    """A question, its answer, every other answer that is as right, and the task that it belongs to.

    taught: of the answer's tokens, how many are learned, from its start; None: all and its end. Long answers
    that are always the same would outweigh the others.
    """

    question: str
    answer: str
    task: str
    also: tuple[str, ...] = ()
    taught: int | None = None

    def accepts(self, text: str) -> bool:
        """Whether `text` answers the question: letter case, outer spaces and a final stop do not matter."""
        return tidy(text) in {tidy(self.answer), *map(tidy, self.also)}


@dataclass
class Sample:
    """Frames with their times in seconds, and questions about them. `form` is chat, stream or text."""

    form: str
    frames: list[Frame]
    turns: list[Turn]
    times: list[float] = field(default_factory=list)


WORDING = {
    "name": (
        "What is this?",
        "What is in the picture?",
        "Name it.",
        "What do you see?",
        "What does the picture show?",
        "What is shown here?",
        "Tell me what this is.",
        "What is on the picture?",
    ),
    "read": (
        "What does the sign say?",
        "Read the sign.",
        "What is written here?",
        "Read it.",
        "What is on the sign?",
        "Which text do you see?",
        "What does it say?",
        "Read the text.",
    ),
    "sign colour": (
        "What color is the sign?",
        "Which color does the sign have?",
        "What is the background color?",
    ),
    "digit": (
        "Which digit is this?",
        "What digit do you see?",
        "Which number is written here?",
        "Read the digit.",
    ),
    "kind": (
        "What kind of thing is it?",
        "What sort of thing is this?",
        "What is it, roughly?",
        "Which kind of thing is shown?",
    ),
    "flag": (
        "Which country is this?",
        "Whose flag is this?",
        "Which flag is this?",
        "Which country does the flag belong to?",
    ),
    "flag capital": (
        "What is the capital of this country?",
        "Which city is its capital?",
        "What is its capital?",
    ),
    "flag continent": ("On which continent is this country?", "Where is this country?"),
    "count all": ("How many things are there?", "How many objects do you see?", "Count the things."),
    "count": ("How many {} are there?", "How many {} do you see?", "Count the {}."),
    "colour": ("What color is the {}?", "Which color does the {} have?"),
    "shape": ("What is at the {}?", "Which thing is at the {}?", "What do you see at the {}?"),
    "place": ("Where is the {}?", "Where do you see the {}?", "In which place is the {}?"),
    "describe": ("Describe this image.", "Describe the picture.", "Describe what you see.", "What is where?"),
    "is it": ("Is it {} or {}?", "Is this {} or {}?"),
}
_CANNOT_KNOW = ("Who made this?", "How much does it cost?", "When was this picture taken?", "Who owns it?")


CANNOT_TELL = "I cannot tell"
UNKNOWN = f"{CANNOT_TELL} from a picture."  # to a question that no picture answers
_TAUGHT_WHOLE = 0.3  # of the answers that begin so


def ask(painter: Painter, task: str, *words: str) -> str:
    """One of the wordings of a question."""
    return painter.ask(task, WORDING[task], *words)


def refusal(kind: str) -> str:
    """What is said of a picture that is none of this world."""
    return f"{CANNOT_TELL}: this looks like a {kind}."


def refuses(answer: str) -> bool:
    """Whether an answer says that it does not know."""
    return tidy(answer).startswith(tidy(CANNOT_TELL))


def article(noun: str) -> str:
    """'a cat', 'an apple'."""
    return f"{'an' if noun[:1].lower() in 'aeiou' else 'a'} {noun}"


def plural(noun: str) -> str:
    """'cats', 'crosses'."""
    return noun + ("es" if noun.endswith(("s", "x", "ch", "sh")) else "s")


def listing(parts: list[str]) -> str:
    """'a', 'a and b', 'a, b and c'."""
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


# ------ one picture


def about_thing(painter: Painter, frame: Frame) -> list[Turn]:
    """Name it, and its kind."""
    rng, concept = painter.rng, painter.world.concepts[frame.concept]
    turns = [Turn(ask(painter, "name"), frame.name, "name", concept.aliases)]
    if rng.random() < 0.3 and (painter.style.split != TRAIN or not held_out_kind(concept.label)):
        turns.append(about_kind(painter, frame))
        rng.shuffle(turns)
    return turns


def about_kind(painter: Painter, frame: Frame) -> Turn:
    """Its kind, asked openly or as a choice of two."""
    rng, kind = painter.rng, painter.world.concepts[frame.concept].kind
    if rng.random() < 0.5:
        return Turn(ask(painter, "kind"), kind, "kind")
    other = rng.choice([k for k in painter.world.kinds if k != kind])
    pair = [article(kind), article(other)]
    rng.shuffle(pair)
    return Turn(ask(painter, "is it", *pair), article(kind), "kind", (kind,))


def about_sign(painter: Painter, frame: Frame) -> list[Turn]:
    """Read it, sometimes its colour."""
    rng = painter.rng
    turns = [Turn(ask(painter, "read"), frame.name, "read")]
    if rng.random() < 0.15:
        turns.append(Turn(ask(painter, "sign colour"), frame.colour, "sign colour"))
    return turns


def about_digit(painter: Painter, frame: Frame) -> list[Turn]:
    """Which figure."""
    return [Turn(ask(painter, "digit"), frame.name, "digit")]


def about_flag(painter: Painter, frame: Frame) -> list[Turn]:
    """Which country, and a fact about it."""
    rng, country = painter.rng, painter.world.countries[frame.country]
    turns = [Turn(ask(painter, "flag"), country.name, "flag")]
    if rng.random() < 0.5:
        turns.append(Turn(ask(painter, "flag capital"), country.capital, "flag capital"))
    elif country.continent and rng.random() < 0.5:
        turns.append(Turn(ask(painter, "flag continent"), country.continent, "flag continent"))
    return turns


def about_foreign(painter: Painter, frame: Frame) -> list[Turn]:
    """Any question about one picture: all that can be said is what kind of picture it is."""
    return [Turn(_any_question(painter), refusal(frame.name), "foreign", taught=_taught(painter.rng))]


def _any_question(painter: Painter) -> str:
    """A question that some other picture would answer."""
    rng, world = painter.rng, painter.world
    task = rng.choice(_ASKED_OF_ANY)
    if task in ("name", "read", "digit", "flag", "kind", "count all", "describe"):
        return ask(painter, task)
    if task == "colour":
        return ask(painter, task, rng.choice(SHAPES))
    return ask(painter, task, world.concepts[rng.choice(painter.style.concepts)].label)


_ASKED_OF_ANY = (*("name",) * 5, "read", "read", "digit", "flag", "kind", "count all", "describe", "describe")
_ASKED_OF_ANY += ("colour", "count", "place")


def about_unknown(painter: Painter) -> Turn:
    """A question that no picture answers."""
    question = painter.ask(CANNOT_KNOW, _CANNOT_KNOW)
    return Turn(question, UNKNOWN, CANNOT_KNOW, taught=_taught(painter.rng))


def _taught(rng: Random) -> int | None:
    return None if rng.random() < _TAUGHT_WHOLE else 3


def about_group(painter: Painter, frame: Frame) -> list[Turn]:
    """Count, colour, shape, place, description: two of what can be asked without doubt."""
    rng, items = painter.rng, frame.items
    makers: list[Callable[[], Turn]] = [
        lambda: Turn(ask(painter, "count all"), str(len(items)), "count"),
        lambda: _count(painter, frame),
        lambda: _place_content(painter, frame),
    ]
    single = [item for item in items if sum(item.name == other.name for other in items) == 1]
    if single:
        makers.append(lambda: _place(painter, rng.choice(single)))
    lone_shapes = [i for i in items if i.shape and sum(i.shape == other.shape for other in items) == 1]
    if lone_shapes:
        makers.append(lambda: _colour(painter, rng.choice(lone_shapes)))
    if len(items) <= 3:
        makers.append(lambda: Turn(ask(painter, "describe"), description(frame), "describe"))
    return [make() for make in rng.sample(makers, 2)]


def _count(painter: Painter, frame: Frame) -> Turn:
    """How many of one sort: a name, a colour with a shape, or a shape in any colour; sometimes of an absent
    one."""
    rng, items = painter.rng, frame.items
    item = rng.choice(items)
    if item.shape and rng.random() < 0.4:
        return Turn(
            ask(painter, "count", plural(item.shape)), str(sum(i.shape == item.shape for i in items)), "count"
        )
    name = item.name
    if item.shape and rng.random() < 0.2:
        name = f"{rng.choice(list(COLOURS))} {rng.choice(SHAPES)}"
    return Turn(ask(painter, "count", plural(name)), str(sum(i.name == name for i in items)), "count")


def _place(painter: Painter, item) -> Turn:
    return Turn(ask(painter, "place", item.name), item.place, "place")


def _colour(painter: Painter, item) -> Turn:
    return Turn(ask(painter, "colour", item.shape), item.colour, "colour")


def _place_content(painter: Painter, frame: Frame) -> Turn:
    item = painter.rng.choice(frame.items)
    return Turn(ask(painter, "shape", item.place), article(item.name), "shape", (item.name,))


def description(frame: Frame) -> str:
    """'a cat at the left and a red star at the top right', in reading order."""
    from builtin.world.frames import PLACES

    ordered = sorted(frame.items, key=lambda item: PLACES.index(item.place))
    return listing([f"{article(item.name)} at the {item.place}" for item in ordered])


def paint_group(painter: Painter) -> Frame:
    """One to seven things: different ones, or several of a kind to count."""
    rng = painter.rng
    if rng.random() < 0.5:
        count = rng.choice((1, 2, 2, 3, 3, 4))
        return painter.group([_any_name(painter) for _ in range(count)])
    sorts = [_any_name(painter, shapes=0.8) for _ in range(rng.choice((1, 2, 2, 3)))]
    return painter.group([rng.choice(sorts) for _ in range(rng.randint(1, 7))])


def _any_name(painter: Painter, shapes: float = 0.6) -> tuple[str, str] | int:
    rng = painter.rng
    if rng.random() < shapes:
        return rng.choice(list(COLOURS)), rng.choice(SHAPES)
    return rng.choice(painter.style.concepts)


# ------ samples


ABOUT = {
    "thing": about_thing,
    "sign": about_sign,
    "digit": about_digit,
    "flag": about_flag,
    "group": about_group,
    "foreign": about_foreign,
}
PICTURE_MIX = {"thing": 0.42, "sign": 0.26, "digit": 0.08, "flag": 0.06, "group": 0.18}
# In a wide style.
WIDE_MIX = {"thing": 0.4, "sign": 0.2, "digit": 0.05, "flag": 0.08, "group": 0.19, "foreign": 0.08}
_UNKNOWN_SHARE = 0.04  # of the questions in a wide style


def paint(painter: Painter, sort: str) -> Frame:
    """A frame of the given sort."""
    makers: dict[str, Callable[[], Frame]] = {
        "thing": painter.thing,
        "sign": painter.sign,
        "digit": painter.digit,
        "flag": painter.flag,
        "group": lambda: paint_group(painter),
        "foreign": painter.foreign,
    }
    return makers[sort]()


def picture_sample(world: World, style: Style, rng: Random, sort: str | None = None) -> Sample:
    """One picture in a chat, and one or two questions about it."""
    painter = Painter(world, style, rng)
    mix = WIDE_MIX if style.wide > 0 and world.foreign_kinds else PICTURE_MIX
    sort = sort or rng.choices(list(mix), list(mix.values()))[0]
    frame = paint(painter, sort)
    turns = ABOUT[sort](painter, frame)
    if style.wide > 0 and sort != "foreign" and rng.random() < _UNKNOWN_SHARE:
        turns.insert(rng.randrange(2), about_unknown(painter))
    return Sample(CHAT, [frame], turns)


def pair_sample(world: World, style: Style, rng: Random) -> Sample:
    """Two pictures in one chat, and questions that name the one they mean."""
    painter = Painter(world, style, rng)
    frames = [paint(painter, rng.choice(("thing", "thing", "sign", "digit"))) for _ in range(2)]
    which = rng.randrange(2)
    place = ("first", "second")[which]
    wording = (
        f"What is in the {place} picture?",
        f"What does the {place} picture show?",
        f"And the {place} picture?",
    )
    turns = [Turn(rng.choice(wording), frames[which].name, "pair", _aliases(world, frames[which]))]
    other = frames[1 - which]
    turns.append(
        Turn(
            f"What is in the {('second', 'first')[which]} picture?",
            other.name,
            "pair",
            _aliases(world, other),
        )
    )
    return Sample(CHAT, frames, turns)


def _aliases(world: World, frame: Frame) -> tuple[str, ...]:
    return world.concepts[frame.concept].aliases if frame.concept >= 0 else ()


def text_sample(world: World, rng: Random) -> Sample:
    """Small talk, sums and facts about countries."""
    choice = rng.random()
    if choice < 0.25:
        question, answer = rng.choice(world.facts)
        return Sample(TEXT, [], [Turn(question, answer, "talk")])
    if choice < 0.55:
        return Sample(TEXT, [], [_sum(rng)])
    return Sample(TEXT, [], [_fact(world, rng)])


def _sum(rng: Random) -> Turn:
    a, b = rng.randint(0, 20), rng.randint(0, 20)
    wording = rng.choice(("What is {} {} {}?", "How much is {} {} {}?", "{} {} {} = ?"))
    if rng.random() < 0.6:
        return Turn(wording.format(a, rng.choice(("+", "plus")), b), str(a + b), "sum")
    a, b = max(a, b), min(a, b)
    return Turn(wording.format(a, rng.choice(("-", "minus")), b), str(a - b), "sum")


def _fact(world: World, rng: Random) -> Turn:
    country = rng.choice(world.countries)
    questions = [
        ("What is the capital of {}?", country.capital),
        ("Which city is the capital of {}?", country.capital),
    ]
    if country.continent:
        questions.append(("On which continent is {}?", country.continent))
    if country.currency:
        questions.append(("Which currency does {} have?", country.currency))
    question, answer = rng.choice(questions)
    return Turn(question.format(country.name), answer, "fact")
