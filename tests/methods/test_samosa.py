"""SAMOSA's objectives against a plain float64 reference: values, where gradient flows, what is remembered, hybrids."""

import copy

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from objectives import FixMatch, Samosa, SamosaReconstruction
from torch import nn
from torch.func import functional_call

from hybridgen.methods.samosa import Networks, Watched, samosa_hybrids
from hybridgen.networks.autoencoder import SamosaArchitecture, SamosaAutoencoder
from hybridgen.training.ema import EMA
from hybridgen.training.fit import fit
from hybridgen.training.objective import Outcome, Task, sgd
from hybridgen.training.schedules import Clock
from hybridgen.types import Batch, InputError

LABELLED, UNLABELLED, CLASSES = 3, 5, 4
COUNT = LABELLED + UNLABELLED
CLOCK = Clock(steps=10, steps_per_epoch=5)
STATISTICS = {"mean": (0.5, 0.375, 0.25), "std": (0.25, 0.1875, 0.3125)}
PARTS = {
    "E_c": "classifier.encoder.trunk.",
    "C": "classifier.encoder.norm.",
    "C1": "classifier.heads.predictions.",
    "C2": "classifier.heads.consistency.",
    "E_r": "nonsemantic_encoder.",
    "D": "decoder.",
}


def views(count, number, seed):
    g = torch.Generator().manual_seed(seed)
    return tuple(torch.rand(count, 3, 16, 16, dtype=torch.float64, generator=g) for _ in range(number))


@pytest.fixture
def batch():
    return Batch(views(LABELLED, 1, 0), torch.tensor([2, 0, 3]), views(UNLABELLED, 2, 1))


@pytest.fixture
def autoencoder():
    torch.manual_seed(0)
    architecture = SamosaArchitecture(image_size=16, classes=CLASSES, network="leaky-wrn-10-1", **STATISTICS)
    return SamosaAutoencoder(architecture).double()


class TwoHeads(nn.Module):
    """A base method with losses on both heads, its images seen in two forwards, and one without gradient."""

    def __init__(self, classifier):
        super().__init__()
        self.classifier = classifier

    def forward(self, batch, clock):
        first, _ = self.classifier(batch.labelled[0])
        with torch.no_grad():
            self.classifier(batch.unlabelled[1])
        _, second = self.classifier(batch.unlabelled[0])
        losses = {"supervised": F.cross_entropy(first, batch.labels), "consistency": second.square().mean()}
        return Outcome(losses, {"rate": first.detach().mean()})


def build(autoencoder, base=TwoHeads, *, heads=2, reduction="mean", clean_only=False):
    """Both objectives, on the same networks."""
    watched = Watched(autoencoder.classifier, heads=heads)
    objective = Samosa(base(watched), watched, autoencoder.decoder, clean_only=clean_only, reduction=reduction)
    reconstruction = SamosaReconstruction(
        autoencoder.nonsemantic_encoder, autoencoder.decoder, autoencoder.normalize, reduction=reduction
    )
    return objective, reconstruction


def gradients(loss, module):
    learning = {name: p for name, p in module.named_parameters() if p.requires_grad}
    found = torch.autograd.grad(loss, list(learning.values()), retain_graph=True, allow_unused=True)
    return {name: g for name, g in zip(learning, found, strict=True) if g is not None and g.any()}


def receivers(loss, autoencoder):
    moved = gradients(loss, autoencoder)
    assert all(any(name.startswith(prefix) for prefix in PARTS.values()) for name in moved)
    return {part for part, prefix in PARTS.items() if any(name.startswith(prefix) for name in moved)}


def squared(difference, reduction):
    return (difference**2).sum() / (difference.numel() if reduction == "mean" else len(difference))


