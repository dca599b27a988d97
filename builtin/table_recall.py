"""Recall against the length of a stream, and the norm of the delta memory: what builtin.recall measured."""

from pathlib import Path


def recall_lines(folder: Path) -> list[str]:
    """The page's part about long streams."""
    return ["## Recall against the length of a stream, and the norm of the memory", "", "not run"]


def draw_recall(folder: Path, docs: Path) -> list[Path]:
    """The figures of what was measured."""
    return []
