"""timm backbones, and where their ImageNet weights come from.

In this order: a checkpoint that the user gives, a package that is installed
(`pneumoscope.training.pretrained`), weights that were downloaded before, the hub.
"""

from __future__ import annotations

import difflib
import hashlib
import http.client
import struct
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, cast

import huggingface_hub
import timm
from safetensors import SafetensorError
from torch import nn

from pneumoscope.errors import RecipeError
from pneumoscope.training.pretrained import installed_weights, read_checkpoint, to_timm
from pneumoscope.training.recipe import CUSTOM_CNN, NetworkSpec

__all__ = ["file_source", "short", "timm_backbone"]

HUB_TIMEOUT = 10.0
# What torch, safetensors and timm raise for a file that is no checkpoint or that of another network, and the
# hub's client for a failed download.
_LOADING_ERRORS = (
    OSError, RuntimeError, ValueError, LookupError, AttributeError, TypeError, EOFError, struct.error,
    SafetensorError, AssertionError,
)  # fmt: skip


def timm_backbone(spec: NetworkSpec, *, pretrained: bool, weights: Path | None) -> tuple[nn.Module, str]:
    """Build a timm network.

    Parameters
    ----------
    spec : NetworkSpec
        Its name is timm's.
    pretrained : bool
        Start from ImageNet weights.
    weights : Path or None
        A timm checkpoint to take them from.

    Returns
    -------
    model : nn.Module
        With timm's own head.
    source : str
        Name and source of the weights, such as ``vgg16.tv_in1k (timm/vgg16.tv_in1k)``; empty without.

    Raises
    ------
    RecipeError
        If timm has no such network, or its weights are not available.
    """
    if spec.name not in timm.list_models():
        guess = difflib.get_close_matches(spec.name, [CUSTOM_CNN, *timm.list_models()], n=1)
        hint = f"did you mean {guess[0]!r}?" if guess else "see timm.list_models()"
        raise RecipeError(f"network.name: timm has no {spec.name!r}; {hint}")
    if weights is not None and not weights.is_file():
        raise RecipeError(f"{weights}: no such weights file; check --weights, or use --no-pretrained")
    overlay: dict[str, Any] = {}
    options = dict(spec.options)
    if spec.pyramid:
        options |= {"features_only": True, "out_indices": (-2, -1)}
    package = ""
    if weights is not None:
        overlay = {"file": str(weights)}
    elif pretrained and (installed := installed_weights(spec.name)):
        path, package = installed
        overlay = {"state_dict": to_timm(read_checkpoint(path), timm.create_model(spec.name))}
    elif pretrained and (cached := _cached_weights(spec.name)):
        overlay = {"file": str(cached)}
    try:
        model: nn.Module = timm.create_model(
            spec.name,
            pretrained=pretrained,
            in_chans=spec.channels,
            pretrained_cfg_overlay=overlay,
            **options,
        )
    except _LOADING_ERRORS as error:
        if weights is not None:
            raise RecipeError(f"{weights}: no timm checkpoint of {spec.name} ({short(error)})") from error
        if pretrained:
            raise _no_weights(spec.name, short(error)) from error
        raise RecipeError(f"network: {spec.name} cannot be built ({short(error)})") from error
    return model, _weights_source(model, weights, package) if pretrained else ""


def _weights_source(model: nn.Module, weights: Path | None, package: str) -> str:
    config = cast(dict[str, Any], model.pretrained_cfg)
    if weights is not None:
        return file_source(config["architecture"], weights)
    if package:
        return f"{config['architecture']} (package {package})"
    name = ".".join(part for part in (config["architecture"], config.get("tag")) if part)
    return f"{name} ({config.get('hf_hub_id') or config.get('url')})"


def file_source(architecture: str, weights: Path) -> str:
    """Return what provenance says of weights from a file."""
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    return f"{architecture} ({weights.name}, sha256 {digest[:12]})"


def _cached_weights(name: str) -> Path | None:
    """Return the downloaded weights where the hub cannot be reached; None where it can.

    The hub's own client retries for a minute before it gives up.

    Raises
    ------
    RecipeError
        If the hub cannot be reached and the weights were not downloaded before, or timm has none.
    """
    config = timm.get_pretrained_cfg(name)
    if config is None or not config.has_weights:
        raise _no_weights(name, "timm has none")
    hub = huggingface_hub.constants.ENDPOINT
    if not config.hf_hub_id or (not huggingface_hub.is_offline_mode() and _reachable(hub)):
        return None
    for filename in ("model.safetensors", "pytorch_model.bin"):
        found = huggingface_hub.try_to_load_from_cache(config.hf_hub_id, filename)
        if isinstance(found, str):
            return Path(found)
    raise _no_weights(name, f"{hub} cannot be reached")


def _reachable(address: str) -> bool:
    request = urllib.request.Request(address, method="HEAD")
    try:
        with urllib.request.urlopen(request, timeout=HUB_TIMEOUT):
            return True
    except urllib.error.HTTPError:
        return True  # it responded
    except (OSError, http.client.HTTPException):
        return False


def _no_weights(name: str, why: str) -> RecipeError:
    return RecipeError(
        f"ImageNet weights for {name} are not available ({why}): give a timm checkpoint with --weights FILE, "
        "or start from scratch with --no-pretrained"
    )


def short(error: BaseException) -> str:
    """Return the message of an error in one line of at most 100 characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 100 else text[:97] + "..."
