"""The fast network against a plain reference, its whitening against numpy's eigendecomposition, and its encoders."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from hybridgen.networks.autoencoder import (
    Architecture,
    SamosaArchitecture,
    SamosaAutoencoder,
    SemanticAutoencoder,
    SemanticClassifier,
)
from hybridgen.networks.classifiers import Classifier
from hybridgen.networks.fast import (
    EPSILON,
    FastBlock,
    FastClassifier,
    FastEncoder,
    FastTrunk,
    Whitening,
    patch_covariance,
    whitening_filters,
)
from hybridgen.networks.frozen import frozen
from hybridgen.networks.registry import default_network, make_encoder, make_network, make_trunk
from hybridgen.training.ema import EMA
from hybridgen.types import InputError

STATISTICS = {"mean": (0.4914, 0.4822, 0.4465), "std": (0.2470, 0.2435, 0.2616)}


def images_of(*shape, seed=0):
    """Noise whose neighbours and channels are alike, as in photographs; rows and columns differ in how much."""
    noise = torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    noise[:, 1:] += 0.5 * noise[:, :1]
    noise[..., 1:, :] += 0.8 * noise[..., :-1, :]
    noise[..., 1:] += 0.3 * noise[..., :-1]
    return noise


def levels_of(*shape, seed=0):
    return images_of(*shape, seed=seed).mul(40).add(128).clamp(0, 255).to(torch.uint8)


def whitened(module, seed=1):
    covariance = patch_covariance(images_of(20, 3, 12, 9, seed=seed))
    for part in module.modules():
        if isinstance(part, Whitening):
            part.whiten(covariance)
    return module


def varied(module, seed=0):
    """Random kernels, and batch-norms with statistics and weights of their own: what is left out or exchanged shows."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, nn.Conv2d):
                part.weight.copy_(0.1 * torch.randn(part.weight.shape, generator=generator))
            elif isinstance(part, nn.BatchNorm2d):
                for tensor, low in ((part.weight, 0.5), (part.bias, -0.3), (part.running_mean, -0.1)):
                    tensor.copy_(low + torch.rand(tensor.shape, generator=generator))
                part.running_var.copy_(0.5 + torch.rand(part.running_var.shape, generator=generator))
    return module


def made(name, classes=5):
    torch.manual_seed(0)
    return whitened(make_network(name, classes)).double()


def patches_of(images):
    """One by one."""
    array = np.asarray(images, dtype=np.float64)
    _, _, height, width = array.shape
    return np.array([i[:, y : y + 2, x : x + 2].ravel() for i in array for y in range(height - 1)
                     for x in range(width - 1)])  # fmt: skip


def batches():
    return images_of(6, 3, 7, 5)


# --- whitening ------------------------------------------------------------------------------------------


def test_covariance_is_numpys():
    images = batches()
    expected = np.cov(patches_of(images), rowvar=False, bias=True)
    np.testing.assert_allclose(patch_covariance(images).numpy(), expected, rtol=1e-10, atol=1e-12)


def test_covariance_of_8_bit_images_does_not_depend_on_their_order():
    """Nor on how they are summed: 300 are more than one piece."""
    levels = levels_of(300, 3, 5, 8)
    covariance = patch_covariance(levels)
    order = torch.randperm(300, generator=torch.Generator().manual_seed(0))
    assert torch.equal(patch_covariance(levels[order]), covariance)
    expected = np.cov(patches_of(levels), rowvar=False, bias=True)
    np.testing.assert_allclose(covariance.numpy(), expected, rtol=1e-10)


def test_filters_are_numpys_eigenvectors_over_the_roots_of_their_eigenvalues():
    covariance = patch_covariance(batches())
    values, vectors = np.linalg.eigh(covariance.numpy())
    filters = whitening_filters(covariance)
    assert filters.shape == (24, 3, 2, 2) and torch.equal(filters[12:], -filters[:12])
    for row, value, vector in zip(filters[:12].flatten(1).numpy(), values[::-1], vectors.T[::-1], strict=True):
        expected = vector * np.sign(vector[np.abs(vector).argmax()]) / np.sqrt(value + EPSILON)
        np.testing.assert_allclose(row, expected, rtol=1e-6, atol=1e-9)


