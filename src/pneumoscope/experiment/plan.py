"""What an experiment is: its recipe, its data, and whom to tell how far it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pneumoscope.errors import UnreadableImageError
from pneumoscope.evaluation.bundles import Evaluation
from pneumoscope.model.bundle import Bundle
from pneumoscope.training.history import Epoch
from pneumoscope.training.recipe import Recipe, load_recipe

__all__ = ["RECIPE_FILE", "Experiment", "Progress", "Result", "is_of_another_recipe", "with_split"]

RECIPE_FILE = "recipe.yaml"


@dataclass(frozen=True)
class Experiment:
    """What is to be done.

    Parameters
    ----------
    recipe : Recipe
    data : Path
        A folder, a manifest or a MedMNIST file.
    out : Path
        The run folder.
    weights : Path, optional
        A timm checkpoint in place of the hub's.
    lungs : Path, optional
        A lung segmenter; the shipped one if not given.
    also : Path, optional
        A second data set to learn from only: its images without a split, and those of split ``train``.
    teachers : tuple of Path
        Bundles in place of the teacher that the recipe would train; of the same data and split.
    teacher_epochs : int, optional
        Epochs of the teacher that the recipe trains, not those of its own recipe.
    limit : int, optional
        Use at most so many images of each class.
    keras : bool
        Write ``model.h5`` as well.
    resume : bool
        Go on with an interrupted run.
    divides : bool
        The split was asked for, so that data which bring their own are rejected.
    described_as : str
        Name of the data in reports; the folder's name if empty.
    """

    recipe: Recipe
    data: Path
    out: Path
    weights: Path | None = None
    lungs: Path | None = None
    also: Path | None = None
    teachers: tuple[Path, ...] = ()
    teacher_epochs: int | None = None
    limit: int | None = None
    keras: bool = False
    resume: bool = False
    divides: bool = False
    described_as: str = ""


@dataclass(frozen=True)
class Progress:
    """Whom to tell how far things are."""

    on_step: Callable[[str], None] = lambda _: None
    on_images: Callable[[int, int], None] = lambda _done, _total: None
    on_epoch: Callable[[Epoch, int], None] = lambda _row, _epochs: None


@dataclass(frozen=True, eq=False)
class Result:
    """What came out of it."""

    bundle: Bundle
    evaluation: Evaluation
    unreadable: tuple[UnreadableImageError, ...]


def is_of_another_recipe(out: Path, recipe: Recipe) -> bool:
    """Tell whether a folder holds what another recipe made; False where it holds nothing yet."""
    path = out / RECIPE_FILE
    return path.exists() and load_recipe(str(path)).sha256 != recipe.sha256


def with_split(recipe: Recipe, *, method: str | None = None, seed: int | None = None) -> Recipe:
    """Return the recipe with another split; the seed, where given, is that of the training too."""
    chosen = {name: value for name, value in (("method", method), ("seed", seed)) if value is not None}
    changed = recipe.model_copy(
        update={"split": recipe.split.model_validate(recipe.split.model_dump() | chosen)}
    )
    return changed if seed is None else changed.model_copy(update={"seed": seed})
