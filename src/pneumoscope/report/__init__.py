"""Answers made readable: tables, files and pictures. Sees only the words of the house."""
