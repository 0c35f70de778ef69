"""What the subnetworks of MIMO, MixMo and MixShare have in common: maps behind their encoders and in their core, the
features of their answers, filters (thesis 3.3.3, 3.4.1, A.5.4, A.6.3)."""

from collections.abc import Mapping, Sequence
from math import isfinite, nan
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Float64
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

from hybridgen.evaluation.studies import Finding
from hybridgen.evaluation.transfer import aligned
from hybridgen.networks.classifiers import Classifier, stages_of
from hybridgen.networks.multi_input import MultiInputClassifier
from hybridgen.types import Images, InputError

THRESHOLDS = (0.2, 0.3, 0.4, 0.5)
"""t_a of table A.16."""

ENCODERS, HEADS = "encoders", "classifiers"

Uses = Float64[Tensor, "subnetworks features"]
"""How much each subnetwork has to do with each feature, 0 or more."""


class Sharing(NamedTuple):
    """Of one network."""

    uses: Mapping[str, Uses]
    """By where the features are: behind the encoders, behind each stage, before the classifiers."""
    active: tuple[float, ...]
    """Share of active filters of the core at each of `THRESHOLDS`."""


def encoder_norms(network: MultiInputClassifier) -> Uses:
    """L1 norms of the encoders' kernels, one for each map behind them (3.4.1)."""
    weights = (encoder.get_parameter("weight") for encoder in network.encoders)
    return torch.stack([weight.detach().double().abs().flatten(1).sum(dim=1) for weight in weights])


def head_norms(network: MultiInputClassifier) -> Uses:
    """L1 norms of the columns of the classifiers' matrices, one for each feature (3.4.1)."""
    weights = (head.get_parameter("weight") for head in network.heads)
    return torch.stack([weight.detach().double().abs().sum(dim=0) for weight in weights])


def sharing_rate(uses: Uses) -> float:
    """The mean over features of their least use over their largest, min / max, in [0, 1] (3.4.1): 0 where each feature
    is one subnetwork's own, 1 where all use it alike. Features that none uses do not count; nan if there are no others,
    and for a single subnetwork."""
    least, most = uses.amin(dim=0), uses.amax(dim=0)
    used = most > 0
    return (least[used] / most[used]).mean().item() if len(uses) > 1 and used.any() else nan


def active_filters(core: nn.Module, thresholds: Sequence[float] = THRESHOLDS) -> tuple[float, ...]:
    """Share of the filters of all convolutions whose L1 norm is at least this part of the largest in their layer
    (A.5.4), in [0, 1] for each threshold. InputError for a core without convolutions."""
    relative = []
    for layer in core.modules():
        if isinstance(layer, nn.Conv2d):
            norms = layer.weight.detach().double().abs().flatten(1).sum(dim=1)
            relative.append(norms / norms.max().clamp(min=1e-300))
    if not relative:
        raise InputError(f"network: {type(core).__name__} has no convolution behind its first, so that no filter is")
    every = torch.cat(relative)
    return tuple((every >= bound).double().mean().item() for bound in thresholds)


@torch.no_grad()
def influence(
    network: MultiInputClassifier, images: Images, fixed: Float[Tensor, "1 3 height width"], *, batch: int = 256
) -> dict[str, Uses]:
    """Of each input on each map behind every stage of the core, the last one's before pooling (A.6.3): the variance
    over `images` at this input, with `fixed` at all others, and the mean of it over the map's places. Stages are those
    of `Classifier.stages`. In evaluation mode, which the network has to be in.

    InputError for fewer than two images.
    """
    if len(images) < 2:
        raise InputError(f"images: {len(images)}; two at least are needed to vary")
    core = network.core
    behind: dict[str, Tensor] = {}
    stages = stages_of(core)
    names = [f"stage {number}" for number in range(1, max(1, len(stages)) + 1)]
    hooks = [
        stage.register_forward_pre_hook(lambda _, inputs, name=name: behind.update({name: inputs[0]}))
        for name, stage in zip(names, stages[1:], strict=False)
    ]
    variances: dict[str, list[Tensor]] = {name: [] for name in names}
    try:
        for place in range(network.inputs):
            first: dict[str, Tensor] = {}  # from which the others differ by little, so that no digits are lost
            sums: dict[str, Tensor] = {}
            for some in images.split(batch):
                shown = [fixed.expand(len(some), -1, -1, -1)] * network.inputs
                shown[place] = some
                behind[names[-1]] = core.forward_features(sum(network.encode(shown)))
                for name, maps in behind.items():
                    maps = maps.double()
                    maps = maps - first.setdefault(name, maps[0])
                    both = torch.stack([maps.sum(dim=0), maps.square().sum(dim=0)])
                    sums[name] = sums[name] + both if name in sums else both
            for name, (total, squares) in sums.items():
                variance = (squares - total.square() / len(images)) / (len(images) - 1)
                variances[name].append(variance.clamp(min=0).mean(dim=(1, 2)))
    finally:
        for hook in hooks:
            hook.remove()
    return {name: torch.stack(each) for name, each in variances.items()}


