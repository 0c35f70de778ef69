"""FixMatch's options against plain references: who predicts weak views and what batch-norm sees, AdaMatch's logits,
weights, fairness, precision; plans that stop and go on."""

import copy
from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator
from objectives import FixMatch
from torch import nn

from hybridgen.methods import fixmatch, hybrids
from hybridgen.methods.pseudo_labels import (
    FixedThreshold,
    PseudoLabelling,
    RelativeThreshold,
    SelfAdaptiveThresholds,
    TruncatedGaussian,
    distribution_alignment,
)
from hybridgen.training.checkpoint import Checkpoints
from hybridgen.training.ema import EMA
from hybridgen.training.fit import fit
from hybridgen.training.schedules import Clock, value
from hybridgen.types import Batch, InputError

LABELLED, UNLABELLED, CLASSES, THRESHOLD = 4, 9, 4, 0.6
CLOCK = Clock(steps=100, steps_per_epoch=10, step=25)


def random_batch(seed=0):
    g = torch.Generator().manual_seed(seed)
    draw = lambda count: torch.rand(count, 3, 8, 12, dtype=torch.float64, generator=g)
    return Batch((draw(LABELLED),), torch.tensor([3, 1, 0, 1]), (draw(UNLABELLED), draw(UNLABELLED)))


@pytest.fixture
def batch():
    return random_batch()


@pytest.fixture
def classifier():
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 6, 3, stride=2), nn.BatchNorm2d(6, momentum=0.25), nn.ReLU(), nn.Flatten(),
        nn.Linear(6 * 15, CLASSES),
    ).double()  # fmt: skip
    network[-1].weight.data *= 4  # confident about some images, not about all
    return network


def flat(parameters):
    return torch.cat([p.detach().flatten() for p in parameters])


def gradients(loss, network):
    return flat(torch.autograd.grad(loss, list(network.parameters()), retain_graph=True))


def by_hand(of_labelled, of_weak, of_strong, labels):
    """FixMatch's two losses from logits, image by image."""
    confidence, label = of_weak.detach().softmax(1).max(1)
    terms = [-of_strong[i].log_softmax(0)[label[i]] * (confidence[i] >= THRESHOLD) for i in range(UNLABELLED)]
    assert 0 < (confidence >= THRESHOLD).sum() < UNLABELLED
    supervised = -of_labelled.log_softmax(1)[range(LABELLED), labels].mean()
    return {"supervised": supervised, "unsupervised": torch.stack(terms).mean()}


# --- apart ----------------------------------------------------------------------------------------------------


def test_apart_weak_views_have_a_forward_and_statistics_of_their_own_and_no_gradient(classifier, batch):
    twin, seen = copy.deepcopy(classifier), []
    classifier.register_forward_hook(lambda _, inputs, logits: seen.append((len(inputs[0]), logits.requires_grad)))
    (labelled,), (weak, strong) = batch.labelled, batch.unlabelled
    of_labelled, of_strong = twin(torch.cat([labelled, strong])).split([LABELLED, UNLABELLED])
    of_weak = twin(weak)
    expected = by_hand(of_labelled, of_weak, of_strong, batch.labels)

    losses = FixMatch(classifier, threshold=THRESHOLD, targets="apart")(batch, CLOCK).losses
    assert seen == [(LABELLED + UNLABELLED, True), (UNLABELLED, False)]
    for name, loss in losses.items():
        torch.testing.assert_close(loss, expected[name], rtol=1e-12, atol=0)
        torch.testing.assert_close(gradients(loss, classifier), gradients(expected[name], twin))
    assert classifier[1].num_batches_tracked == 2  # each forward moves the running statistics
    torch.testing.assert_close(classifier[1].running_mean, twin[1].running_mean, rtol=1e-12, atol=0)
    torch.testing.assert_close(classifier[1].running_var, twin[1].running_var, rtol=1e-12, atol=0)


def test_apart_labels_are_those_of_weak_views_alone(classifier, batch):
    """What labelled and strong images look like does not matter for them: batch-norm sees them elsewhere."""
    objective = FixMatch(classifier, threshold=THRESHOLD, targets="apart")
    others = random_batch(5)
    exchanged = batch._replace(labelled=others.labelled, unlabelled=(batch.unlabelled[0], others.unlabelled[1]))
    first, second = (objective(each, CLOCK).taught().targets[LABELLED:] for each in (batch, exchanged))
    torch.testing.assert_close(first, second, rtol=1e-12, atol=0)
    joint = FixMatch(classifier, threshold=THRESHOLD)(batch, CLOCK).taught().targets[LABELLED:]
    assert (joint - first).abs().max() > 1e-3


