"""Predictions for tests, of bundles with different classes and targets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pneumoscope.domain import Prediction

__all__ = ["BUNDLES", "INFILTRATE", "SUBTYPES", "TWO_CLASSES", "Example"]

THRESHOLD = 0.4


@dataclass(frozen=True)
class Example:
    """Classes and target of a bundle.

    Parameters
    ----------
    classes : tuple of str
        In order.
    target : str
        Name of the finding.
    target_classes : tuple of str
        The classes that count as it.
    """

    classes: tuple[str, ...]
    target: str
    target_classes: tuple[str, ...]

    @property
    def names(self) -> tuple[tuple[str, ...], str]:
        """Classes and target, as tables take them."""
        return self.classes, self.target

    @property
    def negative(self) -> tuple[float, ...]:
        """Probabilities of the classes for an image without the finding."""
        rest = 0.25 / (len(self.classes) - 1)
        return (0.75, *[rest] * (len(self.classes) - 1))

    @property
    def positive(self) -> tuple[float, ...]:
        """Probabilities of the classes for an image with the finding."""
        return self.negative[::-1]

    @property
    def columns(self) -> dict[str, float]:
        """The columns of probabilities that an image with the finding has."""
        by_class = {f"p_{name}": p for name, p in zip(self.classes, self.positive, strict=True)}
        p_target = sum(by_class[f"p_{name}"] for name in self.target_classes)
        return by_class | {f"p_{self.target}": p_target}

    def prediction(self, path: str, probabilities: Sequence[float], **fields: Any) -> Prediction:
        """Return a prediction with these probabilities of the classes."""
        by_class = dict(zip(self.classes, probabilities, strict=True))
        p_target = sum(by_class[name] for name in self.target_classes)
        values: dict[str, Any] = {
            "probabilities": by_class,
            "target": self.target,
            "p_target": p_target,
            "finding": max(by_class, key=by_class.__getitem__),
            "decision": self.target if p_target >= THRESHOLD else f"no {self.target}",
        }
        return Prediction(path, "ok", **(values | fields))


TWO_CLASSES = Example(("normal", "pneumonia"), "pneumonia", ("pneumonia",))
SUBTYPES = Example(("normal", "bacterial", "viral"), "pneumonia", ("bacterial", "viral"))
INFILTRATE = Example(("clear", "lobar", "diffuse"), "infiltrate", ("lobar", "diffuse"))
BUNDLES = (TWO_CLASSES, SUBTYPES, INFILTRATE)
