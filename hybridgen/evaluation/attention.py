"""What the class token of a vision transformer looks at: on images of several inputs at once, and on one as each
input's (thesis 4.3)."""

from collections.abc import Mapping
from math import inf
from statistics import fmean
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from matplotlib.figure import Figure
from timm.models.cait import ClassAttn
from torch import Tensor

from hybridgen.evaluation.studies import Finding
from hybridgen.evaluation.transfer import aligned
from hybridgen.methods.mixvit import transformer_of
from hybridgen.mixing.inputs import mix_patches
from hybridgen.networks.classifiers import Classifier
from hybridgen.networks.multi_input import MultiInputClassifier
from hybridgen.networks.vision_transformers import ClassAttentionTransformer
from hybridgen.types import Images, InputError

SHOWN = 4
"""Images in the picture."""

Looks = Float[Tensor, "blocks batch heads tokens"]
"""Attention of the class token to each token, in each class-attention block; with that to itself their sum is 1."""


class Attention(NamedTuple):
    """Of one network: what its class token pays to tokens."""

    share: tuple[float, ...]
    """Of each input in the tokens of mixed images, the mean."""
    mixed: tuple[float, ...]
    """Of each input in the attention to the tokens of mixed images, the mean over images, blocks and heads."""
    slope: float
    """By how much an input's part of the attention grows with its part of the tokens: 1 where the class token looks at
    all alike, 0 where it gives each input the same, however little of it there is; nan for one input."""
    overlap: float
    """Of the attention to the same image as different inputs', Σ min(a_i, a_j), the mean over pairs: 1 where it does
    not depend on the input; nan for one input."""
    pictures: Float[Tensor, "images columns 3 height width"]
    """Mixed images, what is paid to them in the last block; one image, what is paid to it as each input's."""


@torch.no_grad()
def class_attention(core: ClassAttentionTransformer, tokens: Float[Tensor, "batch tokens dim"]) -> Looks:
    """Of a transformer's class-attention blocks on attended tokens, the class token's attention to itself left out."""
    token = core.cls_token.expand(tokens.shape[0], -1, -1)
    looks = []
    for block in core.blocks_token_only:
        seen, attention = block.get_submodule("norm1")(torch.cat([token, tokens], dim=1)), block.get_submodule("attn")
        assert isinstance(attention, ClassAttn)
        query, keys = (
            part.unflatten(2, (attention.num_heads, -1)).transpose(1, 2)
            for part in (attention.q(seen[:, :1]), attention.k(seen))
        )
        looks.append((attention.scale * query @ keys.mT).softmax(dim=3)[:, :, 0, 1:])
        token = block(tokens, token)
    return torch.stack(looks)


@torch.no_grad()
def attention_of(
    classifier: Classifier | MultiInputClassifier, images: Images, generator: torch.Generator
) -> Attention:
    """Of a transformer of several inputs in evaluation mode; images are mixed as in training, shares of all sizes alike
    often. InputError for another network, one whose inputs have their own patch embeddings, and fewer images than
    inputs."""
    network = transformer_of(classifier)
    if len(network.encoders) > 1:
        raise InputError(
            "network: no transformer of inputs that share their patch embedding; runs of recipes/mixvit.py have one"
        )
    inputs, size = network.inputs, (images.shape[2], images.shape[3])
    mixing = mix_patches(len(images), size, patch=network.patch, inputs=inputs, alpha=1.0, generator=generator)
    mixed = mixing.mix([images[each] for each in mixing.partners])
    shares = mixing.masks.flatten(2).to(images.dtype)
    sourced = lambda images, shown: network.sourced(
        network.encode_mixed(classifier.normalize(images)).unsqueeze(0), shown
    )
    looks = class_attention(network.core, *sourced(mixed, shares.unsqueeze(0)))
    paid = looks / looks.sum(dim=3, keepdim=True)
    own = torch.einsum("kbhn,ibn->ib", paid, shares) / (paid.shape[0] * paid.shape[2])

    alone = torch.eye(inputs).to(images)[:, :, None, None].expand(-1, -1, 1, shares.shape[2])
    each = torch.stack([class_attention(network.core, tokens) for tokens in sourced(images, alone)])
    pairs = [(i, j) for i in range(len(each)) for j in range(i)]
    parts = each / each.sum(dim=4, keepdim=True)
    overlaps = [torch.minimum(parts[i], parts[j]).sum(dim=3).mean().item() for i, j in pairs]

    maps = [_as_images(values[-1].mean(dim=1), network.grid, size) for values in (looks, *each)]
    columns = [mixed, maps[0], images, *maps[1:]]
    return Attention(
        tuple(shares.mean(dim=(1, 2)).tolist()),
        tuple(own.mean(dim=1).tolist()),
        _slope(shares.mean(dim=2), own) if inputs > 1 else float("nan"),
        fmean(overlaps) if overlaps else float("nan"),
        torch.stack([column[:SHOWN] for column in columns], dim=1).cpu(),
    )


