"""From a recipe and a manifest to a bundle: torch lives in this room and nowhere else."""
