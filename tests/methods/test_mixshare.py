"""MixShare against sums written out in float64 and against MixMo on the same draws."""

from dataclasses import replace
from itertools import islice
from math import inf

import numpy as np
import pytest
import torch
from objectives import MixMo, MixShare
from torch import nn
from torch.nn import functional as F

from hybridgen.methods import mixmo, mixshare
from hybridgen.methods.labelled import TrainingSettings
from hybridgen.methods.mixshare import TITLES, Settings, compared, faded, variant
from hybridgen.mixing.inputs import cut_others_in, mix_inputs
from hybridgen.networks.multi_input import MultiInputClassifier
from hybridgen.training.fit import fit
from hybridgen.training.schedules import Clock
from hybridgen.types import Batch, InputError

CLASSES, COUNT = 4, 6
STATISTICS = dict(mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25))
START = Clock(12_000, 10)
"""Of 1200 epochs."""


class Toy(nn.Module):
    """A convolution, tanh, a second one to a map of half the side, tanh, the mean over the map and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.deep = nn.Conv2d(3, 5, 3, padding=1, bias=False), nn.Conv2d(5, 8, 2, 2, bias=False)
        self.fc = nn.Linear(8, CLASSES)
        self.num_features, self.num_classes = 8, CLASSES

    def forward_features(self, images):
        return torch.tanh(self.deep(torch.tanh(self.conv(images))))

    def forward_head(self, features, pre_logits=False):
        pooled = features.mean((2, 3))
        return pooled if pre_logits else self.fc(pooled)


def network(inputs: int = 2, **more) -> MultiInputClassifier:
    torch.manual_seed(0)
    return MultiInputClassifier([Toy() for _ in range(inputs)], **STATISTICS, ensemble="logits", **more).double()


def batch() -> Batch:
    images = torch.rand(COUNT, 3, 8, 10, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return Batch((images,), torch.tensor([0, 1, 2, 3, 1, 2]), ())


def run(made: nn.Module, seed: int = 7, clock: Clock = START):
    torch.manual_seed(seed)
    return made(batch(), clock)


def convolved(images: np.ndarray, kernels: np.ndarray, stride: int) -> np.ndarray:
    """[channels, rows, columns] of one image, without padding."""
    side = kernels.shape[2]
    rows, columns = ((length - side) // stride + 1 for length in images.shape[1:])
    made = np.zeros((len(kernels), rows, columns))
    for y in range(rows):
        for x in range(columns):
            seen = images[:, stride * y : stride * y + side, stride * x : stride * x + side]
            made[:, y, x] = (kernels * seen).sum(axis=(1, 2, 3))
    return made


def written_out(made, *, patches="cutmix", root=1.0, part=1.0, hidden=0.0, classifiers="own", repeated=0.1) -> float:
    """Algorithm A.7, image by image and place by place, on the draws of `run`; masks fade by `hidden`."""
    inputs = made.inputs
    torch.manual_seed(7)
    torch.rand(())
    drawn = mix_inputs(COUNT, (8, 10), inputs=inputs, patches=patches, alpha=2.0, repeated=repeated)
    chosen = torch.rand(inputs, COUNT).argsort(dim=0) if classifiers == "random" else None
    (images,), labels = batch()[:2]
    shown = (images.numpy() - np.reshape(STATISTICS["mean"], (3, 1, 1))) / np.reshape(STATISTICS["std"], (3, 1, 1))
    array = lambda tensor: tensor.detach().numpy()
    total = 0.0
    for n in range(COUNT):
        share = {drawn.order[0]: np.ones((8, 10))}
        for i, each in zip(drawn.order[1:], drawn.mixings, strict=True):
            mask = np.broadcast_to(each.mask[n, 0].double().numpy(), (8, 10))
            share = {j: mask * own for j, own in share.items()} | {i: 1 - mask}
        padded = [np.pad(shown[drawn.partners[i, n]], ((0, 0), (1, 1), (1, 1))) for i in range(inputs)]
        maps = [convolved(padded[i], array(made.encoders[i].weight), 1) for i in range(inputs)]
        mixed = inputs * sum(share[i] * maps[i] for i in range(inputs))
        last = np.tanh(convolved(np.tanh(mixed), array(made.core.deep.weight), 2))
        kappa = np.array([share[i].mean() for i in range(inputs)])
        powers = kappa ** (1 / root)
        order = {"own": range(inputs), "random": None if chosen is None else chosen[:, n].tolist(),
                 "predominant": sorted(range(inputs), key=lambda i: -kappa[i])}[classifiers]  # fmt: skip
        for head, i in enumerate(order):
            mask = share[i].reshape(4, 2, 5, 2).mean(axis=(1, 3))
            mask = mask + hidden * (1 - mask)
            seen = np.stack([one * mask if c < round(part * 8) else one for c, one in enumerate(last)])
            pooled = seen.mean(axis=(1, 2))
            logits = array(made.heads[head].weight) @ pooled + array(made.heads[head].bias)
            cross_entropy = np.log(np.exp(logits).sum()) - logits[labels[drawn.partners[i, n]]]
            total += inputs * powers[i] / powers.sum() * cross_entropy / COUNT
    return total


# --- the loss ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("classifiers", ["own", "random", "predominant"])
@pytest.mark.parametrize("inputs", [2, 3])
@pytest.mark.parametrize(
    ("root", "part", "epoch"), [(1.0, 1.0, 0.0), (3.0, 0.25, 0.0), (1.0, 1.0, 37.5), (inf, 0.6, 9)]
)
def test_the_loss_of_a_step_is_algorithm_a7_written_out(inputs, root, part, epoch, classifiers):
    made = network(inputs)
    objective = MixShare(made, CLASSES, root=root, part=part, classifiers=classifiers)
    losses, rates, *_ = run(objective, clock=replace(START, step=int(10 * epoch)))
    expected = written_out(made, root=root, part=part, hidden=epoch / 100, classifiers=classifiers)
    assert losses.keys() == {"supervised"} and losses["supervised"].item() == pytest.approx(expected, rel=1e-6)
    assert rates["patches"] == 1 and rates["unmixing"].item() == pytest.approx(1 - epoch / 100)
    assert sum(rates[f"share_{i}"].item() for i in range(inputs)) == pytest.approx(1)


@pytest.mark.parametrize("patches", ["fmix", "horizontal-concat"])
def test_other_masks_unmix_as_they_mix(patches):
    made = network()
    assert run(MixShare(made, CLASSES, mask=patches))[0]["supervised"].item() == pytest.approx(
        written_out(made, patches=patches), rel=1e-6
    )


def test_one_encoder_serves_unmixing_too():
    made = network(one_encoder=True)
    loss = run(MixShare(made, CLASSES))[0]["supervised"].item()
    assert made.encoders[0] is made.encoders[1] and loss == pytest.approx(written_out(made), rel=1e-6)


def test_others_within_the_images_are_unmixed_with_them():
    made, labels = network(), torch.arange(20) % CLASSES
    others = torch.rand(COUNT, 3, 8, 10, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    given = batch()._replace(unlabelled=(others,), indices=torch.arange(9, 9 + COUNT))
    torch.manual_seed(7)
    loss = MixShare(made, CLASSES, cutmix=0.7, labels=labels)(given, START).losses["supervised"]
    torch.manual_seed(7)
    torch.rand(())
    drawn = mix_inputs(COUNT, (8, 10), inputs=2, patches="cutmix", alpha=2.0, repeated=0.1)
    (images,), one_hot = batch().labelled, lambda classes: F.one_hot(classes, CLASSES).double()
    shown, targets = [], []
    for i in (0, 1):
        mixing, parts = cut_others_in(drawn.masks[i], (8, 10), 0.7)
        keep, part = mixing.mask.double(), parts.double()[:, None]
        shown.append(keep * images[drawn.partners[i]] + (1 - keep) * others[mixing.partner])
        mine, theirs = one_hot(batch().labels[drawn.partners[i]]), one_hot(labels[9 + mixing.partner])
        targets.append(part * mine + (1 - part) * theirs)
    logits = made.decode(drawn.mix(made.encode(shown)), drawn.masks)
    each = [2 * drawn.ratios[i].double() * -(targets[i] * logits[i].log_softmax(1)).sum(1) for i in (0, 1)]
    torch.testing.assert_close(loss, sum(each).mean(), rtol=1e-5, atol=1e-6)


def test_answers_in_half_precision_are_compared_in_single():
    made, answers = network(), torch.randn(2, COUNT, CLASSES, generator=torch.Generator().manual_seed(3)).bfloat16()
    losses = []
    for given in (answers, answers.float()):
        made.decode = lambda *_, given=given, **__: given
        losses.append(run(MixShare(made, CLASSES))[0]["supervised"])
    assert losses[0].dtype == torch.float32 and torch.equal(*losses)


def test_smoothing_is_that_of_every_target():
    made = network()
    sharp, smooth = (
        run(MixShare(made, CLASSES, input_repetition=1.0, root=inf, smoothing=by))[0]["supervised"] for by in (0.0, 0.3)
    )
    torch.manual_seed(7)
    torch.rand(())
    drawn = mix_inputs(COUNT, (8, 10), inputs=2, patches="cutmix", alpha=2.0, repeated=1.0)
    (images,), labels = batch()[:2]
    logits = made.decode(drawn.mix(made.encode([images, images])), drawn.masks)
    by_torch = [sum(F.cross_entropy(each, labels, label_smoothing=by) for each in logits) for by in (0.0, 0.3)]
    torch.testing.assert_close(torch.stack([sharp, smooth]), torch.stack(by_torch), rtol=1e-6, atol=1e-6)


def test_a_part_of_the_images_is_at_all_inputs():
    made, seen = network(3), []
    made.encode = lambda inputs: seen.extend(inputs) or MultiInputClassifier.encode(made, inputs)
    run(MixShare(made, CLASSES, input_repetition=1.0))
    assert len(seen) == 3 and all(torch.equal(each, batch().labelled[0]) for each in seen)


@pytest.mark.parametrize("chance", [0.0, 0.5, 1.0])
def test_patches_come_by_their_chance_up_to_the_end(chance):
    made = MixShare(network(), CLASSES, patch_probability=chance)
    last = replace(START, step=START.steps - 1)
    kinds = [run(made, seed, last)[1]["patches"].item() for seed in range(40)]
    assert abs(np.mean(kinds) - chance) < 0.25 and (chance == 0.5 or set(kinds) == {chance})


def test_compiled_it_learns_the_same():
    made = network()
    loss = lambda: run(MixShare(made, CLASSES, part=0.25))[0]["supervised"]
    expected = loss()
    made.compile(backend="eager")
    torch.testing.assert_close(loss(), expected)


# --- fading ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("epoch", "expected"), [(0, 0), (25, 0.25), (50.5, 0.505), (99.9, 0.999), (100, 1), (300, 1)])
def test_r_is_the_epoch_of_a_hundred_and_stays_1(epoch, expected):
    """3.4.2.3: r = min(1, epoch / 100)."""
    assert faded(Clock(3000, 10, round(10 * epoch)), 100.0) == pytest.approx(expected)
    assert faded(Clock(3000, 10, round(10 * epoch)), inf) == 0


@pytest.mark.parametrize("inputs", [2, 3])
def test_faded_out_it_is_mixmo_to_the_last_bit(inputs):
    """And before the end it is not."""
    made = network(inputs)
    loss = lambda objective, step: run(objective, clock=replace(START, step=step))[0]["supervised"]
    theirs = MixMo(made, CLASSES, patch_probability=1.0, root=1.0, input_repetition=0.1)
    ours = MixShare(made, CLASSES)
    assert all(torch.equal(loss(ours, step), loss(theirs, step)) for step in (1000, 5000))
    assert not torch.isclose(loss(ours, 990), loss(theirs, 990), rtol=1e-9)
    none = MixShare(made, CLASSES, part=0.0)
    assert torch.equal(loss(none, 0), loss(theirs, 0))


def test_what_does_not_fade_is_the_same_to_the_end():
    made = MixShare(network(), CLASSES, fade=inf)
    first, *others = (run(made, clock=replace(START, step=step))[0]["supervised"] for step in (0, 1000, 11_999))
    assert all(torch.equal(first, other) for other in others)


# --- who learns from what ------------------------------------------------------------------------------------------


def test_each_encoder_learns_from_its_own_answer_alone_where_masks_are_whole():
    """Of a core without reach beyond a place, all of whose masks fall on the edges of the last map's places."""
    made, losses = network(), mixshare.answer_losses

    def halved(*given, **more):
        drawn = mix_inputs(*given, **more)
        (mixing,) = drawn.mixings
        mask = (torch.arange(10) < 4).float().expand(COUNT, 1, 8, 10)
        return replace(drawn, mixings=(replace(mixing, mask=mask),))

    for head in (0, 1):
        made.zero_grad()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(mixshare, "mix_inputs", halved)
            patch.setattr(mixshare, "answer_losses", lambda *given, head=head: losses(*given)[head : head + 1])
            run(MixShare(made, CLASSES, input_repetition=0.0))[0]["supervised"].backward()
        own, other = (made.encoders[i].weight.grad for i in (head, 1 - head))
        assert own.abs().max() > 0 and not other.any()
        assert not made.heads[1 - head].weight.grad.any() and made.heads[head].weight.grad.any()


