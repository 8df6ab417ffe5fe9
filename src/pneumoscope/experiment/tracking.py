"""A run in an experiment tracker: its recipe, its curves, its report and its bundle, in MLflow.

What is tracked is in the run folder already, so that a tracker which cannot be reached costs a warning and
not the training: what it missed is sent once it can be reached again.
"""

from __future__ import annotations

import csv
import json
import logging
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pneumoscope
from pneumoscope.data.drafts import replacing
from pneumoscope.errors import DataError, PneumoscopeError, require_extra
from pneumoscope.experiment.plan import RECIPE_FILE, Experiment, Result
from pneumoscope.model.bundle import BUNDLE_FOLDER
from pneumoscope.training.history import HISTORY_FILE, Epoch

__all__ = ["Tracker", "open_tracker", "tracked"]

log = logging.getLogger(__name__)

TRACKING_FILE = "tracking.json"
DEFAULT_STORE = "mlruns"
EXPERIMENT = "pneumoscope"
SECONDS_BETWEEN_TRIES = 60.0
PARAMETERS_A_CALL = 100  # the limit of MLflow's interface
LONGEST_VALUE = 6000  # likewise
# Without split and left-out images: they name patients.
ARTIFACTS = (
    RECIPE_FILE,
    HISTORY_FILE,
    "environment.json",
    "metrics.json",
    "report.html",
    "plot.jpg",
    "confusion_matrix.png",
)
CURVES = ("lr", "train_loss", "val_loss", "val_auroc", "val_accuracy", "seconds")


class Tracker:
    """Follows a run; this base class tracks nothing."""

    def begin(self, experiment: Experiment) -> None:
        """Log the recipe; called once the run folder is there."""

    def epoch(self, row: Epoch) -> None:
        """Log the curves, after an epoch that is in the history."""

    def finish(self, result: Result) -> None:
        """Log results, report and bundle."""

    def stop(self, status: str) -> None:
        """End a run that did not finish, ``FAILED`` or ``KILLED``."""


def open_tracker(track: str | None) -> Tracker:
    """Return the tracker that an option names, and check that it can be reached.

    Parameters
    ----------
    track : str or None
        ``mlflow`` for the store that ``MLFLOW_TRACKING_URI`` names, or the folder ``mlruns`` otherwise;
        ``mlflow:URI`` for a server, or a folder; None for no tracking.

    Raises
    ------
    DataError
        If it is neither, or cannot be reached.
    MissingExtraError
        If the MLflow client is not installed.
    """
    if track is None:
        return Tracker()
    name, _, uri = track.partition(":")
    if name != "mlflow":
        raise DataError(f"--track {track}: write mlflow, mlflow:FOLDER or mlflow:http://HOST:PORT")
    return _MlflowTracker(uri or os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_STORE)


@contextmanager
def tracked(tracker: Tracker, experiment: Experiment) -> Iterator[Tracker]:
    """Begin tracking, and end it where the run fails."""
    tracker.begin(experiment)
    try:
        yield tracker
    except KeyboardInterrupt:
        tracker.stop("KILLED")
        raise
    except BaseException:
        tracker.stop("FAILED")
        raise


