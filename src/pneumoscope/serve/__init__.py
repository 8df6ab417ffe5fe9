"""Interfaces through which people and other programs use a model: web page and REST over worker processes."""
