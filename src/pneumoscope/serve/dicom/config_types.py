"""Types of single values in ``node.yaml``, with what is wrong with a value in words."""

from __future__ import annotations

import ipaddress
import math
import re
import urllib.parse
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from pneumoscope.domain import ViewPosition

__all__ = [
    "REBUILT_CALLER",
    "AeTitle",
    "Ages",
    "Level",
    "Network",
    "PlainName",
    "Port",
    "Seconds",
    "ViewText",
    "WebAddress",
    "is_ae_title",
    "is_in",
    "matches",
]

LONGEST_AET = 16
REBUILT_CALLER = "REBUILD"
"""In place of the sender of an image that a new journal was made of and that does not state one."""

IPV4_IN_IPV6 = 96  # bits before the IPv4 address in ::ffff:10.0.0.1


def is_ae_title(text: str) -> bool:
    """Return whether DICOM allows it as an AE title: 1 to 16 printable ASCII characters, no backslash."""
    fits = 0 < len(text) <= LONGEST_AET
    return fits and text.isascii() and text.isprintable() and "\\" not in text


def _ae_title(value: str) -> str:
    stripped = value.strip()
    if not is_ae_title(stripped):
        raise ValueError(f"an AE title has 1 to {LONGEST_AET} printable ASCII characters and no backslash")
    return stripped


def is_in(address: str, networks: Iterable[IPv4Network | IPv6Network]) -> bool:
    """Return whether the address of a peer is in one of the networks; what is no address is in none."""
    try:
        plain = _plain_address(address)
    except ValueError:
        return False
    return any(plain in network for network in networks)


def _plain_address(text: str) -> IPv4Address | IPv6Address:
    """Return an address; one of IPv4 that IPv6 writes as ``::ffff:10.0.0.1`` as that of IPv4."""
    address = ipaddress.ip_address(text)
    return (address.ipv4_mapped if address.version == 6 else None) or address


def _network(value: object) -> IPv4Network | IPv6Network:
    # A number would be taken for the address that it encodes.
    is_address = isinstance(value, (str, IPv4Address, IPv4Network, IPv6Address, IPv6Network))
    try:
        network = ipaddress.ip_network(str(value) if is_address else repr(value))
    except ValueError as error:
        raise ValueError(
            f"{error}; give an address such as 10.20.0.11 or a network such as 10.20.0.0/24; host names are "
            "not looked up"
        ) from error
    address = _plain_address(str(network.network_address))
    if network.version == 6 and address.version == 4 and network.prefixlen >= IPV4_IN_IPV6:
        return IPv4Network((str(address), network.prefixlen - IPV4_IN_IPV6))
    return network


def matches(stated: str, allowed: str) -> bool:
    """Return whether a value of an image fits one of a rule, where ``*`` at the end stands for anything."""
    if not stated:
        return False
    if allowed.endswith("*"):
        return stated.upper().startswith(allowed[:-1].upper())
    return stated.upper() == allowed.upper()


def _view(value: str) -> str:
    views = [str(view) for view in ViewPosition]
    if not any(matches(one, value) for one in views):
        raise ValueError(f"no image has the view {value!r}; give {', '.join(views[:-1])} or {views[-1]}")
    return value


def _ages(value: tuple[float | None, float | None]) -> tuple[float | None, float | None]:
    least, below = value
    # In this order: NaN is below nothing, and the greater one of NaN and another number is the first.
    if not max(least or 0.0, 0.0) < (math.inf if below is None else below):
        bounds = f"at least {least or 0:g}" + ("" if below is None else f" and below {below:g}")
        raise ValueError(f"no age is {bounds}; give [least, below] in years")
    return value


def _plain_name(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", value):
        raise ValueError("a name has 1 to 64 letters, digits, '_', '.' or '-'")
    return value


def _web_address(value: str) -> str:
    try:
        urllib.parse.urlsplit(value).port  # noqa: B018 - reading it checks it
    except ValueError:  # whose text may quote a part of a password
        raise ValueError("host or port is not valid; give an address as https://HOST:8042/PATH") from None
    return value


Ages = Annotated[tuple[float | None, float | None], AfterValidator(_ages)]
Network = Annotated[IPv4Network | IPv6Network, BeforeValidator(_network)]
ViewText = Annotated[str, AfterValidator(_view)]
AeTitle = Annotated[str, AfterValidator(_ae_title)]
PlainName = Annotated[str, AfterValidator(_plain_name)]
Port = Annotated[int, Field(ge=0, le=65535)]
Seconds = Annotated[float, Field(gt=0, le=604_800)]
Level = Literal["routine", "high", "urgent"]
WebAddress = Annotated[str, AfterValidator(_web_address)]
