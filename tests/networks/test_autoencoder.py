"""The auto-encoder against the sum of tables A.7 to A.10, at every size, and either code as the style."""

from dataclasses import FrozenInstanceError

import pytest
import torch

from hybridgen.networks.autoencoder import Architecture, SemanticAutoencoder
from hybridgen.types import InputError

TINY = {"depth": 10, "width": 1, "stem": 4, "nonsemantic_channels": 2, "generator_channels": (4, 6, 4)}


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


@pytest.mark.parametrize("style", ["semantic", "nonsemantic"])
def test_both_codes_of_each_image_shape_its_own_output_alone(images, style):
    autoencoder = tiny(style=style).eval()
    codes = autoencoder(images)
    semantic, nonsemantic = (code.detach().requires_grad_() for code in codes[:2])
    autoencoder.decode(semantic, nonsemantic)[1].sum().backward()
    for gradient in (semantic.grad, nonsemantic.grad):
        assert [bool(row.any()) for row in gradient] == [False, True, False]


def test_architecture_is_frozen_and_survives_a_round_trip():
    architecture = Architecture(**TINY)
    assert Architecture(**architecture.to_dict()) == architecture
    with pytest.raises(FrozenInstanceError):
        architecture.depth = 16


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
        ("depth", 12),
        ("width", 0),
        ("stem", 0),
        ("std", (0.5, 0.0, 0.5)),
    ],
)
def test_errors_name_the_field(field, value):
    with pytest.raises(InputError, match=rf"^{field}: .*\d") as error:
        tiny(**{field: value})
    assert "\n" not in str(error.value)


def test_unknown_backend_is_named():
    with pytest.raises(InputError, match=r"^backend: 'other'"):
        SemanticAutoencoder(Architecture(**TINY), backend="other")
