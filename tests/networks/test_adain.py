"""AdaIN against plain numpy; features against the classifier that they are of, and against torchvision's VGG-19."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models import VGG19_Weights
from torchvision.models.vgg import cfgs, make_layers

from hybridgen.hybridizer import Hybridizer, Origin
from hybridgen.networks.adain import (
    AdaINArchitecture,
    AdaINAutoencoder,
    AdaINDecoder,
    VGGPerception,
    adain,
    load_vgg,
    moments,
)
from hybridgen.types import InputError

TINY = {"image_size": 16, "classes": 4, "depth": 10, "width": 1, "stem": 4}


def tiny(**fields) -> AdaINAutoencoder:
    torch.manual_seed(0)
    return AdaINAutoencoder(AdaINArchitecture(**TINY | fields))


@pytest.fixture
def images():
    return torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def maps(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * 3 + 1


# --- the function ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("eps", [1e-5, 0.5])
def test_adain_is_equation_2_5(eps):
    content, style = maps(2, 5, 6, 6), maps(2, 5, 4, 3, seed=1)
    z_c, z_s = content.numpy(), style.numpy()
    expected = np.empty_like(z_c)
    for image in range(2):
        for channel in range(5):
            c, s = z_c[image, channel], z_s[image, channel]
            sigma_c, sigma_s = (np.sqrt(((z - z.mean()) ** 2).mean() + eps) for z in (c, s))
            expected[image, channel] = sigma_s * (c - c.mean()) / sigma_c + s.mean()
    np.testing.assert_allclose(adain(content, style, eps).numpy(), expected, atol=1e-12)


def test_result_has_the_moments_of_the_style_and_the_shape_of_the_content():
    content, style = maps(2, 5, 6, 6), maps(2, 5, 4, 3, seed=1)
    made = adain(content, style)
    torch.testing.assert_close(moments(made), moments(style), atol=1e-5, rtol=1e-5)
    for before, after in zip(content.flatten(0, 1), made.flatten(0, 1), strict=True):
        assert torch.corrcoef(torch.stack([before.flatten(), after.flatten()]))[0, 1] > 1 - 1e-9


def test_own_style_changes_nothing_and_the_style_of_the_content_does_not_matter():
    content, style = maps(2, 5, 6, 6), maps(2, 5, 6, 6, seed=1)
    torch.testing.assert_close(adain(content, content), content)
    torch.testing.assert_close(adain(5 * content - 2, style, 0.0), adain(content, style, 0.0))


def test_a_flat_map_stays_finite():
    content = torch.ones(1, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    made = adain(content, maps(1, 2, 4, 4))
    made.sum().backward()
    assert made.isfinite().all() and content.grad.isfinite().all()


# --- the networks ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("depth", "width"), [(10, 1), (16, 2)])
def test_features_are_the_classifiers(images, depth, width):
    classifier = tiny(depth=depth, width=width).classifier.eval()
    trunk = classifier.network.encoder.trunk
    seen = {}
    group = (depth - 4) // 6
    for name, module in (("0", trunk.stem), ("1", trunk.blocks[group - 1]), ("2", trunk.blocks[2 * group - 1])):
        module.register_forward_hook(lambda module, inputs, output, name=name: seen.update({name: output.clone()}))
    expected = classifier.network(images)
    layers = [seen[name] for name in "012"]
    for found, wanted in zip(classifier.features(images), layers, strict=True):
        assert torch.equal(found, wanted)
    content, logits = classifier(images)
    assert torch.equal(content, layers[-1])
    torch.testing.assert_close(logits, expected)
    assert classifier.channels == (4, 16 * width, 32 * width)
    for layer, channels, scale in zip(layers, classifier.channels, classifier.scales, strict=True):
        assert layer.shape == (3, channels, 16 // scale, 16 // scale)


def test_codes_and_what_is_made_of_them(images):
    autoencoder = tiny().eval()
    content, _ = autoencoder.classifier(images)
    z_r = autoencoder.nonsemantic_encoder(images.flip(0))
    assert content.shape == (3, 32, 8, 8) and z_r.shape == (3, 64)
    assert torch.equal(z_r, moments(content.flip(0)))
    made = autoencoder.decode(content, z_r)
    assert torch.equal(made, autoencoder.decoder(adain(content, content.flip(0))))
    assert made.shape == images.shape and made.min() >= 0 and made.max() <= 1
    other = torch.cat([z_r[:1], z_r[1:] + 1])
    changed = (autoencoder.decode(content, other) - made).flatten(1).abs().amax(1)
    assert changed[0] < 1e-6 and (changed[1:] > 1e-6).all()


@torch.no_grad()
def test_the_decoder_by_hand():
    """Reflected borders, each value four times where maps grow, and a logistic function at the end."""
    decoder = AdaINDecoder((4, 5, 6), (1, 1, 2)).double()
    content = maps(2, 6, 8, 8)
    x = content
    convolutions = [layer for layer in decoder.layers if isinstance(layer, nn.Conv2d)]
    for number, layer in enumerate(convolutions):
        x = F.conv2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), layer.weight, layer.bias)
        if number < 6:
            x = x.clamp(min=0)
        if number == 1:
            x = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    torch.testing.assert_close(decoder(content).double(), 1 / (1 + (-x).exp()), rtol=1e-6, atol=1e-7)
    assert [layer.out_channels for layer in convolutions] == [6, 5, 5, 4, 4, 4, 3]


@pytest.mark.parametrize(("perceptual", "size"), [("wide-resnet", 16), ("wide-resnet", 34), ("vgg", 16), ("vgg", 24)])
def test_images_come_back_at_their_size(perceptual, size):
    autoencoder = tiny(perceptual=perceptual, image_size=size).eval()
    images = torch.rand(2, 3, size, size)
    content, logits = autoencoder.classifier(images)
    made = autoencoder.decode(content, autoencoder.nonsemantic_encoder(images))
    assert made.shape == images.shape and logits.shape == (2, 4)


def test_the_classifier_stays_in_evaluation_mode_unless_told_itself():
    autoencoder = tiny()
    assert autoencoder.train() is autoencoder
    assert autoencoder.decoder.training and not any(module.training for module in autoencoder.classifier.modules())
    assert autoencoder.classifier.train().training
    assert not autoencoder.eval().decoder.training


@pytest.mark.parametrize("perceptual", ["wide-resnet", "vgg"])
def test_it_is_a_hybridizer(images, tmp_path, perceptual):
    autoencoder = tiny(perceptual=perceptual, mean=(0.1, 0.2, 0.3))
    hybridizer = Hybridizer(autoencoder, Origin("bars", "f" * 64, "0" * 16, tuple("abcd"), {}, "adain"))
    hybridizer.save_pretrained(tmp_path / "artefact")
    again = Hybridizer.from_pretrained(tmp_path / "artefact")
    assert again.autoencoder.architecture == autoencoder.architecture and again.origin.method == "adain"
    for made in (hybridizer, again):
        hybrids = made.hybridize(semantic=images, nonsemantic=images.flip(0))
        content = autoencoder.classifier.features(images)[-1]
        torch.testing.assert_close(hybrids, autoencoder.decoder(adain(content, content.flip(0))))
    assert hybridizer.classify(images).shape == (3, 4)
    images.requires_grad_()
    hybridizer(images).sum().backward()
    assert images.grad.any() and not any(p.requires_grad for p in hybridizer.parameters())


# --- VGG-19 ---------------------------------------------------------------------------------------------


@pytest.fixture
def weights(monkeypatch, tmp_path):
    """Weights of torchvision's layers that lie in the cache, but random."""
    torch.manual_seed(1)
    layers = make_layers(cfgs["E"], batch_norm=False)
    state = {f"features.{name}": tensor for name, tensor in layers.state_dict().items()}
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))

    def get_state_dict(self, **options):
        assert options == dict(progress=False, check_hash=True)
        return state | {"classifier.0.bias": 0}

    monkeypatch.setattr(VGG19_Weights, "get_state_dict", get_state_dict)
    file = tmp_path / "checkpoints" / Path(VGG19_Weights.IMAGENET1K_V1.url).name
    file.parent.mkdir()
    file.touch()
    return layers


