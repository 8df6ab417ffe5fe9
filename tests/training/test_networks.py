from __future__ import annotations

import http.server
import socket
import threading
import time

import huggingface_hub
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from pneumoscope.errors import RecipeError
from pneumoscope.training import backbones
from pneumoscope.training.networks import (
    GREY_MEAN,
    GREY_STD,
    build_network,
    check_size,
    freeze,
    load_weights,
    save_weights,
    set_training,
)
from pneumoscope.training.pyramid import PyramidWithExpert
from pneumoscope.training.recipe import NetworkSpec, load_recipe, recipe_names

TINY = NetworkSpec(name="resnet10t", channels=1, options={"channels": [8, 8, 16, 16], "stem_width": 8})


@pytest.fixture(scope="module")
def vgg19():
    return built("vgg19-first16")


def built(name):
    """Build a recipe's network, from nothing."""
    recipe = load_recipe(name)
    torch.manual_seed(0)
    return build_network(recipe.network, len(recipe.classes), pretrained=False)


# These differ from another network, vgg16 and hospitals, in the last layer alone.
@pytest.mark.parametrize("name", sorted({*recipe_names()} - {"vgg16-two-class", "finetune"}))
def test_a_shipped_recipe_gives_a_pooled_linear_network_whose_every_weight_learns(name):
    network = built(name)
    size = 96 if name == "inception-v3" else 64
    images = torch.rand(2, 1, size, size)
    if isinstance(network.backbone, PyramidWithExpert):
        network.backbone.start(torch.ones(network.head.in_features), torch.zeros(()))
        freeze(network, "none")
    logits, features = network.train()(images)
    assert logits.shape == (2, len(load_recipe(name).classes))
    assert features.ndim == 4
    assert features.shape[:2] == (2, network.head.in_features)
    logits.square().sum().backward()
    idle = [key for key, weight in network.named_parameters() if weight.grad is None]
    assert idle == []

    with torch.no_grad():
        logits, features = network.eval()(images)
        torch.testing.assert_close(logits, network.head(features.mean(dim=(2, 3))))


def convolutions(network):
    return [module for module in network.backbone.modules() if isinstance(module, nn.Conv2d)]


def test_freezing_counts_convolutions_from_the_input(vgg19):
    network = vgg19
    everything = sum(weight.numel() for weight in network.parameters())
    assert len(convolutions(network)) == 16
    assert freeze(network, "none") == everything
    head = network.head.weight.numel() + network.head.bias.numel()
    assert freeze(network, 16) == head
    assert freeze(network, "backbone") == head
    assert freeze(network, 15) == head + sum(w.numel() for w in convolutions(network)[15].parameters())
    assert not any(w.requires_grad for layer in convolutions(network)[:15] for w in layer.parameters())
    assert freeze(network, "none") == everything, "what was frozen thaws"


def test_a_pyramid_that_no_checkpoint_has_is_not_frozen(tmp_path):
    save_file(timm_model().state_dict(), tmp_path / "w.safetensors")
    network = build_network(TINY.model_copy(update={"pyramid": 8}), 2, weights=tmp_path / "w.safetensors")
    freeze(network, "backbone")
    trained = {name.rsplit(".", 2)[0] for name, one in network.named_parameters() if one.requires_grad}
    assert trained == {"backbone.fine", "backbone.coarse", "backbone.join", "head"}
    set_training(network)
    assert network.backbone.join[1].training
    assert not network.backbone.model.bn1.training


def test_norms_of_every_kind_thaw_after_a_phase_that_froze_all():
    network = build_network(NetworkSpec(name="convnext_atto"), 3)
    everything = freeze(network, "none")
    freeze(network, "backbone")
    assert freeze(network, "none") == everything


def test_frozen_batch_normalisation_keeps_its_statistics():
    network = built("custom-cnn")
    freeze(network, 2)
    norms = [module for module in network.backbone.modules() if isinstance(module, nn.BatchNorm2d)]
    before = [norm.running_mean.clone() for norm in norms]
    set_training(network)
    network(torch.rand(4, 1, 32, 32))
    moved = [not torch.equal(norm.running_mean, old) for norm, old in zip(norms, before, strict=True)]
    assert moved == [False, False] + [True] * 8
    assert network.dropout.training


def test_plain_deep_networks_start_with_a_signal(vgg19):
    """He's initialisation keeps the spread of the features through the 16 layers of VGG19."""
    with torch.no_grad():
        _, features = vgg19.eval()(torch.rand(2, 1, 64, 64))
    assert 0.1 < float(features.std()) < 10


def test_channels_decide_what_the_backbone_sees():
    grey, colour = (build_network(TINY.model_copy(update={"channels": n}), 2) for n in (1, 3))
    assert convolutions(grey)[0].in_channels == 1
    assert convolutions(colour)[0].in_channels == 3
    assert grey.mean.numel() == 1
    assert colour.mean.flatten().tolist() == pytest.approx([0.485, 0.456, 0.406])
    assert colour(torch.rand(2, 1, 64, 64))[0].shape == (2, 2)


