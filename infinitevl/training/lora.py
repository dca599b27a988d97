"""LoRA beside every projection of the decoder, through peft."""

from typing import Any

from torch import nn

from infinitevl.errors import InfiniteVLError
from infinitevl.model.infinitevl import InfiniteVLForConditionalGeneration
from infinitevl.training.parts import PROJECTIONS


def add_adapters(
    model: InfiniteVLForConditionalGeneration, rank: int, alpha: int, dropout: float = 0.0
) -> Any:
    """Put an adapter beside each projection of both kinds of layers, and freeze everything else.

    Returns:
        The `peft.PeftModel` around `model`, which now holds the adapters itself.

    Raises:
        InfiniteVLError: peft is not installed.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise InfiniteVLError("LoRA needs peft: pip install 'infinitevl[train]'.") from error
    config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=PROJECTIONS)
    return get_peft_model(model, config)


def merged(adapted: Any) -> InfiniteVLForConditionalGeneration:
    """The model with its adapters added into its projections; the adapters are gone."""
    return adapted.merge_and_unload()


def adapter_weights(model: nn.Module) -> list[nn.Parameter]:
    """The weights of adapters, in the model's order."""
    return [parameter for name, parameter in model.named_parameters() if ".lora_" in name]
