"""How often hybrids take the class of one parent and the context of the other (thesis 2.5.3.1 and A.3.2)."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from hybridgen.data.datasets import Dataset, Part
from hybridgen.data.streams import batches, derive_seed
from hybridgen.evaluation.classification import accuracy
from hybridgen.hybridizer import Hybridizer
from hybridgen.types import Images, InputError

Hybridization = Callable[[Images, Images], Images]
"""From semantic and non-semantic parents, in this order, to hybrids."""

HYBRIDIZER, CHANCE = "hybridizer", "unrelated image"
MIXUP, FDA = "MixUp, dominant label", "FDA"


class Rate(NamedTuple):
    """A share in [0, 1] and its 95 % Wilson interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Transfer:
    """What the hybrids of one method inherit: a row of table 2.5."""

    semantic_transfer: Rate
    """s_c: the oracle sees the semantic parent's class in the hybrid."""
    nonsemantic_preservation: Rate
    """s_r: the hybrid is nearer (L2 over pixels) to its non-semantic parent than to its semantic one."""
    background_inheritance: Rate | None
    """Outside the semantic parent's object, the hybrid is nearer to the background of the non-semantic parent than
    to that of the semantic one; None where masks and backgrounds are not known."""

    def to_dict(self) -> dict[str, Any]:
        """Each rate under its name, its interval under `<name>_interval`."""
        plain: dict[str, Any] = {}
        for name, rate in vars(self).items():
            plain[name] = None if rate is None else rate.value
            plain[f"{name}_interval"] = None if rate is None else [rate.low, rate.high]
        return plain


@dataclass(frozen=True)
class Rates:
    """Transfer rates of a hybridizer, and of simpler hybrids of the same pairs."""

    hybridizer: Transfer
    mixup: Transfer
    """Linear mixtures that are credited with the class of the dominant image (Inoue 2018)."""
    fda: Transfer
    """Semantic parents with the low-frequency amplitudes of the non-semantic ones (Yang and Soatto 2020)."""
    chance: Transfer
    """A third image of the test set, taken for the hybrid: what ignoring both parents gives."""
    oracle_accuracy: float
    """Of the oracle, on the test images themselves."""
    semantic_parents: int
    """Test images, each the semantic parent of `repeats` pairs."""
    repeats: int
    seed: int
    fda_beta: float

    def to_dict(self) -> dict[str, Any]:
        """In JSON's types: the hybridizer's rates at the top, those of the others under their names."""
        others = {name: getattr(self, name).to_dict() for name in ("mixup", "fda", "chance")}
        figures = ("oracle_accuracy", "semantic_parents", "repeats", "seed", "fda_beta")
        return self.hybridizer.to_dict() | {name: getattr(self, name) for name in figures} | others

    def table(self) -> str:
        """The rates in percent with their intervals, a row a method."""
        head = ("", "semantic transfer", "non-semantic preservation", "background inheritance")
        rows = [head]
        named = {HYBRIDIZER: self.hybridizer, MIXUP: self.mixup, FDA: self.fda, CHANCE: self.chance}
        for name, transfer in named.items():
            rows.append((name, *map(_shown, vars(transfer).values())))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
        return "\n".join(line.rstrip() for line in lines)


def _shown(rate: Rate | None) -> str:
    return "unknown" if rate is None else f"{rate.value:6.1%}  [{rate.low:.1%}, {rate.high:.1%}]"


@torch.no_grad()
def transfer_rates(
    hybridize: Hybridization | Hybridizer,
    dataset: Dataset,
    oracle: Callable[[Images], Float[Tensor, "batch classes"]],
    accelerator: Accelerator,
    *,
    repeats: int = 4,
    seed: int = 0,
    batch_size: int = 512,
    fda_beta: float = 0.1,
) -> Rates:
    """Transfer rates over pairs of test images: each is a semantic parent `repeats` times.

    The partners, the mixing ratios of MixUp and the unrelated images are drawn from `seed` alone; processes share
    the pairs. Intervals count the semantic parents and not the pairs: the pairs of one semantic parent depend on
    one another, and taking them as wholly dependent is the careful reading.

    Raises InputError for fewer than three test images of known class, and for counts below 1.
    """
    if repeats < 1:
        raise InputError(f"repeats = {repeats}: at least one partner for every semantic parent is needed")
    part = dataset.test
    known = (part.labels >= 0).nonzero().flatten()
    if len(known) < 3:
        raise InputError(f"{dataset.name}: {len(known)} test images of known class; three are needed for pairs")
    if isinstance(hybridize, Hybridizer):
        hybridizer = hybridize
        hybridize = lambda semantic, nonsemantic: hybridizer.hybridize(semantic=semantic, nonsemantic=nonsemantic)
    pairs = draw_pairs(len(known), repeats, seed)
    generator = torch.Generator().manual_seed(derive_seed(seed, "mixup"))
    ratios = torch.rand(len(pairs.semantic), generator=generator)  # Beta(1, 1)

    mine = slice(accelerator.process_index, None, accelerator.num_processes)
    roles = [known[role[mine]] for role in pairs]
    counts = torch.zeros(4, 3, dtype=torch.float64, device=accelerator.device)
    streams = (batches(part, role, batch_size, accelerator.device) for role in roles)
    chunks = zip(*(role.split(batch_size) for role in (*roles[:2], ratios[mine])), strict=True)
    for ((x_c, labels), (x_r, _), (x_other, _)), (semantic, nonsemantic, ratio) in zip(
        zip(*streams, strict=True), chunks, strict=True
    ):
        ratio = ratio.to(accelerator.device)
        hybrids = (hybridize(x_c, x_r), mixup(x_c, x_r, ratio), fda(x_c, x_r, fda_beta), x_other)
        context = _context(part, semantic, nonsemantic, accelerator.device)
        for row, x_h in enumerate(hybrids):
            counts[row, 0] += (oracle(x_h).argmax(dim=1) == labels).sum()
            counts[row, 1] += nearer(x_h, x_r, x_c).sum()
            if context is not None:
                outside, b_c, b_r = context
                counts[row, 2] += nearer(x_h * outside, b_r * outside, b_c * outside).sum()
    shares = (accelerator.reduce(counts, reduction="sum") / len(pairs.semantic)).tolist()

    backgrounds_known = part.masks is not None and part.backgrounds is not None
    rows = []
    for semantic_transfer, preservation, inheritance in shares:
        rows.append(
            Transfer(
                wilson(semantic_transfer, len(known)),
                wilson(preservation, len(known)),
                wilson(inheritance, len(known)) if backgrounds_known else None,
            )
        )
    return Rates(
        *rows,
        oracle_accuracy=accuracy(oracle, part, known.tolist(), accelerator, batch_size=batch_size),
        semantic_parents=len(known),
        repeats=repeats,
        seed=seed,
        fda_beta=fda_beta,
    )