def study(found: Mapping[str, Attention]) -> Finding:
    """Of several networks, by their names: a table, JSON, and a picture of a few images."""
    shown = lambda value: f"{value:.3f}" if abs(value) < inf else "–"
    rows: list[tuple[str, ...]] = [("network", "tokens of inputs", "attention to inputs", "slope", "overlap")]
    for name, of in found.items():
        parts = (" ".join(f"{100 * share:.1f} %" for share in each) for each in (of.share, of.mixed))
        rows.append((name, *parts, shown(of.slope), shown(of.overlap)))
    values: dict[str, Any] = {
        name: {
            "share": list(of.share),
            "attention": list(of.mixed),
            **{key: None if getattr(of, key) != getattr(of, key) else getattr(of, key) for key in ("slope", "overlap")},
        }
        for name, of in found.items()
    }
    said = (
        "attention: the class token's to the tokens of mixed images, by the input that they are of; slope: by how\n"
        "much it grows with an input's tokens (1: all tokens alike); overlap: of that to an image as different inputs"
    )
    return Finding({"networks": values}, f"{aligned(rows)}\n\n{said}\n", _figure(found))


def _slope(shares: Float[Tensor, "inputs batch"], own: Float[Tensor, "inputs batch"]) -> float:
    """Of the straight line through all inputs' parts, by least squares."""
    x, y = (values.flatten().double() for values in (shares, own))
    x = x - x.mean()
    return (x @ y / x.square().sum()).item()


def _as_images(
    looks: Float[Tensor, "batch tokens"], grid: tuple[int, int], size: tuple[int, int]
) -> Float[Tensor, "batch 3 height width"]:
    """Maps of their largest values' brightness."""
    maps = (looks / looks.amax(dim=1, keepdim=True)).unflatten(1, grid)
    for place, sides in enumerate(zip(size, grid, strict=True), start=1):
        maps = maps.repeat_interleave(sides[0] // sides[1], dim=place)
    return maps.unsqueeze(1).expand(-1, 3, -1, -1)


def _figure(found: Mapping[str, Attention]) -> Figure:
    columns = max(of.pictures.shape[1] for of in found.values())
    rows = sum(len(of.pictures) for of in found.values())
    figure = Figure(figsize=(1.3 * columns + 1.2, 1.3 * rows + 0.4), layout="constrained")
    axes, row = figure.subplots(rows, columns, squeeze=False), 0
    for axis in axes.flat:
        axis.set_axis_off()
    for name, of in found.items():
        titles = ["mixed", "attention", "one image", *(f"as of input {i}" for i in range(of.pictures.shape[1] - 3))]
        for place, images in enumerate(of.pictures):
            for axis, title, image in zip(axes[row], titles, images, strict=False):
                axis.imshow(image.permute(1, 2, 0).clamp(0, 1).numpy())
                axis.set_title(f"{name}\n{title}" if place == 0 and title == "mixed" else title, fontsize=7)
            row += 1
    return figure