# --- by the average ---------------------------------------------------------------------------------------------


def average_of(classifier, decay=0.6):
    return EMA(classifier, decay, buffers="own")


def test_the_average_predicts_with_batch_statistics_and_never_learns_by_gradient(classifier, batch):
    average = average_of(classifier)
    with torch.no_grad():
        for parameter in average.network.parameters():
            parameter.add_(0.05)
    twin, teacher, seen = copy.deepcopy(classifier), copy.deepcopy(average.network), []
    classifier.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    (labelled,), (weak, strong) = batch.labelled, batch.unlabelled
    of_labelled, of_strong = twin(torch.cat([labelled, strong])).split([LABELLED, UNLABELLED])
    known, of_weak = teacher(torch.cat([labelled, weak])).split([LABELLED, UNLABELLED])
    expected = by_hand(of_labelled, of_weak, of_strong, batch.labels)

    # Statistics that were copied, or are of other images, would show
    average.network[1].running_mean.fill_(7.0)
    outcome = FixMatch(classifier, threshold=THRESHOLD, targets="average", average=average)(batch, CLOCK)
    assert seen == [LABELLED + UNLABELLED]
    for name, loss in outcome.losses.items():
        torch.testing.assert_close(loss, expected[name], rtol=1e-12, atol=0)
        torch.testing.assert_close(gradients(loss, classifier), gradients(expected[name], twin))
    taught = outcome.taught()
    assert torch.equal(taught.images, torch.cat([labelled, weak]))
    torch.testing.assert_close(taught.targets, torch.cat([known, of_weak]).detach().softmax(1), rtol=1e-12, atol=0)
    assert not any(parameter.requires_grad for parameter in average.parameters())
    torch.testing.assert_close(classifier[1].running_mean, twin[1].running_mean, rtol=1e-12, atol=0)


def test_the_average_gathers_statistics_of_its_own_to_be_evaluated_with(classifier, batch):
    average = average_of(classifier)
    with torch.no_grad():
        average.network[0].weight.mul_(1.5)
    objective = FixMatch(classifier, threshold=THRESHOLD, targets="average", average=average)
    for _ in range(80):
        objective(batch, CLOCK)
        average.update(average.network)  # moves nothing but may not touch statistics
    clean = torch.cat([batch.labelled[0], batch.unlabelled[0]])
    maps = average.network[0](clean).transpose(0, 1).flatten(1)
    torch.testing.assert_close(average.network[1].running_mean, maps.mean(1))
    torch.testing.assert_close(average.network[1].running_var, maps.var(1))
    shown = classifier[0](torch.cat([batch.labelled[0], batch.unlabelled[1]])).transpose(0, 1).flatten(1)
    torch.testing.assert_close(classifier[1].running_mean, shown.mean(1))


def test_targets_of_the_average_over_several_steps(classifier):
    """Against a loop with plain tensors: the teacher is a network of its own, moved by hand."""
    student, decay = copy.deepcopy(classifier), 0.7
    teacher = copy.deepcopy(student)
    average = average_of(classifier, decay)
    objective = FixMatch(classifier, threshold=THRESHOLD, targets="average", average=average)
    optimizers = [torch.optim.SGD(network.parameters(), lr=0.05) for network in (classifier, student)]
    for step in range(5):
        batch = random_batch(step)
        (labelled,), (weak, strong) = batch.labelled, batch.unlabelled
        losses = objective(batch, CLOCK).losses

        of_labelled, of_strong = student(torch.cat([labelled, strong])).split([LABELLED, UNLABELLED])
        with torch.no_grad():
            of_weak = teacher(torch.cat([labelled, weak]))[LABELLED:]
        expected = by_hand(of_labelled, of_weak, of_strong, batch.labels)
        for name, loss in losses.items():
            assert loss.item() == pytest.approx(expected[name].item(), rel=1e-9), (step, name)
        for optimizer, terms in zip(optimizers, (losses, expected), strict=True):
            optimizer.zero_grad()
            torch.stack(list(terms.values())).sum().backward()
            optimizer.step()
        average.update(classifier)
        keep = min(1 - 1 / (step + 2), decay)  # from the first step on the average is no stranger
        with torch.no_grad():
            for mine, theirs in zip(teacher.parameters(), student.parameters(), strict=True):
                mine.copy_(keep * mine + (1 - keep) * theirs)
    torch.testing.assert_close(flat(average.network.parameters()), flat(teacher.parameters()))
    torch.testing.assert_close(average.network[1].running_var, teacher[1].running_var)


