"""The pictures of studies: curves or bars, confusions, columns and tables of images."""

import math
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import NamedTuple

import torch.nn.functional as F
from jaxtyping import Float, Float64
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from hybridgen.evaluation.transfer import Rate

Series = Mapping[str, Sequence[Rate | float | None]]
"""Rates or plain ratios by what they are; in each as many as there are hybridizers, None where there is none."""


def draw_series(
    axis: Axes,
    names: Sequence[str],
    series: Series,
    title: str,
    *,
    steps: Sequence[int] | None = None,
    chance: float | None = None,
) -> None:
    """Curves over the steps of training, or bars for each name; rates with their intervals, ratios on a log axis."""
    rates = all(isinstance(value, Rate) for values in series.values() for value in values if value is not None)
    for i, (label, values) in enumerate(series.items()):
        there = {
            j: value if isinstance(value, Rate) else Rate(value, value, value)
            for j, value in enumerate(values)
            if value is not None and (isinstance(value, Rate) or 0 < value < math.inf)
        }
        numbers = there.values()
        heights = [number.value for number in numbers]
        errors = [[max(0.0, n.value - n.low) for n in numbers], [max(0.0, n.high - n.value) for n in numbers]]
        if steps is not None:
            at = [steps[j] for j in there]
            axis.errorbar(at, heights, errors, label=label, marker="o", markersize=3, linewidth=1.2, capsize=2)
        else:
            width = 0.8 / len(series)
            at = [j + (i - (len(series) - 1) / 2) * width for j in there]
            bars = axis.bar(at, heights, 0.92 * width, yerr=errors if rates else None, label=label, capsize=2)
            if len(names) * len(series) <= 12:
                texts = [f"{height:.0%}" if rates else f"{height:.3g}" for height in heights]
                axis.bar_label(bars, texts, padding=2, fontsize=8)
    if steps is not None:
        axis.set_xlabel("training step", fontsize=9)
    else:
        axis.set_xticks(range(len(names)), names, fontsize=8, rotation=0 if len(names) <= 2 else 20)
        axis.set_xlim(-0.6, len(names) - 0.4)
    if rates:
        axis.set_ylim(0, 1.08)
        axis.yaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    else:
        axis.set_yscale("log")
        axis.margins(y=0.15)
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_formatter("{x:g}")
        axis.axhline(1, color="grey", linewidth=0.8, linestyle=":")
    if chance is not None:
        axis.axhline(chance, color="black", linewidth=0.9, linestyle="--", label=f"chance, {chance:.0%}")
    axis.set_title(title, fontsize=10)
    axis.tick_params(which="both", labelsize=8)
    axis.grid(axis="y", alpha=0.3)
    axis.set_axisbelow(True)
    axis.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=2, frameon=False)


WITH_FIGURES, WITH_NAMES = 20, 100
"""Classes up to which a confusion has figures in its cells, and names along its edges."""


def draw_confusion(
    axis: Axes,
    shares: Float64[Tensor, "classes classes"],
    classes: Sequence[str],
    title: str,
    *,
    rows: str,
    columns: str,
) -> None:
    """Shares of each row in [0, 1], nan where there is nothing of a class; what `rows` and `columns` are is written
    along them. Figures are in percent."""
    image = axis.imshow(shares.numpy(), vmin=0, vmax=1, cmap="Blues")
    if len(classes) <= WITH_NAMES:
        names = [name if len(name) <= 16 else f"{name[:15]}…" for name in classes]
        axis.set_xticks(range(len(classes)), names, fontsize=7, rotation=90 if max(map(len, names)) > 2 else 0)
        axis.set_yticks(range(len(classes)), names, fontsize=7)
    if len(classes) <= WITH_FIGURES:
        for i, row in enumerate(shares.tolist()):
            for j, share in enumerate(row):
                if share >= 0.005:
                    colour = "white" if share > 0.5 else "black"
                    axis.text(j, i, f"{100 * share:.0f}", ha="center", va="center", fontsize=7, color=colour)
    axis.set_xlabel(columns, fontsize=9)
    axis.set_ylabel(rows, fontsize=9)
    axis.set_title(title, fontsize=10)
    axis.figure.colorbar(image, ax=axis, shrink=0.8, format=lambda share, _: f"{share:.0%}")


