from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra [train]")
h5py = pytest.importorskip("h5py", reason="needs the extra [keras]")
if find_spec("keras") is None:
    pytest.skip("needs the extra [keras]", allow_module_level=True)

from torch import Tensor, nn  # noqa: E402

from pneumoscope.errors import MissingExtraError, PneumoscopeError  # noqa: E402
from pneumoscope.training.keras_export import check_keras, export_keras  # noqa: E402
from pneumoscope.training.networks import Network, build_network  # noqa: E402
from pneumoscope.training.recipe import NetworkSpec, load_recipe  # noqa: E402

# Stock Keras in a process of its own: it has never seen Pneumoscope and is told nothing but the file.
LOAD = """
import sys
import keras
import numpy as np
for folder in sys.argv[1:]:
    model = keras.models.load_model(folder + "/model.h5")
    np.save(folder + "/output.npy", model.predict(np.load(folder + "/images.npy"), verbose=0))
assert "pneumoscope" not in sys.modules
"""


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def used(network: Network, size: int) -> Network:
    """Give batch normalisation weights and statistics that a forgotten or swapped one would show."""
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        if norm.affine:
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias, 0, 0.3)
        norm.momentum = None  # the statistics become those of the images seen
    network.train()
    with torch.no_grad():
        network(torch.rand(8, 1, size, size))
    for norm in norms:
        norm.momentum = 0.1
    return network.eval()


def output_of(network: Network, images: Tensor) -> np.ndarray:
    with torch.inference_mode():
        return network(images)[0].softmax(dim=1).numpy()


def show(folder: Path, size: int) -> Tensor:
    """Put images beside the model, channels last, for Keras to read."""
    images = torch.rand(5, 1, size, size)
    np.save(folder / "images.npy", images.permute(0, 2, 3, 1).numpy())
    return images


def ask_keras(*folders: Path, backend: str = "torch") -> list[np.ndarray]:
    environment = {**os.environ, "KERAS_BACKEND": backend, "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-c", LOAD, *map(str, folders)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [np.load(folder / "output.npy") for folder in folders]


def custom_cnn(classes: int = 3, **options: object) -> Network:
    spec = NetworkSpec(name="custom-cnn", channels=1, dropout=0.5, options=options)
    return used(build_network(spec, classes), 32)


NETWORKS = {"custom-cnn": (1, 32), "vgg16": (3, 32), "vgg19": (3, 32), "inception_v3": (3, 96)}


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[np.ndarray, np.ndarray, float]]:
    """What the network and Keras say, and the difference that the export reported; Keras starts once."""
    folders, wanted, reported = [], [], []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for name, (channels, size) in NETWORKS.items():
            network = used(build_network(NetworkSpec(name=name, channels=channels), 3), size)
            folders.append(tmp_path_factory.mktemp(name))
            reported.append(export_keras(network, folders[-1] / "model.h5", size=size))
            wanted.append(output_of(network, show(folders[-1], size)))
    found = ask_keras(*folders)
    return dict(zip(NETWORKS, zip(wanted, found, reported, strict=True), strict=True))


@pytest.mark.parametrize("name", NETWORKS)
def test_stock_keras_gives_the_networks_output(
    name: str, outputs: dict[str, tuple[np.ndarray, np.ndarray, float]]
) -> None:
    wanted, found, reported = outputs[name]
    assert np.ptp(wanted, axis=0).max() > 5e-3, "the network says the same of every image: proves nothing"
    assert found.shape == (5, 3)
    np.testing.assert_allclose(found, wanted, atol=1e-3)
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-5)
    assert 0 < reported <= 1e-3


def test_export_says_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    export_keras(custom_cnn(widths=(4, 8)), tmp_path / "model.h5", size=32)
    assert capfd.readouterr() == ("", "")


def test_the_default_recipe_can_be_exported(tmp_path: Path) -> None:
    network = used(build_network(load_recipe("default").network, 3), 64)
    assert export_keras(network, tmp_path / "model.h5", size=64) <= 1e-3


