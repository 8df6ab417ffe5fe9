"""The options that every command has: --quiet, --verbose and --debug, before and after its name."""

from __future__ import annotations

import subprocess
import sys

import pytest

from bundles import make_bundle
from images import write_image
from pneumoscope import cli
from pneumoscope.cli import main
from pneumoscope.cli.options import shown

DATA = ("fetch", "phantom", "audit", "split", "join", "summary")
# The other commands of the node print their own lines, those of `audit` are JSON.
NODE = ("status", "report")
COMMANDS = [
    *([name] for name in cli.COMMANDS),
    *(["data", name] for name in DATA),
    *(["dicom", name] for name in NODE),
]
GROUPS = (["data"], ["dicom"])


@pytest.fixture
def call(capsys):
    def run(*words):
        with pytest.raises(SystemExit) as left:
            main(list(map(str, words)))
        return left.value.code, *capsys.readouterr()

    return run


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return make_bundle(tmp_path_factory.mktemp("tiny")).path


@pytest.fixture
def folder(tmp_path):
    write_image(tmp_path / "in" / "0.png")
    (tmp_path / "in" / "1.png").write_bytes(b"")
    return tmp_path / "in"


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_the_help_of_every_command_lists_them(command, call):
    code, out, _ = call(*command, "--help")
    assert code == 0
    for option in ("-q, --quiet", "-v, --verbose", "--debug"):
        assert out.count(option) == 1


@pytest.mark.parametrize("command", [one for one in COMMANDS if one not in GROUPS], ids=" ".join)
def test_every_command_can_print_json(command, call):
    assert "--json" in call(*command, "--help")[1]


@pytest.mark.parametrize("quiet", ["-q", "--quiet"])
@pytest.mark.parametrize("before", [True, False])
def test_quiet_is_silent_and_the_results_and_the_code_stay(call, bundle, folder, quiet, before):
    words = ["predict", "--bundle", bundle, folder]
    code, out, err = call(*words)
    assert (code, err.count("empty_file")) == (3, 1)
    assert call(*((quiet, *words) if before else (*words, quiet))) == (code, out, "")


def test_quiet_keeps_errors(call, bundle, tmp_path):
    code, out, err = call("predict", "--quiet", "--bundle", tmp_path / "none", tmp_path)
    assert (code, out, len(err.splitlines())) == (4, "", 1)
    assert err.startswith("error: ")


def test_quiet_holds_for_subcommands_wherever_it_stands(call, tmp_path):
    for number, words in enumerate((["-q", "data"], ["data", "-q"], ["data"])):
        tail = [] if "-q" in words else ["-q"]
        out = tmp_path / str(number)
        code, _, err = call(*words, "phantom", out, "--n", 3, "--size", 32, *tail)
        assert (code, err) == (0, "")


def test_verbose_tells_the_time_of_each_step(bundle, folder):
    command = [sys.executable, "-m", "pneumoscope", "predict", "-v", "--bundle", bundle, folder / "0.png"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "predicting: done in" in done.stderr
    assert done.stderr.startswith("pneumoscope ")
    assert done.stdout.startswith("path\t")


def test_quiet_and_verbose_exclude_each_other(call, bundle, folder):
    code, out, err = call("--quiet", "predict", folder, "--verbose")
    assert (code, out) == (2, "")
    assert "exclude each other" in err


def test_one_command_does_not_quieten_the_next(call, bundle, folder):
    call("predict", "--quiet", "--bundle", bundle, folder)
    assert shown().quiet
    assert "empty_file" in call("predict", "--bundle", bundle, folder)[2]
    assert not shown().quiet


def test_an_option_after_two_dashes_is_a_file(call, bundle):
    code, out, _ = call("predict", "--bundle", bundle, "--json", "--", "--quiet")
    assert code == 4
    assert '"path": "--quiet"' in out