# --- values and gradients -------------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_losses_equal_the_reference(autoencoder, batch, reduction):
    objective, reconstruction = build(autoencoder, reduction=reduction)
    twin = copy.deepcopy(autoencoder)
    base_losses, base_rates, *_ = TwoHeads(Watched(twin.classifier, heads=2))(batch, CLOCK)

    twin = copy.deepcopy(autoencoder)
    parts = [twin.classifier(batch.labelled[0])]
    copy.deepcopy(twin).classifier(batch.unlabelled[1])
    parts.append(twin.classifier(batch.unlabelled[0]))
    images = torch.cat([batch.labelled[0], batch.unlabelled[0]])
    semantic, _, _, before = (torch.cat(part) for part in zip(*parts, strict=True))
    target = copy.deepcopy(twin.decoder).first(semantic)  # its batch-norm over all images together
    gates = twin.nonsemantic_encoder(images)
    mean, std = (torch.tensor(STATISTICS[k], dtype=torch.float64).view(3, 1, 1) for k in ("mean", "std"))
    expected = {
        **base_losses,
        "regularizer": squared(before - target.detach(), reduction),
        "reconstruction": squared(twin.decoder(semantic.detach(), gates) - (images - mean) / std, reduction),
    }

    losses, rates, handed, *_ = objective(batch, CLOCK)
    assert torch.equal(handed[0], images) and not any(tensor.requires_grad for tensor in handed)
    torch.testing.assert_close(handed[1], semantic)
    assert torch.equal(rates["rate"], base_rates["rate"])
    outcome = reconstruction(batch, CLOCK, *handed)
    assert outcome.losses.keys() == {"reconstruction"} and outcome.handed == ()
    losses = losses | outcome.losses
    assert losses.keys() == expected.keys()
    for name, loss in losses.items():
        assert loss.shape == () and loss.item() == pytest.approx(expected[name].item(), rel=1e-10), name
    for name in ("regularizer", "reconstruction"):
        got, want = gradients(losses[name], autoencoder), gradients(expected[name], twin)
        assert got.keys() == want.keys()
        for parameter in want:
            torch.testing.assert_close(got[parameter], want[parameter], rtol=1e-7, atol=1e-10)


def test_who_learns_from_which_loss(autoencoder, batch):
    objective, reconstruction = build(autoencoder)
    losses, _, handed, *_ = objective(batch, CLOCK)
    losses = losses | reconstruction(batch, CLOCK, *handed).losses
    assert {name: receivers(loss, autoencoder) for name, loss in losses.items()} == {
        "supervised": {"E_c", "C", "C1"},
        "consistency": {"E_c", "C", "C2"},
        "regularizer": {"E_c"},
        "reconstruction": {"E_r", "D"},
    }


def test_regularizer_moves_all_convolutions_of_e_c_but_the_last(autoencoder, batch):
    losses, *_ = build(autoencoder)[0](batch, CLOCK)
    moved = gradients(losses["regularizer"], autoencoder.classifier.encoder.trunk)
    convolutions = [name for name in moved if "conv" in name or "stem" in name]
    assert convolutions == ["stem.weight", *(f"blocks.{i}.conv{j}.weight" for i in range(3) for j in (1, 2))][:-1]


def test_reconstruction_moves_every_parameter_of_e_r_and_d(autoencoder, batch):
    """But the biases that the next block's batch-norm takes away."""
    objective, reconstruction = build(autoencoder)
    loss = reconstruction(batch, CLOCK, *objective(batch, CLOCK).handed).losses["reconstruction"]
    loss.backward()
    assert all(p.grad is not None for p in reconstruction.parameters())
    still = {name for name, p in reconstruction.named_parameters() if p.grad.abs().max() < 1e-12}
    moving = {"decoder.pre.7.deconv.bias", "decoder.post.3.deconv.bias"}  # gates, or the last convolution, come next
    assert still == {name for name, _ in reconstruction.named_parameters() if name.endswith("deconv.bias")} - moving
    assert all(p.grad is None for p in autoencoder.classifier.parameters())


