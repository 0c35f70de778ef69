"""The training loop against loops written by hand, and two losses recorded at full precision."""

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator
from objectives import FixMatch, SciMixDiscriminator, SciMixGenerator
from torch import nn

from hybridgen.networks.autoencoder import Architecture, SemanticAutoencoder
from hybridgen.networks.discriminator import Discriminator
from hybridgen.networks.wide_resnet import WideResNetClassifier
from hybridgen.training.fit import Diverged, fit
from hybridgen.training.objective import Guessed, Outcome, Task, sgd, slowed
from hybridgen.training.schedules import Clock, cosine, window
from hybridgen.types import Batch, InputError

MEAN = STD = (0.5, 0.5, 0.5)


def clock(steps: int = 6, step: int = 0) -> Clock:
    return Clock(steps=steps, steps_per_epoch=2, step=step)


def batches(start: int = 0, size: int = 4, side: int = 2, views: int = 1):
    """Batch k is a function of k."""
    for step in itertools.count(start):
        generator = torch.Generator().manual_seed(step)
        draw = lambda: torch.rand(size, 3, side, side, generator=generator)  # noqa: B023
        labels = torch.randint(3, (size,), generator=generator)
        yield Batch(tuple(draw() for _ in range(views)), labels, tuple(draw() for _ in range(2)))


class Regression(nn.Module):
    """Two losses of a linear map of the images."""

    def __init__(self, guessed: Guessed | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear, self.guessed = nn.Linear(12, 3), guessed

    def forward(self, batch: Batch, clock: Clock) -> Outcome:
        predictions = self.linear(batch.labelled[0].flatten(1))
        error = (predictions - nn.functional.one_hot(batch.labels, 3)).square().mean()
        losses = {"error": error, "size": predictions.square().mean()}
        return Outcome(losses, {"largest": predictions.detach().max()}, guessed=self.guessed)


WEIGHTS = {"error": 1.0, "size": window(0.5, 1.0, 2.0)}


def task(objective: nn.Module, weights=WEIGHTS, clip: float | None = None) -> Task:
    return Task(objective, weights, sgd(objective, decay=0.01), cosine(0.5, 4.0), clip=clip)


def guessing() -> Iterator[Batch]:
    """Batches of four unlabelled images, which know their places among ten."""
    for step, batch in enumerate(batches()):
        yield batch._replace(indices=torch.tensor([step, 9 - step, 4, 5]))


@pytest.mark.parametrize("weights", [None, [0.5, 1.0, 0.25, 0.0]])
def test_guesses_are_compared_with_the_classes_of_their_images(weights):
    labels, hidden = [0, 1, 2, 0], [0, -1, 2, 1, 2, 0, 0, 1, 2, 1]
    guessed = Guessed(torch.tensor(labels), None if weights is None else torch.tensor(weights))
    tasks = {"it": task(Regression(guessed)), "other": task(Regression())}
    said = list(fit(tasks, guessing(), clock(), Accelerator(), seed=0, hidden=torch.tensor(hidden)))
    for step, scalars in enumerate(said):
        known = [(i, hidden[place]) for i, place in enumerate([step, 9 - step, 4, 5]) if hidden[place] >= 0]
        counts = {i: 1.0 if weights is None else weights[i] for i, _ in known}
        assert scalars["it/pseudo_counted"] == pytest.approx(sum(counts.values()))
        assert scalars["it/pseudo_right"] == pytest.approx(sum(counts[i] for i, c in known if labels[i] == c))
        assert "other/pseudo_right" not in scalars


def test_nothing_is_compared_where_nobody_knows_classes_or_places():
    guesses = {"it": task(Regression(Guessed(torch.tensor([0, 1, 2, 0]))))}
    for each, hidden in ((guessing(), None), (batches(), torch.zeros(10, dtype=torch.int64))):
        for scalars in fit(guesses, each, clock(), Accelerator(), seed=0, hidden=hidden):
            assert not [name for name in scalars if "pseudo" in name]


@pytest.mark.parametrize("clip", [None, 0.05])
def test_equals_a_loop_written_by_hand(clip):
    trained, by_hand = Regression(), Regression()
    said = list(fit({"it": task(trained, clip=clip)}, batches(), clock(), Accelerator(), seed=0))

    optimizer = torch.optim.SGD(by_hand.parameters(), 1.0, momentum=0.9, nesterov=True, weight_decay=0.01)
    for step, batch, scalars in zip(range(6), batches(), said, strict=False):
        weight = 0.5 if 1 <= step / 2 < 2 else 0.0
        optimizer.param_groups[0]["lr"] = 0.5 * 0.5 * (1 + math.cos(math.pi * (step / 2) / 4))
        losses, rates, *_ = by_hand(batch, clock())
        total = losses["error"] + weight * losses["size"]
        optimizer.zero_grad()
        total.backward()
        norm = torch.cat([p.grad.flatten() for p in by_hand.parameters()]).norm()
        if clip is not None:
            assert norm > clip
            for parameter in by_hand.parameters():
                parameter.grad *= clip / (norm + 1e-6)
        optimizer.step()

        expected = {
            "it/error": losses["error"],
            "it/size": losses["size"],
            "it/weighted/error": losses["error"],
            "it/weighted/size": weight * losses["size"],
            "it/largest": rates["largest"],
            "it/total": total,
            "it/gradient_norm": norm,  # before clipping
        }
        assert scalars.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(scalars[name], value.detach(), rtol=1e-6, atol=0, msg=f"{name} at {step}")
            assert not scalars[name].requires_grad
    for ours, theirs in zip(trained.parameters(), by_hand.parameters(), strict=True):
        if clip is None:
            assert torch.equal(ours, theirs)
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-8)


