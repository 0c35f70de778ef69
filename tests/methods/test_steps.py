"""Nothing in a step waits for the device; half precision ends with the logits; SAMOSA's classifiers are the base
methods' own."""

from dataclasses import replace
from pathlib import Path

import objectives
import pytest
import torch
from torch import nn

from hybridgen.hybridizer import Hybridizer, Origin
from hybridgen.methods import fixmatch, hybrids, mean_teacher, mixmatch, samosa, supervised
from hybridgen.networks.autoencoder import Architecture, SemanticAutoencoder
from hybridgen.training.objective import weighted
from hybridgen.training.schedules import Clock
from hybridgen.types import Batch

METHODS = {
    "FixMatch": (fixmatch, 1),
    "Mean Teacher": (mean_teacher, 2),
    "MixMatch": (mixmatch, 1),
    "Supervised": (supervised, 1),
}
SMALL = dict(labelled_batch=6, unlabelled_batch=6)


def batch_of(plan, device) -> Batch:
    labelled, labels, unlabelled, places = next(plan.stream.from_step(0))
    views = (tuple(view.to(device) for view in group) for group in (labelled, unlabelled))
    return Batch(next(views), labels.to(device), next(views), places.to(device))


@pytest.fixture
def hybridizer():
    architecture = Architecture(
        image_size=16, classes=3, network="leaky-wrn-10-1", nonsemantic_channels=2, generator_channels=(4, 4)
    )
    return Hybridizer(SemanticAutoencoder(architecture), Origin("none", "f", "0", ("a", "b", "c")))


@pytest.mark.parametrize("wrapped", [False, True], ids=["alone", "hybrids"])
@pytest.mark.parametrize("name", METHODS)
def test_a_step_waits_for_nothing(name, wrapped, context, hybridizer):
    """On the meta device, where tensors have no values: asking for one is an error, as it is a synchronisation on a
    GPU."""
    module, heads = METHODS[name]
    classifier = context.classifier("leaky-wrn-10-1", heads=heads).to("meta")
    plan = module.plan(module.Settings(**SMALL), context, 0, classifier=classifier)
    if wrapped:
        how = hybrids.Settings(start=0, stop=9)
        plan = hybrids.with_hybrids(plan, hybridizer.to("meta"), how)
    task = plan.tasks["classifier"]
    clock = replace(plan.clock, step=plan.clock.steps // 2)
    losses = task.objective(batch_of(plan, "meta"), clock).losses
    total = torch.stack(list(weighted(losses, task.weights, clock).values())).sum()
    total.backward()
    task.optimizer.step()
    plan.average.update(plan.network)
    plan.after_step(Path())
    with pytest.raises(RuntimeError, match="meta"):
        total.item()


@pytest.mark.parametrize(
    "options",
    [
        dict(weighting="flexmatch", alignment="labels", targets="average"),
        dict(weighting="freematch", targets="apart", unsupervised_ramp=2.0),
        dict(weighting="softmatch"),
        dict(weighting="adamatch", interpolate_logits=True),
    ],
    ids=lambda options: options["weighting"],
)
def test_a_step_of_fixmatchs_options_waits_for_nothing(options, context):
    plan = fixmatch.plan(fixmatch.Settings(**SMALL, **options), context, 0)
    task = plan.tasks["classifier"]
    task.objective.to("meta")
    losses = task.objective(batch_of(plan, "meta"), replace(plan.clock, step=2)).losses
    torch.stack(list(weighted(losses, task.weights, plan.clock).values())).sum().backward()


@pytest.mark.parametrize("name", ["FixMatch", "Mean Teacher", "MixMatch"])
def test_a_step_of_samosa_waits_for_nothing(name, context):
    module, heads = METHODS[name]
    settings = module.Settings(**SMALL)
    made = samosa.networks(settings, context, 0, heads=heads)
    made.autoencoder.to("meta")
    more = {}
    if name == "MixMatch":
        more = dict(replacement=mixmatch.Replacement(made.hybridize, 1.0, lambda clock: True))
    base = module.plan(settings, context, 0, classifier=made.watched, **more)
    plan = samosa.with_samosa(base, made, samosa.Settings(stop=6), 0, clean_only=name == "FixMatch")
    batch, handed = batch_of(plan, "meta"), ()
    for task in plan.tasks.values():
        losses, _, handed, *_ = task.objective(batch, plan.clock, *handed)
        torch.stack(list(losses.values())).sum().backward()


@pytest.mark.parametrize("name", ["FixMatch", "Mean Teacher", "MixMatch"])
def test_samosas_classifier_has_the_parameters_of_the_method_alone(name, context):
    """So that nothing but the auto-encoder and the hybrids tells the two apart."""
    module, heads = METHODS[name]
    settings = module.Settings(**SMALL)
    alone = module.plan(settings, context, 0).network
    made = samosa.networks(settings, context, 0, heads=heads)
    together = made.autoencoder.classifier
    count = sum(p.numel() for p in together.parameters())
    if heads == 1:
        count -= sum(p.numel() for p in together.heads.consistency.parameters())
    assert count == sum(p.numel() for p in alone.parameters())
    assert {m.momentum for m in together.modules() if hasattr(m, "momentum")} == {settings.momentum}
    own = samosa.networks(replace(settings, momentum=None), context, 0, heads=heads).autoencoder.classifier
    assert {m.momentum for m in own.modules() if hasattr(m, "momentum")} == {0.1}  # torch's, of the method alone too


class Rounded(nn.Module):
    """A linear layer whose logits, of one head or of two, are rounded to bfloat16 and given in this kind of number."""

    def __init__(self, heads: int, dtype: torch.dtype) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.weights, self.dtype = nn.Parameter(9 * torch.randn(heads, 3, 4)), dtype

    def forward(self, images):
        logits = [(images.mean(dim=(2, 3)) @ each).bfloat16().to(self.dtype) for each in self.weights]
        return logits[0] if len(logits) == 1 else tuple(logits)


@pytest.mark.parametrize("name", METHODS)
def test_predictions_in_half_precision_are_compared_and_taught_in_single(name):
    """As if the same logits came in float32; the loss on hybrids too, of which MixUp's need no hybridizer."""
    kind, (_, heads) = getattr(objectives, name.replace(" ", "")), METHODS[name]
    draw = lambda: torch.rand(6, 3, 4, 5, generator=torch.Generator().manual_seed(1))
    batch = Batch((draw(), 1 - draw())[:heads], torch.arange(6) % 4, (draw().flip(0), draw().flip(2)))
    batch = batch._replace(unlabelled=batch.unlabelled[:1]) if name == "Supervised" else batch
    outcomes = []
    for dtype in (torch.bfloat16, torch.float32):
        objective = kind(Rounded(heads, dtype), hybridizer=hybrids.Mixer("mixup"))
        torch.manual_seed(2)
        outcomes.append(objective(batch, Clock(steps=10, steps_per_epoch=1)))
    found, expected = outcomes
    for loss, value in expected.losses.items():
        assert found.losses[loss].dtype == torch.float32 and torch.equal(found.losses[loss], value), loss
    targets = [outcome.taught().targets for outcome in outcomes]
    assert targets[0].dtype == torch.float32 and torch.equal(*targets)
