"""Pictures of hybrids."""

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float, Int64
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional as F

from hybridgen.data.datasets import Part
from hybridgen.data.streams import derive_seed
from hybridgen.hybridizer import Hybridizer
from hybridgen.types import Images, InputError

LEGIBLE = 64
"""Smallest side, in pixels, that an image of a grid is shown with."""
GAP, EDGE = 2, 8
"""Pixels between images, and more of them beside the parents."""
FONT, SMALL = 14, 9
"""Heights of letters in pixels."""


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


@torch.no_grad()
def sample_grid(hybridizer: Hybridizer, part: Part, seed: int, *, side: int = 8) -> Float[Tensor, "3 height width"]:
    """A grid of up to `side` × `side` hybrids of parents that the seed chooses (`choose_parents`), left of it the
    semantic parents' classes, as far as they are known, and reconstructions."""
    side = min(side, len(part) // 2)
    device = next(hybridizer.parameters()).device
    chosen, others = choose_parents(part, side, side, seed)
    semantic, nonsemantic = (part.images.gather(each).to(device) / 255 for each in (chosen, others))
    names = [hybridizer.origin.classes[label] if label >= 0 else "" for label in part.labels[chosen].tolist()]
    return torch.cat([row_heads(names, hybridizer(semantic)), hybrid_grid(hybridizer, semantic, nonsemantic)], dim=2)


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
    side = legible(hybrids).shape[-1]
    grid = torch.ones(3, place(rows + 1, side), place(columns + 1, side), device=semantic.device)
    for row, image in enumerate(legible(semantic), start=1):
        grid[:, place(row, side) :, place(0, side) :][:, :side, :side] = image
    for column, image in enumerate(legible(nonsemantic), start=1):
        grid[:, place(0, side) :, place(column, side) :][:, :side, :side] = image
    for i, image in enumerate(legible(hybrids)):
        grid[:, place(i // columns + 1, side) :, place(i % columns + 1, side) :][:, :side, :side] = image
    return grid.cpu()


def row_heads(
    names: Sequence[str], reconstructions: Float[Tensor, "rows 3 size size"]
) -> Float[Tensor, "3 height width"]:
    """What stands left of a grid's rows: their names, and how their parents are reconstructed; on white."""
    font, images = letters(FONT), legible(reconstructions).cpu()
    side, width = images.shape[-1], GAP + max(math.ceil(font.getlength(name)) for name in names)
    paper = Image.new("L", (width + GAP + side, place(len(names) + 1, side)), 255)
    write = ImageDraw.Draw(paper)
    for row, name in enumerate(names, start=1):
        write.text((width, place(row, side) + side / 2), name, fill=0, font=font, anchor="rm")
    middle = width + GAP + side / 2, place(0, side) + side
    write.text(middle, "reconstructed", fill=0, font=letters(SMALL), anchor="mb")
    strip = torch.frombuffer(bytearray(paper.tobytes()), dtype=torch.uint8).view(-1, paper.width) / 255
    strip = strip.expand(3, -1, -1).clone()
    for row, image in enumerate(images, start=1):
        strip[:, place(row, side) :, width + GAP :][:, :side] = image
    return strip


def letters(height: int) -> ImageFont.FreeTypeFont:
    """A font of this height in pixels, matplotlib's own: Pillow's knows no letters but those of English."""
    import matplotlib  # which takes its time

    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", height)


def legible(images: Images) -> Float[Tensor, "batch 3 _height _width"]:
    """Small ones magnified by a whole number, pixel by pixel, to a side of at least `LEGIBLE`."""
    return F.interpolate(images, scale_factor=float(-(-LEGIBLE // images.shape[-1])), mode="nearest")


def place(i: int, side: int) -> int:
    """Where the i-th row or column of images begins: the parents first, then a wider gap."""
    return GAP + i * (side + GAP) + (EDGE if i else 0)
