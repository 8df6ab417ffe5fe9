"""The job for KubeRay: its structure, and that its command is one of this program.

The schema of KubeRay's own resource definitions comes in no package of PyPI; what the operator requires is
listed here.
"""

from __future__ import annotations

import shlex
import tomllib
from pathlib import Path

import typer
import yaml

from pneumoscope.cli.batch import batch

REPOSITORY = Path(__file__).parents[1]


def test_the_job_is_complete_and_starts_the_command() -> None:
    job = yaml.safe_load((REPOSITORY / "deploy" / "ray" / "rayjob.yaml").read_text(encoding="utf-8"))
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    cluster = job["spec"]["rayClusterSpec"]
    head, (worker,) = cluster["headGroupSpec"], cluster["workerGroupSpecs"]
    assert worker["minReplicas"] <= worker["replicas"] <= worker["maxReplicas"]
    images = set()
    for group in (head, worker):
        assert isinstance(group["rayStartParams"], dict)
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        images.add(container["image"])
        assert container["resources"]["requests"] == container["resources"]["limits"]
        assert {one["name"] for one in container["volumeMounts"]} == {one["name"] for one in pod["volumes"]}
        assert pod["securityContext"]["runAsNonRoot"] is True
    assert len(images) == 1, "head and workers run the same versions"
    pins = (REPOSITORY / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert f"ray=={cluster['rayVersion']}" in pins
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert any(one.startswith("ray[data]") for one in project["optional-dependencies"]["batch"])
    program, command, *words = shlex.split(job["spec"]["entrypoint"])
    assert (program, command) == ("pneumoscope", "batch")
    application = typer.Typer()
    application.command()(batch)
    parsed = typer.main.get_command(application).make_context("batch", words).params
    assert parsed["address"] == "auto"
    assert parsed["output"].startswith("s3://")
