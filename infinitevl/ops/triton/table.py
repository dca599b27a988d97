"""The Triton kernels as a table; importing it imports triton."""

from infinitevl.ops.kernels import Kernels
from infinitevl.ops.triton import delta_net, pointwise, products, rotary, vision, window

TRITON = Kernels(
    "triton",
    delta_net_chunk_=delta_net.delta_net_chunk_,
    delta_net_step_=delta_net.delta_net_step_,
    window_chunk_=window.window_chunk_,
    window_step_=window.window_step_,
    vision_attention=vision.vision_attention,
    rotary_angles=rotary.rotary_angles,
    rms_norm=pointwise.rms_norm,
    linear=products.linear,
    norm_linear=products.norm_linear,
    norm_swiglu=products.norm_swiglu,
    norm_linear_shift=products.norm_linear_shift,
    norm_swiglu_shift=products.norm_swiglu_shift,
    linear_add=products.linear_add,
    gated_norm_linear_add=products.gated_norm_linear_add,
)