# --- plans -------------------------------------------------------------------------------------------------------

TRAINING = TrainingSettings(network="wrn-10-1", batch=6, epochs=7.0, warmup=2.0)


def measure(members, labels) -> dict[str, float]:
    return {"accuracy": (members.mean(0).argmax(1) == labels).double().mean().item(), "images": float(len(labels))}


def plan_of(context, seed: int = 0, training: TrainingSettings = TRAINING, **changes):
    return mixshare.plan(Settings(**changes), training, context, seed, measure=measure)


def trained(plan, steps: int, seed: int = 0) -> list[float]:
    batches = plan.stream.from_step(plan.clock.step)
    done = islice(fit(plan.tasks, batches, plan.clock, plan.context.accelerator, seed=seed), steps)
    return [each["classifier/supervised"].item() for each in done]


def kernels(plan) -> list[torch.Tensor]:
    return [encoder.weight.detach().clone() for encoder in plan.network.encoders]


@pytest.mark.parametrize("inputs", [2, 3])
def test_kernels_begin_equal_and_drift_apart(context, inputs):
    plan, drawn = plan_of(context, inputs=inputs), plan_of(context, inputs=inputs, kernels="apart")
    first, *others = kernels(plan)
    assert torch.equal(first, kernels(drawn)[0]) and all(torch.equal(first, other) for other in others)
    core = dict(drawn.network.core.named_parameters())
    assert all(torch.equal(core[name], own) for name, own in plan.network.core.named_parameters())
    trained(plan, 2)
    assert len({tuple(each.flatten().tolist()) for each in kernels(plan)}) == inputs


