"""A worker of a run: it holds the bundle's runtime, and turns parts of the manifest into rows."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import platform
import tempfile
import time
import uuid
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from pyarrow import parquet

from pneumoscope.domain import Prediction
from pneumoscope.errors import DataError, Reason, UnreadableImageError
from pneumoscope.image.decode import DEFAULT_LIMITS, read_file
from pneumoscope.image.limits import check_bytes
from pneumoscope.model.runtime import Device
from pneumoscope.parallel import CHUNK, in_order
from pneumoscope.predict.inputs import InputItem
from pneumoscope.predict.predictor import Predictor
from pneumoscope.serve.batch.listing import Entry
from pneumoscope.serve.batch.parts import commit, is_committed
from pneumoscope.serve.batch.plan import MANIFEST, Plan, fetch_bundle, read_entries
from pneumoscope.serve.batch.store import Store, filesystem, first_line, is_uri, open_store, split_uri
from pneumoscope.serve.workers.rows import stopped

__all__ = ["ATTEMPTS", "Scorer"]

ATTEMPTS = "attempts"
"""Folder in OUTPUT where workers note the parts that they begin, with host and process."""

FETCH_THREADS = 4  # for each thread that predicts, where images come over a network
FETCH_TRIES = 4
FETCH_PAUSE = 0.5  # seconds, doubled each time
CAREFUL_FROM = 2  # workers that died over a part before its images are read in a process of their own

Fetched = tuple[InputItem, str | None]
"""An image's content, or why there is none, and its sha256."""


