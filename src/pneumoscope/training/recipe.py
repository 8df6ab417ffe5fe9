"""Recipes: everything that makes a training run, as one YAML file that rejects what it does not know."""

from __future__ import annotations

import difflib
import hashlib
import json
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pneumoscope.errors import RecipeError
from pneumoscope.image.standardise import InputSpec
from pneumoscope.training.augment import Augmentation

__all__ = [
    "Distillation",
    "NetworkSpec",
    "Phase",
    "Pretraining",
    "Recipe",
    "SplitSpec",
    "Tasks",
    "load_recipe",
    "recipe_names",
]


_Share = Annotated[float, Field(ge=0, lt=1)]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class NetworkSpec(_Strict):
    """The network: a timm backbone or ``custom-cnn``, with a pooled-linear head.

    Parameters
    ----------
    name : str
        As timm spells it, or ``custom-cnn``.
    pretrained : bool
        Start from ImageNet weights; a run stops where they cannot be had.
    channels : {1, 3}
        Input channels of the backbone; the grey image is repeated inside the graph.
    dropout : float
        Before the head.
    options : dict
        Further keyword arguments of the backbone.
    """

    name: str
    pretrained: bool = False
    channels: Literal[1, 3] = 3
    dropout: float = Field(default=0.0, ge=0, lt=1)
    options: dict[str, Any] = {}


class Phase(_Strict):
    """A stretch of epochs with one learning rate and one set of frozen layers.

    Parameters
    ----------
    lr, scratch_lr : float
        Learning rate; and the one that takes its place where the network starts from nothing.
    frozen : int or {"none", "backbone"}
        Number of convolutional layers, counted from the input, that do not learn; or the whole backbone.
    schedule : {"constant", "cosine"}
        Cosine falls to zero over the phase after `warmup` epochs (Loshchilov and Hutter, ICLR 2017).
    """

    epochs: int = Field(ge=1)
    lr: float = Field(gt=0)
    scratch_lr: float | None = Field(default=None, gt=0)
    frozen: Annotated[int, Field(ge=0)] | Literal["none", "backbone"] = "none"
    schedule: Literal["constant", "cosine"] = "constant"
    warmup: float = Field(default=0.0, ge=0)


class SplitSpec(_Strict):
    """How records are divided; ``patient`` keeps a patient and duplicates on one side."""

    method: Literal["patient", "random"] = "patient"
    fractions: tuple[float, float, float] = (0.7, 0.15, 0.15)
    seed: int = 0

    @model_validator(mode="after")
    def _agrees(self) -> SplitSpec:
        if min(self.fractions) <= 0 or abs(sum(self.fractions) - 1) > 1e-6:
            raise ValueError("fractions: three shares above 0 are needed that sum to 1")
        return self


class Distillation(_Strict):
    """A teacher for the network (Hinton et al., Distilling the Knowledge in a Neural Network, 2015).

    Parameters
    ----------
    teacher : str
        Recipe by name or file, with the same classes and the same split; its input may be another. It is
        trained first, unless bundles are given in its place.
    trust : float
        Share of the loss that follows the teacher and not the label.
    """

    teacher: str
    trust: float = Field(default=0.5, ge=0, le=1)


class Pretraining(_Strict):
    """Self-supervised epochs on the training images before the labels are used."""

    epochs: int = Field(ge=1)
    lr: float = Field(default=1e-3, gt=0)


class Tasks(_Strict):
    """What a network learns besides the classes, by heads that do not ship.

    Parameters
    ----------
    lungs : float
        Weight of finding the lungs, as the lung segmenter sees them, on the feature map.
    source : float
        Weight of not telling the sources of a class from each other (Ganin et al., Domain-Adversarial
        Training of Neural Networks, JMLR 2016).
    """

    lungs: float = Field(default=0.0, ge=0, le=10)
    source: float = Field(default=0.0, ge=0, le=10)


