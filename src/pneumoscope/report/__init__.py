"""Predictions as text, tables, images and HTML, for people and for other programs."""
