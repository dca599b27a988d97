"""InfiniteVL: a vision-language model that watches a stream without end in a state of constant size."""

from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

from infinitevl.config import InfiniteVLConfig
from infinitevl.model.infinitevl import InfiniteVLForConditionalGeneration

AutoConfig.register("infinite_vl", InfiniteVLConfig, exist_ok=True)
AutoModelForImageTextToText.register(InfiniteVLConfig, InfiniteVLForConditionalGeneration, exist_ok=True)
AutoModelForCausalLM.register(InfiniteVLConfig, InfiniteVLForConditionalGeneration, exist_ok=True)
