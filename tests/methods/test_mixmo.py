"""MIMO and MixMo against sums written out in float64, against MIMO's own form of its first layer, and against plain
training."""

import inspect
import math
from dataclasses import replace
from itertools import islice
from math import inf

import numpy as np
import pytest
import torch
from objectives import Mixed, MixMo
from torch import nn
from torch.nn import functional as F

import hybridgen.data.augmix
from hybridgen.data.augmix import WITHOUT_CONTRAST
from hybridgen.methods import mixing, mixmo
from hybridgen.methods.labelled import TrainingSettings
from hybridgen.methods.mixmo import Settings, patch_probability, variant
from hybridgen.mixing.inputs import Patches, cut_others_in, mix_inputs
from hybridgen.networks.classifiers import Classifier
from hybridgen.networks.members import ensembled
from hybridgen.networks.multi_input import MultiInputClassifier
from hybridgen.training.fit import fit
from hybridgen.training.schedules import Clock
from hybridgen.types import Batch, InputError

CLASSES, COUNT = 4, 6
CLOCK = Clock(1200, 100)
STATISTICS = dict(mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25))
PATCHES = Patches.__args__


class Toy(nn.Module):
    """A convolution, tanh, the mean over the map and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 5, 3, padding=1, bias=False), nn.Linear(5, CLASSES)
        self.num_features, self.num_classes = 5, CLASSES

    def forward_features(self, images):
        return torch.tanh(self.conv(images))

    def forward_head(self, features, pre_logits=False):
        pooled = features.mean((2, 3))
        return pooled if pre_logits else self.fc(pooled)


def network(inputs: int = 2) -> MultiInputClassifier:
    torch.manual_seed(0)
    return MultiInputClassifier([Toy() for _ in range(inputs)], **STATISTICS, ensemble="logits").double()


def batch() -> Batch:
    images = torch.rand(COUNT, 3, 8, 10, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return Batch((images,), torch.tensor([0, 1, 2, 3, 1, 2]), ())


def run(made: nn.Module, seed: int = 7, clock: Clock = CLOCK):
    torch.manual_seed(seed)
    return made(batch(), clock)


def measure(members, labels) -> dict[str, float]:
    return {"accuracy": (members.mean(0).argmax(1) == labels).double().mean().item(), "images": float(len(labels))}


# --- the loss ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("patches", [None, *PATCHES])
@pytest.mark.parametrize("inputs", [1, 2, 3, 4])
@pytest.mark.parametrize("root", [1.0, 3.0, inf])
def test_the_loss_of_a_step_is_the_sum_written_out(patches, inputs, root):
    """Algorithm A.6 and equations A.1 to A.4, image by image and place by place, on the same draws."""
    made = network(inputs)
    objective = MixMo(made, CLASSES, mask=patches or "cutmix", patch_probability=1.0 if patches else 0.0, root=root)
    losses, rates, *_ = run(objective)

    torch.manual_seed(7)
    torch.rand(())
    drawn = mix_inputs(COUNT, (8, 10), inputs=inputs, patches=patches, alpha=2.0)
    (images,), labels = batch()[:2]
    shown = (images.numpy() - np.reshape(STATISTICS["mean"], (3, 1, 1))) / np.reshape(STATISTICS["std"], (3, 1, 1))
    kernels = [encoder.weight.detach().numpy() for encoder in made.encoders]
    total, shares = 0.0, np.zeros((inputs, COUNT))
    for n in range(COUNT):
        maps = [np.zeros((5, 8, 10)) for _ in range(inputs)]
        for i in range(inputs):
            padded = np.pad(shown[drawn.partners[i, n]], ((0, 0), (1, 1), (1, 1)))
            for y in range(8):
                for x in range(10):
                    maps[i][:, y, x] = (kernels[i] * padded[:, y : y + 3, x : x + 3]).sum(axis=(1, 2, 3))
        # The part of each input at each place
        part = {drawn.order[0]: np.ones((8, 10))}
        for i, each in zip(drawn.order[1:], drawn.mixings, strict=True):
            mask = np.broadcast_to(each.mask[n, 0].double().numpy(), (8, 10))
            part = {j: mask * own for j, own in part.items()} | {i: 1 - mask}
        feature = np.tanh(inputs * sum(part[i] * maps[i] for i in range(inputs))).mean(axis=(1, 2))
        shares[:, n] = [part[i].mean() for i in range(inputs)]
        powers = shares[:, n] ** (1 / root)
        for i in range(inputs):
            logits = made.heads[i].weight.detach().numpy() @ feature + made.heads[i].bias.detach().numpy()
            cross_entropy = np.log(np.exp(logits).sum()) - logits[labels[drawn.partners[i, n]]]
            total += inputs * powers[i] / powers.sum() * cross_entropy / COUNT
    assert losses.keys() == {"supervised"}
    assert losses["supervised"].item() == pytest.approx(total, rel=1e-5)
    for i in range(inputs):
        assert rates[f"share_{i}"].item() == pytest.approx(shares[i].mean(), abs=1e-6)
    assert rates["patches"] == bool(patches and inputs > 1)


@pytest.mark.parametrize("inputs", [2, 3])
def test_mimo_is_one_convolution_of_the_images_side_by_side(inputs):
    """As Havasi et al. have it: images concatenated along channels, and no weights."""
    made = network(inputs)
    losses, *_ = run(MixMo(made, CLASSES, alpha=inf, patch_probability=0.0))
    torch.manual_seed(7)
    torch.rand(())
    partners = mix_inputs(COUNT, (8, 10), inputs=inputs, patches=None, alpha=inf).partners
    (images,), labels = batch()[:2]
    shown = made.normalize(images)
    beside = torch.cat([shown[row] for row in partners], dim=1)
    kernel = torch.cat([encoder.weight for encoder in made.encoders], dim=1)
    pooled = torch.tanh(F.conv2d(beside, kernel, padding=1)).mean((2, 3))
    each = [F.cross_entropy(head(pooled), labels[row]) for head, row in zip(made.heads, partners, strict=True)]
    assert kernel.shape[1] == 3 * inputs
    torch.testing.assert_close(losses["supervised"], sum(each), rtol=1e-6, atol=1e-6)


def test_every_answer_is_for_its_own_input():
    """A head learns nothing from another input's images: the second one's bias has the gradient of its targets."""
    made = network(2)
    run(MixMo(made, CLASSES, alpha=inf, patch_probability=0.0))[0]["supervised"].backward()
    first = made.heads[0].bias.grad + F.one_hot(batch().labels, CLASSES).double().mean(dim=0)
    second = made.heads[1].bias.grad + F.one_hot(batch().labels, CLASSES).double().mean(dim=0)
    torch.manual_seed(7)
    torch.rand(())
    partners = mix_inputs(COUNT, (8, 10), inputs=2, patches=None, alpha=inf).partners
    (images,) = batch().labelled
    with torch.no_grad():
        answers = made.decode(sum(made.encode([images[row] for row in partners]))).softmax(dim=2).mean(dim=1)
    torch.testing.assert_close(torch.stack([first, second]), answers, rtol=1e-6, atol=1e-6)


def test_answers_in_half_precision_are_compared_in_single():
    made, answers = network(), torch.randn(2, COUNT, CLASSES, generator=torch.Generator().manual_seed(3)).bfloat16()
    losses = []
    for given in (answers, answers.float()):
        made.decode = lambda *_, given=given, **__: given
        losses.append(run(MixMo(made, CLASSES, root=1.0))[0]["supervised"])
    assert losses[0].dtype == torch.float32 and torch.equal(*losses)


def test_smoothing_is_that_of_every_target():
    made = network(2)
    losses, *_ = run(MixMo(made, CLASSES, alpha=inf, patch_probability=0.0, smoothing=0.3))
    torch.manual_seed(7)
    torch.rand(())
    partners = mix_inputs(COUNT, (8, 10), inputs=2, patches=None, alpha=inf).partners
    (images,), labels = batch()[:2]
    logits = made.decode(sum(made.encode([images[row] for row in partners])))
    expected = sum(F.cross_entropy(logits[i], labels[partners[i]], label_smoothing=0.3) for i in range(2))
    torch.testing.assert_close(losses["supervised"], expected, rtol=1e-6, atol=1e-6)


def test_input_repetition_shows_all_inputs_the_same_image():
    made, seen = network(3), []
    made.encode = lambda inputs: seen.extend(inputs) or MultiInputClassifier.encode(made, inputs)
    run(MixMo(made, CLASSES, input_repetition=1.0))
    assert len(seen) == 3 and all(torch.equal(each, batch().labelled[0]) for each in seen)


# --- table 3.4 ---------------------------------------------------------------------------------------------------

TABLE_34 = [("one", "one"), ("each", "one"), ("one", "random"), ("one", "predominant"), ("each", "own")]
"""Encoders and classifiers of its rows."""


@pytest.mark.parametrize("patches", [None, "cutmix"])
@pytest.mark.parametrize("inputs", [2, 3])
@pytest.mark.parametrize(("encoders", "classifiers"), TABLE_34)
def test_every_row_of_table_34_written_out(encoders, classifiers, inputs, patches):
    """The same draws, and behind them those of ⊖."""
    torch.manual_seed(0)
    made = MultiInputClassifier(
        [Toy() for _ in range(inputs)], **STATISTICS, ensemble="logits", one_encoder=encoders == "one",
        one_head=classifiers == "one",
    ).double()  # fmt: skip
    objective = MixMo(made, CLASSES, patch_probability=1.0 if patches else 0.0, classifiers=classifiers)
    losses, *_ = run(objective)

    torch.manual_seed(7)
    torch.rand(())
    drawn = mix_inputs(COUNT, (8, 10), inputs=inputs, patches=patches, alpha=2.0)
    random = torch.rand(inputs, COUNT).argsort(dim=0) if classifiers == "random" else None
    (images,), labels = batch()[:2]
    shown, kernels = (
        made.normalize(images),
        [made.encoders[0 if encoders == "one" else i].weight for i in range(inputs)],
    )
    total = 0.0
    for n in range(COUNT):
        part = {drawn.order[0]: torch.ones(8, 10, dtype=torch.float64)}
        for i, each in zip(drawn.order[1:], drawn.mixings, strict=True):
            mask = each.mask[n, 0].double().expand(8, 10)
            part = {j: mask * own for j, own in part.items()} | {i: 1 - mask}
        maps = [F.conv2d(shown[drawn.partners[i, n]][None], kernels[i], padding=1)[0] for i in range(inputs)]
        pooled = torch.tanh(inputs * sum(part[i] * maps[i] for i in range(inputs))).mean(dim=(1, 2))
        kappa = [part[i].mean().item() for i in range(inputs)]
        classes = [labels[drawn.partners[i, n]].item() for i in range(inputs)]
        logs = [(pooled @ head.weight.T + head.bias).log_softmax(dim=0) for head in made.heads]
        if classifiers == "one":
            total -= sum(kappa[i] * logs[0][classes[i]].item() for i in range(inputs)) / COUNT
            continue
        asked = {"own": range(inputs), "predominant": sorted(range(inputs), key=lambda i: -kappa[i])}.get(classifiers)
        asked = random[:, n].tolist() if asked is None else asked
        powers = [share ** (1 / 3) for share in kappa]
        for head, i in enumerate(asked):
            total -= inputs * powers[i] / sum(powers) * logs[head][classes[i]].item() / COUNT
    assert losses["supervised"].item() == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize("patches", [None, "cutmix"])
@pytest.mark.parametrize("attribution", ["embedding", "encoding"])
def test_source_attribution_written_out(attribution, patches):
    """One encoder, and what s_i makes of each input's places (4.5, 4.6), pooled for its own answer."""
    torch.manual_seed(0)
    options = dict(ensemble="logits", one_encoder=True, attribution=attribution)
    made = MultiInputClassifier([Toy(), Toy()], **STATISTICS, **options).double()
    losses, *_ = run(MixMo(made, CLASSES, patch_probability=1.0 if patches else 0.0))

    torch.manual_seed(7)
    torch.rand(())
    drawn = mix_inputs(COUNT, (8, 10), inputs=2, patches=patches, alpha=2.0)
    (images,), labels = batch()[:2]
    shown, s = made.normalize(images), made.attribution
    first, second = drawn.order
    total = 0.0
    for n in range(COUNT):
        mask = drawn.mixings[0].mask[n, 0].double().expand(8, 10)
        part = {first: mask, second: 1 - mask}
        maps = [F.conv2d(shown[drawn.partners[i, n]][None], made.encoders[0].weight, padding=1)[0] for i in range(2)]
        features = torch.tanh(2 * (part[0] * maps[0] + part[1] * maps[1]))
        places = features.permute(1, 2, 0)
        for i in range(2):
            own = s.bias[i] + (places @ s.weight[i].T if attribution == "encoding" else 0)
            features = features + part[i] * own.expand(8, 10, -1).permute(2, 0, 1)
        pooled, kappa = features.mean(dim=(1, 2)), [part[i].mean().item() for i in range(2)]
        powers = [share ** (1 / 3) for share in kappa]
        for i, head in enumerate(made.heads):
            logs = (pooled @ head.weight.T + head.bias).log_softmax(dim=0)
            total -= 2 * powers[i] / sum(powers) * logs[labels[drawn.partners[i, n]]].item() / COUNT
    assert losses["supervised"].item() == pytest.approx(total, rel=1e-5)


