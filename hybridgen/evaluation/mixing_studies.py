"""The studies of mixing: what the methods show a network and what they ask of it (RecursiveMix, figures 7 and S1)."""

import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice, tee
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from matplotlib.figure import Figure
from torch import Tensor

from hybridgen.data.datasets import Dataset, Part
from hybridgen.data.streams import derive_seed
from hybridgen.evaluation.figures import Cell, draw_curves, image_table
from hybridgen.evaluation.studies import Finding
from hybridgen.evaluation.transfer import aligned
from hybridgen.mixing.methods import METHODS
from hybridgen.mixing.mixing import Mixing, Targets, as_targets
from hybridgen.mixing.recursive import Box, draw_box, recursive
from hybridgen.types import Images, InputError

NONE, RECURSIVE = "none", "recursivemix"

MIXERS = (NONE, *METHODS, RECURSIVE)
"""What `mixed_inputs` makes."""

THRESHOLDS = (1e-5, 1e-4, 1e-3, 0.003, 0.01, 0.03, 0.1, 0.2, 0.3, 0.4, 0.5)
"""Of effective classes; 1e-4 is what RecursiveMix's figure 7 takes label smoothing for."""

SMOOTHED = 1e-4


class Inputs(NamedTuple):
    """A batch as a network sees it, with what is known about it."""

    images: Images
    targets: Targets
    places: Int64[Tensor, "batch height width"] | None
    """The class of the image that shows at every place; None where images are blended."""
    objects: Bool[Tensor, "batch height width"] | None = None
    """The places where such an image shows its object."""
    box: Box | None = None
    """RecursiveMix's, in which the step before is seen."""


def inputs_of(part: Part, indices: Int64[Tensor, " batch"], classes: int) -> Inputs:
    """Images of a part as they are. InputError for one of unknown class."""
    images, labels = part.images.gather(indices).cpu().float() / 255, part.labels[indices]
    if (labels < 0).any():
        raise InputError(f"image {int(indices[labels < 0][0])}: its class is not known")
    places = labels[:, None, None].expand(-1, *images.shape[2:])
    return Inputs(images, as_targets(labels, classes), places, None if part.masks is None else part.masks[indices])


def drawn_batches(part: Part, classes: int, batch: int, generator: torch.Generator) -> Iterator[Inputs]:
    """Endless batches of different images of known class; smaller ones where the part has fewer."""
    known = (part.labels >= 0).nonzero().flatten()
    while len(known):
        order = torch.randperm(len(known), generator=generator)[:batch]
        yield inputs_of(part, known[order], classes)


def mixed(inputs: Inputs, mixing: Mixing, others: Inputs | None = None) -> Inputs:
    """The inputs mixed with their partners, of the same batch or of `others`; the places too, unless they blend."""
    theirs = others or inputs
    whole = mixing.mask.shape[1] == 1 and bool(((mixing.mask == 0) | (mixing.mask == 1)).all())

    def follow(maps: Tensor | None, of_others: Tensor | None) -> Tensor | None:
        if maps is None or of_others is None or not whole:
            return None
        return mixing.mix(maps.unsqueeze(1).float(), of_others.unsqueeze(1).float()).squeeze(1).to(maps.dtype)

    return Inputs(
        mixing.mix(inputs.images, theirs.images),
        mixing.mix_targets(inputs.targets, theirs.targets),
        follow(inputs.places, theirs.places),
        follow(inputs.objects, theirs.objects),
    )


def mixed_inputs(
    method: str, batches: Iterable[Inputs], generator: torch.Generator, *, alpha: float = 0.5
) -> Iterator[Inputs]:
    """What a method of `MIXERS` makes of one batch after another; it always mixes, and its options are its own.

    RecursiveMix's first batch stays as it is; `alpha` is its. InputError for an unknown method.
    """
    check_mixers([method])
    before: Inputs | None = None
    for inputs in batches:
        if method == RECURSIVE:
            box = draw_box(*inputs.images.shape[2:], alpha=alpha, generator=generator)
            if before is not None:
                mixing = recursive(inputs.images, box, len(before.images))
                inputs = mixed(inputs, mixing, before)._replace(box=box)
            before = inputs
        elif method != NONE:
            inputs = mixed(inputs, METHODS[method](inputs.images, generator=generator))
        yield inputs


def check_mixers(methods: Sequence[str], *, flag: str = "--methods") -> None:
    """InputError for none, an unknown one, and one that is there twice."""
    unknown = [method for method in methods if method not in MIXERS]
    if unknown:
        raise InputError(f"{flag}: {unknown[0]!r} is unknown; there are {', '.join(MIXERS)}")
    if not methods or len(set(methods)) < len(methods):
        raise InputError(f"{flag}: {' '.join(methods) or 'none'}; one or more are needed, each once")


