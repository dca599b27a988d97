"""Operations of a step, held to what a hand counts."""

import pytest

from infinitevl.config import FULL, LINEAR, SLIDING
from infinitevl.training.flops import (
    Weights,
    Work,
    attended_pairs,
    mixer_flops,
    nominal_peak,
    stage_flops,
    vision_flops,
)
from infinitevl.training.lora import add_adapters
from infinitevl.training.parts import DISTILL_LAYERS, DISTILL_LOGITS, LONG_SFT, SFT, freeze_
from tests.support import tiny_config, tiny_model

# tiny_config: width 32, inner 64, 4 heads of 8, 2 key heads, window 12; memory 2 heads of 8 x 16 (or as set)
ATTENTION = 32 * 32 * 2 + 32 * 16 * 2  # q and o, k and v
MLP = 3 * 32 * 64
TEN = Work((10,), (), 3)


def text(**changes):
    return tiny_config(**changes).text_config


def test_a_query_sees_itself_and_what_came_before_within_the_window():
    assert attended_pairs(4, None) == 1 + 2 + 3 + 4
    assert attended_pairs(5, 3) == 1 + 2 + 3 + 3 + 3
    assert attended_pairs(2, 3) == 3


def test_attention_counts_two_products_of_each_pair_and_memory_six_operations_an_entry():
    # query with key and weight with value, 2 operations for each of 4 x 8 numbers
    assert mixer_flops(text(), FULL, (4,)) == 10 * 2 * 2 * 32
    assert mixer_flops(text(sliding_window=2), SLIDING, (4, 1)) == (7 + 1) * 2 * 2 * 32
    # the third token sees the first, which is a sink, and two of a window
    assert mixer_flops(text(sliding_window=2, num_sink_tokens=1), SLIDING, (4,)) == 9 * 2 * 2 * 32
    config = text(num_linear_heads=2, linear_head_dim=8, expand_v=2)
    assert mixer_flops(config, LINEAR, (4, 1)) == 5 * 6 * 2 * 8 * 16


def test_instruction_tuning_counts_six_a_weight_and_four_of_the_head():
    student = tiny_model(layer_types=[FULL] * 4)
    freeze_(student, [FULL] * 4, SFT)
    weights = Weights.of(student, 4)
    assert weights.trained == (ATTENTION + MLP,) * 4 and weights.frozen == (0,) * 4
    assert weights.head == 512 * 32
    wanted = 4 * (6 * (ATTENTION + MLP) * 10 + 3 * mixer_flops(text(), FULL, (10,))) + 4 * 512 * 32 * 3
    assert stage_flops(SFT, student.config, weights, TEN) == wanted


def test_adapters_count_six_and_what_they_stand_beside_four():
    student = tiny_model(layer_types=[FULL] * 4)
    add_adapters(student, rank=2, alpha=4)
    weights = Weights.of(student, 4)
    beside = 2 * ((32 + 32) * 2 + (32 + 16) * 2 + (32 + 64) * 3)
    assert weights.frozen == (ATTENTION + MLP,) * 4 and weights.trained == (beside,) * 4
    mixers = 4 * 3 * mixer_flops(text(), FULL, (10,))
    wanted = 4 * (4 * (ATTENTION + MLP) + 6 * beside) * 10 + mixers + 4 * 512 * 32 * 3
    assert stage_flops(LONG_SFT, student.config, weights, TEN) == wanted


def test_layers_learn_alone_beside_a_teacher_that_reads_once():
    kinds = [SLIDING, LINEAR, LINEAR, LINEAR]
    student, teacher = tiny_model(), tiny_config(layer_types=[FULL] * 4)
    freeze_(student, kinds, DISTILL_LAYERS)
    weights = Weights.of(student, 4)
    config = student.config.text_config
    output = config.value_dim * 32
    entering = 32 * (2 * config.key_dim + 2 * config.value_dim + 2 * config.num_linear_heads)
    assert weights.trained == (0, *(entering + output,) * 3)
    taught = 4 * (2 * (ATTENTION + MLP) * 10 + mixer_flops(teacher.text_config, FULL, (10,)))
    layer = (4 * entering + 6 * output + 4 * MLP) * 10 + 3 * mixer_flops(config, LINEAR, (10,))
    assert stage_flops(DISTILL_LAYERS, student.config, weights, TEN, teacher) == taught + 3 * layer


def test_distilled_logits_make_those_of_the_teacher_too():
    student, teacher = tiny_model(), tiny_config(layer_types=[FULL] * 4)
    freeze_(student, [SLIDING, LINEAR, LINEAR, LINEAR], DISTILL_LOGITS)
    weights = Weights.of(student, 4)
    with_head = stage_flops(DISTILL_LOGITS, student.config, weights, TEN, teacher)
    without = stage_flops(DISTILL_LOGITS, student.config, weights, Work((10,), (), 0), teacher)
    assert with_head - without == (4 + 2) * 512 * 32 * 3


def test_vision_counts_forward_alone_by_patches_windows_and_merged_tokens():
    student = tiny_model()
    weights = Weights.of(student, 4)
    block = 32 * 96 + 32 * 32 + 3 * 32 * 52
    assert weights.vision == 2 * block + 3 * 2 * 14 * 14 * 32
    assert weights.merger == 128 * 128 + 128 * 32
    # 4 x 6 patches: a window has 4 x 4, so one of 16 and one of 8; the second block sees all 24
    work = Work((10,), ((1, 4, 6),), 0)
    pairs = (16**2 + 8**2) + 24**2
    wanted = 2 * (24 * weights.vision + 6 * weights.merger) + 4 * 32 * pairs
    assert vision_flops(student.config.vision_config, weights, work) == wanted


@pytest.mark.parametrize(("name", "peak"), [("NVIDIA H200", 989e12), ("some other card", None)])
def test_the_peak_of_a_card_is_known_by_its_name(name, peak):
    assert nominal_peak(name) == peak
