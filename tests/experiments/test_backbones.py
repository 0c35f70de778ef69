"""Every backbone's step: its losses have weights, and nothing in it waits for the device."""

from contextlib import nullcontext
from dataclasses import dataclass, replace

import pytest
import torch

from hybridgen.data.datasets import load_dataset
from hybridgen.experiments import backbones
from hybridgen.experiments.samosa import SamosaSettings, make_autoencoder, make_method
from hybridgen.experiments.settings import HybridSettings
from hybridgen.generators.samosa import Samosa, SamosaReconstruction
from hybridgen.hybridizer import Hybridizer, Origin
from hybridgen.networks.autoencoder import Architecture, SemanticAutoencoder
from hybridgen.training.ema import EMA
from hybridgen.training.objective import weighted
from hybridgen.training.schedules import Clock
from hybridgen.types import Batch, InputError

SETTINGS = {
    "FixMatch": (backbones.FIXMATCH, backbones.FixMatchSettings),
    "Mean Teacher": (backbones.MEAN_TEACHER, backbones.MeanTeacherSettings),
    "MixMatch": (backbones.MIXMATCH, backbones.MixMatchSettings),
}
CLOCK = Clock(steps=100, steps_per_epoch=10, step=30)


def make(name):
    backbone, settings = SETTINGS[name]

    @dataclass(frozen=True)
    class Config(HybridSettings, SamosaSettings, settings):
        pass

    return backbone, Config()


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits-m", image_size=16)


@pytest.fixture
def hybridizer():
    architecture = Architecture(
        image_size=16, depth=10, width=1, stem=4, nonsemantic_channels=2, generator_channels=(4, 4)
    )
    return Hybridizer(SemanticAutoencoder(architecture), Origin("none", "f", "0", tuple("0123456789")))


def batch_of(backbone, config, digits, device) -> Batch:
    labelled_views, unlabelled_views = backbone.views(config, digits)
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(6, 3, 16, 16, generator=generator)
    labelled, unlabelled = (
        tuple(view(images, generator).to(device) for view in views) for views in (labelled_views, unlabelled_views)
    )
    return Batch(labelled, torch.arange(6, device=device), unlabelled)


@pytest.mark.parametrize("with_hybrids", [False, True], ids=["alone", "hybrids"])
@pytest.mark.parametrize("name", SETTINGS)
def test_a_step_waits_for_nothing(name, with_hybrids, digits, hybridizer, monkeypatch):
    """On the meta device, where tensors have no values: asking for one is an error, as it is a synchronisation on a
    GPU."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # knows no such device
    backbone, config = make(name)
    network = backbone.network(config, digits).to("meta")
    method = backbone.method(config, network, hybridizer.to("meta") if with_hybrids else None)
    average = EMA(network, 0.99)
    losses, _, _ = method.objective(batch_of(backbone, config, digits, "meta"), CLOCK)
    total = torch.stack(list(weighted(losses, method.weights, CLOCK).values())).sum()
    total.backward()
    method.optimizer.step()
    average.update(network)
    method.after_step()
    with pytest.raises(RuntimeError, match="meta"):
        total.item()


@pytest.mark.parametrize("name", SETTINGS)
def test_a_step_of_samosa_waits_for_nothing(name, digits):
    backbone, config = make(name)
    autoencoder = make_autoencoder(config, digits).to("meta")
    watched, method = make_method(config, backbone, autoencoder, 1.0 if name == "MixMatch" else None)
    objective = Samosa(method.objective, watched, autoencoder.decoder, clean_only=backbone.strong)
    second = SamosaReconstruction(autoencoder.nonsemantic_encoder, autoencoder.decoder, autoencoder.normalize)
    batch = batch_of(backbone, config, digits, "meta")
    losses, _, handed = objective(batch, CLOCK)
    torch.stack(list(losses.values())).sum().backward()
    losses, _, _ = second(batch, CLOCK, *handed)
    losses["reconstruction"].backward()
    method.after_step()


@pytest.mark.parametrize("name", SETTINGS)
def test_an_architecture_of_samosa_is_the_backbone_s_own_classifier(name, digits):
    """Of the same parameters, so that nothing but the auto-encoder and the hybrids tells the two apart."""
    backbone, config = make(name)
    alone = backbone.network(config, digits)
    together = make_autoencoder(config, digits).classifier
    count = sum(p.numel() for p in together.parameters())
    if backbone.heads == 1:
        count -= sum(p.numel() for p in together.heads.consistency.parameters())
    assert count == sum(p.numel() for p in alone.parameters())


def test_mixmatch_refuses_batches_of_unequal_size(digits):
    backbone, config = make("MixMatch")
    with pytest.raises(InputError, match="unlabelled_batch: 5 beside 32"):
        backbone.method(replace(config, unlabelled_batch=5), backbone.network(config, digits), None)
    with pytest.raises(InputError, match="guesses: K = 0"):
        backbone.views(replace(config, guesses=0), digits)
