"""The web face: a page and a REST interface over one bundle.

Uploads live in memory only and are gone with the answer. They are decoded and judged in separate, confined
processes, so that a hostile file can take down no more than the row that speaks of it.
"""

from __future__ import annotations

import os

# Official builds of ONNX Runtime report their use to Microsoft and keep files under HOME and TMPDIR, from the
# moment they are imported; this alone prevents it, and holds for the workers too.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
