"""The confined process of the web server: predicts for the population and the prevalence of each request."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from pneumoscope.predict.predictor import Predictor
from pneumoscope.serve.workers import worker
from pneumoscope.serve.workers.frames import Job, Response

__all__ = ["WebJob", "main", "respond"]


class WebJob(Job):
    """What to do with one upload.

    Parameters
    ----------
    population : str or None
        Of the image; by its age and view if None.
    prevalence : float or None
        That the probabilities are shifted to; that of the calibration if None.
    """

    population: str | None
    prevalence: float | None


def main(arguments: Sequence[str] | None = None) -> int:
    """Process jobs until standard input ends; see `pneumoscope.serve.workers.worker.main`."""
    return worker.main(arguments, respond)


def respond(predictor: Predictor, job: WebJob, pieces: list[bytes]) -> Response:
    """Predict one upload; see `pneumoscope.serve.workers.worker.respond`.

    Parameters
    ----------
    predictor : Predictor
        Of the bundle that is served.
    job : WebJob
        What to do.
    pieces : list of bytes
        The file.
    """
    # Only the calibration differs: what one client asks for takes no memory from the images of others.
    return worker.respond(predictor.adapted(job["population"], job["prevalence"]), job, pieces[0])


if __name__ == "__main__":
    sys.exit(main())