def test_the_clock_moves_with_the_steps_and_a_finished_run_does_nothing():
    now = clock(steps=3)
    assert [now.step for _ in fit({"it": task(Regression())}, batches(), now, Accelerator(), seed=0)] == [1, 2, 3]
    assert not list(fit({"it": task(Regression())}, batches(), now, Accelerator(), seed=0))


class Scaled(Accelerator):
    """An accelerator that scales losses as fp16 needs it, by torch's own scaler on a CPU."""

    def backward(self, loss: torch.Tensor, **options) -> None:
        self.fp16 = getattr(self, "fp16", None) or torch.amp.GradScaler("cpu", init_scale=1024.0)
        self.fp16.scale(loss).backward()

    def unscale_gradients(self, optimizer=None) -> None:
        self.fp16.unscale_(optimizer)
        self.fp16.update(1024.0)


@pytest.mark.parametrize("clip", [None, 0.05])
def test_gradients_of_fp16_are_unscaled_before_they_are_measured_and_clipped(clip):
    plain, scaled = Regression(), Regression()
    scaled.load_state_dict(plain.state_dict())
    steps = [
        list(fit({"it": replace(task(each), clip=clip)}, batches(), clock(), accelerator, seed=0))
        for each, accelerator in ((plain, Accelerator()), (scaled, Scaled()))
    ]
    for mine, theirs in zip(*steps, strict=True):
        torch.testing.assert_close(mine["it/gradient_norm"], theirs["it/gradient_norm"], rtol=1e-5, atol=0)
        assert clip is None or mine["it/gradient_norm"] > clip
    torch.testing.assert_close(scaled.state_dict(), plain.state_dict(), rtol=1e-5, atol=1e-7)


class Sender(Regression):
    def forward(self, batch: Batch, clock: Clock) -> Outcome:
        outcome = super().forward(batch, clock)
        return outcome._replace(handed=(self.linear.weight.detach().clone(), torch.tensor(clock.step)))


