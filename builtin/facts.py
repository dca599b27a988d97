"""Countries and their facts, and small talk: the text that the built-in model knows."""

import json
from pathlib import Path

from builtin.concepts import plain

SMALL_TALK = [
    ["Hello", "Hello! Show me a picture, or ask me something."],
    ["Hi", "Hello! Show me a picture, or ask me something."],
    ["Hello!", "Hello! Show me a picture, or ask me something."],
    ["Good morning", "Hello! Show me a picture, or ask me something."],
    ["Who are you?", "I am the small built-in model of InfiniteVL."],
    ["What are you?", "I am the small built-in model of InfiniteVL."],
    ["What is your name?", "I am the small built-in model of InfiniteVL."],
    ["What can you do?", "I can name drawings, read signs, count, and remember a stream."],
    ["How can you help me?", "I can name drawings, read signs, count, and remember a stream."],
    ["Thank you", "You are welcome."],
    ["Thanks!", "You are welcome."],
    ["Goodbye", "Goodbye!"],
    ["Bye", "Goodbye!"],
    ["How are you?", "I am fine, thank you."],
]


def load_countries(flags: Path, facts: Path) -> tuple[list[dict[str, str]], list[str]]:
    """Countries that have a flag and a capital, with the two-letter code of each."""
    names = json.loads((flags / "countries.json").read_text())
    tables = {
        key: _table(facts, file, key)
        for key, file in (
            ("city", "capital-city"),
            ("continent", "continent"),
            ("currency_name", "currency-name"),
            ("languages", "languages"),
        )
    }
    countries, codes = [], []
    for code, name in sorted(names.items()):
        name = plain(name)
        capital = tables["city"].get(name)
        if not capital or not (flags / "svg" / f"{code.lower()}.svg").exists():
            continue
        languages = tables["languages"].get(name) or [""]
        countries.append(
            {
                "name": name,
                "capital": plain(capital),
                "continent": tables["continent"].get(name) or "",
                "currency": plain(tables["currency_name"].get(name) or ""),
                "language": plain(languages[0] if isinstance(languages, list) else languages),
            }
        )
        codes.append(code.lower())
    return countries, codes


def _table(folder: Path, file: str, key: str) -> dict:
    rows = json.loads((folder / "src" / f"country-by-{file}.json").read_text())
    return {plain(row["country"]): row.get(key) for row in rows}