def test_source_attribution_is_a_setting_of_all_but_the_plain_network(context):
    of = dict(attribution="encoding", encoders="one")
    plan = plan_of(context, **of)
    before = [p.detach().clone() for p in plan.network.parameters()]
    assert plan.network.attribution.weight.shape[0] == 2 and all(map(math.isfinite, trained(plan, 2)))
    assert not any(torch.equal(*pair) for pair in zip(before, plan.network.parameters(), strict=True))
    assert plan_of(context, **of | dict(attribution="embedding")).network.attribution.weight is None
    assert {variant(name, Settings(**of)).attribution for name in mixmo.TITLES} == {"none", "encoding"}
    assert variant("plain", Settings(**of)).attribution == "none"


def test_every_row_of_table_34_is_a_setting(context):
    for encoders, classifiers in TABLE_34:
        plan = plan_of(context, encoders=encoders, classifiers=classifiers)
        assert (plan.network.encoders[0] is plan.network.encoders[1]) is (encoders == "one")
        assert len(plan.network.heads) == (1 if classifiers == "one" else 2)
        before = [p.detach().clone() for p in plan.network.parameters()]
        assert all(map(math.isfinite, trained(plan, 2)))
        assert not any(torch.equal(*pair) for pair in zip(before, plan.network.parameters(), strict=True))
        plain, images = plan.network.eval().plain(), torch.rand(2, 3, 16, 16)
        torch.testing.assert_close(plain(images), plan.network(images), rtol=1e-4, atol=1e-4)