@pytest.mark.parametrize("backend", ["jax", "openvino", "tensorflow"])
def test_other_backends_read_the_file(backend: str, tmp_path: Path) -> None:
    if find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed")
    network = custom_cnn(widths=(8, 16))
    export_keras(network, tmp_path / "model.h5", size=32)
    wanted = output_of(network, show(tmp_path, 32))
    (found,) = ask_keras(tmp_path, backend=backend)
    np.testing.assert_allclose(found, wanted, atol=1e-3)


def test_file_holds_nothing_but_stock_layers(tmp_path: Path) -> None:
    network = used(build_network(NetworkSpec(name="custom-cnn", dropout=0.25), 2), 32)
    export_keras(network, tmp_path / "model.h5", size=32)
    import keras  # only now: the export has chosen the backend

    with h5py.File(tmp_path / "model.h5") as file:
        layers = json.loads(file.attrs["model_config"])["config"]["layers"]
    kinds = {layer["class_name"] for layer in layers}
    assert not {kind for kind in kinds if not hasattr(keras.layers, kind)}
    assert "Lambda" not in kinds
    assert [layer["config"]["name"] for layer in layers[-3:]] == ["dropout", "logits", "probabilities"]
    assert layers[-3]["config"]["rate"] == 0.25


class Odd(nn.Module):
    """Operations in the forms that the shipped networks do not have, or have only at other sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Conv2d(3, 4, (1, 7), stride=(1, 2), padding=(0, 3))
        self.dilated = nn.Conv2d(4, 6, 3, padding=2, dilation=2, bias=False)
        self.norm = nn.BatchNorm2d(6, affine=False, eps=0.1)
        self.down = nn.MaxPool2d(3, 2, padding=1)
        self.mean = nn.AvgPool2d((3, 2), stride=1, padding=(1, 0))
        self.halve = nn.AvgPool2d(2, ceil_mode=True, count_include_pad=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.wide(x)
        x.relu_()  # whoever reads x from here on sees the rectified values
        y = self.norm(self.dilated(x)).relu()
        x = nn.functional.dropout(torch.cat([x, y], dim=1), 0.5, self.training)
        x = self.mean(self.down(x) + self.down(x))
        return self.halve(nn.functional.pad(x, (0, 1, 1, 3)))


def odd(backbone: nn.Module, features: int) -> Network:
    mean, std = (0.1, 0.5, 0.8), (0.2, 0.3, 0.4)
    return used(Network(backbone, features, 3, mean=mean, std=std), 32)


def test_rare_forms_of_operations_are_translated(tmp_path: Path) -> None:
    network = odd(Odd(), 10)
    assert export_keras(network, tmp_path / "model.h5", size=32) <= 1e-5
    images = torch.rand(3, 1, 32, 32)
    assert np.ptp(output_of(network, images), axis=0).max() > 1e-3


class Mobile(nn.Module):
    """Depthwise convolutions, clipped ReLU and enlargement, as in EfficientNet with a feature pyramid."""

    def __init__(self) -> None:
        super().__init__()
        self.each = nn.Conv2d(3, 6, 3, groups=3, stride=2, padding=1)  # two outputs a channel
        nn.init.normal_(self.each.weight, std=3)  # so that some values are above 6
        self.one = nn.Conv2d(6, 6, 3, groups=6, bias=False, dilation=2)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.relu6(self.one(nn.functional.relu6(self.each(x))))
        return nn.functional.interpolate(x, size=[24, 48]) + nn.functional.interpolate(x, scale_factor=(2, 4))


def test_depthwise_convolutions_clipped_relu_and_enlargement_are_translated(tmp_path: Path) -> None:
    network = odd(Mobile(), 6)
    assert export_keras(network, tmp_path / "model.h5", size=32) <= 1e-5
    images = torch.rand(3, 1, 32, 32)
    assert np.ptp(output_of(network, images), axis=0).max() > 1e-3


class Halves(nn.Module):
    """An operation with several results."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.add(*torch.cat([x, x], dim=1).chunk(2, dim=1))


