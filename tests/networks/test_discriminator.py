"""The discriminator against table A.11."""

from itertools import pairwise

import pytest
import torch
from torch import nn

from hybridgen.networks.discriminator import Discriminator, DownResBlock, FeatureDiscriminator
from hybridgen.networks.fast import FastTrunk, patch_covariance
from hybridgen.networks.wide_resnet import WideResNet
from hybridgen.types import InputError

STATISTICS = {"mean": (0.5, 0.4, 0.3), "std": (0.25, 0.2, 0.3)}


def counted_by_hand(filters: tuple[int, ...], side: int) -> int:
    total = (3 * 9 + 1) * filters[0]
    for before, after in pairwise(filters):
        total += (9 * before + 1) * before + (9 * before + 1) * after + before * after
    units = filters[-1]
    return total + (units * side**2 + 1) * units + units + 1


@pytest.mark.parametrize(
    ("size", "filters", "side"),
    [
        (16, (32, 64, 128), 2),
        (32, (32, 64, 128, 256), 2),
        (48, (32, 64, 128, 256), 3),
        (64, (32, 64, 128, 256, 256), 2),
        (96, (32, 64, 128, 256, 256), 3),
    ],
)
def test_shapes_and_parameters_of_table_a11(size, filters, side):
    discriminator = Discriminator(size, **STATISTICS)
    shapes = []
    for module in (discriminator.stem, *discriminator.blocks):
        module.register_forward_hook(lambda _, __, out: shapes.append(tuple(out.shape[1:])))
    assert discriminator(torch.rand(2, 3, size, size)).shape == (2,)
    assert shapes == [(count, size >> i + 1, size >> i + 1) for i, count in enumerate(filters)]
    assert shapes[-1][1:] == (side, side)
    count = sum(parameter.numel() for parameter in discriminator.parameters())
    assert count == counted_by_hand(filters, side)
    if size == 32:
        assert count == 887_841


def test_width_multiplies_the_filters():
    discriminator = Discriminator(32, width=0.25, **STATISTICS)
    count = sum(parameter.numel() for parameter in discriminator.parameters())
    assert count == counted_by_hand((8, 16, 32, 64), 2)
    assert Discriminator(16, width=0.001, **STATISTICS)(torch.rand(2, 3, 16, 16)).shape == (2,)


def test_block_by_the_book():
    torch.manual_seed(0)
    block = DownResBlock(3, 5).double()
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    before = x.clone()
    y = nn.functional.leaky_relu(block.conv1(x), 0.2)
    y = nn.functional.leaky_relu(block.conv2(y), 0.2)
    pooled = x.unflatten(3, (3, 2)).unflatten(2, (3, 2)).mean((3, 5))
    torch.testing.assert_close(block(x), (block.shortcut(pooled) + y) / 2**0.5, rtol=1e-12, atol=1e-12)
    assert torch.equal(x, before)


