"""The confined process of the node: it alone parses what others sent, and makes the result objects.

It takes three kinds of jobs: ``predict`` one image, find the ``head`` of a file that came without a C-STORE,
and ``build`` the result of a study. See `respond` for what each takes and returns.
"""

from __future__ import annotations

import datetime
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pydicom

from pneumoscope.domain import Explanation, age_band
from pneumoscope.errors import PneumoscopeError, UnreadableImageError
from pneumoscope.image.dicom import read_header, transfer_syntax
from pneumoscope.image.dicom_header import CUT_OFF, DAMAGED, describe, text
from pneumoscope.image.limits import Limits
from pneumoscope.model.bundle import Bundle
from pneumoscope.predict.predictor import ExplainedPrediction, Predictor
from pneumoscope.serve.dicom.config import RuleConfig
from pneumoscope.serve.dicom.contracts import ResultOptions, SourceImage, StudyResult
from pneumoscope.serve.dicom.header import encode, required_uid
from pneumoscope.serve.dicom.inputs import input_measures
from pneumoscope.serve.dicom.logs import set_up_logs
from pneumoscope.serve.dicom.results import build_results, is_own_object
from pneumoscope.serve.dicom.routing import ImageFacts, route
from pneumoscope.serve.dicom.store import dataset_offset
from pneumoscope.serve.workers import worker
from pneumoscope.serve.workers.frames import Response
from pneumoscope.serve.workers.rows import prediction_of, prediction_row

