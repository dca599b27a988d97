"""The calls of the published model card: python examples/chat_as_published.py MODEL PICTURE PICTURE VIDEO"""

import sys

import torch
from transformers import AutoModelForCausalLM, AutoProcessor

from infinitevl import InfiniteVLError, process_vision_info


def main(path: str, picture: str, another: str, video: str) -> list[str]:
    """Ask about one picture, about two, and about a video file (for example file:///path/to/video.mp4)."""
    model = AutoModelForCausalLM.from_pretrained(
        path, torch_dtype=torch.bfloat16, device_map="auto", trust_remote_code=True
    )
    processor = AutoProcessor.from_pretrained(path, trust_remote_code=True)
    contents = (
        [{"type": "image", "image": picture}, {"type": "text", "text": "Describe this image."}],
        [
            {"type": "image", "image": picture},
            {"type": "image", "image": another},
            {"type": "text", "text": "What do these two pictures share?"},
        ],
        [{"type": "video", "video": video, "fps": 1.0}, {"type": "text", "text": "What happens here?"}],
    )
    answers = []
    for content in contents:
        messages = [{"role": "user", "content": content}]
        text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        images, videos = process_vision_info(messages)
        inputs = processor(text=[text], images=images, videos=videos, padding=True, return_tensors="pt")
        inputs = inputs.to(model.device)
        generated = model.generate(**inputs, max_new_tokens=128)
        new = [out[len(prompt) :] for prompt, out in zip(inputs.input_ids, generated, strict=True)]
        answers += processor.batch_decode(new, skip_special_tokens=True)
    return answers


if __name__ == "__main__":
    if len(sys.argv) != 5:
        sys.exit(__doc__)
    try:
        print(*main(*sys.argv[1:]), sep="\n")
    except (InfiniteVLError, OSError) as error:  # transformers has OSError for what is no model
        sys.exit(f"error: {error}")
