"""Vision transformers against timm's, and what heads of gated attention look at before they learn."""

from math import isqrt

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.layers import DropPath
from timm.models.beit import Beit
from timm.models.cait import Cait, LayerScaleBlockClassAttn
from timm.models.convit import GPSA, ConVit
from timm.models.deit import VisionTransformerDistilled
from timm.models.eva import Eva
from timm.models.vision_transformer import ParallelThingsBlock, VisionTransformer
from torch import nn

from hybridgen.networks.registry import make_network
from hybridgen.networks.vision_transformers import (
    ClassAttentionTransformer,
    GatedAttention,
    default_patch,
    neighbours,
    set_stochastic_depth,
    with_class_attention,
)
from hybridgen.training.objective import adam
from hybridgen.types import InputError

SIZES = dict(img_size=16, patch_size=4, num_classes=5, depth=2)
CLOSE = dict(rtol=1e-9, atol=1e-11)
GAMMAS = ("gamma_1", "gamma_2")


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def varied(module: nn.Module) -> nn.Module:
    """In float64, every parameter with values of its own, so that one left out or in the wrong place shows."""
    torch.manual_seed(3)
    module = module.double().eval()
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    return module


def pictures(side: int = 16, count: int = 2) -> torch.Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def unfused(module: nn.Module) -> nn.Module:
    for part in module.modules():
        if hasattr(part, "fused_attn"):
            part.fused_attn = False
    return module


@pytest.mark.parametrize(
    ("name", "side", "classes", "exact"),
    [
        # By hand: 5 blocks of 12d² + …, 2 of class-attention, patches of 4×4, 64 positions
        (
            "convit-384-12-5", 32, 100,
            5 * (12 * 384**2 + 10 * 384 + 12 * 5) + 2 * (12 * 384**2 + 12 * 384) + 48 * 384 + 384 + 65 * 384 + 2 * 384
            + 385 * 100,
        ),
        ("cait-xs-24", 64, 200, 26_125_544),
        ("cait-288-6-24-patch8", 64, 200, 26_125_544),
        ("cait-xxs-24", 224, 100, parameters(timm.create_model("cait_xxs24_224", num_classes=100))),
    ],
)  # fmt: skip
def test_the_theses_networks_have_its_sizes(name, side, classes, exact):
    """Thesis, tables 4.3 and A.19: 12 M and 26 M; A.1.5: about 12.5 M."""
    with torch.device("meta"):
        made = make_network(name, classes, image_size=side)
    assert parameters(made) == exact


def test_patches_are_the_theses():
    assert [default_patch(side) for side in (32, 64, 224)] == [4, 8, 16]
    with torch.device("meta"):
        grids = {side: make_network("vit-12-3-1", 2, image_size=side).grid for side in (16, 32, 64, 224)}
    assert grids == {16: (8, 8), 32: (8, 8), 64: (8, 8), 224: (14, 14)}
    assert make_network("vit-12-3-1-patch8", 2, image_size=16).patch == 8
    assert make_network("vit-12-3-1", 2).image_size == 32


def test_cait_is_timms_with_its_weights():
    theirs = unfused(varied(Cait(embed_dim=24, num_heads=3, init_values=0.1, **SIZES)))
    ours = make_network("cait-24-3-2-patch4", 5, image_size=16).double()
    ours.load_state_dict(theirs.state_dict())
    expected = theirs(pictures())
    torch.testing.assert_close(ours(pictures()), expected, **CLOSE)
    torch.testing.assert_close(with_class_attention(theirs)(pictures()), expected, **CLOSE)


def test_convits_feature_blocks_are_timms_with_their_weights():
    theirs = varied(ConVit(embed_dim=8, num_heads=3, local_up_to_layer=2, **SIZES))
    ours = varied(make_network("convit-24-3-2-patch4", 5, image_size=16))
    missing, _ = ours.load_state_dict(theirs.state_dict(), strict=False)
    assert all(name.startswith("blocks_token_only") for name in missing)
    last = []
    theirs.blocks[-1].register_forward_hook(lambda module, given, made: last.append(made))
    theirs.forward_features(pictures())
    torch.testing.assert_close(ours.forward_features(pictures()), last[0], **CLOSE)
    cut = with_class_attention(theirs)
    torch.testing.assert_close(cut.forward_features(pictures()), last[0], **CLOSE)
    assert all(type(block.attn) is GatedAttention for block in cut.blocks)


