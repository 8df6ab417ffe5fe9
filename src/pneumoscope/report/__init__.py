"""Answers made readable: tables, files and images. Sees only the words of the house."""
