"""The small world: splits that never meet, pictures that repeat, answers that are true of what is drawn."""

from random import Random

import pytest
import torch

from builtin.world import splits
from builtin.world.frames import PLACES, Painter, Style
from builtin.world.packs import CHARACTERS, load_world
from builtin.world.render import Line, PatchNamer, Picture, plan_pictures, render
from builtin.world.shapes import COLOURS, SHAPES
from builtin.world.streams import StreamSize, long_sample, paint_pool, questions_about, stream_sample
from builtin.world.tasks import picture_sample, plural, text_sample
from infinitevl.errors import InputError

HELD_OUT_FAMILIES = {"fonts-comic-neue", "fonts-courier-prime", "fonts-vollkorn"}


@pytest.fixture(scope="module")
def world_and_textures():
    """The small pack in the package."""
    return load_world()


@pytest.fixture(scope="module")
def world(world_and_textures):
    """Its names."""
    return world_and_textures[0]


def _streams(world, split, count=40):
    style = Style.of(world, split)
    return [stream_sample(world, style, splits.rng_of(split, n), StreamSize(12, 5)) for n in range(count)]


def test_no_string_of_one_split_appears_in_another(world):
    strings = {
        split: {f.name for sample in _streams(world, split) for f in sample.frames if f.sort == "sign"}
        for split in splits.SPLITS
    }
    assert all(len(found) > 50 for found in strings.values())
    assert not strings["train"] & strings["test"]
    assert not strings["train"] & strings["validation"]
    assert not strings["validation"] & strings["test"]
    for split, found in strings.items():
        assert {splits.split_of_string(text) for text in found} == {split}


def test_every_split_owns_strings_of_every_length():
    rng = Random(0)
    for length in range(2, 7):
        owners = {splits.split_of_string("".join(rng.choices(CHARACTERS, k=length))) for _ in range(400)}
        assert owners == set(splits.SPLITS)


def test_random_sources_of_two_splits_differ_for_every_seed():
    first = {splits.rng_of("train", n).random() for n in range(2000)}
    assert not first & {splits.rng_of("test", n).random() for n in range(2000)}
    with pytest.raises(ValueError, match="valid: train, validation, test"):
        splits.rng_of("demo", 1)


def test_the_demo_pack_holds_the_held_out_font_families(world):
    assert {face.family for face in world.faces} >= HELD_OUT_FAMILIES


def test_a_seed_gives_the_same_pictures_again(world_and_textures):
    world, textures = world_and_textures

    def draw():
        style, rng = Style.of(world, "train"), Random(4)
        pictures = [picture_sample(world, style, rng).frames[0].picture for _ in range(12)]
        return render(plan_pictures(pictures, world), textures, torch.Generator().manual_seed(1))

    assert torch.equal(draw(), draw())


def test_a_picture_is_the_same_alone_and_among_others(world_and_textures):
    world, textures = world_and_textures
    style, rng = Style.of(world, "train"), Random(5)
    pictures = [picture_sample(world, style, rng).frames[0].picture for _ in range(8)]
    together = render(plan_pictures(pictures, world), textures)
    for number, picture in enumerate(pictures):
        alone = render(plan_pictures([picture], world), textures)[0]
        assert (alone.int() - together[number].int()).abs().max() <= 1


def test_six_characters_stand_inside_the_picture_and_stand_out_from_it(world_and_textures):
    world, textures = world_and_textures
    painter = Painter(world, Style.of(world, "test", strong=False), Random(6))
    frames = [painter.sign(painter.string(6)) for _ in range(60)]
    names = PatchNamer(world, textures)(plan_pictures([frame.picture for frame in frames], world))
    drawn = render(plan_pictures([frame.picture for frame in frames], world), textures).float()
    for frame, characters, pixels in zip(frames, names.characters, drawn, strict=True):
        assert {CHARACTERS.index(c) for c in frame.name} >= set(characters[characters >= 0].tolist())
        edge = torch.cat([pixels[:, 0], pixels[:, -1], pixels[:, :, 0], pixels[:, :, -1]], dim=1)
        assert edge.std(1).max() < 6, f"{frame.name} touches the border"
        assert pixels.amax((1, 2)).sub(pixels.amin((1, 2))).max() > 70


def test_characters_are_named_from_left_to_right(world_and_textures):
    world, textures = world_and_textures
    face = world.letter_faces[0]
    picture = Picture(((255, 255, 255),) * 2, lines=[Line(face, "AB12", 56, 49, 28, (0, 0, 0))])
    row = PatchNamer(world, textures)(plan_pictures([picture], world)).characters.view(8, 8)[3]
    seen = list(dict.fromkeys(row[row >= 0].tolist()))
    assert [CHARACTERS[i] for i in seen] == list("AB12")


