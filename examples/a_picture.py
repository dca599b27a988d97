"""Ask about a picture: python examples/a_picture.py examples/sign.png "What does the sign say?" [MODEL]"""

import sys

from infinitevl import ChatSession, InfiniteVLError, load


def main(picture: str, question: str, model_name: str | None = None) -> None:
    """Print the answer, then the answer to a second question about the same picture."""
    model, processor = load(model_name)
    chat = ChatSession(model, processor)
    print(chat.say([{"type": "image", "image": picture}, {"type": "text", "text": question}]))
    print(chat.say("Describe it."))


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4):
        sys.exit(__doc__)
    try:
        main(*sys.argv[1:])
    except InfiniteVLError as error:
        sys.exit(f"error: {error}")
