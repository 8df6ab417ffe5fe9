"""The bundle and the runtime that executes it."""
