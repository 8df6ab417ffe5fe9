"""The data room: from a folder of X-rays to a manifest that is safe to train on."""

from __future__ import annotations

from pneumoscope.data.manifest import Manifest, Record, load, scan
from pneumoscope.data.split import folds, split

__all__ = ["Manifest", "Record", "folds", "load", "scan", "split"]
