"""Which patients and views a set of images shows, and which of them a bundle was validated on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from pneumoscope.data.manifest import Manifest, Record
from pneumoscope.domain import ANY_POPULATION, DatasetDescription, Population
from pneumoscope.model.results import Results

__all__ = ["measured_population", "validated_populations"]


def measured_population(manifest: Manifest, records: Sequence[Record], name: str) -> Population | None:
    """Return the population of images that were measured, as far as it is known.

    Ages and views are those of the data set's description; where it states none, those of the records, if
    each record states its own.

    Parameters
    ----------
    manifest : Manifest
        The data set.
    records : sequence of Record
        Its images that were measured.
    name : str
        What to call the population where the description has no name for it.

    Returns
    -------
    Population or None
        None where neither ages, views nor hospital are known.
    """
    description = manifest.description or DatasetDescription()
    stated = description.population
    ages = stated.ages if _is_bounded(stated.ages) else _ages(records)
    views = stated.views or _views(records)
    hospital = stated.hospital or description.hospital
    if not (_is_bounded(ages) or views or hospital):
        return None
    return replace(
        stated,
        name=name if stated.name == ANY_POPULATION else stated.name,
        ages=ages,
        views=views,
        hospital=hospital,
        patients=len({record.patient_id for record in records}),
        images=len(records),
    )


def validated_populations(results: Results) -> tuple[Population, ...]:
    """Return the populations that results of a bundle are evidence for.

    Those of its own evaluation and of its recalibration, where their ages are known; without ages nothing is
    claimed. External validations do not count: nothing was chosen by them.
    """
    measured = (results.recalibration, results.evaluation)
    populations = [one.population for one in measured if one is not None and one.population is not None]
    return tuple(dict.fromkeys(one for one in populations if _is_bounded(one.ages)))


def _is_bounded(ages: tuple[int | None, int | None]) -> bool:
    return ages != (None, None)


def _ages(records: Sequence[Record]) -> tuple[int | None, int | None]:
    ages = [record.age for record in records if record.age is not None]
    if not records or len(ages) < len(records):
        return None, None
    return math.floor(min(ages)), math.floor(max(ages))


def _views(records: Sequence[Record]) -> tuple[str, ...]:
    views = {record.view for record in records}
    return () if "" in views else tuple(sorted(views))