@pytest.mark.parametrize(
    ("name", "mean", "std"),
    [
        ("inception_v3", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        ("tf_efficientnet_lite0", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        ("vgg16", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ("resnet18", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ],
)
def test_a_backbone_gets_the_normalisation_that_it_was_trained_with(name, mean, std):
    network = build_network(NetworkSpec(name=name), 2)
    assert network.mean.shape == network.std.shape == (1, 3, 1, 1)
    assert network.mean.flatten().tolist() == pytest.approx(mean)
    assert network.std.flatten().tolist() == pytest.approx(std)


def test_a_grey_backbone_gets_the_mean_over_the_colours_with_weights_and_that_of_radiographs_without(
    tmp_path,
):
    save_file(timm_model().state_dict(), tmp_path / "w.safetensors")
    trained = build_network(TINY, 2, weights=tmp_path / "w.safetensors")
    assert trained.mean.flatten().tolist() == pytest.approx([(0.485 + 0.456 + 0.406) / 3])
    assert trained.std.flatten().tolist() == pytest.approx([(0.229 + 0.224 + 0.225) / 3])
    scratch = build_network(TINY, 2)
    assert (float(scratch.mean), float(scratch.std)) == pytest.approx((GREY_MEAN, GREY_STD))


@pytest.mark.parametrize(
    ("name", "hint"),
    [("resnet_18", "did you mean 'resnet"), ("custom_cnn", "'custom-cnn'"), ("zzzzzz", "timm")],
)
def test_an_unknown_network_is_one_line_with_a_guess(name, hint):
    with pytest.raises(RecipeError, match=hint) as caught:
        build_network(NetworkSpec(name=name), 2)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "spec",
    [
        NetworkSpec(name="resnet10t", options={"chanels": [8]}),
        NetworkSpec(name="custom-cnn", channels=1, options={"depth": 3}),
        NetworkSpec(name="custom-cnn", channels=1, pyramid=16),  # was ignored
        NetworkSpec(name="vit_tiny_patch16_224"),  # takes one size alone
        NetworkSpec(name="swinv2_cr_tiny_224"),
        NetworkSpec(name="mixer_s32_224"),
        NetworkSpec(name="resnet10t", options={"output_stride": 4}),  # timm asserts another
        NetworkSpec(name="resnet10t", options={"channels": [8, 16]}),
        NetworkSpec(name="resnet10t", options={"features_only": True}),
        NetworkSpec(name="custom-cnn", channels=1, options={"widths": [-1]}),
    ],
)
def test_a_network_that_cannot_be_used_is_one_line(spec):
    with pytest.raises(RecipeError, match=r"^network") as caught:
        build_network(spec, 2)
    assert "\n" not in str(caught.value)


def test_an_image_too_small_for_the_network_is_one_line():
    network = built("custom-cnn")
    check_size(network, 32)
    assert network.training
    with pytest.raises(RecipeError, match=r"^input.size: 16 pixels are too few"):
        check_size(network, 16)


def test_an_image_of_another_size_than_a_transformer_takes_is_one_line():
    network = build_network(NetworkSpec(name="vit_tiny_patch16_224", pyramid=8), 2)
    with pytest.raises(RecipeError, match=r"^input.size: this network takes no 128 pixels") as caught:
        check_size(network, 128)
    assert "\n" not in str(caught.value)


# Weights


def timm_model():
    torch.manual_seed(1)
    return timm.create_model(TINY.name, in_chans=3, **TINY.options)


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth"])
def test_a_timm_checkpoint_gives_its_weights_and_not_its_head(tmp_path, name):
    source = timm_model()
    path = tmp_path / name
    save_file(source.state_dict(), path) if name.endswith("safetensors") else torch.save(
        source.state_dict(), path
    )
    network = build_network(TINY.model_copy(update={"channels": 3}), 2, weights=path)
    torch.testing.assert_close(network.backbone.model.layer1[0].conv1.weight, source.layer1[0].conv1.weight)
    assert network.head.out_features == 2
    assert network.weights_source.startswith(f"resnet10t ({name}, sha256 ")
    # One grey channel takes the sum of the three colours' filters, so a grey image gives the same.
    grey = build_network(TINY, 2, weights=path)
    torch.testing.assert_close(
        grey.backbone.model.conv1[0].weight, source.conv1[0].weight.sum(dim=1, keepdim=True)
    )


def wrong_files(folder):
    (folder / "junk.safetensors").write_bytes(b"junk" * 20)
    (folder / "empty.safetensors").write_bytes(b"")
    (folder / "junk.pth").write_bytes(b"junk" * 20)
    (folder / "short.pth").write_bytes(b"junk")
    (folder / "empty.pth").write_bytes(b"")
    save_file({"other": torch.zeros(3)}, folder / "other.safetensors")
    torch.save({"state_dict": [1, 2]}, folder / "list.pth")
    torch.save(nn.Linear(2, 2), folder / "code.pth")  # a pickled module, which would run code
    return sorted(path.name for path in folder.iterdir())


def test_a_file_that_is_no_checkpoint_of_the_network_is_one_line(tmp_path):
    for name in wrong_files(tmp_path):
        with pytest.raises(RecipeError, match=f"{name}: no timm checkpoint of resnet10t") as caught:
            build_network(TINY, 2, weights=tmp_path / name)
        assert "\n" not in str(caught.value)


def test_a_weights_file_that_is_absent_is_one_line(tmp_path):
    with pytest.raises(RecipeError, match=r"absent.pth: no such weights file.*--weights.*--no-pretrained"):
        build_network(TINY, 2, weights=tmp_path / "absent.pth")


def test_the_custom_network_has_no_pretrained_weights(tmp_path):
    with pytest.raises(RecipeError, match="--no-pretrained"):
        build_network(NetworkSpec(name="custom-cnn", pretrained=True), 2)


@pytest.fixture
def no_hub(monkeypatch, tmp_path):
    """A hub's address where nobody listens, and an empty cache."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return address


def test_weights_that_cannot_be_had_are_one_quick_line_with_both_ways_out(no_hub):
    started = time.monotonic()
    with pytest.raises(RecipeError, match="ImageNet weights for resnet10t are not available") as caught:
        build_network(NetworkSpec(name="resnet10t", pretrained=True), 2)
    assert time.monotonic() - started < 10
    message = str(caught.value)
    assert no_hub in message
    assert "--weights FILE" in message
    assert "--no-pretrained" in message
    assert "\n" not in message


def test_offline_mode_does_not_ask_the_hub(monkeypatch, no_hub):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(backbones, "_reachable", lambda address: pytest.fail("asked"))
    with pytest.raises(RecipeError, match="--no-pretrained"):
        build_network(NetworkSpec(name="resnet10t", pretrained=True), 2)


def test_a_network_for_which_timm_has_no_weights_is_one_line(no_hub):
    with pytest.raises(RecipeError, match=r"timm has none.*--no-pretrained"):
        build_network(NetworkSpec(name="cspresnet50d", pretrained=True), 2)


def test_weights_that_were_downloaded_before_serve_without_the_hub(no_hub, tmp_path):
    source = timm.create_model("resnet10t")
    folder = tmp_path / "hub" / "models--timm--resnet10t.c3_in1k"
    (folder / "snapshots" / "abc").mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("abc")
    save_file(source.state_dict(), folder / "snapshots" / "abc" / "model.safetensors")
    network = build_network(NetworkSpec(name="resnet10t", pretrained=True), 2)
    torch.testing.assert_close(network.backbone.model.layer1[0].conv1.weight, source.layer1[0].conv1.weight)
    assert network.weights_source == "resnet10t.c3_in1k (timm/resnet10t.c3_in1k)"
    assert build_network(NetworkSpec(name="resnet10t"), 2).weights_source == ""


def test_a_response_from_the_hub_counts_even_if_it_is_no():
    class Refusing(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_error(403)

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Refusing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        assert backbones._reachable(f"http://127.0.0.1:{server.server_port}")
        server.shutdown()


# Saving


def test_weights_survive_a_round_trip(tmp_path):
    torch.manual_seed(3)
    first, second = build_network(TINY, 2), build_network(TINY, 2)
    save_weights(first, tmp_path / "model.safetensors")
    load_weights(second, tmp_path / "model.safetensors")
    for key, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[key]), key
    assert set(load_file(tmp_path / "model.safetensors")) == set(first.state_dict())
    (tmp_path / "any").touch()
    assert (tmp_path / "model.safetensors").stat().st_mode == (tmp_path / "any").stat().st_mode


def test_a_run_continues_from_the_whole_network_of_another(tmp_path):
    spec = NetworkSpec(name="tf_efficientnet_lite0", pyramid=16)
    network = build_network(spec, 3, pretrained=False, seed=1)
    save_weights(network, tmp_path / "model.safetensors")
    again = build_network(spec, 3, weights=tmp_path / "model.safetensors", seed=2)
    images = torch.rand(2, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(network.eval()(images)[0], again.eval()(images)[0])
    assert "model.safetensors, sha256" in again.weights_source
    assert freeze(again, "backbone") == again.head.weight.numel() + again.head.bias.numel()
    with pytest.raises(RecipeError, match="does not hold the weights of this recipe's network"):
        build_network(spec, 4, weights=tmp_path / "model.safetensors")


def test_weights_of_another_network_are_rejected_in_one_line(tmp_path):
    save_weights(build_network(TINY, 2), tmp_path / "two.safetensors")
    (tmp_path / "junk.safetensors").write_bytes(b"junk" * 9)
    for name in ("two.safetensors", "junk.safetensors", "absent.safetensors"):
        with pytest.raises(RecipeError, match=f"{name}: does not hold the weights"):
            load_weights(build_network(TINY, 3), tmp_path / name)


def test_a_pyramid_gives_one_map_at_the_finer_of_two_resolutions():
    network = build_network(NetworkSpec(name="tf_efficientnet_lite0", pyramid=32), 3, seed=0).eval()
    with torch.no_grad():
        logits, features = network(torch.rand(2, 1, 64, 64))
    assert features.shape == (2, 32, 4, 4)
    torch.testing.assert_close(logits, network.head(features.mean(dim=(2, 3))))
