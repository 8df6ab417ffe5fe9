"""Labels: how folders, file names and tables write them, and which class of a network they mean."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Collection, Iterable
from pathlib import PurePath

from pneumoscope.domain import Target
from pneumoscope.errors import DataError

__all__ = [
    "KNOWN_CLASSES",
    "PNEUMONIA_SUBTYPES",
    "check_labels",
    "class_index",
    "class_name",
    "classes_with_target",
    "parse_kermany_name",
    "possible_classes",
]

PNEUMONIA_SUBTYPES = ("bacterial", "viral")
"""Labels that count as ``pneumonia`` where the classes have only that."""

_SPELLINGS = {
    spelling: name
    for name, spellings in {
        "normal": ("normal", "healthy", "no finding", "no findings", "nofinding"),
        "pneumonia": ("pneumonia",),
        "bacterial": (
            "bacteria",
            "bacterial",
            "bacterial pneumonia",
            "pneumonia bacterial",
            "pneumonia bacteria",
        ),
        "viral": ("virus", "viral", "viral pneumonia", "pneumonia viral", "pneumonia virus"),
        "covid": ("covid", "covid 19", "covid19", "covid pneumonia", "covid 19 pneumonia", "sars cov 2"),
        "lung_opacity": ("lung opacity", "lungopacity"),
        "tuberculosis": ("tuberculosis", "tb"),
    }.items()
    for spelling in spellings
}
KNOWN_CLASSES = frozenset(_SPELLINGS.values())
"""Classes that a folder is recognised by wherever it is in a tree."""

_NAMED = 10  # labels that are none of the classes, in a message

_KERMANY_PNEUMONIA = re.compile(r"(?P<patient>person\d+)_(?P<cause>bacteria|virus)_\d+(?:_\d+)*", re.ASCII)
_KERMANY_NORMAL = re.compile(r"(?P<patient>(?P<prefix>NORMAL2-)?IM-\d+)-\d+(?:-\d+)*", re.ASCII)

# Viewers such as Horos and OsiriX export every study as IM-0001-0001.dcm; the Kermany set has JPEG only.
_DICOM_SUFFIXES = frozenset({".dcm", ".dicom", ""})


def class_name(text: str) -> str:
    """Return the class that a folder or table cell names, in lower case and one spelling."""
    plain = " ".join(text.lower().replace("_", " ").replace("-", " ").split())
    return _SPELLINGS.get(plain, text.strip().lower())


def parse_kermany_name(name: str) -> tuple[str, str, str] | None:
    """Read label, patient and series from a file name of the paediatric set of Kermany et al. (Cell 2018).

    =================================  =========  ==================  ===========
    name                               label      patient             series
    =================================  =========  ==================  ===========
    ``person1234_bacteria_1.jpeg``     bacterial  ``person1234``      ``person``
    ``person12_virus_34.jpeg``         viral      ``person12``        ``person``
    ``IM-0115-0001.jpeg``              normal     ``IM-0115``         ``IM``
    ``IM-0527-0001-0002.jpeg``         normal     ``IM-0527``         ``IM``
    ``NORMAL2-IM-0383-0001.jpeg``      normal     ``NORMAL2-IM-0383`` ``NORMAL2``
    =================================  =========  ==================  ===========

    Parameters
    ----------
    name : str
        File name, or a path that ends in it. A folder ``test`` in the path marks the official test
        folder: its pneumonia patients are numbered from 1 again, so they get the prefix ``test-``.
        The numbers of the normal patients continue from one folder to the other and stay unchanged.

    Returns
    -------
    tuple of str or None
        Label, patient and series; None where the name is not of this set, or that of a DICOM file.
    """
    path = PurePath(name)
    if path.suffix.lower() in _DICOM_SUFFIXES:
        return None
    if match := _KERMANY_PNEUMONIA.fullmatch(path.stem):
        official_test = "test" in (part.lower() for part in path.parts[:-1])
        patient = f"test-{match['patient']}" if official_test else match["patient"]
        return class_name(match["cause"]), patient, "person"
    if match := _KERMANY_NORMAL.fullmatch(path.stem):
        return "normal", match["patient"], "NORMAL2" if match["prefix"] else "IM"
    return None


def class_index(label: str, classes: tuple[str, ...], path: str, target: Target | None = None) -> int:
    """Return the position of a label among the classes.

    A class of the target counts as the target where the classes have only its name; in the same way
    bacterial and viral count as pneumonia.

    Parameters
    ----------
    label : str
        As in a manifest.
    classes : tuple of str
        In the order of the network's outputs.
    path : str
        The image, for the message.
    target : Target, optional
        The finding that the network decides on.

    Raises
    ------
    DataError
        If the label is none of the classes.
    """
    if label in classes:
        return classes.index(label)
    for name, members in _groups(target):
        if label in members and name in classes:
            return classes.index(name)
    raise DataError(
        f"{path}: label {label!r} is none of the classes ({', '.join(classes)}); choose a recipe or bundle "
        "that has it as a class, or write one of these in a table of labels (first line path,label)"
    )


def possible_classes(
    label: str, classes: tuple[str, ...], path: str, target: Target | None = None
) -> tuple[int, ...]:
    """Return the positions of all classes that a label leaves open.

    That is one class, except where the label is the name of the target and the classes have its subtypes
    instead: then all of those. Without a target, ``pneumonia`` leaves bacterial and viral open.

    Parameters
    ----------
    label, classes, path, target
        As for `class_index`.

    Raises
    ------
    DataError
        If the label is none of the classes.
    """
    if label not in classes:
        for name, members in _groups(target):
            subtypes = tuple(i for i, known in enumerate(classes) if known in members)
            if label == name and subtypes:
                return subtypes
    return (class_index(label, classes, path, target),)


def check_labels(
    labels: Iterable[str],
    classes: tuple[str, ...],
    where: str,
    target: Target | None = None,
    *,
    training: bool = False,
) -> None:
    """Check the labels of a whole data set, so that one message names all that are none of the classes.

    Parameters
    ----------
    labels : iterable of str
        One for each image.
    classes, target
        As for `class_index`.
    where : str
        The data set, for the message.
    training : bool
        A network is trained on them, which can have other classes: the message has the option for it.

    Raises
    ------
    DataError
        If a label is none of the classes and leaves none of them open; the message is one line.
    """
    counts = Counter(labels)
    unknown = {label: count for label, count in counts.most_common() if not _has(classes, label, target)}
    if not unknown:
        return
    what, listed = f"{len(unknown)} labels are", [f"{label!r} {count}" for label, count in unknown.items()]
    if len(unknown) == 1:
        [(label, count)] = unknown.items()
        what, listed = f"label {label!r} is", [str(count)]
    elif len(unknown) > _NAMED:
        rest = sum(list(unknown.values())[_NAMED:])
        listed[_NAMED:] = [f"{len(unknown) - _NAMED} more {rest}"]
    fix = (
        "choose a bundle that has them as classes, or write one of these in a table of labels (first line "
        "path,label)"
    )
    if training:
        option = _target_option(counts, classes, target)
        fix = f"to have the labels as classes, train with {option} (name those that count as the finding)"
    shares = f"{', '.join(listed)} of {counts.total()} images"
    raise DataError(f"{where}: {what} none of the classes ({', '.join(classes)}): {shares}; {fix}")


def _has(classes: tuple[str, ...], label: str, target: Target | None) -> bool:
    try:
        possible_classes(label, classes, "", target)
    except DataError:
        return False
    return True


def _target_option(labels: Collection[str], classes: tuple[str, ...], target: Target | None) -> str:
    """Return the option of a training that has the labels of the data as classes."""
    name, members = _groups(target)[0]
    outside = {one for one in classes if one != name and one not in members}
    if outside.isdisjoint(labels) or any("," in label for label in labels):
        return "--target NAME=CLASS[,CLASS...]"
    # A target may not have the name of one of several classes that count as it.
    option = f"{'finding' if name in labels else name}={','.join(sorted(set(labels) - outside))}"
    return f"--target {shlex.quote(option)}"


def _groups(target: Target | None) -> list[tuple[str, tuple[str, ...]]]:
    """Return findings and the classes that count as them; the target's come first."""
    stated = [] if target is None else [(target.name, target.classes)]
    return [*stated, ("pneumonia", PNEUMONIA_SUBTYPES)]


def classes_with_target(classes: tuple[str, ...], target: Target) -> tuple[str, ...]:
    """Return the classes outside the target, then the target's name.

    A data set that is labelled with the target's name only is evaluated on these.
    """
    return (*(name for name in classes if not target.includes(name)), target.name)
