"""File names of the paediatric set of Kermany et al. (Cell 2018), which carry label and patient.

=================================  =========  ==================  ===========
name                               label      patient             series
=================================  =========  ==================  ===========
``person1234_bacteria_1.jpeg``     bacterial  ``person1234``      ``person``
``person12_virus_34.jpeg``         viral      ``person12``        ``person``
``IM-0115-0001.jpeg``              normal     ``IM-0115``         ``IM``
``IM-0527-0001-0002.jpeg``         normal     ``IM-0527``         ``IM``
``NORMAL2-IM-0383-0001.jpeg``      normal     ``NORMAL2-IM-0383`` ``NORMAL2``
=================================  =========  ==================  ===========
"""

from __future__ import annotations

import re
from pathlib import PurePath

__all__ = ["parse_name"]

_PNEUMONIA = re.compile(r"(?P<patient>person\d+)_(?P<cause>bacteria|virus)_\d+(?:_\d+)*", re.ASCII)
_NORMAL = re.compile(r"(?P<patient>(?P<prefix>NORMAL2-)?IM-\d+)-\d+(?:-\d+)*", re.ASCII)
_LABEL = {"bacteria": "bacterial", "virus": "viral"}


def parse_name(name: str) -> tuple[str, str, str] | None:
    """Read label, patient and series from a file name of the Kermany set.

    Parameters
    ----------
    name : str
        File name, or a path that ends in it. A folder ``test`` in the path marks the official test
        folder: its pneumonia patients are numbered anew from 1, so they get the prefix ``test-``.
        The numbers of the normal children run on from one folder to the other and stay as they are.

    Returns
    -------
    tuple of str or None
        Label (``normal``, ``bacterial`` or ``viral``), patient and series (``IM``, ``NORMAL2`` or
        ``person``); None where the name is not of this set.
    """
    path = PurePath(name)
    if match := _PNEUMONIA.fullmatch(path.stem):
        official_test = "test" in (part.lower() for part in path.parts[:-1])
        patient = f"test-{match['patient']}" if official_test else match["patient"]
        return _LABEL[match["cause"]], patient, "person"
    if match := _NORMAL.fullmatch(path.stem):
        return "normal", match["patient"], "NORMAL2" if match["prefix"] else "IM"
    return None