def test_features_of_vgg_are_torchvisions(weights, images):
    network = VGGPerception(AdaINArchitecture(**TINY, perceptual="vgg"))
    load_vgg(network)
    x = VGG19_Weights.IMAGENET1K_V1.transforms()
    x = (images - torch.tensor(x.mean).view(3, 1, 1)) / torch.tensor(x.std).view(3, 1, 1)
    expected = []
    with torch.no_grad():
        for number, layer in enumerate(weights[:21]):
            x = layer(x)
            if number in (1, 6, 11, 20):  # relu1_1, relu2_1, relu3_1, relu4_1
                expected.append(x.clone())
    features = network.features(images)
    for found, wanted, channels, scale in zip(features, expected, network.channels, network.scales, strict=True):
        torch.testing.assert_close(found, wanted)
        assert found.shape == (3, channels, 16 // scale, 16 // scale)
    assert [name for name, p in network.named_parameters() if p.requires_grad] == ["head.weight", "head.bias"]


def test_weights_that_cannot_be_had_are_said(weights, monkeypatch, tmp_path):
    network = VGGPerception(AdaINArchitecture(**TINY, perceptual="vgg"))

    def refuse(self, **options):
        raise OSError("no route to host")

    monkeypatch.setattr(VGG19_Weights, "get_state_dict", refuse)
    with pytest.raises(InputError, match="cannot be had \\(no route to host\\)"):
        load_vgg(network, download=True)
    (file,) = (tmp_path / "checkpoints").iterdir()
    file.unlink()
    with pytest.raises(InputError, match=r"VGG-19 are not in .*--download"):
        load_vgg(network)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"image_size": 17}, "^image_size: 17"),
        ({"image_size": 14}, "^image_size: 14"),
        ({"image_size": 20, "perceptual": "vgg"}, "^image_size: 20 is not a multiple of 8"),
        ({"classes": 0}, "^classes: 0"),
        ({"depth": 11}, "^depth: 11"),
        ({"std": (0.0, 1.0, 1.0)}, "^std"),
    ],
)
def test_errors_name_the_field(fields, said):
    with pytest.raises(InputError, match=said):
        tiny(**fields)


def test_backend_of_another_method():
    with pytest.raises(InputError, match=r"^backend: 'stylegan2-pytorch' .* AdaIN has 'hybridgen' alone"):
        AdaINAutoencoder(AdaINArchitecture(**TINY), backend="stylegan2-pytorch")
