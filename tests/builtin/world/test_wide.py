"""What people show: foreign pictures, damage, flags in outlines, other words; and practice of order."""

from pathlib import Path
from random import Random

import matplotlib
import numpy as np
import pytest
import torch
from PIL import Image

from builtin.exam import Scene, tasks
from builtin.feed.rows import Writer
from builtin.foreign import DEBIAN_SOURCES, FILM, WHEEL_SOURCES, tiles
from builtin.foreign_drawn import SORTS, draw_pictures
from builtin.world import splits
from builtin.world.damage import UNHARMED, Damage, damaged, draw_damage
from builtin.world.flag_forms import OUTLINES, OUTLINES_OF, FlagForm, flag_colours
from builtin.world.frames import Painter, Style
from builtin.world.packs import CHARACTERS, KINDS, load_world
from builtin.world.render import PatchNamer, plan_pictures, render
from builtin.world.streams import StreamSize, called, order_sample
from builtin.world.tasks import CANNOT_TELL, UNKNOWN, Sample, Turn, about_foreign, picture_sample, refuses
from builtin.world.wordings import CANNOT_KNOW, handwritten
from tests.builtin.small import BUILTIN


@pytest.fixture(scope="module")
def world_and_textures():
    return load_world()


@pytest.fixture(scope="module")
def world(world_and_textures):
    return world_and_textures[0]


def test_no_wording_of_one_split_is_one_of_another_and_a_third_is_held_back():
    lines = {
        split: {line.lower() for each in found.values() for line in each}
        for split, found in handwritten().items()
    }
    assert not lines[splits.TRAIN] & lines[splits.TEST] and not lines[splits.TRAIN] & lines[splits.VALIDATION]
    assert not lines[splits.VALIDATION] & lines[splits.TEST]
    held_back = len(lines[splits.TEST]) + len(lines[splits.VALIDATION])
    assert len(lines[splits.TRAIN]) + held_back > 400
    assert abs(held_back / (held_back + len(lines[splits.TRAIN])) - 1 / 3) < 0.02
    assert set(handwritten()[splits.TRAIN]) == set(handwritten()[splits.TEST])


def test_an_exam_asks_in_words_that_no_training_sample_has(world):
    asked = {}
    for split, share in ((splits.TRAIN, 0.5), (splits.TEST, 1.0)):
        painter = Painter(world, Style.of(world, split, own_words=share), Random(1))
        asked[split] = {painter.ask("name", ("What is this?",)) for _ in range(300)}
    assert len(asked[splits.TRAIN]) > 12 and len(asked[splits.TEST]) == len(handwritten()["test"]["name"])
    assert not asked[splits.TRAIN] & asked[splits.TEST]


@pytest.mark.parametrize("number", range(10))
def test_damage_leaves_a_picture_that_was_not_blank_with_its_light_and_dark(number):
    frames = torch.zeros(2, 3, 112, 112)
    frames[..., 56:] = 220.0
    rows = torch.tensor([UNHARMED.row(), draw_damage(Random(number)).row()])
    found = damaged(frames, rows)
    assert torch.allclose(found[0], frames, atol=0.05)
    left, right = found[1, :, :, :40].mean(), found[1, :, :, 72:].mean()
    assert found.min() >= 0 and found.max() <= 255 and right - left > 20


def test_compression_hardly_changes_at_high_quality_and_much_at_low_quality():
    frames = torch.rand(1, 3, 112, 112, generator=torch.Generator().manual_seed(0)) * 255
    changes = [
        (damaged(frames, torch.tensor([Damage(jpeg=quality).row()])) - frames).abs().mean()
        for quality in (100, 60, 8)
    ]
    assert changes[0] < 2 < changes[1] < changes[2]


@pytest.mark.parametrize("outline", OUTLINES)
def test_every_outline_shows_the_middle_of_a_flag_and_leaves_a_part_of_its_square_free(outline):
    axis = torch.linspace(-1, 1, 41)
    points = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1).view(1, -1, 2)
    flags = torch.full((1, 4, 64, 64), 255.0)
    flags[:, 1:3] = 0.0
    forms = torch.tensor([FlagForm(outline, 0.8, border=0.1, colour=(0.0, 0.0, 255.0)).row()])
    colours, alpha = flag_colours(points, flags, forms, torch.tensor([90.0]))
    middle = len(axis) ** 2 // 2
    assert alpha[0, 0, middle] == 1 and colours[0, :, middle].tolist() == [255, 0, 0]
    assert 0.2 < alpha.mean() < 0.95
    blue = (colours[0, 2] > 200) & (alpha[0, 0] > 0.9)
    assert 0.02 < blue.float().mean() < 0.5


def test_splits_share_no_outline():
    names = [name for split in splits.SPLITS for name in OUTLINES_OF[split]]
    assert len(names) == len(set(names)) and {"heart", "hexagon"} == set(OUTLINES_OF[splits.TEST])


def test_wide_signs_are_legible_and_inside_of_the_picture(world_and_textures):
    world, textures = world_and_textures
    painter = Painter(world, Style.of(world, splits.TEST, strong=False, wide=1.0), Random(2))
    frames = [painter.sign(painter.string(1 + number % 8)) for number in range(64)]
    plan = plan_pictures([frame.picture for frame in frames], world)
    assert (plan.lines[:, 6] > 9).all()  # cap height in pixels
    names = PatchNamer(world, textures)(plan)
    for frame, characters in zip(frames, names.characters, strict=True):
        assert {CHARACTERS.index(c) for c in frame.name} >= set(characters[characters >= 0].tolist())
        line = frame.picture.lines[0]
        assert 4 < line.x < 108 and 4 < line.y < 108


