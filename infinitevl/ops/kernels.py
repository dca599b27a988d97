"""The table of operations that the model runs on; chosen once, when a model is built or an engine starts."""

from collections.abc import Callable
from dataclasses import dataclass

from infinitevl.ops import delta_net, norm, products, rotary, vision, window


@dataclass(frozen=True)
class Kernels:
    """Functions with the signatures and results of those in `TORCH`.

    Names with an underscore change a state in place.
    """

    name: str
    delta_net_chunk: Callable = delta_net.delta_net_chunk
    delta_net_chunk_: Callable = delta_net.delta_net_chunk_
    delta_net_step_: Callable = delta_net.delta_net_step_
    window_chunk: Callable = window.window_chunk
    window_chunk_: Callable = window.window_chunk_
    window_step_: Callable = window.window_step_
    vision_attention: Callable = vision.vision_attention
    rotary_angles: Callable = rotary.rotary_angles
    rms_norm: Callable = norm.rms_norm
    gated_rms_norm: Callable = norm.gated_rms_norm
    swiglu: Callable = products.swiglu
    linear: Callable = products.linear
    norm_linear: Callable = products.norm_linear
    norm_swiglu: Callable = products.norm_swiglu
    norm_linear_shift: Callable = products.norm_linear_shift
    norm_swiglu_shift: Callable = products.norm_swiglu_shift
    linear_add: Callable = products.linear_add
    gated_norm_linear_add: Callable = products.gated_norm_linear_add


# Plain torch: the definition, on every device, with gradients where nothing changes in place.
TORCH = Kernels("torch")
