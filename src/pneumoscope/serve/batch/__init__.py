"""Predicting archives of any size with Ray: many workers, resumable, on one machine or a cluster.

::

    listing    INPUT → entries, one for each image
    plan       entries → manifest.parquet and run.json in OUTPUT: what the run is, fixed at its start
    scorer     one part of the manifest → rows, in a worker
    parts      rows → one Parquet file that is there as a whole or not at all
    run        Ray: which worker does which part
    reconcile  every part is read again: each entry has exactly one row
    store      files in a folder or in an object store

A part is the unit of work, of retry and of resuming. Its content depends only on the manifest and the bundle,
so it does not matter how often it is done, or by which worker.
"""

from __future__ import annotations

from pneumoscope.serve.batch.reconcile import Summary
from pneumoscope.serve.batch.run import BatchSettings, run_batch

__all__ = ["BatchSettings", "Summary", "run_batch"]
