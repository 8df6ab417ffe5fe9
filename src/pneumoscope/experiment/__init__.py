"""Experiments from end to end. Training and evaluating do not know each other; this room is where they meet."""

from pneumoscope.experiment.cross_validation import CrossValidation, cross_validate
from pneumoscope.experiment.images import divide, prepare_manifest
from pneumoscope.experiment.plan import Experiment, Progress, Result, with_split
from pneumoscope.experiment.run import export_run_to_keras, run_experiment

__all__ = [
    "CrossValidation",
    "Experiment",
    "Progress",
    "Result",
    "cross_validate",
    "divide",
    "export_run_to_keras",
    "prepare_manifest",
    "run_experiment",
    "with_split",
]
