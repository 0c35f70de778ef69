"""How often hybrids take the class of one parent and the context of the other (thesis 2.5.3.1 and A.3.2)."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from hybridgen.data.datasets import Dataset, Part
from hybridgen.data.sources import InMemory
from hybridgen.data.streams import batches, derive_seed
from hybridgen.hybridizer import Hybridizer
from hybridgen.training.bars import counted
from hybridgen.training.scores import accuracy
from hybridgen.types import Images, InputError, exact

Hybridization = Callable[[Images, Images], Images]
"""From semantic and non-semantic parents, in this order, to hybrids."""

SAMPLE = 64
"""Semantic parents on which judging is timed, at most."""

HYBRIDIZER, CHANCE = "hybridizer", "unrelated image"
MIXUP, FDA = "MixUp, dominant label", "FDA"


class Rate(NamedTuple):
    """A share in [0, 1] and its 95 % Wilson interval."""

    value: float
    low: float
    high: float


class Trial(NamedTuple):
    """A batch of pairs: what hybrids may be made of."""

    semantic: Images
    nonsemantic: Images
    other: Images
    """Of neither parent."""
    ratio: Float[Tensor, " batch"]
    """Uniform on [0, 1]: MixUp's draw from Beta(1, 1)."""


@dataclass(frozen=True)
class Method:
    """A way to make hybrids."""

    hybridize: Callable[[Trial], Images]
    classify: Callable[[Images], Float[Tensor, "batch classes"]] | None = None
    """The hybridizer's own classifier, which judges the hybrids beside the oracle."""
    encode: Callable[[Images], Float[Tensor, "batch *nonsemantic"]] | None = None
    """Its E_r, by whose codes they are compared with their parents beside the pixels."""


class Distances(NamedTuple):
    """Squared L2 distances of hybrids from their parents, or from something of them."""

    semantic: Float64[Tensor, " pairs"]
    """d_c."""
    nonsemantic: Float64[Tensor, " pairs"]
    """d_r."""

    @property
    def inherited(self) -> Bool[Tensor, " pairs"]:
        """Whether the hybrid is nearer to the non-semantic parent; False where both are equally near."""
        return self.nonsemantic < self.semantic

    @property
    def ratio(self) -> float:
        """Mean d_c over mean d_r, as in table A.13; inf or nan where the latter is 0."""
        return (self.semantic.mean() / self.nonsemantic.mean()).item()


@dataclass(frozen=True)
class Observed:
    """What was measured of the hybrids of one method, pair by pair, on the CPU."""

    parents: Int64[Tensor, " pairs"]
    """The semantic parent of each."""
    semantic_labels: Int64[Tensor, " pairs"]
    nonsemantic_labels: Int64[Tensor, " pairs"]
    seen: Int64[Tensor, " pairs"]
    """The hybrid's class by the oracle."""
    own: Int64[Tensor, " pairs"] | None
    """And by the hybridizer's own classifier."""
    pixels: Distances
    """From the parents' pixels."""
    codes: Distances | None
    """From their z_r, by the hybridizer's E_r (thesis A.3.2)."""
    backgrounds: Distances | None
    """From their backgrounds, outside the semantic parent's object; None where masks or backgrounds are not known."""

    def rate(self, hits: Bool[Tensor, " pairs"], among: Bool[Tensor, " pairs"] | None = None) -> Rate:
        """The share of `hits` among pairs; its interval counts semantic parents and not pairs (`transfer_rates`)."""
        if among is None:
            among = torch.ones_like(hits)
        if not among.any():
            return Rate(math.nan, 0.0, 1.0)
        return wilson(hits[among].double().mean().item(), len(self.parents[among].unique()))

    @property
    def semantic_transfer(self) -> Rate:
        """s_c by the oracle."""
        return self.rate(self.seen == self.semantic_labels)

    @property
    def nonsemantic_preservation(self) -> Rate:
        """s_r in pixel space."""
        return self.rate(self.pixels.inherited)

    @property
    def own_semantic_transfer(self) -> Rate | None:
        """s_c by the hybridizer's own classifier."""
        return None if self.own is None else self.rate(self.own == self.semantic_labels)

    @property
    def code_preservation(self) -> Rate | None:
        """s_r by z_r."""
        return None if self.codes is None else self.rate(self.codes.inherited)

    @property
    def background_inheritance(self) -> Rate | None:
        return None if self.backgrounds is None else self.rate(self.backgrounds.inherited)


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

    @classmethod
    def of(cls, observed: Observed) -> "Transfer":
        return cls(observed.semantic_transfer, observed.nonsemantic_preservation, observed.background_inheritance)

    def to_dict(self) -> dict[str, Any]:
        """Each rate under its name, its interval under `<name>_interval`."""
        return {key: value for rate in vars(self).items() for key, value in plain_rate(*rate).items()}


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
    own_semantic_transfer: Rate | None
    """s_c of the hybridizer by its own classifier; far above the oracle's where hybrids fool it. None where it has
    none, or one of other classes."""
    oracle_accuracy: float
    """Of the oracle, on the test images themselves."""
    semantic_parents: int
    """Test images, each the semantic parent of `repeats` pairs."""
    repeats: int
    seed: int
    fda_beta: float
    confusion: Float64[Tensor, "classes classes"] = field(compare=False)
    """Of the hybridizer, as `confusion` gives it."""

    def to_dict(self) -> dict[str, Any]:
        """In JSON's types: the hybridizer's rates at the top, those of the others under their names; no confusion."""
        others = {name: getattr(self, name).to_dict() for name in ("mixup", "fda", "chance")}
        own = plain_rate("own_semantic_transfer", self.own_semantic_transfer)
        figures = ("oracle_accuracy", "semantic_parents", "repeats", "seed", "fda_beta")
        return self.hybridizer.to_dict() | own | {name: getattr(self, name) for name in figures} | others

    def table(self) -> str:
        """The rates in percent with their intervals, a row a method."""
        return transfer_table({HYBRIDIZER: self.hybridizer, MIXUP: self.mixup, FDA: self.fda, CHANCE: self.chance})


