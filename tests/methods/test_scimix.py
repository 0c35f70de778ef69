"""Stage 1 of SciMix against a plain float64 reference: every loss, every gradient, every buffer."""

import copy
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from objectives import SciMixDiscriminator, SciMixGenerator
from torch import nn

from hybridgen.data.augment import diff_augment
from hybridgen.networks.autoencoder import Architecture, SemanticAutoencoder
from hybridgen.networks.discriminator import Discriminator, FeatureDiscriminator
from hybridgen.training.fit import fit
from hybridgen.training.objective import Task, sgd
from hybridgen.training.schedules import Clock
from hybridgen.types import Batch

LABELLED, UNLABELLED, CLASSES, SEED = 3, 5, 4, 7
COUNT = LABELLED + UNLABELLED
CLOCK = Clock(steps=10, steps_per_epoch=5)
STATISTICS = {"mean": (0.5, 0.375, 0.25), "std": (0.25, 0.1875, 0.3125)}  # exact in binary

AUTOENCODING = ("reconstruction", "adversarial_reconstruction")
HYBRIDIZATION = (
    "adversarial_hybrid",
    "semantic_attraction",
    "semantic_repulsion",
    "nonsemantic_attraction",
    "nonsemantic_repulsion",
)
GUIDES = {
    "mean-teacher": ("supervised", "consistency", "logit_distance"),
    "fixmatch": ("supervised", "pseudo_label"),
    "supervised": ("supervised",),
}
PARTS = {
    "E_c": "autoencoder.classifier.encoder",
    "C1": "autoencoder.classifier.heads.predictions",
    "C2": "autoencoder.classifier.heads.consistency",
    "E_r": "autoencoder.nonsemantic_encoder",
    "G": "autoencoder.generator",
}


def views(count, number, seed):
    g = torch.Generator().manual_seed(seed)
    return tuple(torch.rand(count, 3, 16, 16, dtype=torch.float64, generator=g) for _ in range(number))


@pytest.fixture
def batch():
    return Batch(views(LABELLED, 2, 0), torch.tensor([2, 0, 3]), views(UNLABELLED, 2, 1))


def build(style="semantic", **options):
    """Generator's and discriminator's objectives on one pair of tiny networks."""
    torch.manual_seed(0)
    architecture = Architecture(
        image_size=16,
        classes=CLASSES,
        network="leaky-wrn-10-1",
        nonsemantic_channels=2,
        generator_channels=(4, 4),
        style=style,
        **STATISTICS,
    )
    autoencoder = SemanticAutoencoder(architecture).double()
    autoencoder.classifier.heads.predictions.weight.data *= 4
    discriminator = Discriminator(16, width=0.1, **STATISTICS).double()
    features = options.get("features")
    return SciMixGenerator(autoencoder, discriminator, **options), SciMixDiscriminator(discriminator, features=features)


def step(objective, batch, seed=SEED):
    torch.manual_seed(seed)
    return objective(batch, CLOCK)


def with_moved_student(objective):
    """As after some steps: the student's classifier is elsewhere, the teacher has followed a little."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in objective.autoencoder.classifier.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    objective.teacher.update(objective.autoencoder.classifier)
    return objective


# --- values ---------------------------------------------------------------------------------------------


def euclid(first, second):
    return torch.stack([(a - b).square().sum().sqrt() for a, b in zip(first, second, strict=True)])


def enlarged(images):
    """Bilinear, by hand: new places lie a quarter of an old one's width beside it; past the border it goes on."""
    for dim in (2, 3):
        last = images.shape[dim] - 1
        here = torch.arange(last + 1)
        before, after = (images.index_select(dim, (here + by).clamp(0, last)) for by in (-1, 1))
        images = torch.stack([0.75 * images + 0.25 * before, 0.75 * images + 0.25 * after], dim + 1).flatten(
            dim, dim + 1
        )
    return images


def semantic_distance(kind, hybrid, parent):
    """Attraction to, and repulsion from, a parent: one number a sample."""
    if kind == "cross-entropy":
        p, q = hybrid.softmax(1), parent.softmax(1)
        return -(q * p.log()).sum(1), -(1 - (p * q).sum(1)).log()
    distance = euclid(hybrid, parent) ** (2 if kind == "squared" else 1)
    return distance, -distance