def test_vits_feature_blocks_are_timms_with_their_weights():
    theirs = unfused(
        varied(VisionTransformer(embed_dim=24, num_heads=3, class_token=False, global_pool="avg", **SIZES))
    )
    ours = varied(make_network("vit-24-3-2-patch4", 5, image_size=16))
    missing, _ = ours.load_state_dict(theirs.state_dict(), strict=False)
    assert not any(name.startswith(("blocks.", "patch_embed", "pos_embed")) for name in missing)
    last = []
    theirs.blocks[-1].register_forward_hook(lambda module, given, made: last.append(made))
    theirs.forward_features(pictures())
    torch.testing.assert_close(ours.forward_features(pictures()), last[0], **CLOSE)


def test_plain_transformers_of_timm_are_cut_into_their_self_attention_blocks():
    theirs = unfused(varied(VisionTransformer(embed_dim=24, num_heads=3, pre_norm=True, reg_tokens=2, **SIZES)))
    with torch.no_grad():
        expected = theirs.norm_pre(theirs.patch_embed(pictures()) + theirs.pos_embed[:, 3:])
        for block in theirs.blocks:
            expected = block(expected)
    made = with_class_attention(theirs)
    torch.testing.assert_close(made.forward_features(pictures()), expected, **CLOSE)
    assert isinstance(made, ClassAttentionTransformer) and made(pictures()).shape == (2, 5)
    drawn = make_network("vit_tiny_patch16_224", 5, image_size=32)
    kept = drawn.blocks[0].mlp.fc1.weight.clone()
    cut = with_class_attention(drawn)
    assert torch.equal(cut.blocks[0].mlp.fc1.weight, kept) and cut.grid == (2, 2)
    assert with_class_attention(cut) is cut


@torch.no_grad()
def test_a_plain_transformer_without_a_class_token_is_cut():
    without = dict(class_token=False, global_pool="avg")
    theirs = unfused(varied(VisionTransformer(embed_dim=24, num_heads=3, **without, **SIZES)))
    expected = theirs.patch_embed(pictures()) + theirs.pos_embed
    for block in theirs.blocks:
        expected = block(expected)
    torch.testing.assert_close(with_class_attention(theirs).forward_features(pictures()), expected, **CLOSE)


@pytest.mark.parametrize("kind", [Beit, Eva])
@torch.no_grad()
def test_beit_and_eva_with_positions_before_their_blocks_are_cut(kind):
    theirs = unfused(varied(kind(embed_dim=24, num_heads=3, **SIZES)))
    expected = theirs.patch_embed(pictures()) + theirs.pos_embed[:, 1:]
    for block in theirs.blocks:
        expected = block(expected)
    torch.testing.assert_close(with_class_attention(theirs).forward_features(pictures()), expected, **CLOSE)


@torch.no_grad()
def test_distilled_deit_is_cut_without_both_of_its_tokens():
    """Its blocks on patches and their positions alone; where its tokens are seen by nobody, timm's own output."""
    theirs = unfused(varied(VisionTransformerDistilled(embed_dim=24, num_heads=3, **SIZES)))
    expected = theirs.patch_embed(pictures()) + theirs.pos_embed[:, 2:]
    for block in theirs.blocks:
        expected = block(expected)
    made = with_class_attention(theirs)
    torch.testing.assert_close(made.forward_features(pictures()), expected, **CLOSE)

    def unseen(query, key, value, **_):
        scores = query @ key.mT / query.shape[-1] ** 0.5
        scores[..., : scores.shape[-1] - 16] = -torch.inf
        return scores.softmax(dim=-1) @ value

    theirs.norm = nn.Identity()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(F, "scaled_dot_product_attention", unseen)
        for block in theirs.blocks:
            block.attn.fused_attn = True
        timms = theirs.forward_features(pictures())
    torch.testing.assert_close(timms[:, 2:], expected, **CLOSE)
    cut = with_class_attention(make_network("deit_tiny_distilled_patch16_224", 5, image_size=32))
    assert cut.grid == (2, 2) and cut(pictures(32).float()).shape == (2, 5)


