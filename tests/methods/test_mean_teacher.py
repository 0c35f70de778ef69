"""Mean Teacher against plain float64 references: losses, gradients, the teacher, hybrids."""

import copy

import pytest
import torch
import torch.nn.functional as F
from objectives import HybridUse, MeanTeacher
from torch import nn

from hybridgen.hybridizer import Hybridizer, Origin
from hybridgen.methods.hybrids import hybrid_loss
from hybridgen.networks.autoencoder import Architecture, SemanticAutoencoder
from hybridgen.training.schedules import Clock
from hybridgen.types import Batch, InputError

LABELLED, UNLABELLED, CLASSES = 3, 5, 4
COUNT = LABELLED + UNLABELLED
CLOCK = Clock(steps=100, steps_per_epoch=10, step=25)


class TwoHeads(nn.Module):
    """Images to the logits of two heads."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.norm = nn.Conv2d(3, 6, 3, stride=2), nn.BatchNorm2d(6)
        self.predictions, self.consistency = nn.Linear(6 * 49, CLASSES), nn.Linear(6 * 49, CLASSES)

    def forward(self, images):
        features = self.norm(self.convolution(images)).relu().flatten(1)
        return self.predictions(features), self.consistency(features)


def draw_batch(seed=0):
    g = torch.Generator().manual_seed(seed)
    views = lambda count: tuple(torch.rand(count, 3, 16, 16, dtype=torch.float64, generator=g) for _ in range(2))
    return Batch(views(LABELLED), torch.randint(0, CLASSES, (LABELLED,), generator=g), views(UNLABELLED))


@pytest.fixture
def batch():
    return draw_batch()


@pytest.fixture
def classifier():
    torch.manual_seed(0)
    return TwoHeads().double()


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


def step(objective, batch, rate=0.003):
    """One step of the student, with all weights 1, and one of the teacher."""
    optimizer = torch.optim.SGD(objective.classifier.parameters(), lr=rate)
    torch.stack(list(objective(batch, CLOCK).losses.values())).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    objective.teacher.update(objective.classifier)


@pytest.fixture
def objective(classifier):
    """As after a few steps: the teacher is no longer the student."""
    objective = MeanTeacher(classifier)
    for seed in (1, 2, 3):
        step(objective, draw_batch(seed))
    return objective


def by_hand(objective, batch, reduction="mean"):
    """All sums over samples and classes written out; also a copy of the student, whose gradients are to be compared."""
    student, teacher = copy.deepcopy(objective.classifier), copy.deepcopy(objective.teacher.network)
    z1, z2 = student(torch.cat([batch.labelled[0], batch.unlabelled[0]]))
    taught, _ = teacher(torch.cat([batch.labelled[1], batch.unlabelled[1]]))
    p2, target = z2.softmax(1), taught.detach().softmax(1)
    supervised = consistency = distance = 0.0
    for i, label in enumerate(batch.labels):
        supervised = supervised - z1[i].log_softmax(0)[label] / COUNT
    for i in range(COUNT):
        for c in range(CLASSES):
            consistency = consistency + (p2[i, c] - target[i, c]) ** 2 / (
                COUNT * (CLASSES if reduction == "mean" else 1)
            )
            distance = distance + (z1[i, c] - z2[i, c]) ** 2 / (COUNT * CLASSES)
    losses = {"supervised": supervised, "consistency": consistency, "logit_distance": distance}
    return losses, student, z1, target


def gradients(loss, network):
    found = torch.autograd.grad(loss, list(network.parameters()), retain_graph=True, allow_unused=True)
    return {name: g for (name, _), g in zip(network.named_parameters(), found, strict=True) if g is not None}


def assert_same(loss, network, expected, twin):
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    got, want = gradients(loss, network), gradients(expected, twin)
    assert got.keys() == want.keys()
    for name in got:
        torch.testing.assert_close(got[name], want[name], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_losses_and_their_gradients_equal_the_reference(objective, batch, reduction):
    objective.reduction = reduction
    expected, twin, _, target = by_hand(objective, batch, reduction)
    losses, rates, handed, _, guessed = objective(batch, CLOCK)
    assert losses.keys() == expected.keys() and rates == {} and handed == ()
    assert guessed.labels.tolist() == target[len(batch.labels) :].argmax(1).tolist() and guessed.weights is None
    for name, loss in losses.items():
        assert_same(loss, objective.classifier, expected[name], twin)


def test_which_head_learns_from_which_loss(objective, batch):
    losses = objective(batch, CLOCK).losses
    learning = {name: gradients(loss, objective.classifier).keys() for name, loss in losses.items()}
    heads = ("predictions.weight", "consistency.weight")
    assert {name: [head in names for head in heads] for name, names in learning.items()} == {
        "supervised": [True, False],
        "consistency": [False, True],
        "logit_distance": [True, True],
    }


def test_consistency_is_zero_at_the_teacher_and_above_it_elsewhere(classifier, batch):
    """The unsupervised loss of some Mean Teachers in use is identically zero."""
    classifier.consistency.load_state_dict(classifier.predictions.state_dict())
    objective = MeanTeacher(classifier, teacher_decay=0.5)
    same = batch._replace(labelled=batch.labelled[:1] * 2, unlabelled=batch.unlabelled[:1] * 2)
    assert objective(same, CLOCK).losses["consistency"] == 0
    assert objective(batch, CLOCK).losses["consistency"] > 0  # another view is enough
    step(objective, same)
    assert objective(same, CLOCK).losses["consistency"] > 0


def test_consistency_reaches_the_student_and_never_the_teacher(objective, batch):
    views = (*batch.labelled, *batch.unlabelled)
    for images in views:
        images.requires_grad_()
    objective(batch, CLOCK).losses["consistency"].backward()
    assert objective.classifier.convolution.weight.grad.any()
    assert not any(p.requires_grad or p.grad is not None for p in objective.teacher.parameters())
    assert [images.grad is not None for images in views] == [True, False, True, False]


def test_the_teacher_is_the_average_it_claims_to_be(classifier):
    """Sixty steps; the decay of the n-th is min(1 - 1 / (n + 1), 0.97), its statistics those of its own forwards."""
    objective = MeanTeacher(classifier)
    average = {name: p.detach().clone() for name, p in classifier.named_parameters()}
    mean, variance = torch.zeros(6).double(), torch.ones(6).double()
    for n in range(1, 61):
        batch = draw_batch(n)
        seen = F.conv2d(
            torch.cat([batch.labelled[1], batch.unlabelled[1]]),
            average["convolution.weight"],
            average["convolution.bias"],
            stride=2,
        )
        mean = 0.9 * mean + 0.1 * seen.mean((0, 2, 3))
        variance = 0.9 * variance + 0.1 * seen.transpose(0, 1).flatten(1).var(1)
        step(objective, batch)
        decay = min(1 - 1 / (n + 1), 0.97)
        for name, parameter in classifier.named_parameters():
            average[name] = decay * average[name] + (1 - decay) * parameter.detach()
    teacher = objective.teacher.network
    for name, parameter in teacher.named_parameters():
        torch.testing.assert_close(parameter, average[name], rtol=1e-10, atol=1e-14)
    assert teacher.training and teacher.norm.num_batches_tracked == 60
    torch.testing.assert_close(teacher.norm.running_mean, mean, rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(teacher.norm.running_var, variance, rtol=1e-10, atol=1e-14)
    assert not torch.allclose(mean, classifier.norm.running_mean, rtol=1e-3)


def test_the_teacher_is_part_of_the_state(objective, batch):
    other = MeanTeacher(TwoHeads().double())
    other.load_state_dict(objective.state_dict())
    for resumed in (objective, other):
        step(resumed, batch)
    for name, tensor in objective.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name
    assert other.teacher.updates == 4


def test_student_sees_the_first_views_and_teacher_the_second(objective, batch):
    seen = {}
    for name, network in (("student", objective.classifier), ("teacher", objective.teacher.network)):
        network.register_forward_pre_hook(lambda _, inputs, name=name: seen.setdefault(name, []).append(*inputs))
    objective(batch, CLOCK)
    for name, view in (("student", 0), ("teacher", 1)):
        (images,) = seen[name]
        assert torch.equal(images, torch.cat([batch.labelled[view], batch.unlabelled[view]]))


def test_a_decay_outside_its_range_is_an_input_error(classifier):
    with pytest.raises(InputError, match=r"1.0 is outside \[0, 1\)"):
        MeanTeacher(classifier, teacher_decay=1.0)


# --- with hybrids ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep_consistent", [True, False])
def test_hybrids_in_their_window_equal_the_reference(objective, batch, hybridizer, keep_consistent):
    """Targets are the student's own predictions, of the forward that gives the other losses."""
    how = HybridUse(alpha=0.8, copies=2, start=2.0, stop=4.0, keep_consistent=keep_consistent)
    expected, twin, z1, _ = by_hand(objective, batch)
    parents = torch.cat([batch.labelled[0], batch.unlabelled[0]])
    torch.manual_seed(4)
    partner = torch.cat([torch.randperm(COUNT) for _ in range(2)])
    images = hybridizer.hybridize(semantic=parents.repeat(2, 1, 1, 1), nonsemantic=parents[partner])
    kept = torch.ones(len(images), dtype=torch.bool)
    if keep_consistent:
        expected_class = hybridizer.classify(parents).argmax(1)
        expected_class[:LABELLED] = batch.labels
        kept = hybridizer.classify(images).argmax(1) == expected_class.repeat(2)
    predictions, _ = twin(images)
    expected["hybrids"] = hybrid_loss(predictions, z1.detach().softmax(1), batch.labels, partner, kept, how)

    taught = MeanTeacher(objective.classifier, hybridizer=hybridizer, how=how)
    taught.base.teacher = objective.teacher
    torch.manual_seed(4)
    losses, rates, *_ = taught(batch, CLOCK)
    assert losses.keys() == expected.keys()
    for name in ("supervised", "consistency", "logit_distance"):
        torch.testing.assert_close(losses[name], expected[name], rtol=1e-12, atol=0)
    assert losses["hybrids"].item() == pytest.approx(expected["hybrids"].item(), rel=1e-10) and losses["hybrids"] > 0
    student = taught.base.classifier
    got, want = (gradients(*pair) for pair in ((losses["hybrids"], student), (expected["hybrids"], twin)))
    assert got.keys() == want.keys() and "predictions.weight" in got and "consistency.weight" not in got
    for name in got:
        torch.testing.assert_close(got[name], want[name], rtol=1e-8, atol=1e-12)
    assert rates["hybrids_kept"].item() == pytest.approx(kept.double().mean().item())
    torch.testing.assert_close(taught.base.classifier.norm.running_mean, twin.norm.running_mean)


def test_outside_the_window_hybrids_cost_nothing(objective, batch, hybridizer):
    plain = copy.deepcopy(objective)(batch, CLOCK).losses
    taught = MeanTeacher(objective.classifier, hybridizer=hybridizer, how=HybridUse(start=3.0))
    taught.base.teacher = objective.teacher
    state = torch.get_rng_state()
    losses, rates, *_ = taught(batch, CLOCK)
    assert torch.equal(torch.get_rng_state(), state)
    assert losses == plain | {"hybrids": torch.zeros(())} and rates == {"hybrids_kept": 0}


def test_hybridizer_is_no_part_of_what_learns(classifier, hybridizer):
    objective = MeanTeacher(classifier, hybridizer=hybridizer)
    assert objective.state_dict().keys() == {f"base.{name}" for name in MeanTeacher(classifier).state_dict()}
    assert hybridizer not in list(objective.modules())