class Recipe(_Strict):
    """One training run.

    Parameters
    ----------
    classes : tuple of str
        Output order, ``normal`` first. With two classes, bacterial and viral count as pneumonia.
    class_weights : {"none", "balanced"}
        Cross-entropy weights; balanced is inverse to a class's share of the training images.
    keep : {"best", "last"}
        Weights of the epoch with the least validation loss, or of the last one.
    patience : int or None
        Stop after so many epochs without a lower validation loss.
    label_noise : dict
        By source, or by source and label, the share of a label that is spread over all classes, in place of
        `label_smoothing`.
    distillation : Distillation or None
        A teacher to learn from besides the labels.
    tasks : Tasks
        What else is learnt from the training images.
    calibration_views : int
        Mildly disturbed copies of each validation image on which calibrator and thresholds are fitted too.
    pretraining : Pretraining or None
        Self-supervised epochs that come first.
    ema : float or None
        Decay of the exponential moving average of the weights, which is then what is evaluated and kept.
    precision : {"float32", "int8"}
        Of the network in the bundle; 8 bits by static quantisation, before gate and calibrator are fitted.
    """

    name: str
    description: str
    classes: tuple[str, ...] = ("normal", "bacterial", "viral")
    input: InputSpec = InputSpec()
    network: NetworkSpec
    phases: tuple[Phase, ...] = Field(min_length=1)
    augmentation: Augmentation = Augmentation()
    batch: int = Field(default=32, ge=2)
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    weight_decay: float = Field(default=0.0, ge=0)
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    label_noise: dict[str, _Share | dict[str, _Share]] = {}
    class_weights: Literal["none", "balanced"] = "none"
    distillation: Distillation | None = None
    pretraining: Pretraining | None = None
    tasks: Tasks = Tasks()
    ema: float | None = Field(default=None, gt=0, lt=1)
    keep: Literal["best", "last"] = "best"
    patience: int | None = Field(default=None, ge=1)
    precision: Literal["float32", "int8"] = "float32"
    calibration: Literal["none", "temperature", "vector"] = "temperature"
    calibration_views: int = Field(default=0, ge=0, le=20)
    split: SplitSpec = SplitSpec()
    seed: int = 0

    @model_validator(mode="after")
    def _agrees(self) -> Recipe:
        if len(self.classes) < 2 or self.classes[0] != "normal":
            raise ValueError("classes: at least two are needed, and the first must be 'normal'")
        if len(set(self.classes)) != len(self.classes):
            raise ValueError("classes: each may stand once")
        if self.input.channels != 1:
            # A bundle's network takes grey images and repeats them itself.
            raise ValueError("input.channels: must be 1; network.channels says what the backbone sees")
        return self

    @property
    def needs_lungs(self) -> bool:
        """Whether a lung segmenter must be at hand."""
        return self.input.needs_lungs or self.tasks.lungs > 0

    def smoothing(self, source: str, label: str) -> float:
        """Return the share of a label that is spread over all classes, in [0, 1)."""
        noise = self.label_noise.get(source, self.label_smoothing)
        return noise.get(label, self.label_smoothing) if isinstance(noise, dict) else noise

    @property
    def epochs(self) -> int:
        """Epochs of all phases."""
        return sum(phase.epochs for phase in self.phases)

    def with_epochs(self, epochs: int) -> Recipe:
        """Return the recipe cut or stretched to `epochs`: phases keep their order, the last gives way."""
        phases: list[Phase] = []
        left = epochs
        for index, phase in enumerate(self.phases):
            last = index == len(self.phases) - 1
            # Each later phase keeps at least one epoch where there are enough.
            reserve = min(len(self.phases) - 1 - index, left - 1)
            count = left if last else min(phase.epochs, left - reserve)
            if count > 0:
                phases.append(phase.model_copy(update={"epochs": count}))
                left -= count
        return self.model_copy(update={"phases": tuple(phases)})

    def from_scratch(self) -> Recipe:
        """Return the recipe for a network that starts from nothing: no layer is frozen, `scratch_lr` counts.

        A frozen layer that nobody trained would only hide the image from the layers that learn.
        """
        phases = tuple(
            phase.model_copy(update={"frozen": "none", "lr": phase.scratch_lr or phase.lr})
            for phase in self.phases
        )
        network = self.network.model_copy(update={"pretrained": False})
        return self.model_copy(update={"phases": phases, "network": network})

    def to_yaml(self) -> str:
        """Return the resolved recipe, every default spelled out."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)

    @property
    def sha256(self) -> str:
        """Hash of what is said beyond the defaults, so that a new key leaves old runs what they are."""
        said = self.model_dump(mode="json", exclude_defaults=True)
        return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


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
            raise RecipeError(f"{name}: recipe cannot be read ({error.__class__.__name__})") from error
    else:
        guess = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {guess[0]!r}?" if guess else f"known: {', '.join(known)}; or give a .yaml file"
        raise RecipeError(f"{name}: no such recipe; {hint}")
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"{name}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise RecipeError(f"{name}: a recipe is a table of keys and values")
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        raise RecipeError(f"{name}: {_first_fault(error)}") from error


def _first_fault(error: ValidationError) -> str:
    """Put the first thing that is wrong into one line."""
    fault = error.errors()[0]
    where = ".".join(str(part) for part in fault["loc"])
    if fault["type"] == "extra_forbidden":
        nested: dict[str, type[BaseModel]] = {
            "network": NetworkSpec,
            "input": InputSpec,
            "augmentation": Augmentation,
            "phases": Phase,
            "distillation": Distillation,
            "pretraining": Pretraining,
            "split": SplitSpec,
            "tasks": Tasks,
        }
        model = nested.get(str(fault["loc"][0]), Recipe) if len(fault["loc"]) > 1 else Recipe
        fields = list(model.model_fields)
        guess = difflib.get_close_matches(str(fault["loc"][-1]), fields, n=1)
        return f"unknown key {where!r}" + (f"; did you mean {guess[0]!r}?" if guess else "")
    if fault["type"] == "missing":
        return f"the key {where!r} is missing"
    said = str(fault["msg"]).removeprefix("Value error, ")
    return f"{where}: {said}" if where else said
