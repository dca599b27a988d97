"""Models are made ready to train without a warning of transformers or peft."""

import warnings

from infinitevl.training.lora import add_adapters
from infinitevl.training.model_setup import checkpoint_layers_, keep_activations_
from tests.support import tiny_model


def test_layers_recompute_and_keep_their_activations_without_warnings() -> None:
    model = tiny_model()
    layers = model.model.language_model.layers
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        checkpoint_layers_(model, 1)
        assert [layer.gradient_checkpointing for layer in layers] == [True] + [False] * (len(layers) - 1)
        add_adapters(model, rank=2, alpha=4, dropout=0.0)
        keep_activations_(model)
    assert not any(layer.gradient_checkpointing for layer in layers)
