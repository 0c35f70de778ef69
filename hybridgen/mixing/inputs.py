"""How the inputs of one network are mixed: MIMO (Havasi et al. 2021), MixMo (Ramé et al. 2021; thesis 3.3.2) and, patch
by patch, MixViT (thesis 4.3.3)."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import inf
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from hybridgen.mixing import masks
from hybridgen.mixing.masks import Generator, Mask, Ratio
from hybridgen.mixing.mixing import Maps, Mixing, Tokens, other_partners
from hybridgen.types import InputError

Patches = Literal["cutmix", "horizontal-concat", "vertical-concat", "patchup", "fmix", "cowmix"]
"""Binary masks (thesis, table 3.3)."""

Shares = Float[Tensor, "inputs batch"]

Masks = Float[Tensor, "inputs batch 1 height width"]
"""In [0, 1]; a single place where the share is the same everywhere."""

PATCH = 7
"""Side of PatchUp's squares."""

SMALLEST = 3
"""Places along a side, below which every box vanishes: half its side is cut to whole places."""


@dataclass(frozen=True, eq=False)
class InputMixing:
    """Which images M inputs see together, and how their encodings become one map.

    The inputs are mixed one after the other in `order`: each of `mixings`, one fewer than inputs, adds one to what has
    become of those before it. All add up to M times their weighted mean, so that shares of 1/M are a plain sum.
    """

    partners: Int64[Tensor, "inputs batch"]
    """Places in the batch of the images that each input sees; the first one sees all in their order."""
    order: tuple[int, ...]
    mixings: tuple[Mixing, ...]

    def __post_init__(self) -> None:
        if sorted(self.order) != list(range(len(self.partners))) or len(self.mixings) != len(self.order) - 1:
            raise InputError(
                f"inputs: {len(self.mixings)} mixings in the order {self.order} of {len(self.partners)} inputs; each "
                "input once and one mixing fewer are needed"
            )

    @cached_property
    def ratios(self) -> Shares:
        """κ: the realised share of each input in each image, the mean of its mask; their sum is 1."""
        first, *others = self.order
        left = torch.ones(self.partners.shape[1], device=self.partners.device)
        shares = [left] * len(self.order)
        for place, mixing in zip(reversed(others), reversed(self.mixings), strict=True):
            shares[place], left = left * (1 - mixing.ratio), left * mixing.ratio
        shares[first] = left
        return torch.stack(shares)

    @cached_property
    def masks(self) -> Masks:
        """The share of each input at each place; their sum is 1. Of two inputs mixed by patches 1_M and 1 - 1_M
        (algorithm A.7); inputs that are interpolated have a part each of what the patch leaves."""
        first, *others = self.order
        left = torch.ones(self.partners.shape[1], 1, 1, 1, device=self.partners.device)
        shares = [left] * len(self.order)
        for place, mixing in zip(reversed(others), reversed(self.mixings), strict=True):
            shares[place], left = left * (1 - mixing.mask), left * mixing.mask
        shares[first] = left
        return torch.stack(torch.broadcast_tensors(*shares))

    def mix(self, encodings: Sequence[Maps | Tokens]) -> Maps | Tokens:
        """The map that goes into the core: equation 3.2, for more inputs A.3 and A.4.

        `encodings` are of the `partners` of each input. Gradient reaches all of them. InputError for another number.
        """
        if len(encodings) != len(self.order):
            raise InputError(f"inputs: encodings of {len(encodings)}; {len(self.order)} are to be mixed")
        first, *others = self.order
        mixed = encodings[first]
        for place, mixing in zip(others, self.mixings, strict=True):
            mixed = mixing.mix(mixed, encodings[place])
        return mixed * len(encodings) if self.mixings else mixed


