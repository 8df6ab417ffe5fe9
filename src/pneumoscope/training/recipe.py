"""Recipes: everything that defines a training run, as one YAML file in which unknown keys are errors."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
import yaml
from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from pneumoscope.data.labels import PNEUMONIA_SUBTYPES
from pneumoscope.data.yaml_text import read_yaml
from pneumoscope.domain import ANY_POPULATION, Population, Target
from pneumoscope.errors import RecipeError
from pneumoscope.image.standardise import InputSpec
from pneumoscope.training.augment import Augmentation
from pneumoscope.training.sections import (
    CUSTOM_CNN,
    Distillation,
    NetworkSpec,
    Phase,
    Pretraining,
    Sampling,
    SplitSpec,
    Strict,
    Tasks,
)
from pneumoscope.training.target import PNEUMONIA, check_target, default_target

__all__ = [
    "CUSTOM_CNN",
    "Distillation",
    "NetworkSpec",
    "Phase",
    "Pretraining",
    "Recipe",
    "Sampling",
    "SplitSpec",
    "Tasks",
    "load_recipe",
    "recipe_names",
]

_Share = Annotated[float, Field(ge=0, lt=1)]


class Recipe(Strict):
    """One training run.

    Parameters
    ----------
    classes : tuple of str or None
        In the order of the outputs; None for the labels of the data.
    target : Target or None
        The finding that the model decides on, and the classes that count as it; None for pneumonia where the
        classes are normal and subtypes of pneumonia.
    class_weights : {"none", "balanced"}
        Weights of the cross-entropy; balanced is inverse to the share of a class in the training images.
    keep : {"best", "last"}
        Weights of the epoch with the lowest validation loss, or of the last one.
    patience : int or None
        Epochs without a lower validation loss after which a phase ends early.
    lungs_only : dict
        Sources of which only the lungs are left, and black around them, each with its grey levels,
        ``positive`` or ``inverted``. The lungs of such an image are what is not black, and the gate, which
        rejects it, is overridden in training.
    label_noise : dict
        By source, or by source and label, the share of a label that is spread over all classes, in place of
        `label_smoothing`.
    distillation : Distillation or None
        A teacher to learn from in addition to the labels.
    tasks : Tasks
        Auxiliary tasks.
    sampling : Sampling or None
        Draws with replacement, balanced by source, label and view; None for every image once an epoch.
    calibration_copies : int
        Augmented copies of each validation image on which calibrator and thresholds are fitted too.
    populations : tuple of Population
        Those that get operating points and a calibration of their own, if the validation images have enough
        of them.
    pretraining : Pretraining or None
        Self-supervised epochs before the training.
    ema : float or None
        Decay of the exponential moving average of the weights, which is then validated and kept.
    precision : {"float32", "float16", "int8"}
        Of the network in the bundle, before gate and calibrator are fitted: float16 stores the weights of
        convolutions in 16 bits and computes in float32; int8 is static quantisation.
    """

    name: str
    description: str
    classes: tuple[str, ...] | None = None
    target: Target | None = None
    input: InputSpec = InputSpec()
    network: NetworkSpec
    phases: tuple[Phase, ...] = Field(min_length=1)
    augmentation: Augmentation = Augmentation()
    batch: int = Field(default=32, ge=2)
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    weight_decay: float = Field(default=0.0, ge=0)
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    lungs_only: dict[str, Literal["positive", "inverted"]] = Field(default={})
    label_noise: dict[str, _Share | dict[str, _Share]] = Field(default={})
    class_weights: Literal["none", "balanced"] = "none"
    distillation: Distillation | None = None
    pretraining: Pretraining | None = None
    tasks: Tasks = Tasks()
    sampling: Sampling | None = None
    ema: float | None = Field(default=None, gt=0, lt=1)
    keep: Literal["best", "last"] = "best"
    patience: int | None = Field(default=None, ge=1)
    precision: Literal["float32", "float16", "int8"] = "float32"
    calibration: Literal["none", "temperature", "vector"] = "temperature"
    calibration_copies: int = Field(default=0, ge=0, le=20)
    populations: tuple[Population, ...] = ()
    split: SplitSpec = SplitSpec()
    seed: int = Field(default=0, ge=0)

    @field_validator("target")
    @classmethod
    def _coded(cls, target: Target | None) -> Target | None:
        """Give pneumonia its code."""
        if target is not None and target.name == "pneumonia" and target.code is None:
            return replace(target, code=PNEUMONIA)
        return target

    @model_validator(mode="after")
    def _agrees(self) -> Recipe:
        if self.classes is not None:
            if len(self.classes) < 2:
                raise ValueError("classes: at least two are needed")
            if len(set(self.classes)) != len(self.classes):
                raise ValueError("classes: each must be listed once")
        if self.target is not None:
            check_target(self.target, self.classes)
        if self.pretraining and self.augmentation.model_copy(update={"lungs_only": 0.0}) == Augmentation():
            raise ValueError("pretraining: needs an augmentation, since it compares two views of an image")
        names = [population.name for population in self.populations]
        if ANY_POPULATION in names:
            raise ValueError(f"populations: each needs a name other than '{ANY_POPULATION}'")
        if len(set(names)) != len(names):
            raise ValueError("populations: each name must be listed once")
        for number, phase in enumerate(self.phases):
            if conflict := phase.conflict(self.network.expert, self.sampling, self.distillation, self.ema):
                raise ValueError(f"phases.{number}.{conflict}")
        return self

    def resolved(self, labels: Iterable[str] = ()) -> Recipe:
        """Return the recipe with classes and target, taken from the labels of the data where it has none.

        Parameters
        ----------
        labels : iterable of str
            Labels of the data. As classes they are sorted, those of the target last in its own order.

        Raises
        ------
        RecipeError
            If the target is not given and does not follow from the classes, or there is only one class.
        """
        classes, target = self.classes, self.target
        found = set(labels)
        if target is None:
            if found & set(PNEUMONIA_SUBTYPES):
                found.discard("pneumonia")  # a label that leaves the subtype open
            target = default_target(self.name, classes or found)
        if classes is None:
            others = found - set(target.classes) - {target.name}
            classes = (*sorted(others), *target.classes)
        if len(classes) < 2:
            raise RecipeError(f"{self.name}: the data have only the class {', '.join(classes)}; add another")
        content = self.model_dump() | {"classes": classes, "target": target}
        try:
            return Recipe.model_validate(content)
        except ValidationError as error:
            raise RecipeError(f"{self.name}: {_first_fault(error)}") from error

    @property
    def output_classes(self) -> tuple[str, ...]:
        """The classes of a resolved recipe, in the order of the outputs.

        Raises
        ------
        RecipeError
            If the recipe leaves them to the data; see `resolved`.
        """
        if self.classes is None:
            raise RecipeError(f"{self.name}: has no classes; name them in the recipe")
        return self.classes

    @property
    def output_target(self) -> Target:
        """The target finding; raises `RecipeError` where the recipe has none and it does not follow."""
        return self.target or default_target(self.name, self.output_classes)

    @property
    def target_mask(self) -> npt.NDArray[np.bool_]:
        """Which classes count as the target, shape (K,)."""
        return self.output_target.mask(self.output_classes)

    @property
    def needs_lungs(self) -> bool:
        """Whether a lung segmenter is needed."""
        return self.input.needs_lungs or self.needs_lung_masks

    @property
    def needs_lung_masks(self) -> bool:
        """Whether the lung mask of each training image is needed in training."""
        shown_alone = any(self.in_phase(phase).augmentation.lungs_only for phase in self.phases)
        return self.tasks.lungs > 0 or self.tasks.boxes > 0 or shown_alone

    def smoothing(self, source: str, label: str) -> float:
        """Return the share of a label that is spread over all classes, in [0, 1)."""
        noise = self.label_noise.get(source, self.label_smoothing)
        return noise.get(label, self.label_smoothing) if isinstance(noise, dict) else noise

    @property
    def epochs(self) -> int:
        """Epochs of all phases."""
        return sum(phase.epochs for phase in self.phases)

    def in_phase(self, phase: Phase) -> Recipe:
        """Return the recipe with augmentation, sampling and trust in the teacher as they are in a phase."""
        augmentation = self.augmentation.scaled(phase.augmentation_strength)
        sampling, distillation = self.sampling, self.distillation
        if phase.lungs_only is not None:
            augmentation = augmentation.model_copy(update={"lungs_only": phase.lungs_only})
        if sampling and phase.sampling_exponent is not None:
            sampling = sampling.model_copy(update={"exponent": phase.sampling_exponent})
        if distillation and phase.trust is not None:
            distillation = distillation.model_copy(update={"trust": phase.trust})
        changed = {"augmentation": augmentation, "sampling": sampling, "distillation": distillation}
        return self.model_copy(update=changed)

    def without_distillation(self) -> Recipe:
        """Return the recipe for a network that learns from the labels alone."""
        phases = tuple(phase.model_copy(update={"trust": None}) for phase in self.phases)
        return self.model_copy(update={"distillation": None, "phases": phases})

    def with_epochs(self, epochs: int) -> Recipe:
        """Return the recipe with `epochs` epochs in all; the last phases are cut, or the last is extended."""
        phases: list[Phase] = []
        left = epochs
        for index, phase in enumerate(self.phases):
            last = index == len(self.phases) - 1
            # Each later phase keeps at least one epoch where there are enough.
            reserve = max(0, min(len(self.phases) - 1 - index, left - 1))
            count = left if last else min(phase.epochs, left - reserve)
            if count > 0:
                phases.append(phase.model_copy(update={"epochs": count}))
                left -= count
        return self.model_copy(update={"phases": tuple(phases)})

    def from_scratch(self) -> Recipe:
        """Return the recipe for a network that starts from scratch: no layer is frozen, `scratch_lr` is used.

        A frozen layer with random weights would only destroy the signal for the layers after it; one that
        `pretraining` trains first may be frozen. The learning rates are final: `scratch_lr` is unset.
        """
        phases = tuple(
            phase.model_copy(
                update={
                    "frozen": phase.frozen if self.pretraining else "none",
                    "lr": phase.scratch_lr or phase.lr,
                    "scratch_lr": None,
                }
            )
            for phase in self.phases
        )
        network = self.network.model_copy(update={"pretrained": False})
        return self.model_copy(update={"phases": phases, "network": network})

    def values(self) -> dict[str, Any]:
        """Return every value by its key, such as ``phases.0.lr``; lists of plain values stay whole."""
        return {".".join(map(str, place)): value for place, value in _leaves(self.model_dump(mode="json"))}

    def with_values(self, values: Mapping[str, Any]) -> Recipe:
        """Return the recipe with other values by their keys, as `values` names them.

        Raises
        ------
        RecipeError
            If there is no such key, or the value is not one that it can have.
        """
        content = self.model_dump(mode="json")
        places = {".".join(map(str, place)): place for place, _ in _leaves(content)}
        for key, value in values.items():
            if key not in places:
                guess = difflib.get_close_matches(key, places, n=1)
                raise RecipeError(f"unknown key {key!r}" + (f"; did you mean {guess[0]!r}?" if guess else ""))
            *sections, name = places[key]
            section: Any = content
            for part in sections:
                section = section[part]
            section[name] = value
        try:
            return Recipe.model_validate(content)
        except ValidationError as error:
            raise RecipeError(_first_fault(error)) from error

    def to_yaml(self) -> str:
        """Return the recipe as YAML with every default written out."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)

    @property
    def sha256(self) -> str:
        """Hash of everything that is not a default, so that a new key does not change existing hashes."""
        content = self.model_dump(mode="json", exclude_defaults=True)
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _leaves(value: Any, place: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], Any]]:
    """Yield each value of nested tables and lists of tables with its place."""
    if isinstance(value, dict) and value:
        parts: Iterable[tuple[str | int, Any]] = value.items()
    elif isinstance(value, list) and any(isinstance(one, dict) for one in value):
        parts = enumerate(value)
    else:
        yield place, value
        return
    for name, part in parts:
        yield from _leaves(part, (*place, name))