@pytest.mark.parametrize("targets", ["joint", "apart", "average"])
def test_an_average_is_there_if_and_only_if_it_makes_targets(classifier, targets):
    wrong = None if targets == "average" else average_of(classifier)
    with pytest.raises(InputError, match=rf"^targets: '{targets}', with"):
        FixMatch(classifier, targets=targets, average=wrong)


# --- strong views of labelled images ------------------------------------------------------------------------------


@pytest.mark.parametrize("targets", ["joint", "apart", "average"])
def test_half_of_the_loss_on_labels_is_of_strong_views_and_no_target_sees_them(classifier, batch, targets):
    average = average_of(classifier) if targets == "average" else None
    twin = copy.deepcopy(classifier)
    again = random_batch(7).labelled[0]
    (labelled,), (weak, strong) = batch.labelled, batch.unlabelled
    joint = [weak] if targets == "joint" else []
    of_first, of_again, *of_weak, of_strong = twin(torch.cat([labelled, again, *joint, strong])).split(
        [LABELLED, LABELLED, *map(len, joint), UNLABELLED]
    )
    known = of_first.detach()
    with torch.no_grad():
        if targets == "apart":
            of_weak = [twin(weak)]
        elif targets == "average":
            known, *of_weak = copy.deepcopy(average.network)(torch.cat([labelled, weak])).split([LABELLED, UNLABELLED])
    expected = by_hand(of_first, of_weak[0], of_strong, batch.labels)
    expected["supervised"] = (
        expected["supervised"] + by_hand(of_again, of_weak[0], of_strong, batch.labels)["supervised"]
    ) / 2

    objective = FixMatch(classifier, threshold=THRESHOLD, targets=targets, average=average)
    outcome = objective(batch._replace(labelled=(labelled, again)), CLOCK)
    for name, loss in outcome.losses.items():
        torch.testing.assert_close(loss, expected[name], rtol=1e-12, atol=0)
        torch.testing.assert_close(gradients(loss, classifier), gradients(expected[name], twin))
    taught = outcome.taught()
    assert torch.equal(taught.images, torch.cat([labelled, weak]))
    torch.testing.assert_close(taught.targets[:LABELLED], known.softmax(1), rtol=1e-12, atol=0)


# --- weights, alignment, fairness ---------------------------------------------------------------------------------


def labelling(weighting, towards="none", *, label_aligned=True):
    prior = torch.tensor([0.7, 0.1, 0.1, 0.1])
    alignment = distribution_alignment(towards, prior, window=2, decay=0.5)
    return PseudoLabelling(weighting, alignment, label_aligned=label_aligned).double()


def test_soft_weights_multiply_each_images_cross_entropy(classifier, batch):
    made = labelling(TruncatedGaussian(CLASSES, decay=0.5, sigmas=1.0))
    logits = copy.deepcopy(classifier)(torch.cat([*batch.labelled, *batch.unlabelled]))
    _, of_weak, of_strong = logits.split([LABELLED, UNLABELLED, UNLABELLED])
    confidence, label = of_weak.softmax(1).max(1)
    mean, variance = (1 / CLASSES + confidence.mean()) / 2, (1 + confidence.var()) / 2
    weights = (-((confidence - mean).clamp(max=0) ** 2) / (2 * variance)).exp()
    expected = -(weights * of_strong.log_softmax(1)[range(UNLABELLED), label]).mean()
    outcome = FixMatch(classifier, labelling=made)(batch, CLOCK)
    torch.testing.assert_close(outcome.losses["unsupervised"], expected.detach(), check_dtype=False)
    torch.testing.assert_close(outcome.rates["confident"], weights.mean().detach())
    torch.testing.assert_close(outcome.rates["threshold"], mean.detach())


