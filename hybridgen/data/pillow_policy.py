"""The strong augmentation of FixMatch in plain Pillow, one image at a time.

This is the reference form: the tests hold `hybridgen.data.randaugment` to it, and `hybridgen bench` measures
against it. It follows google-research/fixmatch (`third_party/auto_augment/augmentations.py`), with the ranges
of the paper's table 12 (arXiv:2001.07685) where that code differs from the paper: posterize keeps 8 to 4 bits
(the code 4 to 0), translation reaches 0.3 of the side (the code 10 pixels).
"""

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

FILL = (127, 127, 127)
"""What geometric operations and cutout leave behind: 0.5 grey in eight bits."""


def _affine(image: Image.Image, matrix: tuple[float | int, ...]) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, matrix, fillcolor=FILL)


def _enhancer(kind: type) -> Callable[[Image.Image, float], Image.Image]:
    return lambda image, magnitude: kind(image).enhance(magnitude * 1.8 / 10 + 0.1)


PILLOW_OPERATIONS: dict[str, Callable[[Image.Image, float], Image.Image]] = {
    "identity": lambda image, m: image,
    "autocontrast": lambda image, m: ImageOps.autocontrast(image),
    "equalize": lambda image, m: ImageOps.equalize(image),
    "rotate": lambda image, m: image.rotate(int(m * 30 / 10), fillcolor=FILL),
    "solarize": lambda image, m: ImageOps.solarize(image, 256 - int(m * 256 / 10)),
    "color": _enhancer(ImageEnhance.Color),
    "contrast": _enhancer(ImageEnhance.Contrast),
    "brightness": _enhancer(ImageEnhance.Brightness),
    "sharpness": _enhancer(ImageEnhance.Sharpness),
    "shear_x": lambda image, m: _affine(image, (1, m * 0.3 / 10, 0, 0, 1, 0)),
    "shear_y": lambda image, m: _affine(image, (1, 0, 0, m * 0.3 / 10, 1, 0)),
    "translate_x": lambda image, m: _affine(image, (1, 0, int(m * 0.3 / 10 * image.width), 0, 1, 0)),
    "translate_y": lambda image, m: _affine(image, (1, 0, 0, 0, 1, int(m * 0.3 / 10 * image.height))),
    "posterize": lambda image, m: ImageOps.posterize(image, 8 - int(m * 4 / 10)),
}
"""The 14 operations: an RGB image and a magnitude in 0..10, for the geometric ones in -10..10."""

GEOMETRIC = frozenset({"rotate", "shear_x", "shear_y", "translate_x", "translate_y"})
"""The operations that draw a sign."""

_NAMES = tuple(PILLOW_OPERATIONS)


def _reflected(side: int, shift: int) -> np.ndarray:
    """Where the pixels of a shifted axis come from: `np.pad(mode="reflect")` and a crop, ten times faster."""
    last = side - 1
    return last - np.abs(last - np.abs(np.arange(side) + shift))


def pillow_weak(image: Image.Image, rng: np.random.Generator, *, flip: bool, shift: int) -> Image.Image:
    """Horizontal flip with probability 1/2, then a reflect-padded shift of up to `shift` pixels."""
    if flip and rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if shift:
        rows, columns = (_reflected(side, int(rng.integers(-shift, shift + 1))) for side in (image.height, image.width))
        image = Image.fromarray(np.asarray(image).take(rows, 0).take(columns, 1))
    return image


def pillow_strong(
    image: Image.Image,
    rng: np.random.Generator,
    *,
    flip: bool,
    shift: int,
    operations: int = 2,
    probability: float = 0.5,
    cutout: int = 16,
) -> Image.Image:
    """Weak augmentation, `operations` of the 14 with replacement, each with `probability`, then cutout.

    `image` is RGB with 8 bits a channel. Magnitudes are integers 1..9 of 10. The cutout's centre is uniform
    over the pixels, its square is clipped at the borders.
    """
    image = pillow_weak(image, rng, flip=flip, shift=shift)
    for choice in rng.integers(0, len(_NAMES), operations):
        name = _NAMES[choice]
        magnitude = int(rng.integers(1, 10))
        if name in GEOMETRIC and rng.random() < 0.5:
            magnitude = -magnitude
        if rng.random() < probability:
            image = PILLOW_OPERATIONS[name](image, magnitude)
    if cutout:
        top = int(rng.integers(0, image.height)) - cutout // 2
        left = int(rng.integers(0, image.width)) - cutout // 2
        image = image.copy()
        image.paste(FILL, (max(left, 0), max(top, 0), left + cutout, top + cutout))
    return image