@dataclass(frozen=True, eq=False)
class PatchMixing:
    """Which images M inputs see together, and of which input each patch is: of one and no other."""

    partners: Int64[Tensor, "inputs batch"]
    """Places in the batch of the images that each input sees; the first one sees all in their order."""
    owners: Int64[Tensor, "batch rows columns"]
    """The input that each patch is of."""

    @cached_property
    def masks(self) -> Masks:
        """M_i of each input: 1 at its patches, 0 elsewhere."""
        inputs = torch.arange(len(self.partners), device=self.owners.device)
        return (self.owners == inputs.view(-1, 1, 1, 1)).float().unsqueeze(2)

    @cached_property
    def ratios(self) -> Shares:
        """λ: the realised share of each input's patches in each image; their sum is 1."""
        return self.masks.mean(dim=(2, 3, 4))

    def mix(self, inputs: Sequence[Maps | Tokens]) -> Maps | Tokens:
        """Every patch as its input has it: of images, whose sides are multiples of the patches' numbers, or of tokens,
        one a patch. They are of the `partners` of each input. Gradient reaches those that are shown. InputError for
        another number of inputs, and for images and tokens that the patches do not fit."""
        if len(inputs) != len(self.partners):
            raise InputError(f"inputs: {len(inputs)}; {len(self.partners)} are to be mixed")
        mixed, *others = inputs
        owners = self._owners_in(mixed)
        for place, other in enumerate(others, start=1):
            mixed = torch.where(owners == place, other, mixed)
        return mixed

    def _owners_in(self, values: Maps | Tokens) -> Int64[Tensor, "batch ..."]:
        rows, columns = self.owners.shape[1:]
        if values.ndim == 3 and values.shape[1] == rows * columns:
            return self.owners.flatten(1).unsqueeze(2)
        if values.ndim == 4 and not (values.shape[2] % rows or values.shape[3] % columns):
            height, width = values.shape[2] // rows, values.shape[3] // columns
            return self.owners.repeat_interleave(height, dim=1).repeat_interleave(width, dim=2).unsqueeze(1)
        raise InputError(f"inputs: of shape {tuple(values.shape)}; {rows}×{columns} patches do not fit them")


def loss_weights(ratios: Shares, root: float) -> Shares:
    """w_r of each input's loss, M κ_i^(1/r) / Σ κ_j^(1/r) (equations 3.3 and A.2), r being the `root`: M κ_i for 1, and
    for infinity 1 each. Their sum is M.

    InputError for a root that is not above 0.
    """
    if not root > 0:
        raise InputError(f"root: {root} is not above 0")
    if root == inf:
        return torch.ones_like(ratios)
    return len(ratios) * (ratios.log() / root).softmax(dim=0)


def mix_inputs(
    count: int,
    size: tuple[int, int],
    *,
    inputs: int,
    patches: Patches | None,
    alpha: float,
    repeated: float = 0.0,
    generator: Generator = None,
    device: torch.device | str = "cpu",
) -> InputMixing:
    """Draw how `inputs` M see a batch of `count` images whose encodings have this height and width.

    κ ~ Dir_M(alpha) for each image, of infinity 1/M: with no patches that is MIMO. Without `patches` all are
    interpolated (A.3); with them one input of all, drawn for the batch and each as often, lies in patches of its κ of
    the area, a mask for each image, over the interpolation of the others (A.4, and with two inputs 3.2, where
    algorithm A.6 has `outside` for it). Its κ is then what is realised.

    The images of every input but the first are the batch in a random order, of which the part `repeated` keeps its
    places: there all inputs see the same image (input repetition, Havasi et al. 2021).

    Draws come from `generator`, on its device, or torch's global one on `device`; the same ones with and without
    patches, up to the masks. InputError for fewer than one input, more than images, an alpha that is not above 0, a
    part outside [0, 1], and maps too small for patches.
    """
    if not 1 <= inputs <= count:
        raise InputError(f"inputs: {inputs} of a batch of {count} images; 1 to as many as images are possible")
    if not alpha > 0:
        raise InputError(f"alpha: {alpha} is not above 0")
    if not 0 <= repeated <= 1:
        raise InputError(f"input_repetition: {repeated} is outside [0, 1]")
    if patches is not None and inputs > 1 and min(size) < SMALLEST:
        raise InputError(
            f"mask: {patches} on encodings of {size[0]}×{size[1]}; on fewer than {SMALLEST} places a side masks vanish"
        )
    device = device if generator is None else generator.device
    draw = dict(generator=generator, device=device)

    # Who sees what, and how much
    alone = torch.randperm(count, **draw)[round(repeated * count) :]
    partners = torch.arange(count, device=device).repeat(inputs, 1)
    for row in partners[1:]:
        row[alone] = alone[torch.randperm(len(alone), **draw)]
    logarithms = torch.zeros(inputs, count, device=device)
    if alpha < inf:
        logarithms = masks.log_gammas(inputs, count, alpha, generator, device=device)
    patched = int(torch.randint(inputs, (), generator=generator, device="cpu" if generator is None else device))

    # One after the other, the patched one last
    order = *(place for place in range(inputs) if place != patched), patched
    mixings, before = [], logarithms[order[0]]
    for place in order[1:]:
        ratio = (before - logarithms[place]).sigmoid()
        before = torch.logaddexp(before, logarithms[place])
        mask = ratio.view(-1, 1, 1, 1)
        if patches is not None and place == patched:
            mask = patch_masks(patches, ratio, *size, generator)
        mixings.append(Mixing(mask, torch.arange(count, device=device)))
    return InputMixing(partners, order, tuple(mixings))