class _MlflowTracker(Tracker):
    def __init__(self, uri: str) -> None:
        if urlsplit(uri).password:
            raise DataError(
                "--track: the address holds a password, which would be kept in the run folder; set "
                "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD in its place"
            )
        if "://" not in uri and uri != "databricks":
            uri = Path(uri.removeprefix("file:")).resolve().as_uri()
        self.uri = uri
        _settings()
        with require_extra("track", "Tracking with MLflow"):
            from mlflow.exceptions import MlflowException
            from mlflow.tracking import MlflowClient
        # Network and disk; requests' own errors are OSErrors.
        self._faults = (MlflowException, OSError)
        try:
            self._client: Any = MlflowClient(tracking_uri=uri)
            name = os.environ.get("MLFLOW_EXPERIMENT_NAME", EXPERIMENT)
            found = self._client.get_experiment_by_name(name)
            self._experiment = found.experiment_id if found else self._client.create_experiment(name)
        except ModuleNotFoundError as error:  # stores in SQL need all of MLflow
            raise PneumoscopeError(
                f"--track mlflow:{uri}: needs {error.name}; name a folder or a server, or install mlflow"
            ) from error
        except self._faults as error:
            raise DataError(f"--track mlflow:{uri}: cannot be used ({_first_line(error)})") from error
        self._run = ""
        self._begun: Experiment | None = None
        self._sent = 0
        self._folder = Path()
        self._not_before = 0.0
        self._told = False

    def begin(self, experiment: Experiment) -> None:
        self._folder, self._begun = experiment.out, experiment
        self._guarded(self._begin, always=True)

    def epoch(self, row: Epoch) -> None:
        self._guarded(lambda: self._send_history(row.epoch))

    def finish(self, result: Result) -> None:
        self._guarded(lambda: self._finish(result), always=True)

    def stop(self, status: str) -> None:
        if self._run:
            self._guarded(lambda: self._client.set_terminated(self._run, status), always=True)

    def _guarded(self, work: Callable[[], object], *, always: bool = False) -> None:
        """Do what needs the tracker; where that fails, warn once and go on, and try again a minute later."""
        if time.monotonic() < self._not_before and not always:
            return
        try:
            work()
        except self._faults as error:
            self._not_before = time.monotonic() + SECONDS_BETWEEN_TRIES
            if not self._told:
                log.warning(
                    "%s: tracking failed (%s); the run goes on, and everything is in %s",
                    self.uri,
                    _first_line(error),
                    self._folder,
                )
            self._told = True
        else:
            self._told = False

    def _begin(self) -> None:
        experiment = self._begun
        assert experiment is not None
        recipe = experiment.recipe
        self._take_up()
        if not self._run:
            tags = {"pneumoscope.version": pneumoscope.__version__, "pneumoscope.recipe": recipe.sha256}
            run = self._client.create_run(self._experiment, run_name=experiment.out.resolve().name, tags=tags)
            self._run, self._sent = run.info.run_id, 0
            self._keep()
        self._log_parameters(recipe.values() | {"data": str(experiment.data)})

    def _take_up(self) -> None:
        """Continue the tracked run of a resumed one, if it is still there."""
        path = self._folder / TRACKING_FILE
        if not path.exists():
            return
        try:
            kept = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:  # of a process that was killed: the history is sent again, to a new run
            return
        if kept["uri"] != self.uri:
            return
        try:
            self._client.update_run(kept["run"], status="RUNNING")
        except self._faults as error:
            if getattr(error, "error_code", "") != "RESOURCE_DOES_NOT_EXIST":
                raise
            return
        self._run, self._sent = kept["run"], int(kept["epoch"])

    def _keep(self) -> None:
        content = {"uri": self.uri, "run": self._run, "epoch": self._sent}
        with replacing(self._folder / TRACKING_FILE) as file:
            file.write(json.dumps(content, indent=2) + "\n")

    def _log_parameters(self, values: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        rows = [
            Param(re.sub(r"[^\w\-. :/]", "_", key), str(value)[:LONGEST_VALUE])
            for key, value in values.items()
        ]
        for start in range(0, len(rows), PARAMETERS_A_CALL):
            self._client.log_batch(self._run, params=rows[start : start + PARAMETERS_A_CALL])

    def _send_history(self, until: int) -> None:
        """Log the epochs that were not sent yet, also those of a time when the tracker was away."""
        from mlflow.entities import Metric

        if not self._run:
            self._begin()
        with (self._folder / HISTORY_FILE).open(newline="", encoding="utf-8") as file:
            rows = [row for row in csv.DictReader(file) if self._sent < int(row["epoch"]) <= until]
        now = int(time.time() * 1000)
        for row in rows:
            metrics = [Metric(name, float(row[name]), now, int(row["epoch"])) for name in CURVES]
            self._client.log_batch(self._run, metrics=metrics)
            self._sent = int(row["epoch"])
            self._keep()

    def _finish(self, result: Result) -> None:
        from mlflow.entities import Metric

        assert self._begun is not None
        self._send_history(self._begun.recipe.epochs)
        metrics = result.evaluation.metrics
        estimates = {
            "test_auroc": metrics.detection.auroc,
            "test_accuracy": metrics.detection.accuracy,
            "test_accuracy_all_classes": metrics.all_classes.accuracy,
        }
        now = int(time.time() * 1000)
        values = [
            Metric(f"{name}{suffix}", float(value), now, 0)
            for name, one in estimates.items()
            for suffix, value in (("", one.value), ("_low", one.low), ("_high", one.high))
            if value is not None
        ]
        self._client.log_batch(self._run, metrics=values)
        for name in ARTIFACTS:
            if (self._folder / name).is_file():
                self._client.log_artifact(self._run, str(self._folder / name))
        self._client.log_artifacts(self._run, str(self._folder / BUNDLE_FOLDER), BUNDLE_FOLDER)
        self._client.set_tag(self._run, "pneumoscope.bundle", result.bundle.identity)
        self._client.set_terminated(self._run, "FINISHED")


def _settings() -> None:
    """Set what MLflow reads from the environment, where the user has not; before it is imported."""
    for name, value in (
        ("MLFLOW_DISABLE_TELEMETRY", "true"),
        ("DO_NOT_TRACK", "true"),
        # Its client alone has no store but a folder, which MLflow 3 wants to be asked for.
        ("MLFLOW_ALLOW_FILE_STORE", "true"),
        # By default a server that went away costs minutes an epoch.
        ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1"),
        ("MLFLOW_HTTP_REQUEST_TIMEOUT", "10"),
    ):
        os.environ.setdefault(name, value)
    # It reports every retry; the one line for the fault is enough.
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)


def _first_line(error: BaseException) -> str:
    """Return the first line of an error, without what a proxy or a server adds after it."""
    if "Max retries exceeded" in str(error):
        return "the server cannot be reached"
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
