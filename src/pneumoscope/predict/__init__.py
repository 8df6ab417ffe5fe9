"""Using a model: from files to predictions and to where in the image they come from."""