def by_hand(
    objective,
    batch,
    *,
    semantic="norm",
    nonsemantic="norm",
    freeze=True,
    guide="mean-teacher",
    reduction="mean",
    threshold=0.95,
    disturb=lambda hybrids: hybrids,
    view=None,
    half=False,
):
    """Equations 2.8 to 2.12 on copies of the networks; frozen criteria are copies whose parameters do not learn.

    At half the size E_c and C alone see the images whole, and hybrids enlarged. `view` makes what they see of hybrids,
    several views one after the other, which is what E_r sees unless it is given."""
    twin = copy.deepcopy(objective.autoencoder)
    judge = copy.deepcopy(objective.judge)
    criterion = copy.deepcopy(twin).requires_grad_(False) if freeze else twin
    mean, std = (torch.tensor(STATISTICS[k], dtype=torch.float64).view(3, 1, 1) for k in ("mean", "std"))

    torch.manual_seed(SEED)
    x = torch.cat([batch.labelled[0], batch.unlabelled[0]])
    partner = torch.randperm(COUNT)
    known = x.unflatten(3, (8, 2)).unflatten(2, (8, 2)).mean((3, 5)) if half else x
    if guide == "fixmatch":  # E_c sees the strong views in the same batch
        encoded = twin.classifier(torch.cat([x, batch.unlabelled[1]]))
        z_c, logits, logits2 = (part[:COUNT] for part in encoded[:3])
    else:
        z_c, logits, logits2, _ = twin.classifier(x)
    z_r = twin.nonsemantic_encoder(known)
    same = twin.decode(z_c, z_r)
    hybrid = twin.decode(z_c, z_r[partner])
    seen = disturb(hybrid)
    views = view(hybrid) if view else seen
    z_rh, logits_h = criterion.nonsemantic_encoder(seen), criterion.classifier(enlarged(views) if half else views)[1]
    parents, z_rd = logits.detach(), z_r.detach()
    of_hybrids = logits_h.split(COUNT)
    power = 2 if nonsemantic == "squared" else 1

    losses = {
        "reconstruction": euclid((same - mean) / std, (known - mean) / std).mean(),
        "adversarial_reconstruction": -judge(same).sigmoid().log().mean(),
        "adversarial_hybrid": -judge(hybrid).sigmoid().log().mean(),
        "semantic_attraction": sum(semantic_distance(semantic, one, parents)[0].mean() for one in of_hybrids)
        / len(of_hybrids),
        "semantic_repulsion": sum(semantic_distance(semantic, one, parents[partner])[1].mean() for one in of_hybrids)
        / len(of_hybrids),
        "nonsemantic_attraction": (euclid(z_rh, z_rd[partner]) ** power).mean(),
        "nonsemantic_repulsion": -(euclid(z_rh, z_rd) ** power).mean(),
    }
    if guide is None:
        return SimpleNamespace(losses=losses, twin=twin, images=known, same=same, hybrid=hybrid, own=(logits_h, logits))
    labelled = -logits.log_softmax(1)[range(LABELLED), batch.labels]
    losses["supervised"] = labelled.sum() / (COUNT if guide == "mean-teacher" else LABELLED)
    if guide == "mean-teacher":
        teacher = copy.deepcopy(objective.teacher.network).train()
        target = teacher(torch.cat([batch.labelled[1], batch.unlabelled[1]]))[1].detach().softmax(1)
        squared = (logits2.softmax(1) - target).square().sum()
        losses["consistency"] = squared / (COUNT * CLASSES if reduction == "mean" else COUNT)
        losses["logit_distance"] = (logits - logits2).square().sum() / (COUNT * CLASSES)
    if guide == "fixmatch":
        strong = encoded[1][COUNT:].log_softmax(1)
        confidence, label = logits[LABELLED:].detach().softmax(1).max(1)
        sure = (confidence >= threshold).double()
        assert 0 < sure.sum() < UNLABELLED
        losses["pseudo_label"] = -(sure * strong[range(UNLABELLED), label]).sum() / UNLABELLED
    return SimpleNamespace(losses=losses, twin=twin, images=known, same=same, hybrid=hybrid, own=(logits_h, logits))


def assert_equal(losses, expected):
    assert losses.keys() == expected.keys()
    for name, loss in losses.items():
        assert loss.shape == () and loss.item() == pytest.approx(expected[name].item(), rel=1e-9), name


def median_confidence(objective, batch):
    """Of FixMatch's weak views: a threshold that some of them reach and some do not."""
    seen = torch.cat([batch.labelled[0], *batch.unlabelled])
    logits = copy.deepcopy(objective.autoencoder.classifier)(seen)[1][LABELLED:COUNT]
    return logits.softmax(1).max(1).values.median().item()


def groups_of(network, images):
    """The maps that the trunk's three groups of one block make."""
    trunk, found = network.classifier.encoder.trunk, []
    x = trunk.stem(trunk.normalize(images))
    for block in trunk.blocks:
        found.append(x := block(x))
    assert [each.shape[1] for each in found] == [16, 32, 64]
    return found