def test_whoever_answers_for_an_input_answers_for_no_other():
    ratios = torch.tensor([[0.2, 0.4, 1 / 3], [0.7, 0.2, 1 / 3], [0.1, 0.4, 1 / 3]])
    assert mixmo.asked("own", ratios).T.tolist() == [[0, 1, 2]] * 3
    assert mixmo.asked("predominant", ratios).T.tolist() == [[1, 0, 2], [0, 2, 1], [0, 1, 2]]
    assert mixmo.asked("one", ratios) is None
    torch.manual_seed(0)
    random = mixmo.asked("random", torch.rand(3, 3000))
    assert (random.sort(dim=0).values == torch.arange(3)[:, None]).all()
    for row in random:
        assert (row.bincount() / 3000 - 1 / 3).abs().max() < 0.05


# --- CutMix on the inputs ------------------------------------------------------------------------------------------

LABELS = torch.arange(40) % CLASSES


def with_others() -> Batch:
    """With six more images, of places 30, 31, …"""
    images = torch.rand(COUNT, 3, 8, 10, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return batch()._replace(unlabelled=(images,), indices=torch.arange(30, 30 + COUNT))


@pytest.mark.parametrize("patches", [0.0, 1.0])
@pytest.mark.parametrize("inputs", [1, 2, 3])
def test_cutmix_on_the_inputs_written_out(inputs, patches):
    """Each input has boxes and partners of its own, and targets by what is visible."""
    made = network(inputs)
    objective = MixMo(made, CLASSES, patch_probability=patches, cutmix=0.7, labels=LABELS, smoothing=0.1)
    torch.manual_seed(7)
    losses = objective(with_others(), CLOCK).losses
    torch.manual_seed(7)
    torch.rand(())
    kind = "cutmix" if patches and inputs > 1 else None
    drawn = mix_inputs(COUNT, (8, 10), inputs=inputs, patches=kind, alpha=2.0)
    (images,), labels, (others,), places = with_others()
    total, shown, targets = 0.0, [], []
    for i in range(inputs):
        mixing, parts = cut_others_in(drawn.masks[i], (8, 10), 0.7)
        keep, partner = mixing.mask.double(), mixing.partner
        shown.append(keep * images[drawn.partners[i]] + (1 - keep) * others[partner])
        mine, theirs = (F.one_hot(each, CLASSES) * 0.9 + 0.1 / CLASSES for each in
                        (labels[drawn.partners[i]], LABELS[places[partner]]))  # fmt: skip
        targets.append(parts.double()[:, None] * mine + (1 - parts.double()[:, None]) * theirs)
    logits = made.decode(drawn.mix(made.encode(shown)))
    powers = drawn.ratios.double() ** (1 / 3)
    for i in range(inputs):
        total -= (inputs * powers[i] / powers.sum(0) * (targets[i] * logits[i].log_softmax(1)).sum(1)).mean()
    torch.testing.assert_close(losses["supervised"], total, rtol=1e-5, atol=1e-6)


def test_augmix_is_the_last_of_every_images_augmentations(context, monkeypatch):
    """Of three chains of four operations of severity 3 (A.1.3.1), for the images and those that are cut into them."""
    options = {}

    def augmix(images, generator, **given):
        options.update(given)
        return images + 2

    monkeypatch.setattr(mixmo, "augmix", augmix)
    first = lambda **of: next(plan_of(context, cutmix=1.0, **of).stream.from_step(0))
    with_it, without = first(augmix=True), first()
    torch.testing.assert_close(with_it.labelled[0], without.labelled[0] + 2)
    torch.testing.assert_close(with_it.unlabelled[0], without.unlabelled[0] + 2)
    assert options == {"depth": 4, "operations": WITHOUT_CONTRAST}
    defaults = inspect.signature(hybridgen.data.augmix.augmix).parameters
    assert (defaults["width"].default, defaults["severity"].default) == (3, 3)


def test_others_are_labelled_images_drawn_apart(context):
    """As many as images, all of the labelled ones, none of those without labels; and no more steps."""
    plan, without = plan_of(context, cutmix=0.5), plan_of(context)
    assert plan.clock == without.clock and not next(without.stream.from_step(0)).unlabelled
    assert torch.equal(plan.tasks["classifier"].objective.labels, context.dataset.train.labels)
    found, same = set(), 0
    for step in range(20):
        images, others = plan.stream.indices(step)
        assert torch.equal(images, without.stream.indices(step)[0]) and len(images) == len(others) == 6
        found |= set(others.tolist())
        same += (images == others).sum().item()
    assert found == set(context.split.labelled) and same < 40  # of 120, of which a twelfth by chance
    first = next(plan.stream.from_step(0))
    assert first.unlabelled[0].shape == first.labelled[0].shape
    assert first.indices.tolist() == plan.stream.indices(0)[1].tolist()
    assert all(map(math.isfinite, trained(plan, 2)))
    assert "labels" not in plan.tasks["classifier"].objective.state_dict()


# --- one input -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("patches", [0.0, 1.0])
def test_one_input_is_plain_training_loss_for_loss_and_gradient_for_gradient(patches):
    ours = network(1)
    torch.manual_seed(0)
    plain = Classifier(Toy(), **STATISTICS).double()
    first, *_ = run(MixMo(ours, CLASSES, patch_probability=patches))
    second, *_ = run(Mixed(plain, CLASSES))
    torch.testing.assert_close(first["supervised"], second["supervised"], rtol=1e-14, atol=0)
    first["supervised"].backward()
    second["supervised"].backward()
    pairs = [(ours.encoders[0], plain.network.conv), (ours.heads[0], plain.network.fc)]
    for mine, theirs in pairs:
        for one, other in zip(mine.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(one.grad, other.grad, rtol=1e-13, atol=1e-15)


TRAINING = TrainingSettings(network="wrn-10-1", batch=6, epochs=7.0, warmup=2.0)


def plan_of(context, seed: int = 0, training: TrainingSettings = TRAINING, **changes):
    return mixmo.plan(Settings(**changes), training, context, seed, measure=measure)


def trained(plan, steps: int, seed: int = 0) -> list[float]:
    """Losses of so many steps."""
    batches = plan.stream.from_step(plan.clock.step)
    done = islice(fit(plan.tasks, batches, plan.clock, plan.context.accelerator, seed=seed), steps)
    return [each["classifier/supervised"].item() for each in done]


def test_a_plan_of_one_input_trains_as_the_baseline_without_mixing(context):
    ours, theirs = plan_of(context, inputs=1, repetitions=1), mixing.plan("none", TRAINING, context, 0)
    assert ours.clock == theirs.clock
    np.testing.assert_allclose(trained(ours, 6), trained(theirs, 6), rtol=1e-5)
    state = ours.network.plain().network.state_dict()
    for name, value in theirs.network.network.state_dict().items():
        torch.testing.assert_close(state[name], value, rtol=1e-4, atol=1e-6)


# --- patches over time -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("epoch", "expected"),
    [(1, 0.5), (150, 0.5), (274, 0.5), (275, 0.5), (276, 0.48), (288, 0.24), (299, 0.02), (300, 0.0)],
)
def test_patches_are_given_up_over_the_last_twelfth_of_the_epochs(epoch, expected):
    """Algorithm A.6 with 300 epochs, counted from 1: the last 25 have 24/25, 23/25, … of p."""
    for step in (0, 9):  # of ten
        clock = Clock(3000, 10, (epoch - 1) * 10 + step)
        assert patch_probability(clock, 0.5) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("steps", "step", "expected"),
    [(20, 0, 1.0), (20, 18, 1.0), (20, 19, 0.6), (15, 13, 1.0), (15, 14, 0.8), (3, 0, 1.0), (110, 105, 60 / 110)],
)
def test_of_few_epochs_the_last_twelfth_has_fewer_patches_with_each_step(steps, step, expected):
    """Two epochs, one and a half, a third of one, and eleven."""
    assert patch_probability(Clock(steps, 10, step), 1.0) == pytest.approx(expected)


