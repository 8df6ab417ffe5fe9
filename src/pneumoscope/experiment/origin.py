"""Where the images of an experiment come from and how they were divided, as its bundle says it."""

from __future__ import annotations

from dataclasses import dataclass

from pneumoscope.data.manifest import Manifest
from pneumoscope.experiment.plan import Experiment
from pneumoscope.model.manifest import Provenance
from pneumoscope.training.recipe import SplitSpec

__all__ = ["Origin"]


@dataclass(frozen=True)
class Origin:
    """The data of an experiment.

    Parameters
    ----------
    experiment : Experiment
    manifest : Manifest
        The data set, with its split.
    added : Manifest or None
        What is learnt from besides.
    brings_split : bool
        Whether the data had their split already, so that the recipe's does not count.
    """

    experiment: Experiment
    manifest: Manifest
    added: Manifest | None
    brings_split: bool

    @property
    def name(self) -> str:
        """The data set, in a word."""
        return self.experiment.described_as or self.experiment.data.resolve().name

    @property
    def division(self) -> str:
        """How the images were divided, in words."""
        how = self._split
        return f"by {how.method}, seed {how.seed}" if how else "as the data give it"

    def evaluated_on(self, side: str) -> str:
        """Name one side of the split, as figures and calibrators do."""
        return f"{self.name}, {side} split ({self.division})"

    def provenance(self, taught_by: tuple[str, ...] = ()) -> Provenance:
        """Return what the bundle keeps of it."""
        how = self._split
        return Provenance(
            data_fingerprint=self.manifest.fingerprint(),
            data_description=self.name,
            split_seed=how.seed if how else None,
            split_method=how.method if how else "given",
            split_fingerprint=self.manifest.split_fingerprint(),
            also_description=_described(self.added) if self.added else "",
            also_fingerprint=self.added.fingerprint() if self.added else "",
            teachers=taught_by,
        )

    @property
    def _split(self) -> SplitSpec | None:
        return None if self.brings_split else self.experiment.recipe.split


def _described(added: Manifest) -> str:
    sources = sorted({record.source for record in added.records if record.source})
    return f"{len(added)} images of {', '.join(sources) or added.root.resolve().name}"
