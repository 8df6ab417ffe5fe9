"""Using a model: from files to predictions and to where in the picture they come from."""
