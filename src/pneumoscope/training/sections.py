"""The sections of a recipe: network, phases, split, sampling, distillation, pretraining, auxiliary tasks."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from pneumoscope.domain import Population

__all__ = [
    "CUSTOM_CNN",
    "CrossFitted",
    "Distillation",
    "Expert",
    "NetworkSpec",
    "Phase",
    "Pretraining",
    "Sampling",
    "SplitSpec",
    "Strict",
    "Tasks",
]

CUSTOM_CNN = "custom-cnn"
"""Name of the network that is no timm backbone."""


class Strict(BaseModel):
    """Frozen, and unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Expert(Strict):
    """Layers that the images of one population pass in place of those that are shared by all.

    Parameters
    ----------
    population : Population
        With bounds. Best the one that there are images of: narrower than a population for calibration may be.
    blocks : int
        Of how many of the backbone's last blocks it has its own, besides the layers of the pyramid.
    """

    population: Population
    blocks: int = Field(default=1, ge=1)

    @model_validator(mode="after")
    def _agrees(self) -> Expert:
        if not self.population.is_bounded:
            raise ValueError("population: needs bounds of age, such as ages: [0, 5], or views")
        return self


class NetworkSpec(Strict):
    """The network: a timm backbone or ``custom-cnn``, with a pooled-linear head.

    Parameters
    ----------
    name : str
        As timm spells it, or ``custom-cnn``.
    pretrained : bool
        Start from ImageNet weights; it is an error if they are not available.
    channels : {1, 3}
        Input channels of the backbone; with 3 the grey image is repeated inside the graph.
    dropout : float
        Before the head.
    pyramid : int or None
        Channels of a feature map that joins the backbone's last two resolutions at the finer one (Lin et
        al., Feature Pyramid Networks, CVPR 2017); None for the backbone's own last map.
    expert : Expert or None
        Needs a pyramid, and a phase in which it is trained; until then there is none.
    options : dict
        Further keyword arguments of the backbone.
    """

    name: str
    pretrained: bool = False
    channels: Literal[1, 3] = 3
    dropout: float = Field(default=0.0, ge=0, lt=1)
    pyramid: int | None = Field(default=None, ge=8, le=1024)
    expert: Expert | None = None
    options: dict[str, Any] = {}

    @model_validator(mode="after")
    def _agrees(self) -> NetworkSpec:
        if self.expert is not None and self.pyramid is None:
            raise ValueError("expert: needs a pyramid; give its number of channels")
        return self


class Phase(Strict):
    """Some epochs with one learning rate and one set of frozen layers.

    Parameters
    ----------
    lr, scratch_lr : float
        Learning rate; and the one that replaces it where the network starts from scratch.
    frozen : int or {"none", "backbone"}
        Number of convolutional layers, counted from the input, that are not trained; or the whole backbone.
    schedule : {"constant", "cosine"}
        Cosine falls to zero over the phase after `warmup` epochs (Loshchilov and Hutter, ICLR 2017).
    augmentation_strength : float
        Factor on all values of the recipe's augmentation. Weaker in the last phase, so that the network ends
        on images like those that it will be given (He et al., *Data Augmentation Revisited*, 2019).
    expert : bool
        Train the layers of the network's expert alone, on images of its population alone. The first such
        phase begins with a copy of the shared layers and fits the gate.
    average_power : float or None
        In place of the recipe's `ema` in this phase: update t counts in proportion to t to this power in the
        average of the weights (Shamir and Zhang, ICML 2013, polynomial-decay averaging). It spans a share of
        the whole training, not a number of updates, and so stands for a falling learning rate.
    lungs_only, sampling_exponent, trust : float or None
        Replace `Augmentation.lungs_only`, `Sampling.exponent` and `Distillation.trust` in this phase.
    """

    epochs: int = Field(ge=1)
    lr: float = Field(gt=0)
    scratch_lr: float | None = Field(default=None, gt=0)
    frozen: Annotated[int, Field(ge=0)] | Literal["none", "backbone"] = "none"
    schedule: Literal["constant", "cosine"] = "constant"
    warmup: float = Field(default=0.0, ge=0)
    augmentation_strength: float = Field(default=1.0, ge=0, le=2)
    expert: bool = False
    average_power: float | None = Field(default=None, ge=0)
    lungs_only: float | None = Field(default=None, ge=0, le=1)
    sampling_exponent: float | None = Field(default=None, ge=0, le=1)
    trust: float | None = Field(default=None, ge=0, le=1)

    def conflict(
        self,
        expert: Expert | None,
        sampling: Sampling | None,
        distillation: Distillation | None,
        ema: float | None,
    ) -> str:
        """Return which key does not agree with these parts of its recipe, and why; empty if all do."""
        if self.expert and expert is None:
            return "expert: needs network.expert, which the recipe does not have"
        if self.expert and self.frozen != "none":
            return "frozen: has no effect where the expert alone is trained; leave it out"
        for key, section, own in (
            ("sampling_exponent", "sampling", sampling),
            ("trust", "distillation", distillation),
            ("average_power", "ema", ema),
        ):
            if own is None and getattr(self, key) is not None:
                return f"{key}: needs {section}, which the recipe does not have"
        return ""


