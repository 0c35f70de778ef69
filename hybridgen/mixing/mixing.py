"""How each image of a batch is mixed with a partner: one value for pixels, feature maps and patch tokens."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64, Integer
from torch import Tensor

from hybridgen.types import InputError, Labels

Maps = Float[Tensor, "batch channels height width"]
"""Images or feature maps."""

Tokens = Float[Tensor, "batch tokens channels"]
"""Patch tokens, row by row, without class tokens."""

Boxes = Int64[Tensor, "#batch 4"]
"""Top, left, height and width in pixels; one for the whole batch or one for each image."""

Targets = Float[Tensor, "batch classes"]
"""Class probabilities."""

Others = Float[Tensor, "others ..."]
"""Another batch to choose partners from."""

Interpolation = Literal["nearest", "bilinear"]


@dataclass(frozen=True, eq=False)
class Mixing:
    """What each image of a batch is mixed with, where, and by how much.

    The image and its partner have a role each: one is the base, the other is what is laid over it. `mask` is the
    base's share at every place. It may have one row for the whole batch, a single place where the share is the same
    everywhere (Mixup), and several channels (PatchUp). With `boxes` the overlaid one is not taken from the same place
    but resized into its box (ResizeMix, RecursiveMix).

    InputError for a mask outside [0, 1] (looked at on CPUs only: elsewhere it would wait for the device), and for rows
    that are neither one nor as many as partners.
    """

    mask: Float[Tensor, "#batch #channels #height #width"]
    """In [0, 1]."""
    partner: Int64[Tensor, " batch"]
    """Place of each one's partner in the batch, or in a batch of others."""
    exchanged: Bool[Tensor, " #batch"] | None = None
    """Role: whether the partner is the base. Without it, the images are."""
    boxes: Boxes | None = None
    interpolation: Interpolation = "nearest"
    """How the overlaid one is resized into its box."""

    def __post_init__(self) -> None:
        for name, value in (("mask", self.mask), ("exchanged", self.exchanged), ("boxes", self.boxes)):
            if value is not None and len(value) not in (1, len(self.partner)):
                raise InputError(
                    f"{name}: {len(value)} rows for {len(self.partner)} partners; give one, or one for each"
                )
        check_shares("mask", self.mask)

    @property  # a cached one has a lock, on which compiled graphs break
    def ratio(self) -> Float[Tensor, " batch"]:
        """Each image's own share: the realised mean of the mask, or the rest of it where roles are exchanged."""
        share = self.mask.mean(dim=(1, 2, 3))
        if self.exchanged is not None:
            share = torch.where(self.exchanged, 1 - share, share)
        return share.expand(len(self.partner))

    def to(self, device: torch.device | str) -> "Mixing":
        """The same mixing on a device. Nothing waits, unless it comes from a device to a CPU."""
        device = torch.device(device)
        fields = {name: getattr(self, name) for name in ("mask", "partner", "exchanged", "boxes")}
        moved = {
            name: value.to(device, non_blocking=device.type != "cpu")
            for name, value in fields.items()
            if value is not None
        }
        return self if all(moved[name] is fields[name] for name in moved) else replace(self, **moved)

    def exchange(self, which: Bool[Tensor, " #batch"]) -> "Mixing":
        """The same mask and partners with the roles exchanged where `which` says so (one for the batch or each)."""
        return replace(self, exchanged=which if self.exchanged is None else self.exchanged ^ which)

    def at(self, height: int, width: int) -> "Mixing":
        """The mixing of maps of another size: the mask's mean over the area of each place.

        InputError where one image is resized into a box, which is defined for pixels.
        """
        if self.boxes is not None:
            raise InputError("mixing: what is resized into a box cannot be brought to another size of maps")
        if tuple(self.mask.shape[2:]) in ((1, 1), (height, width)):
            return self
        return replace(self, mask=F.adaptive_avg_pool2d(self.mask, (height, width)))

    def mix(self, rows: Maps | Tokens, others: Others | None = None) -> Maps | Tokens:
        """Images, feature maps or tokens, each mixed with its partner of the same batch or of `others`.

        Tokens are as many as the mask has places. Gradient reaches both parents and the mask. InputError for rows that
        are no floats or that the mask does not fit.
        """
        _check_floats("images", rows)
        if rows.ndim == 3:
            places = self._places_of(rows)
            maps = [tokens.mT.unflatten(2, places) for tokens in (rows, others) if tokens is not None]
            return self.mix(*maps).flatten(2).mT
        self._check_fit(rows)
        base, overlaid = rows, (rows if others is None else others).index_select(0, self.partner)
        if self.exchanged is not None:
            role = self.exchanged.view(-1, 1, 1, 1)
            base, overlaid = torch.where(role, overlaid, base), torch.where(role, base, overlaid)
        if self.boxes is not None:
            overlaid = fill(overlaid, self.boxes, rows.shape[2:], self.interpolation)
        mask = self.mask.to(rows.dtype)
        # In place of what has just been made. With one share, the sum that Mixup's paper writes; else in one pass
        return overlaid.mul_(1 - mask).add_(base * mask) if mask[0, 0].numel() == 1 else overlaid.lerp_(base, mask)

    def mix_targets(self, targets: Targets, others: Others | None = None) -> Targets:
        """Class probabilities of the mixed images, by the realised ratio.

        Gradient reaches both parents'. InputError for class indices, of which `as_targets` makes probabilities.
        """
        _check_floats("targets", targets)
        if targets.ndim != 2 or len(targets) != len(self.partner):
            raise InputError(f"targets: of shape {tuple(targets.shape)}, but {len(self.partner)} images are mixed; one "
                             "row of probabilities each is needed")  # fmt: skip
        share = self.ratio.to(targets.dtype).unsqueeze(1)
        partners = (targets if others is None else others).index_select(0, self.partner)
        return partners.mul_(1 - share).add_(targets * share)

    def _places_of(self, tokens: Tensor) -> tuple[int, int]:
        """Height and width of tokens; in one column where the share is the same everywhere."""
        height, width = self.mask.shape[2:]
        if (height, width) == (1, 1) and self.boxes is None:
            return tokens.shape[1], 1
        if tokens.shape[1] != height * width:
            raise InputError(f"mixing: {tokens.shape[1]} tokens, but the mask has {height}×{width} places; `at` brings "
                             "it to another size")  # fmt: skip
        return height, width

    def _check_fit(self, maps: Tensor) -> None:
        if maps.ndim != 4 or len(maps) != len(self.partner):
            raise InputError(f"images: of shape {tuple(maps.shape)}; [{len(self.partner)}, channels, height, width] is "
                             "what this mixing was drawn for")  # fmt: skip
        channels, *places = self.mask.shape[1:]
        if channels not in (1, maps.shape[1]):
            raise InputError(f"mixing: maps of {maps.shape[1]} channels, but the mask has {channels}")
        if places not in ([1, 1], list(maps.shape[2:])):
            raise InputError(f"mixing: maps of {maps.shape[2]}×{maps.shape[3]}, but the mask is "
                             f"{places[0]}×{places[1]}; `at` brings it to another size")  # fmt: skip