def test_answers_to_patches_are_uncorrelated_and_of_variance_one():
    """Convolved with the images, rows and columns where they belong; in float64."""
    images = batches()
    filters = whitening_filters(patch_covariance(images))
    answers = F.conv2d(images, filters)[:, :12].movedim(1, 3).reshape(-1, 12)
    values = np.linalg.eigvalsh(np.cov(patches_of(images), rowvar=False))[::-1]
    covariance = np.cov(answers.numpy(), rowvar=False, bias=True)
    np.testing.assert_allclose(covariance, np.diag(values / (values + EPSILON)), atol=1e-4)
    np.testing.assert_allclose(covariance, np.eye(12), atol=0.02)


def test_what_patches_never_show_is_not_blown_up():
    grey = batches()[:, :1].expand(-1, 3, -1, -1)
    filters = whitening_filters(patch_covariance(grey))
    assert filters.isfinite().all() and filters.abs().max() <= EPSILON**-0.5
    answers = F.conv2d(grey, filters)[:, :12].movedim(1, 3).reshape(-1, 12)
    variances = answers.var(dim=0)
    assert (variances[:4] > 0.9).all() and (variances[4:] < 1e-6).all()


def test_the_stem_continues_images_by_their_last_row_and_column():
    stem = whitened(Whitening().double())
    images = images_of(2, 3, 4, 6)
    larger = torch.cat([images, images[:, :, -1:]], dim=2)
    larger = torch.cat([larger, larger[..., -1:]], dim=3)
    torch.testing.assert_close(stem(images), F.gelu(F.conv2d(larger, stem.filters)))
    assert stem(images).shape == (2, 24, 4, 6) and not list(stem.parameters())


def test_images_without_patches_are_refused():
    for shape in ((0, 3, 8, 8), (4, 3, 1, 8), (4, 3, 8, 1)):
        with pytest.raises(InputError, match=rf"^images: {shape[0]} of {shape[2]}×{shape[3]}; patches of 2×2"):
            patch_covariance(torch.zeros(shape))


def test_a_network_that_was_shown_no_images_is_refused_and_not_guessed():
    """Until it has whitened some, or its weights were loaded; copies and averages of it as well."""
    network = make_network("fast-8-16", 3)
    images = torch.randn(4, 3, 16, 20)
    for use in (network, copy.deepcopy(network), EMA(network, 0.5), frozen(network), network.encoder):
        with pytest.raises(InputError, match=r"^network: a fast network whose stem knows no images yet; .*`whiten`"):
            use(images)
    weights = network.eval().whiten(images).state_dict()
    assert network(images).isfinite().all() and EMA(network, 0.5)(images).isfinite().all()
    again = make_network("fast-8-16", 3)
    again.load_state_dict(weights)
    assert torch.equal(again.eval()(images), network(images))
    assert "encoder.trunk.stem.filters" in weights and "encoder.trunk.stem.filters" not in dict(
        network.named_parameters()
    )


def test_a_network_whitens_images_as_it_sees_them():
    images = torch.randn(30, 3, 8, 11) * torch.tensor([1.0, 2.0, 0.5]).view(3, 1, 1)
    network = make_network("fast-8-16", 3)
    assert network.whiten(images) is network
    expected = whitening_filters(patch_covariance(images.double())).float()
    assert torch.equal(network.encoder.trunk.stem.filters, expected)


# --- the network ----------------------------------------------------------------------------------------