class Receiver(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.got, self.images = [], []

    def forward(self, batch: Batch, clock: Clock, weight: torch.Tensor, step: torch.Tensor) -> Outcome:
        self.got.append((weight, int(step)))
        self.images.append(batch.labelled[0])
        return Outcome({"difference": (self.weight - weight.mean()).square()})


def test_two_tasks_see_the_same_batch_and_the_second_what_the_first_handed_on():
    sender, receiver = Sender(), Receiver()
    tasks = {"first": task(sender), "second": task(receiver, {"difference": 1.0})}
    for step, scalars in enumerate(fit(tasks, batches(), clock(), Accelerator(), seed=0)):
        weight, when = receiver.got[-1]
        assert when == step
        assert not torch.equal(weight, sender.linear.weight)  # taken before the first task's update
        assert {"first/error", "second/difference", "second/gradient_norm"} <= scalars.keys()
    assert len(receiver.got) == 6
    for seen, batch in zip(receiver.images, batches(), strict=False):
        assert torch.equal(seen, batch.labelled[0])
    assert receiver.weight != 0


def test_each_task_leaves_the_parameters_of_the_other_alone():
    sender, receiver = Sender(), Receiver()
    alone = Regression()
    list(fit({"it": task(alone)}, batches(), clock(), Accelerator(), seed=0))
    list(
        fit(
            {"first": task(sender), "second": task(receiver, {"difference": 1.0})},
            batches(), clock(), Accelerator(), seed=0,
        )
    )  # fmt: skip
    assert torch.equal(alone.linear.weight, sender.linear.weight)


class Drawing(Regression):
    """Draws from the global generator, as objectives do."""

    def __init__(self) -> None:
        super().__init__()
        self.drawn = []

    def forward(self, batch: Batch, clock: Clock) -> Outcome:
        self.drawn.append(torch.rand(2).tolist())
        return super().forward(batch, clock)


def draws(step: int = 0, seed: int = 0) -> list[list[float]]:
    objective = Drawing()
    for _ in fit({"it": task(objective)}, batches(step), clock(step=step), Accelerator(), seed=seed):
        torch.rand(step + 3)  # evaluation between two steps may draw what it likes
    return objective.drawn


def test_draws_are_a_function_of_seed_and_step():
    whole = draws()
    assert draws() == whole
    assert draws(step=4) == whole[4:]
    assert len({tuple(drawn) for drawn in whole}) == 6
    assert not {tuple(drawn) for drawn in draws(seed=1)} & {tuple(drawn) for drawn in whole}


def test_draws_are_another_ones_on_every_process(monkeypatch):
    first = draws()
    monkeypatch.setattr(Accelerator, "process_index", property(lambda self: 1))
    assert not {tuple(drawn) for drawn in draws()} & {tuple(drawn) for drawn in first}


class Diverging(Regression):
    """The term "size" becomes nan or infinite in one step (counted from 1), and only there."""

    def __init__(self, step: int, value: float) -> None:
        super().__init__()
        self.step, self.value = step, value

    def forward(self, batch: Batch, clock: Clock) -> Outcome:
        losses, rates, *_ = super().forward(batch, clock)
        if clock.step + 1 == self.step:
            losses["size"] = losses["size"].detach() * 0 + self.value
        return Outcome(losses, rates)


def steps_until_diverged(value: float) -> tuple[int, Diverged]:
    done = 0
    with pytest.raises(Diverged) as caught:
        for _ in fit({"it": task(Diverging(4, value))}, batches(), clock(20), Accelerator(), seed=0, check_every=5):
            done += 1
    return done, caught.value


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_the_run_at_that_step_and_is_named(value):
    done, error = steps_until_diverged(value)
    assert done == 3
    assert (error.term, error.step) == ("it/size", 4)
    assert str(error) == "loss 'it/size' is not finite at step 4"


def test_on_an_accelerator_it_is_noticed_a_little_later_but_its_step_is_known(monkeypatch):
    monkeypatch.setattr(Accelerator, "device", property(lambda self: torch.device("meta")))
    done, error = steps_until_diverged(math.nan)
    assert done == 4  # the check is due after step 5
    assert (error.term, error.step) == ("it/size", 4)


def test_a_loss_without_a_weight_is_an_input_error():
    with pytest.raises(InputError, match="size"):
        list(fit({"it": task(Regression(), {"error": 1.0})}, batches(), clock(), Accelerator(), seed=0))


# --- recorded losses: kernels of other CPUs differ in the last digits, other mathematics in the first ------


def losses_of(tasks: dict[str, Task], views: int) -> dict[str, list[float]]:
    steps = list(fit(tasks, batches(0, 8, 16, views), clock(3), Accelerator(), seed=0))
    names = [f"{name}/{term}" for name, each in tasks.items() for term in each.weights]
    return {name: [scalars[name].item() for scalars in steps] for name in names}


def assert_recorded(losses: dict[str, list[float]], recorded: dict[str, list[float]]) -> None:
    """What oneDNN's convolutions round differently where other tests have used the memory before grows with the steps:
    up to 2e-4 in the third has been seen."""
    assert losses.keys() == recorded.keys()
    for name, values in recorded.items():
        assert losses[name][0] == pytest.approx(values[0], rel=1e-5, abs=1e-7), name
        assert losses[name] == pytest.approx(values, rel=1e-3, abs=1e-7), name


def test_losses_of_fixmatch_are_the_recorded_ones():
    torch.manual_seed(0)
    objective = FixMatch(WideResNetClassifier(10, 1, 3, mean=MEAN, std=STD, stem=4), threshold=0.4)
    weights = {"supervised": 1.0, "unsupervised": 1.0}
    each = Task(objective, weights, sgd(objective, decay_all=False), lambda clock: 0.03)
    assert_recorded(losses_of({"classifier": each}, views=1), FIXMATCH)


def test_losses_of_scimix_are_the_recorded_ones():
    torch.manual_seed(0)
    architecture = Architecture(
        image_size=16, classes=3, mean=MEAN, std=STD, network="leaky-wrn-10-1", nonsemantic_channels=2,
        generator_channels=(8, 8),
    )  # fmt: skip
    critic = Discriminator(16, width=0.125, mean=MEAN, std=STD)
    generator = SciMixGenerator(SemanticAutoencoder(architecture), critic)
    names = ["reconstruction", "adversarial_reconstruction", "adversarial_hybrid", "semantic_attraction"]
    names += ["semantic_repulsion", "nonsemantic_attraction", "nonsemantic_repulsion", "supervised", "consistency"]
    weights = dict.fromkeys([*names, "logit_distance"], 0.5)
    discriminator = SciMixDiscriminator(critic)
    tasks = {
        "generator": Task(generator, weights, sgd(generator), lambda clock: 0.01),
        "discriminator": Task(
            discriminator, dict.fromkeys(["real", "reconstruction", "hybrid"], 1.0), sgd(discriminator),
            lambda clock: 0.01,
        ),
    }  # fmt: skip
    assert_recorded(losses_of(tasks, views=2), SCIMIX)


FIXMATCH = {
    "classifier/supervised": [1.411031723022461, 1.7079157829284668, 0.8773923516273499],
    "classifier/unsupervised": [0.35479363799095154, 0.3741424083709717, 0.3950832486152649],
}
SCIMIX = {
    "generator/reconstruction": [16.271228790283203, 16.026599884033203, 16.153308868408203],
    "generator/adversarial_reconstruction": [0.7323172688484192, 0.7375009655952454, 0.7451890707015991],
    "generator/adversarial_hybrid": [0.7323193550109863, 0.7374986410140991, 0.7451856732368469],
    "generator/semantic_attraction": [0.5731216073036194, 0.40620994567871094, 0.4078572988510132],
    "generator/semantic_repulsion": [-0.4766136705875397, -0.4511193633079529, -0.30762556195259094],
    "generator/nonsemantic_attraction": [5.6673126220703125, 5.515564918518066, 5.688230514526367],
    "generator/nonsemantic_repulsion": [-6.329239845275879, -6.551933288574219, -7.551815509796143],
    "generator/supervised": [0.5295047163963318, 0.5828333497047424, 0.5427111983299255],
    "generator/consistency": [0.0543244294822216, 0.04210061952471733, 0.03560977056622505],
    "generator/logit_distance": [0.5816605091094971, 0.42463934421539307, 0.30492475628852844],
    "discriminator/real": [0.733643114566803, 0.738994836807251, 0.7456254363059998],
    "discriminator/reconstruction": [0.6554536819458008, 0.6506774425506592, 0.6436801552772522],
    "discriminator/hybrid": [0.6554518342018127, 0.6506795883178711, 0.6436833143234253],
}


def test_slowed_parameters_move_by_their_part_of_the_rate():
    """As one step of two optimizers would move them."""
    plain, slow = Regression(), Regression()
    slow.load_state_dict(plain.state_dict())
    before = [p.detach().clone() for p in plain.parameters()]
    tasks = task(plain), task(slow)
    first = next(iter(slow.parameters()))
    module = nn.ParameterList([first])
    slowed(tasks[1].optimizer, module, 0.25)
    for each in tasks:
        next(fit({"it": each}, batches(), clock(), Accelerator(), seed=0))
    moves = [[p - b for p, b in zip(each.parameters(), before, strict=True)] for each in (plain, slow)]
    torch.testing.assert_close(moves[1][0], 0.25 * moves[0][0], rtol=1e-5, atol=1e-8)
    assert moves[0][0].any() and len(moves[0]) > 1
    for mine, theirs in zip(moves[1][1:], moves[0][1:], strict=True):
        assert torch.equal(mine, theirs)
