"""Looks: none changes nothing, each changes its drawing and nothing far from it, the same seed the same."""

from dataclasses import replace
from random import Random

import pytest
import torch

from builtin.world.draw_look import draw_look
from builtin.world.frames import Painter, Style
from builtin.world.looks import LOOK_NUMBERS, PLAIN, Look
from builtin.world.packs import load_world
from builtin.world.render import SPRITE, Picture, Stamp, plan_pictures, render

GROUND = (120.0, 160.0, 200.0)
CHANGED = {
    "lines": {"lines": 1.0},
    "thick": {"lines": 1.0, "thick": 1.0},
    "fill": {"fill": 1.0, "fill_colour": (250.0, 0.0, 0.0)},
    "hollow": {"hollow": 1.0},
    "outline": {"outline": 2.0},
    "thicker": {"weight": 1.0},
    "thinner": {"weight": -0.5},
    "levels": {"levels": 2.0},
    "smooth": {"smooth": 1.0},
    "blur": {"blur": 1.0},
    "coarse": {"coarse": 1.0},
    "curves": {"curves": (0.5, -0.5, 0.3)},
    "light": {"light": (0.4, 0.2)},
    "wave": {"wave": (0.1, 3.0, 1.0, 2.0)},
    "shear": {"shear": 0.3},
    "hole": {"hole": (0.0, 0.0, 0.3)},
}


@pytest.fixture(scope="module")
def world_and_textures():
    """The small pack in the package."""
    return load_world()


def _drawn(world_and_textures, looks):
    world, textures = world_and_textures
    stamps = [Stamp(SPRITE, 5, 56, 56, 48, look=look) for look in looks]
    return render(plan_pictures([Picture((GROUND, GROUND), [stamp]) for stamp in stamps], world), textures)


def test_a_look_of_zeros_changes_no_bit(world_and_textures):
    plain, zeros, beside = _drawn(world_and_textures, [PLAIN, Look(), Look(lines=1.0)])
    assert len(PLAIN.row()) == LOOK_NUMBERS
    assert torch.equal(plain, zeros)
    assert not torch.equal(plain, beside)


@pytest.mark.parametrize("name", CHANGED)
def test_every_look_changes_the_drawing_and_not_the_ground_around_it(world_and_textures, name):
    plain, changed = _drawn(world_and_textures, [PLAIN, Look(**CHANGED[name])])
    differs = (plain != changed).any(0)
    assert differs.sum() > 10
    differs[20:92, 20:92] = False
    assert not differs.any()


def test_the_same_seed_gives_the_same_look():
    looks = [draw_look(Random(3), [GROUND], recolourable=True, one_colour=False) for _ in range(2)]
    assert looks[0] == looks[1]


def test_a_name_that_tells_a_colour_keeps_its_colours():
    rng = Random(1)
    for _ in range(300):
        look = draw_look(rng, [GROUND], recolourable=False, one_colour=False)
        assert (look.fill, look.hollow, look.levels, look.curves) == (0, 0, 0, (0, 0, 0))


def test_without_looks_only_the_hands_of_exams_are_drawn_from(world_and_textures):
    world, _ = world_and_textures
    painter = Painter(world, Style.of(world, "train", looks=0.0), Random(1))
    assert all(stamp.look is PLAIN for _ in range(50) for stamp in painter.thing().picture.stamps)
    styled = Painter(world, replace(painter.style, looks=1.0), Random(1))
    assert any(stamp.look != PLAIN for _ in range(20) for stamp in styled.thing().picture.stamps)
