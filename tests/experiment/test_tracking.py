from __future__ import annotations

import json
import logging
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("mlflow", reason="needs the extra [track]")

from pneumoscope.data.phantom import write_phantoms
from pneumoscope.domain import Estimate
from pneumoscope.errors import DataError
from pneumoscope.experiment import Experiment, run_experiment, tracking
from pneumoscope.experiment.tracking import open_tracker, tracked
from pneumoscope.training.history import Epoch, append_epoch
from pneumoscope.training.recipe import Recipe

RECIPE = Recipe.model_validate(
    {
        "name": "tiny",
        "description": "For tests.",
        "classes": ["normal", "bacterial", "viral"],
        "input": {"size": 32},
        "network": {"name": "custom-cnn", "channels": 1, "options": {"widths": [4]}},
        "phases": [{"epochs": 3, "lr": 0.01}],
        "batch": 8,
        "split": {"fractions": [0.6, 0.2, 0.2]},
    }
)


@pytest.fixture(autouse=True)
def _no_settings_of_the_user(monkeypatch):
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)


def test_a_run_is_in_the_local_store_and_a_resumed_one_goes_on_there(tmp_path, monkeypatch):
    from mlflow.tracking import MlflowClient

    monkeypatch.chdir(tmp_path)
    write_phantoms(tmp_path / "data", n=45, size=64, seed=3)
    experiment = Experiment(RECIPE, tmp_path / "data", tmp_path / "run", track="mlflow")
    result = run_experiment(experiment)
    client = MlflowClient(tracking_uri=(tmp_path / "mlruns").as_uri())
    kept = json.loads((tmp_path / "run" / "tracking.json").read_text())
    found = client.get_run(kept["run"])
    assert found.info.status == "FINISHED"
    assert found.data.params["phases.0.lr"] == "0.01"
    assert found.data.metrics["test_auroc"] == result.evaluation.metrics.detection.auroc.value
    assert [one.step for one in client.get_metric_history(kept["run"], "val_loss")] == [1, 2, 3]
    artifacts = {one.path for one in client.list_artifacts(kept["run"])}
    assert {"bundle", "recipe.yaml", "report.html", "history.csv", "plot.jpg"} <= artifacts
    assert not {"split.csv", "left-out.csv"} & artifacts  # they name patients
    assert {one.path for one in client.list_artifacts(kept["run"], "bundle")} >= {"bundle/model.onnx"}
    with tracked(open_tracker("mlflow"), experiment) as tracker:
        tracker.finish(result)
    assert json.loads((tmp_path / "run" / "tracking.json").read_text()) == kept
    assert [one.step for one in client.get_metric_history(kept["run"], "val_loss")] == [1, 2, 3]


class Server:
    """As much of a tracking server as a run needs; what it was told is in `calls`."""

    def __init__(self, port=0):
        calls = self.calls = []

        class Handler(BaseHTTPRequestHandler):
            def _reply(self):
                length = int(self.headers.get("Content-Length") or 0)
                name = self.path.split("?")[0].rpartition("/mlflow/")[2]
                body = self.rfile.read(length)
                if name.startswith(("experiments", "runs")):
                    calls.append((name, json.loads(body or b"{}")))
                else:
                    calls.append(("file", self.path))
                info = {"run_id": "r1", "experiment_id": "1", "status": "RUNNING", "start_time": 0}
                run = {"info": info | {"artifact_uri": "mlflow-artifacts:/1/r1"}, "data": {}}
                replies = {
                    "experiments/get-by-name": {"experiment": {"experiment_id": "1", "name": "pneumoscope"}},
                    "runs/create": {"run": run},
                    "runs/get": {"run": run},
                    "runs/update": {"run_info": info},
                }
                content = json.dumps(replies.get(name, {})).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST = do_PUT = do_PATCH = _reply

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.port = self.server.server_port
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    def stop(self):
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def epochs(self):
        steps = (one["metrics"] for name, one in self.calls if name == "runs/log-batch" and "metrics" in one)
        return [metrics[0]["step"] for metrics in steps if metrics and metrics[0]["key"] == "lr"]