def of_features(discriminator, maps, classes):
    """One logit an image and map: linear in the mean h of the map's body, and h·Wp."""
    found = []
    for x, body, logit, projection in zip(
        maps, discriminator.bodies, discriminator.logits, discriminator.projections, strict=True
    ):
        h = body(x).flatten(2).mean(2)
        found.append(h @ logit.weight[0] + logit.bias + torch.einsum("bc,co,bo->b", h, projection.weight, classes))
    return torch.stack(found)


@pytest.mark.parametrize(
    ("guide", "half", "number"), [(None, False, 0), (None, True, 0), (None, True, 2), ("fixmatch", False, 0)]
)
def test_feature_maps_of_hybrids_are_judged_beside_those_of_images_for_the_class_that_they_take(
    batch, guide, half, number, monkeypatch
):
    """E_c's, of what the criteria see: that hybrids look real to it for their semantic parents' classes is G's affair
    alone, and to tell them from images is the discriminator's alone."""
    torch.manual_seed(3)
    judge = FeatureDiscriminator((16, 32, 64), CLASSES, channels=5).double()
    objective, critic = build(guide=guide, half_size=0.5 if half else 0.0, features=judge, criterion_views=number)
    objective.threshold = median_confidence(objective, batch)
    mirrored = lambda images: images.flip(3)
    objective._disturbed = mirrored
    monkeypatch.setattr("hybridgen.methods.scimix.diff_augment", lambda views: views.flip(2))
    seen_of = (lambda images: torch.cat([images.flip(2)] * number)) if number else mirrored
    expected = by_hand(
        objective, batch, guide=guide, threshold=objective.threshold, half=half, disturb=mirrored, view=seen_of
    )
    looking_on = copy.deepcopy(expected.twin).requires_grad_(False)
    classes = expected.own[1].detach().softmax(1).repeat(max(1, number), 1)
    of_images, of_hybrids = (
        of_features(judge, groups_of(looking_on, enlarged(seen) if half else seen), classes)
        for seen in (seen_of(expected.images), seen_of(expected.hybrid))
    )
    outcome = step(objective, batch)
    loss, fooled = outcome.losses["adversarial_features"], -of_hybrids.sigmoid().log().mean()
    torch.testing.assert_close(loss, fooled)
    want = gradients(fooled, expected.twin)
    for parameter, gradient in gradients(loss, objective.autoencoder).items():
        assert (gradient is None) is (want[parameter] is None), parameter
        if gradient is not None:
            torch.testing.assert_close(gradient, want[parameter], rtol=1e-6, atol=1e-9)
    assert {name for name, part in PARTS.items() if any(
        gradient is not None and gradient.any() for parameter, gradient in want.items()
        if f"autoencoder.{parameter}".startswith(part)
    )} == ({"E_c", "E_r", "G"} if guide else {"E_r", "G"})  # fmt: skip
    assert all(gradient is None for gradient in gradients(loss, judge).values())
    for name, buffer in objective.autoencoder.classifier.named_buffers():
        torch.testing.assert_close(buffer, expected.twin.classifier.get_buffer(name))

    losses = critic(batch, CLOCK, *outcome.handed).losses
    torch.testing.assert_close(losses["real_features"], -of_images.sigmoid().log().mean())
    torch.testing.assert_close(losses["hybrid_features"], -(-of_hybrids).sigmoid().log().mean())
    for name in ("real_features", "hybrid_features"):
        assert all(gradient.any() for gradient in gradients(losses[name], judge).values())
        for other in (objective.autoencoder, critic.discriminator):
            assert all(gradient is None for gradient in gradients(losses[name], other).values())


@pytest.mark.parametrize("guide", GUIDES)
def test_losses_of_each_guide_equal_the_reference(batch, guide):
    objective = build(guide=guide)[0]
    if guide == "mean-teacher":
        with_moved_student(objective)
    objective.threshold = median_confidence(objective, batch)
    expected = by_hand(objective, batch, guide=guide, threshold=objective.threshold)
    outcome = step(objective, batch)
    assert outcome.losses.keys() == {*AUTOENCODING, *HYBRIDIZATION, *GUIDES[guide]}
    assert_equal(outcome.losses, expected.losses)