def image_columns(columns: Mapping[str, Float[Tensor, "rows ..."]]) -> Figure:
    """Titled columns of images `[rows, 3, size, size]`, or of maps `[rows, size, size]` that share a scale of colour.

    Maps are drawn without the places where they are nan.
    """
    rows = len(next(iter(columns.values())))
    figure = Figure(figsize=(1.7 * len(columns), 1.45 * rows + 0.6), layout="constrained")
    axes = figure.subplots(rows, len(columns), squeeze=False)
    maps = [column for column in columns.values() if column.ndim == 3]
    drawn = None
    highest = max((float(column.nan_to_num().max()) for column in maps), default=1.0)
    for j, (title, column) in enumerate(columns.items()):
        axes[0, j].set_title(title, fontsize=9)
        for i, image in enumerate(column):
            axes[i, j].set_xticks([])
            axes[i, j].set_yticks([])
            if image.ndim == 3:
                axes[i, j].imshow(image.clamp(0, 1).permute(1, 2, 0).numpy(), interpolation="nearest")
            else:
                drawn = axes[i, j].imshow(image.numpy(), vmin=0, vmax=highest, cmap="magma", interpolation="nearest")
    if drawn is not None:
        figure.colorbar(drawn, ax=axes[:, -1].tolist(), shrink=0.6).set_label("sum over colours", fontsize=8)
    return figure


class Cell(NamedTuple):
    """An image of a table."""

    image: Float[Tensor, "3 height width"]
    caption: str = ""
    """Below the image."""
    heat: Float[Tensor, "rows columns"] | None = None
    """Laid over the image, brought to its size bilinearly, with a colour scale of its own; nothing below zero."""
    box: tuple[int, int, int, int] | None = None
    """Outlined: top, left, height, width in pixels."""


def image_table(
    rows: Mapping[str, Sequence[Cell | None]], columns: Sequence[str] = (), *, side: float = 1.35
) -> Figure:
    """Titled rows of images, `side` inches each, with captions; and titles above columns. None leaves a gap."""
    count = max(map(len, rows.values()))
    below = max((len(cell.caption.splitlines()) for row in rows.values() for cell in row if cell), default=0)
    above = max((len(title.splitlines()) for title in columns), default=0)
    beside = 0.075 * max(map(len, rows))
    size = side * count + beside + 0.2, (side + 0.13 * below + 0.05) * len(rows) + 0.15 * above + 0.1
    figure = Figure(figsize=size)
    figure.set_layout_engine("constrained", w_pad=0.02, h_pad=0.02)
    axes = figure.subplots(len(rows), count, squeeze=False)
    for i, (title, row) in enumerate(rows.items()):
        for axis, cell in zip_longest(axes[i], row):
            if cell is None:
                axis.axis("off")
            else:
                draw_cell(axis, cell)
        axes[i, 0].set_ylabel(title, fontsize=9, rotation=0, ha="right", va="center")
    for axis, title in zip(axes[0], columns, strict=False):
        axis.set_title(title, fontsize=9)
    return figure


def draw_cell(axis: Axes, cell: Cell) -> None:
    """One image with what is laid over it."""
    height, width = cell.image.shape[1:]
    axis.imshow(cell.image.clamp(0, 1).permute(1, 2, 0).numpy(), interpolation="nearest")
    if cell.heat is not None:
        heat = F.interpolate(cell.heat[None, None].clamp(min=0), size=(height, width), mode="bilinear")[0, 0]
        axis.imshow(heat.numpy(), cmap="jet", alpha=0.5, vmin=0, interpolation="nearest")
    if cell.box is not None:
        top, left, tall, wide = cell.box
        axis.add_patch(Rectangle((left - 0.5, top - 0.5), wide, tall, fill=False, edgecolor="white", linewidth=1.2))
    axis.set_xticks([])
    axis.set_yticks([])
    if cell.caption:
        axis.set_xlabel(cell.caption, fontsize=7, labelpad=2)


def draw_curves(axis: Axes, at: Sequence[float], curves: Mapping[str, Sequence[float]], title: str, unit: str) -> None:
    """Named curves over positive values on a log axis, in the order of their names."""
    for i, (name, heights) in enumerate(curves.items()):
        style = ("-", "--", ":")[i // 10 % 3]
        axis.plot(at, heights, style, label=name, marker="o", markersize=3, linewidth=1.4)
    axis.set_xscale("log")
    axis.set_xlabel(unit, fontsize=9)
    axis.set_title(title, fontsize=10)
    axis.tick_params(which="both", labelsize=8)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.01, 0.5))


def draw_bars(axis: Axes, values: Mapping[str, float], title: str, labels: Sequence[str]) -> None:
    """A lying bar for each name, the first one on top, with its label."""
    bars = axis.barh(list(values), list(values.values()), height=0.7)
    axis.bar_label(bars, labels, padding=2, fontsize=8)
    axis.margins(x=0.18)
    if not axis.yaxis_inverted():
        axis.invert_yaxis()
    axis.set_title(title, fontsize=10)
    axis.tick_params(labelsize=8)
    axis.grid(axis="x", alpha=0.3)
    axis.set_axisbelow(True)
