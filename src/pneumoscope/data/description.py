"""``dataset.yaml``: name, population, hospital, label source, licence and citation of a data set.

::

    name: Kermany 2018
    population: {name: children, ages: [1, 5], views: [AP]}
    hospital: Guangzhou Women and Children's Medical Center
    label_source: graded by two physicians, checked by a third
    licence: CC BY 4.0
    citation: Kermany et al., Cell 2018

Every key may be left out; then it is not stated. ``null`` in ``ages`` means no bound.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pneumoscope.data.tables import parse_view
from pneumoscope.domain import ANY_POPULATION, DatasetDescription, Population
from pneumoscope.errors import DataError

__all__ = ["DESCRIPTION_FILE", "is_joined", "read_description", "write_description"]

DESCRIPTION_FILE = "dataset.yaml"

JOINED = "# Written by 'pneumoscope data join', which replaces it.\n"

_TEXTS = ("name", "hospital", "label_source", "licence", "citation")


def read_description(folder: Path) -> DatasetDescription | None:
    """Read ``dataset.yaml`` in a folder; None where there is none.

    Raises
    ------
    DataError
        If the file cannot be read, has an unknown key or a value of the wrong type; the line names file
        and key.
    """
    from pneumoscope.data.yaml_text import read_yaml

    path = folder / DESCRIPTION_FILE
    try:
        if not path.is_file():
            return None
        stated = read_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error
    except ValueError as error:
        raise DataError(f"{path}: not YAML in UTF-8 ({error})") from error
    facts = _mapping(path, "", {} if stated is None else stated, (*_TEXTS, "population"))
    texts = {name: _text(path, name, facts.get(name)) for name in _TEXTS}
    return DatasetDescription(population=_population(path, facts.get("population")), **texts)


def write_description(folder: Path, description: DatasetDescription, *, joined: bool = False) -> None:
    """Write ``dataset.yaml`` into a folder, which is created; what is not stated is left out.

    Parameters
    ----------
    folder : Path
        Of the data set.
    description : DatasetDescription
        What the file states.
    joined : bool
        It is that of several data sets together: a line says so, by which `is_joined` knows it.

    Raises
    ------
    DataError
        If the file cannot be written.
    """
    import yaml

    population = description.population
    group: dict[str, Any] = {} if population.name == ANY_POPULATION else {"name": population.name}
    if population.ages != (None, None):
        group["ages"] = list(population.ages)
    if population.views:
        group["views"] = list(population.views)
    facts = {name: getattr(description, name) for name in _TEXTS} | {"population": group}
    order = ("name", "population", *_TEXTS[1:])
    text = yaml.safe_dump(
        {name: facts[name] for name in order if facts[name]}, sort_keys=False, allow_unicode=True, width=100
    )
    path = folder / DESCRIPTION_FILE
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text((JOINED if joined else "") + text, encoding="utf-8")
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror}); choose another folder") from error


def is_joined(folder: Path) -> bool:
    """Return whether a folder has a ``dataset.yaml``, and it is that of joined data sets."""
    path = folder / DESCRIPTION_FILE
    return path.is_file() and path.read_text(encoding="utf-8").startswith(JOINED)


def _mapping(path: Path, key: str, value: object, known: tuple[str, ...]) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise DataError(f"{path}: {key or 'the file'} must have keys; known are {', '.join(known)}")
    for name in value:
        if name not in known:
            place = f"{key}.{name}" if key else f"{name}"
            raise DataError(f"{path}: unknown key '{place}'; known are {', '.join(known)}")
    return value


def _text(path: Path, key: str, value: object) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise DataError(f"{path}: {key} must be text; put it in quotes")
    return value.strip()


def _population(path: Path, value: object) -> Population:
    facts = _mapping(path, "population", {} if value is None else value, ("name", "ages", "views"))
    views = facts.get("views") or []
    views = [views] if isinstance(views, str) else views
    if not isinstance(views, list) or not all(parse_view(view) for view in views):
        raise DataError(f"{path}: population.views must list AP, PA or LL, as in [AP, PA]")
    return Population(
        name=_text(path, "population.name", facts.get("name")) or ANY_POPULATION,
        ages=_ages(path, facts.get("ages")),
        views=tuple(dict.fromkeys(parse_view(view) for view in views)),
    )


def _ages(path: Path, value: object) -> tuple[int | None, int | None]:
    if value is None:
        return (None, None)
    ends = value if isinstance(value, list) else []
    whole = all(end is None or (type(end) is int and end >= 0) for end in ends)
    if len(ends) != 2 or not whole or (None not in ends and ends[0] > ends[1]):
        raise DataError(
            f"{path}: population.ages must be the first and last year of age, as in [1, 5] or [18, null]"
        )
    return ends[0], ends[1]
