"""Vision transformers in CaiT's form: feature blocks in which the patches attend to each other, then class-attention
blocks in which a class token attends to the patches (thesis 4.2, 4.3.2). Blocks are timm's."""

from collections.abc import Callable, Iterable
from functools import partial
from math import isqrt, sqrt
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from timm.layers import DropPath, PatchEmbed, trunc_normal_
from timm.models import beit, cait, convit, deit, eva, vision_transformer
from torch import Tensor, nn

from hybridgen.types import InputError

Tokens = Float[Tensor, "batch tokens dim"]
"""Of patches, row by row, without class tokens."""

Feature = Float[Tensor, "batch dim"]
"""Of the class token."""

CLASS_BLOCKS = 2
"""Class-attention blocks of every published CaiT, and of the thesis's ConViT."""

PLAIN_SCALE = 1.0
"""First value of LayerScale where a paper has none."""

Norm: Any = partial(nn.LayerNorm, eps=1e-6)


def default_patch(image_size: int) -> int:
    """Side of the patches in pixels: an eighth of the image's, 4 of 32 and 8 of 64, and 16 of what is larger (thesis
    A.1.5)."""
    return max(1, image_size // 8) if image_size <= 64 else 16


class ClassAttentionTransformer(nn.Module):
    """Standardised images to logits: patches, learnt positions, feature blocks, class-attention blocks, a last layer.

    Parameters have the names of timm's Cait, whose weights load. `blocks` take and give tokens [batch, tokens, dim];
    class-attention has `heads` and LayerScale from `layer_scale` on. All is drawn as in timm's Cait: positions and the
    class token from a normal distribution of deviation 0.02, linear layers of `deviation`, biases 0; with `drawn`
    blocks, these are left as they are. Gradient reaches the images and all parameters.

    InputError for patches that do not divide the image, a dimension that heads do not divide, and, in `forward`, for
    images of another size.
    """

    patch_embed: nn.Module
    head: nn.Module

    def __init__(
        self,
        classes: int,
        *,
        image_size: int,
        patch: int,
        dim: int,
        heads: int,
        blocks: Iterable[nn.Module],
        qkv_bias: bool,
        layer_scale: float = PLAIN_SCALE,
        drawn: bool = False,
    ) -> None:
        super().__init__()
        side = grid_side(image_size, patch)
        check_heads(dim, heads)
        self.patch, self.grid = patch, (side, side)
        """Side of the patches in pixels, and their rows and columns."""
        self.patch_embed = PatchEmbed(image_size, patch, 3, dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, side**2, dim))
        self.norm_pre: nn.Module = nn.Identity()
        self.blocks = nn.Sequential(*blocks)
        self.blocks_token_only = nn.ModuleList(
            cait.LayerScaleBlockClassAttn(dim, heads, qkv_bias=qkv_bias, init_values=layer_scale, norm_layer=Norm)
            for _ in range(CLASS_BLOCKS)
        )
        self.norm = Norm(dim)
        self.head = nn.Linear(dim, classes)
        self.image_size, self.num_features, self.num_classes = image_size, dim, classes
        trunc_normal_(self.pos_embed, std=0.02)
        trunc_normal_(self.cls_token, std=0.02)
        for part in (self.blocks_token_only, self.head) if drawn else (self.blocks, self.blocks_token_only, self.head):
            part.apply(partial(draw_linear, dim=dim))
        for part in () if drawn else self.blocks.modules():
            if isinstance(part, GatedAttention):
                part.local_init()

    def no_weight_decay(self) -> set[str]:
        """Parameters that do not decay, timm's convention."""
        return {"pos_embed", "cls_token"}

    def embed(self, images: Float[Tensor, "batch 3 height width"]) -> Tokens:
        """Patches as tokens, without their positions."""
        self.check_size(images)
        return self.patch_embed(images)

    def check_size(self, images: Tensor) -> None:
        """InputError for images of another size than the network's."""
        if tuple(images.shape[2:]) != (self.image_size, self.image_size):
            height, width = images.shape[2:]
            raise InputError(
                f"images: of {height}×{width} pixels for a transformer of {self.image_size}×{self.image_size}; see "
                "--image-size and --crop"
            )

    def attend(self, tokens: Tokens) -> Tokens:
        """What the feature blocks make of tokens, to which their positions are added: of one image, or of several, one
        after the other, who attend to each other."""
        positions = self.pos_embed.repeat(1, tokens.shape[1] // self.pos_embed.shape[1], 1)
        return self.blocks(self.norm_pre(tokens + positions))

    def summarise(self, tokens: Tokens) -> Feature:
        """What the class token makes of attended tokens in the class-attention blocks."""
        token = self.cls_token.expand(tokens.shape[0], -1, -1)
        for block in self.blocks_token_only:
            token = block(tokens, token)
        return self.norm(token).squeeze(1)

    def forward_features(self, images: Float[Tensor, "batch 3 height width"]) -> Tokens:
        return self.attend(self.embed(images))

    def forward_head(self, tokens: Tokens, pre_logits: bool = False) -> Float[Tensor, "batch out"]:
        feature = self.summarise(tokens)
        return feature if pre_logits else self.head(feature)

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch classes"]:
        return self.forward_head(self.forward_features(images))


class GatedAttention(convit.GPSA):
    """timm's gated positional self-attention (d'Ascoli et al. 2021) of `tokens` places, a square: the same weights and
    the same function, with the attention to contents fused.

    Attention is (1 - σ(λ)) of what contents say and σ(λ) of what positions say, each of which sums to one. The latter
    is the same for all images. Of several images' tokens, one after the other, positions are those in each image.
    InputError for a number of tokens that is no square.
    """

    def __init__(self, dim: int, heads: int, tokens: int) -> None:
        if isqrt(tokens) ** 2 != tokens:
            raise InputError(f"network: {tokens} tokens are no square, which gated positional self-attention needs")
        super().__init__(dim, heads)
        indices = self.get_rel_indices(tokens)
        del self.rel_indices  # Of older timm (1.0.27) it is no buffer, and stays on the device where it was made
        self.register_buffer("rel_indices", indices, persistent=False)

    @torch.no_grad()
    def local_init(self) -> None:
        """Values pass as they are, and each head looks at its neighbour of `neighbours` with ConViT's strength: weights
        are -1 for the squared distance and twice the offset for distances, a peak at that offset."""
        nn.init.eye_(self.v.weight)
        self.pos_proj.weight.copy_(
            self.locality_strength
            * torch.tensor([[2 * right, 2 * down, -1] for right, down in neighbours(self.num_heads)])
        )

    def positional(self) -> Float[Tensor, "heads tokens tokens"]:
        """What positions say: each token's attention to every other one of its image."""
        return self.pos_proj(self.rel_indices).squeeze(0).permute(2, 0, 1).softmax(dim=2)

    def forward(self, x: Tokens) -> Tokens:
        apart = lambda values, parts: values.unflatten(2, (parts, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        (query, key), (value,) = apart(self.qk(x), 2), apart(self.v(x), 1)
        content = F.scaled_dot_product_attention(query, key, value)
        places = self.rel_indices.shape[1]
        images = x.shape[1] // places
        seen = value if images == 1 else value.unflatten(2, (images, places)).mean(dim=2)
        position = torch.einsum("hij,bhjd->bhid", self.positional(), seen)
        position = position if images == 1 else position.repeat(1, 1, images, 1)
        gate = self.gating_param.sigmoid().view(1, -1, 1, 1)
        return self.proj((content + gate * (position - content)).transpose(1, 2).flatten(2))


def neighbours(heads: int) -> list[tuple[float, float]]:
    """Offsets to the right and down, in patches, at which heads look at first: those of a square kernel, as many as fit
    (ConViT; between two places for an even side), then the nearest around it, each its own.

    timm's initialisation leaves all heads beyond the square without a place.
    """
    side = isqrt(heads)
    middle = (side - 1) / 2
    square = [(right - middle, down - middle) for right in range(side) for down in range(side)]
    around = [
        (right - middle, down - middle)
        for right in range(-1, side + 1)
        for down in range(-1, side + 1)
        if not (0 <= right < side and 0 <= down < side)
    ]
    nearest = sorted(around, key=lambda offset: offset[0] ** 2 + offset[1] ** 2)
    return square + nearest[: heads - len(square)]


# --- the families, by their sizes ------------------------------------------------------------------------


def convit_of(
    classes: int, *, image_size: int, patch: int, dim: int, heads: int, depth: int
) -> ClassAttentionTransformer:
    """The thesis's ConViT: `depth` GPSA blocks, two of class-attention (A.1.5: dimension 384, 12 heads, depth 5)."""
    check_heads(dim, heads)
    blocks = [convit.Block(dim, heads) for _ in range(depth)]
    for block in blocks:
        block.attn = GatedAttention(dim, heads, grid_side(image_size, patch) ** 2)
    return ClassAttentionTransformer(
        classes, image_size=image_size, patch=patch, dim=dim, heads=heads, blocks=blocks, qkv_bias=False
    )


def cait_of(
    classes: int, *, image_size: int, patch: int, dim: int, heads: int, depth: int
) -> ClassAttentionTransformer:
    """CaiT (Touvron et al. 2021), whose LayerScale begins with 0.1 up to 18 blocks, 1e-5 up to 24, else 1e-6."""
    check_heads(dim, heads)
    scale = 0.1 if depth <= 18 else 1e-5 if depth <= 24 else 1e-6
    blocks = [cait.LayerScaleBlock(dim, heads, qkv_bias=True, norm_layer=Norm, init_values=scale) for _ in range(depth)]
    return ClassAttentionTransformer(
        classes, image_size=image_size, patch=patch, dim=dim, heads=heads, blocks=blocks, qkv_bias=True,
        layer_scale=scale,
    )  # fmt: skip


def vit_of(classes: int, *, image_size: int, patch: int, dim: int, heads: int, depth: int) -> ClassAttentionTransformer:
    """Plain self-attention blocks (Dosovitskiy et al. 2021), two of class-attention."""
    check_heads(dim, heads)
    blocks = [vision_transformer.Block(dim, heads, qkv_bias=True, norm_layer=Norm) for _ in range(depth)]
    return ClassAttentionTransformer(
        classes, image_size=image_size, patch=patch, dim=dim, heads=heads, blocks=blocks, qkv_bias=True
    )


FAMILIES: dict[str, Callable[..., ClassAttentionTransformer]] = {"convit": convit_of, "cait": cait_of, "vit": vit_of}
"""By the first word of their names."""

CAITS = {"xxs": (192, 4), "xs": (288, 6), "s": (384, 8)}
"""Dimension and heads of the sizes that CaiT's paper names."""


def grid_side(image_size: int, patch: int) -> int:
    """Patches along the image's side. InputError where they do not divide it."""
    if image_size % patch or image_size < patch:
        fitting = [side for side in range(1, image_size + 1) if image_size % side == 0 and side <= 32]
        raise InputError(
            f"network: patches of {patch} pixels do not divide images of {image_size}; "
            f"-patchN with N of {', '.join(map(str, fitting))} does"
        )
    return image_size // patch


def check_heads(dim: int, heads: int) -> None:
    """InputError where heads do not divide the dimension."""
    if heads < 1 or dim < heads or dim % heads:
        raise InputError(f"network: a dimension of {dim} is not divided by {heads} heads")


# --- timm's networks --------------------------------------------------------------------------------------


CUT = (
    *(cait.Cait, convit.ConVit, vision_transformer.VisionTransformer, deit.VisionTransformerDistilled),
    *(beit.Beit, eva.Eva),
)
"""Of timm, those whose self-attention blocks `with_class_attention` takes."""


def with_class_attention(network: nn.Module) -> ClassAttentionTransformer:
    """A network's feature blocks with class-attention blocks behind them (thesis 4.3.2).

    One of this file stays as it is, a Cait of timm keeps its weights, all of them. Of a plain vision transformer, one
    with DeiT's token of distillation, a ConViT, BEiT or EVA of timm patches, positions and self-attention blocks are
    kept, with their weights; there are no class tokens among the patches any more, and class-attention, the last norm
    and the last layer are drawn. InputError for others, and for BEiTs and EVAs whose positions are relative or rotary.
    """
    if isinstance(network, ClassAttentionTransformer):
        return network
    if type(network) not in CUT:
        raise InputError(
            f"network: {type(network).__name__} is no vision transformer with self-attention blocks of one kind; "
            "convit-DIM-HEADS-BLOCKS, cait-DIM-HEADS-BLOCKS, vit-DIM-HEADS-BLOCKS and timm's vit_…, deit_…, convit_… "
            "and cait_… are"
        )
    return _cut(network)


def _cut(network: Any) -> ClassAttentionTransformer:
    """Of one of `CUT`."""
    if isinstance(network.patch_embed, convit.HybridEmbed) or not hasattr(network.patch_embed, "patch_size"):
        raise InputError("network: patches made by a convolutional network cannot be mixed one by one")
    if missing := [type(block).__name__ for block in network.blocks if not hasattr(block, "attn")]:
        raise InputError(f"network: a {missing[0]} is no block of self-attention and a perceptron, one after the other")
    attention = network.blocks[0].attn
    positions = (getattr(network, "rope", None), getattr(network, "rel_pos_bias", None),
                 getattr(attention, "relative_position_bias_table", None))  # fmt: skip
    if any(each is not None for each in positions):
        raise InputError(
            f"network: this {type(network).__name__} has positions in the attention of its blocks, made for one image "
            "with its class token, and not for patches of several; timm's vit_… and deit_… have them before the blocks"
        )
    (size, width), (patch, _) = network.patch_embed.img_size, network.patch_embed.patch_size
    if size != width:
        raise InputError(f"network: made for images of {size}×{width}; square ones are needed")
    made = ClassAttentionTransformer(
        network.num_classes,
        image_size=size,
        patch=patch,
        dim=network.embed_dim,
        heads=attention.num_heads,
        blocks=network.blocks,
        qkv_bias=not isinstance(network, convit.ConVit),
        drawn=True,
    ).to(next(network.patch_embed.parameters()).dtype)
    if isinstance(network, cait.Cait):
        made.load_state_dict(network.state_dict())
        return made
    made.patch_embed = network.patch_embed
    made.norm_pre = getattr(network, "norm_pre", made.norm_pre)
    if network.pos_embed is not None:
        tokens = made.pos_embed.shape[1]
        made.pos_embed = nn.Parameter(network.pos_embed.detach()[:, -tokens:].clone())
    for block in made.blocks:
        if isinstance(block.attn, convit.GPSA):
            fused = GatedAttention(made.num_features, block.attn.num_heads, made.pos_embed.shape[1]).to(made.cls_token)
            fused.load_state_dict(block.attn.state_dict())
            block.attn = fused
    return made


def deviation(dim: int) -> float:
    """Of a new linear layer's weights in a transformer of this dimension: 0.02, ConViT's and CaiT's, which have 192 or
    more; of narrower ones 1/√(2 dim). With 0.02 these hardly begin to learn in the first thousand steps."""
    return 0.02 if dim >= 192 else 1 / sqrt(2 * dim)


def draw_linear(part: nn.Module, dim: int) -> None:
    """A linear layer of a transformer of this dimension: weights from a normal distribution, cut off at ±2, bias 0."""
    if isinstance(part, nn.Linear):
        trunc_normal_(part.weight, std=deviation(dim))
        if part.bias is not None:
            nn.init.zeros_(part.bias)


def set_stochastic_depth(network: nn.Module, rate: float) -> nn.Module:
    """The same network, each residual branch of whose feature blocks is left out with this probability, for every image
    anew, while it trains (Huang et al. 2016); the same for all, as in CaiT. InputError for a rate outside [0, 1), and
    for a network without such branches."""
    if not 0 <= rate < 1:
        raise InputError(f"stochastic_depth: {rate} is outside [0, 1)")
    found = False
    for part in network.modules():
        if isinstance(part, cait.LayerScaleBlockClassAttn):
            continue
        for name in ("drop_path", "drop_path1", "drop_path2"):
            if isinstance(getattr(part, name, None), DropPath | nn.Identity):
                setattr(part, name, DropPath(rate))
                found = True
    if not found:
        raise InputError(f"stochastic_depth: {type(network).__name__} has no residual branches that can be left out")
    return network
