from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pneumoscope.training.loss import MultiTask, Targets, cross_entropy
from pneumoscope.training.networks import build_network
from pneumoscope.training.recipe import NetworkSpec, Tasks


def targets(possible, *, smoothing=0.0, weight=1.0, teacher=None, trust=0.0):
    possible = torch.tensor(possible, dtype=torch.bool)
    count = len(possible)
    return Targets(possible, torch.full((count,), smoothing), torch.full((count,), weight), teacher, trust)


LOGITS = torch.tensor([[2.0, -1.0, 0.5], [0.1, 0.2, -0.3]])
PLAIN = [[True, False, False], [False, False, True]]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_plain_label_gives_the_usual_cross_entropy(smoothing):
    expected = F.cross_entropy(LOGITS, torch.tensor([0, 2]), label_smoothing=smoothing)
    torch.testing.assert_close(cross_entropy(LOGITS, targets(PLAIN, smoothing=smoothing)), expected)


def test_an_open_label_asks_for_the_sum_of_its_classes_only():
    logits = torch.tensor([[0.0, 3.0, -2.0]], requires_grad=True)
    loss = cross_entropy(logits, targets([[False, True, True]]))
    p = logits.softmax(dim=1)[0]
    torch.testing.assert_close(loss, -(p[1] + p[2]).log())
    loss.backward()
    # The kinds keep their proportion: each gets its share of the pull away from normal.
    pull = -logits.grad[0, 1:]
    torch.testing.assert_close(pull[0] * p[2].detach(), pull[1] * p[1].detach())


def test_a_trusted_teacher_takes_the_place_of_the_label():
    teacher = torch.tensor([[0.2, 0.5, 0.3], [0.7, 0.2, 0.1]])
    expected = F.cross_entropy(LOGITS, teacher)
    found = cross_entropy(LOGITS, targets(PLAIN, smoothing=0.1, teacher=teacher, trust=1.0))
    torch.testing.assert_close(found, expected)


def test_trust_lies_between_label_and_teacher():
    teacher = torch.tensor([[0.2, 0.5, 0.3], [0.7, 0.2, 0.1]])
    alone, both, taught = (
        cross_entropy(LOGITS, targets(PLAIN, teacher=teacher, trust=trust)) for trust in (0.0, 0.25, 1.0)
    )
    torch.testing.assert_close(both, 0.75 * alone + 0.25 * taught)


def test_where_the_teacher_was_not_asked_the_label_counts_alone():
    teacher = torch.tensor([[0.2, 0.5, 0.3], [0.0, 0.0, 0.0]])
    each = [
        cross_entropy(LOGITS[[row]], targets(PLAIN, teacher=teacher, trust=0.5)[torch.tensor([row])])
        for row in (0, 1)
    ]
    first = cross_entropy(LOGITS[[0]], targets(PLAIN[:1], teacher=teacher[:1], trust=0.5))
    second = cross_entropy(LOGITS[[1]], targets(PLAIN[1:]))
    torch.testing.assert_close(torch.stack(each), torch.stack([first, second]))
    both = cross_entropy(LOGITS, targets(PLAIN, teacher=teacher, trust=0.5))
    torch.testing.assert_close(both, (first + second) / 2)


def test_weights_count_images():
    doubled = cross_entropy(LOGITS, targets(PLAIN, weight=2.0))
    torch.testing.assert_close(doubled, 2 * cross_entropy(LOGITS, targets(PLAIN)))


def test_targets_are_taken_by_index():
    teacher = torch.rand(2, 3)
    part = targets(PLAIN, teacher=teacher, trust=0.5)[torch.tensor([1])]
    assert part.possible.tolist() == [PLAIN[1]]
    assert torch.equal(part.teacher, teacher[1:])
    assert part.trust == 0.5


# Auxiliary tasks

NETWORK = NetworkSpec(name="custom-cnn", channels=1, options={"widths": [4, 8]})


def learner(sources=2, **tasks):
    network = build_network(NETWORK, 2, seed=0)
    return MultiTask(network, Tasks(**tasks), sources, np.array([False, True]))


