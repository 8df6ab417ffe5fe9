"""Pneumoscope reads a chest X-ray and says how likely it shows pneumonia, of which kind, and where.

For research; not a medical device.
"""

from __future__ import annotations

__version__ = "0.1.0"
