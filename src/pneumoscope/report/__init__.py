"""Predictions as text, tables, images and HTML. Uses only `pneumoscope.domain` and `pneumoscope.errors`."""
