"""What AdaIN's networks learn, against losses written out, and who receives gradient."""

import copy
from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator
from torch.nn import functional as F

from hybridgen.methods import adain
from hybridgen.methods.adain import AdaINTransfer, Perception, Settings
from hybridgen.networks.adain import AdaINArchitecture, AdaINAutoencoder, VGGPerception
from hybridgen.training.fit import fit
from hybridgen.training.objective import Task, adam
from hybridgen.training.schedules import Clock
from hybridgen.types import Batch

CLOCK = Clock(steps=10, steps_per_epoch=5)
SEED = 7


def build() -> AdaINAutoencoder:
    torch.manual_seed(0)
    autoencoder = AdaINAutoencoder(AdaINArchitecture(image_size=16, classes=3, depth=10, width=1, stem=4)).double()
    return autoencoder


@pytest.fixture
def batch():
    g = torch.Generator().manual_seed(0)
    labelled, unlabelled = (torch.rand(n, 3, 16, 16, dtype=torch.float64, generator=g) for n in (4, 6))
    return Batch((labelled,), torch.tensor([2, 0, 1, 1]), (unlabelled,))


def statistics(maps):
    """Means and deviations, one after the other."""
    flat = maps.flatten(2)
    deviation = ((flat - flat.mean(2, keepdim=True)).square().mean(2) + 1e-5).sqrt()
    return flat.mean(2), deviation


def test_losses_equal_a_plain_reference(batch):
    autoencoder = build()
    objective = AdaINTransfer(autoencoder)
    images = batch.unlabelled[0]
    torch.manual_seed(SEED)
    losses = objective(batch, CLOCK).losses
    torch.manual_seed(SEED)
    partner = torch.randperm(6)

    known = [layer.detach() for layer in autoencoder.classifier.features(images)]
    (mean_c, deviation_c), (mean_s, deviation_s) = (
        statistics(known[-1]),
        [part[partner] for part in statistics(known[-1])],
    )
    spread = [part[:, :, None, None] for part in (mean_c, deviation_c, mean_s, deviation_s)]
    target = (known[-1] - spread[0]) / spread[1] * spread[3] + spread[2]
    seen = autoencoder.classifier.features(autoencoder.decoder(target))
    style = sum(
        (a - b[partner]).square().mean()
        for own, wanted in zip(seen, known, strict=True)
        for a, b in zip(statistics(own), statistics(wanted), strict=True)
    )
    assert losses.keys() == {"content", "style"}
    torch.testing.assert_close(losses["content"], (seen[-1] - target).square().mean())
    torch.testing.assert_close(losses["style"], style)


@pytest.mark.parametrize("loss", ["content", "style"])
def test_gradient_reaches_the_decoder_alone(batch, loss):
    autoencoder = build()
    before = copy.deepcopy(autoencoder.classifier.state_dict())
    objective = AdaINTransfer(autoencoder).train()
    objective(batch, CLOCK).losses[loss].backward()
    assert all(parameter.grad.any() for parameter in autoencoder.decoder.parameters())
    assert all(parameter.grad is None for parameter in autoencoder.classifier.parameters())
    for name, tensor in autoencoder.classifier.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_vggs_features_are_of_its_weights(context, monkeypatch):
    """Which are downloaded if the run may; a network of our own has none to load."""
    loaded = []
    monkeypatch.setattr(adain, "load_vgg", lambda network, download: loaded.append((network, download)))
    for download in (False, True):
        of = replace(context, settings=replace(context.settings, download=download))
        assert adain.network(Settings(), of, 0) and not loaded
        made = adain.network(Settings(perceptual="vgg"), of, 0).classifier
        assert isinstance(made, VGGPerception) and loaded == [(made, download)]
        loaded.clear()


def test_perception_is_supervised_and_trains_the_classifier(batch):
    autoencoder = build()
    objective = Perception(autoencoder.classifier.train())
    losses = objective(batch, CLOCK).losses
    logits = autoencoder.classifier(batch.labelled[0])[1]
    torch.testing.assert_close(losses, {"supervised": F.cross_entropy(logits, batch.labels)})
    losses["supervised"].backward()
    assert all(parameter.grad is not None for parameter in autoencoder.classifier.parameters())
    assert all(parameter.grad is None for parameter in autoencoder.decoder.parameters())


@pytest.mark.parametrize(("processes", "size"), [(1, 11), (2, 10)])
def test_plans_have_their_optimizer_and_batches_that_processes_share(context, monkeypatch, processes, size):
    """12 images are labelled; 11 are asked for a step. The decoder's Adam has betas 0.9 and 0.99."""
    monkeypatch.setattr(Accelerator, "num_processes", processes)
    settings = Settings(perception_batch=11, batch=6)
    autoencoder = adain.network(settings, context, 0)
    first = adain.perception_plan(settings, context, autoencoder, 0)
    assert len(next(first.stream.from_step(0)).labelled[0]) * processes == size
    second, _ = adain.plan(settings, context, autoencoder, 0)
    assert [group["betas"] for group in second.tasks["transfer"].optimizer.param_groups] == [(0.9, 0.99)]


def test_training_lowers_both_losses(batch):
    objective = AdaINTransfer(build().float())
    batch = Batch((), batch.labels[:0], (batch.unlabelled[0].float(),))
    task = Task(objective, {"content": 1.0, "style": 1.0}, adam(objective), lambda clock: 3e-3)
    rows = list(fit({"transfer": task}, iter([batch] * 60), Clock(60, 60), Accelerator(cpu=True), seed=0))
    for loss in ("content", "style"):
        first, last = (sum(float(row[f"transfer/{loss}"]) for row in part) for part in (rows[:5], rows[-5:]))
        assert last < 0.85 * first, loss