def test_patches_come_as_often_as_they_should_and_for_the_whole_batch():
    made = MixMo(network(2), CLASSES, patch_probability=0.3)
    kinds = [run(made, seed)[1]["patches"].item() for seed in range(300)]
    assert set(kinds) == {0.0, 1.0} and 0.23 < np.mean(kinds) < 0.37
    late = Clock(1200, 100, 1150)
    assert not any(run(made, seed, late)[1]["patches"] for seed in range(30))


def test_both_inputs_have_half_the_place_over_many_steps():
    made = MixMo(network(2), CLASSES, patch_probability=1.0)
    shares = np.mean([[run(made, seed)[1][f"share_{i}"].item() for i in (0, 1)] for seed in range(300)], axis=0)
    np.testing.assert_allclose(shares, 0.5, atol=0.04)


# --- plans -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("repetitions", [1, 2, 3])
def test_each_image_comes_b_times_in_b_times_as_many_steps_at_a_bth_of_the_rate(context, repetitions):
    once, plan = plan_of(context, repetitions=1), plan_of(context, repetitions=repetitions)
    assert plan.clock.steps_per_epoch == repetitions * once.clock.steps_per_epoch == repetitions * 12 // 6
    assert plan.clock.steps == repetitions * once.clock.steps
    labels = []
    for step in range(plan.clock.steps_per_epoch):
        indices, _ = plan.stream.indices(step)
        assert len(indices) == 6 and indices.bincount(minlength=12).max() == repetitions
        assert len(indices.unique()) == 6 // repetitions
        labels += indices.tolist()
    assert [labels.count(image) for image in range(12)] == [repetitions] * 12
    per_epoch = plan.clock.steps_per_epoch
    for epoch in (0, 1, 2, 4, 6):
        # Two epochs of warm-up, along a cosine of seven
        part = min(1.0, (epoch + 1 / per_epoch) / 2) * (1 + math.cos(math.pi * epoch / 7)) / 2
        rate = plan.tasks["classifier"].rate(replace(plan.clock, step=epoch * per_epoch))
        assert rate == pytest.approx(0.1 / repetitions * part)


