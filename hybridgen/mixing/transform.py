"""Mixing as a batch transform, for training loops of any kind."""

from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from hybridgen.mixing.masks import Generator
from hybridgen.mixing.methods import METHODS
from hybridgen.mixing.mixing import Maps, Targets, as_targets
from hybridgen.types import InputError, Labels


class Mix(nn.Module):
    """A batch transform called like `torchvision.transforms.v2.MixUp`: images and labels in, mixed images and soft
    labels out.

    `method` is a name in `METHODS`; `options` are those of its function (`alpha`, `per_sample`, ...). A call mixes
    with `probability` and else gives the images back, with their labels as probabilities. Labels are class indices or
    probabilities already. Draws come from `generator`, on a CPU or the images' device, or from torch's global ones. In
    evaluation mode nothing is mixed.

    Raises InputError for an unknown method or option, a probability outside [0, 1], and what the method refuses.
    """

    def __init__(
        self, method: str, classes: int, *, probability: float = 1.0, generator: Generator = None, **options: Any
    ) -> None:
        super().__init__()
        if method not in METHODS:
            raise InputError(f"method: {method!r} is unknown; there are {', '.join(METHODS)}")
        if not 0 <= probability <= 1:
            raise InputError(f"probability: {probability} is outside [0, 1]")
        if classes < 1:
            raise InputError(f"classes: {classes} is below 1")
        self.method, self.classes, self.probability = method, classes, probability
        self.generator, self.options = generator, options
        try:
            METHODS[method](torch.zeros(1, 1, 8, 8), generator=torch.Generator(), **options)
        except TypeError as error:
            raise InputError(f"{method}: {error}") from error

    def forward(self, images: Maps, labels: Labels | Targets) -> tuple[Maps, Targets]:
        targets = as_targets(labels, self.classes)
        if len(images) != len(targets):
            raise InputError(f"labels: {len(targets)} for {len(images)} images")
        coin = self.training and self._toss()
        if coin is False:
            return images, targets
        mixing = METHODS[self.method](images, generator=self.generator, **self.options)
        mixed, soft = mixing.mix(images), mixing.mix_targets(targets)
        return (mixed, soft) if coin is True else (torch.where(coin, mixed, images), torch.where(coin, soft, targets))

    def _toss(self) -> bool | Bool[Tensor, ""]:
        """Whether to mix; drawn on a device, it stays there, so that nothing waits."""
        if self.probability == 1:
            return True
        device = torch.device("cpu") if self.generator is None else self.generator.device
        coin = torch.rand((), generator=self.generator, device=device) < self.probability
        return bool(coin) if device.type == "cpu" else coin

    def extra_repr(self) -> str:
        options = "".join(f", {name}={value}" for name, value in self.options.items())
        return f"{self.method!r}, classes={self.classes}, probability={self.probability}{options}"