def test_aligned_targets_are_what_hybrids_are_taught_with(classifier, batch):
    made = labelling(FixedThreshold(threshold=THRESHOLD), "labels")
    logits = copy.deepcopy(classifier)(torch.cat([*batch.labelled, *batch.unlabelled])).detach()
    known, weak, strong = logits.split([LABELLED, UNLABELLED, UNLABELLED])
    p = weak.softmax(1)
    ratio = (torch.tensor([0.7, 0.1, 0.1, 0.1]).double() + 1e-6) / ((0.25 + p.mean(0)) / 2 + 1e-6)
    expected = p * ratio / (p * ratio).sum(1, keepdim=True)
    outcome = FixMatch(classifier, labelling=made)(batch, CLOCK)
    torch.testing.assert_close(outcome.taught().targets, torch.cat([known.softmax(1), expected]))
    confidence, label = expected.max(1)
    assert (label != p.argmax(1)).any() and 0 < (confidence >= THRESHOLD).sum() < UNLABELLED
    terms = -strong.log_softmax(1)[range(UNLABELLED), label] * (confidence >= THRESHOLD)
    torch.testing.assert_close(outcome.losses["unsupervised"].detach(), terms.mean())


def test_freematch_has_its_fairness_and_no_other_has(classifier, batch):
    made = labelling(SelfAdaptiveThresholds(CLASSES, decay=0.5))
    objective = FixMatch(classifier, labelling=made)
    losses = objective(batch, CLOCK).losses
    assert losses.keys() == {"supervised", "unsupervised", "fairness"} and losses["fairness"] < 0
    assert gradients(losses["fairness"], classifier).any()
    assert FixMatch(classifier)(batch, CLOCK).losses.keys() == {"supervised", "unsupervised"}


def test_adamatch_compares_with_the_labelled_images_of_its_forward(classifier, batch):
    logits = copy.deepcopy(classifier)(torch.cat([*batch.labelled, *batch.unlabelled])).detach()
    known, weak, _ = logits.split([LABELLED, UNLABELLED, UNLABELLED])
    threshold = 0.8 * known.softmax(1).amax(1).mean()
    rates = FixMatch(classifier, labelling=labelling(RelativeThreshold(threshold=0.8)))(batch, CLOCK).rates
    torch.testing.assert_close(rates["threshold"], threshold)
    torch.testing.assert_close(rates["confident"], (weak.softmax(1).amax(1) >= threshold).double().mean())


def test_pseudo_classes_tell_a_collapse(classifier, batch):
    """Of the classes of pseudo-labels that count."""
    rates = FixMatch(classifier, threshold=THRESHOLD)(batch, CLOCK).rates
    assert 1 < rates["pseudo_classes"] <= CLASSES
    with torch.no_grad():
        classifier[-1].bias[2] += 50
    assert FixMatch(classifier, threshold=THRESHOLD)(batch, CLOCK).rates["pseudo_classes"] == pytest.approx(1)


# --- AdaMatch's logits ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("targets", ["joint", "apart"])
def test_labelled_logits_are_mixed_at_random_with_those_of_labelled_images_alone(classifier, batch, targets):
    twin, (labelled,), (weak, strong) = copy.deepcopy(classifier), batch.labelled, batch.unlabelled
    together = [labelled, weak, strong] if targets == "joint" else [labelled, strong]
    logits = twin(torch.cat(together))[:LABELLED]
    if targets == "apart":
        twin(weak)
    running = copy.deepcopy(twin[1].state_dict())
    alone = twin(labelled)
    torch.manual_seed(7)
    share = torch.rand(LABELLED, CLASSES, dtype=torch.float64)
    mixed = (1 - share) * logits + share * alone
    expected = -mixed.log_softmax(1)[range(LABELLED), batch.labels].mean()

    torch.manual_seed(7)
    outcome = FixMatch(classifier, threshold=THRESHOLD, targets=targets, interpolated=True)(batch, CLOCK)
    torch.testing.assert_close(outcome.losses["supervised"], expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(gradients(outcome.losses["supervised"], classifier), gradients(expected, twin))
    for name, tensor in running.items():  # as if that forward had not been
        torch.testing.assert_close(classifier[1].state_dict()[name], tensor)


def test_without_it_nothing_is_drawn(classifier, batch):
    state = torch.get_rng_state()
    FixMatch(classifier, threshold=THRESHOLD)(batch, CLOCK)
    assert torch.equal(torch.get_rng_state(), state)


# --- precision ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("targets", ["joint", "apart", "average"])
def test_in_bfloat16_losses_are_float32_and_gradient_reaches_every_weight(classifier, batch, targets):
    """Also where autocast has converted the same weights for a forward without gradient."""
    classifier = classifier.float()
    half = lambda views: tuple(view.float() for view in views)
    batch = batch._replace(labelled=half(batch.labelled), unlabelled=half(batch.unlabelled))
    average = average_of(classifier) if targets == "average" else None
    objective = FixMatch(classifier, threshold=0.3, targets=targets, average=average, interpolated=True)
    with torch.autocast("cpu", torch.bfloat16):
        losses, rates, _, taught, _ = objective(batch, CLOCK)
    assert all(figure.dtype == torch.float32 for figure in (*losses.values(), *rates.values(), taught().targets))
    torch.stack(list(losses.values())).sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in (classifier[0].weight, classifier[-1].weight))


