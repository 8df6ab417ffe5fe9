"""From the label of a image to the class of a network."""

from __future__ import annotations

from pneumoscope.errors import DataError

__all__ = ["PNEUMONIA_SUBTYPES", "TWO_CLASSES", "class_index", "possible_classes"]

PNEUMONIA_SUBTYPES = ("bacterial", "viral")
TWO_CLASSES = ("normal", "pneumonia")


def class_index(label: str, classes: tuple[str, ...], path: str) -> int:
    """Return the position of a label among the classes.

    Bacterial and viral count as pneumonia where the classes do not know them.

    Parameters
    ----------
    label : str
        As in a manifest.
    classes : tuple of str
        In the order of the network's outputs.
    path : str
        The image, for the message.

    Raises
    ------
    DataError
        If the label is none of the classes.
    """
    if label not in classes and label in PNEUMONIA_SUBTYPES and "pneumonia" in classes:
        label = "pneumonia"
    if label not in classes:
        raise DataError(
            f"{path}: label {label!r} is none of the classes ({', '.join(classes)}); correct the label, or "
            "choose a recipe or bundle that knows it"
        )
    return classes.index(label)


def possible_classes(label: str, classes: tuple[str, ...], path: str) -> tuple[int, ...]:
    """Return the positions of all classes that a label leaves open.

    One, but where the label says pneumonia and the classes tell its kinds apart: then those kinds.

    Parameters
    ----------
    label, classes, path
        As for `class_index`.

    Raises
    ------
    DataError
        If the label is none of the classes.
    """
    if label == "pneumonia" and label not in classes:
        kinds = tuple(classes.index(kind) for kind in PNEUMONIA_SUBTYPES if kind in classes)
        if kinds:
            return kinds
    return (class_index(label, classes, path),)
