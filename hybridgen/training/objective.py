"""What one optimizer minimises."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from hybridgen.training.schedules import Clock, Schedule, Weight, value
from hybridgen.types import Images, InputError, Losses


class Taught(NamedTuple):
    """What a classifier's objective taught with in a step, for whoever teaches more with it."""

    images: Images
    """The first ones are the labelled."""
    targets: Float[Tensor, "batch classes"]
    """Class probabilities of all of them, without gradient."""
    labels: Int64[Tensor, " labelled"]
    """Of the first ones."""


class Guessed(NamedTuple):
    """What an objective takes the unlabelled images of a batch for."""

    labels: Int64[Tensor, " unlabelled"]
    weights: Float[Tensor, " unlabelled"] | None = None
    """How much each of them counts in the losses, in [0, 1]; None: all alike."""


class Outcome(NamedTuple):
    """What the forward of an objective returns.

    An objective is an `nn.Module` with `forward(batch, clock, *handed) -> Outcome` as its whole computation, so that
    data-parallel gradients, mixed precision and compilation work on it as on any model.
    """

    losses: Losses
    """Named, unweighted scalars."""
    rates: dict[str, Tensor] = {}  # noqa: RUF012 - never written to
    """Scalars to record that nobody minimises, detached."""
    handed: tuple[Tensor, ...] = ()
    """What the next objective of the same step takes: a generator hands its images to the discriminator."""
    taught: Callable[[], Taught] | None = None
    """A classifier's images and their targets; nothing is computed for them unless someone asks."""
    guessed: Guessed | None = None
    """Without gradient, of objectives that guess labels."""


@dataclass
class Task:
    """An objective with the weights of its losses and the optimizer that minimises their sum."""

    objective: nn.Module
    weights: Mapping[str, Weight]
    optimizer: torch.optim.Optimizer
    rate: Schedule
    """Learning rate over time, but for the groups of `slowed` parameters."""
    clip: float | None = None
    """Largest norm of the gradient; None leaves it alone."""
    parameters: list[nn.Parameter] = field(init=False)

    def __post_init__(self) -> None:
        self.parameters = [p for group in self.optimizer.param_groups for p in group["params"]]


def weighted(losses: Losses, weights: Mapping[str, Weight], clock: Clock) -> Losses:
    """Each loss times its weight at this time.

    Raises InputError for a loss without a weight and for a weight without a loss.
    """
    if losses.keys() != weights.keys():
        raise InputError(
            f"weights: losses without a weight: {sorted(losses.keys() - weights.keys())}; "
            f"weights without a loss: {sorted(weights.keys() - losses.keys())}"
        )
    return {name: loss * value(weights[name], clock) for name, loss in losses.items()}


def right(guessed: Guessed, hidden: Int64[Tensor, " unlabelled"]) -> dict[str, Tensor]:
    """What the accuracy of guesses is made of: `pseudo_right`, how much right ones count, and `pseudo_counted`, how
    much all do whose class is known (-1: not), summed over the batch. Nobody learns from it."""
    weights = torch.ones_like(guessed.labels, dtype=torch.float32) if guessed.weights is None else guessed.weights
    counted = weights.detach().float() * (hidden >= 0)
    return {"pseudo_right": (counted * (guessed.labels == hidden)).sum(), "pseudo_counted": counted.sum()}


def sgd(
    module: nn.Module, *, momentum: float = 0.9, decay: float = 5e-4, decay_all: bool = True, nesterov: bool = True
) -> torch.optim.SGD:
    """SGD, Nesterov's unless told otherwise, over the parameters that learn; the rate is set by the schedule at every
    step.

    `decay_all=False` decays kernels only (tensors of two dimensions or more), as FixMatch does.
    """
    groups = _groups(module, decay, decay_all)
    return torch.optim.SGD(groups, lr=0.0, momentum=momentum, nesterov=nesterov and momentum > 0, foreach=True)


def adam(
    module: nn.Module, *, betas: tuple[float, float] = (0.0, 0.99), decay: float = 0.0, decay_all: bool = True
) -> torch.optim.AdamW:
    """Adam with StyleGAN2's momenta over the parameters that learn; the rate is set by the schedule at every step.

    Decay is decoupled: p ← (1 - rate · decay) p. `decay_all=False` decays kernels only, as MixMatch does (with its
    own betas, 0.9 and 0.999, and decay 0.02).
    """
    return torch.optim.AdamW(_groups(module, decay, decay_all), lr=0.0, betas=betas, foreach=True)


def slowed(optimizer: torch.optim.Optimizer, module: nn.Module, factor: float) -> torch.optim.Optimizer:
    """The new optimizer, with this factor on the rate of the module's parameters: in groups of their own, which `fit`
    reads it from."""
    own = {id(parameter) for parameter in module.parameters()}
    for group in list(optimizer.param_groups):
        slow = [parameter for parameter in group["params"] if id(parameter) in own]
        group["params"] = [parameter for parameter in group["params"] if id(parameter) not in own]
        if slow:
            optimizer.add_param_group({**group, "params": slow, "factor": factor})
    return optimizer


def _groups(module: nn.Module, decay: float, decay_all: bool) -> list[dict[str, Any]]:
    """The parameters that learn, in one group; or kernels, which decay, and the rest, which does not: vectors, and what
    a part of the module names in `no_weight_decay`, timm's convention (positions, class tokens)."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    if decay_all:
        return [{"params": parameters, "weight_decay": decay}]
    named: Callable[[Any], Iterable[str]] = lambda part: getattr(part, "no_weight_decay", set)()
    spared = {
        id(part.get_parameter(name))
        for part in module.modules()
        for name in named(part)
        if name in dict(part.named_parameters())
    }
    kernels = [p for p in parameters if p.ndim > 1 and id(p) not in spared]
    others = [p for p in parameters if p.ndim <= 1 or id(p) in spared]
    return [{"params": kernels, "weight_decay": decay}, {"params": others, "weight_decay": 0.0}]