class Told(nn.Module):
    """Gives these logits, whatever it sees."""

    def __init__(self, logits):
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, images):
        return self.logits[: len(images)]


def test_a_threshold_is_compared_in_float32():
    """0.9489 does not reach 0.95; in bfloat16 both would be 0.9492."""
    logits = torch.tensor([[2.921875, 0.0]] * 5, dtype=torch.bfloat16)
    images = lambda count: torch.zeros(count, 3, 4, 6)
    batch = Batch((images(1),), torch.tensor([0]), (images(2), images(2)))
    assert logits.softmax(1).max() >= 0.95 and logits.float().softmax(1).max() < 0.95
    assert FixMatch(Told(logits), threshold=0.95)(batch, CLOCK).rates["confident"] == 0
    assert FixMatch(Told(logits), threshold=0.9489)(batch, CLOCK).rates["confident"] == 1


# --- plans -----------------------------------------------------------------------------------------------------------

SMALL = dict(labelled_batch=4, unlabelled_batch=8, epochs=4.0, momentum=0.2, ema_decay=0.8, threshold=0.4)
PLANS = {
    "flexmatch": dict(weighting="flexmatch", alignment="labels", alignment_window=4, targets="average"),
    "freematch": dict(weighting="freematch", statistics_decay=0.8, targets="apart", unsupervised_ramp=2.0),
    "softmatch": dict(weighting="softmatch", statistics_decay=0.8, targets="average"),
    "adamatch": dict(weighting="adamatch", statistics_decay=0.8, interpolate_logits=True, targets="apart"),
}


def run(plan, steps, seed=0):
    """So many steps as `train` takes them; the losses of each."""
    tasks, seen = plan.tasks, []
    batches = plan.stream.from_step(plan.clock.step)
    for scalars in fit(tasks, batches, plan.clock, Accelerator(cpu=True), seed=seed):
        plan.average.update(plan.network)
        seen.append({name: float(kept) for name, kept in scalars.items()})
        if len(seen) == steps:
            return seen


@pytest.mark.parametrize("name", PLANS)
def test_a_run_that_stopped_goes_on_as_if_it_had_not(name, context, tmp_path):
    settings = fixmatch.Settings(**SMALL | PLANS[name])
    made = lambda: fixmatch.plan(settings, context, 0)

    def checkpoints(plan):
        task = plan.tasks["classifier"]
        modules = {"classifier": task.objective, "average": plan.average}
        return Checkpoints(tmp_path, modules, {"classifier": task.optimizer}, {})

    whole, stopped, resumed = made(), made(), made()
    expected = run(whole, 7)
    run(stopped, 4)
    checkpoints(stopped).save(stopped.clock)
    checkpoints(resumed).resume(resumed.clock)
    assert run(resumed, 3) == expected[4:]
    for ours, theirs in zip(resumed.average.state_dict().values(), whole.average.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)
    assert any(figure["classifier/confident"] > 0 for figure in expected)


def test_the_average_that_makes_targets_is_the_one_that_is_evaluated(context):
    plan = fixmatch.plan(fixmatch.Settings(**SMALL, targets="average"), context, 0)
    objective = plan.tasks["classifier"].objective
    assert plan.average is objective.average and plan.judged is objective.average.network
    assert (plan.average.decay, plan.average.linear_start, plan.average.buffers_mode) == (0.8, True, "own")
    assert plan.average.training
    before = flat(plan.average.parameters())
    learnt = {id(p) for p in plan.tasks["classifier"].parameters}
    assert learnt == {id(p) for p in plan.network.parameters()}
    run(plan, 2)
    assert not torch.equal(flat(plan.average.parameters()), before)
    norms = [
        {name: b for name, b in network.named_buffers() if "running_mean" in name}
        for network in (plan.network, plan.judged)
    ]
    assert all(not torch.equal(norms[0][name], norms[1][name]) for name in norms[0])
    for targets in ("joint", "apart"):
        plan = fixmatch.plan(fixmatch.Settings(**SMALL, targets=targets), context, 0)
        assert plan.tasks["classifier"].objective.average is None and plan.average.buffers_mode == "copy"