def mix_patches(
    count: int,
    size: tuple[int, int],
    *,
    patch: int,
    inputs: int,
    alpha: float,
    whole: float = 0.0,
    generator: Generator = None,
    device: torch.device | str = "cpu",
) -> PatchMixing:
    """Draw how `inputs` M see a batch of `count` images of this height and width together, by corrected CutMix (thesis
    A.1.5), and with the chance `whole` of each image one of them alone, each as often.

    λ ~ Dir_M(alpha) for each image. Inputs are laid over each other as CutMix's boxes, which are cut off at the
    borders, in an order of its own for each image, so that none is favoured. A patch of `patch` pixels a side is of the
    input that has most of its pixels; where inputs have the same, all such patches of an image are of the same one, by
    an order of inputs drawn for the image. λ is then what is realised.

    The images of every input but the first are the batch in a random order. Draws come from `generator`, on its device,
    or torch's global one on `device`; the same ones whatever the chance. InputError for fewer than one input, more than
    images, an alpha that is not above 0, a chance outside [0, 1], and a size that patches do not divide.
    """
    if not 1 <= inputs <= count:
        raise InputError(f"inputs: {inputs} of a batch of {count} images; 1 to as many as images are possible")
    if not alpha > 0:
        raise InputError(f"alpha: {alpha} is not above 0")
    if not 0 <= whole <= 1:
        raise InputError(f"whole: {whole} is outside [0, 1]")
    if patch < 1 or any(side % patch for side in size):
        raise InputError(f"patch: {patch} pixels do not divide images of {size[0]}×{size[1]}")
    device = device if generator is None else generator.device
    draw = dict(generator=generator, device=device)

    # Who sees what, and how much
    partners = torch.arange(count, device=device).repeat(inputs, 1)
    for row in partners[1:]:
        row.copy_(torch.randperm(count, **draw))
    logarithms = torch.zeros(inputs, count, device=device)
    if alpha < inf:
        logarithms = masks.log_gammas(inputs, count, alpha, generator, device=device)

    # Boxes over each other: the layer that each pixel is of
    layers, before = torch.zeros(count, 1, *size, dtype=torch.int64, device=device), logarithms[0]
    for layer, logarithm in enumerate(logarithms[1:], start=1):
        boxes = masks.cutmix_boxes((before - logarithm).sigmoid(), *size, generator)
        layers = layers.where(masks.inside(boxes, *size) > 0, layer)
        before = torch.logaddexp(before, logarithm)

    # The layer of most of a patch's pixels, by an order where several have the same; and which input each layer is
    pixels = torch.cat([F.avg_pool2d((layers == layer).float(), patch) for layer in range(inputs)], dim=1) * patch**2
    order, roles, chosen = (torch.rand(count, inputs, **draw).argsort(dim=1) for _ in range(3))
    winners = (pixels.round() + order[:, :, None, None] / inputs).argmax(dim=1)
    owners = roles.gather(1, winners.flatten(1)).view_as(winners)
    alone = torch.rand(count, 1, 1, **draw) < whole
    return PatchMixing(partners, torch.where(alone, chosen[:, :1, None], owners))