def test_repeated_images_are_augmented_apart(context):
    (images,) = next(plan_of(context, repetitions=2).stream.from_step(0)).labelled
    assert not any(torch.equal(one, other) for one, other in zip(images[:3], images[3:], strict=True))


def test_what_is_stopped_and_goes_on_equals_what_never_stopped(context):
    """Losses bit for bit, from weights, momenta and the clock alone."""
    whole = plan_of(context, inputs=3)
    losses = trained(whole, 20)
    stopped = plan_of(context, inputs=3)
    before = trained(stopped, 7)
    again = plan_of(context, seed=0, inputs=3)
    task, old = again.tasks["classifier"], stopped.tasks["classifier"]
    task.objective.load_state_dict(old.objective.state_dict())
    task.optimizer.load_state_dict(old.optimizer.state_dict())
    again.clock.step = 7
    assert before + trained(again, 13) == losses


def test_all_parameters_are_trained_and_decay(context):
    plan = plan_of(context, inputs=3)
    (group,) = plan.tasks["classifier"].optimizer.param_groups
    assert {id(p) for p in group["params"]} == {id(p) for p in plan.network.parameters()}
    assert group["weight_decay"] == 5e-4
    first = [p.detach().clone() for p in plan.network.parameters()]
    trained(plan, 2)
    assert not any(torch.equal(*pair) for pair in zip(first, plan.network.parameters(), strict=True))