class Pairs(NamedTuple):
    """Indices of the parents of every hybrid, and of an image that is neither."""

    semantic: Int64[Tensor, " pairs"]
    nonsemantic: Int64[Tensor, " pairs"]
    other: Int64[Tensor, " pairs"]


def draw_pairs(images: int, repeats: int, seed: int) -> Pairs:
    """Every image `repeats` times as semantic parent; partners uniform among the other images."""
    generator = torch.Generator().manual_seed(derive_seed(seed, "pairs"))
    semantic = torch.arange(images).repeat(repeats)
    nonsemantic = torch.randint(images - 1, semantic.shape, generator=generator)
    nonsemantic += nonsemantic >= semantic
    other = torch.randint(images - 2, semantic.shape, generator=generator)
    for taken in (torch.minimum(semantic, nonsemantic), torch.maximum(semantic, nonsemantic)):
        other += other >= taken
    return Pairs(semantic, nonsemantic, other)


def nearer(x: Images, to: Images, than: Images) -> Bool[Tensor, " batch"]:
    """Whether ‖x - to‖ < ‖x - than‖, over all pixels of an image; False where both are equal."""
    return (x - to).square().sum((1, 2, 3)) < (x - than).square().sum((1, 2, 3))


def mixup(semantic: Images, nonsemantic: Images, ratio: Float[Tensor, " batch"]) -> Images:
    """λ·semantic + (1 - λ)·nonsemantic with λ = max(ratio, 1 - ratio): the semantic parent dominates.

    Source: Zhang et al. 2018, with the dominant image's label (Inoue 2018).
    """
    weight = torch.maximum(ratio, 1 - ratio).view(-1, 1, 1, 1)
    return weight * semantic + (1 - weight) * nonsemantic


def fda(semantic: Images, nonsemantic: Images, beta: float) -> Images:
    """The semantic parent with the amplitudes of the non-semantic one at low frequencies, clipped to [0, 1].

    Frequencies are low up to ⌊beta·side⌋ either way, as in the authors' code; their beta is 0.01 to 0.1.
    Source: Yang and Soatto 2020, equation 2. Raises InputError for a beta outside [0, 0.5].
    """
    if not 0 <= beta <= 0.5:
        raise InputError(f"beta = {beta}: outside [0, 0.5]")
    height, width = semantic.shape[2:]
    highest = math.floor(beta * min(height, width))
    rows, columns = (torch.fft.fftfreq(n, 1 / n, device=semantic.device).abs() for n in (height, width))
    low = (rows[:, None] <= highest) & (columns <= highest)
    content, style = torch.fft.fft2(semantic), torch.fft.fft2(nonsemantic)
    amplitude = torch.where(low, style.abs(), content.abs())
    return torch.fft.ifft2(torch.polar(amplitude, content.angle())).real.clamp(0, 1)


def wilson(share: float, count: int, z: float = 1.959964) -> Rate:
    """A share of `count` trials and Wilson's interval (1927); z = 1.96 is 95 %."""
    centre = share + z * z / (2 * count)
    spread = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    low, high = ((centre + sign * spread) / (1 + z * z / count) for sign in (-1, 1))
    return Rate(share, max(0.0, low), min(1.0, high))


def _context(
    part: Part, semantic: Int64[Tensor, " b"], nonsemantic: Int64[Tensor, " b"], device: torch.device
) -> Sequence[Tensor] | None:
    """Where the semantic parent has background (float), and the backgrounds of both parents in [0, 1]."""
    if part.masks is None or part.backgrounds is None:
        return None
    outside = (~part.masks[semantic])[:, None].to(device).float()
    return outside, *(part.backgrounds[role].to(device).float() / 255 for role in (semantic, nonsemantic))
