"""Markdown that cannot be broken by what stands in it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

__all__ = ["facts", "line", "table"]


def line(text: object) -> str:
    """Return text that cannot break a table or a line of Markdown."""
    return " ".join(str(text).split()).replace("|", "\\|")


def facts(pairs: Iterable[tuple[str, Any]]) -> str:
    """Return a list of names and facts, without those that are None or empty."""
    return "\n".join(f"- {name}: {line(fact)}" for name, fact in pairs if fact is not None and fact != "")


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table; each row has as many cells as the head."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line(cell) for cell in row) + " |" for row in lines)
