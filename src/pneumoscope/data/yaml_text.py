"""Reads YAML: a key that a table has twice is an error, where YAML itself takes the last one."""

from __future__ import annotations

from typing import Any

import yaml

__all__ = ["read_yaml"]


class _UniqueKeys(yaml.SafeLoader):
    """Plain values only, each key once."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Read a table; its keys are compared before ``<<`` adds those of another one."""
        node = super().compose_mapping_node(anchor)
        seen: set[tuple[str, str]] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if (key.tag, key.value) in seen:
                problem = f"the key {key.value!r} is given twice"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            seen.add((key.tag, key.value))
        return node


def read_yaml(text: str) -> Any:
    """Return the values of a YAML text.

    Raises
    ------
    ValueError
        If it is no YAML, or a table has a key twice, or for a value that cannot be, such as a 13th month, or
        tables in tables without end; the message is one line that names the key and its place.
    """
    try:
        return yaml.load(text, Loader=_UniqueKeys)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(" ".join(str(error).split())) from error
