"""Mixing as a batch transform, for training loops of any kind."""

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hybridgen.data.augmix import augmix
from hybridgen.mixing.masks import Generator
from hybridgen.mixing.methods import METHODS
from hybridgen.mixing.mixing import Mixing, Others, Targets
from hybridgen.mixing.recursive import recursivemix
from hybridgen.mixing.samples import LabelsGetter, change_sample, check_transform, part_workers, toss
from hybridgen.types import InputError

NAMES = (*METHODS, "recursivemix", "augmix")


class Mix(nn.Module):
    """A batch transform called like `torchvision.transforms.v2.MixUp`: images and labels in, mixed images and soft
    labels out.

    `method` is a name in `METHODS`, `recursivemix` or `augmix`; `options` are those of its function (`alpha`,
    `per_sample`, ...). A call takes images and labels as two arguments or one tuple, or a sample of any structure, in
    which `labels_getter` finds the labels, and gives the same structure back. Images are `[b c h w]`, or as
    `tv_tensors.Video` `[b t c h w]`, mixed alike in every frame; several in one sample are mixed alike. They keep their
    kind, dtype and memory format: uint8 is mixed in float32 and rounded to the nearest level (torchvision's MixUp takes
    floats only). Labels are indices or probabilities already, of which `num_classes` may be None.

    A call mixes with `probability` and else gives the images back, with their labels as probabilities. In evaluation
    mode nothing is mixed. Draws come from `generator`, on a CPU or the images' device, or from torch's global ones; in
    a data loader's workers each draws for itself, and anew in each epoch.
    Within `torch.compile` there is no graph break, but at a generator, of which compiled graphs cannot draw; there
    labels outside the classes are not looked for, and the coin is tossed on the images' device.

    `mixing` is what the last call mixed by, None where it did not: `mixing.partner`, `mixing.ratio` (of an image whose
    coin on a device fell against it, 1), `mixing.boxes` where partners are resized into a box.

    RecursiveMix mixes with what the last call gave, its partner's place there being `mixing.partner`; the first call
    mixes nothing. `forget` begins anew, and the state dict does not hold the past. For its loss, logits of the box are
    those of `hybridgen.methods.recursivemix.align(features, Box(*mix.mixing.boxes[0].tolist(), size))`, and
    `hybridgen.losses.consistency.historical_consistency` compares them with the last logits at `mix.mixing.partner`;
    its weight is `1 - mix.mixing.ratio`. AugMix, of one batch of images in [0, 1], has no partners: labels stay, and
    `mixing` is None.

    Raises InputError for an unknown method or option, a probability outside [0, 1], what the method refuses, and
    samples of which `change_sample` makes nothing.
    """

    def __init__(
        self,
        method: str,
        num_classes: int | None = None,
        *,
        probability: float = 1.0,
        labels_getter: LabelsGetter = "default",
        generator: Generator = None,
        **options: Any,
    ) -> None:
        super().__init__()
        if method not in NAMES:
            raise InputError(f"method: {method!r} is unknown; there are {', '.join(NAMES)}")
        check_transform(probability, labels_getter)
        if num_classes is not None and num_classes < 1:
            raise InputError(f"num_classes: {num_classes} is below 1")
        self.method, self.num_classes, self.probability = method, num_classes, probability
        self.labels_getter, self.generator, self.options = labels_getter, generator, options
        self.mixing: Mixing | None = None
        self._worker: int | None = None
        self.forget()
        try:
            self._draw(torch.zeros(1, 3, 8, 8), torch.Generator())
        except TypeError as error:
            raise InputError(f"{method}: {error}") from error

    def forget(self) -> None:
        """What RecursiveMix has seen."""
        self._past: tuple[list[Tensor], Targets] | None = None

    def forward(self, *inputs: Any) -> Any:
        return change_sample(inputs, self.labels_getter, self.num_classes, self._change)

    def _change(self, images: list[Tensor], targets: Targets) -> tuple[list[Tensor], Targets]:
        self.mixing = None
        if not self.training:
            return images, targets
        self._worker = part_workers(self.generator, self._worker)
        coin = toss(self.probability, self.generator, images[0].device)
        if coin is not False and self.method == "augmix":
            if len(images) > 1 or images[0].ndim != 4:
                raise InputError("augmix: one batch of images a sample is needed, and no video")
            made = self._draw(images[0], self.generator)
            images = [made if coin is True else torch.where(coin, made, images[0])]
        elif coin is not False:
            images, targets = self._mixed(images, targets, coin)
        if self.method == "recursivemix":
            self._past = [each.detach().clone() for each in images], targets.detach().clone()
        return images, targets

    def _mixed(self, images: list[Tensor], targets: Targets, coin: bool | Tensor) -> tuple[list[Tensor], Targets]:
        maps = [each.flatten(1, -3) for each in images]  # frames are more channels
        mixing = self._draw(maps[0], self.generator)
        others, their_targets = [None] * len(maps), None
        if self.method == "recursivemix":
            if self._past is None:
                return images, targets
            others, their_targets = _remembered(*self._past, maps, targets, cut=mixing.boxes is None)
        if isinstance(coin, Tensor):
            mixing = replace(mixing, mask=torch.where(coin, mixing.mask, 1.0))
        self.mixing = mixing
        mixed = [mixing.mix(*pair).view_as(each) for each, *pair in zip(images, maps, others, strict=True)]
        return mixed, mixing.mix_targets(targets, their_targets)

    def _draw(self, images: Tensor, generator: Generator) -> Any:
        """A mixing of these images; of AugMix, the images."""
        if self.method == "augmix":
            return augmix(images, generator, **self.options)
        if self.method == "recursivemix":
            count = len(images) if self._past is None else len(self._past[1])
            return recursivemix(images, count, generator=generator, **self.options)
        return METHODS[self.method](images, generator=generator, **self.options)

    def extra_repr(self) -> str:
        options = "".join(f", {name}={value}" for name, value in self.options.items())
        return f"{self.method!r}, num_classes={self.num_classes}, probability={self.probability}{options}"


def _remembered(
    images: list[Tensor], their_targets: Others, maps: list[Tensor], targets: Targets, *, cut: bool
) -> tuple[list[Tensor], Others]:
    """Images and targets of the last call, of the size of these where they are `cut` at the same places."""
    others = [each.flatten(1, -3) for each in images]
    channels, before = ([each.shape[1] for each in (*rows, labels)]
                        for rows, labels in ((maps, targets), (others, their_targets)))  # fmt: skip
    if channels != before:
        raise InputError(
            f"recursivemix: {channels} channels and classes after {before} in the last call; `forget` begins anew"
        )
    others = [each.to(own) for each, own in zip(others, maps, strict=True)]
    if cut:
        others = [F.interpolate(each, own.shape[2:]) for each, own in zip(others, maps, strict=True)]
    return others, their_targets.to(targets)
