from __future__ import annotations

import os
import subprocess
import sys


def test_nothing_reports_its_use_or_keeps_files(web_bundle, tmp_path):
    """Official builds of ONNX Runtime do both unless they are configured before the import."""
    home, temporary = tmp_path / "home", tmp_path / "temporary"
    home.mkdir()
    temporary.mkdir()
    code = (
        "import pneumoscope.serve.web\n"
        "from pneumoscope.predict.predictor import Predictor\n"
        f"Predictor.load({str(web_bundle.path)!r}, workers=1)\n"
    )
    silencing = {"ORT_DISABLE_TELEMETRY", "CI"}
    environment = {name: value for name, value in os.environ.items() if name not in silencing}
    environment |= {"HOME": str(home), "TMPDIR": str(temporary), "PYTHONDONTWRITEBYTECODE": "1"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, timeout=120)
    assert [*home.rglob("*"), *temporary.rglob("*")] == []