def by_hand(network, images, training):
    """Every operation in its place, of one convolution after the other."""

    def norm(x, layer):
        mean, var = layer.running_mean.view(1, -1, 1, 1), layer.running_var.view(1, -1, 1, 1)
        if training:
            mean, var = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), unbiased=False, keepdim=True)
        return (x - mean) / (var + 1e-5).sqrt() * layer.weight.view(1, -1, 1, 1) + layer.bias.view(1, -1, 1, 1)

    def gelu(x):
        return x * (1 + torch.erf(x / math.sqrt(2))) / 2

    def halved(x):
        x = F.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2), value=-math.inf)
        return torch.stack([x[:, :, row::2, column::2] for row in (0, 1) for column in (0, 1)]).amax(dim=0)

    trunk = network.encoder.trunk
    x = torch.cat([images, images[:, :, -1:]], dim=2)
    x = gelu(F.conv2d(torch.cat([x, x[..., -1:]], dim=3), trunk.stem.filters))
    for block in trunk.blocks:
        for number, (conv, batch_norm) in enumerate(zip(block.convs, block.norms, strict=True)):
            x = F.conv2d(x, conv.weight, padding=1)
            x = gelu(norm(x if number else halved(x), batch_norm))
    return x, x.mean((2, 3)) @ network.head.weight.T + network.head.bias


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("name", "size"), [("fast-5-7-6", (17, 22)), ("fast-4-6x3", (16, 19)), ("fast-6x1", (18, 16))])
def test_forward_is_the_reference(name, size, training):
    network = varied(made(name)).train(training)
    images = images_of(4, 3, *size)
    features, logits = by_hand(network, images, training)
    torch.testing.assert_close(network.forward_features(images), features)
    torch.testing.assert_close(network(images), logits)
    torch.testing.assert_close(network.forward_head(features), logits)
    torch.testing.assert_close(network.forward_head(features, pre_logits=True), features.mean((2, 3)))