def other_partners(
    count: int, generator: torch.Generator | None = None, *, device: torch.device | str = "cpu"
) -> Int64[Tensor, " batch"]:
    """A partner for each of `count` images, so that each is somebody's and none its own (but a single one is): a random
    cycle through all of them. Drawn on `device`, the generator's.

    A random permutation (`torch.randperm`) leaves one image in the batch, on average, to itself.
    """
    order = torch.randperm(count, generator=generator, device=device)
    return torch.empty_like(order).scatter_(0, order, order.roll(1))


def check_shares(name: str, shares: Tensor) -> None:
    """InputError for shares outside [0, 1]; looked at where it costs nothing (`readable`)."""
    if readable(shares) and shares.numel():
        low, high = (bound.item() for bound in shares.detach().aminmax())
        if not (low >= 0 and high <= 1):
            raise InputError(f"{name}: in [{low:.3g}, {high:.3g}], not in [0, 1]")


def readable(values: Tensor) -> bool:
    """Whether a value can be looked at without waiting for a device or breaking a graph that is compiled."""
    return values.device.type == "cpu" and not torch.compiler.is_compiling()


def as_targets(
    labels: Labels | Integer[Tensor, "batch classes"] | Targets, classes: int | None, *, unknown: bool = False
) -> Targets:
    """Class probabilities of labels that are indices, one-hot or soft already; of these the number may be left open.

    If some may be `unknown`, -1 is one of them: zeros. InputError for indices outside 0..classes - 1 (looked at where
    it costs nothing, `readable`), and for another number of columns.
    """
    if labels.ndim == 2:
        if classes is not None and labels.shape[1] != classes:
            raise InputError(f"labels: {labels.shape[1]} columns for {classes} classes")
        return labels if labels.is_floating_point() else labels.float()
    if labels.ndim != 1 or labels.is_floating_point() or labels.dtype == torch.bool:
        raise InputError(f"labels: {labels.dtype} of shape {tuple(labels.shape)}; class indices or one row of "
                         "probabilities an image are needed")  # fmt: skip
    if classes is None:
        raise InputError("num_classes: needed where labels are indices")
    lowest = -1 if unknown else 0
    if readable(labels) and len(labels) and not lowest <= labels.min() <= labels.max() < classes:
        outside = labels[(labels < lowest) | (labels >= classes)][0]
        raise InputError(f"labels: class {outside} is outside 0..{classes - 1}{' (-1: not known)' * unknown}")
    if unknown:
        return F.one_hot(labels.long().clamp(min=0), classes) * (labels >= 0).float().unsqueeze(1)
    return F.one_hot(labels.long(), classes).float()