def test_as_many_others_as_samples_and_as_many_inputs_as_images_and_no_more(context):
    """On a network that is laid out as the settings say."""
    training = replace(TRAINING, views=2)
    plan = mixmo.plan(Settings(cutmix=0.5, inputs=TRAINING.batch), training, context, 0, measure=measure)
    batch = next(plan.stream.from_step(0))
    assert len(batch.labelled[0]) == len(batch.unlabelled[0]) == 2 * TRAINING.batch
    assert plan.network.inputs == TRAINING.batch
    kernels = [p for p in plan.network.core.parameters() if p.ndim == 4 and p.shape[1] > 1 and p.shape[2] > 1]
    assert kernels and all(kernel.is_contiguous(memory_format=torch.channels_last) for kernel in kernels)


@pytest.mark.parametrize("crop", [None, 8])
@pytest.mark.parametrize("ensemble", ["logits", "probabilities"])
def test_members_are_scored_on_all_images_in_their_order(context, ensemble, crop):
    """In the middle of them, where training is on crops."""
    seen = {}
    plan = mixmo.plan(
        Settings(ensemble=ensemble), replace(TRAINING, crop=crop), context, 0, measure=lambda members, labels:
        seen.update(members=members, labels=labels) or {"accuracy": 0.5},
    )  # fmt: skip
    network, test = plan.network.eval(), context.dataset.test
    figures, logits = plan.score(network, test, [3, 1, 14])
    assert figures == {"accuracy": 0.5}
    images = test.images.gather(torch.tensor([3, 1, 14])).float() / 255
    images = images if crop is None else images[:, :, 4:12, 4:12]
    torch.testing.assert_close(seen["members"], network.members(images), rtol=1e-5, atol=1e-5)
    assert seen["labels"].tolist() == test.labels[[3, 1, 14]].tolist()
    nothing = plan.score(network, test, [])
    assert math.isnan(nothing.figures["accuracy"]) and nothing.logits is None
    assert torch.equal(logits, network(images))
    torch.testing.assert_close(network(images), ensembled(network.members(images), ensemble))


