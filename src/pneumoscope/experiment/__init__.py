"""Experiments from end to end: the package in which training and evaluation meet."""

from pneumoscope.experiment.cross_validation import CrossValidation, cross_validate
from pneumoscope.experiment.exporting import ExportedNetwork, export_network
from pneumoscope.experiment.images import divide, prepare_manifest
from pneumoscope.experiment.plan import Experiment, Result, changed_recipe
from pneumoscope.experiment.run import run_experiment, train

__all__ = [
    "CrossValidation",
    "Experiment",
    "ExportedNetwork",
    "Result",
    "changed_recipe",
    "cross_validate",
    "divide",
    "export_network",
    "prepare_manifest",
    "run_experiment",
    "train",
]