class SplitSpec(Strict):
    """How images are split; ``patient`` keeps a patient and duplicates in one split."""

    method: Literal["patient", "random"] = "patient"
    fractions: tuple[float, float, float] = (0.7, 0.15, 0.15)
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _agrees(self) -> SplitSpec:
        if min(self.fractions) <= 0 or abs(sum(self.fractions) - 1) > 1e-6:
            raise ValueError("fractions: must be three numbers above 0 with the sum 1")
        return self


class CrossFitted(Strict):
    """Teachers that are each trained without a part of the training patients, and predict only that part.

    So the teacher's probabilities are those of images that it was not trained on: they show how doubtful a
    label is, where a network repeats the labels of its own training images.

    Parameters
    ----------
    networks : tuple of str
        As `NetworkSpec.name`; each is trained by the student's recipe otherwise, without its network options
        where the name is another, and their mean is taken.
    folds : int
        Parts of the training patients.
    epochs : int
        Of each training.
    """

    networks: tuple[str, ...] = Field(min_length=1)
    folds: int = Field(default=4, ge=2)
    epochs: int = Field(ge=1)

    @model_validator(mode="after")
    def _agrees(self) -> CrossFitted:
        if len(set(self.networks)) != len(self.networks):
            raise ValueError("networks: each must be listed once")
        return self


class Distillation(Strict):
    """Teachers for the network (Hinton et al., Distilling the Knowledge in a Neural Network, 2015).

    Parameters
    ----------
    teacher : str
        Recipe by name or file; it takes classes, target and split of the student, its input may differ. It is
        trained first, unless bundles are given in its place. Empty for none, where there is `cross_fitted`.
    trust : float
        Share of the loss that follows the teacher and not the label.
    sources : tuple of str
        Sources of the images that `teacher` was trained on, where the data set has others too; all if
        empty. It predicts no image of another source.
    cross_fitted : CrossFitted or None
        Teachers of all training images; an image that `teacher` predicts too gets the mean of both.
    """

    teacher: str = ""
    trust: float = Field(default=0.5, ge=0, le=1)
    sources: tuple[str, ...] = ()
    cross_fitted: CrossFitted | None = None

    @model_validator(mode="after")
    def _agrees(self) -> Distillation:
        if not self.teacher and self.cross_fitted is None:
            raise ValueError("teacher: name a recipe, or give cross_fitted")
        if self.sources and not self.teacher:
            raise ValueError("sources: are those of a teacher; name its recipe")
        return self


class Pretraining(Strict):
    """Self-supervised epochs on the training images, before training with labels."""

    epochs: int = Field(ge=1)
    lr: float = Field(default=1e-3, gt=0)


class Tasks(Strict):
    """Auxiliary tasks, trained by heads that are not exported.

    Parameters
    ----------
    lungs : float
        Weight of segmenting the lungs on the feature map, as the lung segmenter does.
    source : float
        Weight of not being able to tell the sources of a class apart (Ganin et al., Domain-Adversarial
        Training of Neural Networks, JMLR 2016).
    boxes : float
        Weight of locating the target: the place at which its evidence is largest, by the weights of the head
        itself, is trained to be inside the boxes that a reader drew, and inside the lungs in an image of the
        target without boxes.
    """

    lungs: float = Field(default=0.0, ge=0, le=10)
    source: float = Field(default=0.0, ge=0, le=10)
    boxes: float = Field(default=0.0, ge=0, le=10)


class Sampling(Strict):
    """How often an image is drawn in an epoch.

    Groups are the images of one source, label and view. A group of n images is drawn in proportion to
    n ** `exponent`, so that a small group counts for more than its size, and no source for a label.

    Parameters
    ----------
    exponent : float
        1 draws all images alike, 0 all groups.
    images : int or None
        Draws in an epoch; the number of training images if None.
    """

    exponent: float = Field(default=0.5, ge=0, le=1)
    images: int | None = Field(default=None, ge=2)