__all__ = ["main", "respond"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Process jobs until standard input ends; see `pneumoscope.serve.workers.worker.main`."""
    set_up_logs("warning")  # libraries quote what they read, also in warnings
    return worker.main(arguments, respond)


def respond(predictor: Predictor, job: dict[str, Any], pieces: list[bytes]) -> Response:
    """Do one job.

    Parameters
    ----------
    predictor : Predictor
        Of the bundle of the node.
    job : dict
        With ``kind``: ``predict`` (``name``, ``caller``, ``rules``, ``destinations``, ``operating_point``,
        ``max_inflated``, ``sop_class``, ``sop_instance``), ``head`` (``name``, ``max_inflated``), or
        ``build`` (``study``, ``made``, ``revision``, ``options``, ``images``, ``max_inflated``).
    pieces : list of bytes
        The file; for ``build`` heat map and preview of each image.

    Returns
    -------
    Response
        For ``predict`` the ``facts`` of the header, the ``route``, and either why to ``ignore`` the image or
        its ``row``, ``size``, ``heatmap`` and ``inputs``, then heat map (PNG) and preview (JPEG). For
        ``head`` the UIDs and the ``offset`` of the dataset. For ``build`` the ``objects`` and their files.
        ``error`` where it cannot be done, in a line without an attribute of the patient.
    """
    kinds = {"predict": _predict, "head": _head, "build": _build}
    try:
        return kinds[job["kind"]](predictor, job, pieces)
    except PneumoscopeError as error:
        return {"error": str(error)}, []
    except MemoryError:
        return {"error": "it takes more memory than one image may use"}, []


def _predict(predictor: Predictor, job: dict[str, Any], pieces: list[bytes]) -> Response:
    (data,) = pieces
    facts: dict[str, Any] = {}
    try:
        header = read_header(job["name"], data, Limits(max_bytes=job["max_inflated"]))
        facts, own, why = _facts(header), is_own_object(header), _not_filed(header)
    except UnreadableImageError as error:
        # There is no study to report it in.
        return {"facts": None, "error": error.detail}, []
    except (*CUT_OFF, *DAMAGED):
        return {"facts": None, "error": "damaged DICOM header; send the image again"}, []
    where = route(
        ImageFacts(job["caller"], facts["modality"], facts["body_part"], facts["view"], facts.pop("age")),
        [RuleConfig.model_validate(rule) for rule in job["rules"]],
        job["destinations"],
    )
    head: dict[str, Any] = {
        "facts": facts,
        "route": {"destinations": where.destinations, "priority": where.priority},
    }
    if (facts["sop_class"], facts["sop_instance"]) != (job["sop_class"], job["sop_instance"]):
        return head | {"error": "the UIDs in the dataset are not those it was sent under"}, []
    if own:  # an archive may send to the node what the node sent to it
        return head | {"ignore": "a result of this program"}, []
    if not where.process:
        return head | {"ignore": f"rule {where.rule}"}, []
    if why:
        return head | {"error": why}, []
    explained, preview = worker.explain_with_preview(predictor, data, job["name"], "one image may use")
    return head | _outcome(predictor, job, explained), [_heatmap(explained.explanation), preview]


def _outcome(predictor: Predictor, job: dict[str, Any], explained: ExplainedPrediction) -> dict[str, Any]:
    prediction = worker.decided(predictor, explained.prediction, job["operating_point"])
    explanation, radiograph = explained.explanation, explained.radiograph
    return {
        "row": prediction_row(prediction),
        "size": None if radiograph is None else (radiograph.height, radiograph.width),
        "heatmap": explanation and {"finding": explanation.finding, "region": explanation.region},
        "inputs": input_measures(explained),
    }


def _facts(header: pydicom.Dataset) -> dict[str, Any]:
    """Return what is journalled of a header; nothing that names the patient."""
    described = describe(header)
    maker, model, station = (
        text(header, keyword) for keyword in ("Manufacturer", "ManufacturerModelName", "StationName")
    )
    age = described["age"]
    return {
        "study_uid": described["study_uid"],
        "sop_class": described["sop_class"],
        "sop_instance": described["sop_uid"],
        "modality": described["modality"] or "",
        "body_part": described["body_part"] or "",
        "view": str(described["view"]),
        "age": age,
        "age_band": "" if age is None else age_band(age),
        "scanner": " ".join(" ".join((maker, model, station)).split())[:128],
        "site": text(header, "InstitutionName")[:64],
    }


def _not_filed(header: pydicom.Dataset) -> str:
    """Return why no result can be filed with an image; empty where one can."""
    try:
        for keyword in ("StudyInstanceUID", "SeriesInstanceUID"):
            required_uid(header, keyword, "the image")
    except PneumoscopeError as error:
        return str(error)
    return ""


def _heatmap(explanation: Explanation | None) -> bytes:
    return worker.heatmap_png(explanation) if explanation else b""


def _head(_predictor: Predictor, job: dict[str, Any], pieces: list[bytes]) -> Response:
    (data,) = pieces
    try:
        header = read_header(job["name"], data, Limits(max_bytes=job["max_inflated"]))
        described = describe(header)
        syntax = transfer_syntax(header)
    except UnreadableImageError as error:
        return {"error": error.detail}, []
    except (*CUT_OFF, *DAMAGED):
        return {"error": "damaged DICOM header"}, []
    if not described["sop_class"] or not described["sop_uid"]:
        return {"error": "no DICOM image: it has no SOP Class and Instance UID"}, []
    return {
        "sop_class": described["sop_class"],
        "sop_instance": described["sop_uid"],
        "transfer_syntax": syntax,
        "offset": dataset_offset(data),
    }, []


def _build(predictor: Predictor, job: dict[str, Any], pieces: list[bytes]) -> Response:
    images = [
        _source(one, predictor.bundle, pieces[2 * index], pieces[2 * index + 1])
        for index, one in enumerate(job["images"])
    ]
    study = StudyResult(
        job["study"],
        tuple(images),
        predictor.bundle,
        datetime.datetime.fromisoformat(job["made"]),
        job["revision"],
    )
    made = build_results(study, ResultOptions(**job["options"]), Limits(max_bytes=job["max_inflated"]))
    objects = [
        {
            "sop_class": str(one.SOPClassUID),
            "sop_instance": str(one.SOPInstanceUID),
            "series_uid": str(one.SeriesInstanceUID),
            "study_uid": str(one.StudyInstanceUID),
        }
        for one in made
    ]
    return {"objects": objects}, [encode(one) for one in made]


def _source(one: dict[str, Any], bundle: Bundle, heatmap: bytes, preview: bytes) -> SourceImage:
    explanation = None
    if heatmap:
        levels = _grey(heatmap).astype(np.float32) / np.float32(255)
        explanation = Explanation(one["finding"], levels, tuple(one["region"]))
    return SourceImage(
        path=Path(one["path"]),
        sop_class=one["sop_class"],
        sop_instance=one["sop_instance"],
        sha256=one["sha256"],
        prediction=prediction_of(one["row"], bundle),
        explanation=explanation,
        preview=_grey(preview) if preview else None,
        height=one["height"],
        width=one["width"],
    )


def _grey(data: bytes) -> npt.NDArray[np.uint8]:
    levels: npt.NDArray[np.uint8] | None = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE)
    if levels is None:
        raise PneumoscopeError("the journal holds a damaged heat map or preview")
    return levels


if __name__ == "__main__":
    sys.exit(main())
