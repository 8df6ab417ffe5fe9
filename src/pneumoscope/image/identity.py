"""Patients told apart without being named."""

from __future__ import annotations

import hashlib
import os
import secrets

__all__ = ["SALT_VARIABLE", "patient_key"]

SALT_VARIABLE = "PNEUMOSCOPE_SALT"
"""Environment variable with the salt of patient keys, for keys that stay the same between runs."""

# Without that variable keys are of no use outside this process, which is the safe default.
_process_salt = secrets.token_hex(16)


def patient_key(identity: str) -> str | None:
    """Return the salted hash of a patient's identity; None where it is empty."""
    if not identity:
        return None
    salt = os.environ.get(SALT_VARIABLE) or _process_salt
    return hashlib.blake2b(
        identity.encode(errors="replace"), digest_size=12, key=hashlib.blake2b(salt.encode()).digest()
    ).hexdigest()