def test_what_weightings_know_of_the_split(context):
    """12 labelled and 39 unlabelled images of 60, three classes; alignment by the papers unless told otherwise."""
    skewed = replace(context.split, labelled=(0, 1, 3, 6, 9), unlabelled=tuple(range(12, 51)))
    context = replace(context, split=skewed)
    made = lambda weighting="fixmatch", **more: fixmatch.labelling_of(
        fixmatch.Settings(weighting=weighting, **more), context
    )
    flexible = made(weighting="flexmatch", threshold=0.77).weighting
    assert (len(flexible.record), flexible.unlabelled, flexible.threshold, flexible.classes) == (60, 44, 0.77, 3)
    own = {
        name: made(weighting=name).alignment for name in ("fixmatch", "flexmatch", "freematch", "softmatch", "adamatch")
    }
    assert [name for name, alignment in own.items() if alignment is None] == ["fixmatch", "flexmatch", "freematch"]
    assert torch.equal(own["softmatch"].towards, torch.full((3,), 1 / 3)) and own["softmatch"].average.decay == 0.999
    assert own["adamatch"].towards.decay == 0.999 and own["adamatch"].average.recent.shape == (128, 3)
    assert [made(weighting=name).label_aligned for name in own] == [True, True, True, False, True]
    labels = made(alignment="labels", alignment_window=7).alignment
    torch.testing.assert_close(labels.towards, torch.tensor([0.8, 0.2, 0.0]))
    assert labels.average.recent.shape == (7, 3)
    assert made(weighting="softmatch", alignment="none").alignment is None


def test_losses_on_unlabelled_images_begin_and_grow_together(context):
    settings = fixmatch.Settings(
        **SMALL, weighting="freematch", weight_unsupervised=3.0, weight_fairness=0.5, unsupervised_from=1.0,
        unsupervised_ramp=2.0, weight_supervised=2.0,
    )  # fmt: skip
    weights = fixmatch.plan(settings, context, 0).tasks["classifier"].weights
    parts = {0: 0, 0.9: 0, 1: 0, 1.5: 0.25, 2: 0.5, 3: 1, 3.9: 1}
    for epoch, part in parts.items():
        clock = Clock(400, 100, round(100 * epoch))
        found = {name: value(weight, clock) for name, weight in weights.items()}
        assert found == pytest.approx({"supervised": 2.0, "unsupervised": 3 * part, "fairness": 0.5 * part}), epoch


@pytest.mark.parametrize("targets", ["joint", "apart", "average"])
def test_hybrids_wrap_every_form(context, targets):
    """MixUp's, of the images and targets that were taught with."""
    settings = fixmatch.Settings(**SMALL, targets=targets, weighting="freematch", alignment="uniform")
    how = hybrids.Settings(start=0, stop=4, copies=2)
    plan = hybrids.with_hybrids(fixmatch.plan(settings, context, 0), hybrids.Mixer("mixup"), how)
    seen = run(plan, 3)
    assert all(figures["classifier/hybrids"] > 0 for figures in seen)
    taught = plan.tasks["classifier"].objective.base(next(plan.stream.from_step(0)), plan.clock).taught()
    assert taught.targets.shape == (12, 3) and taught.images.shape == (12, 3, 16, 16)
    torch.testing.assert_close(taught.targets.sum(1), torch.ones(12))
    assert not taught.targets.requires_grad


def test_flexmatchs_record_is_of_the_images_that_were_drawn(context):
    plan = fixmatch.plan(fixmatch.Settings(**SMALL | dict(threshold=0.0), weighting="flexmatch"), context, 0)
    run(plan, 3)
    record = plan.tasks["classifier"].objective.labelling.weighting.record
    drawn = torch.cat([plan.stream.indices(step)[1] for step in range(3)])
    assert torch.equal((record >= 0).nonzero().flatten(), drawn.unique())


def test_samosas_recipe_refuses_weak_views_that_it_could_not_reconstruct():
    from recipe_modules import recipe

    module = recipe("samosa_fixmatch")
    for targets in ("apart", "average"):
        config = module.Config(method=fixmatch.Settings(targets=targets))
        with pytest.raises(InputError, match=rf"^method.targets: '{targets}', but SAMOSA needs 'joint'"):
            module.main(config)
    with pytest.raises(InputError, match=r"^method.strong_labelled: SAMOSA reconstructs weak views"):
        module.main(module.Config(method=fixmatch.Settings(strong_labelled=True)))