def batch(count=8):
    images = torch.rand(count, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(count) % 2
    targets = Targets(
        torch.nn.functional.one_hot(labels, 2).bool(),
        torch.zeros(count),
        torch.ones(count),
        source=torch.arange(count) // 2 % 2,
        rivals=torch.ones(count, 2, dtype=torch.bool),
    )
    lungs = torch.zeros(count, 1, 16, 16)
    lungs[..., 4:12, 4:12] = 1
    return images, targets, lungs


def test_without_tasks_it_is_the_network_and_its_loss():
    model = learner().eval()
    images, targets, lungs = batch()
    outputs = model(images)
    assert outputs.lungs is None
    assert outputs.source is None
    torch.testing.assert_close(outputs.logits, model.network(images)[0])
    assert model.loss(outputs, targets, lungs) == cross_entropy(outputs.logits, targets)
    assert not list(model.heads.parameters())


def test_the_lung_head_learns_where_the_lungs_are():
    model = learner(lungs=1.0)
    images, targets, _ = batch()
    lungs = (images > images.mean()).float()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    losses = []
    for _ in range(40):
        outputs = model(images)
        assert outputs.lungs.shape == (8, 1, 4, 4)
        loss = model.loss(outputs, targets, lungs) - cross_entropy(outputs.logits, targets)
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        model.loss(outputs, targets, lungs).backward()
        optimizer.step()
    # Below the entropy of a guess that knows only how much lung there is.
    assert losses[0] > 0.68
    assert losses[-1] < 0.95 * losses[0]


def test_the_weight_of_a_task_is_its_share_of_the_loss():
    images, targets, lungs = batch()
    extra = {}
    for weight in (0.5, 1.0):
        model = learner(lungs=weight, source=weight).eval()
        outputs = model(images)
        extra[weight] = model.loss(outputs, targets, lungs) - cross_entropy(outputs.logits, targets)
    torch.testing.assert_close(extra[0.5] * 2, extra[1.0])


def test_the_source_head_learns_and_the_network_unlearns():
    model = learner(source=1.0).eval()
    images, targets, lungs = batch()
    first = model.network.backbone[0].weight
    loss = model.loss(model(images), targets, lungs)
    whole = torch.autograd.grad(loss, [first, model.heads["source"].weight], retain_graph=True)
    own = torch.autograd.grad(cross_entropy(model(images)[0], targets), first)[0]
    # The same cross-entropy without the reversal.
    features = model.network(images)[1].mean(dim=(2, 3))
    plain = torch.nn.functional.cross_entropy(model.heads["source"](features), targets.source)
    towards = torch.autograd.grad(plain, [first, model.heads["source"].weight])
    torch.testing.assert_close(whole[0] - own, -towards[0])
    torch.testing.assert_close(whole[1], towards[1])


def test_a_class_of_one_source_alone_has_nothing_to_forget():
    model = learner(source=1.0).eval()
    images, targets, lungs = batch()
    alone = replace(targets, rivals=torch.nn.functional.one_hot(targets.source, 2).bool())
    outputs = model(images)
    assert model.loss(outputs, alone, lungs) == cross_entropy(outputs.logits, alone)
    assert model.loss(outputs, targets, lungs) > cross_entropy(outputs.logits, targets)


@pytest.mark.parametrize("sources", [0, 1])
def test_with_one_source_there_is_no_head_for_it(sources):
    assert list(learner(sources, source=1.0).heads) == []


def test_targets_of_some_images_keep_their_sources():
    _, targets, _ = batch()
    some = targets[torch.tensor([3, 0])]
    assert some.source.tolist() == [1, 0]
    assert some.rivals.shape == (2, 2)
    assert np.array_equal(some.possible.numpy(), [[False, True], [True, False]])


def location_loss(model, images, targets, lungs, boxes):
    outputs = model(images)
    return (model.loss(outputs, targets, lungs, boxes) - cross_entropy(outputs.logits, targets)).item()


def test_the_evidence_learns_to_lie_inside_the_boxes():
    model = learner(boxes=1.0)
    images, targets, lungs = batch()
    boxes = torch.zeros_like(lungs)
    boxes[..., :8, :8] = 1
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(60):
        outputs = model(images)
        optimizer.zero_grad()
        model.loss(outputs, targets, lungs, boxes).backward()
        optimizer.step()
    places = model(images).places
    evidence = (places[:, 1] - places[:, 0]).flatten(1).softmax(dim=1).view(8, 4, 4)
    inside = evidence[:, :2, :2].sum(dim=(1, 2))
    assert inside[targets.possible[:, 1]].mean() > 0.8  # a quarter of the places


def test_places_average_to_the_logits():
    model = learner(boxes=1.0).eval()
    outputs = model(batch()[0])
    torch.testing.assert_close(outputs.places.mean(dim=(2, 3)), outputs.logits)


def test_without_boxes_the_lungs_take_their_place_and_images_without_the_target_do_not_count():
    model = learner(boxes=1.0).eval()
    images, targets, lungs = batch()
    nothing = torch.zeros_like(lungs)
    assert location_loss(model, images, targets, lungs, nothing) == pytest.approx(
        location_loss(model, images, targets, nothing, lungs), rel=1e-4
    )
    normal = replace(targets, possible=torch.tensor([[True, False]] * 8))
    assert location_loss(model, images, normal, lungs, nothing) == pytest.approx(0, abs=1e-6)
    assert location_loss(model, images, targets, nothing, nothing) == pytest.approx(0, abs=1e-6)
