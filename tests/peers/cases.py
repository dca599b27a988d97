"""Runs a kind of transformers' own tests on a tiny hybrid of ours: `python -m tests.peers.cases KIND FOLDER`.

Prints a JSON object: the names that passed, and of each that failed the end of its traceback. A process of
its own, because their modules use markers that our pytest does not know.
"""

import json
import sys
import unittest
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from infinitevl.config import InfiniteVLConfig
from infinitevl.model.infinitevl import InfiniteVLForConditionalGeneration, InfiniteVLModel
from infinitevl.processing.processor.processor import InfiniteVLProcessor
from tests.peers import upstream
from tests.support import prompt_inputs, tiny_config, tiny_processor

_SHOWN = 900  # characters of a traceback


class SmallBlock:
    """What transformers' tests call a model tester: a config and inputs for it."""

    batch_size, seq_length, num_hidden_layers, hidden_size = 2, 40, 2, 32
    num_attention_heads, is_training = 4, True

    def get_config(self) -> InfiniteVLConfig:
        """One window layer, one Gated DeltaNet."""
        return tiny_config(num_hidden_layers=2, layer_types=["sliding_attention", "linear_attention"])

    def prepare_config_and_inputs_for_common(self) -> tuple[InfiniteVLConfig, dict[str, Tensor]]:
        """Two prompts of text alone for the config."""
        config = self.get_config()
        ids = prompt_inputs(config)["input_ids"] % 400
        return config, {
            "input_ids": torch.cat([ids, ids.flip(1)]),
            "attention_mask": torch.ones(2, 40).long(),
        }


class Outcome(unittest.TestResult):
    """Collects what passed and what failed, subtests as part of their test."""

    def __init__(self) -> None:
        super().__init__()
        self.passed: list[str] = []
        self.failed: dict[str, str] = {}

    def addSuccess(self, test: unittest.TestCase) -> None:
        self.passed.append(_name(test))

    def addFailure(self, test: unittest.TestCase, err: Any) -> None:
        self.failed.setdefault(_name(test), self._exc_info_to_string(err, test)[-_SHOWN:])

    addError = addFailure

    def addSubTest(self, test: unittest.TestCase, subtest: unittest.TestCase, err: Any) -> None:
        if err is not None:
            self.addFailure(test, err)


def _name(test: Any) -> str:
    """The test's name; of a fixture of a whole class, what unittest calls it."""
    return getattr(test, "_testMethodName", None) or str(test)


def model_case(folder: Path, kind: type = InfiniteVLForConditionalGeneration) -> type[unittest.TestCase]:
    """Their tests of models."""
    theirs = upstream.read(folder, "test_modeling_common")

    generates = (theirs.GenerationTesterMixin,) if kind is InfiniteVLForConditionalGeneration else ()

    class Models(theirs.ModelTesterMixin, *generates, unittest.TestCase):
        all_model_classes = (kind,)
        _is_composite = True
        model_tester = SmallBlock()

        def _prepare_for_class(self, inputs: Any, model_class: type, return_labels: bool = False) -> Any:
            if not return_labels or not generates:
                return super()._prepare_for_class(inputs, model_class)
            inputs = prompt_inputs(self.model_tester.get_config())  # with pictures, so that all layers train
            return {**inputs, "labels": inputs["input_ids"]}

    return Models


def inner_case(folder: Path) -> type[unittest.TestCase]:
    """The same of the model without its head."""
    return model_case(folder, InfiniteVLModel)


def training_case(folder: Path) -> type[unittest.TestCase]:
    """Their test that some hundred steps teach a pattern by heart."""
    theirs = upstream.read(folder, "test_training_mixin")

    class Block(SmallBlock):
        def get_config(self) -> InfiniteVLConfig:
            config = super().get_config()
            config.vocab_size = config.text_config.vocab_size  # they ask for it here
            return config

    class Training(theirs.TrainingTesterMixin, unittest.TestCase):
        model_tester = Block()

        def _get_trainable_model_class(self) -> type:
            return InfiniteVLForConditionalGeneration

    return Training


def config_case(folder: Path) -> type[unittest.TestCase]:
    """A test of each method of their ConfigTester, so that one failure does not hide the next."""
    theirs = upstream.read(folder, "test_configuration_common")

    class Configs(unittest.TestCase):
        model_tester = SmallBlock()

    def method(name: str) -> Callable[[Any], None]:
        def test(self: Any) -> None:
            given = {"image_token_id": 505, "video_token_id": 506}
            tester = theirs.ConfigTester(self, InfiniteVLConfig, has_text_modality=False, **given)
            getattr(tester, name)()

        return test

    for name in dir(theirs.ConfigTester):
        if name.startswith(("create_and_test_", "check_")):
            setattr(Configs, f"test_{name}", method(name))
    return Configs


def processor_case(folder: Path) -> type[unittest.TestCase]:
    """Their tests of processors."""
    theirs = upstream.read(folder, "test_processing_common")

    class Processors(theirs.ProcessorTesterMixin, unittest.TestCase):
        processor_class = InfiniteVLProcessor

        @classmethod
        def _setup_from_components(cls) -> InfiniteVLProcessor:
            return tiny_processor()

    return Processors


CASES = {
    "model": model_case,
    "inner": inner_case,
    "training": training_case,
    "config": config_case,
    "processor": processor_case,
}


def main() -> None:
    kind, folder = sys.argv[1:]
    torch.set_num_threads(1)
    outcome = Outcome()
    unittest.defaultTestLoader.loadTestsFromTestCase(CASES[kind](Path(folder))).run(outcome)
    print(json.dumps({"passed": outcome.passed, "failed": outcome.failed}))


if __name__ == "__main__":
    main()