def cut_others_in(
    visible: Mask, size: tuple[int, int], chance: float, generator: Generator = None
) -> tuple[Mixing, Ratio]:
    """CutMix of an input's images with others, before they are encoded (thesis A.1.3.1): the mixing of images of this
    height and width, whose partners are others of a second batch in a random order, and each image's own part λ′ of
    what is `visible` of it: its input's mask, at the size of the encodings. Of images that are hidden, of the whole.

    Boxes are CutMix's, λ ~ Beta(1, 1), drawn for each image with this `chance`; images without one stay as they are.
    Where the other would have the larger visible part the two exchange their roles, so that λ′ is at least ½. Draws
    come from `generator` or torch's global one, on the mask's device.
    """
    draw = dict(generator=generator, device=visible.device)
    count = len(visible)
    boxes = masks.cutmix_boxes(masks.beta(count, 1.0, generator, device=visible.device), *size, generator)
    drawn = torch.rand(count, 1, 1, 1, **draw) < chance
    own = torch.where(drawn, masks.inside(boxes, *size), 1.0)
    rows, columns = visible.shape[2:]
    seen = F.adaptive_avg_pool2d(own, (rows, columns))
    whole, mean = visible.sum(dim=(1, 2, 3)), own.mean(dim=(1, 2, 3))
    part = torch.where(whole > 0, (seen * visible).sum(dim=(1, 2, 3)) / whole.clamp(min=1e-12), mean)
    fewer = part < 0.5
    own = torch.where(fewer.view(-1, 1, 1, 1), 1 - own, own)
    return Mixing(own, torch.randperm(count, **draw)), torch.where(fewer, 1 - part, part)


def cut_and_mixed(
    count: int,
    size: tuple[int, int],
    *,
    cutmix: float = 1.0,
    mixup: float = 0.8,
    generator: Generator = None,
    device: torch.device | str = "cpu",
) -> Mixing:
    """CutMix and Mixup of a batch of images of this height and width at once, by a mask of continuous values (thesis
    A.1.5): outside of CutMix's box, of λ ~ Beta(cutmix, cutmix), an image's own share is Mixup's ν ~ Beta(mixup,
    mixup), inside it 1 - ν. Both are drawn for each image. Draws come from `generator`, on its device, or torch's
    global one on `device`."""
    device = device if generator is None else generator.device
    boxes = masks.cutmix_boxes(masks.beta(count, cutmix, generator, device=device), *size, generator)
    share = masks.beta(count, mixup, generator, device=device).view(-1, 1, 1, 1)
    mask = torch.where(masks.inside(boxes, *size) > 0, share, 1 - share)
    return Mixing(mask, other_partners(count, generator, device=device))


def patch_masks(patches: Patches, ratio: Ratio, height: int, width: int, generator: Generator = None) -> Mask:
    """Masks of which about the part `ratio` shows the base: CutMix's boxes, cut off at the borders, concatenations,
    PatchUp's squares with one mask for all channels, FMix's and CowMix's regions (thesis A.5.1), each with its paper's
    options."""
    match patches:
        case "cutmix":
            return masks.inside(masks.cutmix_boxes(ratio, height, width, generator), height, width)
        case "horizontal-concat" | "vertical-concat":
            return masks.halves(ratio, height, width, vertical=patches == "vertical-concat")
        case "patchup":
            side = masks.block_side(PATCH, height, width)
            rate = masks.rate_beside(ratio, height, width, side)
            return masks.blocks(rate, height, width, side=side, generator=generator)
        case "fmix":
            return masks.fourier(ratio, height, width, generator=generator)
        case "cowmix":
            return masks.cow(ratio, height, width, generator=generator)
    raise InputError(f"mask: {patches!r} is unknown")
