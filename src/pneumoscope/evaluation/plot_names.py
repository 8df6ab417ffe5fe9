"""Names of classes as plots can write them: the font of plots lacks many scripts, such as Chinese."""

from __future__ import annotations

from dataclasses import replace

from pneumoscope.errors import require_extra
from pneumoscope.evaluation.scores import ScoredSet

__all__ = ["named_for_plots"]


def named_for_plots(scored: ScoredSet) -> tuple[ScoredSet, dict[str, str]]:
    """Return a set for plots alone, in whose names the font of plots has every character.

    Parameters
    ----------
    scored : ScoredSet
        Evaluated images.

    Returns
    -------
    scored : ScoredSet
        With ``class 2``, by its place from 1, in place of a class whose name the fonts that matplotlib is set
        to use (``font.family``) cannot write, and ``the target`` in place of such a target.
    replaced : dict of str to str
        What stands for which name; empty where all names can be written.

    Raises
    ------
    MissingExtraError
        If matplotlib is absent.
    """
    with require_extra("evaluate", "Drawing plots"):
        from matplotlib.font_manager import FontProperties, findfont, get_font
    fonts = [get_font(findfont(FontProperties(family=[name]))) for name in FontProperties().get_family()]

    def can_write(name: str) -> bool:
        return all(any(font.get_char_index(ord(character)) for font in fonts) for character in name)

    stand_ins = {name: f"class {place}" for place, name in enumerate(scored.classes, start=1)}
    stand_ins.setdefault(scored.target.name, "the target")
    replaced = {name: other for name, other in stand_ins.items() if not can_write(name)}

    def shown(name: str) -> str:
        # Between two dollar signs would be a formula.
        return replaced.get(name) or name.replace("$", r"\$")

    target = replace(
        scored.target,
        name=shown(scored.target.name),
        classes=tuple(map(shown, scored.target.classes)),
    )
    named = replace(scored, classes=tuple(map(shown, scored.classes)), target=target)
    return named, {other: name for name, other in replaced.items()}