def a_result():
    estimate = Estimate(0.9, 0.8, 0.95)
    metrics = SimpleNamespace(
        detection=SimpleNamespace(auroc=estimate, accuracy=estimate),
        all_classes=SimpleNamespace(accuracy=estimate),
    )
    return SimpleNamespace(
        evaluation=SimpleNamespace(metrics=metrics), bundle=SimpleNamespace(identity="tiny@0")
    )


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "run"
    (folder / "bundle").mkdir(parents=True)
    (folder / "bundle" / "model.onnx").write_bytes(b"network")
    (folder / "recipe.yaml").write_text(RECIPE.to_yaml())
    return Experiment(RECIPE, Path("data"), folder)


def after(run, epoch):
    row = Epoch(epoch, 1, 0.01, 1.0, 0.9, 0.8, 0.7, 1.0)
    append_epoch(run.out, row)
    return row


def test_a_server_that_goes_away_costs_one_warning_and_gets_what_it_missed(run, caplog, monkeypatch):
    monkeypatch.setattr(tracking, "SECONDS_BETWEEN_TRIES", 0.0)
    server = Server()
    with (
        caplog.at_level(logging.WARNING),
        tracked(open_tracker(f"mlflow:http://127.0.0.1:{server.port}"), run) as tracker,
    ):
        tracker.epoch(after(run, 1))
        assert server.epochs() == [1]
        server.stop()
        tracker.epoch(after(run, 2))
        tracker.epoch(after(run, 3))
        (record,) = caplog.records
        assert "tracking failed (the server cannot be reached); the run goes on" in record.getMessage()
        again = Server(server.port)
        try:
            tracker.finish(a_result())
        finally:
            again.stop()
    assert again.epochs() == [2, 3]
    files = [path for name, path in again.calls if name == "file"]
    assert any(path.endswith("/bundle/model.onnx") for path in files)
    assert ("runs/update", "FINISHED") in [
        (name, one.get("status")) for name, one in again.calls if name != "file"
    ]
    assert len(caplog.records) == 1


def test_a_server_that_is_gone_for_good_does_not_end_the_run(run, caplog):
    server = Server()
    with tracked(open_tracker(f"mlflow:http://127.0.0.1:{server.port}"), run) as tracker:
        server.stop()
        tracker.epoch(after(run, 1))
        tracker.finish(a_result())
    assert len(caplog.records) == 1


def test_a_damaged_note_of_the_tracked_run_does_not_end_the_training(run):
    """As a process leaves it that was killed while it wrote; the history then goes to a new tracked run."""
    after(run, 1)
    (run.out / "tracking.json").write_text('{"uri": "http')
    server = Server()
    try:
        with tracked(open_tracker(f"mlflow:http://127.0.0.1:{server.port}"), run) as tracker:
            tracker.epoch(after(run, 2))
    finally:
        server.stop()
    assert server.epochs() == [1, 2]
    assert json.loads((run.out / "tracking.json").read_text())["epoch"] == 2


@pytest.mark.parametrize(("error", "status"), [(ValueError, "FAILED"), (KeyboardInterrupt, "KILLED")])
def test_a_run_that_fails_is_marked(run, error, status):
    server = Server()
    try:
        with pytest.raises(error), tracked(open_tracker(f"mlflow:http://127.0.0.1:{server.port}"), run):
            raise error
    finally:
        server.stop()
    assert ("runs/update", status) in [(name, one.get("status")) for name, one in server.calls]


@pytest.mark.parametrize(
    ("track", "message"),
    [
        ("wandb", "write mlflow, mlflow:FOLDER or"),
        ("mlflow:http://me:secret@127.0.0.1:9", "set MLFLOW_TRACKING_USERNAME"),
        ("mlflow:http://127.0.0.1:9", "cannot be used (the server cannot be reached)"),
        ("mlflow:ftp://127.0.0.1", "cannot be used"),
    ],
)
def test_what_cannot_be_tracked_is_one_line_before_any_epoch(tmp_path, track, message):
    with pytest.raises(DataError) as caught:
        run_experiment(Experiment(RECIPE, tmp_path / "nowhere", tmp_path / "run", track=track))
    assert message in str(caught.value)
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()
