"""The job for KubeRay: its schema, and that its command is one of this program.

KubeRay's resource definitions come in no package. `RAY_JOB` has their fields, types and requirements, after
``rayjob_types.go`` and ``raycluster_types.go`` of KubeRay's API v1; pods are those of Kubernetes, of which
kubernetes-validate has the schemas.
"""

from __future__ import annotations

import shlex
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import typer
import yaml

from pneumoscope.cli.batch import batch

REPOSITORY = Path(__file__).parents[1]


COUNT = {"type": "integer", "minimum": 0, "maximum": 2**31 - 1}
TEXT = {"type": "string"}
WORDS = {"type": "object", "additionalProperties": TEXT}


def _object(required: str, **properties: object) -> dict[str, object]:
    return {
        "type": "object",
        "required": required.split(),
        "properties": properties,
        "additionalProperties": False,
    }


GROUP = {"rayStartParams": WORDS, "template": {"type": "object"}}
HEAD = _object(
    "rayStartParams template",
    **GROUP,
    serviceType=TEXT,
    headService={"type": "object"},
    enableIngress={"type": "boolean"},
)
WORKERS = _object(
    "groupName minReplicas maxReplicas rayStartParams template",
    **GROUP,
    groupName=TEXT,
    replicas=COUNT,
    minReplicas=COUNT,
    maxReplicas=COUNT,
    numOfHosts=COUNT,
    scaleStrategy={"type": "object"},
)
CLUSTER = _object(
    "headGroupSpec",
    headGroupSpec=HEAD,
    workerGroupSpecs={"type": "array", "items": WORKERS},
    rayVersion=TEXT,
    enableInTreeAutoscaling={"type": "boolean"},
    autoscalerOptions={"type": "object"},
    headServiceAnnotations=WORDS,
    suspend={"type": "boolean"},
)
SPEC = _object(
    "",
    activeDeadlineSeconds=COUNT,
    backoffLimit=COUNT,
    rayClusterSpec=CLUSTER,
    submitterPodTemplate={"type": "object"},
    metadata=WORDS,
    clusterSelector=WORDS,
    submitterConfig=_object("", backoffLimit=COUNT),
    managedBy=TEXT,
    deletionStrategy={"type": "object"},
    entrypoint=TEXT,
    runtimeEnvYAML=TEXT,
    jobId=TEXT,
    submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode"]},
    entrypointResources=TEXT,
    entrypointNumCpus={"type": "number"},
    entrypointNumGpus={"type": "number"},
    ttlSecondsAfterFinished=COUNT,
    shutdownAfterJobFinishes={"type": "boolean"},
    suspend={"type": "boolean"},
    schedule=TEXT,
)
RAY_JOB = _object(
    "apiVersion kind metadata spec",
    apiVersion={"const": "ray.io/v1"},
    kind={"const": "RayJob"},
    metadata={"type": "object", "required": ["name"]},
    spec=SPEC,
)


@pytest.fixture
def job() -> dict[str, Any]:
    text = (REPOSITORY / "deploy" / "ray" / "rayjob.yaml").read_text(encoding="utf-8")
    content: dict[str, Any] = yaml.safe_load(text)
    return content


def test_the_job_has_the_fields_of_the_operator(job: dict[str, Any]) -> None:
    jsonschema.Draft202012Validator(RAY_JOB).validate(job)
    job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["rayStartParams"]["num-cpus"] = 16
    with pytest.raises(jsonschema.ValidationError, match="16 is not of type 'string'"):
        jsonschema.Draft202012Validator(RAY_JOB).validate(job)


def test_its_pods_are_pods_of_kubernetes(job: dict[str, Any]) -> None:
    schemas = pytest.importorskip("kubernetes_validate", reason="needs kubernetes-validate (108 MB)")
    cluster = job["spec"]["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        pod = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "pod"}}
        schemas.validate(pod | {"template": group["template"]}, "1.31", strict=True)


def test_the_image_has_what_the_operator_needs(job: dict[str, Any]) -> None:
    """With ray[data] alone Ray has no job server: nothing can be submitted, and no pod gets ready."""
    text = (REPOSITORY / "deploy" / "ray" / "rayjob.yaml").read_text(encoding="utf-8")
    dockerfile = (REPOSITORY / "deploy" / "container" / "Dockerfile").read_text(encoding="utf-8")
    cluster = job["spec"]["rayClusterSpec"]
    assert f"'ray[default]=={cluster['rayVersion']}'" in text
    # Earlier ones start bash -l, which loses the PATH of the image.
    assert "KubeRay operator (1.4 or later" in text
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        user = group["template"]["spec"]["securityContext"]["runAsUser"]
        assert f"--uid {user} " in dockerfile


def test_the_job_is_complete_and_starts_the_command(job: dict[str, Any]) -> None:
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
    shell, option, script = shlex.split(job["spec"]["entrypoint"])
    assert (shell, option) == ("sh", "-c")
    line, _, otherwise = script.partition(" || ")
    assert otherwise == "[ $? -eq 3 ]", "images that could not be predicted are rows, and no failure"
    program, command, *words = shlex.split(line)
    assert (program, command) == ("pneumoscope", "batch")
    application = typer.Typer()
    application.command()(batch)
    parsed = typer.main.get_command(application).make_context("batch", words).params
    assert parsed["address"] == "auto"
    assert parsed["output"].startswith("s3://")