def test_without_a_guide_finished_encoders_judge_in_evaluation_mode(batch):
    """Losses, gradients and statistics are those of networks of which E_c and C only look on; one view is enough."""
    objective, _ = build(guide=None, semantic_distance="cross-entropy")
    autoencoder = objective.autoencoder
    for buffer in autoencoder.classifier.buffers():  # not those of the batch
        buffer.add_(0.3) if buffer.is_floating_point() and buffer.ndim == 1 else None
    batch = Batch(batch.labelled[:1], batch.labels, batch.unlabelled[:1])
    expected = by_hand(objective, batch, guide=None, semantic="cross-entropy")
    assert not expected.twin.classifier.training and expected.twin.nonsemantic_encoder.training
    statistics = {name: buffer.clone() for name, buffer in autoencoder.classifier.named_buffers()}
    losses = step(objective, batch).losses
    assert losses.keys() == {*AUTOENCODING, *HYBRIDIZATION}
    assert_equal(losses, expected.losses)
    assert all(receivers(loss, objective) == {"E_r", "G"} for loss in losses.values())
    for name, loss in losses.items():
        got, want = gradients(loss, autoencoder), gradients(expected.losses[name], expected.twin)
        assert got.keys() == want.keys() and not any(parameter.startswith("classifier.") for parameter in got)
        scale = max(g.abs().max() for g in want.values() if g is not None)
        for parameter, gradient in want.items():
            if gradient is not None:
                assert ((got[parameter] - gradient).abs() <= 1e-8 * scale).all(), (name, parameter)
    assert all(torch.equal(buffer, statistics[name]) for name, buffer in autoencoder.classifier.named_buffers())
    assert autoencoder.nonsemantic_encoder.trunk.blocks[0].norm1.num_batches_tracked == 1


@pytest.mark.parametrize("semantic", ["norm", "squared", "cross-entropy"])
@pytest.mark.parametrize("nonsemantic", ["norm", "squared"])
def test_distances_equal_the_reference(batch, semantic, nonsemantic):
    objective = build(
        guide="supervised", semantic_distance=semantic, nonsemantic_distance=nonsemantic, reconstruction_distance="norm"
    )[0]
    expected = by_hand(objective, batch, guide="supervised", semantic=semantic, nonsemantic=nonsemantic)
    assert_equal(step(objective, batch).losses, expected.losses)


def test_squared_reconstruction_and_summed_consistency(batch):
    objective = with_moved_student(build(reconstruction_distance="squared", consistency_reduction="sum")[0])
    expected = by_hand(objective, batch, reduction="sum")
    expected.losses["reconstruction"] = (
        (expected.same - expected.images) / torch.tensor(STATISTICS["std"]).double().view(3, 1, 1)
    ).square().sum() / COUNT
    assert_equal(step(objective, batch).losses, expected.losses)


def test_structural_variant_equals_the_reference(batch):
    """Table A.14, "z_r as a style code"."""
    objective = build(style="nonsemantic", guide="supervised")[0]
    assert_equal(step(objective, batch).losses, by_hand(objective, batch, guide="supervised").losses)


def test_criteria_see_hybrids_shifted_and_with_noise_if_asked(batch):
    objective = build(guide="supervised", criterion_shift=2, criterion_noise=0.1)[0]
    seen = []

    def disturb(hybrids):
        rows, columns = torch.randint(0, 5, (2,)).tolist()
        seen.append((rows, columns))
        padded = nn.functional.pad(hybrids, (2, 2, 2, 2), mode="reflect")
        shifted = padded[:, :, rows : rows + 16, columns : columns + 16]
        return shifted + 0.1 * torch.randn(shifted.shape, dtype=torch.float64)

    expected = by_hand(objective, batch, guide="supervised", disturb=disturb)
    assert seen != [(2, 2)]
    outcome = step(objective, batch)
    assert_equal(outcome.losses, expected.losses)
    torch.testing.assert_close(outcome.handed[2], expected.hybrid)  # the discriminator sees them undisturbed


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("freeze", [True, False])
def test_the_semantic_criterion_sees_several_views_of_hybrids_if_asked(batch, half, freeze):
    """E_r sees the hybrid shifted still, and the discriminator the hybrid."""
    asked = dict(criterion_shift=1, criterion_noise=0.1, criterion_views=3, half_size=0.5 if half else 0.0)
    objective = build(guide="supervised", freeze_criteria=freeze, semantic_distance="cross-entropy", **asked)[0]
    number = []

    def disturb(hybrids):
        rows, columns = torch.randint(0, 3, (2,)).tolist()
        padded = nn.functional.pad(hybrids, (1, 1, 1, 1), mode="reflect")
        shifted = padded[:, :, rows : rows + hybrids.shape[2], columns : columns + hybrids.shape[3]]
        return shifted + 0.1 * torch.randn(shifted.shape, dtype=torch.float64)

    def view(hybrids):
        views = diff_augment(torch.cat([hybrids] * 3))
        number.append(len({tuple(each.flatten().tolist()) for each in views}))
        return views + 0.1 * torch.randn(views.shape, dtype=torch.float64)

    expected = by_hand(
        objective,
        batch,
        guide="supervised",
        semantic="cross-entropy",
        freeze=freeze,
        half=half,
        disturb=disturb,
        view=view,
    )
    assert number == [3 * COUNT]
    outcome = step(objective, batch)
    assert_equal(outcome.losses, expected.losses)
    torch.testing.assert_close(outcome.handed[2], expected.hybrid)
    hybrid, parent = expected.own
    transferred = (hybrid.view(3, COUNT, CLASSES).mean(0).argmax(1) == parent.argmax(1)).double().mean()
    assert outcome.rates["own_semantic_transfer"].item() == pytest.approx(transferred.item())
    for name in ("semantic_attraction", "semantic_repulsion"):
        got, want = (
            gradients(outcome.losses[name], objective.autoencoder),
            gradients(expected.losses[name], expected.twin),
        )
        assert any(gradient is not None for parameter, gradient in want.items() if parameter.startswith("generator"))
        for parameter, gradient in want.items():
            assert (got[parameter] is None) is (gradient is None), parameter
            if gradient is not None:
                torch.testing.assert_close(got[parameter], gradient, rtol=1e-6, atol=1e-9)


