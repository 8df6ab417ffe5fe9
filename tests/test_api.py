"""The public interface: what it lists exists, is documented, and is loaded only when it is used."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest

import pneumoscope
from pneumoscope import errors


@pytest.mark.parametrize("name", [name for name in pneumoscope.__all__ if name != "__version__"])
def test_every_public_name_exists_and_has_a_docstring(name):
    value = getattr(pneumoscope, name)
    assert value.__name__ == name
    assert inspect.getdoc(value)


def test_the_whole_error_tree_is_public():
    tree = {
        name
        for name, value in vars(errors).items()
        if inspect.isclass(value) and issubclass(value, errors.PneumoscopeError)
    }
    assert tree <= set(pneumoscope.__all__)
    assert all(name in (errors.__doc__ or "") for name in tree)


def test_private_names_are_attribute_errors():
    with pytest.raises(AttributeError, match="no attribute 'Network'"):
        _ = pneumoscope.Network
    assert set(pneumoscope.__all__) <= set(dir(pneumoscope))


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import pneumoscope", ("numpy", "onnxruntime", "torch", "pydantic", "sklearn")),
        ("from pneumoscope import Predictor", ("torch", "sklearn", "matplotlib", "scipy")),
        ("from pneumoscope import evaluate, recalibrate", ("torch", "matplotlib")),
    ],
)
def test_nothing_is_imported_before_it_is_needed(statement, absent):
    code = f"import sys; {statement}; print([name for name in {absent!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_functions_and_packages_do_not_hide_each_other():
    code = (
        "import pneumoscope, pneumoscope.training, pneumoscope.evaluation.recalibration\n"
        "print([callable(getattr(pneumoscope, name)) for name in ('train', 'evaluate', 'recalibrate')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[True, True, True]"