def fill(
    images: Maps, boxes: Boxes, size: Sequence[int], interpolation: Interpolation
) -> Float[Tensor, "batch channels rows columns"]:
    """Each image resized into its box on a canvas of `size` (height, width); outside of it, pixels of no meaning.

    As torch's `interpolate` resizes: `nearest`, or `bilinear` without aligned corners. Boxes of no area are allowed.
    Gradient reaches the images. Nothing waits for the device.
    """
    places = [torch.arange(length, device=images.device) for length in size]
    top, left, height, width = boxes.to(images.device).unsqueeze(2).unbind(1)
    rows, columns = (places[0] - top, height.clamp(min=1)), (places[1] - left, width.clamp(min=1))
    if interpolation == "nearest":
        row, column = (
            (place * (side / length)).long().clamp(0, side - 1)
            for (place, length), side in zip((rows, columns), images.shape[2:], strict=True)
        )
        source = (row * images.shape[3]).unsqueeze(2) + column.unsqueeze(1)
        index = source.flatten(1).unsqueeze(1).expand(len(images), images.shape[1], -1)
        return images.flatten(2).gather(2, index).unflatten(2, tuple(size))
    return _interpolated(_interpolated(images, *rows).mT, *columns).mT


def _interpolated(images: Tensor, place: Tensor, length: Tensor) -> Tensor:
    """Rows of the images, linearly between them, at places [b n] in boxes of this height [b 1]."""
    side = images.shape[2]
    source = ((place + 0.5) * (side / length) - 0.5).clamp(0, side - 1)
    low = source.long()
    low, high, weight = (each[:, None, :, None] for each in (low, (low + 1).clamp(max=side - 1), source - low))
    above, below = (images.gather(2, at.expand(*images.shape[:2], -1, images.shape[3])) for at in (low, high))
    return torch.lerp(above, below, weight.to(images.dtype))


def _check_floats(name: str, values: Tensor) -> None:
    if not values.is_floating_point():
        raise InputError(f"{name}: {values.dtype}; floating point is needed")
