"""The small world and its exams on a GPU: what is learned and answered there is what a CPU computes."""

import json

import pytest
import torch

import infinitevl
from builtin.evaluate import Examiner, Scene, score, tasks
from builtin.feed.scenes import SceneFeed
from builtin.feed.settings import DrawSettings, SceneSettings
from builtin.recall import Reader, features_of, measure, plan_streams, pool_of
from builtin.stages import teach
from builtin.start import read_shape, write_start
from builtin.world.frames import Style
from builtin.world.packs import load_world, small_pack_path
from infinitevl.model.fused import fuse_, training_kernels
from infinitevl.training.parts import SFT, freeze_
from infinitevl.training.stages.inputs import answers
from infinitevl.training.stages.sft import sft
from infinitevl.training.task import LossModule
from infinitevl.training.trainer import to_device
from infinitevl.training.training_log import LOG
from tests.builtin.small import BUILTIN, RECIPES, pretraining

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("bucket", ["picture", "stream8", "keyed5", "recall64"])
def test_a_batch_has_the_loss_that_a_cpu_finds(bucket):
    plain, processor = infinitevl.load(BUILTIN, device="cpu", dtype=torch.float32)
    model, _ = infinitevl.load(BUILTIN, device="cuda", dtype=torch.bfloat16)
    draw = DrawSettings(num_pictures=64, buckets={bucket: 1})
    settings = SceneSettings(pack=str(small_pack_path()), draws=[draw])
    tokenizer = processor.tokenizer.backend_tokenizer
    (batch,) = SceneFeed(settings, tokenizer, 1, 10, device="cuda", dtype=torch.bfloat16).next_batches()
    reference = to_device(batch, torch.device("cpu"))
    reference["pixel_values"] = reference["pixel_values"].float()
    with torch.no_grad():
        wanted = float(sft(plain, reference)) / len(answers(reference)[1])
    freeze_(model, model.config.text_config.layer_types, SFT)
    fuse_(model.model.visual)
    module = LossModule(model, lambda batch: sft(model, batch), torch.bfloat16)
    with training_kernels(model, torch.bfloat16):
        loss = module(batch) / len(answers(batch)[1])
        loss.backward()
    assert abs(float(loss) - wanted) < 0.05 * wanted + 0.02
    assert all(weight.grad.isfinite().all() for weight in model.parameters() if weight.requires_grad)


@pytest.fixture
def scene():
    world, textures = load_world(device="cuda")
    return Scene(world, textures, Style.of(world, "validation", strong=False))


def test_an_exam_is_answered_many_at_once(scene):
    model, processor = infinitevl.load(BUILTIN, device="cuda")
    fuse_(model)
    examiner = Examiner(model, processor.tokenizer.backend_tokenizer)
    named = {task.name: task for task in tasks(scene, scene, [16])}
    assert score(examiner, named["read, seen fonts"], 200, "validation")["score"] > 0.8
    assert score(examiner, named["first sign after 16 frames"], 100, "validation")["score"] > 0.7


def test_recall_over_a_long_stream(scene):
    model, processor = infinitevl.load(BUILTIN, device="cuda")
    fuse_(model)
    pool = features_of(model.model.visual, scene, pool_of(scene, "validation", 256))
    streams, signs = plan_streams(scene, "validation", 300, 40, 256)
    table = torch.cat([pool, features_of(model.model.visual, scene, signs)])
    found = measure(Reader(model, processor.tokenizer.backend_tokenizer), table, streams, 60)
    assert found["scores"]["first sign"] > 0.5
    assert found["norms"][-1][0] == 300


def test_the_teacher_learns_from_where_it_starts(tmp_path):
    shape = read_shape(RECIPES / "teacher_shape.yaml")
    write_start(shape, BUILTIN / "tokenizer.json", tmp_path / "start", weights=str(BUILTIN))
    draws = [
        {"num_pictures": 64, "buckets": {"picture": 1}, "named": True},
        {"num_pictures": 64, "buckets": {"stream4": 1, "text": 1}},
    ]
    changes = {"num_steps": 60, "log_every": 1, "learning_rate": 8e-4, "dtype": "bfloat16"}
    teach(pretraining(tmp_path / "start", tmp_path / "run", draws, **changes))
    lines = [json.loads(line) for line in (tmp_path / "run" / LOG).read_text().splitlines()]
    for name in ("answer_loss", "patch_loss"):  # a batch's own loss varies much, so means are compared
        first, last = (sum(line[name] for line in part) / len(part) for part in (lines[:3], lines[-15:]))
        assert last < 0.9 * first, name
