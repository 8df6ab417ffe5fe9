"""``python -m pneumoscope`` is the command line."""

from __future__ import annotations

from pneumoscope.cli import main

if __name__ == "__main__":
    main()