@pytest.mark.parametrize(
    ("backbone", "named"),
    [
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.GELU()), "aten.gelu"),
        (nn.Conv2d(3, 6, 3, padding="same"), "aten.conv2d.padding"),
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, groups=2)), "groups of several channels"),
        (nn.Hardtanh(), "hardtanh below zero"),
        (nn.Upsample(size=(40, 48)), "enlarging 32 by 32 values to 40 by 48"),
        (nn.Sequential(nn.Conv2d(3, 4, 2), nn.MaxPool2d(2, ceil_mode=True)), "ceil_mode on 31 by 31"),
        (nn.AvgPool2d(3, padding=1, count_include_pad=False), "average pooling with a divisor of its own"),
        (Halves(), "getitem|aten.(chunk|split)"),
        (nn.ReflectionPad2d(1), "padding by other than zeros"),
    ],
)
def test_operation_without_an_equal_is_named(backbone: nn.Module, named: str, tmp_path: Path) -> None:
    features = backbone(torch.zeros(1, 3, 32, 32)).shape[1]
    with pytest.raises(PneumoscopeError, match=named):
        export_keras(odd(backbone, features), tmp_path / "model.h5", size=32)
    assert not list(tmp_path.iterdir())
    with pytest.raises(PneumoscopeError, match=named):
        check_keras(odd(backbone, features), size=32)


def test_a_check_leaves_the_network_as_it_was() -> None:
    network = custom_cnn(widths=(4,)).train()
    check_keras(network, size=32)
    assert network.training
    assert all(part.requires_grad for part in network.parameters())


class Louder(Network):
    """A network whose output is not head(mean(backbone)), which is what the export writes."""

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        logits, features = super().forward(images)
        return logits * 1.1, features


@pytest.mark.parametrize("spoil", ["forward", "padding", "nan"])
def test_file_that_differs_is_rejected_and_removed(spoil: str, tmp_path: Path) -> None:
    kind = Louder if spoil == "forward" else Network
    # Without a ReLU before it, zero padding is not what torch's max pooling does.
    layers = [nn.Conv2d(1, 4, 3)] + ([nn.MaxPool2d(3, 2, padding=1)] if spoil == "padding" else [])
    network = kind(nn.Sequential(*layers), 4, 3, mean=(0.5,), std=(0.2,))
    nn.init.constant_(layers[0].bias, -9.0)
    if spoil == "nan":
        nn.init.constant_(network.head.bias, float("nan"))
    with pytest.raises(PneumoscopeError, match="would differ from the network"):
        export_keras(network, tmp_path / "model.h5", size=32)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "fault"), [("model.onnx", r"\.h5"), ("a-file/model.h5", "cannot be written")]
)
def test_path_that_cannot_be_written_is_named(name: str, fault: str, tmp_path: Path) -> None:
    (tmp_path / "a-file").touch()
    with pytest.raises(PneumoscopeError, match=fault) as caught:
        export_keras(custom_cnn(widths=(4,)), tmp_path / name, size=32)
    assert str(caught.value).startswith(str(tmp_path / name))


@pytest.mark.parametrize("package", ["keras", "h5py"])
def test_absent_package_names_the_extra(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=r"\.\[keras\]"):
        export_keras(custom_cnn(widths=(4,)), tmp_path / "model.h5", size=32)


def test_backend_that_is_not_installed_is_one_clear_line(tmp_path: Path) -> None:
    absent = next((name for name in ("jax", "tensorflow") if find_spec(name) is None), None)
    if absent is None:
        pytest.skip("every backend is installed")
    script = (
        "from pathlib import Path; from pneumoscope.errors import PneumoscopeError\n"
        "from pneumoscope.training.keras_export import _import_keras\n"
        "try: _import_keras()\n"
        "except PneumoscopeError as error: print(error)\n"
    )
    environment = {**os.environ, "KERAS_BACKEND": absent}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith(f"Keras cannot start with KERAS_BACKEND={absent}")
    assert done.stdout.rstrip().endswith("set KERAS_BACKEND=torch")
