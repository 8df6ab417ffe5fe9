"""An expert: layers for one population, from its gate and its training to the bundle and back."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from pneumoscope.data.manifest import Record
from pneumoscope.domain import Population
from pneumoscope.errors import DataError, PneumoscopeError, RecipeError
from pneumoscope.model.manifest import Provenance
from pneumoscope.model.runtime import OnnxRuntime
from pneumoscope.training.expert import MOST_OTHERS, Members, fit_gate, members
from pneumoscope.training.export import export_bundle
from pneumoscope.training.fit import fit
from pneumoscope.training.networks import build_network, freeze, load_weights, save_weights, set_training
from pneumoscope.training.pyramid import PyramidWithExpert
from pneumoscope.training.recipe import NetworkSpec
from tiny_training import (
    EXPERT_SIZE as SIZE,
)
from tiny_training import (
    TWO_PHASES,
    WITH_EXPERT,
    Killed,
    Watch,
    aged,
    assert_same_weights,
    recipe,
    trained,
    with_expert,
)

SPEC = NetworkSpec.model_validate(WITH_EXPERT)
PLAIN = SPEC.model_copy(update={"expert": None})


def started(seed=3):
    """Return a network whose expert differs from the shared layers, and whose gate chooses dark images."""
    network = build_network(SPEC, 2, seed=seed).eval()
    backbone = network.backbone
    assert isinstance(backbone, PyramidWithExpert)
    dark, bright = (torch.full((1, 1, SIZE, SIZE), grey) for grey in (0.1, 0.9))
    with torch.no_grad():
        low, high = (network(one)[1].mean(dim=(2, 3))[0] for one in (dark, bright))
        weight = low - high
        backbone.start(weight, -(weight * (low + high) / 2).sum())
        for parameter in backbone.expert.parameters():
            parameter.mul_(1.5)
    return network, dark, bright


def features_of(network, batch, of_population=None):
    with torch.no_grad():
        return network.eval()(batch, of_population)[1]


def test_the_gate_chooses_for_each_image_of_a_batch():
    network, dark, bright = started()
    backbone = network.backbone
    both = features_of(network, torch.cat([dark, bright]))
    backbone.started = False
    shared = features_of(network, torch.cat([dark, bright]))
    torch.testing.assert_close(both[1], shared[1])
    assert (both[0] - shared[0]).abs().max() > 0.01


def test_before_its_start_there_is_no_expert():
    network = build_network(SPEC, 2, seed=3)
    plain = build_network(PLAIN, 2, seed=3)
    batch = torch.rand(2, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(features_of(network, batch), features_of(plain, batch))
    assert freeze(network, "none") == sum(one.numel() for one in plain.parameters())


def test_a_seed_gives_the_shared_layers_that_it_gives_without_an_expert():
    plain, network = (build_network(spec, 2, seed=1).state_dict() for spec in (PLAIN, SPEC))
    assert plain.keys() < network.keys()
    assert all(torch.equal(value, network[name]) for name, value in plain.items())


def test_it_begins_as_a_copy_of_the_shared_layers():
    network = build_network(SPEC, 2, seed=3)
    batch = torch.rand(2, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    before = features_of(network, batch)
    network.backbone.start(torch.ones(8), torch.tensor(1e6))  # every image is the expert's
    torch.testing.assert_close(features_of(network, batch), before)


def test_alone_it_is_trained_on_all_images_and_nothing_else_is():
    network, _, bright = started()
    freeze(network, "none", expert=True)
    trainable = {name for name, one in network.named_parameters() if one.requires_grad}
    assert trainable == {f"backbone.expert.{name}" for name, _ in network.backbone.expert.named_parameters()}
    set_training(network)
    network(torch.cat([bright, bright]))[0].sum().backward()  # the gate would not choose these
    assert all(one.grad is not None for one in network.backbone.expert.parameters())
    freeze(network, "none")
    assert network.head.weight.requires_grad
    assert not network.backbone.expert_alone


def test_its_phase_changes_the_images_of_its_population_alone(tmp_path, fabric):
    train, val = aged(), aged(16, 1)
    first = trained(with_expert(phases=TWO_PHASES[:1]), tmp_path / "first", fabric, train=train, val=val)
    both = trained(with_expert(), tmp_path / "both", fabric, train=train, val=val)
    assert not first.backbone.started
    assert both.backbone.started
    batch = torch.from_numpy(val.images).float() / 255
    # Of the same grey level, all adults lie on the limit of the gate, so that rounding would choose.
    known = torch.tensor([1.0 if record.age == 5 else -1.0 for record in val.records])
    changed = (features_of(both, batch, known) - features_of(first, batch)).abs().amax(dim=(1, 2, 3)) > 1e-4
    assert changed.tolist() == [record.age == 5 for record in val.records]


@pytest.mark.parametrize("ema", [None, 0.9])
@pytest.mark.parametrize("after", [2, 3])
def test_a_run_that_is_killed_and_resumed_ends_as_the_unbroken_one(tmp_path, fabric, after, ema):
    made, data = with_expert(ema=ema), {"train": aged(), "val": aged(16, 1)}
    unbroken = trained(made, tmp_path / "unbroken", fabric, **data)

    def kill(epoch):
        if epoch == after:
            raise Killed

    with pytest.raises(Killed):
        trained(made, tmp_path / "broken", fabric, progress=Watch(kill), **data)
    resumed = trained(made, tmp_path / "broken", fabric, resume=True, seed=5, **data)
    assert_same_weights(unbroken, resumed)
    assert resumed.backbone.started


def test_the_shared_layers_stay_as_they_were_averaged(tmp_path, fabric):
    data = {"train": aged(), "val": aged(16, 1)}
    first = trained(with_expert(phases=TWO_PHASES[:1], ema=0.9), tmp_path / "first", fabric, **data)
    both = trained(with_expert(ema=0.9), tmp_path / "both", fabric, **data)
    theirs = both.state_dict()
    for name, value in first.state_dict().items():
        if ".expert." not in name and ".gate_" not in name:
            torch.testing.assert_close(theirs[name], value, msg=name)


@pytest.mark.parametrize("ages", [[5.0], [40.0], [None]])
def test_images_of_both_sides_are_needed_before_any_epoch(tmp_path, fabric, ages):
    train = aged()
    train = replace(train, records=tuple(replace(one, age=ages[0]) for one in train.records))
    with pytest.raises(DataError, match="needs training images of preschool, 0 to 5 years and of others"):
        trained(with_expert(), tmp_path, fabric, train=train, val=aged(16, 1))
    assert not (tmp_path / "history.csv").exists()


def test_it_goes_through_a_bundle_and_back(tmp_path):
    network, dark, bright = started()
    made = with_expert(precision="float16")
    bundle = export_bundle(network, made, tmp_path / "bundle", provenance=Provenance())
    batch = torch.cat([dark, bright])
    (found,) = OnnxRuntime(bundle.model_path)(batch.numpy(), ("features",))
    np.testing.assert_allclose(found, features_of(network, batch).numpy(), rtol=0.02, atol=0.02)
    again = build_network(made.network, 2, weights=tmp_path / "bundle", names=("normal", "pneumonia"))
    assert again.backbone.started
    np.testing.assert_allclose(found, features_of(again, batch).numpy(), rtol=1e-3, atol=1e-3)


def test_what_is_known_of_an_image_goes_before_the_gate(tmp_path):
    network, dark, bright = started()
    made = with_expert()
    runtime = OnnxRuntime(export_bundle(network, made, tmp_path, provenance=Provenance()).model_path)
    assert runtime.expert == Population("preschool", (0, 5))
    batch = np.repeat(torch.cat([dark, bright]).numpy(), 3, axis=0)  # more than one pass
    known = np.array([0, 1, -1] * 2, np.float32)
    (found,) = runtime(batch, ("features",), known)
    assert np.array_equal(found[0], found[1])  # the gate chooses the expert for the dark image
    assert np.abs(found[2] - found[0]).max() > 0.01
    assert np.array_equal(found[3], found[5])
    assert np.abs(found[4] - found[3]).max() > 0.01
    (chosen,) = runtime(batch, ("features",))
    assert np.array_equal(chosen[0], found[0])
    assert np.array_equal(chosen[4], found[3])


@pytest.mark.parametrize("precision", ["float16", "int8"])
def test_it_is_kept_in_other_precisions(tmp_path, precision):
    network, dark, _ = started()
    images_ = np.repeat(np.array([20, 230], np.uint8), 20)[:, None, None, None] * np.ones(
        (1, 1, SIZE, SIZE), np.uint8
    )
    made = with_expert(precision=precision)
    bundle = export_bundle(network, made, tmp_path, provenance=Provenance(), train_images=images_)
    runtime = OnnxRuntime(bundle.model_path)
    batch = torch.cat([dark, dark]).numpy()
    own, other = runtime(batch, ("features",), np.array([1, -1], np.float32))[0]
    assert runtime.expert is not None
    assert np.abs(own - other).max() > 0.01


def test_the_shared_layers_alone_can_be_trained_on(tmp_path):
    network, dark, bright = started()
    bundle = export_bundle(network, with_expert(), tmp_path, provenance=Provenance())
    plain = build_network(PLAIN, 2, weights=tmp_path, names=("normal", "pneumonia"))
    batch = torch.cat([dark, bright])
    (expected,) = OnnxRuntime(bundle.model_path)(batch.numpy(), ("features",), np.full(2, -1, np.float32))
    np.testing.assert_allclose(features_of(plain, batch).numpy(), expected, rtol=1e-3, atol=1e-3)


def test_it_is_trained_with_all_layers_where_no_phase_is_its_own(tmp_path, fabric):
    network, *_ = started()
    save_weights(network, tmp_path / "model.safetensors")
    made = with_expert(phases=TWO_PHASES[:1])
    train = aged()
    train = replace(train, records=tuple(replace(one, age=None) for one in train.records))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    again = build_network(SPEC, 2, weights=tmp_path / "model.safetensors")
    fit(made, again, train, aged(16, 1), tmp_path, fabric=fabric)
    changed = {name for name, value in again.state_dict().items() if not torch.equal(value, before[name])}
    assert any(name.startswith("backbone.expert.") for name in changed)
    assert not any(name.startswith("backbone.gate_") for name in changed)


def test_it_can_be_added_to_a_bundle_without(tmp_path):
    network = build_network(PLAIN, 2, seed=3)
    export_bundle(
        network, with_expert(network=PLAIN, phases=TWO_PHASES[:1]), tmp_path, provenance=Provenance()
    )
    made = build_network(SPEC, 2, weights=tmp_path, names=("normal", "pneumonia"))
    assert not made.backbone.started
    batch = torch.rand(2, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(features_of(made, batch), features_of(network, batch), rtol=1e-3, atol=1e-3)


def test_it_is_kept_with_the_weights(tmp_path):
    network, dark, _ = started()
    save_weights(network, tmp_path / "model.safetensors")
    again = load_weights(build_network(SPEC, 2), tmp_path / "model.safetensors")
    assert torch.equal(features_of(again, dark), features_of(network, dark))


def test_a_keras_file_cannot_hold_it_which_is_known_before_it_is_trained():
    pytest.importorskip("h5py", reason="needs the extra [keras]")
    from pneumoscope.training.keras_export import check_keras

    network, *_ = started()
    for one, trains_expert in ((network, False), (build_network(SPEC, 2), True)):
        with pytest.raises(PneumoscopeError, match="uses an expert for one population"):
            check_keras(one, size=SIZE, trains_expert=trains_expert)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"name": "resnet10t"}, "needs an EfficientNet or MobileNet"),
        ({"expert": {"population": {"ages": [0, 5]}, "blocks": 9}}, "9 are too many for this network; use "),
    ],
)
def test_a_network_that_cannot_have_one_is_rejected_in_one_line(changes, why):
    with pytest.raises(RecipeError, match=why):
        build_network(NetworkSpec.model_validate(WITH_EXPERT | changes), 2)


def test_the_gate_leaves_the_images_of_others_to_the_shared_layers():
    rng = np.random.default_rng(0)
    count = 4000
    inside = np.arange(count) < count // 2
    features = rng.normal(size=(count, 4)).astype(np.float32)
    features[inside, 0] += 3
    own = Members(inside, ~inside, np.where(np.arange(count) % 4 == 0, "a", "b"))
    weight, bias = fit_gate(features, own)
    chosen = features @ weight + bias > 0
    assert chosen[~inside].mean() == pytest.approx(MOST_OTHERS, abs=0.002)
    assert chosen[inside].mean() > 0.6
    assert abs(weight[0]) > 5 * abs(weight[1:]).max()


def test_sources_and_sides_count_alike():
    inside = np.array([True] * 9 + [False] * 3)
    own = Members(inside, ~inside, np.array(["a"] * 8 + ["b"] + ["a", "a", "c"]))
    weights = own.weights()
    assert weights[:8].sum() == pytest.approx(weights[8]) == pytest.approx(0.25)
    assert weights[9:11].sum() == pytest.approx(weights[11]) == pytest.approx(0.25)


def test_an_image_of_unknown_age_is_on_no_side():
    records = [Record(f"{age}.png", "normal", "p", age=age) for age in (3.0, 5.9, 6.0, None)]
    found = members(with_expert(), records)
    assert found.inside.tolist() == [True, True, False, False]
    assert found.outside.tolist() == [False, False, True, False]
    assert members(recipe(), records) is None
    assert members(with_expert(phases=TWO_PHASES[:1]), records) is None
