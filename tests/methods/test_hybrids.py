"""The loss on hybrids: the four uses of table A.15 against references, and how hybrids are drawn or mixed."""

import math

import numpy as np
import pytest
import torch
from objectives import HybridUse
from torch import nn

from hybridgen.hybridizer import Hybridizer, Origin
from hybridgen.methods.hybrids import HybridInputs, Mixer, Teaching, WithHybrids, draw_hybrids, hybrid_loss
from hybridgen.networks.autoencoder import Architecture, SemanticAutoencoder
from hybridgen.training import objective
from hybridgen.training.objective import Outcome
from hybridgen.training.schedules import Clock
from hybridgen.types import Batch, InputError

BATCH, LABELLED, COPIES, CLASSES = 7, 3, 2, 4
NO_LABELS = torch.zeros(0, dtype=torch.int64)
CLOCK = Clock(steps=10, steps_per_epoch=1)


def draw(*shape, seed):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def softmax(rows):
    exponentials = np.exp(rows)
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


@pytest.fixture
def arguments():
    """Logits on the hybrids, targets and labels of the batch, partners and what is kept: some of each kind."""
    g = torch.Generator().manual_seed(3)
    kept = torch.tensor([1, 0, 1, 1, 1, 0, 1, 0, 1, 1, 1, 1, 1, 0], dtype=torch.bool)
    return {
        "logits": draw(BATCH * COPIES, CLASSES, seed=0).requires_grad_(),
        "targets": (2 * draw(BATCH, CLASSES, seed=1)).softmax(1).requires_grad_(),
        "labels": torch.tensor([2, 0, 3]),
        "partner": torch.cat([torch.randperm(BATCH, generator=g) for _ in range(COPIES)]),
        "kept": kept,
    }


def reference(use, alpha, reduction, threshold, *, logits, targets, labels, partner, kept):
    """Hybrid by hybrid: copy k of image i is row k · batch + i."""
    logits, targets = logits.detach().numpy(), targets.detach().numpy()
    total = 0.0
    for row in range(BATCH * COPIES):
        own, other = row % BATCH, int(partner[row])
        p = softmax(logits[row])
        if not kept[row]:
            continue
        if use in ("contradict", "consistency"):
            share = alpha if use == "contradict" else 1.0
            squared = (p - share * targets[own] - (1 - share) * targets[other]) ** 2
            total += squared.sum() if reduction == "sum" else squared.mean()
        elif use == "pseudo-label" and targets[own].max() >= threshold:
            total -= np.log(p[targets[own].argmax()])
        elif use == "labelled" and own < LABELLED:
            total -= np.log(p[int(labels[own])])
    return total / (COPIES * (LABELLED if use == "labelled" else BATCH))


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("use", ["contradict", "consistency", "pseudo-label", "labelled"])
def test_four_uses_against_a_reference(arguments, use, reduction):
    threshold = arguments["targets"].max(dim=1).values.median().item()  # reached by some, by one exactly
    how = HybridUse(use=use, alpha=0.8, copies=COPIES, reduction=reduction, threshold=threshold)
    loss = hybrid_loss(**arguments, how=how)
    assert loss.item() == pytest.approx(reference(use, 0.8, reduction, threshold, **arguments), rel=1e-12)
    assert loss > 0


def test_uses_differ(arguments):
    values = [
        hybrid_loss(**arguments, how=HybridUse(use=use, alpha=0.8, copies=COPIES, threshold=0.5)).item()
        for use in ("contradict", "consistency", "pseudo-label", "labelled")
    ]
    assert len({round(value, 6) for value in values}) == 4


def test_alpha_one_is_consistency(arguments):
    contradict = hybrid_loss(**arguments, how=HybridUse(alpha=1.0, copies=COPIES))
    assert torch.equal(contradict, hybrid_loss(**arguments, how=HybridUse(use="consistency", copies=COPIES)))


