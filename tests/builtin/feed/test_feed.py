"""The small world as a feed: batches that say what they should, the same ones again after a stop."""

from pathlib import Path
from random import Random

import pytest
import torch
from PIL import Image

from builtin.feed.buckets import BUCKETS, MOST_SIGNS, Bucket
from builtin.feed.plans import Planner, weights_at
from builtin.feed.rows import FRAME_TOKENS
from builtin.feed.scenes import SceneFeed
from builtin.feed.settings import DrawSettings, SceneSettings
from builtin.stages import read_stage, show, teach
from builtin.world.packs import load_world, small_pack_path
from infinitevl.errors import InfiniteVLError, InputError
from infinitevl.model.infinitevl import InfiniteVLForConditionalGeneration
from infinitevl.training.losses import IGNORED
from infinitevl.training.parts import STAGES
from infinitevl.training.stages.sft import sft
from infinitevl.training.training_log import LOG, losses
from tests.support import tiny_tokenizer
from tests.training.stages import write_recipe, write_world

PACK = str(small_pack_path())
DRAWS = [
    {"num_pictures": 12, "buckets": {"stream4": 1, "keyed4": 1}},
    {"num_pictures": 8, "buckets": {"stream8": 1}, "buckets_at_end": {"stream4": 1}},
]


def _settings(draws=DRAWS) -> SceneSettings:
    return SceneSettings(pack=PACK, draws=[DrawSettings(**draw) for draw in draws])


def _feed(draws=DRAWS, **more) -> SceneFeed:
    return SceneFeed(_settings(draws), tiny_tokenizer().backend_tokenizer, seed=3, num_steps=10, **more)


def _same(one, other) -> bool:
    pairs = [
        pair
        for both in zip(one, other, strict=True)
        for pair in zip(both[0].values(), both[1].values(), strict=True)
    ]
    return all(torch.equal(*pair) for pair in pairs)


def test_a_feed_that_goes_on_gives_what_would_have_come():
    feed = _feed()
    steps = [feed.next_batches() for _ in range(4)]
    state = feed.state_dict()
    assert state["scenes-0"] == 4
    again = _feed()
    again.load_state_dict({**state, "scenes-0": 2})
    assert _same(steps[2], again.next_batches()) and _same(steps[3], again.next_batches())
    assert not _same(_feed(rank=1).next_batches(), steps[0])


def test_a_feed_refuses_to_go_on_with_other_settings():
    state = _feed().state_dict()
    state["scenes"] = {**state["scenes"], "looks": 0.5}
    with pytest.raises(InfiniteVLError, match=r"looks: 0\.5 then, 0\.0 now"):
        _feed().load_state_dict(state)


def test_a_batch_has_a_place_for_every_feature_and_all_answers():
    tokenizer = tiny_tokenizer()
    pad, end = (tokenizer.convert_tokens_to_ids(name) for name in ("<|image_pad|>", "<|im_end|>"))
    for batch in _feed().next_batches():
        assert int((batch["input_ids"] == pad).sum()) == len(batch["image_grid_thw"]) * FRAME_TOKENS
        assert batch["pixel_values"].shape == (len(batch["image_grid_thw"]) * 64, 1176)
        learned = batch["labels"] != IGNORED
        assert torch.equal(batch["labels"][learned], batch["input_ids"][learned])
        assert bool((batch["labels"] == end).any(1).all())
        assert not bool((learned & ~batch["attention_mask"].bool()).any())


@pytest.mark.parametrize("name", [name for name, bucket in BUCKETS.items() if bucket.num_frames > 2])
def test_every_bucket_of_streams_has_room_for_its_questions(name):
    world, _ = load_world()
    path = Path(__file__).parents[3] / "infinitevl/assets/builtin/tokenizer.json"
    from tokenizers import Tokenizer

    planner = Planner(_settings(), world, Tokenizer.from_file(str(path)), 1, 10)
    plan = planner.batch(BUCKETS[name], Random(0), max(64, BUCKETS[name].num_frames))
    learned = plan.labels != IGNORED
    assert plan.ids.shape[1] % 64 == 0
    assert (learned.sum(1) > 1).all()
    assert len(plan.pictures) == BUCKETS[name].num_drawn(len(plan.ids))
    frames = len(plan.ids) * BUCKETS[name].num_frames
    assert plan.shown is None or (len(plan.shown) == frames and plan.shown.max() < len(plan.pictures))


