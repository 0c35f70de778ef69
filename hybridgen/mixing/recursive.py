"""RecursiveMix (Yang et al. 2022): what the last step saw, resized and laid over the images of this one."""

from typing import NamedTuple

import torch

from hybridgen.mixing import masks
from hybridgen.mixing.masks import Generator
from hybridgen.mixing.mixing import Boxes, Interpolation, Maps, Mixing
from hybridgen.types import InputError


class Box(NamedTuple):
    """In pixels of an image of `size`."""

    top: int
    left: int
    height: int
    width: int
    size: tuple[int, int]

    @property
    def share(self) -> float:
        """λ: its exact part of the image's area."""
        return self.height * self.width / (self.size[0] * self.size[1])


def draw_box(height: int, width: int, *, alpha: float = 0.5, generator: Generator = None) -> Box:
    """The place of the historical images, one for the whole batch: λ ~ U(0, alpha) of the area, around a pixel that is
    uniform over the image, cut off at its borders (equation 2). Drawn on the generator's device, or a CPU; read back.

    InputError for an alpha outside (0, 1].
    """
    device = torch.device("cpu") if generator is None else generator.device
    return Box(*_draw_boxes(height, width, alpha, generator, device)[0].tolist(), size=(height, width))


def recursivemix(
    images: Maps,
    history: int,
    *,
    alpha: float = 0.5,
    resize: bool = True,
    interpolation: Interpolation = "nearest",
    generator: Generator = None,
) -> Mixing:
    """`recursive` with a box of its own, as `draw_box` draws it but on the images' device without a generator; nothing
    is read back."""
    device = images.device if generator is None else generator.device
    height, width = images.shape[2:]
    boxes = _draw_boxes(height, width, alpha, generator, device).to(images.device, non_blocking=True)
    return _laid_over(images, boxes, history, resize, interpolation)


def recursive(
    images: Maps, box: Box, history: int, *, resize: bool = True, interpolation: Interpolation = "nearest"
) -> Mixing:
    """Images as the base, and over them a batch of `history` others: the i-th image has the i-th of them, from the
    first one again where there are fewer (equation 1).

    Without `resize` the others are cut to the box instead, which loses what they showed elsewhere (figure 3).
    InputError for a box of images of another size, or one that does not lie inside them.
    """
    height, width = images.shape[2:]
    if box.size != (height, width):
        raise InputError(f"box: of an image of {box.size[0]}×{box.size[1]}; these have {height}×{width}")
    if not (0 <= box.top <= box.top + box.height <= height and 0 <= box.left <= box.left + box.width <= width):
        raise InputError(f"box: {tuple(box[:4])} (top, left, height, width) is not inside {height}×{width} pixels")
    boxes = torch.tensor([box[:4]]).to(images.device, non_blocking=True)
    return _laid_over(images, boxes, history, resize, interpolation)


def _draw_boxes(height: int, width: int, alpha: float, generator: Generator, device: torch.device) -> Boxes:
    if not 0 < alpha <= 1:
        raise InputError(f"alpha: {alpha} is outside (0, 1]")
    share = alpha * torch.rand(1, generator=generator, device=device)
    return masks.cutmix_boxes(1 - share, height, width, generator)


def _laid_over(images: Maps, boxes: Boxes, history: int, resize: bool, interpolation: Interpolation) -> Mixing:
    partner = torch.arange(len(images), device=images.device) % history
    mask = masks.inside(boxes, *images.shape[2:])
    return Mixing(mask, partner, None, boxes if resize else None, interpolation)
