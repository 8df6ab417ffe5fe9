from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

import pneumoscope
from pneumoscope import cli
from pneumoscope.cli.common import exit_code
from pneumoscope.errors import DataError


def run(*words, capsys):
    with pytest.raises(SystemExit) as left:
        cli.main(list(words))
    return left.value.code, *capsys.readouterr()


def test_help_lists_every_command_and_loads_no_runtime():
    code = (
        "import sys\nfrom pneumoscope.cli import main\n"
        "try:\n    main(['--help'])\n"
        "finally:\n    heavy = {'numpy', 'cv2', 'pydantic', 'onnxruntime', 'rich', 'torch'}\n"
        "    print(sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for name, command in cli.COMMANDS.items():
        assert f"  {name} " in done.stdout
        assert command.help in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"


def test_help_takes_little_more_than_its_library():
    def seconds(*words: str) -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, *words], capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    # Processor time, in turn: both are slow alike on a slow or busy machine.
    pairs = [(seconds("-m", "pneumoscope", "--help"), seconds("-c", "import typer")) for _ in range(4)]
    help_page, library = map(min, zip(*pairs, strict=True))
    assert help_page < 3 * library


def test_the_module_is_the_command_and_knows_its_version():
    done = subprocess.run(
        [sys.executable, "-m", "pneumoscope", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"pneumoscope {pneumoscope.__version__}\n"


def test_wrong_use_is_exit_code_2(capsys):
    assert run("no-such-command", capsys=capsys)[0] == 2
    assert run("predict", capsys=capsys)[0] == 2
    assert run("info", "--no-such-option", capsys=capsys)[0] == 2
    code, out, err = run(capsys=capsys)
    assert code == 2
    assert "Commands" in out + err


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (("samples", ""), "an argument"),
        (("data", "phantom", " "), "an argument"),
        (("demo", "--out", ""), "what follows --out"),
        (("demo", "--out="), "--out"),
    ],
)
def test_an_empty_word_is_wrong_use_and_not_the_current_folder(capsys, monkeypatch, tmp_path, words, what):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(*words, capsys=capsys)
    assert (code, out) == (2, "")
    assert f"Error: {what} is empty, " in err
    assert not any(tmp_path.iterdir())


@pytest.fixture
def failing(monkeypatch):
    def raising(error):
        def command() -> None:
            raise error

        monkeypatch.setitem(cli.COMMANDS, "info", cli.Command(__name__, "command", "Fails."))
        monkeypatch.setattr(sys.modules[__name__], "command", command, raising=False)

    return raising


def test_an_error_of_ours_is_one_line_and_exit_code_4(capsys, failing):
    failing(DataError("x.csv: no column\n'path'"))
    code, out, err = run("info", capsys=capsys)
    assert (code, out, err) == (4, "", "error: x.csv: no column 'path'\n")


@pytest.mark.parametrize("words", [("--debug", "info"), ("info", "--debug")])
def test_debug_shows_where_it_happened(failing, words):
    failing(DataError("x.csv: no column"))
    with pytest.raises(DataError):
        cli.main(words)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),
        (OSError(errno.EACCES, "Permission denied", "out/a.json"), "out/a.json: Permission denied"),
    ],
)
def test_an_error_of_the_system_is_one_line(capsys, failing, error, line):
    failing(error)
    assert run("info", capsys=capsys) == (4, "", f"error: {line} (--debug shows where)\n")


UNFLUSHED = """
import sys
from pneumoscope import cli
def command() -> None:
    sys.stdout.write("x" * int(sys.argv[1]))
cli.COMMANDS["info"] = cli.Command("__main__", "command", "Writes.")
cli.main(["info"])
"""


@pytest.mark.parametrize("length", ["1", "100000"])
@pytest.mark.parametrize(
    ("full", "line"),
    [(True, "error: No space left on device (--debug shows where)\n"), (False, "")],
    ids=["full", "closed"],
)
def test_output_that_cannot_be_written_is_exit_code_4_and_one_line_where_it_is_full(length, full, line):
    """Also where the text fits into the buffer, so that the end of the process would write it."""
    if full and not Path("/dev/full").exists():
        pytest.skip("no /dev/full")
    reading, writing = os.pipe()
    os.close(reading)
    if full:
        os.close(writing)
        writing = os.open("/dev/full", os.O_WRONLY)
    try:
        call = [sys.executable, "-c", UNFLUSHED, length]
        buffered = {name: text for name, text in os.environ.items() if name != "PYTHONUNBUFFERED"}
        done = subprocess.run(
            call, stdout=writing, stderr=subprocess.PIPE, text=True, env=buffered, check=False
        )
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (4, line)


def test_an_interrupt_is_exit_code_130(capsys, failing):
    failing(KeyboardInterrupt())
    assert run("info", capsys=capsys)[0] == 130


def test_an_error_in_the_program_is_not_hidden(failing):
    failing(ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        cli.main(["info"])


def test_a_command_that_is_not_installed_breaks_no_other(capsys, monkeypatch):
    monkeypatch.setitem(cli.COMMANDS, "train", cli.Command("pneumoscope.cli.gone", "train", "Gone."))
    code, _, err = run("train", capsys=capsys)
    assert (code, err) == (4, "error: the command 'train' is not part of this installation\n")
    assert run("--help", capsys=capsys)[0] == 0


@pytest.mark.parametrize(("done", "left_out", "code"), [(1, 0, 0), (1, 1, 3), (0, 1, 4), (0, 0, 4)])
def test_exit_codes_of_a_batch(done, left_out, code):
    assert exit_code(done=done, left_out=left_out) == code


def test_the_public_names_are_there_and_no_others():
    for name in pneumoscope.__all__:
        assert getattr(pneumoscope, name) is not None
    assert set(pneumoscope.__all__) <= set(dir(pneumoscope))
    with pytest.raises(AttributeError, match="no attribute 'predict_all'"):
        _ = pneumoscope.predict_all


def test_the_words_of_the_process_are_left_to_the_library_which_resolves_wildcards_on_windows(monkeypatch):
    given = []
    monkeypatch.setattr(cli, "_application", lambda words: lambda **options: given.append(options["args"]))
    monkeypatch.setattr(sys, "argv", ["pneumoscope", "predict", "*.png"])
    cli.main()
    cli.main(["predict", "*.png"])
    assert given == [None, ["predict", "*.png"]]
