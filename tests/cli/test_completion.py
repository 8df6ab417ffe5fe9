"""Completion, as the shells ask for it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pexpect
import pytest

import pneumoscope
from bundles import make_bundle
from pneumoscope import cli
from pneumoscope.cli.completion import complete_bundle

RECIPES = {path.stem for path in (Path(pneumoscope.__file__).parent / "recipes").glob("*.yaml")}
SHELLS = ("bash", "zsh", "fish")


def run(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pneumoscope", *words],
        capture_output=True,
        text=True,
        env=os.environ | environment,
        check=False,
        timeout=60,
    )


@pytest.fixture
def completed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., list[str]]:
    """Give a function that returns what bash would offer at the end of a line."""

    def offered(line: str, cwd: Path | None = None) -> list[str]:
        words = line.split(" ")
        with monkeypatch.context() as patch:
            if cwd is not None:
                patch.chdir(cwd)
            patch.setenv("_PNEUMOSCOPE_COMPLETE", "complete_bash")
            patch.setenv("COMP_WORDS", "\n".join(words))
            patch.setenv("COMP_CWORD", str(len(words) - 1))
            with pytest.raises(SystemExit) as left:
                cli.main([])
        assert not left.value.code
        out, err = capsys.readouterr()
        assert err == ""
        return out.split()

    return offered


def test_commands_subcommands_and_options_complete(completed):
    assert set(completed("pneumoscope ")) == set(cli.COMMANDS)
    assert completed("pneumoscope cross") == ["cross-validate"]
    assert completed("pneumoscope --quiet cross") == ["cross-validate"]
    assert set(completed("pneumoscope data ")) == {"fetch", "phantom", "audit", "split", "join", "summary"}
    assert "--operating-point" in completed("pneumoscope predict --")
    assert {"--quiet", "--verbose", "--debug"} <= set(completed("pneumoscope data audit --"))
    assert completed("pneumoscope predict --method ") == ["cam", "occlusion"]
    assert completed("pneumoscope data fetch k") == ["kermany"]


def test_recipes_complete_and_other_files_are_left_to_the_shell(completed):
    assert set(completed("pneumoscope train ")) == RECIPES
    assert completed("pneumoscope cross-validate incep") == ["inception-v3"]
    assert completed("pneumoscope train mine/") == []


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    make_bundle(folder / "first" / "bundle")
    (folder / "first-notes").mkdir()
    return folder


def test_operating_points_and_populations_are_those_of_the_bundle(runs, completed):
    manifest = json.loads((runs / "first" / "bundle" / "bundle.json").read_text())
    points = [one["name"] for one in manifest["calibrations"][0]["operating_points"]]
    line = f"pneumoscope predict --bundle {runs / 'first'} --operating-point "
    assert completed(line) == points
    assert completed(f"{line}never") == []
    assert completed(f"pneumoscope predict --bundle {runs / 'first'} --population ") == ["any"]
    assert "balanced" in completed("pneumoscope predict --operating-point ")


def test_bundles_and_run_folders_complete_and_other_folders_are_left_to_the_shell(runs, completed):
    assert completed("pneumoscope info --bundle fi", cwd=runs) == ["first"]
    assert completed(f"pneumoscope predict --bundle {runs}/") == [f"{runs}/first"]
    assert completed(f"pneumoscope recalibrate {runs}/f") == [f"{runs}/first"]
    assert complete_bundle(str(runs / "gone" / "x")) == []


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"calibrations": 3}'])
def test_a_damaged_bundle_completes_to_nothing(tmp_path, content, completed):
    (tmp_path / "bundle.json").write_text(content)
    assert completed(f"pneumoscope predict --bundle {tmp_path} --operating-point ") == []


def test_a_completion_loads_no_runtime():
    code = (
        "import os, sys\n"
        "os.environ |= {'_PNEUMOSCOPE_COMPLETE': 'complete_bash', 'COMP_CWORD': '3',\n"
        "    'COMP_WORDS': 'pneumoscope predict --operating-point '}\n"
        "from pneumoscope.cli import main\n"
        "try:\n    main([])\n"
        "finally:\n    heavy = {'numpy', 'cv2', 'onnxruntime', 'rich', 'torch'}\n"
        "    print(sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert "balanced" in done.stdout


@pytest.mark.parametrize("shell", SHELLS)
def test_the_script_of_each_shell_is_shown_and_installed(shell, tmp_path):
    shown = run("--show-completion", shell)
    assert shown.returncode == 0
    assert "_PNEUMOSCOPE_COMPLETE" in shown.stdout
    done = run("--install-completion", shell, HOME=str(tmp_path))
    assert (done.returncode, done.stdout) == (0, "")
    (line,) = done.stderr.splitlines()
    written = next(path for path in tmp_path.rglob("*pneumoscope*") if path.is_file())
    assert str(written) in line
    assert written.read_text().strip() == shown.stdout.strip()


def test_the_shell_is_that_of_the_caller():
    done = subprocess.run(
        ["bash", "-c", f"{sys.executable} -m pneumoscope --show-completion; true"],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"SHELL": "/bin/tcsh"},
    )
    assert "complete -o default -F _pneumoscope_completion pneumoscope" in done.stdout


@pytest.mark.parametrize(
    ("words", "hint"),
    [(["tcsh"], "bash, zsh, fish"), (["bash", "zsh"], "nothing but the name of a shell")],
)
def test_an_unknown_shell_is_one_line_and_exit_code_4(words, hint):
    done = run("--install-completion", *words)
    assert done.returncode == 4
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert hint in line


def test_a_home_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    done = run("--install-completion", "bash", HOME=str(tmp_path / "file"))
    assert done.returncode == 4
    (line,) = done.stderr.splitlines()
    assert "--show-completion bash" in line


@pytest.mark.parametrize("shell", SHELLS)
def test_a_real_shell_completes(shell, tmp_path):
    """Press tab in the shell itself, after the installation that its user would run."""
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    program = tmp_path / "bin" / "pneumoscope"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m pneumoscope "$@"\n')
    program.chmod(0o755)
    home = {"HOME": str(tmp_path), "PATH": f"{program.parent}:{os.environ['PATH']}", "TERM": "dumb"}
    assert run("--install-completion", shell, **home).returncode == 0
    (tmp_path / ".zshrc").open("a").close()
    words = {"bash": ["-i"], "zsh": ["-i"], "fish": ["--interactive"]}[shell]
    child = pexpect.spawn(shell, words, env=os.environ | home, encoding="utf-8", timeout=30)
    try:
        child.sendline("echo re''ady")
        child.expect("ready")
        child.send("pneumoscope cross-v\t")
        child.expect("cross-validate")
        child.send(" incep\t")
        child.expect("inception-v3")
    finally:
        child.close(force=True)


def test_a_closed_folder_and_an_unknown_home_complete_to_nothing(tmp_path, monkeypatch, completed):
    stat = Path.stat

    def closed(path, **options):
        if path.parent.name == "closed":
            raise PermissionError(13, "Permission denied", str(path))
        return stat(path, **options)

    (tmp_path / "closed").mkdir()
    monkeypatch.setattr(Path, "stat", closed)
    assert complete_bundle(f"{tmp_path}/clo") == []
    assert complete_bundle("~no-such-user/") == []
    line = "pneumoscope predict --bundle ~no-such-user/x --operating-point "
    assert completed(line) == []
