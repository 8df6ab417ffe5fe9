"""Which weights of a training are kept, and when a phase ends early."""

from __future__ import annotations

import pytest
import torch
from timm.utils.model_ema import ModelEmaV3

from pneumoscope.training import fit as fit_module
from pneumoscope.training.fit import fit
from pneumoscope.training.history import epochs_done
from pneumoscope.training.networks import build_network
from tiny_training import (
    LOSSES,
    PATIENT,
    Watch,
    assert_same_weights,
    images,
    recipe,
    rows_of,
    scripted,
    trained,
)


def weights_by_epoch(made, run, fabric):
    network = build_network(made.network, 2, seed=0)
    seen = []
    run.mkdir(exist_ok=True)
    kept = fit(
        made, network, images(), images(16), run, fabric=fabric,
        progress=Watch(lambda _: seen.append(network.head.weight.detach().clone())),
    )  # fmt: skip
    return kept.head.weight.detach(), seen


@pytest.mark.parametrize(("keep", "epoch"), [("best", 2), ("last", 4)])
def test_the_weights_of_the_best_or_the_last_epoch_are_kept(tmp_path, fabric, monkeypatch, keep, epoch):
    scripted(monkeypatch, [0.5, 0.2, 0.4, 0.3])
    kept, seen = weights_by_epoch(recipe(keep=keep), tmp_path, fabric)
    assert [torch.equal(kept, weight) for weight in seen] == [number == epoch for number in (1, 2, 3, 4)]


def test_a_phase_ends_where_patience_is_at_its_end(tmp_path, fabric, monkeypatch):
    scripted(monkeypatch, list(LOSSES))
    lines = []
    watch = Watch(lambda _: None)
    watch.message = lines.append
    trained(recipe(**PATIENT), tmp_path, fabric, progress=watch)
    # The second phase compares with its own lowest loss.
    assert [row.phase for row in rows_of(tmp_path)] == [1, 1, 1, 1, 2, 2, 2, 2]
    assert epochs_done(tmp_path) == 8
    assert lines[4] == "phase 1 ended: no lower validation loss in 2 epochs"
    assert sum("ended" in line for line in lines) == 1  # the second ends where the recipe says


def test_the_average_is_what_is_validated_and_kept(tmp_path, fabric):
    made = recipe(ema=0.9)
    network = build_network(made.network, 2, seed=0)
    kept = fit(made, network, images(), images(16), tmp_path, fabric=fabric)
    assert kept is not network
    assert not torch.equal(kept.head.weight, network.head.weight)
    val = images(16)
    logits = fit_module.predict_logits(kept, val.images, fabric)
    loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(val.labels))
    assert float(loss) == pytest.approx(rows_of(tmp_path)[-1].val_loss, rel=1e-5)


def test_a_phase_with_a_power_averages_in_its_own_way(tmp_path, fabric):
    def after(**phase):
        made = recipe(ema=0.9, phases=[{"epochs": 1, "lr": 0.01}, {"epochs": 1, "lr": 0.01, **phase}])
        return trained(made, tmp_path / str(phase.get("average_power")), fabric)

    networks = [after(), after(average_power=8), after(average_power=1)]
    # Of so few updates, 0.9 is not reached: the warm-up is the average with a power of 8.
    assert_same_weights(networks[0], networks[1])
    with pytest.raises(AssertionError):
        assert_same_weights(networks[0], networks[2])


def test_the_first_update_of_the_average_is_the_first_of_the_warm_up(tmp_path, fabric, monkeypatch):
    steps = []
    monkeypatch.setattr(ModelEmaV3, "update", lambda self, model, step: steps.append(step))
    trained(recipe(ema=0.9, phases=[{"epochs": 2, "lr": 0.01}]), tmp_path, fabric)
    assert steps == [2, 3, 4, 5, 6, 7, 8, 9]
