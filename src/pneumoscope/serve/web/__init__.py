"""The web face: a page and a REST interface over one bundle.

Uploads live in memory only and are gone with the answer. They are decoded and predicted in separate, confined
processes, so that a hostile file can take down no more than the row that speaks of it.
"""
