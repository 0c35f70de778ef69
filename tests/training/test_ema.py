"""The exponential moving average against a plain float64 loop."""

from copy import deepcopy

import pytest
import torch
from torch import nn

from hybridgen.training.ema import EMA
from hybridgen.types import InputError

UPDATES = 12


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 3)).double()


def changed(source: nn.Module, seed: int) -> None:
    """As a training step would: every parameter and every statistic is another one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in [*source.parameters(), *source.buffers()]:
            if tensor.is_floating_point():
                tensor.copy_(torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype))
            else:
                tensor.add_(seed)


def followed(decay: float, linear_start: bool, buffers: str) -> tuple[EMA, nn.Module, dict[str, torch.Tensor]]:
    """An average after some updates, its source, and what a loop over single tensors gives."""
    source = network()
    average = EMA(source, decay, linear_start=linear_start, buffers=buffers)
    expected = {name: tensor.clone() for name, tensor in source.state_dict().items()}
    parameters = dict(source.named_parameters())
    for n in range(1, UPDATES + 1):
        changed(source, n)
        average.update(source)
        now = min(1 - 1 / (n + 1), decay) if linear_start else decay
        for name, tensor in source.state_dict().items():
            averaged = name in parameters or (buffers == "average" and tensor.is_floating_point())
            if averaged:
                expected[name] = now * expected[name] + (1 - now) * tensor
            elif buffers != "own":
                expected[name] = tensor.clone()
    return average, source, expected


@pytest.mark.parametrize("linear_start", [True, False])
@pytest.mark.parametrize("buffers", ["copy", "average", "own"])
@pytest.mark.parametrize("decay", [0.0, 0.7, 0.99])
def test_equals_a_plain_loop(decay, buffers, linear_start):
    average, _, expected = followed(decay, linear_start, buffers)
    for name, tensor in average.network.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-12, atol=1e-12, msg=name)


def test_linear_start_is_the_plain_mean_of_all_states_until_the_decay_is_reached():
    source = nn.Linear(1, 1, bias=False).double()
    average = EMA(source, 0.999)
    states = [source.weight.item()]
    for n in range(20):
        changed(source, n)
        average.update(source)
        states.append(source.weight.item())
    assert average.network.weight.item() == pytest.approx(sum(states) / len(states), rel=1e-12)


def test_no_gradient_reaches_the_average_and_the_source_keeps_its_own():
    source = network()
    average = EMA(source, 0.9)
    average(torch.rand(2, 3, 8, 8, dtype=torch.float64)).sum()
    assert not any(parameter.requires_grad for parameter in average.parameters())
    assert all(parameter.requires_grad for parameter in source.parameters())
    changed(source, 1)
    average.update(source)
    assert not any(parameter.requires_grad for parameter in average.parameters())
    shared = {p.data_ptr() for p in average.parameters()} & {p.data_ptr() for p in source.parameters()}
    assert not shared


def test_the_source_stays_as_it_is():
    source = network()
    average = EMA(source, 0.5, buffers="average")
    changed(source, 3)
    before = deepcopy(source.state_dict())
    average.update(source)
    for name, tensor in source.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_own_statistics_are_gathered_in_training_mode():
    source = network().train()
    teacher = EMA(source, 0.5, buffers="own").train()
    images = torch.rand(4, 3, 8, 8, dtype=torch.float64)
    teacher(images)
    gathered = teacher.network[1].running_mean.clone()
    assert gathered.any()
    changed(source, 1)
    teacher.update(source)
    assert torch.equal(teacher.network[1].running_mean, gathered)


def test_the_counter_is_part_of_the_state():
    """Without it, a resumed average would start its linear phase again."""
    average, source, _ = followed(0.99, True, "copy")
    resumed = EMA(network(), 0.99)
    resumed.load_state_dict(average.state_dict())
    assert resumed.updates == UPDATES
    changed(source, 99)
    for each in (average, resumed):
        each.update(source)
    for name, tensor in average.network.state_dict().items():
        assert torch.equal(tensor, resumed.network.state_dict()[name]), name


@pytest.mark.parametrize("decay", [1.0, -0.1, 1.5, float("nan")])
def test_a_decay_outside_the_range_is_an_input_error(decay):
    with pytest.raises(InputError, match=r"ema_decay: .* outside \[0, 1\)"):
        EMA(nn.Linear(1, 1), decay)