def test_reconstruction_never_trains_e_c_whatever_it_is_given(autoencoder, batch):
    _, reconstruction = build(autoencoder)
    semantic = autoencoder.classifier(batch.unlabelled[0]).semantic
    loss = reconstruction(batch, CLOCK, batch.unlabelled[0], semantic).losses["reconstruction"]
    assert receivers(loss, autoencoder) == {"E_r", "D"}


@pytest.mark.parametrize("training", [True, False])
def test_regularizer_leaves_the_decoder_as_it_is(autoencoder, batch, training):
    """Neither statistics nor parameters; in both modes it is the decoder's own first layer."""
    autoencoder.decoder.train(training)
    autoencoder.decoder.first.norm.running_mean += 1
    before = copy.deepcopy(autoencoder.decoder.state_dict())
    losses, _, (_, semantic), *_ = build(autoencoder)[0](batch, CLOCK)
    losses["regularizer"].backward()
    assert all(p.grad is None for p in autoencoder.decoder.parameters())
    for name, tensor in autoencoder.decoder.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    seen = copy.deepcopy(autoencoder.classifier)
    images = (batch.labelled[0], batch.unlabelled[0])
    features = torch.cat([seen(part).before for part in images])
    expected = squared(features - autoencoder.decoder.first(semantic), "mean")
    assert losses["regularizer"].item() == pytest.approx(expected.item(), rel=1e-10)


def test_regularizer_follows_the_decoder_as_it_learns(autoencoder, batch):
    objective, _ = build(autoencoder)
    first = objective(batch, CLOCK).losses["regularizer"]
    with torch.no_grad():
        autoencoder.decoder.first.deconv.bias += 1
    assert objective(batch, CLOCK).losses["regularizer"] != first


def test_decoder_sees_each_batch_once(autoencoder, batch):
    objective, reconstruction = build(autoencoder)
    reconstruction(batch, CLOCK, *objective(batch, CLOCK).handed)
    assert autoencoder.decoder.first.norm.num_batches_tracked == 1
    assert autoencoder.nonsemantic_encoder.trunk.blocks[0].norm1.num_batches_tracked == 1
    assert autoencoder.classifier.encoder.norm.num_batches_tracked == 3  # the base method's own forwards


def test_states_hold_everything_once(autoencoder):
    objective, reconstruction = build(autoencoder)
    assert objective.state_dict().keys() == {
        f"base.classifier.classifier.{name}" for name in autoencoder.classifier.state_dict()
    }
    theirs = {
        f"{part}.{name}"
        for part in ("nonsemantic_encoder", "decoder", "normalize")
        for name in getattr(autoencoder, part).state_dict()
    }
    assert reconstruction.state_dict().keys() == theirs
    assert not {id(p) for p in objective.parameters()} & {id(p) for p in reconstruction.parameters()}


# --- clean images ---------------------------------------------------------------------------------------


def fixmatch(watched):
    return FixMatch(watched, threshold=0.0)


def test_fixmatchs_strong_views_are_not_reconstructed(autoencoder, batch):
    twin = copy.deepcopy(autoencoder)
    objective, _ = build(autoencoder, fixmatch, heads=1, clean_only=True)
    losses, rates, (images, semantic), *_ = objective(batch, CLOCK)
    features = twin.classifier(torch.cat([batch.labelled[0], *batch.unlabelled]))
    assert torch.equal(images, torch.cat([batch.labelled[0], batch.unlabelled[0]]))
    torch.testing.assert_close(semantic, features.semantic[:COUNT])
    expected = squared(features.before[:COUNT] - twin.decoder.first(features.semantic[:COUNT]), "mean")
    assert losses["regularizer"].item() == pytest.approx(expected.item(), rel=1e-10)
    assert losses.keys() == {"supervised", "unsupervised", "regularizer"}
    assert rates.keys() == {"confident", "threshold", "pseudo_classes"}


def test_without_clean_only_they_are(autoencoder, batch):
    images, semantic = build(autoencoder, fixmatch, heads=1)[0](batch, CLOCK).handed
    assert len(images) == len(semantic) == COUNT + UNLABELLED
    assert torch.equal(images[COUNT:], batch.unlabelled[1])