def plain_rate(name: str, rate: Rate | None) -> dict[str, Any]:
    """A rate and its interval in JSON's types."""
    return {
        name: None if rate is None else rate.value,
        f"{name}_interval": None if rate is None else [rate.low, rate.high],
    }


def transfer_table(transfers: Mapping[str, Transfer]) -> str:
    """Table 2.5: the rates in percent with their intervals, a row a method."""
    head = ("", "semantic transfer", "non-semantic preservation", "background inheritance")
    return aligned([head, *((name, *map(shown, vars(rates).values())) for name, rates in transfers.items())])


def note(data: str, oracle_accuracy: float, semantic_parents: int, repeats: int) -> str:
    """What a reader of a table has to know."""
    return (
        f"oracle accuracy {oracle_accuracy:.1%} on the test images of {data}; "
        f"{semantic_parents} semantic parents, {repeats} partners each"
        "\n95 % intervals by the number of semantic parents"
    )


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """The cells of a table in columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    return "\n".join(line.rstrip() for line in lines)


def spoken_rates(rates: Mapping[str, Any]) -> str:
    """Transfer rates in one line, with their intervals, or with the deviations of several hybridizers."""

    def told(name: str) -> str:
        if f"{name}_std" in rates:
            return f"{rates[name]:.3f} ± {rates[f'{name}_std']:.3f}"
        low, high = rates[f"{name}_interval"]
        return f"{rates[name]:.3f} [{low:.3f}, {high:.3f}]"

    return (
        f"semantic transfer {told('semantic_transfer')}, non-semantic preservation {told('nonsemantic_preservation')} "
        f"(oracle's own accuracy {rates['oracle_accuracy']:.3f})"
    )


TEACHING, SEEING, CHANGING, FOOLED = 0.5, 0.6, 0.5, 0.1
"""Semantic transfer below which hybrids mostly teach wrong classes (at 24 to 44 % FixMatch gained nothing, Mean Teacher
a point: README); accuracy below which an oracle is no judge; preservation below which hybrids are mostly their semantic
parents again; and how much more transfer than the oracle a hybridizer's own classifier sees that is fooled."""