def test_handed_images_are_real_reconstructed_and_hybrid_and_detached(batch):
    objective = build()[0]
    torch.manual_seed(1)
    objective.autoencoder.classifier.heads.predictions.weight.data.normal_()  # it sees several classes
    expected = by_hand(objective, batch)
    assert len(expected.own[1].argmax(1).unique()) > 1
    outcome = step(objective, batch)
    for got, want in zip(outcome.handed, (expected.images, expected.same, expected.hybrid), strict=True):
        torch.testing.assert_close(got, want)
        assert not got.requires_grad
    hybrid, parent = expected.own
    transferred = (hybrid.argmax(1) == parent.argmax(1)).double().mean()
    assert outcome.rates["own_semantic_transfer"].item() == pytest.approx(transferred.item())
    assert not outcome.rates["own_semantic_transfer"].requires_grad


def test_guesses_are_what_the_semantic_encoder_takes_unlabelled_images_for(batch):
    objective = build()[0]
    heads = objective.autoencoder.classifier.heads.predictions
    heads.bias.data -= by_hand(objective, batch).own[1].mean(0)  # each class is as probable as another
    _, parent = by_hand(objective, batch).own
    outcome, count = step(objective, batch), len(batch.labels)
    assert parent.argmax(1)[count:].tolist() != parent.argmax(1)[: len(parent) - count].tolist()
    assert outcome.guessed.labels.tolist() == parent.argmax(1)[count:].tolist() and outcome.guessed.weights is None


@pytest.mark.parametrize("guide", GUIDES)
def test_at_half_the_size_all_but_the_semantic_encoder_know_small_images(batch, guide):
    """Until half of the run is done."""
    objective = build(guide=guide, half_size=0.5)[0]
    objective.threshold = median_confidence(objective, batch)
    for now, half in ((4, True), (5, False)):
        expected = by_hand(objective, batch, guide=guide, half=half, threshold=objective.threshold)
        torch.manual_seed(SEED)
        outcome = objective(batch, replace(CLOCK, step=now))
        assert_equal(outcome.losses, expected.losses)
        for got, want in zip(outcome.handed, (expected.images, expected.same, expected.hybrid), strict=True):
            assert got.shape[2:] == ((8, 8) if half else (16, 16))
            torch.testing.assert_close(got, want)


def test_same_seed_same_hybrids(batch):
    objective = build()[0]
    first, second, other = (step(objective, batch, seed).handed[2] for seed in (1, 1, 2))
    assert torch.equal(first, second) and not torch.equal(first, other)


# --- gradients ------------------------------------------------------------------------------------------


def gradients(loss, module):
    parameters = dict(module.named_parameters())
    learning = {name: p for name, p in parameters.items() if p.requires_grad}
    found = torch.autograd.grad(loss, list(learning.values()), retain_graph=True, allow_unused=True)
    return dict(zip(learning, found, strict=True))


def receivers(loss, objective):
    """Which of E_c, C's heads, E_r and G this loss moves."""
    moved = {name for name, gradient in gradients(loss, objective).items() if gradient is not None and gradient.any()}
    assert all(any(name.startswith(part) for part in PARTS.values()) for name in moved)
    return {part for part, prefix in PARTS.items() if any(name.startswith(prefix + ".") for name in moved)}