def test_base_losses_are_those_without_samosa(autoencoder, batch):
    twin = copy.deepcopy(autoencoder)
    expected = FixMatch(Watched(twin.classifier, heads=1), threshold=0.0)(batch, CLOCK).losses
    losses = build(autoencoder, fixmatch, heads=1, clean_only=True)[0](batch, CLOCK).losses
    for name, loss in expected.items():
        assert torch.equal(losses[name], loss)


# --- what is remembered ---------------------------------------------------------------------------------


@pytest.fixture
def watched(autoencoder):
    return Watched(autoencoder.classifier, heads=2)


def test_watched_gives_the_logits_that_a_base_method_expects(autoencoder, batch):
    (images,) = batch.labelled
    autoencoder.eval()
    features = autoencoder.classifier(images)
    both = Watched(autoencoder.classifier, heads=2)(images)
    assert torch.equal(both[0], features.predictions) and torch.equal(both[1], features.consistency)
    assert all(p.requires_grad for p in autoencoder.classifier.parameters())
    assert torch.equal(Watched(autoencoder.classifier, heads=1)(images), features.predictions)
    still = [name for name, p in autoencoder.classifier.named_parameters() if not p.requires_grad]
    assert still == ["heads.consistency.weight", "heads.consistency.bias"]


def test_taken_joins_what_several_forwards_saw_and_forgets_it(watched, batch):
    watched.eval()
    with torch.no_grad():
        watched(batch.unlabelled[1])
    (images,), (more, _) = batch.labelled, batch.unlabelled
    watched(images), watched(more)
    seen = watched.taken()
    features = watched.classifier(torch.cat([images, more]))
    assert torch.equal(seen.images, torch.cat([images, more]))
    torch.testing.assert_close(seen.semantic, features.semantic)
    torch.testing.assert_close(seen.before, features.before)
    assert seen.before.requires_grad and seen.semantic.requires_grad
    with pytest.raises(InputError, match=r"^watched: the classifier saw no images with gradient"):
        watched.taken()


def test_without_gradient_nothing_is_kept(watched, batch):
    with torch.no_grad():
        watched(batch.labelled[0])
    watched.requires_grad_(False)
    watched(batch.labelled[0])
    with pytest.raises(InputError, match="saw no images"):
        watched.taken()


def test_memory_is_neither_state_nor_copied(watched, batch):
    keys = watched.state_dict().keys()
    assert keys == {f"classifier.{name}" for name in watched.classifier.state_dict()}
    watched(batch.labelled[0])
    assert watched.state_dict().keys() == keys and len(list(watched.buffers())) == len(
        list(watched.classifier.buffers())
    )

    twin = copy.deepcopy(watched)
    with pytest.raises(InputError, match="saw no images"):
        twin.taken()
    twin(batch.unlabelled[0])
    assert torch.equal(twin.taken().images, batch.unlabelled[0])
    assert torch.equal(watched.taken().images, batch.labelled[0])


def test_a_teacher_is_made_after_a_forward_and_keeps_nothing(watched, batch):
    watched(batch.labelled[0])
    teacher = EMA(watched, 0.9)
    teacher(batch.unlabelled[0])
    with pytest.raises(InputError, match="saw no images"):
        teacher.network.taken()
    teacher.update(watched)
    assert len(watched.taken().images) == LABELLED


def test_memory_is_kept_through_functional_call(watched, batch):
    """MixMatch: batch-norm statistics of clones, gradient to the true parameters."""
    holder = TwoHeads(watched)
    clones = {f"classifier.{name}": buffer.clone() for name, buffer in watched.named_buffers()}
    before = {name: buffer.clone() for name, buffer in watched.named_buffers()}
    functional_call(holder, clones, (batch, CLOCK))
    seen = watched.taken()
    assert torch.equal(seen.images, torch.cat([batch.labelled[0], batch.unlabelled[0]]))
    for name, buffer in watched.named_buffers():
        assert torch.equal(buffer, before[name]), name
    seen.before.sum().backward()
    assert watched.classifier.encoder.trunk.stem.weight.grad.any()


