"""After `import infinitevl` the Auto classes know the model, in whatever order things are imported."""

import subprocess
import sys

import pytest

from infinitevl.model.opening import builtin_folder

LOAD = f"""
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor
folder = {str(builtin_folder())!r}
assert type(AutoConfig.from_pretrained(folder)).__name__ == "InfiniteVLConfig"
first = AutoModelForImageTextToText.from_pretrained(folder)
second = AutoModelForCausalLM.from_config(first.config)
assert type(first) is type(second) is infinitevl.InfiniteVLForConditionalGeneration
assert type(AutoProcessor.from_pretrained(folder)) is infinitevl.InfiniteVLProcessor
"""
ORDERS = {
    "ours alone": "import infinitevl",
    "ours first": "import infinitevl; from transformers import AutoTokenizer, Qwen2VLImageProcessorPil",
    "transformers first": "import transformers; import infinitevl",
    "Auto classes first": "from transformers import AutoModelForCausalLM, AutoProcessor; import infinitevl",
    "the processor first": "import infinitevl; infinitevl.InfiniteVLProcessor",
    "the engine first": "from infinitevl import Engine; import infinitevl",
    "one module first": "import infinitevl.processing.pictures.opening; import infinitevl",
    "peft first": "import infinitevl; import peft",
}


def run(program: str) -> str:
    """What a program prints in a new interpreter, in which any warning is an error."""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=250, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.slow
@pytest.mark.parametrize("order", ORDERS)
def test_every_order_of_imports_gives_our_classes(order: str) -> None:
    run(f"{ORDERS[order]}\n{LOAD}")


def test_the_auto_classes_give_our_classes_before_anything_of_ours_was_used() -> None:
    run(f"import infinitevl\n{LOAD}")


def test_the_tables_hold_the_class_itself_once_it_was_imported() -> None:
    program = """
import infinitevl
from transformers import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING as table
from infinitevl import InfiniteVLConfig
stand_in = table[InfiniteVLConfig]
import sys
assert "infinitevl.model.infinitevl" not in sys.modules
ours = infinitevl.InfiniteVLForConditionalGeneration
assert stand_in is not ours and table[InfiniteVLConfig] is ours
assert stand_in.from_pretrained == ours.from_pretrained
"""
    run(program)


def test_a_pickled_config_opens_in_an_interpreter_that_imported_nothing(tmp_path) -> None:
    import pickle

    from infinitevl import InfiniteVLConfig

    path = tmp_path / "config.pickle"
    path.write_bytes(pickle.dumps(InfiniteVLConfig()))
    assert (
        run(
            f"import pickle; config = pickle.load(open({str(path)!r}, 'rb'))\n"
            "from transformers import AutoModelForCausalLM\n"
            "print(type(config) in AutoModelForCausalLM._model_mapping)"
        )
        == "True"
    )


def test_the_watched_modules_keep_their_source_and_loader() -> None:
    assert (
        run(
            "import infinitevl, inspect\n"
            "from transformers.models.auto import modeling_auto\n"
            "print('AutoModelForCausalLM' in inspect.getsource(modeling_auto), modeling_auto.__spec__.name)"
        )
        == "True transformers.models.auto.modeling_auto"
    )


def test_a_reloaded_package_still_registers_and_loads() -> None:
    run(
        "import importlib, infinitevl, infinitevl.registration as registration\n"
        "importlib.reload(registration).register_when_needed()\n"
        f"importlib.reload(infinitevl)\n{LOAD}"
    )


def test_auto_processor_takes_what_a_pipeline_passes() -> None:
    run(
        "import infinitevl\nfrom transformers import AutoProcessor\n"
        f"folder = {str(builtin_folder())!r}\n"
        "AutoProcessor.from_pretrained(folder, _from_pipeline='image-text-to-text', dtype='auto')"
    )
