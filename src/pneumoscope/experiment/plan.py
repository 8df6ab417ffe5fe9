"""An experiment: its recipe, its data, its options and its result."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from pneumoscope.data.manifest import Manifest
from pneumoscope.domain import Target
from pneumoscope.errors import RecipeError
from pneumoscope.evaluation import BundleEvaluation
from pneumoscope.model.bundle import Bundle
from pneumoscope.predict.cache import ImageCache, default_cache_folder
from pneumoscope.training.dataset import LeftOut, no_images, one_class
from pneumoscope.training.recipe import Recipe, load_recipe
from pneumoscope.training.target import parse_target

__all__ = [
    "RECIPE_FILE",
    "Experiment",
    "Result",
    "changed_recipe",
    "is_of_another_recipe",
    "resolved",
]

RECIPE_FILE = "recipe.yaml"


@dataclass(frozen=True)
class Experiment:
    """A training run that is to be done.

    Parameters
    ----------
    recipe : Recipe
        Classes and target that it leaves open follow from the labels of the data.
    data : Path
        A folder, a manifest or a MedMNIST file.
    out : Path
        The run folder.
    weights : Path, optional
        A timm checkpoint in place of the hub's, the weights of another run, or a bundle.
    lungs : Path, optional
        A lung segmenter; the shipped one if not given.
    additional : Path, optional
        Additional training data: the images of a second data set without a split, or of split ``train``.
    not_chest : Path, optional
        Folder of images that are no frontal chest radiographs, for the gate.
    teachers : tuple of Path
        Bundles in place of the teacher that the recipe would train; of the same data and split.
    teacher_epochs : int, optional
        Epochs of the teacher that the recipe trains, in place of those of its own recipe.
    limit : int, optional
        Use at most this many images of each class.
    keras : bool
        Write ``model.h5`` as well.
    resume : bool
        Continue an interrupted run.
    divides : bool
        A split was requested, so that data which have one already are an error.
    cache : Path or None
        Folder of prepared images; None for no cache.
    track : str or None
        Where to track the run, such as ``mlflow``; see `pneumoscope.experiment.tracking.open_tracker`.
    """

    recipe: Recipe
    data: Path
    out: Path
    weights: Path | None = None
    lungs: Path | None = None
    additional: Path | None = None
    not_chest: Path | None = None
    teachers: tuple[Path, ...] = ()
    teacher_epochs: int | None = None
    limit: int | None = None
    keras: bool = False
    resume: bool = False
    divides: bool = False
    cache: Path | None = field(default_factory=default_cache_folder)
    track: str | None = None

    def open_cache(self) -> ImageCache | None:
        """Return the cache of prepared images; raises `DataError` if its folder cannot be made."""
        return ImageCache(self.cache) if self.cache else None


@dataclass(frozen=True, eq=False)
class Result:
    """Result of an experiment.

    Parameters
    ----------
    bundle : Bundle
    evaluation : BundleEvaluation
        On split ``test``.
    left_out : tuple of LeftOut
        Images that were unreadable or rejected, of all splits.
    """

    bundle: Bundle
    evaluation: BundleEvaluation
    left_out: tuple[LeftOut, ...]


def is_of_another_recipe(out: Path, recipe: Recipe) -> bool:
    """Return whether a folder has runs of another recipe; False where it has none yet."""
    path = out / RECIPE_FILE
    return path.exists() and load_recipe(str(path)).sha256 != recipe.sha256


def resolved(experiment: Experiment, manifest: Manifest) -> Experiment:
    """Return the experiment with the classes and the target that follow from the labels of its data.

    Raises
    ------
    DataError
        If there are no images, or all have the same label.
    RecipeError
        If the target does not follow from the labels.
    """
    labels = manifest.labels()
    if not labels:
        raise no_images(manifest)
    if len(labels) == 1:
        raise one_class(manifest, labels[0])
    return replace(experiment, recipe=experiment.recipe.resolved(labels))


def changed_recipe(
    recipe: Recipe,
    *,
    target: Target | str | None = None,
    epochs: int | None = None,
    patience: int | None = None,
    size: int | None = None,
    split: str | None = None,
    seed: int | None = None,
    pretrained: bool | None = None,
    weights: Path | None = None,
) -> Recipe:
    """Return a recipe with options in place of some of its values.

    Parameters
    ----------
    target : Target or str, optional
        The target finding, or ``NAME=CLASS[,CLASS...]``; the classes are then the labels of the data.
    epochs : int, optional
        In all, in place of the recipe's: the last phases are cut, or the last is extended.
    patience : int, optional
        Epochs without a lower validation loss after which a phase ends.
    size : int, optional
        Side of the input in pixels.
    split : {"patient", "random"}, optional
        How data without a split are divided.
    seed : int, optional
        Of split and training.
    pretrained : bool, optional
        Start from ImageNet weights, or from scratch.
    weights : Path, optional
        A timm checkpoint, the weights of another run, or a bundle to start from.

    Raises
    ------
    RecipeError
        If weights are given although the network starts from scratch, or the target cannot be read.
    """
    if pretrained is False and weights is not None:
        raise RecipeError("--weights and --no-pretrained exclude each other; leave one out")
    if target is not None:
        finding = parse_target(target) if isinstance(target, str) else target
        recipe = recipe.model_copy(update={"classes": None, "target": finding})
    if not (weights is not None or (recipe.network.pretrained if pretrained is None else pretrained)):
        recipe = recipe.from_scratch()
    elif pretrained:
        network = recipe.network.model_copy(update={"pretrained": True})
        recipe = recipe.model_copy(update={"network": network})
    if size is not None:
        recipe = recipe.model_copy(update={"input": recipe.input.model_copy(update={"size": size})})
    chosen = {name: value for name, value in (("method", split), ("seed", seed)) if value is not None}
    if chosen:
        content = recipe.split.model_dump() | chosen
        recipe = recipe.model_copy(update={"split": recipe.split.model_validate(content)})
    own = {name: value for name, value in (("seed", seed), ("patience", patience)) if value is not None}
    if own:
        recipe = recipe.model_copy(update=own)
    return recipe.with_epochs(epochs) if epochs is not None else recipe