class Scorer:
    """Predicts parts; one in each worker process, called with one part at a time.

    Parameters
    ----------
    output : str
        Location of OUTPUT, as the driver got it.
    plan : Plan
        Of the run.
    session : str
        Differs in each start of the command.
    threads : int
        That decode and predict.
    device : {"cpu", "cuda"}
        Where the network runs.

    Raises
    ------
    DataError
        If OUTPUT cannot be read here.
    BundleError
        If the bundle cannot be run here.
    """

    def __init__(self, output: str, plan: Plan, session: str, *, threads: int, device: Device) -> None:
        cv2.setNumThreads(1)  # the images themselves are processed in parallel
        self._store: Store = open_store(output)
        self._plan, self._session, self._threads, self._device = plan, session, threads, device
        with tempfile.TemporaryDirectory(prefix="pneumoscope-") as folder:
            self._bundle = fetch_bundle(self._store, Path(folder))
            self._predictor = self._load()
        self._manifest = parquet.ParquetFile(self._store.open(MANIFEST))

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Predict the parts of a batch and write them.

        Parameters
        ----------
        batch : dict
            ``part``: numbers of parts.

        Returns
        -------
        dict
            For each part: ``part``, ``images`` and ``seconds``.
        """
        done: dict[str, list[Any]] = {"part": [], "images": [], "seconds": []}
        for part in map(int, batch["part"]):
            began = time.monotonic()
            self.score(part)
            done["part"].append(part)
            done["images"].append(self._plan.size(part))
            done["seconds"].append(time.monotonic() - began)
        return {name: np.asarray(values) for name, values in done.items()}

    def score(self, part: int) -> None:
        """Predict one part and commit it; nothing is done where it is there already."""
        if is_committed(self._store, self._plan, part):  # by a worker that died before it could say so
            return
        before = self._attempts(part)
        note = json.dumps({"host": platform.node(), "pid": os.getpid()}).encode()
        self._store.put(f"{ATTEMPTS}/{self._session}-{part}/{uuid.uuid4().hex}", note)
        entries = read_entries(self._manifest, part)
        # A worker that died may have died of an image.
        predict = self._predict if len(before) < CAREFUL_FROM else self._predict_apart
        commit(self._store, self._plan, part, predict(entries), self._bundle.manifest)
        for name in self._attempts(part):
            self._store.remove(f"{ATTEMPTS}/{self._session}-{part}/{name}")

    def _attempts(self, part: int) -> list[str]:
        return self._store.names(f"{ATTEMPTS}/{self._session}-{part}")

    def _load(self) -> Predictor:
        plan = self._plan
        return Predictor(
            self._bundle,
            plan.operating_point,
            population=plan.population,
            workers=self._threads,
            force=plan.force,
            device=self._device,
        )

    def _predict(self, entries: Sequence[Entry]) -> list[tuple[Prediction, str | None]]:
        """Fetch and predict; images are fetched ahead by a few threads, and few are held at a time."""
        digests: list[str | None] = []

        def items() -> Any:
            remote = any(is_uri(entry.path) for entry in entries)
            fetching = self._threads * (FETCH_THREADS if remote else 1)
            for item, digest in in_order(entries, self._fetch, workers=fetching, chunk=1):
                digests.append(digest)
                yield item

        return list(zip(self._predictor.predict_iter(items()), digests, strict=True))

    def _predict_apart(self, entries: Sequence[Entry]) -> list[tuple[Prediction, str | None]]:
        """Predict in a second process, which may die; an image that it dies of becomes a row."""
        done: list[tuple[Prediction, str | None]] = []
        with _Apart(self) as apart:
            for start in range(0, len(entries), CHUNK):  # as `in_order` cuts them, for the same results
                chunk = entries[start : start + CHUNK]
                rows = apart.predict(chunk)
                if rows is None:
                    rows = [row for one in chunk for row in apart.predict([one]) or [self._stopped(one)]]
                done += rows
        return done

    def _stopped(self, entry: Entry) -> tuple[Prediction, str | None]:
        [(item, digest)] = self._fetch([entry])
        message = "the process that read this file was stopped by it; export it again"
        return stopped(item.label, self._bundle, message), digest

    def _fetch(self, entries: Sequence[Entry]) -> list[Fetched]:
        return [self._fetched(entry) for entry in entries]

    def _fetched(self, entry: Entry) -> Fetched:
        """Return the content of an image, or why there is none."""
        try:
            if entry.reason:
                raise UnreadableImageError(entry.path, Reason(entry.reason), entry.detail)
            content = self._download(entry.path) if is_uri(entry.path) else read_file(entry.path)
        except UnreadableImageError as error:
            return InputItem(error, None, entry.age, entry.view), None
        return InputItem(content, entry.path, entry.age, entry.view), hashlib.sha256(content).hexdigest()

    def _download(self, path: str) -> bytes:
        uri = split_uri(path, options=False)
        files = filesystem(uri.scheme, uri.bucket, self._plan.input_options)
        for attempt in range(FETCH_TRIES):
            try:
                with files.open_input_file(uri.path) as file:
                    check_bytes(path, file.size(), DEFAULT_LIMITS)
                    return bytes(file.read())
            except FileNotFoundError as error:
                detail = "there is no such object; check bucket and key"
                raise UnreadableImageError(path, Reason.NOT_FOUND, detail) from error
            except PermissionError as error:
                detail = "no permission to read the object; check the credentials"
                raise UnreadableImageError(path, Reason.NO_PERMISSION, detail) from error
            except OSError as error:
                last = error
            if attempt + 1 < FETCH_TRIES:
                time.sleep(FETCH_PAUSE * 2**attempt)
        # One object that cannot be read is a row; a store that cannot be reached must end the run.
        try:
            files.get_file_info(uri.bucket)
        except OSError as error:
            raise DataError(
                f"{uri.scheme}://{uri.bucket}: cannot be reached; start the command again later"
            ) from error
        detail = f"the object cannot be read ({first_line(last)}); check the store"
        raise UnreadableImageError(path, Reason.NOT_FOUND, detail) from last


class _Apart:
    """A process that predicts for a `Scorer`, replaced when it dies."""

    def __init__(self, scorer: Scorer) -> None:
        plan, output = scorer._plan, scorer._store.location
        self._arguments = (output, plan, scorer._session, scorer._device)
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> _Apart:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def predict(self, entries: Sequence[Entry]) -> list[tuple[Prediction, str | None]] | None:
        """Return the rows; None where the process died."""
        if self._pool is None:
            spawn = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(1, spawn, initializer=_begin_apart, initargs=self._arguments)
        try:
            return self._pool.submit(_predict_apart, entries).result()
        except BrokenProcessPool:
            self._end()
            return None

    def _end(self) -> None:
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None


_apart: list[Scorer] = []


def _begin_apart(output: str, plan: Plan, session: str, device: Device) -> None:
    _apart.append(Scorer(output, plan, session, threads=1, device=device))


def _predict_apart(entries: Sequence[Entry]) -> list[tuple[Prediction, str | None]]:
    return _apart[0]._predict(entries)
