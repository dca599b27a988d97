"""The same numbers on a CUDA GPU as on a CPU, and the same equalities there."""

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import pad

from infinitevl.config import InfiniteVLVisionConfig
from infinitevl.engine.session import StreamSession
from infinitevl.model.fused import fuse_
from infinitevl.model.infinitevl import InfiniteVLForConditionalGeneration
from infinitevl.model.vision import VisionBlock
from infinitevl.model.weights import fingerprint
from infinitevl.ops.delta_net.rule import delta_rule_chunk
from infinitevl.ops.reference import delta_rule_by_token
from tests.model.test_reference_vectors import PROMPT
from tests.ops.test_delta_rule import DECAYS, random_inputs
from tests.support import DATA, random_frame, relative_error, small_model, tiny_model, tiny_processor

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def exact_products():
    """float32 products in float32, not in tf32."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32 = before


def test_the_reference_vectors_hold_on_a_gpu():
    model, vectors = small_model().cuda(), load_file(DATA / "small" / "vectors.safetensors")
    with torch.no_grad():
        out = model(**{name: vectors[name].cuda() for name in PROMPT}, use_cache=False)
    assert relative_error(out.logits.cpu(), vectors["logits"]) < 2e-5


@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("length", [1, 63, 64, 65, 1000])
def test_the_chunk_rule_equals_the_float64_oracle_on_a_gpu(decay, length):
    inputs = random_inputs(length, decay)
    wanted = delta_rule_by_token(*inputs)
    given = delta_rule_chunk(*(x.float().cuda() for x in inputs))
    for x, y in zip(given, wanted, strict=True):
        assert relative_error(x.cpu(), y) < 2e-5


def watched(model, num_frames=30, **kwargs):
    session = StreamSession(model, tiny_processor(), **kwargs)
    for index in range(num_frames):
        session.observe(random_frame(index), at=index / 2)
    return session


@pytest.mark.parametrize("mode", ["image", "video"])
def test_a_stream_on_a_gpu_equals_one_on_a_cpu(mode):
    here, there = watched(tiny_model(), mode=mode), watched(tiny_model().cuda(), mode=mode)
    for name, tensor in there.state.tensors().items():
        wanted = here.state.tensors()[name]
        assert tensor.is_cuda
        if tensor.is_floating_point():
            assert relative_error(tensor.cpu(), wanted) < 2e-5, name
        else:
            assert torch.equal(tensor.cpu(), wanted), name
    assert there.ask("what?", max_new_tokens=4) == here.ask("what?", max_new_tokens=4)


def test_a_question_on_a_gpu_leaves_the_stream_untouched_and_a_saved_one_continues(tmp_path):
    model = tiny_model().cuda()
    session = watched(model)
    before = session.state.fork().tensors()
    session.ask("what?", max_new_tokens=4)
    session.save(tmp_path / "s")
    loaded = StreamSession.load(tmp_path / "s", model, tiny_processor())
    for name, tensor in session.state.tensors().items():
        assert torch.equal(tensor, before[name]) and torch.equal(loaded.state.tensors()[name], tensor), name
    assert loaded.state.tensors()[name].is_cuda


def spread_model(folder):
    """The first two layers on the GPU, the others on the CPU."""
    tiny_model().save_pretrained(folder)
    places: dict[str, int | str] = {"model.visual": 0, "model.language_model.embed_tokens": 0, "lm_head": 0}
    places |= {f"model.language_model.layers.{i}": 0 if i < 2 else "cpu" for i in range(4)}
    places |= {"model.language_model.norm": 0, "model.language_model.rotary": 0}
    return InfiniteVLForConditionalGeneration.from_pretrained(folder, device_map=places)


def test_a_model_spread_over_cpu_and_gpu_equals_one_in_one_place(tmp_path):
    session, whole = watched(spread_model(tmp_path), 10), watched(tiny_model(), 10)
    kinds = {i: next(iter(vars(layer).values())).device.type for i, layer in enumerate(session.state.layers)}
    # A layer whose weights wait on the CPU computes, and keeps its state, on the GPU.
    assert set(kinds.values()) == {"cuda"}
    for name, tensor in session.state.tensors().items():
        if tensor.is_floating_point():
            assert relative_error(tensor.cpu(), whole.state.tensors()[name]) < 2e-5, name


@pytest.mark.parametrize("start", ["cpu", "cuda"])
def test_a_padded_batch_on_a_spread_model_equals_one_in_one_place(tmp_path, start):
    spread, whole = spread_model(tmp_path), tiny_model()
    ids = torch.randint(0, 400, (2, 30), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[0, :11], mask[1, 25:] = 0, 0
    with torch.no_grad():
        given = spread(ids.to(start), mask.to(start), output_hidden_states=True)
        wanted = whole(ids, mask, output_hidden_states=True)
    for x, y in zip(
        (given.logits, *given.hidden_states), (wanted.logits, *wanted.hidden_states), strict=True
    ):
        assert relative_error(x.cpu()[mask.bool()], y[mask.bool()]) < 2e-5
    answers = [
        model.generate(ids.to(place), attention_mask=mask.to(place), max_new_tokens=6, do_sample=False).cpu()
        for model, place in ((spread, start), (whole, "cpu"))
    ]
    assert torch.equal(*answers)
    assert fingerprint(spread, spread.config) == fingerprint(whole, whole.config)


def test_device_memory_does_not_grow_with_a_stream():
    session = watched(tiny_model().cuda(), 50)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated(), torch.cuda.memory_reserved()
    for index in range(50, 1000):
        session.observe(random_frame(index % 8), at=index / 2)
    assert (torch.cuda.memory_allocated(), torch.cuda.memory_reserved()) == before


def test_a_layout_leaves_no_memory_between_weights():
    """Two or more small weights share a block of the allocator, which stays as long as one of them does."""
    torch.cuda.empty_cache()
    unused = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
    config = InfiniteVLVisionConfig(depth=16, hidden_size=1280, intermediate_size=3420, num_heads=16)
    with torch.device("cuda"):
        blocks = torch.nn.ModuleList(VisionBlock(config, index) for index in range(config.depth)).bfloat16()
    before = {name: weight.cpu() for name, weight in blocks.state_dict().items()}
    fuse_(blocks)
    torch.cuda.empty_cache()
    more = torch.cuda.memory_reserved() - torch.cuda.memory_allocated() - unused
    assert more < 0.1 * sum(weight.nbytes for weight in before.values())
    after = blocks.state_dict()
    assert all(weight.is_cuda for weight in blocks.parameters())
    assert all(torch.equal(after[name].cpu(), weight) for name, weight in before.items())


def answers(model, prompts, num_new=15):
    """Greedy answers to prompts of any lengths, all in one batch: as many rows as its state has."""
    longest, device = max(map(len, prompts)), model.device
    ids = torch.stack([pad(prompt, (longest - len(prompt), 0)) for prompt in prompts]).to(device)
    mask = torch.stack([pad(torch.ones_like(prompt), (longest - len(prompt), 0)) for prompt in prompts])
    out = model.generate(ids, attention_mask=mask.to(device), max_new_tokens=num_new, do_sample=False)
    return out[:, longest:].tolist()


def test_rows_of_any_lengths_answer_as_they_would_alone():
    """Windows of some wrap around while those of others are still filling, in the prompt and after it."""
    model = tiny_model().cuda()
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = None, 0
    fuse_(model)
    generator = torch.Generator().manual_seed(5)
    prompts = [torch.randint(0, 400, (length,), generator=generator) for length in (20, 3, 11, 33, 1)]
    alone = [answers(model, [prompt])[0] for prompt in prompts]
    assert len(set(map(tuple, alone))) == len(alone)
    assert answers(model, prompts) == alone