def test_a_line_refuses_what_its_face_cannot_write(world):
    with pytest.raises(ValueError, match="1 to 8 characters"):
        plan_pictures([Picture(((0, 0, 0),) * 2, lines=[Line(0, "ABCDEFGHI", 56, 56, 12, (0, 0, 0))])], world)


def test_a_missing_pack_says_how_to_make_it(tmp_path):
    with pytest.raises(InputError, match=r"builtin\.build_data"):
        load_world(tmp_path / "no.pack")


def test_answers_about_a_group_are_true_of_it(world):
    style, rng = Style.of(world, "train"), Random(7)
    for _ in range(300):
        sample = picture_sample(world, style, rng, "group")
        items = sample.frames[0].items
        for turn in sample.turns:
            if turn.task == "place":
                assert any(item.place == turn.answer and item.name in turn.question for item in items)
            elif turn.task == "colour":
                assert any(item.colour == turn.answer and item.shape in turn.question for item in items)
            elif turn.task == "count" and "thing" not in turn.question and "object" not in turn.question:
                asked = [item for item in items if plural(item.name) in turn.question]
                shapes = [i for i in items if i.shape and f" {plural(i.shape)}" in turn.question]
                by_colour = any(f"{c} {plural(s)}" in turn.question for c in COLOURS for s in SHAPES)
                assert int(turn.answer) == len(asked if by_colour or not shapes else shapes)


def test_things_of_a_group_stand_where_their_place_says(world):
    painter = Painter(world, Style.of(world, "train"), Random(8))
    frame = painter.group([("red", "circle"), ("blue", "star"), ("green", "cross")])
    for item, stamp in zip(frame.items, frame.picture.stamps, strict=True):
        column, row = int(stamp.x // 37.4), int(stamp.y // 37.4)
        assert PLACES[row * 3 + column] == item.place


def test_every_answer_about_a_stream_is_true_of_its_frames(world):
    for sample in _streams(world, "test", 120):
        signs = [frame for frame in sample.frames if frame.sort == "sign"]
        assert len({sign.colour for sign in signs}) == len(signs)
        for turn in sample.turns:
            if turn.task == "first sign":
                assert turn.answer == signs[0].name
            elif turn.task == "last sign":
                assert turn.answer == signs[-1].name
            elif turn.task == "keyed sign":
                assert [s.name for s in signs if f" {s.colour} " in turn.question] == [turn.answer]
            elif turn.task == "signs":
                assert turn.answer == str(len(signs))
            elif turn.task == "count so far":
                assert turn.answer == str(
                    sum(
                        f.sort == "thing" and f.name in turn.question and _asked_for(turn.question, f.name)
                        for f in sample.frames
                    )
                )


def _asked_for(question: str, label: str) -> bool:
    return any(form in question for form in (f"many {label}s ", f"see {label}?"))


def test_a_long_stream_shows_a_pool_again_and_is_asked_for_every_sign(world):
    style = Style.of(world, splits.TRAIN)
    pool = paint_pool(world, style, splits.rng_of(splits.TRAIN, 1), 5)
    shares = []
    for number in range(60):
        rng, size = splits.rng_of(splits.TRAIN, 2, number), StreamSize(300, 1 + number % 8)
        sample = long_sample(world, style, rng, size, pool)
        signs = [frame for frame in sample.frames if frame.sort == "sign"]
        assert len(signs) == size.num_signs and len({sign.colour for sign in signs}) == len(signs)
        assert {id(frame) for frame in sample.frames if frame.sort != "sign"} <= {id(frame) for frame in pool}
        answers = {turn.task: turn.answer for turn in sample.turns}
        assert answers["first sign"] == signs[0].name and answers["last sign"] == signs[-1].name
        assert answers["signs"] == str(len(signs)) and len(sample.turns) == 3 + len(signs)
        shares.append(sample.frames.index(signs[0]) / 300)
    assert sum(share < 1 / 8 for share in shares) > 20 and max(shares) > 1 / 4


def test_questions_name_frames_without_doubt(world):
    painter = Painter(world, Style.of(world, "train"), Random(9))
    frames = [painter.thing(world.known_concepts[0]) for _ in range(3)]
    assert "before" not in questions_about(painter, frames)


def test_sums_are_right(world):
    rng = Random(10)
    for _ in range(300):
        turn = text_sample(world, rng).turns[0]
        if turn.task == "sum":
            a, sign, b = (turn.question.replace("plus", "+").replace("minus", "-").rstrip("?= ").split())[-3:]
            assert int(turn.answer) == int(a) + (int(b) if sign == "+" else -int(b))


def test_an_answer_counts_in_any_letter_case_and_with_a_final_stop(world):
    sample = picture_sample(world, Style.of(world, "train"), Random(3), "thing")
    turn = sample.turns[0]
    assert turn.accepts(f" {turn.answer.upper()}. ")
    assert not turn.accepts("nothing of the sort")
