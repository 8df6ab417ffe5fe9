"""The faces: ways in which other programs and people use a model. They do not know each other."""