FLOW = {name: {"E_c", "E_r", "G"} for name in (*AUTOENCODING, *HYBRIDIZATION)} | {
    "supervised": {"E_c", "C1"},
    "consistency": {"E_c", "C2"},
    "logit_distance": {"E_c", "C1", "C2"},
}


def test_who_learns_from_which_loss(batch):
    """C never from a hybrid: there it only judges."""
    objective = with_moved_student(build()[0])
    losses = step(objective, batch).losses
    assert {name: receivers(loss, objective) for name, loss in losses.items()} == FLOW


def test_unfrozen_criteria_learn_from_the_hybrids(batch):
    """Table A.14, "no frozen criterion": C learns from the semantic losses too."""
    objective = with_moved_student(build(freeze_criteria=False)[0])
    losses = step(objective, batch).losses
    judged = {name: {"E_c", "C1", "E_r", "G"} for name in ("semantic_attraction", "semantic_repulsion")}
    assert {name: receivers(loss, objective) for name, loss in losses.items()} == FLOW | judged


@pytest.mark.parametrize("freeze", [True, False])
def test_every_gradient_equals_the_reference(batch, freeze):
    """With frozen criteria E_c and E_r learn through the codes alone, as if other networks judged the hybrids."""
    objective = with_moved_student(build(freeze_criteria=freeze)[0])
    expected = by_hand(objective, batch, freeze=freeze)
    for name, loss in step(objective, batch).losses.items():
        got = gradients(loss, objective.autoencoder)
        want = gradients(expected.losses[name], expected.twin)
        scale = max(g.abs().max() for g in want.values() if g is not None)
        for parameter, gradient in want.items():
            gradient = torch.zeros(()) if gradient is None else gradient
            mine = torch.zeros(()) if got[parameter] is None else got[parameter]
            assert ((mine - gradient).abs() <= 1e-8 * scale).all(), (name, parameter)


def test_codes_are_the_only_way_to_the_encoders(batch):
    """With the codes cut off, only G is left to learn from the hybridization losses."""
    objective = build(guide="supervised")[0]
    forward = objective.autoencoder.forward

    def cut(*images):
        objective.autoencoder.forward = forward  # the criterion comes after, and is whole
        codes = forward(*images)
        return codes._replace(semantic=codes.semantic.detach(), nonsemantic=codes.nonsemantic.detach())

    objective.autoencoder.forward = cut
    losses = step(objective, batch).losses
    assert {name: receivers(losses[name], objective) for name in HYBRIDIZATION} == {
        name: {"G"} for name in HYBRIDIZATION
    }


def test_discriminator_learns_nothing_from_the_generators_losses(batch):
    objective, critic = build()
    torch.stack(list(step(objective, batch).losses.values())).sum().backward()
    assert all(parameter.grad is None for parameter in critic.discriminator.parameters())
    assert not any("judge" in name or "discriminator" in name for name in objective.state_dict())


@pytest.mark.parametrize("guide", ["fixmatch", "supervised"])
def test_one_head_without_mean_teacher(guide):
    """No parameter without a gradient is left among those that learn: data-parallel training would wait for it."""
    objective = build(guide=guide)[0]
    assert not any(p.requires_grad for p in objective.autoencoder.classifier.heads.consistency.parameters())
    assert not hasattr(objective, "teacher")


@pytest.mark.parametrize("guide", GUIDES)
def test_all_that_learns_gets_a_gradient(batch, guide):
    objective = build(guide=guide, threshold=0.8)[0]
    torch.stack(list(step(objective, batch).losses.values())).sum().backward()
    for name, parameter in objective.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name


def test_pseudo_labels_teach_the_strong_view_alone(batch):
    """In evaluation mode, where images do not meet in batch-norm."""
    objective = build(guide="fixmatch", threshold=0.0)[0].eval()
    weak, strong = (view.requires_grad_() for view in batch.unlabelled)
    step(objective, batch).losses["pseudo_label"].backward()
    assert strong.grad.any() and (weak.grad is None or not weak.grad.any())


# --- Mean Teacher ---------------------------------------------------------------------------------------


def test_consistency_is_above_zero_and_reaches_the_student_and_never_the_teacher(batch):
    """The unsupervised loss of some Mean Teachers in use is identically zero."""
    objective = build()[0]
    with torch.no_grad():  # both heads alike: all that differs is student from teacher
        heads = objective.autoencoder.classifier.heads
        heads.consistency.load_state_dict(heads.predictions.state_dict())
        objective.teacher.network.load_state_dict(objective.autoencoder.classifier.state_dict())
    same = batch._replace(labelled=batch.labelled[:1] * 2, unlabelled=batch.unlabelled[:1] * 2)
    assert step(objective, same).losses["consistency"] == 0

    optimizer = torch.optim.SGD([p for p in objective.parameters() if p.requires_grad], lr=0.1)
    step(objective, same).losses["supervised"].backward()
    optimizer.step()
    loss = step(objective, same).losses["consistency"]
    assert loss > 0
    loss.backward()
    assert objective.autoencoder.classifier.encoder.trunk.stem.weight.grad.any()
    assert not any(p.requires_grad or p.grad is not None for p in objective.teacher.parameters())