def verdict(rates: Mapping[str, Any]) -> str:
    """What rates, as `Rates.to_dict` gives them or means of several, say about hybrids as lessons for a classifier."""
    semantic, preserved, oracle = (
        rates[name] for name in ("semantic_transfer", "nonsemantic_preservation", "oracle_accuracy")
    )
    if oracle < SEEING:
        return f"the oracle itself sees the class of only {oracle:.0%} of the test images: too few to judge by"
    if semantic < TEACHING:
        own = rates.get("own_semantic_transfer")
        fooled = (
            f"its own classifier is fooled, for it sees {own:.0%}; "
            if own is not None and own > semantic + FOOLED
            else ""
        )
        return (
            f"semantic transfer below {TEACHING:.0%}: too low to teach; {fooled}train the hybridizer longer, or guided "
            "by a better classifier"
        )
    if preserved < CHANGING:
        return (
            f"non-semantic preservation below {CHANGING:.0%}: hybrids are nearer to their semantic parents, which "
            "teaches little that is new"
        )
    if semantic < oracle - 0.1:
        return "good enough to teach; hybrids still lose the class of some of their semantic parents"
    return "good: classes as safe as on real images, in the context of others"


def shown(rate: Rate | None) -> str:
    """In percent, with its interval; a dash where it is of nothing."""
    if rate is None:
        return "unknown"
    return "–" if math.isnan(rate.value) else f"{rate.value:6.1%}  [{rate.low:.1%}, {rate.high:.1%}]"


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
    classify = None
    if isinstance(hybridize, Hybridizer):
        hybridizer = hybridize
        classify = hybridizer.classify if hybridizer.origin.classes == dataset.classes else None
        hybridize = lambda semantic, nonsemantic: hybridizer.hybridize(semantic=semantic, nonsemantic=nonsemantic)
    methods = {
        "hybridizer": Method(lambda trial: hybridize(trial.semantic, trial.nonsemantic), classify),
        "mixup": mixing(),
        "fda": fourier(fda_beta),
        "chance": chance(),
    }
    observed = observe(methods, dataset, oracle, accelerator, repeats=repeats, seed=seed, batch_size=batch_size)
    known = known_test_images(dataset)
    return Rates(
        **{name: Transfer.of(each) for name, each in observed.items()},
        own_semantic_transfer=observed["hybridizer"].own_semantic_transfer,
        oracle_accuracy=accuracy(oracle, dataset.test, known.tolist(), accelerator, batch_size=batch_size),
        semantic_parents=len(known),
        repeats=repeats,
        seed=seed,
        fda_beta=fda_beta,
        confusion=confusion(observed["hybridizer"], len(dataset.classes)),
    )


def judging_seconds(hybridizer: Hybridizer, dataset: Dataset, accelerator: Accelerator) -> float:
    """How long `transfer_rates` takes on this machine, by a few test images; the hybridizer's own classifier stands for
    the oracle."""
    known, part = known_test_images(dataset), dataset.test
    few = known[:SAMPLE]
    sample = replace(dataset, test=Part(InMemory(part.images.gather(few).cpu()), part.labels[few]))
    began = perf_counter()
    transfer_rates(hybridizer, sample, hybridizer.classify, accelerator)
    return (perf_counter() - began) * len(known) / len(few)


def confusion(observed: Observed, classes: int) -> Float64[Tensor, "classes classes"]:
    """Share of hybrids in which the oracle sees class j, of those with a semantic parent of class i; nan for none."""
    counts = torch.zeros(classes, classes, dtype=torch.float64)
    one = torch.ones(len(observed.seen), dtype=torch.float64)
    counts.index_put_((observed.semantic_labels, observed.seen), one, accumulate=True)
    return counts / counts.sum(dim=1, keepdim=True)


def hybridizing(hybridizer: Hybridizer) -> Method:
    """The hybrids of a hybridizer, which judges them too."""
    return Method(
        lambda t: hybridizer.hybridize(semantic=t.semantic, nonsemantic=t.nonsemantic),
        hybridizer.classify,
        hybridizer.encode_nonsemantic,
    )


def mixing() -> Method:
    """`mixup`."""
    return Method(lambda trial: mixup(trial.semantic, trial.nonsemantic, trial.ratio))


def fourier(beta: float) -> Method:
    """`fda`."""
    return Method(lambda trial: fda(trial.semantic, trial.nonsemantic, beta))


def chance() -> Method:
    """An image of neither parent."""
    return Method(lambda trial: trial.other)