def test_variants_are_the_methods():
    of = Settings(inputs=3, mask="fmix", repetitions=4, alpha=1.5)
    assert variant("cut-mixmo", of) == of
    assert variant("linear-mixmo", of) == replace(of, patch_probability=0.0)
    assert variant("mimo", of) == replace(of, patch_probability=0.0, alpha=inf)
    assert variant("plain", of) == replace(of, inputs=1, repetitions=1)
    with pytest.raises(InputError, match=r"^methods: 'mixup' is unknown; there are plain, mimo"):
        variant("mixup", of)


def test_the_core_of_every_variant_begins_as_the_plain_network(context):
    plans = {name: mixmo.plan(variant(name, Settings()), TRAINING, context, 3, measure=measure) for name in
             mixmo.TITLES}  # fmt: skip
    plain = dict(plans["plain"].network.core.named_parameters())
    for plan in plans.values():
        assert all(torch.equal(plain[name], own) for name, own in plan.network.core.named_parameters())


# --- bad input ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        dict(inputs=0), dict(inputs=17), dict(mask="saliency"), dict(patch_probability=1.1), dict(alpha=0.0),
        dict(alpha=-inf), dict(root=0.0), dict(root=-3.0), dict(root=float("nan")), dict(repetitions=0),
        dict(input_repetition=-0.1), dict(ensemble="votes"), dict(inputs=True), dict(encoders="two"),
        dict(classifiers="two"), dict(cutmix=1.1), dict(attribution="early"),
    ],
)  # fmt: skip
def test_settings_out_of_range_are_refused(changes):
    (field,) = changes
    with pytest.raises(InputError, match=f"^{field}"):
        Settings(**changes)


