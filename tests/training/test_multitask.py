from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from pneumoscope.training.loss import Targets, cross_entropy
from pneumoscope.training.multitask import MultiTask
from pneumoscope.training.networks import build_network
from pneumoscope.training.recipe import NetworkSpec, Tasks

NETWORK = NetworkSpec(name="custom-cnn", channels=1, options={"widths": [4, 8]})


def learner(sources=2, **tasks):
    return MultiTask(build_network(NETWORK, 2, seed=0), Tasks(**tasks), sources)


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
    said = model(images)
    assert said.lungs is None
    assert said.source is None
    torch.testing.assert_close(said.logits, model.network(images)[0])
    assert model.loss(said, targets, lungs) == cross_entropy(said.logits, targets)
    assert not list(model.heads.parameters())


def test_the_lung_head_learns_where_the_lungs_are():
    model = learner(lungs=1.0)
    images, targets, _ = batch()
    lungs = (images > images.mean()).float()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    losses = []
    for _ in range(40):
        said = model(images)
        assert said.lungs.shape == (8, 1, 4, 4)
        loss = model.loss(said, targets, lungs) - cross_entropy(said.logits, targets)
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        model.loss(said, targets, lungs).backward()
        optimizer.step()
    # Below the entropy of a guess that knows only how much lung there is.
    assert losses[0] > 0.68
    assert losses[-1] < 0.95 * losses[0]


def test_the_weight_of_a_task_is_its_share_of_the_loss():
    images, targets, lungs = batch()
    extra = {}
    for weight in (0.5, 1.0):
        model = learner(lungs=weight, source=weight).eval()
        said = model(images)
        extra[weight] = model.loss(said, targets, lungs) - cross_entropy(said.logits, targets)
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
    said = model(images)
    assert model.loss(said, alone, lungs) == cross_entropy(said.logits, alone)
    assert model.loss(said, targets, lungs) > cross_entropy(said.logits, targets)


@pytest.mark.parametrize("sources", [0, 1])
def test_with_one_source_there_is_no_head_for_it(sources):
    assert list(learner(sources, source=1.0).heads) == []


def test_targets_of_some_images_keep_their_sources():
    _, targets, _ = batch()
    some = targets[torch.tensor([3, 0])]
    assert some.source.tolist() == [1, 0]
    assert some.rivals.shape == (2, 2)
    assert np.array_equal(some.possible.numpy(), [[False, True], [True, False]])