def test_a_picture_that_is_read_once_and_shown_often_teaches_the_same(world):
    student = InfiniteVLForConditionalGeneration.from_pretrained(world / "student", dtype=torch.float32)
    feed = _feed()
    plan = feed.planner.batch(Bucket("long12", 12, 512, 2, 2), Random(1), 24)
    batch = feed.draw(plan, 0)
    shown = batch["shown_images"]
    assert len(batch["image_grid_thw"]) == 2 + 2 * MOST_SIGNS + 1 and len(shown) == 24 > len(shown.unique())
    spread = {key: value for key, value in batch.items() if key != "shown_images"}
    spread["image_grid_thw"] = batch["image_grid_thw"][shown]
    spread["pixel_values"] = batch["pixel_values"].unflatten(0, (-1, 64))[shown].flatten(0, 1)
    weights = [weight for name, weight in student.named_parameters() if ".layers." in name]
    found = []
    for each in (batch, spread):
        loss = sft(student, each)
        found.append([loss.detach(), *torch.autograd.grad(loss, weights)])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_a_named_batch_says_what_is_under_each_patch_and_the_others_do_not():
    draws = [{"num_pictures": 8, "buckets": {"stream4": 1}, "named": True}, DRAWS[0]]
    named, other = _feed(draws).next_batches()
    assert named["characters"].shape == named["objects"].shape == (8, 64)
    assert (named["characters"] >= 0).any() and (named["objects"] >= 0).any()
    assert "characters" not in other and "objects" not in other


def test_weights_go_from_the_first_to_the_last():
    draw = DrawSettings(num_pictures=1, buckets={"text": 1}, buckets_at_end={"pair": 3})
    assert weights_at(draw, 0.0) == {"text": 1, "pair": 0}
    assert weights_at(draw, 0.5) == {"text": 0.5, "pair": 1.5}


def test_rows_that_fit_nothing_are_refused():
    world, _ = load_world()
    planner = Planner(_settings(), world, tiny_tokenizer().backend_tokenizer, 1, 10)
    with pytest.raises(InputError, match="no sample of 'stream4' fits"):
        planner.rows(Bucket("stream4", 4, 64), Random(0), 1, 64)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return write_world(tmp_path_factory.mktemp("world"))


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_learns_from_the_small_world_and_can_be_stopped(world, tmp_path, stage):
    data = {"scenes": {"pack": PACK, "draws": DRAWS}}
    teach(read_stage(write_recipe(world, stage, tmp_path / "whole", data=data)))
    part = read_stage(write_recipe(world, stage, tmp_path / "part", data=data))
    assert teach(part, stop_after=3) is None
    teach(part, resume=True)
    assert losses(tmp_path / "whole" / LOG) == losses(tmp_path / "part" / LOG)


def test_a_dry_run_tells_the_first_batch(world, tmp_path):
    data = {"scenes": {"pack": PACK, "draws": DRAWS}}
    path = write_recipe(world, "sft", tmp_path / "run", data=data)
    told = show(read_stage(path), tmp_path / "pictures")
    assert "in 2 batches" in told and "[[" in told
    first = sorted((tmp_path / "pictures").iterdir())[0]
    assert Image.open(first).size == (112, 112)


def test_an_unknown_bucket_is_refused_by_name(world, tmp_path):
    draws = [{"num_pictures": 4, "buckets": {"straem4": 1}}]
    path = write_recipe(world, "sft", tmp_path / "run", data={"scenes": {"pack": PACK, "draws": draws}})
    with pytest.raises(InputError, match="unknown bucket 'straem4'; did you mean 'stream4'"):
        read_stage(path)
