"""The confined process of the web server: predicts for the population and the prevalence of each request."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from pneumoscope.model.bundle import Bundle
from pneumoscope.predict.predictor import Predictor
from pneumoscope.serve.workers import worker
from pneumoscope.serve.workers.frames import Job, Response

__all__ = ["Responder", "WebJob", "main"]

KEPT = 4  # predictors; each takes a fifth of a second to load, and 30 MB of what one image may use


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
    return worker.main(arguments, Responder())


class Responder:
    """Responds to jobs; keeps the last few predictors that they needed."""

    def __init__(self) -> None:
        self._kept: dict[tuple[str | None, float | None], Predictor] = {}

    def __call__(self, predictor: Predictor, job: WebJob, pieces: list[bytes]) -> Response:
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
        if (job["population"], job["prevalence"]) != (None, None):
            predictor = self._predictor(predictor.bundle, job["population"], job["prevalence"])
        return worker.respond(predictor, job, pieces[0])

    def _predictor(self, bundle: Bundle, population: str | None, prevalence: float | None) -> Predictor:
        key = (population, prevalence)
        if key not in self._kept:
            if len(self._kept) == KEPT:
                del self._kept[next(iter(self._kept))]  # the oldest
            self._kept[key] = Predictor(bundle, population=population, prevalence=prevalence, workers=1)
        return self._kept[key]


if __name__ == "__main__":
    sys.exit(main())
