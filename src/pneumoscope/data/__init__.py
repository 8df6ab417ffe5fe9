"""From a folder of X-rays to a manifest that is safe to train on: labels, patients, audit and split."""

from __future__ import annotations

from pneumoscope.data.folder import load, scan
from pneumoscope.data.manifest import Manifest, Record
from pneumoscope.data.split import folds, split

__all__ = ["Manifest", "Record", "folds", "load", "scan", "split"]
