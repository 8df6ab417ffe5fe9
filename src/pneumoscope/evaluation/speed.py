"""How fast a bundle answers on this machine: what stands on its card."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

from pneumoscope.model.bundle import Bundle
from pneumoscope.parallel import available_cpus
from pneumoscope.predict.predictor import Predictor

__all__ = ["measure_speed"]

IMAGES = 256
ONE_BY_ONE = 20


def measure_speed(bundle: Bundle, paths: Sequence[Path]) -> dict[str, str]:
    """Time `predict` from files to answers, after a first pass that fills the caches.

    Parameters
    ----------
    bundle : Bundle
    paths : sequence of Path
        Images; the first 256 are taken.

    Returns
    -------
    dict of str to str
        What was measured, in words: images a second, milliseconds of one image, on what.
    """
    taken = list(paths[:IMAGES])
    predictor, single = Predictor.load(bundle.path), Predictor.load(bundle.path, workers=1)
    predictor.predict(taken)
    began = time.perf_counter()
    predictor.predict(taken)
    rate = len(taken) / (time.perf_counter() - began)
    times = []
    for path in taken[:ONE_BY_ONE]:
        began = time.perf_counter()
        single.predict([path])
        times.append(time.perf_counter() - began)
    size = statistics.median(path.stat().st_size for path in taken) / 1024
    return {
        "Images a second, from file to answer": f"{rate:.0f}",
        "One image alone": f"{1e3 * statistics.median(times):.1f} ms",
        "Measured on": f"{len(taken)} files of {size:.0f} KiB (median), {available_cpus()} processor cores, "
        f"{platform.machine()}",
    }
