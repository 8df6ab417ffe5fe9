"""Search spaces: which values of a recipe a search may change, and between which limits.

In YAML, with the keys of the recipe: a range ``{low: 1e-5, high: 1e-2, log: true}`` or a list of choices::

    phases.0.lr: {low: 1e-5, high: 1e-2, log: true}
    augmentation.strength: {low: 0, high: 2}
    batch: [16, 32]
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError, model_validator

from pneumoscope.data.yaml_text import read_yaml
from pneumoscope.errors import RecipeError
from pneumoscope.training.augment import Augmentation
from pneumoscope.training.recipe import Recipe
from pneumoscope.training.sections import Strict

__all__ = ["STRENGTH", "Range", "SearchSpace", "default_space", "load_space"]

STRENGTH = "augmentation.strength"
"""No key of a recipe: a factor on all values of its augmentation; see `Augmentation.scaled`."""

# What a search must not change: the data, the finding, and what is made of the network afterwards.
FIXED = ("name", "description", "classes", "target", "split", "seed", "populations", "precision", "keep")
FIXED_BEGINNINGS = ("calibration", "distillation", "lungs_only", "label_noise")


class Range(Strict):
    """Numbers from `low` to `high`, both included.

    Parameters
    ----------
    log : bool
        Draw evenly in the logarithm; `low` is then above 0.
    step : float or None
        Draw multiples of it above `low` only.
    whole : bool
        Whole numbers only; taken from the recipe's present value if not given.
    """

    low: float
    high: float
    log: bool = False
    step: float | None = Field(default=None, gt=0)
    whole: bool = False

    @model_validator(mode="after")
    def _agrees(self) -> Range:
        if not self.low < self.high:
            raise ValueError("low must be below high")
        if self.log and self.low <= 0:
            raise ValueError("low must be above 0 with log")
        if self.log and self.step is not None:
            raise ValueError("log and step exclude each other")
        if self.whole and not all(one % 1 == 0 for one in (self.low, self.high, self.step or 0)):
            raise ValueError("low, high and step must be whole numbers here")
        return self


@dataclass(frozen=True)
class SearchSpace:
    """The values that a search draws.

    Parameters
    ----------
    keys : dict
        By key of the recipe, or `STRENGTH`: a range, or the choices.
    """

    keys: dict[str, Range | tuple[Any, ...]]

    def to_yaml(self) -> str:
        """Return it as a file that `load_space` reads."""
        content = {
            key: one.model_dump(exclude_defaults=True) if isinstance(one, Range) else list(one)
            for key, one in self.keys.items()
        }
        return yaml.safe_dump(content, sort_keys=False)

    def holds(self, values: Mapping[str, Any]) -> bool:
        """Return whether each key has its value inside."""
        return all(
            isinstance(values[key], int | float) and one.low <= values[key] <= one.high
            if isinstance(one, Range)
            else values[key] in one
            for key, one in self.keys.items()
        )

    def applied(self, recipe: Recipe, values: Mapping[str, Any]) -> Recipe:
        """Return the recipe with drawn values; raises `RecipeError` where they exclude each other."""
        plain = {key: value for key, value in values.items() if key != STRENGTH}
        changed = recipe.with_values(plain)
        if STRENGTH in values:
            stronger = changed.augmentation.scaled(float(values[STRENGTH]))
            changed = changed.model_copy(update={"augmentation": stronger})
        return changed


def default_space(recipe: Recipe) -> SearchSpace:
    """Return the values that matter for most recipes, around those of the recipe.

    Learning rates by a factor of ten in either direction, weight decay, dropout, label smoothing; the
    strength of the augmentation and the exponent of the sampling where the recipe has them. The recipe's own
    values are inside.
    """
    keys: dict[str, Range | tuple[Any, ...]] = {
        f"phases.{number}.lr": Range(low=phase.lr / 10, high=phase.lr * 10, log=True)
        for number, phase in enumerate(recipe.phases)
    }
    # Decoupled decay (AdamW) takes far larger values than a penalty on the weights.
    low, high = (1e-3, 0.3) if recipe.optimizer == "adamw" else (1e-6, 1e-2)
    decay = recipe.weight_decay
    # No decay at all is no value on a logarithmic scale.
    keys["weight_decay"] = (
        Range(low=min(low, decay), high=max(high, decay), log=True) if decay else Range(low=0, high=high / 10)
    )
    keys["network.dropout"] = Range(low=0, high=max(0.6, recipe.network.dropout))
    keys["label_smoothing"] = Range(low=0, high=max(0.2, recipe.label_smoothing))
    if recipe.augmentation != Augmentation():
        keys[STRENGTH] = Range(low=0, high=2)
    if recipe.sampling is not None:
        keys["sampling.exponent"] = Range(low=0, high=1)
    return SearchSpace(keys)


def load_space(path: Path, recipe: Recipe) -> SearchSpace:
    """Read a search space and check every limit and choice against the recipe.

    Raises
    ------
    RecipeError
        If the file cannot be read, a key is none of the recipe's or must not be searched, or a value is not
        allowed there; the message names the key.
    """
    try:
        content = read_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecipeError(
            f"{path}: search space cannot be read ({error.strerror}); check the path"
        ) from error
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path}: search space cannot be read; save it as UTF-8") from error
    except ValueError as error:
        raise RecipeError(f"{path}: not valid YAML: {error}") from error
    if not isinstance(content, dict) or not content:
        raise RecipeError(f"{path}: a search space is a table of keys of the recipe, with ranges or choices")
    return SearchSpace({str(key): _checked(path, str(key), given, recipe) for key, given in content.items()})


def _checked(path: Path, key: str, given: Any, recipe: Recipe) -> Range | tuple[Any, ...]:
    known = [*recipe.values(), STRENGTH]
    if key not in known:
        guess = difflib.get_close_matches(key, known, n=1)
        hint = f"; did you mean {guess[0]!r}?" if guess else "; keys are those of the recipe"
        raise RecipeError(f"{path}: unknown key {key!r}{hint}")
    if key.endswith(".scratch_lr"):
        raise RecipeError(f"{path}: {key!r} takes the place of 'lr' without pretrained weights; search that")
    if key.split(".", maxsplit=1)[0] in FIXED or key.startswith(FIXED_BEGINNINGS):
        raise RecipeError(f"{path}: {key!r} is not searched, it is the same in all trials; leave it out")
    one = _parsed(path, key, given)
    if isinstance(one, Range) and key != STRENGTH:
        present = recipe.values()[key]
        both = isinstance(given["low"], int) and isinstance(given["high"], int)
        if both and not isinstance(present, float) and not one.whole:
            one = _parsed(path, key, given | {"whole": True})
    for value in _extremes(one):
        try:
            SearchSpace({}).applied(recipe, {key: value})
        except RecipeError as error:
            raise RecipeError(f"{path}: {key}: {value!r} is not allowed: {error}") from error
        except (TypeError, ValueError, OverflowError) as error:
            raise RecipeError(f"{path}: {key}: {value!r} is not a number that it can have") from error
    return one


def _parsed(path: Path, key: str, given: Any) -> Range | tuple[Any, ...]:
    if isinstance(given, list):
        if len(given) < 2:
            raise RecipeError(f"{path}: {key}: give two choices or more")
        # Lists and tables are no choices: trials.csv has one value a cell.
        if any(isinstance(one, list | dict) for one in given):
            raise RecipeError(f"{path}: {key}: a choice is a number, a text, true, false or null")
        return tuple(given)
    if not isinstance(given, dict):
        raise RecipeError(f"{path}: {key}: write a range {{low: …, high: …}} or a list of choices")
    try:
        return Range.model_validate(given)
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(map(str, fault["loc"]))
        message = str(fault["msg"]).removeprefix("Value error, ")
        raise RecipeError(f"{path}: {key}: {f'{where}: ' if where else ''}{message}") from error


def _extremes(one: Range | tuple[Any, ...]) -> tuple[Any, ...]:
    if not isinstance(one, Range):
        return one
    return (int(one.low), int(one.high)) if one.whole else (one.low, one.high)
