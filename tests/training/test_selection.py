"""The network with the best validation score is kept, with its batch-norm statistics."""

import torch
from torch import nn

from hybridgen.training.selection import Selected


def network(value: float) -> nn.Module:
    made = nn.Sequential(nn.Linear(1, 1, bias=False), nn.BatchNorm1d(1))
    with torch.no_grad():
        made[0].weight.fill_(value)
        made[1].running_mean.fill_(-value)
    return made


def kept(selected: Selected) -> tuple[float, float, int]:
    return selected.network[0].weight.item(), selected.network[1].running_mean.item(), int(selected.step)


def offered(*scores: float) -> Selected:
    selected = Selected(network(0.0))
    for step, score in enumerate(scores, start=1):
        selected.offer(network(float(step)), score, step)
    return selected


def test_the_highest_score_wins():
    assert kept(offered(0.2, 0.5, 0.4)) == (2.0, -2.0, 2)


def test_of_equals_the_latest_wins():
    assert kept(offered(0.5, 0.5, 0.4)) == (2.0, -2.0, 2)


def test_without_validation_images_it_is_the_latest_and_never_the_untrained_network():
    nan = float("nan")
    assert kept(offered(nan, nan, nan)) == (3.0, -3.0, 3)


def test_a_copy_is_kept():
    source, selected = network(1.0), Selected(network(0.0))
    selected.offer(source, 0.5, 1)
    with torch.no_grad():
        source[0].weight.fill_(9.0)
    assert kept(selected) == (1.0, -1.0, 1)
    assert not any(parameter.requires_grad for parameter in selected.parameters())


def test_score_and_step_are_part_of_the_state():
    resumed = Selected(network(0.0))
    resumed.load_state_dict(offered(0.2, 0.6).state_dict())
    resumed.offer(network(3.0), 0.5, 3)
    assert kept(resumed) == (2.0, -2.0, 2)