@pytest.mark.parametrize("images", [1, 3])
def test_fused_gated_attention_is_timms(images):
    """Values and gradients; of several images' tokens, positions are those in each image."""
    ours = varied(GatedAttention(24, 3, 16))
    theirs = GPSA(24, 3).double()
    theirs.load_state_dict(ours.state_dict())
    theirs.rel_indices = ours.get_rel_indices(16).repeat(1, images, images, 1)
    tokens = torch.randn(2, 16 * images, 24, dtype=torch.float64)
    gradients = []
    for attention in (ours, theirs):
        given = tokens.clone().requires_grad_()
        made = attention(given)
        (made * torch.linspace(-1, 1, made.numel(), dtype=torch.float64).view_as(made)).sum().backward()
        gradients.append((made, given.grad, *(parameter.grad for parameter in attention.parameters())))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, **CLOSE)
    torch.testing.assert_close(ours.positional().sum(dim=2), torch.ones(3, 16, dtype=torch.float64), **CLOSE)


@pytest.mark.parametrize("heads", [1, 2, 3, 4, 5, 9, 12, 16])
def test_heads_look_at_first_where_a_convolution_would(heads):
    """Each at a neighbour of its own: the kernel's places, as ConViT has them, and the nearest around them."""
    side = 11
    block = make_network(f"convit-{4 * heads}-{heads}-1-patch1", 2, image_size=side).blocks[0].attn
    middle = side * side // 2
    place = torch.arange(side * side)
    offsets = torch.stack([place % side - side // 2, place // side - side // 2]).float()
    seen = block.positional()[:, middle] @ offsets.T
    torch.testing.assert_close(seen, torch.tensor(neighbours(heads)), rtol=0, atol=0.02)
    assert len(set(neighbours(heads))) == heads
    kernel = isqrt(heads)
    timms = GPSA(4 * heads, heads)
    timms.local_init()
    torch.testing.assert_close(block.pos_proj.weight[: kernel**2], timms.pos_proj.weight[: kernel**2])
    assert torch.equal(block.v.weight, torch.eye(4 * heads))
    reach = sorted(x * x + y * y for x, y in neighbours(heads))
    assert reach == sorted(reach) and max(reach) <= {1: 0, 2: 1, 3: 1, 4: 0.5, 5: 2.5, 9: 2, 12: 4, 16: 4.5}[heads]


def test_other_layers_are_drawn_as_caits():
    torch.manual_seed(0)
    made = make_network("cait-192-4-1", 100)
    for name, parameter in made.named_parameters():
        linear = name.endswith("weight") and "norm" not in name and "patch_embed" not in name
        if linear or name in ("pos_embed", "cls_token"):
            assert parameter.std().item() == pytest.approx(0.02, rel=0.1 if parameter.numel() > 200 else 0.5), name
        elif name.endswith("bias") and "patch_embed" not in name:
            assert not parameter.any(), name
    for dim, expected in ((64, 0.0884), (190, 0.0513)):
        drawn = make_network(f"vit-{dim}-2-1", 100)
        for layer in (drawn.head, drawn.blocks[0].mlp.fc1, drawn.blocks_token_only[1].mlp.fc2):
            assert layer.weight.std().item() == pytest.approx(expected, rel=0.05)
        assert drawn.pos_embed.std().item() == pytest.approx(0.02, rel=0.1)
    for depth, expected in ((18, 0.1), (24, 1e-5), (25, 1e-6)):
        made = make_network(f"cait-8-2-{depth}", 2)
        scales = [getattr(block, name) for block in (made.blocks[0], *made.blocks_token_only) for name in GAMMAS]
        torch.testing.assert_close(torch.stack(scales), torch.full((6, 8), expected))
    for name in ("convit-8-2-1", "vit-8-2-1"):
        assert all((getattr(block, g) == 1).all() for block in make_network(name, 2).blocks_token_only for g in GAMMAS)


@pytest.mark.parametrize("name", ["convit-24-3-2", "cait-24-3-2", "vit-24-3-2"])
def test_stochastic_depth_leaves_out_branches_of_feature_blocks_alone(name):
    made = set_stochastic_depth(make_network(name, 5, image_size=16), 0.25)
    drops = [part for part in made.blocks.modules() if isinstance(part, DropPath)]
    assert len(drops) in (2, 4) and {part.drop_prob for part in drops} == {0.25}
    kept = [part for part in made.modules() if isinstance(part, LayerScaleBlockClassAttn)]
    assert len(kept) == 2 and not any(isinstance(part.drop_path, DropPath) for part in kept)
    images = pictures().float()
    assert not torch.equal(made.train()(images), made(images)) and torch.equal(made.eval()(images), made(images))


def test_positions_and_class_tokens_do_not_decay():
    made = make_network("convit-12-3-1", 5, image_size=16)
    first, second = adam(made, decay=0.05, decay_all=False).param_groups
    spared = {id(parameter) for parameter in second["params"]}
    assert (first["weight_decay"], second["weight_decay"]) == (0.05, 0.0)
    for name, parameter in made.named_parameters():
        assert (id(parameter) in spared) == (parameter.ndim == 1 or name in ("pos_embed", "cls_token")), name
    assert len(first["params"]) + len(second["params"]) == len(list(made.parameters()))


@pytest.mark.parametrize(
    ("name", "side", "words"),
    [
        ("convit-24-3-2-patch3", 16, "patches of 3 pixels do not divide images of 16; -patchN with N of 1, 2, 4, 8"),
        ("convit-24-3-2-patch32", 16, "patches of 32 pixels do not divide"),
        ("vit-24-5-2", 16, "a dimension of 24 is not divided by 5 heads"),
        ("cait-24-48-2", 16, "a dimension of 24 is not divided by 48 heads"),
        ("convit-24-0-2", 16, "heads: 0 of convit-24-0-2 is below 1"),
        ("convit-4097-1-2", 16, "dimension: 4097 of convit-4097-1-2 is above 4096"),
        ("vit-514-257-2", 16, "heads: 257 of vit-514-257-2 is above 256"),
        ("vit-24-3-2-patch0", 16, "patch: 0 of vit-24-3-2-patch0 is below 1"),
        ("vit-24-3-2-patch1025", 2050, "patch: 1025 of vit-24-3-2-patch1025 is above 1024"),
        ("convit-24-3-1001", 16, "depth: 1001 of convit-24-3-1001 is above 1000"),
        ("vit-xs-24", 16, "'vit-xs-24' is unknown"),
    ],
)
def test_names_of_what_cannot_be_are_errors(name, side, words):
    with pytest.raises(InputError, match=words):
        make_network(name, 5, image_size=side)


def test_what_does_not_fit_is_one_error():
    with pytest.raises(InputError, match="15 tokens are no square"):
        GatedAttention(24, 3, 15)
    with pytest.raises(InputError, match="images: of 16×8 pixels for a transformer of 16×16"):
        make_network("vit-12-3-1", 5, image_size=16)(torch.rand(1, 3, 16, 8))
    with pytest.raises(InputError, match="ResNet is no vision transformer with self-attention blocks"):
        with_class_attention(timm.create_model("resnet18", num_classes=3))
    for kind, how in ((Beit, "use_rel_pos_bias"), (Beit, "use_shared_rel_pos_bias"), (Eva, "use_rot_pos_emb")):
        with pytest.raises(InputError, match=f"this {kind.__name__} has positions in the attention of its blocks"):
            with_class_attention(kind(embed_dim=24, num_heads=3, **SIZES, **{how: True}))
    parallel = VisionTransformer(embed_dim=24, num_heads=3, block_fn=ParallelThingsBlock, **SIZES)
    with pytest.raises(InputError, match="a ParallelThingsBlock is no block of self-attention"):
        with_class_attention(parallel)
    with pytest.raises(InputError, match="patches made by a convolutional network"):
        with_class_attention(timm.create_model("vit_tiny_r_s16_p8_224", num_classes=3))
    with pytest.raises(InputError, match="stochastic_depth: Linear has no residual branches"):
        set_stochastic_depth(nn.Linear(2, 2), 0.1)
    with pytest.raises(InputError, match=r"stochastic_depth: 1 is outside \[0, 1\)"):
        set_stochastic_depth(make_network("vit-12-3-1", 5), 1)
