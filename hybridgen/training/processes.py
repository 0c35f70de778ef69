"""Figures over all processes: each sees its share of a batch, and statistics are to be those of the whole."""

import torch
from torch import Tensor, distributed


def number_of_processes() -> int:
    """1 unless there are more."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def sum_over_processes(x: Tensor) -> Tensor:
    """The sum of what the processes have, on each of them; gradient goes to what every one of them has."""
    return SumOverProcesses.apply(x) if number_of_processes() > 1 else x


def mean_over_processes(x: Tensor) -> Tensor:
    """The mean of what the processes have, of the same shape, on each of them."""
    return sum_over_processes(x) / number_of_processes()


def over_processes(x: Tensor) -> Tensor:
    """The rows of all processes, in their order, on each of them; as many of every one. No gradient."""
    if number_of_processes() == 1:
        return x
    parts = [torch.empty_like(x) for _ in range(number_of_processes())]
    distributed.all_gather(parts, x.contiguous())
    return torch.cat(parts)


class SumOverProcesses(torch.autograd.Function):
    """Every process gets the sum, and so has a share in the loss of each."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        total = x.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx, *gradients: Tensor) -> Tensor:
        return SumOverProcesses.apply(*gradients)
