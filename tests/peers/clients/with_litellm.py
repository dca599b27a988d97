"""Chats through litellm, whole and streamed; prints the texts as JSON: ADDRESS MODEL QUESTION PICTURE."""

import json
import sys

import litellm


def main() -> None:
    address, model, question, picture = sys.argv[1:]
    settings = {"model": f"openai/{model}", "api_base": address, "api_key": "none", "max_tokens": 16}
    messages = [{"role": "user", "content": question}]
    parts = [
        {"type": "image_url", "image_url": {"url": picture}},
        {"type": "text", "text": question},
    ]
    whole = litellm.completion(messages=messages, logprobs=True, top_logprobs=2, **settings)
    pieces = litellm.completion(messages=messages, stream=True, **settings)
    shown = litellm.completion(messages=[{"role": "user", "content": parts}], **settings)
    response = litellm.responses(
        input=question,
        model=settings["model"],
        api_base=address,
        api_key="none",
        max_output_tokens=16,
    )
    found = {
        "whole": whole.choices[0].message.content,
        "tokens": whole.usage.completion_tokens,
        "logprobs": len(whole.choices[0].logprobs.content),
        "streamed": "".join(piece.choices[0].delta.content or "" for piece in pieces),
        "shown": shown.choices[0].message.content,
        "response": response.output[0].content[0].text,
    }
    print(json.dumps(found))


main()