def test_teacher_sees_the_second_view_and_the_student_the_first(batch):
    objective = build()[0]
    seen = {}
    for name, network in (("student", objective.autoencoder.classifier), ("teacher", objective.teacher.network)):
        network.register_forward_pre_hook(lambda _, inputs, name=name: seen.setdefault(name, []).append(*inputs))
    step(objective, batch)
    for name, view in (("student", 0), ("teacher", 1)):
        assert torch.equal(seen[name][0], torch.cat([batch.labelled[view], batch.unlabelled[view]]))


def test_teacher_trains_with_statistics_of_its_own(batch):
    objective = build()[0]
    teacher = objective.teacher.network
    reference = copy.deepcopy(teacher)
    reference(torch.cat([batch.labelled[1], batch.unlabelled[1]]))
    step(objective, batch)
    assert teacher.training and teacher.encoder.norm.num_batches_tracked == 1
    for name, buffer in teacher.named_buffers():
        torch.testing.assert_close(buffer, reference.get_buffer(name))

    before = teacher.encoder.norm.running_mean.clone()
    objective.teacher.update(objective.autoencoder.classifier)
    assert torch.equal(teacher.encoder.norm.running_mean, before)
    assert not torch.equal(before, objective.autoencoder.classifier.encoder.norm.running_mean)


# --- batch-norm -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("guide", GUIDES)
def test_statistics_are_those_of_real_images_alone(batch, guide):
    """Once a step, FixMatch's strong views among them; hybrids leave no trace."""
    objective = build(guide=guide)[0]
    autoencoder = objective.autoencoder
    reference = copy.deepcopy(autoencoder)
    images = torch.cat([batch.labelled[0], batch.unlabelled[0]])
    reference.nonsemantic_encoder(images)
    reference.classifier(torch.cat([images, batch.unlabelled[1]]) if guide == "fixmatch" else images)
    step(objective, batch)
    assert autoencoder.nonsemantic_encoder.trunk.blocks[0].norm1.num_batches_tracked == 1
    assert autoencoder.classifier.encoder.norm.num_batches_tracked == 1
    for name, buffer in autoencoder.named_buffers():
        torch.testing.assert_close(buffer, reference.get_buffer(name), msg=lambda text, name=name: f"{name}: {text}")


def test_unfrozen_criteria_gather_statistics_of_hybrids_too(batch):
    objective = build(freeze_criteria=False)[0]
    step(objective, batch)
    assert objective.autoencoder.classifier.encoder.norm.num_batches_tracked == 2


# --- the discriminator ----------------------------------------------------------------------------------


class Linear(Discriminator):
    """D(x) = a · x + 0.5: its slope is a everywhere."""

    def __init__(self):
        super().__init__(16, width=0.1, **STATISTICS)
        self.a = nn.Parameter(torch.linspace(-1, 1, 768, dtype=torch.float64))

    def forward(self, images):
        return images.flatten(1) @ self.a + 0.5


def test_discriminators_losses_rates_and_gradients_equal_the_reference(batch):
    _, critic = build()
    discriminator = critic.discriminator
    for parameter in discriminator.parameters():
        parameter.data *= 1.5
    handed = tuple(images.requires_grad_() for images in views(COUNT, 3, 5))
    losses, rates, further, *_ = critic(batch, CLOCK, *handed)
    twin = copy.deepcopy(discriminator)
    real, same, hybrid = (twin(images.detach()) for images in handed)
    expected = {
        "real": -real.sigmoid().log().mean(),
        "reconstruction": -(1 - same.sigmoid()).log().mean(),
        "hybrid": -(1 - hybrid.sigmoid()).log().mean(),
    }
    assert_equal(losses, expected)
    assert further == ()
    for name in losses:
        got, want = gradients(losses[name], discriminator), gradients(expected[name], twin)
        for parameter in want:
            torch.testing.assert_close(got[parameter], want[parameter], rtol=1e-8, atol=1e-12)
    assert rates["accuracy_real"].item() == pytest.approx((real > 0).double().mean().item())
    assert rates["accuracy_reconstruction"].item() == pytest.approx((same < 0).double().mean().item())
    assert rates["accuracy_hybrid"].item() == pytest.approx((hybrid < 0).double().mean().item())
    assert not any(rate.requires_grad for rate in rates.values())


