"""Pictures of hybrids."""

from collections import Counter

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

from hybridgen.data.datasets import Part
from hybridgen.data.streams import derive_seed
from hybridgen.hybridizer import Hybridizer
from hybridgen.types import Images, InputError

LEGIBLE = 64
"""Smallest side, in pixels, that an image of a grid is shown with."""


def choose_parents(
    part: Part, rows: int, columns: int, seed: int
) -> tuple[Int64[Tensor, " rows"], Int64[Tensor, " columns"]]:
    """Different images for both edges of a grid: random, the semantic ones with the classes in turn.

    InputError if the part has fewer images than both edges need, or an edge none.
    """
    if rows < 1 or columns < 1:
        raise InputError(f"a grid needs an image on either edge; there are {len(part)} to choose from")
    if rows + columns > len(part):
        raise InputError(f"rows + columns = {rows + columns}: there are {len(part)} images to choose from")
    order = torch.randperm(len(part), generator=torch.Generator().manual_seed(derive_seed(seed, "grid"))).tolist()
    semantic, nonsemantic = order[columns:], order[:columns]
    seen: Counter[int] = Counter()
    turns = []
    for index in semantic:
        label = int(part.labels[index])
        turns.append((seen[label], label, index))
        seen[label] += 1
    return torch.tensor([index for *_, index in sorted(turns)[:rows]]), torch.tensor(nonsemantic)


def sample_grid(hybridizer: Hybridizer, part: Part, seed: int, *, side: int = 8) -> Float[Tensor, "3 height width"]:
    """A grid of up to `side` × `side` hybrids of parents that the seed chooses (`choose_parents`)."""
    side = min(side, len(part) // 2)
    device = next(hybridizer.parameters()).device
    parents = (part.images.gather(chosen).to(device) / 255 for chosen in choose_parents(part, side, side, seed))
    return hybrid_grid(hybridizer, *parents)


@torch.no_grad()
def crossed(
    hybridizer: Hybridizer,
    semantic: Float[Tensor, "rows 3 size size"],
    nonsemantic: Float[Tensor, "columns 3 size size"],
) -> Images:
    """Hybrids `[rows · columns, 3, size, size]` of every semantic with every non-semantic parent, row by row."""
    style = hybridizer.encode_semantic(semantic).repeat_interleave(len(nonsemantic), 0)
    context = hybridizer.encode_nonsemantic(nonsemantic)
    return hybridizer.decode(style, context.repeat(len(semantic), *(1,) * (context.ndim - 1)))


@torch.no_grad()
def hybrid_grid(
    hybridizer: Hybridizer,
    semantic: Float[Tensor, "rows 3 size size"],
    nonsemantic: Float[Tensor, "columns 3 size size"],
) -> Float[Tensor, "3 height width"]:
    """Every semantic parent (left edge) with every non-semantic parent (top edge), on white.

    Small images are magnified by a whole number, pixel by pixel, to at least 64 pixels.
    """
    rows, columns = len(semantic), len(nonsemantic)
    hybrids = crossed(hybridizer, semantic, nonsemantic)
    factor = -(-LEGIBLE // semantic.shape[-1])
    gap, edge = 2, 8
    side = semantic.shape[-1] * factor

    def place(i: int) -> int:
        """Where the i-th row or column begins: the parents first, then a wider gap."""
        return gap + i * (side + gap) + (edge if i else 0)

    grid = torch.ones(3, place(rows + 1), place(columns + 1), device=semantic.device)
    tiles = [(i + 1, 0, image) for i, image in enumerate(semantic)]
    tiles += [(0, j + 1, image) for j, image in enumerate(nonsemantic)]
    tiles += [(i + 1, j + 1, hybrids[i * columns + j]) for i in range(rows) for j in range(columns)]
    for row, column, image in tiles:
        shown = F.interpolate(image[None], scale_factor=factor, mode="nearest")[0]
        grid[:, place(row) : place(row) + side, place(column) : place(column) + side] = shown
    return grid.cpu()