def effective_classes(targets: Targets, threshold: float) -> Float[Tensor, " batch"]:
    """How many classes of each target have more than this (RecursiveMix, 4.4)."""
    return (targets > threshold).sum(dim=1).float()


# --- the studies ----------------------------------------------------------------------------------------


def sequence(dataset: Dataset, *, steps: int = 8, places: int = 4, alpha: float = 0.5, seed: int = 0) -> Finding:
    """The inputs that RecursiveMix makes at a few places of its batch, step after step (figure S1).

    Each row is a place: what it shows is laid into the box of the next. Below each are the three largest classes.
    InputError for fewer than one step or place, and for an alpha outside (0, 1].
    """
    generator = _generator(seed, "sequence")
    batches = drawn_batches(_part(dataset), len(dataset.classes), places, generator)
    made = list(islice(mixed_inputs(RECURSIVE, batches, generator, alpha=alpha), steps))
    numbers = torch.stack([effective_classes(inputs.targets, SMOOTHED) for inputs in made])
    shares = [0.0 if inputs.box is None else inputs.box.share for inputs in made]

    cells: dict[str, list[Cell | None]] = {}
    for i in range(len(made[0].images)):
        cells[f"place {i + 1}"] = [
            Cell(
                inputs.images[i],
                _target(inputs.targets[i], dataset.classes),
                box=None if inputs.box is None else inputs.box[:4],
            )
            for inputs in made
        ]
    columns = [f"step {step}\nλ = {share:.2f}" for step, share in enumerate(shares, 1)]
    rows = [("step", "λ", "box", *(f"classes, place {i + 1}" for i in range(numbers.shape[1])))]
    for step, (inputs, share) in enumerate(zip(made, shares, strict=True), 1):
        box = "" if inputs.box is None else "{2}×{3} at ({0}, {1})".format(*inputs.box[:4])
        rows.append((str(step), f"{share:.2f}", box, *(f"{number:.0f}" for number in numbers[step - 1])))
    values = {
        "steps": [
            {
                "share": share,
                "box": None if inputs.box is None else dict(zip(Box._fields[:4], inputs.box[:4], strict=True)),
                "effective_classes": number.tolist(),
                "targets": [_shares(target, dataset.classes) for target in inputs.targets],
            }
            for inputs, share, number in zip(made, shares, numbers, strict=True)
        ],
        "threshold": SMOOTHED,
        "alpha": alpha,
    }
    said = f"λ: the box's share of the image. Classes: with more than {SMOOTHED:g} of the target."
    return _finding("sequence", dataset, seed, values, f"{aligned(rows)}\n\n{said}", image_table(cells, columns))


def targets(
    dataset: Dataset,
    methods: Sequence[str],
    *,
    steps: int = 100,
    batch: int = 64,
    runs: int = 3,
    seed: int = 0,
    titles: Mapping[str, str] | None = None,
) -> Finding:
    """How many classes the targets have above one threshold or another, by method (RecursiveMix, figure 7).

    Means over the images of all steps, of several runs; every method sees the same batches. Methods always mix.
    """
    check_mixers(methods)
    written = {method: (titles or {}).get(method, method) for method in methods}
    found: dict[str, list[list[float]]] = {method: [] for method in methods}
    for run in range(runs):
        drawn = drawn_batches(_part(dataset), len(dataset.classes), batch, _generator(seed, "targets", run))
        made = [
            mixed_inputs(method, batches, _generator(seed, "targets", run, "mixing"))
            for method, batches in zip(methods, tee(drawn, len(methods)), strict=True)
        ]
        totals = torch.zeros(len(methods), len(THRESHOLDS), dtype=torch.float64)
        for together in islice(zip(*made, strict=True), steps):
            for total, inputs in zip(totals, together, strict=True):
                total += torch.stack([effective_classes(inputs.targets, bound).mean() for bound in THRESHOLDS])
        for method, numbers in zip(methods, (totals / steps).tolist(), strict=True):
            found[method].append(numbers)
    means = {method: [statistics.fmean(column) for column in zip(*of, strict=True)] for method, of in found.items()}

    figure = Figure(figsize=(8.5, 4.2), layout="constrained")
    curves = {written[method]: numbers for method, numbers in means.items()}
    title = f"classes of a target above a threshold, {dataset.name}"
    draw_curves(figure.subplots(), THRESHOLDS, curves, title, "threshold")
    rows = [("classes above", *(f"{bound:g}" for bound in THRESHOLDS))]
    rows += [(written[method], *(f"{number:.2f}" for number in numbers)) for method, numbers in means.items()]
    values = {
        "thresholds": list(THRESHOLDS),
        "methods": {method: {"effective_classes": means[method], "runs": found[method]} for method in methods},
        "steps": steps,
        "batch": batch,
    }
    said = f"Means over {runs} runs of {steps} steps with batches of {batch}; every method mixes in every step."
    return _finding("targets", dataset, seed, values, f"{aligned(rows)}\n\n{said}", figure)