def test_what_others_showed_the_classifier_before_is_not_of_the_step(autoencoder, batch):
    objective, _ = build(autoencoder)
    objective.base.classifier(batch.unlabelled[1])
    images, _ = objective(batch, CLOCK).handed
    assert torch.equal(images, torch.cat([batch.labelled[0], batch.unlabelled[0]]))


def test_a_copy_of_the_objective_watches_its_own_classifier(autoencoder, batch):
    objective = build(autoencoder)[0]
    objective(batch, CLOCK)
    twin = copy.deepcopy(objective)
    autoencoder.classifier.requires_grad_(False)
    loss = twin(batch, CLOCK).losses["regularizer"]
    assert "base.classifier.classifier.encoder.trunk.stem.weight" in gradients(loss, twin)


# --- errors ---------------------------------------------------------------------------------------------


def test_watched_that_is_no_part_of_the_base(autoencoder):
    base = TwoHeads(Watched(autoencoder.classifier, heads=2))
    with pytest.raises(InputError, match=r"^watched: is no part of the base objective"):
        Samosa(base, Watched(autoencoder.classifier, heads=2), autoencoder.decoder)


class Odd(TwoHeads):
    """A base method that hands its images on, or shows few of them, or none."""

    how = "hands"

    def forward(self, batch, clock):
        if self.how == "hands":
            return super().forward(batch, clock)._replace(handed=(batch.labels,))
        with torch.set_grad_enabled(self.how == "few"):
            logits, _ = self.classifier(batch.labelled[0])
        return Outcome({"supervised": F.cross_entropy(logits, batch.labels)})


@pytest.mark.parametrize(
    ("how", "error"),
    [
        ("hands", r"^base: hands on tensors"),
        ("few", r"^base: showed the classifier 3 images, fewer than 8 clean ones"),
        ("none", r"^watched: the classifier saw no images with gradient"),
    ],
)
def test_base_that_does_not_fit(autoencoder, batch, how, error):
    objective, _ = build(autoencoder, Odd, clean_only=True)
    objective.base.how = how
    with pytest.raises(InputError, match=error):
        objective(batch, CLOCK)


# --- steps ----------------------------------------------------------------------------------------------


def trained(autoencoder, batch, weight):
    """Both tasks for two steps of the training loop."""
    autoencoder = copy.deepcopy(autoencoder)
    objective, reconstruction = build(autoencoder)
    weights = {"supervised": 1.0, "consistency": 1.0, "regularizer": 0.5}
    tasks = {
        "classifier": Task(objective, weights, sgd(objective), lambda clock: 0.05, clip=1.0),
        "reconstruction": Task(
            reconstruction, {"reconstruction": weight}, sgd(reconstruction, decay=0.0), lambda clock: 0.05, clip=1.0
        ),
    }
    clock = Clock(steps=2, steps_per_epoch=5)
    recorded = list(fit(tasks, iter([batch] * 2), clock, Accelerator(cpu=True), seed=0))
    assert all(torch.isfinite(scalar) for scalars in recorded for scalar in scalars.values())
    assert recorded[0]["reconstruction/reconstruction"] != recorded[1]["reconstruction/reconstruction"]
    return dict(autoencoder.named_parameters()), recorded


def test_every_network_learns_with_two_optimizers(autoencoder, batch):
    after, recorded = trained(autoencoder, batch, 0.25)
    for name, parameter in autoencoder.named_parameters():
        assert name.endswith("deconv.bias") or not torch.equal(after[name], parameter), name
    still, unlearnt = trained(autoencoder, batch, 0.0)
    for name, parameter in autoencoder.named_parameters():
        assert torch.equal(still[name], parameter) == (not name.startswith("classifier.")), name
    for name in ("supervised", "regularizer"):  # L_rec changes D, and only through it the classifier
        assert torch.equal(recorded[0][f"classifier/{name}"], unlearnt[0][f"classifier/{name}"])
    assert recorded[1]["classifier/regularizer"] != unlearnt[1]["classifier/regularizer"]
    assert torch.equal(recorded[1]["classifier/supervised"], unlearnt[1]["classifier/supervised"])