@pytest.mark.parametrize("use", ["contradict", "consistency", "pseudo-label", "labelled"])
def test_gradient_to_the_logits_of_hybrids_that_count_and_to_no_target(arguments, use):
    hybrid_loss(**arguments, how=HybridUse(use=use, alpha=0.9, copies=COPIES, threshold=0.5)).backward()
    counts = arguments["kept"].clone()
    if use == "pseudo-label":
        counts &= (arguments["targets"].max(dim=1).values >= 0.5).repeat(COPIES)
    if use == "labelled":
        counts &= (torch.arange(BATCH) < LABELLED).repeat(COPIES)
    assert 0 < counts.sum() < len(counts)
    assert torch.equal(arguments["logits"].grad.any(dim=1), counts)
    assert arguments["targets"].grad is None


def test_gradient_of_equation_2_13_by_the_formula(arguments):
    how = HybridUse(alpha=0.7, copies=COPIES)
    hybrid_loss(**arguments, how=how).backward()
    p = softmax(arguments["logits"].detach().numpy())
    targets = arguments["targets"].detach().numpy()
    mixed = 0.7 * np.tile(targets, (COPIES, 1)) + 0.3 * targets[arguments["partner"].numpy()]
    slope = 2 * (p - mixed) * arguments["kept"].numpy()[:, None] / len(p)
    expected = p * (slope - (slope * p).sum(axis=1, keepdims=True))
    np.testing.assert_allclose(arguments["logits"].grad.numpy(), expected, rtol=1e-9, atol=1e-15)


def test_without_any_kept_hybrid_the_loss_is_zero(arguments):
    arguments["kept"] = torch.zeros_like(arguments["kept"])
    for use in ("contradict", "consistency", "pseudo-label", "labelled"):
        assert hybrid_loss(**arguments, how=HybridUse(use=use, alpha=0.9, copies=COPIES)).item() == 0


# --- drawing --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hybridizer():
    torch.manual_seed(2)
    architecture = Architecture(
        image_size=16, classes=CLASSES, network="leaky-wrn-10-1", nonsemantic_channels=2, generator_channels=(4, 4)
    )
    autoencoder = SemanticAutoencoder(architecture).double().eval()
    with torch.no_grad():  # each class is as probable as another, so that images differ in theirs
        codes = autoencoder(torch.rand(50, 3, 16, 16, dtype=torch.float64))
        autoencoder.classifier.heads.predictions.bias -= codes.predictions.mean(0)
    return Hybridizer(autoencoder, Origin("none", "f" * 64, "0" * 16, ("a", "b", "c", "d")))


