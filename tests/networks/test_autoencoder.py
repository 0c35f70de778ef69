"""SciMix's auto-encoder against tables A.7 to A.10, and either code as the style; SAMOSA's against A.1 to A.6."""

from dataclasses import FrozenInstanceError
from itertools import pairwise

import pytest
import torch

from hybridgen.networks.autoencoder import (
    METHODS,
    Architecture,
    SamosaArchitecture,
    SamosaAutoencoder,
    SemanticAutoencoder,
    SemanticClassifier,
    check_described,
)
from hybridgen.types import InputError

TINY = {"network": "leaky-wrn-10-1", "nonsemantic_channels": 2, "generator_channels": (4, 6, 4)}
SAMOSA = {"image_size": 16, "classes": 4, "network": "leaky-wrn-10-1"}


@pytest.fixture
def images():
    return torch.rand(3, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def tiny(**fields):
    torch.manual_seed(0)
    return SemanticAutoencoder(Architecture(**{"image_size": 16, "classes": 4} | TINY | fields)).double()


def parameters(module):
    return sum(parameter.numel() for parameter in module.parameters())


def test_parameters_are_those_of_the_tables():
    """The defaults, 10 classes of 32×32: E_c (A.8), C (A.7), E_r (A.9) and G (A.10)."""
    autoencoder = SemanticAutoencoder(Architecture())
    trunk = 1_466_064
    assert parameters(autoencoder.classifier.encoder) == trunk + 2 * 128
    assert parameters(autoencoder.classifier.heads) == 2 * 10 * (128 + 1)
    assert parameters(autoencoder.nonsemantic_encoder) == trunk + 8 * (128 + 1)
    assert parameters(autoencoder.generator) == 528_267
    assert parameters(autoencoder) == 2 * trunk + 256 + 2580 + 1032 + 528_267 == 3_464_263


@pytest.mark.parametrize("size", [16, 32, 64, 96])
def test_shapes_at_every_size(size):
    autoencoder = tiny(image_size=size).float().eval()
    codes = autoencoder(torch.rand(2, 3, size, size))
    assert codes.semantic.shape == (2, 64)
    assert codes.nonsemantic.shape == (2, 2, size // 4, size // 4)
    assert codes.predictions.shape == codes.consistency.shape == (2, 4)
    decoded = autoencoder.decode(codes.semantic, codes.nonsemantic)
    assert decoded.shape == (2, 3, size, size)
    assert decoded.min() >= 0 and decoded.max() <= 1


def test_shapes_of_the_tables():
    autoencoder = SemanticAutoencoder(Architecture()).eval()
    with torch.no_grad():
        codes = autoencoder(torch.rand(1, 3, 32, 32))
    assert codes.semantic.shape == (1, 128) and codes.nonsemantic.shape == (1, 8, 8, 8)
    assert codes.predictions.shape == codes.consistency.shape == (1, 10)


@pytest.mark.parametrize("size", [16, 32])
def test_structural_semantic_code_flips_the_roles(size):
    """Table A.14: z_c is the map that G starts from, z_r the vector that modulates it; C sees the mean of the map."""
    autoencoder = tiny(image_size=size, style="nonsemantic").eval()
    codes = autoencoder(torch.rand(2, 3, size, size, dtype=torch.float64))
    assert codes.semantic.shape == (2, 64, size // 4, size // 4) and codes.nonsemantic.shape == (2, 64)
    assert autoencoder.decode(codes.semantic, codes.nonsemantic).shape == (2, 3, size, size)
    predictions, consistency = autoencoder.classifier.heads(codes.semantic.mean((2, 3)))
    assert torch.equal(codes.predictions, predictions) and torch.equal(codes.consistency, consistency)


def test_semantic_code_is_the_style_and_the_feature_space_of_the_classifier(images):
    autoencoder = tiny().eval()
    codes = autoencoder(images)
    assert torch.equal(codes.semantic, autoencoder.classifier.encoder(images))
    assert torch.equal(codes.nonsemantic, autoencoder.nonsemantic_encoder(images))
    heads = autoencoder.classifier.heads
    assert torch.equal(codes.predictions, heads.predictions(codes.semantic))
    assert torch.equal(codes.consistency, heads.consistency(codes.semantic))
    decoded = autoencoder.decode(codes.semantic, codes.nonsemantic)
    assert torch.equal(decoded, autoencoder.generator(codes.nonsemantic, codes.semantic))


def test_only_the_last_two_blocks_double_the_size():
    for channels in ((4, 4), (4, 4, 4, 4)):
        blocks = tiny(generator_channels=channels).generator.blocks
        assert [block.upsample for block in blocks] == [False] * (len(channels) - 2) + [True, True]
        assert not any(block.between for block in blocks)


@pytest.mark.parametrize("size", [16, 32, 96])
def test_the_last_two_blocks_double_the_size_between_their_convolutions_if_so_asked(size):
    autoencoder = tiny(image_size=size, upsampling="between").float().eval()
    assert [block.upsample for block in autoencoder.generator.blocks] == [False, True, True]
    assert all(block.between for block in autoencoder.generator.blocks)
    codes = autoencoder(torch.rand(2, 3, size, size))
    assert autoencoder.decode(codes.semantic, codes.nonsemantic).shape == (2, 3, size, size)


def test_the_nonsemantic_encoder_sees_other_images_if_it_is_given_them(images):
    autoencoder = tiny().eval()
    small = torch.rand(3, 3, 8, 12, dtype=torch.float64)
    codes, alone = autoencoder(images, small), autoencoder(images)
    assert torch.equal(codes.nonsemantic, autoencoder.nonsemantic_encoder(small))
    assert torch.equal(codes.semantic, alone.semantic) and torch.equal(codes.predictions, alone.predictions)


@pytest.mark.parametrize("style", ["semantic", "nonsemantic"])
def test_both_codes_of_each_image_shape_its_own_output_alone(images, style):
    autoencoder = tiny(style=style).eval()
    codes = autoencoder(images)
    semantic, nonsemantic = (code.detach().requires_grad_() for code in codes[:2])
    autoencoder.decode(semantic, nonsemantic)[1].sum().backward()
    for gradient in (semantic.grad, nonsemantic.grad):
        assert [bool(row.any()) for row in gradient] == [False, True, False]


def test_the_largest_that_a_description_asks_for_is_taken():
    check_described({"image_size": 4096, "classes": 100_000, "generator_channels": [10_000, 1]}, Architecture)
    with pytest.raises(InputError, match=r"^generator_channels: 10001 is above 10000"):
        check_described({"generator_channels": [1, 10_001]}, Architecture)


def test_architecture_is_frozen_and_survives_a_round_trip():
    architecture = Architecture(**TINY)
    assert Architecture(**architecture.to_dict()) == architecture
    with pytest.raises(FrozenInstanceError):
        architecture.network = "fast"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("image_size", 40),
        ("image_size", 0),
        ("image_size", -16),
        ("classes", 0),
        ("nonsemantic_channels", 0),
        ("generator_channels", (8,)),
        ("generator_channels", (8, 0, 8)),
        ("std", (0.5, 0.0, 0.5)),
    ],
)
def test_errors_name_the_field(field, value):
    with pytest.raises(InputError, match=rf"^{field}: .*\d") as error:
        tiny(**{field: value})
    assert "\n" not in str(error.value)


NO_ENCODERS = {
    "leaky-wrn-12-1": r"depth: 12 is not 6n \+ 4",
    "leaky-wrn-10-0": r"width: 0 is below 1",
    "leaky-wrn-1006-1": r"depth: 1006 of leaky-wrn-1006-1 is above 1000",
    "wrn-10-1": r"network: 'wrn-10-1'; encoders are made from fast, .*leaky-wrn-28-2",
    "cifar-resnet18": r"network: 'cifar-resnet18'; encoders are made from fast, ",
    "fast-8": r"network: 'fast-8'; encoders need two blocks",
    "fast-8-0": r"width: 0 is below 1",
    "fast-8-16x0": r"convolutions: 0 is below 1",
    "fast-8-10001": r"filters: 10001 of fast-8-10001 is above 10000",
}


@pytest.mark.parametrize("build", ["tiny", "samosa"])
@pytest.mark.parametrize("name", NO_ENCODERS)
def test_networks_that_encoders_are_not_made_from(build, name):
    with pytest.raises(InputError, match=rf"^{NO_ENCODERS[name]}") as error:
        globals()[build](network=name)
    assert "\n" not in str(error.value)


def test_normalized_encoders_are_samosas():
    with pytest.raises(InputError, match=r"^network: leaky-wrn-10-1-normalized; SciMix's encoders have no -normalized"):
        tiny(network="leaky-wrn-10-1-normalized")
    with pytest.raises(InputError, match=r"^network: fast-8-16x1; SAMOSA's encoders need two convolutions a block"):
        samosa(network="fast-8-16x1")
    assert tiny(network="fast-8-16x1").classifier.encoder.channels == 16


def test_unknown_backend_is_named():
    with pytest.raises(InputError, match=r"^backend: 'other'"):
        SemanticAutoencoder(Architecture(**TINY), backend="other")


# --- SAMOSA ---------------------------------------------------------------------------------------------


def samosa(**fields):
    torch.manual_seed(0)
    return SamosaAutoencoder(SamosaArchitecture(**SAMOSA | fields)).double()


def wide_resnet_parameters():
    """Tables A.1 and A.5 for width 2."""
    count, before = 3 * 9 * 16, 16
    for filters in (32, 64, 128):
        for _ in range(4):
            count += 2 * before + 9 * before * filters + 2 * filters + 9 * filters * filters
            count += before * filters if before != filters else 0
            before = filters
    return count


def test_parameters_of_samosa_are_those_of_its_tables():
    """E_c (A.1) with C (A.4), and E_r (A.2) without its linear layer, have A.4.1's 1.5M; D (A.3) has not its 2M."""
    autoencoder = SamosaAutoencoder(SamosaArchitecture())
    trunk = wide_resnet_parameters()
    filters = (128, 128, 128, 128, 64, 64, 64, 64, 64, 64, 64, 64, 16)
    deconv = sum(2 * c + 9 * c * f + f for c, f in pairwise(filters)) + 9 * 16 * 3 + 3
    classifier = trunk + 2 * 128 + 2 * 10 * (128 + 1)
    assert parameters(autoencoder.classifier.encoder.trunk) == trunk
    assert parameters(autoencoder.classifier) == classifier == 1_468_900
    assert parameters(autoencoder.nonsemantic_encoder) == trunk + 8192 * 64 + 64 == 1_990_416
    assert parameters(autoencoder.decoder) == deconv == 786_755
    assert parameters(autoencoder) == classifier + 1_990_416 + deconv
    assert round(classifier / 1e6, 1) == round(trunk / 1e6, 1) == 1.5
    assert round(deconv / 1e6, 1) == 0.8


@pytest.mark.parametrize("size", [4, 16, 20, 32])
def test_shapes_of_samosa_at_every_size(size):
    autoencoder = samosa(image_size=size).float()
    features = autoencoder.classifier(torch.rand(2, 3, size, size))
    assert features.semantic.shape == features.before.shape == (2, 64, size // 4, size // 4)
    assert autoencoder.decoder.first(features.semantic).shape == features.before.shape
    assert features.predictions.shape == features.consistency.shape == (2, 4)
    gates = autoencoder.nonsemantic_encoder(torch.rand(2, 3, size, size))
    assert gates.shape == (2, 32)
    assert autoencoder.decode(features.semantic, gates).shape == (2, 3, size, size)


def test_shapes_of_samosas_tables():
    autoencoder = SamosaAutoencoder(SamosaArchitecture()).eval()
    rows = {"E_c": [], "E_r": []}
    for name, trunk in (("E_c", autoencoder.classifier.encoder.trunk), ("E_r", autoencoder.nonsemantic_encoder.trunk)):
        for layer in (trunk.stem, *trunk.blocks):  # the last block of E_c is run in two halves
            layer.register_forward_hook(lambda _, __, output, name=name: rows[name].append(tuple(output.shape[1:])))
    with torch.no_grad():
        codes = autoencoder(torch.rand(1, 3, 32, 32))
    expected = [(16, 32, 32)] + [(32, 32, 32)] * 4 + [(64, 16, 16)] * 4 + [(128, 8, 8)] * 4
    assert rows["E_r"] == expected
    assert [*rows["E_c"], tuple(codes.semantic.shape[1:])] == expected
    assert codes.nonsemantic.shape == (1, 64)
    assert codes.predictions.shape == codes.consistency.shape == (1, 10)


@pytest.mark.parametrize("training", [True, False])
def test_samosas_classifier_is_scimixs_with_another_cut(images, training):
    ours = samosa().classifier.train(training)
    theirs = SemanticClassifier(Architecture(**{"image_size": 16, "classes": 4} | TINY)).double().train(training)
    theirs.load_state_dict(ours.state_dict())
    features = ours(images)
    scimixs = theirs(images)
    assert torch.equal(features.predictions, scimixs.predictions)
    assert torch.equal(features.consistency, scimixs.consistency)
    for name, buffer in theirs.named_buffers():
        assert torch.equal(ours.get_buffer(name), buffer), name
    ours.eval()
    pooled = torch.nn.functional.leaky_relu(ours.encoder.norm(ours(images).semantic), 0.1).mean((2, 3))
    assert torch.equal(pooled, theirs.eval()(images)[0])


def test_samosas_codes(images):
    autoencoder = samosa().eval()
    codes, features = autoencoder(images), autoencoder.classifier(images)
    before, semantic = autoencoder.classifier.encoder.trunk.last_two(images)
    assert torch.equal(codes.semantic, semantic) and torch.equal(features.before, before)
    assert torch.equal(features.semantic, semantic)
    assert torch.equal(codes.nonsemantic, autoencoder.nonsemantic_encoder(images))
    assert torch.equal(codes.predictions, features.predictions)
    assert torch.equal(codes.consistency, features.consistency)


def test_samosa_decodes_into_zero_to_one_and_clamps(images):
    """Gradient passes where nothing was clamped, and there alone."""
    autoencoder = samosa(mean=(0.1, 0.5, 0.9), std=(0.1, 0.2, 0.3)).eval()
    codes = autoencoder(images)
    last = autoencoder.decoder.post[-1]
    last.weight.data *= 30
    seen = []
    autoencoder.decoder.register_forward_hook(lambda _, __, output: seen.append(output))
    decoded = autoencoder.decode(codes.semantic, codes.nonsemantic)
    mean, std = (torch.tensor(v, dtype=torch.float64).view(3, 1, 1) for v in ((0.1, 0.5, 0.9), (0.1, 0.2, 0.3)))
    raw = seen[0] * std + mean
    torch.testing.assert_close(decoded, raw.clamp(0, 1), rtol=0, atol=1e-7)
    (gradient,) = torch.autograd.grad(decoded.sum(), seen[0])
    inside = (raw > 0) & (raw < 1)
    assert inside.any() and not inside.all()
    assert torch.equal(gradient != 0, inside)


def test_both_codes_of_samosa_shape_their_own_image_alone(images):
    autoencoder = samosa().eval()
    codes = autoencoder(images)
    semantic, nonsemantic = (code.detach().requires_grad_() for code in codes[:2])
    autoencoder.decode(semantic, nonsemantic)[1].sum().backward()
    for gradient in (semantic.grad, nonsemantic.grad):
        assert [bool(row.any()) for row in gradient] == [False, True, False]


def test_momentum_is_that_of_the_classifier_alone():
    autoencoder = samosa(momentum=0.001)
    for name, module in autoencoder.named_modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            assert module.momentum == (0.001 if name.startswith("classifier") else 0.1), name


def test_normalized_resampling_reaches_all_three_networks():
    plain, normalized = samosa(), samosa(network="leaky-wrn-10-1-normalized")
    extra = {
        "classifier": 2 * (32 + 64),
        "nonsemantic_encoder": 2 * (32 + 64),
        "decoder": 2 * (32 + 32),
    }
    for name, count in extra.items():
        assert parameters(normalized.get_submodule(name)) == parameters(plain.get_submodule(name)) + count


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("image_size", 18),
        ("image_size", 0),
        ("image_size", -4),
        ("classes", 0),
        ("momentum", 0.0),
        ("momentum", 1.5),
        ("std", (0.5, 0.0, 0.5)),
    ],
)
def test_errors_of_samosa_name_the_field(field, value):
    with pytest.raises(InputError, match=rf"^{field}: .*\d") as error:
        samosa(**{field: value})
    assert "\n" not in str(error.value)


def test_samosa_has_one_backend():
    with pytest.raises(InputError, match=r"^backend: 'stylegan2-pytorch' .* SAMOSA has 'hybridgen' alone"):
        SamosaAutoencoder(SamosaArchitecture(**SAMOSA), backend="stylegan2-pytorch")


@pytest.mark.parametrize("method", METHODS)
def test_methods_architectures_survive_a_round_trip_and_shape_their_networks(method):
    shape, network = METHODS[method]
    architecture = shape(**({} if method == "adain" else {"network": "leaky-wrn-10-1"}), classes=3)
    assert shape(**architecture.to_dict()) == architecture
    assert network(architecture).architecture == architecture
    with pytest.raises(FrozenInstanceError):
        architecture.classes = 16
