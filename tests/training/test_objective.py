"""Weights meet losses one to one; optimizers take the parameters that they should."""

import pytest
import torch
from torch import nn

from hybridgen.training.objective import Outcome, Task, adam, sgd, slowed, weighted
from hybridgen.training.schedules import Clock, window
from hybridgen.types import InputError

CLOCK = Clock(steps=100, steps_per_epoch=10, step=20)


def losses(**values: float) -> dict[str, torch.Tensor]:
    return {name: torch.tensor(value, dtype=torch.float64, requires_grad=True) for name, value in values.items()}


def test_each_loss_times_its_weight_at_this_time():
    terms = losses(a=2.0, b=3.0, c=5.0)
    parts = weighted(terms, {"a": 0.5, "b": window(4.0, start=2.0), "c": window(4.0, start=2.1)}, CLOCK)
    assert {name: part.item() for name, part in parts.items()} == {"a": 1.0, "b": 12.0, "c": 0.0}
    torch.stack(list(parts.values())).sum().backward()
    assert [term.grad.item() for term in terms.values()] == [0.5, 4.0, 0.0]


def test_a_loss_without_a_weight_and_a_weight_without_a_loss_are_input_errors():
    with pytest.raises(InputError, match=r"losses without a weight: \['b'\]; weights without a loss: \[\]"):
        weighted(losses(a=1.0, b=1.0), {"a": 1.0}, CLOCK)
    with pytest.raises(InputError, match=r"losses without a weight: \[\]; weights without a loss: \['c'\]"):
        weighted(losses(a=1.0), {"a": 1.0, "c": 0.0}, CLOCK)


def test_an_outcome_needs_losses_alone():
    assert Outcome(losses(a=1.0))[1:] == ({}, (), None, None)


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.norm, self.head = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2)
        self.still = nn.Linear(2, 2).requires_grad_(False)


def names(network: nn.Module, parameters: list[nn.Parameter]) -> set[str]:
    wanted = {id(parameter) for parameter in parameters}
    return {name for name, parameter in network.named_parameters() if id(parameter) in wanted}


@pytest.mark.parametrize("optimizer", [sgd, adam])
def test_kernels_alone_decay_when_asked_to(optimizer):
    network = Network()
    decaying, plain = optimizer(network, decay=1e-3, decay_all=False).param_groups
    assert names(network, decaying["params"]) == {"convolution.weight", "head.weight"}
    assert names(network, plain["params"]) == {"convolution.bias", "norm.weight", "norm.bias", "head.bias"}
    assert (decaying["weight_decay"], plain["weight_decay"]) == (1e-3, 0.0)


@pytest.mark.parametrize("optimizer", [sgd, adam])
def test_optimizers_take_all_parameters_that_learn_and_no_others(optimizer):
    network = Network()
    (group,) = optimizer(network, decay=1e-3).param_groups
    assert len(group["params"]) == 6 and not any(name.startswith("still") for name in names(network, group["params"]))
    assert group["weight_decay"] == 1e-3
    assert group["lr"] == 0.0  # the schedule's business


def test_sgd_is_nesterovs_with_decay():
    """Two steps of v ← μv + g + λp, p ← p - r(g + λp + μv), in float64."""
    module = nn.Linear(1, 1, bias=False).double()
    optimizer = sgd(module, momentum=0.9, decay=0.1)
    expected, velocity = module.weight.item(), 0.0
    for rate in (0.5, 0.25):
        optimizer.param_groups[0]["lr"] = rate
        module.weight.grad = torch.full_like(module.weight, 2.0)
        optimizer.step()
        gradient = 2.0 + 0.1 * expected
        velocity = 0.9 * velocity + gradient
        expected -= rate * (gradient + 0.9 * velocity)
        assert module.weight.item() == pytest.approx(expected, rel=1e-12)


def test_adam_has_stylegan2s_momenta_and_decoupled_decay():
    module = nn.Linear(1, 1, bias=False).double()
    before = module.weight.item()
    optimizer = adam(module, decay=0.1)
    assert optimizer.param_groups[0]["betas"] == (0.0, 0.99)
    optimizer.param_groups[0]["lr"] = 0.5
    module.weight.grad = torch.full_like(module.weight, 2.0)
    optimizer.step()
    assert module.weight.item() == pytest.approx(before * (1 - 0.5 * 0.1) - 0.5, rel=1e-6)


def test_adam_decays_mixmatchs_kernels_by_rate_times_decay():
    """Without gradients' pull a kernel shrinks to (1 - 0.002 · 0.02) of itself in each step, a bias not at all."""
    module = nn.Linear(3, 2).double()
    kernel, bias = (parameter.detach().clone() for parameter in module.parameters())
    optimizer = adam(module, betas=(0.9, 0.999), decay=0.02, decay_all=False)
    for parameter in module.parameters():
        parameter.grad = torch.zeros_like(parameter)
    for _ in range(3):
        for group in optimizer.param_groups:
            group["lr"] = 0.002
        optimizer.step()
    torch.testing.assert_close(module.weight.detach(), kernel * (1 - 0.002 * 0.02) ** 3, rtol=1e-12, atol=0)
    assert torch.equal(module.bias, bias)


def test_a_task_knows_its_optimizers_parameters():
    network = Network()
    task = Task(network, {"a": 1.0}, sgd(network, decay_all=False), lambda clock: 0.1)
    assert names(network, task.parameters) == names(network, [p for p in network.parameters() if p.requires_grad])
    assert len(task.parameters) == 6


@pytest.mark.parametrize("optimizer", [sgd, adam])
def test_slowed_parameters_are_groups_of_their_own_with_all_else_alike(optimizer):
    network = Network()
    made = slowed(optimizer(network, decay=1e-3, decay_all=False), network.convolution, 0.25)
    groups = [
        (names(network, group["params"]), group["weight_decay"], group.get("factor")) for group in made.param_groups
    ]
    assert groups == [
        ({"head.weight"}, 1e-3, None),
        ({"norm.weight", "norm.bias", "head.bias"}, 0.0, None),
        ({"convolution.weight"}, 1e-3, 0.25),
        ({"convolution.bias"}, 0.0, 0.25),
    ]
    alike = [{k: v for k, v in group.items() if k not in ("params", "factor")} for group in made.param_groups]
    assert alike[2:] == alike[:2]
