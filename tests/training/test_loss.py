from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from pneumoscope.training.loss import Targets, cross_entropy


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
