"""What the exit codes of every command mean."""

from __future__ import annotations

__all__ = ["DONE", "INTERRUPTED", "NOTHING_DONE", "SOME_LEFT_OUT", "WRONG_USE", "exit_code"]

DONE = 0
WRONG_USE = 2
SOME_LEFT_OUT = 3
NOTHING_DONE = 4
INTERRUPTED = 130


def exit_code(*, done: int, left_out: int) -> int:
    """Return the code for a batch of which some inputs were done and some rejected or unreadable."""
    if done == 0:
        return NOTHING_DONE
    return SOME_LEFT_OUT if left_out else DONE