# --- hybrids --------------------------------------------------------------------------------------------


@pytest.fixture
def parents(autoencoder):
    """Two batches, and labels that the classifier gives to half of their hybrids."""
    semantic, nonsemantic = views(6, 2, 4)
    with torch.no_grad():
        for _ in range(20):  # statistics of a network that has learnt
            codes = autoencoder(torch.cat([semantic, nonsemantic]))
            autoencoder.decode(codes.semantic, codes.nonsemantic)
        twin = copy.deepcopy(autoencoder).eval()
        raw = twin.decoder(twin(semantic).semantic, twin(nonsemantic).nonsemantic)
        mean, std = (torch.tensor(STATISTICS[k], dtype=torch.float64).view(3, 1, 1) for k in ("mean", "std"))
        hybrids = (raw * std + mean).clamp(0, 1)
        seen = twin(hybrids).predictions.argmax(1)
    keep = torch.tensor([True, False, True, True, False, False])
    return semantic, nonsemantic, torch.where(keep, seen, (seen + 1) % CLASSES), hybrids, keep


def test_hybrids_that_keep_their_class_replace_their_semantic_parent(autoencoder, parents):
    semantic, nonsemantic, labels, hybrids, keep = parents
    images, kept = samosa_hybrids(autoencoder, semantic, nonsemantic, labels)
    assert torch.equal(kept, keep)
    torch.testing.assert_close(images[keep], hybrids[keep])
    assert torch.equal(images[~keep], semantic[~keep])
    assert not torch.equal(images[keep], semantic[keep])
    assert images.min() >= 0 and images.max() <= 1

    # In the place of MixUp the class is the classifier's; if it sees one class in all images, all are kept
    with torch.no_grad():
        autoencoder.classifier.heads.predictions.weight.zero_()
    made = Networks(autoencoder, Watched(autoencoder.classifier, heads=1), 1.0)
    torch.testing.assert_close(made.hybridize(semantic, nonsemantic), hybrids)


def test_without_labels_the_semantic_parents_own_class_is_to_be_kept(autoencoder, parents):
    semantic, nonsemantic, *_ = parents
    with torch.no_grad():
        own = copy.deepcopy(autoencoder).eval().classifier(semantic).predictions.argmax(1)
    for got, want in zip(
        samosa_hybrids(autoencoder, semantic, nonsemantic),
        samosa_hybrids(autoencoder, semantic, nonsemantic, own),
        strict=True,
    ):
        assert torch.equal(got, want)


def test_hybridizing_leaves_no_trace(autoencoder, parents):
    """In training as in evaluation mode, or in a mix of them: same hybrids, same modes and statistics afterwards."""
    semantic, nonsemantic, labels, *_ = parents
    before = copy.deepcopy(autoencoder.state_dict())
    expected, _ = samosa_hybrids(copy.deepcopy(autoencoder).eval(), semantic, nonsemantic, labels)
    autoencoder.train()
    autoencoder.decoder.post.eval()
    modes = [module.training for module in autoencoder.modules()]
    images, _ = samosa_hybrids(autoencoder, semantic.requires_grad_(), nonsemantic, labels)
    assert torch.equal(images, expected) and not images.requires_grad
    assert [module.training for module in autoencoder.modules()] == modes
    for name, tensor in autoencoder.state_dict().items():
        assert torch.equal(tensor, before[name]), name

    with pytest.raises(InputError, match="image size"):
        samosa_hybrids(autoencoder, *(F.pad(images, (0, 4)) for images in (semantic, nonsemantic)), labels)
    assert [module.training for module in autoencoder.modules()] == modes