def recipe_names() -> list[str]:
    """Return the names of the recipes that ship with the package."""
    folder = resources.files("pneumoscope") / "recipes"
    return sorted(Path(entry.name).stem for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def load_recipe(name: str) -> Recipe:
    """Read a recipe by its shipped name or from a YAML file.

    Raises
    ------
    RecipeError
        If there is none, or it has an unknown key or a wrong value; the message names the key.
    """
    known = recipe_names()
    path = Path(name)
    if name in known:
        text = (resources.files("pneumoscope") / "recipes" / f"{name}.yaml").read_text(encoding="utf-8")
    elif path.suffix in (".yaml", ".yml"):
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
            raise RecipeError(
                f"{name}: recipe cannot be read ({reason}); give a .yaml file, or one of {', '.join(known)}"
            ) from error
    else:
        guess = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {guess[0]!r}?" if guess else f"known: {', '.join(known)}; or give a .yaml file"
        raise RecipeError(f"{name}: no such recipe; {hint}")
    try:
        content = read_yaml(text)
    except ValueError as error:
        raise RecipeError(f"{name}: not valid YAML: {error}") from error
    if not isinstance(content, dict):
        raise RecipeError(f"{name}: a recipe is a table of keys and values")
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        raise RecipeError(f"{name}: {_first_fault(error)}") from error


def _first_fault(error: ValidationError) -> str:
    """Return the first error as one line."""
    fault = error.errors()[0]
    where = ".".join(str(part) for part in fault["loc"])
    if fault["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        nested: dict[str, type[BaseModel]] = {
            "network": NetworkSpec,
            "input": InputSpec,
            "augmentation": Augmentation,
            "phases": Phase,
            "distillation": Distillation,
            "pretraining": Pretraining,
            "sampling": Sampling,
            "split": SplitSpec,
            "tasks": Tasks,
        }
        model = nested.get(str(fault["loc"][0]), Recipe) if len(fault["loc"]) > 1 else Recipe
        fields = ["name", "classes", "code"] if fault["loc"][0] == "target" else list(model.model_fields)
        guess = difflib.get_close_matches(str(fault["loc"][-1]), fields, n=1)
        return f"unknown key {where!r}" + (f"; did you mean {guess[0]!r}?" if guess else "")
    if fault["type"] == "missing":
        return f"the key {where!r} is missing"
    message = str(fault["msg"]).removeprefix("Value error, ")
    return f"{where}: {message}" if where else message
