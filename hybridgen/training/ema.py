"""Exponential moving average of a network."""

from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any, Generic, Literal

import torch
from torch import Tensor, nn

from hybridgen.types import InputError, Network

Buffers = Literal["copy", "average", "own"]
"""Batch-norm statistics: carried along from the network, averaged like parameters, or the average's own (a teacher
that runs in training mode gathers them itself)."""


class EMA(nn.Module, Generic[Network]):
    """A copy of `network` whose parameters are its exponential moving average; never a gradient to them.

    The decay of the n-th update is min(1 - 1 / (n + 1), decay) when `linear_start` (Tarvainen and Valpola 2017; the
    thesis's "linear start for early iterations"), else `decay`. The counter n is part of the state.
    """

    def __init__(self, network: Network, decay: float, *, linear_start: bool = True, buffers: Buffers = "copy") -> None:
        super().__init__()
        if not 0 <= decay < 1:
            raise InputError(f"ema_decay: {decay} is outside [0, 1)")
        self.decay, self.linear_start, self.buffers_mode = decay, linear_start, buffers
        self.network = deepcopy(network).requires_grad_(False)
        self.updates = 0

    def forward(self, *args, **kwargs):
        return self.network(*args, **kwargs)

    @torch.no_grad()
    def update(self, source: nn.Module) -> None:
        """Move towards `source`, in a few fused operations for all tensors together."""
        self.updates += 1
        decay = min(1 - 1 / (self.updates + 1), self.decay) if self.linear_start else self.decay
        average = lambda mine, theirs: torch._foreach_lerp_(mine, theirs, 1 - decay)
        _each(list(zip(self.network.parameters(), source.parameters(), strict=True)), average)
        if self.buffers_mode == "own":
            return
        pairs = list(zip(self.network.buffers(), source.buffers(), strict=True))
        floating = [(mine, theirs) for mine, theirs in pairs if mine.is_floating_point()]
        counters = [(mine, theirs) for mine, theirs in pairs if not mine.is_floating_point()]
        if self.buffers_mode == "average":
            _each(floating, average)
            _each(counters, torch._foreach_copy_)
        else:
            _each(pairs, torch._foreach_copy_)

    def get_extra_state(self) -> Tensor:
        return torch.tensor(self.updates)

    def set_extra_state(self, state: Tensor) -> None:
        self.updates = int(state)


def _each(pairs: Sequence[tuple[Tensor, Tensor]], operation: Callable[[list[Tensor], list[Tensor]], Any]) -> None:
    if pairs:
        operation([mine for mine, _ in pairs], [theirs for _, theirs in pairs])
