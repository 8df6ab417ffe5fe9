"""The training loop: what it learns, in phases and at rates that the recipe states."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from pneumoscope.data.manifest import Record
from pneumoscope.errors import DataError
from pneumoscope.training import fit as fit_module
from pneumoscope.training.dataset import Packed, draw_chances
from pneumoscope.training.fit import fit
from pneumoscope.training.history import append_epoch
from pneumoscope.training.networks import build_network
from pneumoscope.training.recipe import Sampling
from tiny_training import CONTENT, Watch, assert_same_weights, images, recipe, rows_of, trained


def test_it_learns_what_can_be_learned(tmp_path, fabric):
    watch = Watch()
    trained(recipe(phases=[{"epochs": 6, "lr": 0.02}]), tmp_path, fabric, progress=watch)
    rows = rows_of(tmp_path)
    assert [line.split()[1] for line in watch.lines] == [f"{number}/6" for number in range(1, 7)]
    assert [row.epoch for row in rows] == [1, 2, 3, 4, 5, 6]
    assert rows[-1].train_loss < 0.5 * rows[0].train_loss
    assert rows[-1].val_loss < rows[0].val_loss
    assert rows[-1].val_auroc == 1
    assert rows[-1].val_accuracy == 1


def test_every_epoch_is_written_to_history_and_tensorboard(tmp_path, fabric):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    watch = Watch()
    trained(recipe(), tmp_path, fabric, progress=watch)
    rows = rows_of(tmp_path)
    assert [row.epoch for row in rows] == [1, 2, 3, 4]
    assert [row.line(4) for row in rows] == watch.lines
    scalars = []
    for path in sorted((tmp_path / "tensorboard").iterdir()):
        events = EventAccumulator(str(path))
        events.Reload()
        scalars += [(event.step, event.value) for event in events.Scalars("val_loss")]
    steps, losses = zip(*sorted(scalars), strict=True)
    assert steps == (1, 2, 3, 4)
    assert losses == pytest.approx([row.val_loss for row in rows], rel=1e-4)
    first = set((tmp_path / "tensorboard").iterdir())
    append_epoch(tmp_path, rows[1])
    assert first < set((tmp_path / "tensorboard").iterdir())
    append_epoch(tmp_path, rows[0])  # a run that begins again
    (begun,) = (tmp_path / "tensorboard").iterdir()
    assert begun not in first


def test_the_same_seed_gives_the_same_weights(tmp_path, fabric):
    made = recipe(augmentation={"flip": 0.5, "noise": 0.1})
    first, again = (trained(made, tmp_path / name, fabric) for name in ("a", "b"))
    assert_same_weights(first, again)
    other = trained(made.model_copy(update={"seed": 1}), tmp_path / "c", fabric)
    assert not torch.equal(first.head.weight, other.head.weight)


def test_further_tasks_change_what_is_learned_and_not_what_ships(tmp_path, fabric):
    plain = trained(recipe(), tmp_path / "plain", fabric)
    for task in ("lungs", "source"):
        more = trained(recipe(tasks={task: 1.0}), tmp_path / task, fabric)
        assert more.state_dict().keys() == plain.state_dict().keys()
        assert not torch.equal(more.head.weight, plain.head.weight)


def test_the_network_comes_back_ready_for_use(tmp_path, fabric):
    assert not trained(recipe(), tmp_path, fabric).training


# Phases and rates


def test_frozen_layers_do_not_change_and_thaw_in_the_next_phase(tmp_path, fabric):
    made = recipe(
        phases=[{"epochs": 1, "lr": 0.02, "frozen": "backbone"}, {"epochs": 1, "lr": 0.02, "frozen": 2}]
    )
    start = {key: value.clone() for key, value in build_network(made.network, 2, seed=0).state_dict().items()}
    network = build_network(made.network, 2, seed=0)
    seen = []

    def changed(_):
        seen.append(
            {key for key, value in network.state_dict().items() if not torch.equal(value, start[key])}
        )

    fit(made, network, images(), images(16), tmp_path, fabric=fabric, progress=Watch(changed))
    assert seen[0] == {"head.weight", "head.bias"}, "batch statistics of frozen layers stay, too"
    convolutions = [key for key, value in start.items() if key.startswith("backbone") and value.ndim == 4]
    assert [key in seen[1] for key in convolutions] == [False, False, True, True]


def test_the_rate_follows_the_schedule(tmp_path, fabric):
    phases = [{"epochs": 2, "lr": 0.01}, {"epochs": 4, "lr": 0.1, "schedule": "cosine", "warmup": 1}]
    trained(recipe(phases=phases), tmp_path, fabric)
    rows = rows_of(tmp_path)
    assert [row.phase for row in rows] == [1, 1, 2, 2, 2, 2]
    rates = [row.lr for row in rows]
    assert rates[:2] == [0.01, 0.01]
    # The last of four steps of each epoch: three quarters of the warm-up, then the cosine over three epochs.
    expected = [0.1 * 0.75] + [0.05 * (1 + math.cos(math.pi * (t + 0.75) / 3)) for t in range(3)]
    assert rates[2:] == pytest.approx(expected, rel=1e-5)


def test_a_phase_may_weaken_the_augmentation(tmp_path, fabric):
    def after(name, last, **augmentation):
        phases = [{"epochs": 1, "lr": 0.01, "augmentation_strength": 0}, {"epochs": 1, "lr": 0.01, **last}]
        return trained(recipe(phases=phases, augmentation=augmentation), tmp_path / name, fabric)

    plain = after("plain", {})
    assert_same_weights(plain, after("none", {"augmentation_strength": 0}, brightness=0.5))
    half = after("half", {"augmentation_strength": 0.5}, brightness=0.5)
    assert_same_weights(after("quarter", {}, brightness=0.25), half)
    with pytest.raises(AssertionError):
        assert_same_weights(plain, half)


def test_a_phase_may_have_its_own_sampling_masking_and_trust(tmp_path, fabric):
    packed = images()
    records = tuple(replace(one, source=f"s{number // 28}") for number, one in enumerate(packed.records))
    packed = replace(packed, records=records)  # one group of 28 images and one of 4
    rows = np.random.default_rng(0).dirichlet(np.ones(2), len(packed)).astype(np.float32)
    own = {"lungs_only": 0.5, "sampling_exponent": 0.2, "trust": 0.7}

    def after(name, phase, **content):
        made = recipe(phases=[{"epochs": 1, "lr": 0.01, **phase}], **content)
        return trained(made, tmp_path / name, fabric, train=packed, teacher=rows)

    def sections(exponent, lungs_only, trust):
        return {
            "sampling": {"exponent": exponent},
            "augmentation": {"lungs_only": lungs_only},
            "distillation": {"teacher": "default", "trust": trust},
        }

    untaught = {name: value for name, value in sections(0.8, 0.5, 0).items() if name != "distillation"}
    assert_same_weights(after("none", {}, **untaught), after("0", {"trust": 0}, **sections(0.8, 0.5, 0.3)))
    expected = after("recipe", {}, **sections(0.2, 0.5, 0.7))
    assert_same_weights(expected, after("phase", own, **sections(0.8, 0.1, 0.3)))
    for key in own:
        without = {name: value for name, value in own.items() if name != key}
        with pytest.raises(AssertionError):
            assert_same_weights(expected, after(f"no {key}", without, **sections(0.8, 0.1, 0.3)))


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
def test_every_optimizer_runs(tmp_path, fabric, optimizer):
    made = recipe(
        optimizer=optimizer, weight_decay=0.01, label_smoothing=0.1, phases=[{"epochs": 2, "lr": 0.01}]
    )
    trained(made, tmp_path, fabric)
    rows = rows_of(tmp_path)
    assert rows[1].train_loss < rows[0].train_loss


def test_a_label_that_leaves_classes_open_counts_in_equal_parts():
    possible = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 1, 1], [0, 1, 1]], bool)
    records = tuple(Record(f"{number}.png", "any", f"p{number}") for number in range(5))
    packed = Packed(np.zeros((5, 1, 16, 16), np.uint8), possible, records)
    np.testing.assert_array_equal(packed.shares.sum(axis=0), [1, 2, 2])


def test_class_weights_make_up_for_a_rare_class(tmp_path, fabric):
    """Uniform images get the share of the class as probability, or a half where it is balanced."""
    rare = images(40, share=0.1)
    blank = Packed(np.full_like(rare.images, 90), rare.possible, rare.records)
    shares = {}
    for weights in ("none", "balanced"):
        made = recipe(
            class_weights=weights, batch=40, phases=[{"epochs": 25, "lr": 0.3, "frozen": "backbone"}],
            optimizer="sgd", network=CONTENT["network"] | {"dropout": 0},
        )  # fmt: skip
        network = trained(made, tmp_path / weights, fabric, train=blank, val=blank)
        with torch.inference_mode():
            logits, _ = network(torch.full((1, 1, 16, 16), 90 / 255))
        shares[weights] = float(logits.softmax(dim=1)[0, 1])
    assert shares["none"] == pytest.approx(0.1, abs=0.05)
    assert shares["balanced"] == pytest.approx(0.5, abs=0.1)


def test_a_loss_that_is_no_number_stops_the_run(tmp_path, fabric):
    made = recipe(phases=[{"epochs": 3, "lr": 1e30}], optimizer="sgd")
    with pytest.raises(DataError, match=r"not finite in epoch .*lower the lr"):
        trained(made, tmp_path, fabric)


def test_a_last_batch_of_one_image_is_left_out(tmp_path, fabric):
    trained(recipe(), tmp_path, fabric, train=images(33))
    assert len(rows_of(tmp_path)) == 4


@pytest.mark.parametrize("seed", range(5))
def test_the_ranking_score_is_that_of_scikit_learn(seed):
    from sklearn.metrics import roc_auc_score

    rng = np.random.default_rng(seed)
    truth = rng.random(50) < 0.4
    scores = np.round(rng.random(50) + 0.3 * truth, 1)  # with ties
    assert fit_module._auroc(scores, truth) == pytest.approx(roc_auc_score(truth, scores))


def test_validation_ranks_the_target_against_the_rest_wherever_its_classes_stand(tmp_path, fabric):
    """Two bright classes count as the target and stand first and last; one dark class stands between."""
    rng = np.random.default_rng(0)
    labels = np.arange(36) % 3
    grey = rng.integers(60, 120, (36, 1, 16, 16))
    grey[labels != 1, :, :, 8:] += 80
    records = tuple(Record(f"{i}.png", "clear", f"p{i}") for i in range(36))
    packed = Packed(grey.astype(np.uint8), np.eye(3, dtype=bool)[labels], records)
    made = recipe(
        classes=["lobar", "clear", "diffuse"],
        target={"name": "infiltrate", "classes": ["lobar", "diffuse"]},
        phases=[{"epochs": 6, "lr": 0.02}],
    )
    fit(made, build_network(made.network, 3, seed=0), packed, packed, tmp_path, fabric=fabric)
    last = rows_of(tmp_path)[-1]
    assert last.val_auroc == 1
    assert last.val_accuracy < 1, "the two bright classes look the same"


def test_tensorboard_is_optional(tmp_path, fabric, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    trained(recipe(phases=[{"epochs": 1, "lr": 0.01}]), tmp_path, fabric)
    assert len(rows_of(tmp_path)) == 1
    assert not (tmp_path / "tensorboard").exists()


# The engine


def test_one_process_uses_one_device(fabric):
    assert fabric.world_size == 1
    assert fabric.device.type == "cpu"


def test_groups_are_drawn_by_a_power_of_their_size():
    groups = [("a", "normal", "AP")] * 16 + [("a", "pneumonia", "AP")] * 4 + [("b", "normal", "PA")]
    records = [
        Record(f"{number}.png", label, f"p{number}", source=source, view=view)
        for number, (source, label, view) in enumerate(groups)
    ]
    chances = draw_chances(records, Sampling(exponent=0.5))
    totals = [float(chances[:16].sum()), float(chances[16:20].sum()), float(chances[20:].sum())]
    assert totals == pytest.approx([4, 2, 1])
    assert draw_chances(records, Sampling(exponent=1)).tolist() == [1.0] * 21


def test_sampling_says_how_many_images_an_epoch_has(tmp_path, fabric, monkeypatch):
    seen = []
    original = fit_module.augment

    def counted(images, *rest):
        seen.append(len(images))
        return original(images, *rest)

    monkeypatch.setattr(fit_module, "augment", counted)
    few = recipe(phases=[{"epochs": 2, "lr": 0.02}], sampling={"exponent": 0.5, "images": 20})
    trained(few, tmp_path, fabric)
    assert sum(seen) == 40
