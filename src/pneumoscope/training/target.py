"""The target finding of a recipe: how it is given, checked and, for pneumonia, derived from the classes."""

from __future__ import annotations

from collections.abc import Iterable

from pneumoscope.data.labels import PNEUMONIA_SUBTYPES, class_name
from pneumoscope.domain import CodedConcept, Target, probability_column
from pneumoscope.errors import RecipeError

__all__ = ["PNEUMONIA", "check_target", "default_target", "parse_target"]

PNEUMONIA = CodedConcept("233604007", "SCT", "Pneumonia")
"""Pneumonia in SNOMED CT."""


def parse_target(text: str) -> Target:
    """Read a target that is written as ``NAME=CLASS[,CLASS...]``; case does not matter.

    Raises
    ------
    RecipeError
        If it is written differently.
    """
    name, _, listed = text.partition("=")
    name = name.strip().lower()
    classes = tuple(class_name(part) for part in listed.split(","))
    if not name or not all(classes):
        raise RecipeError(
            f"--target {text}: write it as NAME=CLASS[,CLASS...], such as infiltrate=lobar,diffuse"
        )
    return Target(name, classes, PNEUMONIA if name == "pneumonia" else None)


def check_target(target: Target, classes: tuple[str, ...] | None) -> None:
    """Check a target by itself and, where they are known, against the classes.

    Raises
    ------
    ValueError
        If it has no classes, classes twice, unknown ones or all of them, or the name of a class, signs aside.
    """
    if not target.name or not target.classes:
        raise ValueError("target: a name and at least one class are needed: {name: NAME, classes: [CLASS]}")
    if len(set(target.classes)) != len(target.classes):
        raise ValueError("target.classes: each must be listed once")
    if classes is None:
        return
    if unknown := [name for name in target.classes if name not in classes]:
        raise ValueError(f"target.classes: {', '.join(unknown)} not among the classes ({', '.join(classes)})")
    if len(target.classes) == len(classes):
        raise ValueError("target.classes: at least one class must be outside of the target")
    columns = {probability_column(name) for name in classes}
    if probability_column(target.name) in columns and target.classes != (target.name,):
        raise ValueError(
            f"target.name: {target.name} is named like a class but is not that class alone; "
            "choose another name"
        )
    if len(columns) < len(classes):
        raise ValueError(f"classes: two of {', '.join(classes)} have the same name but for signs; rename one")


def default_target(recipe: str, classes: Iterable[str]) -> Target:
    """Return pneumonia for ``normal`` and ``pneumonia``, or ``bacterial`` and ``viral`` in its place.

    Raises
    ------
    RecipeError
        For any other classes: the recipe must name its target.
    """
    names = set(classes)
    present = tuple(name for name in PNEUMONIA_SUBTYPES if name in names) or ("pneumonia",)
    if names != {"normal", *present}:
        raise RecipeError(
            f"{recipe}: no target finding is stated for the classes {', '.join(sorted(names))}; name it with "
            "--target NAME=CLASS[,CLASS...], or in the recipe as target: {name: NAME, classes: [CLASS]}"
        )
    return Target("pneumonia", present, PNEUMONIA)