def test_a_foreign_picture_covers_the_frame_and_is_refused_by_its_kind(world_and_textures):
    world, textures = world_and_textures
    painter = Painter(world, Style.of(world, splits.TEST, strong=False), Random(3))
    frames = [painter.foreign(number) for number in range(len(world.foreign_kinds))]
    drawn = render(plan_pictures([frame.picture for frame in frames], world), textures)
    for number, (frame, pixels) in enumerate(zip(frames, drawn, strict=True)):
        kind = KINDS[world.foreign_kinds[number]]
        turn = about_foreign(painter, frame)[0]
        assert frame.name == kind and kind in turn.answer and refuses(turn.answer)
        assert pixels.float().std() > 5
        ground = torch.tensor(frame.picture.ground[0])[:, None, None]
        assert ((pixels - ground).abs().amax(0) < 1).float().mean() < 0.3


def test_a_wide_style_refuses_what_is_foreign_or_unknown_and_nothing_else(world):
    style, rng = Style.of(world, splits.TRAIN, wide=0.5, own_words=0.4), Random(4)
    samples = [picture_sample(world, style, rng) for _ in range(600)]
    unknown = {line for each in handwritten().values() for line in each[CANNOT_KNOW]}
    refused = 0
    for sample in samples:
        for turn in sample.turns:
            is_unknown = turn.task == CANNOT_KNOW
            assert refuses(turn.answer) == (is_unknown or sample.frames[0].sort == "foreign")
            assert is_unknown or turn.question not in unknown
            refused += refuses(turn.answer)
    assert 0.06 * len(samples) < refused < 0.25 * len(samples)


def test_of_a_long_answer_that_is_always_the_same_only_the_start_is_learned():
    from tokenizers import Tokenizer

    writer = Writer(Tokenizer.from_file(str(BUILTIN / "tokenizer.json")))
    rows = [
        writer.row(Sample("text", [], [Turn("Who made this?", UNKNOWN, CANNOT_KNOW, taught=taught)]), 100)
        for taught in (None, 3)
    ]
    whole, start = rows
    assert start.ids == whole.ids and start.asked == whole.asked[:3]
    learned = [whole.ids[place + 1] for place in whole.asked]
    assert writer.tokenizer.decode(learned[:-1]) == UNKNOWN and learned[-1] == writer.end
    assert writer.tokenizer.decode(learned[:3]).startswith(CANNOT_TELL[:5])


def test_questions_about_order_are_true_of_the_frames(world):
    style = Style.of(world, splits.TRAIN)
    asked = []
    for number in range(80):
        sample = order_sample(world, style, splits.rng_of(splits.TRAIN, 5, number), StreamSize(8, 2, 10))
        names = [called(frame) for frame in sample.frames]
        for turn in sample.turns:
            asked.append(turn.task)
            if turn.task in ("before", "after"):
                step = -1 if turn.task == "before" else 1
                anchors = [name for name in names if turn.question.rstrip("?").endswith(name)]
                near = [names.index(name) + step for name in anchors]
                assert turn.answer in {sample.frames[place].name for place in near if 0 <= place < len(names)}
            elif turn.task == "first thing":
                assert turn.answer == sample.frames[0].name
    assert {"before", "after", "first thing", "count so far", "seen"} <= set(asked)
    assert len(asked) > 80 * 5 and asked.count("before") > len(asked) / 8


def test_every_row_of_the_table_makes_samples(world_and_textures):
    world, textures = world_and_textures
    scene = Scene(world, textures, Style.of(world, splits.VALIDATION, strong=False))
    rows = tasks(scene, scene, [4])
    assert len({row.name for row in rows}) == len(rows)
    for row in rows:
        if "kind, unseen" not in row.name:  # the small world holds none
            sample = row.make(splits.rng_of(splits.VALIDATION, 1), 0)
            assert sample.turns, row.name


def test_no_package_gives_foreign_pictures_to_training_and_to_an_exam():
    sources = (*DEBIAN_SOURCES, *WHEEL_SOURCES, FILM)
    learned = {source.package for source in sources if source.split == splits.TRAIN}
    measured = {source.package for source in sources if source.split != splits.TRAIN}
    assert learned and measured and not learned & measured
    notice = (BUILTIN.parents[2] / "NOTICE").read_text()
    assert all(package.split("==")[0] in notice for package in learned | measured)


def test_tiles_are_square_and_blank_ones_are_left_out():
    picture = Image.effect_noise((900, 700), 90).convert("RGB")
    found = list(tiles(picture))
    assert [tile.shape for tile in found] == [(160, 160, 3)] * 2
    assert not list(tiles(Image.new("RGB", (900, 700), "white")))


@pytest.mark.parametrize("split", splits.SPLITS)
def test_drawn_pictures_are_of_known_kinds(split, monkeypatch):
    font = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    monkeypatch.setattr("builtin.foreign_drawn.fetch_fonts", lambda name, cache: [font])
    few = tuple((kind, draw, 1) for kind, draw, _ in SORTS[split])
    monkeypatch.setitem(SORTS, split, few)
    drawn = list(draw_pictures(split, Path("unused")))
    assert [kind for kind, _ in drawn] == [kind for kind, *_ in few] and {kind for kind, _ in drawn} <= {
        *KINDS
    }
    assert all(picture.size == (320, 320) and np.asarray(picture).std() > 5 for _, picture in drawn)