def test_a_block_that_does_not_halve_computes_what_the_halving_one_skips():
    """Its second convolution at every place, of which every other is the halving one's."""
    torch.manual_seed(0)
    block = DownResBlock(3, 5).double()
    x = torch.randn(2, 3, 6, 8, dtype=torch.float64)
    whole = block(x, halve=False) * 2**0.5 - block.shortcut(x)
    halved = block(x) * 2**0.5 - block.shortcut(nn.functional.avg_pool2d(x, 2))
    assert whole.shape == (2, 5, 6, 8)
    torch.testing.assert_close(whole[:, :, ::2, ::2], halved, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("size", [16, 32, 48, 96])
def test_images_of_half_the_size_are_judged_with_the_same_weights(size):
    discriminator = Discriminator(size, width=0.125, **STATISTICS)
    shapes = []
    for module in (discriminator.stem, *discriminator.blocks):
        module.register_forward_hook(lambda _, __, out: shapes.append(out.shape[2]))
    assert discriminator(torch.rand(2, 3, size // 2, size // 2)).shape == (2,)
    count = len(discriminator.blocks)
    assert shapes == [*(size // 2 >> i + 1 for i in range(count)), shapes[-2]]  # the last one leaves the size as it is


def test_samples_do_not_meet_and_all_parameters_learn():
    torch.manual_seed(0)
    discriminator = Discriminator(16, width=0.25, **STATISTICS).double()
    images = torch.rand(3, 3, 16, 16, dtype=torch.float64)
    logits = discriminator(images)
    alone = torch.cat([discriminator(image[None]) for image in images])
    torch.testing.assert_close(logits, alone, rtol=1e-10, atol=1e-10)
    logits.sum().backward()
    for name, parameter in discriminator.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), name


@pytest.mark.parametrize(
    ("size", "nearest"), [(8, "16"), (0, "16"), (20, "16 and 32"), (24, "16 and 32"), (100, "96 and 112"), (-16, "16")]
)
def test_impossible_size_names_the_nearest(size, nearest):
    with pytest.raises(InputError, match=rf"^image_size: {size} .*nearest: {nearest}$"):
        Discriminator(size, **STATISTICS)


def test_other_bad_input():
    with pytest.raises(InputError, match=r"^images: 32×32 for a discriminator of size 16, or half of it"):
        Discriminator(16, **STATISTICS)(torch.rand(2, 3, 32, 32))
    with pytest.raises(InputError, match=r"^images: 8×16 for"):
        Discriminator(16, **STATISTICS)(torch.rand(2, 3, 8, 16))
    with pytest.raises(InputError, match=r"^width: 0\.0"):
        Discriminator(16, width=0.0, **STATISTICS)
    with pytest.raises(InputError, match=r"^channels: empty"):
        Discriminator(16, channels=(), **STATISTICS)


# --- of feature maps -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("trunk", "ends", "sides"),
    [
        (lambda: FastTrunk((8, 12, 16), **STATISTICS), (0, 1, 2), ((12, 8), (6, 4), (3, 2))),
        (lambda: FastTrunk((8, 12), **STATISTICS), (0, 1), ((12, 8), (6, 4))),
        (lambda: WideResNet(22, 1, **STATISTICS), (2, 5, 8), ((24, 16), (12, 8), (6, 4))),
    ],
)
def test_maps_are_what_each_group_of_a_trunk_makes(trunk, ends, sides):
    torch.manual_seed(0)
    trunk, expected = trunk().eval(), []
    if isinstance(trunk, FastTrunk):
        trunk.stem.whiten(patch_covariance(torch.randn(64, 3, 8, 8)))
    for block in ends:
        trunk.blocks[block].register_forward_hook(lambda _, __, out: expected.append(out.clone()))
    images = torch.rand(2, 3, 24, 16)
    last = trunk(images)
    made, kept = [each.clone() for each in expected], len(expected)
    maps = trunk.maps(images)
    assert kept == len(maps) == len(ends) and torch.equal(maps[-1], last)
    for each, other, width, side in zip(maps, made, trunk.widths, sides, strict=True):
        assert torch.equal(each, other) and each.shape == (2, width, *side)


def test_a_logit_of_each_map_depends_on_that_map_and_on_the_class():
    torch.manual_seed(0)
    judge = FeatureDiscriminator((4, 6), 3, channels=5).double()
    count = sum(weight.numel() for weight in judge.parameters())
    assert count == sum(width * 5 + 5 + 5 * 5 * 9 + 5 + 5 + 1 + 3 * 5 for width in (4, 6))
    maps = [torch.randn(2, 4, 6, 4, dtype=torch.float64), torch.randn(2, 6, 3, 2, dtype=torch.float64)]
    classes = torch.eye(3, dtype=torch.float64)[[0, 2]]
    logits = judge(maps, classes)
    assert logits.shape == (2, 2)
    other = judge([maps[0], torch.randn_like(maps[1])], classes)
    assert torch.equal(other[:, 0], logits[:, 0]) and (other[:, 1] != logits[:, 1]).all()
    assert (judge(maps, classes.flip(1)) != logits).all()
    half = (judge(maps, classes) + judge(maps, classes.flip(1))) / 2
    torch.testing.assert_close(judge(maps, (classes + classes.flip(1)) / 2), half)  # of probabilities: their mean
