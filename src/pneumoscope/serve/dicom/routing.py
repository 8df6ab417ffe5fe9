"""Which rule an image falls under: calling AE title, modality, body part, view and age."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pneumoscope.serve.dicom.config import RuleConfig
from pneumoscope.serve.dicom.config_types import matches
from pneumoscope.serve.dicom.journal import PRIORITIES

__all__ = ["ImageFacts", "Route", "priority_on_arrival", "route"]


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """What rules look at.

    Parameters
    ----------
    calling_aet : str
        Or the name of the folder or server that the image came from.
    modality, body_part, view : str
        As the header states them, upper case; empty where it does not.
    age : float or None
        In years.
    """

    calling_aet: str
    modality: str = ""
    body_part: str = ""
    view: str = ""
    age: float | None = None


@dataclass(frozen=True, slots=True)
class Route:
    """What happens to an image.

    Parameters
    ----------
    process : bool
    destinations : tuple of str
        Names.
    priority : str
    rule : int or None
        Number of the rule, from 1; None where no rule fits.
    """

    process: bool
    destinations: tuple[str, ...]
    priority: str = "routine"
    rule: int | None = None


def route(facts: ImageFacts, rules: Sequence[RuleConfig], destinations: Sequence[str]) -> Route:
    """Return what the first rule that fits says; without one, an image is processed and goes everywhere.

    Parameters
    ----------
    facts : ImageFacts
    rules : sequence of RuleConfig
    destinations : sequence of str
        Names of all destinations.
    """
    for number, rule in enumerate(rules, start=1):
        if _fits(facts, rule):
            chosen = tuple(destinations) if rule.destinations is None else rule.destinations
            return Route(rule.process, chosen, rule.priority, number)
    return Route(True, tuple(destinations))


def priority_on_arrival(calling_aet: str, rules: Sequence[RuleConfig]) -> int:
    """Return the priority that an image of a sender has before its header is read.

    It is the least that the image may turn out to have, because a priority is never lowered: that of the
    first rule with conditions on the calling AE title only, or a lower one of a rule before it that may fit.
    """
    possible = []
    for rule in rules:
        if rule.calling_aet and not any(matches(calling_aet, one) for one in rule.calling_aet):
            continue
        if rule.process:  # the order of what is ignored does not matter
            possible.append(PRIORITIES[rule.priority])
        if not (rule.modality or rule.body_part or rule.view or any(one is not None for one in rule.ages)):
            return min(possible, default=0)
    return 0


def _fits(facts: ImageFacts, rule: RuleConfig) -> bool:
    first, below = rule.ages
    if first is not None or below is not None:
        if facts.age is None:
            return False
        if (first is not None and facts.age < first) or (below is not None and facts.age >= below):
            return False
    return all(
        not allowed or any(matches(stated, one) for one in allowed)
        for stated, allowed in (
            (facts.calling_aet, rule.calling_aet),
            (facts.modality, rule.modality),
            (facts.body_part, rule.body_part),
            (facts.view, rule.view),
        )
    )