@pytest.fixture
def images():
    return torch.rand(BATCH, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def test_copy_k_of_image_i_is_row_k_times_batch_plus_i(hybridizer, images):
    torch.manual_seed(5)
    hybrids = draw_hybrids(hybridizer, images, NO_LABELS, copies=3, keep_consistent=False)
    torch.manual_seed(5)
    partner = [torch.randperm(BATCH) for _ in range(3)]
    assert hybrids.partner.tolist() == torch.cat(partner).tolist()
    for row in range(3 * BATCH):
        own, other = images[row % BATCH][None], images[hybrids.partner[row]][None]
        expected = hybridizer.hybridize(semantic=own, nonsemantic=other)[0]
        torch.testing.assert_close(hybrids.images[row], expected, rtol=1e-10, atol=1e-12)
    assert hybrids.kept.all() and len(hybrids.kept) == 3 * BATCH


def test_every_image_is_once_a_parent_of_each_kind_in_each_copy(hybridizer, images):
    hybrids = draw_hybrids(hybridizer, images, NO_LABELS, copies=3, keep_consistent=True)
    for copy in hybrids.partner.chunk(3):
        assert sorted(copy.tolist()) == list(range(BATCH))
    assert len({tuple(copy.tolist()) for copy in hybrids.partner.chunk(3)}) == 3


def test_keep_consistent_keeps_what_the_hybridizer_sees_as_its_semantic_parents_class(hybridizer, images):
    hybrids = draw_hybrids(hybridizer, images, NO_LABELS, copies=3, keep_consistent=True)
    parent = hybridizer.classify(images).argmax(1)
    expected = [
        bool(hybridizer.classify(hybrids.images[row][None]).argmax() == parent[row % BATCH]) for row in range(3 * BATCH)
    ]
    assert hybrids.kept.tolist() == expected
    assert 0 < sum(expected) < len(expected)


def test_hybrids_carry_no_gradient(hybridizer, images):
    hybrids = draw_hybrids(hybridizer, images.requires_grad_(), NO_LABELS, copies=1, keep_consistent=True)
    assert not hybrids.images.requires_grad


# --- mixing in the place of hybrids --------------------------------------------------------------------


def boxes(ratios, size):
    """CutMix's masks pixel by pixel, of the centres that come next from torch's generator: rows first."""
    centres = [torch.randint(size, (len(ratios), 1)).flatten().tolist() for _ in range(2)]
    masks = np.ones((len(ratios), 1, size, size))
    for i, ratio in enumerate(ratios):
        half = int(math.sqrt(1 - ratio) * size) // 2
        for row in range(size):
            for column in range(size):
                if all(-half <= at - centre[i] < half for at, centre in zip((row, column), centres, strict=True)):
                    masks[i, 0, row, column] = 0
    return masks


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_mixing_and_its_loss_against_a_reference(images, kind):
    """Copy k of image i is row k · batch + i, with a partner and a share of its own; each target is both parents'."""
    torch.manual_seed(5)
    hybrids = draw_hybrids(Mixer(kind), images, NO_LABELS, copies=3, keep_consistent=True)
    torch.manual_seed(5)
    partner = torch.cat([torch.randperm(BATCH) for _ in range(3)]).tolist()
    ratios = torch.rand(3 * BATCH, dtype=torch.float64).tolist()
    masks = boxes(ratios, 16) if kind == "cutmix" else np.reshape(ratios, (-1, 1, 1, 1))
    shares = masks.mean(axis=(1, 2, 3))
    own, other = images.numpy()[[row % BATCH for row in range(3 * BATCH)]], images.numpy()[partner]
    np.testing.assert_allclose(hybrids.images.numpy(), masks * own + (1 - masks) * other, rtol=1e-12)
    np.testing.assert_allclose(hybrids.share.numpy(), shares, rtol=1e-12)
    assert hybrids.partner.tolist() == partner and hybrids.kept.all()
    assert 0 < shares.min() < 0.5 and 0.7 < shares.max() <= 1

    logits, targets = draw(3 * BATCH, CLASSES, seed=0), draw(BATCH, CLASSES, seed=1).softmax(1)
    how, labels = HybridUse(copies=3), torch.tensor([1])
    loss = hybrid_loss(logits, targets, labels, hybrids.partner, hybrids.kept, how, hybrids.share)
    total = sum(
        (
            (softmax(logits[row].numpy()) - (shares[row] * t[row % BATCH] + (1 - shares[row]) * t[partner[row]])) ** 2
        ).sum()
        for t in [targets.numpy()]
        for row in range(3 * BATCH)
    )
    assert loss.item() == pytest.approx(total / (3 * BATCH), rel=1e-12)


def test_shares_equal_to_alpha_are_equation_2_13(arguments):
    how = HybridUse(alpha=0.8, copies=COPIES)
    share = torch.full((COPIES * BATCH,), 0.8, dtype=torch.float64)
    torch.testing.assert_close(hybrid_loss(**arguments, how=how, share=share), hybrid_loss(**arguments, how=how))
    assert not torch.allclose(hybrid_loss(**arguments, how=how, share=share - 0.3), hybrid_loss(**arguments, how=how))


@pytest.mark.parametrize("use", ["consistency", "pseudo-label", "labelled"])
def test_shares_are_of_the_contradicting_target_alone(arguments, use):
    how = HybridUse(use=use, copies=COPIES, threshold=0.5)
    share = torch.full((COPIES * BATCH,), 0.3, dtype=torch.float64)
    assert torch.equal(hybrid_loss(**arguments, how=how, share=share), hybrid_loss(**arguments, how=how))


class Taught(nn.Module):
    """An objective without losses of its own, that taught with these."""

    def __init__(self, *taught) -> None:
        super().__init__()
        self.taught = taught

    def forward(self, batch, clock):
        return Outcome({}, taught=lambda: objective.Taught(*self.taught))


def test_an_objective_learns_from_mixtures_without_knowing(images):
    """The loss is that of the drawn mixtures, and outside the window nothing is drawn."""
    targets, labels = draw(BATCH, CLASSES, seed=1).softmax(1), torch.tensor([2, 0])
    classify = lambda batch: batch.mean(dim=(2, 3)) @ draw(3, CLASSES, seed=2)
    how, source = HybridUse(copies=2, start=1.0, stop=2.0), Mixer("cutmix")
    taught = WithHybrids(Taught(images, targets, labels), classify, source, how)
    batch = Batch((images[:2],), labels, ())
    outcome = lambda step: taught(batch, Clock(steps=9, steps_per_epoch=3, step=step))
    torch.manual_seed(7)
    assert outcome(2).losses["hybrids"] == 0 == outcome(6).losses["hybrids"]
    inside = outcome(3)
    torch.manual_seed(7)
    drawn = draw_hybrids(source, images, labels, copies=2, keep_consistent=True)
    expected = hybrid_loss(classify(drawn.images), targets, labels, drawn.partner, drawn.kept, how, drawn.share)
    assert torch.equal(inside.losses["hybrids"], expected) and inside.rates["hybrids_kept"] == 1


def test_a_hybridizer_is_no_part_of_what_it_teaches(hybridizer):
    """Neither of its parameters nor of its checkpoints."""
    base = nn.Linear(2, 2)
    taught = WithHybrids(base, base, hybridizer, HybridUse())
    assert len(list(taught.parameters())) == len(taught.state_dict()) == 2


def test_hybrids_of_an_objective_that_does_not_say_what_it_taught_with():
    class Silent(nn.Module):
        def forward(self, batch, clock):
            return Outcome({})

    taught = WithHybrids(Silent(), lambda images: images, Mixer("mixup"), HybridUse())
    with pytest.raises(InputError, match=r"^hybrids: Silent does not say"):
        taught(Batch((torch.rand(1, 3, 4, 4),), torch.zeros(1, dtype=torch.int64), ()), CLOCK)


def test_hybrids_of_labelled_images_are_kept_by_their_label(hybridizer, images):
    """2.4.2: "we only keep the generated hybrid if C(E_c(x_h)) = y(1)"; of others by the class seen in the parent."""
    seen = hybridizer.classify(images).argmax(1)
    labels = (seen[:3] + torch.tensor([0, 1, 2])) % CLASSES  # of the second and third another than is seen
    torch.manual_seed(5)
    hybrids = draw_hybrids(hybridizer, images, labels, copies=3, keep_consistent=True)
    classes = hybridizer.classify(hybrids.images).argmax(1)
    for row in range(3 * BATCH):
        own = row % BATCH
        assert hybrids.kept[row] == (classes[row] == (labels[own] if own < 3 else seen[own]))
    plain = draw_hybrids(hybridizer, images, NO_LABELS, copies=3, keep_consistent=True)
    assert not torch.equal(plain.kept, hybrids.kept)


def test_a_mixture_leaves_nothing_out(hybridizer, images):
    assert draw_hybrids(hybridizer, images, NO_LABELS, copies=1, keep_consistent=True).share is None
    assert draw_hybrids(Mixer("mixup"), images, NO_LABELS, copies=1, keep_consistent=True).kept.all()


# --- how and when ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [0.5, 0.0, -0.1, 1.01, math.nan])
def test_alpha_outside_its_range(alpha):
    with pytest.raises(InputError, match=f"^alpha: {alpha} should be "):
        HybridUse(alpha=alpha)


def test_alpha_inside_its_range():
    assert HybridUse(alpha=0.501).alpha == 0.501 and HybridUse(alpha=1.0).alpha == 1.0


def test_other_bad_input():
    with pytest.raises(InputError, match=r"^copies: 0"):
        HybridUse(copies=0)


def test_window_is_half_open_in_epochs():
    how = HybridUse(start=50.0, stop=150.0)
    active = {step: how.active(Clock(steps=3000, steps_per_epoch=10, step=step)) for step in (0, 499, 500, 1499, 1500)}
    assert active == {0: False, 499: False, 500: True, 1499: True, 1500: False}


def test_defaults_are_the_thesis():
    how = HybridUse()
    assert (how.use, how.reduction, how.keep_consistent) == ("contradict", "sum", True)


@pytest.mark.parametrize(
    ("size", "epochs", "values"),
    [
        (16, 14, (0.9, 3, 1.5, 12)),
        (16, 300, (0.9, 3, 1.5, 12)),
        (17, 14, (0.6, 1, 14 / 3, 12)),
        (32, 300, (0.6, 1, 100, 300 * 6 / 7)),
    ],
)
def test_what_is_not_given_is_chosen_by_the_size_of_the_images(size, epochs, values):
    chosen = lambda **given: Teaching(use="consistency", weight=2.0, **given).chosen(size, epochs)
    of = lambda how: (how.alpha, how.copies, how.start, how.stop)
    assert of(chosen()) == pytest.approx(values) and (chosen().use, chosen().weight) == ("consistency", 2.0)
    for place, (name, value) in enumerate(dict(alpha=0.7, copies=2, start=0.0, stop=9.0).items()):
        expected = [*values[:place], value, *values[place + 1 :]]
        assert of(chosen(**{name: value})) == pytest.approx(expected)
    own = Teaching().chosen(size, epochs, (2.5, 6.5))
    assert (own.start, own.stop) == ((2.5, 6.5) if size == 16 else pytest.approx(values[2:]))


# --- hybrids among the labelled images (3.3.7) -----------------------------------------------------------------------


class Seen(nn.Module):
    """An objective that keeps the batch, and has one loss and one rate."""

    def forward(self, batch, clock):
        self.batch = batch
        return Outcome({"supervised": batch.labelled[0].sum()}, {"ratio": torch.tensor(0.5)})


@pytest.mark.parametrize("consistent", [True, False])
def test_hybrids_stand_for_a_part_of_the_images_and_have_their_labels(hybridizer, images, consistent):
    labels = torch.arange(BATCH) % CLASSES
    made = HybridInputs(Seen(), hybridizer, share=0.7, keep_consistent=consistent)
    torch.manual_seed(5)
    outcome = made(Batch((images,), labels, ("more",)), CLOCK)
    torch.manual_seed(5)
    stood, others = torch.randperm(BATCH)[:5].tolist(), torch.randperm(BATCH)[:5].tolist()
    shown, count = made.base.batch.labelled[0], 0
    for place in range(BATCH):
        expected = images[place]
        if place in stood:
            other = images[others[stood.index(place)]]
            hybrid = hybridizer.hybridize(semantic=images[place][None], nonsemantic=other[None])
            if not consistent or hybridizer.classify(hybrid).argmax() == labels[place]:
                expected, count = hybrid[0], count + 1
        torch.testing.assert_close(shown[place], expected, rtol=1e-9, atol=1e-10)
    assert count == 5 or (consistent and count > 0)
    assert outcome.rates == {"ratio": 0.5, "hybrids": torch.tensor(count / BATCH)}
    assert torch.equal(made.base.batch.labels, labels) and made.base.batch.unlabelled == ("more",)
    assert not shown.requires_grad and torch.equal(outcome.losses["supervised"], shown.sum())


def test_without_a_share_all_images_stay(hybridizer, images):
    made = HybridInputs(Seen(), hybridizer, share=0.0, keep_consistent=True)
    assert not list(made.parameters()) and not made.state_dict()
    assert made(Batch((images,), torch.zeros(BATCH, dtype=torch.int64), ()), CLOCK).rates["hybrids"] == 0
    assert torch.equal(made.base.batch.labelled[0], images)


def test_hybrids_stand_for_one_view_alone(hybridizer, images):
    made = HybridInputs(Seen(), hybridizer, share=0.5, keep_consistent=True)
    with pytest.raises(InputError, match=r"^hybridizer: of 2 views of labelled images"):
        made(Batch((images, images), torch.zeros(BATCH, dtype=torch.int64), ()), CLOCK)
