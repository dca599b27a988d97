"""Ask about a picture: python examples/a_picture.py PICTURE "What is this?" [MODEL]"""

import sys

from infinitevl import ChatSession, load


def main(picture: str, question: str, model_name: str | None = None) -> None:
    """Print the answer, then the answer to a second question about the same picture."""
    model, processor = load(model_name)
    chat = ChatSession(model, processor)
    print(chat.say([{"type": "image", "image": picture}, {"type": "text", "text": question}]))
    print(chat.say("Describe it."))


if __name__ == "__main__":
    main(*sys.argv[1:])