@pytest.mark.parametrize(
    ("changes", "training", "words"),
    [
        (dict(inputs=7, repetitions=1), {}, "method.inputs: 7, but a batch has 6 images"),
        (dict(attribution="encoding"), {}, "method.attribution: encoding tells inputs apart that one encoder sees"),
        (dict(attribution="embedding", encoders="one", classifiers="random"), {}, "method.attribution: embedding"),
        (dict(repetitions=4), {}, "repetitions = 4: does not divide the 6"),
        ({}, dict(network="vit_tiny_patch16_224"), "network: the first layer of VisionTransformer is no convolution"),
        (dict(repetitions=2), dict(batch=60), "batch = 60: 30 different ones are more than the 12"),
        (dict(repetitions=1), dict(batch=60, views=3), "batch = 60: 60 different ones are more than the 12"),
    ],
)
def test_plans_that_cannot_be_made_are_refused(context, changes, training, words):
    with pytest.raises(InputError, match=f"^{words}"):
        plan_of(context, training=replace(TRAINING, **training), **changes)


def test_masks_that_vanish_are_refused_before_anything_trains(context):
    tiny = replace(TRAINING, crop=2)
    with pytest.raises(InputError, match=r"^mask: cutmix on encodings of 2×2"):
        plan_of(context, training=tiny)
    assert plan_of(context, training=tiny, patch_probability=0.0).clock.steps


@pytest.mark.parametrize(
    "changes",
    [dict(cutmix=-0.1), dict(patch_probability=-0.1), dict(smoothing=1.1), dict(root=0.0), dict(root=float("nan"))],
)
def test_objectives_out_of_range_are_refused(changes):
    (field,) = changes
    with pytest.raises(InputError, match=f"^{field}: "):
        MixMo(network(), CLASSES, **changes)