def test_gradient_reaches_the_discriminator_only(batch):
    objective, critic = build()
    outcome = step(objective, batch)
    torch.stack(list(critic(batch, CLOCK, *outcome.handed).losses.values())).sum().backward()
    assert all(parameter.grad is not None for parameter in critic.parameters())
    assert all(parameter.grad is None for parameter in objective.parameters())


def test_penalty_is_r1_on_real_images_alone():
    critic = SciMixDiscriminator(Linear(), penalize=True)
    batch = Batch(views(1, 2, 0), torch.tensor([0]), views(1, 2, 1))
    losses = critic(batch, CLOCK, *views(COUNT, 3, 5)).losses
    assert losses.keys() == {"real", "reconstruction", "hybrid", "gradient_penalty"}
    slope = critic.discriminator.a
    assert losses["gradient_penalty"].item() == pytest.approx(0.5 * slope.square().sum().item())
    (gradient,) = torch.autograd.grad(losses["gradient_penalty"], slope)
    torch.testing.assert_close(gradient, slope.detach())


def test_a_lazy_penalty_comes_every_few_steps_and_counts_for_all_of_them(batch):
    """Otherwise nothing is differentiated twice."""
    critic = build()[1].discriminator
    images = views(COUNT, 3, 5)
    at = lambda every, step: (
        SciMixDiscriminator(critic, penalize=True, penalty_every=every)(
            batch, replace(CLOCK, step=step), *images
        ).losses
    )
    whole = [at(1, step)["gradient_penalty"].item() for step in range(9)]
    lazy = [at(4, step)["gradient_penalty"] for step in range(9)]
    assert [loss.item() for loss in lazy] == pytest.approx([4 * whole[0] if step % 4 == 0 else 0 for step in range(9)])
    assert [loss.requires_grad for loss in lazy] == [step % 4 == 0 for step in range(9)]
    for name in ("real", "reconstruction", "hybrid"):
        assert at(4, 1)[name].item() == at(4, 4)[name].item()


def test_without_the_penalty_there_is_no_such_loss(batch):
    assert build()[1](batch, CLOCK, *views(COUNT, 3, 5)).losses.keys() == {"real", "reconstruction", "hybrid"}


# --- steps ----------------------------------------------------------------------------------------------

WEIGHTS = dict.fromkeys(("adversarial_reconstruction", *HYBRIDIZATION), 0.5) | {
    "reconstruction": 1.0,
    "supervised": 1.0,
    "consistency": 300.0,
    "logit_distance": 0.01,
}
VARIANTS = {
    "SciMix": ({}, {}),
    "z_r as style": ({"style": "nonsemantic"}, {}),
    "no hybridization": ({}, dict.fromkeys(HYBRIDIZATION, 0.0)),
    "basic hybridization": ({}, {"semantic_repulsion": 0.0, "nonsemantic_repulsion": 0.0}),
    "no frozen criterion": ({"freeze_criteria": False}, {}),
}


def trained(options, changed, batch):
    """Both objectives after two steps of the training loop, and the scalars of the second."""
    objective, critic = build(**options)
    tasks = {
        "generator": Task(objective, WEIGHTS | changed, sgd(objective), lambda clock: 0.01),
        "discriminator": Task(
            critic, dict.fromkeys(("real", "reconstruction", "hybrid"), 1.0), sgd(critic), lambda clock: 0.01
        ),
    }
    clock = Clock(steps=2, steps_per_epoch=5)
    recorded = []
    for scalars in fit(tasks, iter([batch] * 2), clock, Accelerator(cpu=True), seed=0):
        objective.teacher.update(objective.autoencoder.classifier)
        recorded.append(scalars)
    return objective, critic, recorded[-1]


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants_of_table_a14_train(batch, variant):
    options, changed = VARIANTS[variant]
    objective, critic, scalars = trained(options, changed, batch)
    assert all(torch.isfinite(scalar) for scalar in scalars.values())
    assert scalars["generator/consistency"] > 0
    start = build(**options)
    for module, before in zip((objective, critic), start, strict=True):
        for (name, parameter), old in zip(module.named_parameters(), before.parameters(), strict=True):
            assert not torch.equal(parameter, old), name


def test_variants_differ(batch):
    weights = [
        trained(*VARIANTS[variant], batch)[0].autoencoder.generator.to_rgb.weight
        for variant in ("SciMix", "no hybridization", "basic hybridization", "no frozen criterion")
    ]
    for i, first in enumerate(weights):
        assert not any(torch.allclose(first, second, rtol=1e-9) for second in weights[i + 1 :])