def shared_by(
    network: Classifier | MultiInputClassifier, images: Images, fixed: Float[Tensor, "1 3 height width"]
) -> Sharing:
    """All of it for a network in evaluation mode; a plain one, whose core is taken out of it, has one subnetwork."""
    if isinstance(network, Classifier):
        mean, std = (values.flatten().tolist() for values in (network.normalize.mean, network.normalize.std))
        network = (
            MultiInputClassifier([network.network], mean=mean, std=std, ensemble="logits").to(images.device).eval()
        )
    uses = {ENCODERS: encoder_norms(network), **influence(network, images, fixed), HEADS: head_norms(network)}
    return Sharing({place: of.cpu() for place, of in uses.items()}, active_filters(network.core))


def study(found: Mapping[str, Sharing]) -> Finding:
    """Of several networks, by their names: sharing rates at every place and shares of active filters, in a table and
    JSON, with the uses themselves, drawn as in figures 3.12 and A.8. InputError for stages of different names."""
    places = list(next(iter(found.values())).uses)
    for name, own in found.items():
        if list(own.uses) != places:
            raise InputError(f"{name}: has the stages {', '.join(own.uses)}, others {', '.join(places)}; give one kind")
    rates = {name: [sharing_rate(of) for of in own.uses.values()] for name, own in found.items()}

    heads = [*(f"shared, {place}" for place in places), *(f"active, {bound:g}" for bound in THRESHOLDS)]
    percent = lambda share: f"{100 * share:.1f}" if isfinite(share) else "–"
    rows = [("%", *heads)]
    rows += [(name, *map(percent, [*rates[name], *own.active])) for name, own in found.items()]
    values: dict[str, Any] = {"thresholds": list(THRESHOLDS), "networks": {}}
    for name, own in found.items():
        values["networks"][name] = {
            "sharing": {p: rate if isfinite(rate) else None for p, rate in zip(places, rates[name], strict=True)},
            "active_filters": list(own.active),
            "uses": {place: of.tolist() for place, of in own.uses.items()},
        }
    said = (
        "shared: least use of a feature over its largest by a subnetwork, min / max, averaged over features;\n"
        "of encoders and classifiers by L1 norms (thesis 3.4.1), in the core by variances (A.6.3).\n"
        "active: filters of the core with at least this part of the largest L1 norm in their layer (table A.16)."
    )
    return Finding(values, f"{aligned(rows)}\n\n{said}\n", _figure(found, rates, places))


def _figure(found: Mapping[str, Sharing], rates: Mapping[str, Sequence[float]], places: Sequence[str]) -> Figure:
    several = {name: own for name, own in found.items() if len(own.uses[ENCODERS]) > 1}
    figure = Figure(figsize=(2.6 * len(places) + 0.8, 2.1 * len(several) + 3), layout="constrained")
    above, below = figure.subfigures(2, 1, squeeze=False, height_ratios=(2.1 * len(several) + 1e-3, 3)).flat
    if several:
        axes = above.subplots(len(several), len(places), squeeze=False)
        for row, (name, own) in zip(axes, several.items(), strict=True):
            for axis, place, rate in zip(row, places, rates[name], strict=True):
                _draw_uses(axis, own.uses[place])
                axis.set_title(f"{place}: {rate:.0%} shared" if isfinite(rate) else place, fontsize=9)
            row[0].set_ylabel(name, fontsize=9)
    axis = below.subplots()
    for name, own in found.items():
        axis.plot(THRESHOLDS, own.active, marker="o", markersize=3, linewidth=1.4, label=name)
    axis.set_title("active filters of the core", fontsize=9)
    axis.set_xlabel("threshold, of the largest L1 norm in the layer", fontsize=9)
    axis.set_xticks(THRESHOLDS)
    axis.yaxis.set_major_formatter(lambda share, _: f"{100 * share:g} %")
    axis.tick_params(labelsize=8)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure


def _draw_uses(axis: Axes, uses: Uses) -> None:
    """A bar for each subnetwork and feature, one before the other; features of the first subnetwork come first."""
    shares = uses / uses.amax(dim=0).clamp(min=1e-300)
    for of in uses[:, (shares[0] - shares[-1]).argsort(descending=True, stable=True)]:
        axis.bar(range(len(of)), of.tolist(), width=1.0, alpha=0.5)
    axis.set_xticks([])
    axis.tick_params(labelsize=7)