def test_collinear_kernels_have_the_lengths_that_they_were_drawn_with_and_drift_apart(context):
    plan, drawn = plan_of(context, inputs=3, kernels="collinear"), kernels(plan_of(context, inputs=3, kernels="apart"))
    first, *others = kernels(plan)
    assert torch.equal(first, drawn[0])
    cosine = lambda one, other: F.cosine_similarity(one.flatten(1), other.flatten(1), dim=1)
    for other, own in zip(others, drawn[1:], strict=True):
        torch.testing.assert_close(cosine(first, other), torch.ones(len(first)), rtol=0, atol=1e-6)
        torch.testing.assert_close(other.flatten(1).norm(dim=1), own.flatten(1).norm(dim=1))
        assert (other.flatten(1).norm(dim=1) / first.flatten(1).norm(dim=1) - 1).abs().max() > 0.02
    assert cosine(drawn[0], drawn[1]).abs().max() < 0.9
    trained(plan, 2)
    assert (1 - cosine(*kernels(plan)[:2])).max() > 1e-5


def test_an_image_alone_is_answered_from_the_sum_of_its_encodings(context):
    """In one forward, of which the network that is left is a plain form."""
    plan = plan_of(context, inputs=3, kernels="collinear")
    trained(plan, 1)
    made = plan.network.eval()
    images = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(5))
    shown = (images - made.normalize.mean) / made.normalize.std
    encoded = sum(F.conv2d(shown, encoder.weight, padding=1) for encoder in made.encoders)
    pooled = made.core.forward_features(encoded).mean((2, 3))
    expected = torch.stack([pooled @ head.weight.T + head.bias for head in made.heads])
    torch.testing.assert_close(made.members(images), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(made.plain()(images), expected.mean(0), rtol=1e-4, atol=1e-4)


def test_what_is_stopped_and_goes_on_equals_what_never_stopped(context):
    """From weights, momenta and the clock alone, while unmixing fades."""
    changes = dict(inputs=3, fade=4.0, kernels="collinear")
    losses = trained(plan_of(context, **changes), 12)
    stopped, again = plan_of(context, **changes), plan_of(context, **changes)
    before = trained(stopped, 5)
    task, old = again.tasks["classifier"], stopped.tasks["classifier"]
    task.objective.load_state_dict(old.objective.state_dict())
    task.optimizer.load_state_dict(old.optimizer.state_dict())
    again.clock.step = 5
    assert before + trained(again, 7) == losses


@pytest.mark.parametrize(
    ("changes", "part", "fade"),
    [
        ({}, 1.0, 100.0), (dict(fade=3.0), 1.0, 3.0), (dict(unmixing="partial"), 0.25, inf),
        (dict(unmixing="partial", part=0.5, fade=3.0), 0.5, inf), (dict(unmixing="whole", part=0.5), 1.0, inf),
    ],
)  # fmt: skip
def test_unmixing_is_weakened_in_one_way(context, changes, part, fade):
    objective = plan_of(context, **changes).tasks["classifier"].objective
    assert (objective.part, objective.fade) == (part, fade)


def test_variants_are_the_rows_of_table_36():
    of = Settings(inputs=3, mask="fmix", repetitions=4, alpha=1.5, ensemble="probabilities", root=2.0, fade=7.0,
                  cutmix=0.3, encoders="one")  # fmt: skip
    beside = mixmo.Settings(inputs=3, mask="fmix", repetitions=4, alpha=1.5, ensemble="probabilities", cutmix=0.3)
    assert variant("cut-mixmo", of) == beside and type(variant("cut-mixmo", of)) is mixmo.Settings
    assert variant("plain", of) == replace(beside, inputs=1, repetitions=1)
    assert variant("unmixing", of) == replace(of, unmixing="whole", kernels="apart")
    assert variant("unmixing-aligned", of) == replace(of, unmixing="whole")
    assert variant("mixshare-partial", of) == replace(of, unmixing="partial")
    assert variant("mixshare", replace(of, unmixing="partial")) == of
    with pytest.raises(InputError, match=r"^methods: 'mimo' is unknown; there are plain, cut-mixmo, unmixing"):
        variant("mimo", of)


def test_what_is_compared_is_each_methods_own_plan(context):
    kinds = {
        name: compared(name, Settings(fade=2.0), TRAINING, context, 3, measure=measure).tasks["classifier"].objective
        for name in TITLES
    }
    assert {name for name, each in kinds.items() if isinstance(each, mixmo.MixMo)} == {"plain", "cut-mixmo"}
    assert [each.classifier.inputs for each in kinds.values()] == [1, 2, 2, 2, 2, 2]
    assert (kinds["mixshare"].fade, kinds["mixshare-partial"].part, kinds["unmixing"].fade) == (2.0, 0.25, inf)
    plain = dict(kinds["plain"].classifier.core.named_parameters())
    for each in kinds.values():
        assert all(torch.equal(plain[name], own) for name, own in each.classifier.core.named_parameters())


# --- bad input ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        dict(kernels="parallel"), dict(unmixing="none"), dict(fade=0.0), dict(fade=inf), dict(part=1.1),
        dict(part=-0.1), dict(patch_probability=1.5), dict(root=0.0), dict(encoders="two"), dict(classifiers="⊗"),
    ],
)  # fmt: skip
def test_settings_out_of_range_are_refused(changes):
    (field,) = changes
    with pytest.raises(InputError, match=f"^{field}"):
        Settings(**changes)