@pytest.mark.parametrize("size", [(16, 16), (17, 31), (32, 32), (40, 24), (64, 48)])
def test_maps_are_halved_by_every_block_at_any_size(size):
    network = made("fast-4-4-4-4-4-4x1", classes=2)
    shapes = []
    for block in network.encoder.trunk.blocks:
        block.register_forward_hook(lambda _, __, output: shapes.append(tuple(output.shape[2:])))
    assert network(images_of(2, 3, *size)).shape == (2, 2)
    assert shapes == [tuple(-(-side // 2**k) for side in size) for k in range(1, 7)]
    assert [stage["reduction"] for stage in network.feature_info] == [2, 4, 8, 16, 32, 64]


def test_size_of_the_default():
    """0.30 M parameters, and of 32×32 pixels some 20 M multiply-adds."""
    network = whitened(make_network("fast", 10))
    kernels = 9 * sum(a * b + b * b for a, b in ((24, 32), (32, 64), (64, 128)))
    assert sum(p.numel() for p in network.parameters()) == kernels + 2 * 2 * (32 + 64 + 128) + 10 * (128 + 1)
    assert round((kernels + 2 * 2 * 224 + 1290) / 1e6, 2) == 0.29
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.randn(1, 3, 32, 32))
    areas = ((24, 32, 32, 16), (32, 64, 16, 8), (64, 128, 8, 4))
    expected = 12 * 24 * 32**2 + sum(9 * (a * b * s**2 + b * b * t**2) for a, b, s, t in areas) + 1280
    assert counter.get_total_flops() == 2 * expected and 20e6 < expected < 25e6


@pytest.mark.parametrize(
    ("name", "widths", "convolutions"),
    [
        ("fast", (32, 64, 128), 2),
        ("fast-32-64-128x2", (32, 64, 128), 2),
        ("fast-5", (5,), 2),
        ("fast-8-6-4-7x3", (8, 6, 4, 7), 3),
        ("fast-8-16x1", (8, 16), 1),
    ],
)
def test_names(name, widths, convolutions):
    network = make_network(name, 7)
    assert isinstance(network, FastClassifier) and (network.num_classes, network.num_features) == (7, widths[-1])
    blocks = network.encoder.trunk.blocks
    assert [[conv.weight.shape[:2] for conv in block.convs] for block in blocks] == [
        [(after, before), *[(after, after)] * (convolutions - 1)]
        for before, after in zip((24, *widths), widths, strict=False)
    ]
    assert [stage["num_chs"] for stage in network.feature_info] == list(widths)


def test_sizes_below_one_are_refused():
    for name, says in (("fast-0", "width: 0"), ("fast-8-0-8", "width: 0"), ("fast-8x0", "convolutions: 0")):
        with pytest.raises(InputError, match=f"^{says} is below 1"):
            make_network(name, 10)
    with pytest.raises(InputError, match=r"^widths: none"):
        FastTrunk((), mean=None, std=None)
    with pytest.raises(InputError, match=r"^std: None beside the other"):
        FastTrunk(mean=(0.5,) * 3, std=None)


def test_the_default_depends_on_the_size_of_the_images_alone():
    assert [default_network(size) for size in (1, 16, 17, 512)] == ["leaky-wrn-10-1"] * 2 + ["fast"] * 2
    assert [default_network(size, small="wrn-10-1") for size in (16, 17)] == ["wrn-10-1", "fast"]


@pytest.mark.parametrize(("before", "after"), [(6, 4), (4, 6), (5, 5)])
def test_convolutions_hand_on_their_input_at_first(before, after):
    torch.manual_seed(0)
    block = FastBlock(before, after, 2)
    x = torch.randn(3, before, 6, 8)
    same = min(before, after)
    assert torch.equal(block.convs[0](x)[:, :same], x[:, :same])
    hidden = torch.randn(3, after, 3, 4)
    torch.testing.assert_close(block.convs[1](hidden), hidden)
    drawn = block.convs[0].weight[same:]
    assert len(drawn) == after - same and (len(drawn) == 0 or 0 < drawn.std() < (9 * before) ** -0.5)


def test_layouts_and_bfloat16_change_next_to_nothing():
    network = varied(made("fast-16-16-16")).float().eval()
    images = images_of(8, 3, 20, 28).float()
    expected = network(images)
    last = copy.deepcopy(network).to(memory_format=torch.channels_last)
    torch.testing.assert_close(last(images.to(memory_format=torch.channels_last)), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(last(images), expected, rtol=1e-4, atol=1e-5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = last(images)
    assert half.dtype == torch.bfloat16
    assert (half - expected).abs().max() < 0.05 * expected.std() + 0.02 * expected.abs().max()


def test_gradient_reaches_the_images_and_every_parameter():
    network = varied(made("fast-4-6-5"))
    images = images_of(3, 3, 18, 16).requires_grad_()
    network(images).square().sum().backward()
    assert images.grad.flatten(1).any(dim=1).all()
    for name, parameter in network.named_parameters():
        assert parameter.grad.any(), name
    assert network.encoder.trunk.stem.filters.grad is None


# --- encoders -------------------------------------------------------------------------------------------


def test_an_encoder_is_the_classifiers_body_on_standardised_images():
    encoder = varied(whitened(make_encoder("fast-4-6-5", **STATISTICS))).double()
    assert isinstance(encoder, FastEncoder) and encoder.channels == 5
    network = made("fast-4-6-5")
    weights = {name: tensor for name, tensor in encoder.state_dict().items() if "normalize" not in name}
    network.encoder.load_state_dict(weights)
    images = torch.rand(3, 3, 16, 24, dtype=torch.float64)
    standardised = encoder.trunk.normalize(images)
    assert torch.equal(encoder.features(images), network.forward_features(standardised))
    assert torch.equal(encoder(images), network.forward_head(encoder.features(images), pre_logits=True))


def test_encoders_and_trunks_of_a_quarter_of_the_sides_are_the_first_two_blocks():
    whole = varied(whitened(make_encoder("fast-4-6-5", **STATISTICS)))
    parts = make_encoder("fast-4-6-5", **STATISTICS, quarter=True), make_trunk("fast-4-6-5", **STATISTICS)
    images = torch.rand(3, 3, 16, 24)
    seen = []
    whole.trunk.blocks[1].register_forward_hook(lambda _, __, output: seen.append(output))
    whole.eval()(images)
    for part in parts:
        trunk = part.trunk if isinstance(part, FastEncoder) else part
        weights = whole.trunk.state_dict()
        trunk.load_state_dict({name: weights[name] for name in trunk.state_dict()})
        maps = part.eval().features(images) if isinstance(part, FastEncoder) else part.eval()(images)
        assert part.channels == 6 and maps.shape == (3, 6, 4, 6) and torch.equal(maps, seen[0])
    assert parts[0](images).shape == (3, 6)


@pytest.mark.parametrize("name", ["fast-4-6-5", "fast-4-6-5x3", "fast-4-6"])
def test_samosas_cut_is_behind_the_last_convolution_of_the_second_block(name):
    encoder = varied(whitened(make_encoder(name, **STATISTICS))).double()
    trunk, convolutions = encoder.trunk, encoder.trunk.blocks[1].convs
    hooked = []
    for conv in convolutions[-2:]:
        conv.register_forward_hook(lambda _, __, output: hooked.append(output))
    images = torch.rand(3, 3, 16, 24, dtype=torch.float64)
    expected = encoder(images)
    first = F.max_pool2d(hooked[0], 2) if len(convolutions) == 2 else hooked[0]
    before, semantic = trunk.last_two(images)
    assert torch.equal(before, first) and torch.equal(semantic, hooked[1])
    assert before.shape == semantic.shape == (3, 6, 4, 6)
    torch.testing.assert_close(encoder.pooled(semantic), expected)
    reached = torch.autograd.grad(before.square().sum(), list(trunk.parameters()), allow_unused=True)
    unreached = {name for (name, _), g in zip(trunk.named_parameters(), reached, strict=True) if g is None}
    last = len(convolutions) - 1
    later = {f"blocks.1.convs.{last}.weight", *(f"blocks.1.norms.{n}.{w}" for n in (last - 1, last)
                                                for w in ("weight", "bias"))}  # fmt: skip
    assert unreached == later | {name for name, _ in trunk.named_parameters() if name.startswith("blocks.2")}


@pytest.mark.parametrize("style", ["semantic", "nonsemantic"])
def test_scimix_with_a_fast_network(style):
    architecture = Architecture(
        image_size=32,
        classes=4,
        network="fast-4-6-5",
        nonsemantic_channels=2,
        generator_channels=(4, 6, 4),
        style=style,
    )
    autoencoder = whitened(SemanticAutoencoder(architecture)).eval()
    images = torch.rand(2, 3, 32, 32)
    codes = autoencoder(images)
    shapes = [(2, 5), (2, 2, 8, 8)] if style == "semantic" else [(2, 6, 8, 8), (2, 5)]
    assert [codes.semantic.shape, codes.nonsemantic.shape] == shapes
    assert codes.predictions.shape == codes.consistency.shape == (2, 4)
    assert autoencoder.decode(codes.semantic, codes.nonsemantic).shape == (2, 3, 32, 32)


def test_samosa_with_a_fast_network():
    architecture = SamosaArchitecture(image_size=20, classes=4, network="fast-4-16-5", momentum=0.02)
    autoencoder = varied(whitened(SamosaAutoencoder(architecture))).eval()
    images = torch.rand(2, 3, 20, 20)
    features, gates = autoencoder.classifier(images), autoencoder.nonsemantic_encoder(images)
    assert features.semantic.shape == features.before.shape == (2, 16, 5, 5) and gates.shape == (2, 8)
    assert autoencoder.decoder.first(features.semantic).shape == features.before.shape
    assert autoencoder.decode(features.semantic, gates).shape == images.shape
    for name, module in autoencoder.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.momentum == (0.02 if name.startswith("classifier") else 0.1), name
    theirs = SemanticClassifier(Architecture(image_size=32, classes=4, network="fast-4-16-5")).eval()
    theirs.load_state_dict(autoencoder.classifier.state_dict())
    scimixs = theirs(images)
    assert torch.equal(features.predictions, scimixs.predictions)
    assert torch.equal(features.consistency, scimixs.consistency)


def test_under_one_seed_e_c_and_c_are_the_classifier_of_the_recipes():
    """So that they can be compared, and one can start from the other."""
    torch.manual_seed(3)
    ours = whitened(SemanticClassifier(Architecture(classes=5, network="fast-4-6-5")))
    torch.manual_seed(3)
    theirs = whitened(Classifier(make_network("fast-4-6-5", 5), **STATISTICS, heads=2))
    images = torch.rand(3, 3, 24, 16)
    for train in (True, False):
        for own, other in zip(ours.train(train)(images)[1:3], theirs.train(train)(images), strict=True):
            assert torch.equal(own, other)
