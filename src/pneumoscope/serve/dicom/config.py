"""``node.yaml``: all settings of a node. An unknown key is an error that names the nearest known one.

Every part is a pydantic model, so that a mistake is found when the node starts and not when an image arrives.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ValidationError, ValidationInfo, field_validator, model_validator

from pneumoscope.errors import DataError
from pneumoscope.serve.dicom.config_parts import (
    MB,
    CallerConfig,
    DestinationConfig,
    FolderConfig,
    Limits,
    ListenConfig,
    MetricsConfig,
    PriorityConfig,
    ProcessConfig,
    PullConfig,
    ResultsConfig,
    RetryConfig,
    RuleConfig,
    Strict,
    TlsClientConfig,
    TlsServerConfig,
)
from pneumoscope.serve.dicom.config_types import REBUILT_CALLER, AeTitle, matches

__all__ = [
    "MB",
    "CallerConfig",
    "DestinationConfig",
    "FolderConfig",
    "Limits",
    "ListenConfig",
    "MetricsConfig",
    "NodeConfig",
    "PriorityConfig",
    "ProcessConfig",
    "PullConfig",
    "ResultsConfig",
    "RetryConfig",
    "RuleConfig",
    "TlsClientConfig",
    "TlsServerConfig",
    "check_rules",
    "load_config",
]

M = TypeVar("M", bound=BaseModel)


class NodeConfig(Strict):
    """Content of ``node.yaml``.

    Parameters
    ----------
    folder : Path
        Of received datasets, journal, results and logs. One node a folder.
    mode : {"shadow", "live"}
        ``shadow``: process and record, send nothing.
    bundle : Path or None
        The shipped bundle if not given.
    aet : str
        AE title of the node, called and calling.
    any_called_aet : bool
        Accept associations that call another AE title.
    listen : ListenConfig
    callers : tuple of CallerConfig
        Who may send; empty for anyone, which is allowed on a loopback address only.
    destinations, rules, folders, pull
        Where results go; what happens to which images; further ways in.
    results, process, priority, retry, limits, metrics
    log_level : {"debug", "info", "warning", "error"}
    """

    folder: Path
    mode: Literal["shadow", "live"] = "shadow"
    bundle: Path | None = None
    aet: AeTitle = "PNEUMOSCOPE"
    any_called_aet: bool = False
    listen: ListenConfig = ListenConfig()
    callers: tuple[CallerConfig, ...] = ()
    destinations: tuple[DestinationConfig, ...] = ()
    rules: tuple[RuleConfig, ...] = ()
    folders: tuple[FolderConfig, ...] = ()
    pull: tuple[PullConfig, ...] = ()
    results: ResultsConfig = ResultsConfig()
    process: ProcessConfig = ProcessConfig()
    priority: PriorityConfig = PriorityConfig()
    retry: RetryConfig = RetryConfig()
    limits: Limits = Limits()
    metrics: MetricsConfig = MetricsConfig()
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    @field_validator("destinations", "callers", "pull")
    @classmethod
    def _distinct(cls, values: tuple[Any, ...], info: ValidationInfo) -> tuple[Any, ...]:
        names = [getattr(one, "name", None) or getattr(one, "aet", None) for one in values]
        if len(set(names)) < len(names):
            raise ValueError(f"two entries of {info.field_name} have the same name")
        return values

    @model_validator(mode="after")
    def _known_destinations(self) -> NodeConfig:
        known = {one.name for one in self.destinations}
        for rule in self.rules:
            if unknown := set(rule.destinations or ()) - known:
                raise ValueError(f"a rule names the unknown destination {', '.join(sorted(unknown))}")
        if self.mode == "live" and not self.destinations:
            raise ValueError("mode live needs a destination; mode shadow sends nothing")
        if not self.callers and self.listen.host not in {"127.0.0.1", "::1", "localhost"}:
            raise ValueError(
                f"anyone who reaches {self.listen.host} could send; name who may under callers, or listen "
                "on 127.0.0.1"
            )
        return self

    @property
    def senders(self) -> tuple[str, ...]:
        """Who may send: callers, and the names of folders and servers; empty where anyone may."""
        if not self.callers:
            return ()
        names = [one.aet for one in self.callers]
        names += [one.name for one in self.folders] + [one.name for one in self.pull]
        return tuple(dict.fromkeys(names))


def load_config(path: Path) -> NodeConfig:
    """Read ``node.yaml``; relative paths in it are those from the folder that it is in.

    Raises
    ------
    DataError
        If it cannot be read, has an unknown key, or a value of the wrong type; the line names the key.
    """
    from pneumoscope.data.yaml_text import read_yaml

    try:
        content = read_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check --config") from error
    except ValueError as error:
        raise DataError(f"{path}: not YAML in UTF-8 ({error})") from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: must have keys; 'folder' is the only one that is required")
    try:
        config = NodeConfig.model_validate(content)
    except ValidationError as error:
        raise DataError(f"{path}: {_first_fault(error)}") from error
    return _resolved(config, path.absolute().parent)


def check_rules(config: NodeConfig, path: Path) -> None:
    """Find a rule for a sender that there is not, before the node starts.

    Not by `load_config`: other commands are for what a caller had sent before it was removed, too.

    Parameters
    ----------
    config : NodeConfig
    path : Path
        Of ``node.yaml``, for the error.

    Raises
    ------
    DataError
        If no calling AE title, and no name of a folder or server, fits a value of a rule.
    """
    if not config.senders:
        return
    for number, rule in enumerate(config.rules):
        for allowed in rule.calling_aet:
            if not any(matches(sender, allowed) for sender in (*config.senders, REBUILT_CALLER)):
                raise DataError(
                    f"{path}: rules.{number}.calling_aet: no sender has the calling AE title {allowed}; "
                    f"those that may send are {', '.join(config.senders)}"
                )


def _first_fault(error: ValidationError) -> str:
    fault = error.errors()[0]
    where = ".".join(str(part) for part in fault["loc"]) or "the file"
    if fault["type"] == "extra_forbidden":
        guess = difflib.get_close_matches(str(fault["loc"][-1]), _keys(), n=1)
        return f"unknown key '{where}'" + (f"; did you mean '{guess[0]}'?" if guess else "")
    if fault["type"] == "missing":
        return f"the key '{where}' is missing"
    return f"{where}: {fault['msg'].removeprefix('Value error, ')}"


def _keys() -> list[str]:
    models: list[type[BaseModel]] = [NodeConfig, *Strict.__subclasses__()]
    return sorted({name for model in models for name in model.model_fields})


def _resolved(model: M, base: Path) -> M:
    """Return a model with every relative path made absolute."""
    changes: dict[str, Any] = {}
    for name in type(model).model_fields:
        value = getattr(model, name)
        if isinstance(value, Path):
            changes[name] = base / value
        elif isinstance(value, BaseModel):
            changes[name] = _resolved(value, base)
        elif isinstance(value, tuple) and any(isinstance(one, BaseModel) for one in value):
            changes[name] = tuple(_resolved(one, base) for one in value)
    return model.model_copy(update=changes)