def known_test_images(dataset: Dataset) -> Int64[Tensor, " known"]:
    """Indices of the test images of known class. InputError for fewer than three: pairs need a third image."""
    known = dataset.test.known
    if len(known) < 3:
        raise InputError(f"{dataset.name}: {len(known)} test images of known class; three are needed for pairs")
    return known


@torch.no_grad()
def observe(
    methods: Mapping[str, Method],
    dataset: Dataset,
    oracle: Callable[[Images], Float[Tensor, "batch classes"]],
    accelerator: Accelerator,
    *,
    repeats: int = 4,
    seed: int = 0,
    batch_size: int = 512,
) -> dict[str, Observed]:
    """Measure the hybrids that each method makes of the same pairs of test images, in one pass over them.

    Every image of known class is a semantic parent `repeats` times; partners, mixing ratios and unrelated images are
    drawn from `seed` alone; processes share the pairs, and all get the whole result.
    """
    if repeats < 1:
        raise InputError(f"repeats = {repeats}: at least one partner for every semantic parent is needed")
    part, known, device = dataset.test, known_test_images(dataset), accelerator.device
    pairs = Pairs(*(known[role] for role in draw_pairs(len(known), repeats, seed)))
    generator = torch.Generator().manual_seed(derive_seed(seed, "mixup"))
    ratios = torch.rand(len(pairs.semantic), generator=generator)

    mine = torch.arange(len(ratios))[accelerator.process_index :: accelerator.num_processes]
    table = exact(torch.zeros(len(methods), len(ratios), 8, device=device))
    streams = (batches(part, role[mine], batch_size, device) for role in pairs)
    places = counted(mine.split(batch_size), "judging", accelerator, delay=1)
    for at, ((x_c, _), (x_r, _), (x_other, _)) in zip(places, zip(*streams, strict=True), strict=True):
        trial = Trial(x_c, x_r, x_other, ratios[at].to(device))
        context = _context(part, pairs.semantic[at], pairs.nonsemantic[at], device)
        for row, method in enumerate(methods.values()):
            table[row, at.to(device)] = _measured(method, trial, oracle, context)
    table = accelerator.reduce(table, reduction="sum").cpu().double()

    observed = {}
    for (name, method), columns in zip(methods.items(), table.unbind(dim=0), strict=True):
        seen, own, *distances = columns.unbind(dim=1)
        pixels, codes, backgrounds = (Distances(*distances[i : i + 2]) for i in (0, 2, 4))
        observed[name] = Observed(
            parents=pairs.semantic,
            semantic_labels=part.labels[pairs.semantic],
            nonsemantic_labels=part.labels[pairs.nonsemantic],
            seen=seen.long(),
            own=None if method.classify is None else own.long(),
            pixels=pixels,
            codes=None if method.encode is None else codes,
            backgrounds=backgrounds if part.masks is not None and part.backgrounds is not None else None,
        )
    return observed


def _measured(
    method: Method,
    trial: Trial,
    oracle: Callable[[Images], Float[Tensor, "batch classes"]],
    context: Sequence[Tensor] | None,
) -> Float[Tensor, "batch 8"]:
    """Classes by the oracle and by the method's own classifier, then d_c and d_r of pixels, codes and backgrounds.

    Zero where a method has no codes, or the data no backgrounds.
    """
    x_h = method.hybridize(trial)
    parents = (trial.semantic, trial.nonsemantic)
    columns = [oracle(x_h).argmax(dim=1), *torch.zeros(7, len(x_h), device=x_h.device)]
    columns[2:4] = [_squared(x_h - parent) for parent in parents]
    if method.classify is not None:
        columns[1] = method.classify(x_h).argmax(dim=1)
    if method.encode is not None:
        z_h, *z = map(method.encode, (x_h, *parents))
        columns[4:6] = [_squared(z_h - parent) for parent in z]
    if context is not None:
        outside, *backgrounds = context
        columns[6:8] = [_squared((x_h - background) * outside) for background in backgrounds]
    return torch.stack([exact(column) for column in columns], dim=1)


def _squared(difference: Float[Tensor, "batch *shape"]) -> Float[Tensor, " batch"]:
    return difference.square().flatten(1).sum(dim=1)


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


Z = 1.959964
"""Of 95 %: as many deviations from the mean to either side hold them of a normal distribution."""


def wilson(share: float, count: int, z: float = Z) -> Rate:
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