def mixing(
    dataset: Dataset,
    methods: Sequence[str],
    *,
    columns: int = 8,
    seed: int = 0,
    titles: Mapping[str, str] | None = None,
) -> Finding:
    """The same images mixed with the same partners by each method, below them; with the realised ratios.

    What methods draw is drawn anew where an image would be its own partner. Those made for feature maps are shown on
    images. InputError for an unknown method, fewer than one column, and fewer than twice as many images.
    """
    check_mixers(methods)
    part, generator = _part(dataset), _generator(seed, "mixing")
    many = next(drawn_batches(part, len(dataset.classes), 40 * columns, generator))
    if len(many.images) < 2 * columns:
        raise InputError(f"--columns {columns}: needs {2 * columns} images, there are {len(many.images)}")
    before = (many.targets.cumsum(dim=0) * many.targets).sum(dim=1)  # images of its class up to this one
    labels = many.targets.argmax(dim=1)
    chosen = (before * len(dataset.classes) + labels).argsort(stable=True)[: 2 * columns]
    images, named = many.images[chosen], [dataset.classes[c] for c in labels[chosen]]
    pairs = torch.arange(2 * columns).view(columns, 2)
    cells: dict[str, list[Cell | None]] = {
        "image": [Cell(images[own], named[own]) for own, _ in pairs],
        "partner": [Cell(images[other], named[other]) for _, other in pairs],
    }
    ratios: dict[str, list[float]] = {}
    for method in methods:
        made = [_pair(method, images[pair], generator) for pair in pairs]
        ratios[method] = [ratio for _, ratio in made]
        cells[(titles or {}).get(method, method)] = [Cell(image, f"{ratio:.2f}") for image, ratio in made]
    rows = [("ratio", *(f"{named[own]} with {named[other]}" for own, other in pairs))]
    rows += [
        (title, *(f"{ratio:.2f}" for ratio in of)) for title, of in zip(list(cells)[2:], ratios.values(), strict=True)
    ]
    values = {"parents": [[named[own], named[other]] for own, other in pairs], "ratios": ratios}
    said = "The realised share of the image beside its partner; below each in the picture."
    figure = image_table(cells, side=0.8)
    return _finding("mixing", dataset, seed, values, f"{aligned(rows)}\n\n{said}", figure)


def _pair(method: str, images: Images, generator: torch.Generator) -> tuple[Float[Tensor, "3 height width"], float]:
    """The first of two images with the second as its partner, and its realised ratio."""
    if method == NONE:
        return images[0], 1.0
    if method == RECURSIVE:
        drawn = recursive(images[:1], draw_box(*images.shape[2:], generator=generator), 1)
        return drawn.mix(images[:1], images[1:])[0], float(drawn.ratio[0])
    while True:
        drawn = METHODS[method](images, generator=generator)
        if drawn.partner[0] == 1:
            return drawn.mix(images)[0], float(drawn.ratio[0])


def _generator(*parts: int | str) -> torch.Generator:
    return torch.Generator().manual_seed(derive_seed(*parts))


def _part(dataset: Dataset) -> Part:
    """The training part. InputError where no class is known."""
    if not (dataset.train.labels >= 0).any():
        raise InputError(f"--data {dataset.name}: no training image is of known class")
    return dataset.train


def _finding(name: str, dataset: Dataset, seed: int, values: dict[str, Any], table: str, figure: Figure) -> Finding:
    return Finding({"study": name, "data": dataset.name, "seed": seed} | values, f"{table}\n", figure)


def _shares(target: Float[Tensor, " classes"], classes: Sequence[str]) -> dict[str, float]:
    """What is above zero of a target, the largest first."""
    shares, order = target.sort(descending=True, stable=True)
    return {classes[c]: share for share, c in zip(shares.tolist(), order.tolist(), strict=True) if share > 0}


def _target(target: Float[Tensor, " classes"], classes: Sequence[str]) -> str:
    """The three largest shares of a target, a line each, from a hundredth on."""
    largest = [f"{name}: {share:.2f}" for name, share in _shares(target, classes).items() if share >= 0.01]
    return "\n".join(largest[:3])