@pytest.mark.parametrize(
    "changes",
    [dict(part=1.5), dict(cutmix=1.5), dict(fade=0.0), dict(fade=float("nan")), dict(classifiers="one"), 
     dict(root=0.0), dict(patch_probability=2.0), dict(smoothing=-1.0)],
)  # fmt: skip
def test_objectives_out_of_range_are_refused(changes):
    (field,) = changes
    with pytest.raises(InputError, match=f"^{field}: "):
        run(MixShare(network(), CLASSES, **changes))


@pytest.mark.parametrize(
    ("crop", "changes", "words"),
    [
        (2, {}, r"mask: cutmix on encodings of 2×2|network: its last map has 1×1 places"),
        (4, {}, r"network: its last map has 1×1 places; on fewer than 2 a side masks vanish"),
        (None, dict(classifiers="one"), r"classifiers: one answers for all inputs at once"),
        (None, dict(attribution="encoding", encoders="one"), r"method.attribution: encoding; MixShare's answers are"),
        (None, dict(inputs=7), r"method.inputs: 7, but a batch has 6 images"),
    ],
)  # fmt: skip
def test_plans_that_cannot_be_made_are_refused(context, crop, changes, words):
    with pytest.raises(InputError, match=f"^({words})"):
        plan_of(context, training=replace(TRAINING, crop=crop), **changes)


def test_one_input_has_nothing_to_unmix(context):
    assert plan_of(context, training=replace(TRAINING, crop=4), inputs=1).clock.steps
