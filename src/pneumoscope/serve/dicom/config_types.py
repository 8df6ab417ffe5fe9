"""Types of single values in ``node.yaml``, with what is wrong with a value in words."""

from __future__ import annotations

import re
import urllib.parse
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

__all__ = ["AeTitle", "Level", "PlainName", "Port", "Seconds", "WebAddress", "is_ae_title"]

LONGEST_AET = 16


def is_ae_title(text: str) -> bool:
    """Return whether DICOM allows it as an AE title: 1 to 16 printable ASCII characters, no backslash."""
    fits = 0 < len(text) <= LONGEST_AET
    return fits and text.isascii() and text.isprintable() and "\\" not in text


def _ae_title(value: str) -> str:
    stripped = value.strip()
    if not is_ae_title(stripped):
        raise ValueError(f"an AE title has 1 to {LONGEST_AET} printable ASCII characters and no backslash")
    return stripped


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


AeTitle = Annotated[str, AfterValidator(_ae_title)]
PlainName = Annotated[str, AfterValidator(_plain_name)]
Port = Annotated[int, Field(ge=0, le=65535)]
Seconds = Annotated[float, Field(gt=0, le=604_800)]
Level = Literal["routine", "high", "urgent"]
WebAddress = Annotated[str, AfterValidator(_web_address)]
