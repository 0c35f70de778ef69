"""What the tests of several processes compute, as any number of processes: `distributed_worker.py FOLDER`."""

import sys
from dataclasses import replace
from itertools import islice
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from objectives import (
    FixMatch,
    MeanTeacher,
    MixMatch,
    MixMo,
    RecursiveMix,
    Samosa,
    SamosaReconstruction,
    SciMixDiscriminator,
    SciMixGenerator,
)
from torch import nn

from hybridgen.data.datasets import Part
from hybridgen.data.sources import InMemory
from hybridgen.data.splits import Split
from hybridgen.data.streams import Stream
from hybridgen.methods import fixmatch as fixmatch_method
from hybridgen.methods import mean_teacher as mean_teacher_method
from hybridgen.methods import samosa as samosa_method
from hybridgen.methods.mixvit import MixViT
from hybridgen.methods.samosa import Watched
from hybridgen.mixing.inputs import PatchMixing
from hybridgen.networks.autoencoder import Architecture, SamosaArchitecture, SamosaAutoencoder, SemanticAutoencoder
from hybridgen.networks.classifiers import Classifier
from hybridgen.networks.discriminator import Discriminator
from hybridgen.networks.multi_input import MultiInputClassifier
from hybridgen.networks.multi_input_transformer import MultiInputTransformer
from hybridgen.networks.registry import make_network
from hybridgen.networks.wide_resnet import TwoHeadClassifier
from hybridgen.tables.cost import noise
from hybridgen.training import engine
from hybridgen.training.ema import EMA
from hybridgen.training.engine import laid_out, make_accelerator
from hybridgen.training.fit import fit
from hybridgen.training.objective import Outcome, Task, adam, sgd
from hybridgen.training.schedules import Clock, cosine
from hybridgen.training.scores import accuracy, logits_of
from hybridgen.types import Batch

COUNT, SIDE = 53, 16
MEAN = STD = (0.5, 0.5, 0.5)
SPLIT = Split("toy", "f", 0, tuple(range(12)), tuple(range(12, 45)), tuple(range(45, COUNT)))


def part() -> Part:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (COUNT, 3, SIDE, SIDE), generator=generator, dtype=torch.uint8)
    return Part(InMemory(images), torch.arange(COUNT) % 3)


def stream(accelerator: Accelerator, views: int, *, unlabelled: int = 8) -> Stream:
    plain = lambda images, generator: images
    return Stream(
        part(), SPLIT, labelled=4, unlabelled=unlabelled, labelled_views=(plain,) * views,
        unlabelled_views=(plain,) * views,
        seed=0, rank=accelerator.process_index, world=accelerator.num_processes,
    )  # fmt: skip


class Plain(nn.Module):
    """Means over labelled and unlabelled images, without batch-norm, and a draw of this process."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.network = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE * SIDE, 8), nn.Tanh(), nn.Linear(8, 3))

    def forward(self, batch: Batch, clock: Clock) -> Outcome:
        losses = {
            "supervised": nn.functional.cross_entropy(self.network(batch.labelled[0]), batch.labels),
            "size": self.network(batch.unlabelled[0]).square().mean(),
        }
        return Outcome(losses, {"drawn": torch.rand(())})


def gradients(accelerator: Accelerator) -> dict[str, torch.Tensor]:
    """The parameters after six steps, and what was drawn."""
    objective = Plain()
    prepared, optimizer = accelerator.prepare(objective, sgd(objective))
    tasks = {"plain": Task(prepared, {"supervised": 1.0, "size": 0.5}, optimizer, cosine(0.1, 9), clip=0.5)}
    clock = Clock(steps=6, steps_per_epoch=3)
    steps = list(fit(tasks, stream(accelerator, 1).from_step(0), clock, accelerator, seed=0))
    return {
        "parameters": torch.cat([parameter.detach().flatten() for parameter in objective.parameters()]),
        "norms": torch.stack([scalars["plain/gradient_norm"] for scalars in steps]),
        "drawn": torch.stack([scalars["plain/drawn"] for scalars in steps]),
    }


def in_bf16(accelerator: Accelerator) -> dict[str, torch.Tensor]:
    """The same in bf16, whatever the processor; afterwards accelerate, which holds one precision, has its own again."""
    kept, look = dict(AcceleratorState._shared_state), engine.look_for_bf16
    engine.look_for_bf16 = lambda: (engine.CPU, "avx512_bf16")
    AcceleratorState._shared_state.clear()
    try:
        return gradients(make_accelerator(precision="bf16", threads=1))
    finally:
        engine.look_for_bf16 = look
        AcceleratorState._shared_state.clear()
        AcceleratorState._shared_state.update(kept)


def scimix(accelerator: Accelerator) -> dict[str, torch.Tensor]:
    """The parameters before and after four steps of both sides of the game, averages and teacher with them."""
    torch.manual_seed(accelerator.process_index)  # what DistributedDataParallel has to make good
    architecture = Architecture(
        image_size=SIDE, classes=3, mean=MEAN, std=STD, network="leaky-wrn-10-1", nonsemantic_channels=2,
        generator_channels=(8, 8),
    )  # fmt: skip
    autoencoder, critic = SemanticAutoencoder(architecture), Discriminator(SIDE, width=0.125, mean=MEAN, std=STD)
    generator, discriminator = SciMixGenerator(autoencoder, critic), SciMixDiscriminator(critic, penalize=True)
    prepared = accelerator.prepare(generator, discriminator, adam(generator), adam(discriminator))
    losses = ["reconstruction", "adversarial_reconstruction", "adversarial_hybrid", "semantic_attraction"]
    losses += ["semantic_repulsion", "nonsemantic_attraction", "nonsemantic_repulsion", "supervised", "consistency"]
    weights = dict.fromkeys([*losses, "logit_distance"], 0.5)
    critic_weights = dict.fromkeys(["real", "reconstruction", "hybrid", "gradient_penalty"], 1.0)
    tasks = {
        "generator": Task(prepared[0], weights, prepared[2], lambda clock: 0.01),
        "discriminator": Task(prepared[1], critic_weights, prepared[3], lambda clock: 0.01),
    }
    average = EMA(autoencoder, 0.9)
    modules = (generator, discriminator, average)
    flat = lambda: torch.cat([p.detach().flatten() for module in modules for p in module.parameters()])
    before = flat()
    for _ in fit(tasks, stream(accelerator, 2).from_step(0), Clock(4, 3), accelerator, seed=0):
        average.update(autoencoder)
        generator.teacher.update(autoencoder.classifier)
    return {"before": before, "after": flat()}


def fixmatch(accelerator: Accelerator) -> dict[str, torch.Tensor]:
    """The network and what it is weighted and aligned by after fourteen steps, of every weighting and alignment."""
    kept = {}
    context = noise(3, SIDE, 45, accelerator, labelled=12)
    for weighting, alignment, threshold in (
        ("flexmatch", "labels", 0.6), ("freematch", "none", 0), ("softmatch", "uniform", 0),
        ("adamatch", "predictions", 1),
    ):  # fmt: skip
        torch.manual_seed(accelerator.process_index)
        settings = fixmatch_method.Settings(
            weighting=weighting, alignment=alignment, threshold=threshold, statistics_decay=0.4, alignment_window=4
        )
        labelling = fixmatch_method.labelling_of(settings, context)
        network = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE * SIDE, 8), nn.Tanh(), nn.Linear(8, 3))
        network[-1].weight.data *= 3
        objective = FixMatch(network, labelling=labelling)
        prepared, optimizer = accelerator.prepare(objective, sgd(objective))
        weights = {"supervised": 1.0, "unsupervised": 1.0} | ({"fairness": 5.0} if weighting == "freematch" else {})
        tasks = {"classifier": Task(prepared, weights, optimizer, cosine(0.05, 9))}
        batches = (batch._replace(labelled=batch.labelled[:1]) for batch in stream(accelerator, 2).from_step(0))
        shares = [scalars["classifier/confident"] for scalars in fit(tasks, batches, Clock(14, 5), accelerator, seed=0)]
        kept |= {f"{weighting}.{name}": tensor for name, tensor in objective.state_dict().items()}
        kept[f"{weighting}.confident"] = torch.stack(shares)
    return kept


class TwoHeads(nn.Module):
    """Two linear heads on one hidden layer, without batch-norm."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE * SIDE, 8), nn.Tanh())
        self.heads = nn.ModuleList([nn.Linear(8, 3), nn.Linear(8, 3)])

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        hidden = self.body(images)
        return self.heads[0](hidden), self.heads[1](hidden)


def mean_teacher(accelerator: Accelerator) -> dict[str, torch.Tensor]:
    """Student and teacher after six steps."""
    torch.manual_seed(accelerator.process_index)
    objective = MeanTeacher(TwoHeads())
    prepared, optimizer = accelerator.prepare(objective, sgd(objective))
    weights = {"supervised": 1.0, "consistency": 100.0, "logit_distance": 0.01}
    tasks = {"classifier": Task(prepared, weights, optimizer, cosine(0.1, 9))}
    for _ in fit(tasks, stream(accelerator, 2).from_step(0), Clock(6, 3), accelerator, seed=0):
        objective.teacher.update(objective.classifier)
    return {"parameters": torch.cat([p.detach().flatten() for p in objective.parameters()])}


def synchronized(accelerator: Accelerator) -> dict[str, torch.Tensor]:
    """A wide residual network and its teacher after six steps with synchronised batch-norm, statistics included."""
    torch.manual_seed(0)
    network = TwoHeadClassifier(10, 1, 3, mean=MEAN, std=STD, stem=4)
    objective = MeanTeacher(laid_out(network, accelerator, synchronized=True))
    prepared, optimizer = accelerator.prepare(objective, sgd(objective))
    weights = {"supervised": 1.0, "consistency": 100.0, "logit_distance": 0.01}
    tasks = {"classifier": Task(prepared, weights, optimizer, cosine(0.1, 9))}
    for _ in fit(tasks, stream(accelerator, 2).from_step(0), Clock(6, 3), accelerator, seed=0):
        objective.teacher.update(objective.classifier)
    return dict(objective.state_dict())


def uneven(accelerator: Accelerator) -> dict[str, torch.Tensor]:
    """Outputs, gradients and statistics of a synchronised batch-norm of five images, two and three a process."""
    images = torch.randn(5, 3, 4, 4, generator=torch.Generator().manual_seed(0)) + 100
    mine = [images, images[:2], images[2:]][accelerator.process_index + (accelerator.num_processes > 1)]
    mine = mine.clone().requires_grad_()
    norm = laid_out(nn.BatchNorm2d(3, momentum=None, affine=False), accelerator, synchronized=True)
    normalized = norm(mine)
    normalized.pow(3).sum().backward()
    half = norm(mine.detach().bfloat16())
    return {"normalized": normalized.detach(), "gradient": mine.grad, "half": half, **norm.state_dict()}


def samosa(accelerator: Accelerator) -> dict[str, torch.Tensor]:
    """The parameters before and after four steps of SAMOSA's two optimizers on MixMatch."""
    torch.manual_seed(accelerator.process_index)
    architecture = SamosaArchitecture(SIDE, 3, mean=MEAN, std=STD, network="leaky-wrn-10-1")
    autoencoder = SamosaAutoencoder(architecture)
    watched = Watched(autoencoder.classifier, heads=1)
    classifying = Samosa(MixMatch(watched), watched, autoencoder.decoder)
    reconstructing = SamosaReconstruction(autoencoder.nonsemantic_encoder, autoencoder.decoder, autoencoder.normalize)
    prepared = accelerator.prepare(classifying, reconstructing, adam(classifying), adam(reconstructing))
    weights = dict.fromkeys(["supervised", "unsupervised", "regularizer"], 1.0)
    tasks = {
        "classifier": Task(prepared[0], weights, prepared[2], lambda clock: 0.01),
        "reconstruction": Task(prepared[1], {"reconstruction": 1.0}, prepared[3], lambda clock: 0.01),
    }
    average = EMA(autoencoder, 0.9)
    flat = lambda: torch.cat([p.detach().flatten() for p in (*autoencoder.parameters(), *average.parameters())])
    before = flat()
    batches = stream(accelerator, 1, unlabelled=4).from_step(0)
    for _ in fit(tasks, batches, Clock(4, 3), accelerator, seed=0):
        average.update(autoencoder)
    return {"before": before, "after": flat()}


def samosas_hybrids(accelerator: Accelerator) -> dict[str, torch.Tensor]:
    """The hybrids that a cycle of SAMOSA leaves to the next, and the average that made them, its statistics included:
    each process's own batch-norm has seen other images."""
    context = noise(3, SIDE, 45, accelerator, labelled=12)
    settings = mean_teacher_method.Settings(labelled_batch=4, unlabelled_batch=8, epochs=2.0, ema_decay=0.5)
    made = samosa_method.networks(settings, context, 0, heads=2)
    base = mean_teacher_method.plan(settings, context, 0, classifier=made.watched)
    how = samosa_method.Settings(cycles=2, start=0.5, stop=1.5, hybrids_per_image=2)
    plan = samosa_method.with_samosa(base, made, how, 0)
    tasks = {}
    for name, task in plan.tasks.items():
        objective, optimizer = accelerator.prepare(task.objective, task.optimizer)
        tasks[name] = replace(task, objective=objective, optimizer=optimizer)
    noted = []
    for _ in islice(fit(tasks, plan.stream.from_step(0), plan.clock, accelerator, seed=0), base.clock.steps):
        plan.average.update(plan.network)
        noted += plan.after_step(Path()).values()
    average = {name: tensor for name, tensor in plan.average.state_dict().items() if "extra" not in name}
    return {"hybrids": plan.modules["hybrids"].images, "kept": torch.tensor(noted), **average}


def accuracies(accelerator: Accelerator) -> dict[str, torch.Tensor]:
    """Of a classifier that knows some of the images, on counts that two processes cannot share evenly."""
    torch.manual_seed(0)
    classify = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE * SIDE, 3))
    images = part()
    counts = [accuracy(classify, images, range(count), accelerator, batch_size=7) for count in (COUNT, 16, 1)]
    members = lambda images: torch.stack([classify(images), -2 * classify(images)])
    predicted = {}
    for count in (COUNT, 16, 1):
        chosen = list(reversed(range(count)))
        predicted[f"logits-{count}"], predicted[f"labels-{count}"] = logits_of(
            members, images, chosen, accelerator, batch_size=7
        )
    return {"accuracy": torch.tensor(counts, dtype=torch.float64), **predicted}


class Spatial(Classifier):
    """A convolution, a mean and a linear layer, without batch-norm."""

    channels = 6

    def __init__(self) -> None:
        nn.Module.__init__(self)
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.Tanh())
        self.head = nn.Linear(6, 3)

    def features(self, images: torch.Tensor) -> torch.Tensor:
        return self.body(images)

    def classify(self, features: torch.Tensor) -> torch.Tensor:
        return self.head(features.mean(dim=(2, 3)))


def recursivemix(accelerator: Accelerator) -> dict[str, torch.Tensor]:
    """The parameters after six steps, what they would be if the first step's loss were that of the whole batch, and
    each process's history."""
    objective = RecursiveMix(Spatial(), 3)
    prepared, optimizer = accelerator.prepare(objective, sgd(objective))
    tasks = {"classifier": Task(prepared, {"supervised": 1.0, "consistency": 0.5}, optimizer, cosine(0.1, 9))}
    steps = fit(tasks, stream(accelerator, 1).from_step(0), Clock(6, 3), accelerator, seed=0)
    flat = lambda: torch.cat([p.detach().flatten() for p in objective.parameters()])
    next(steps)
    first = flat()
    list(steps)
    history = objective.history
    return {"first": first, "parameters": flat(), "images": history.images, "logits": history.logits}


class Convolved(nn.Module):
    """A convolution, tanh, a mean and a linear layer, in timm's convention, without batch-norm."""

    num_classes = 3

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 6, 3, 2, 1, bias=False), nn.Linear(6, 3)

    def forward_features(self, images: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.conv(images))

    def forward_head(self, features: torch.Tensor) -> torch.Tensor:
        return self.fc(features.mean(dim=(2, 3)))


def mixmo(accelerator: Accelerator) -> dict[str, torch.Tensor]:
    """The parameters after six steps: of MIMO whose inputs all see the same image, which draws nothing, and of
    Cut-MixMo, whose draws are each process's own."""
    after = {}
    for name, changes in (
        ("mimo", dict(alpha=float("inf"), patch_probability=0.0, input_repetition=1.0)),
        ("cut", dict(patch_probability=1.0)),
    ):
        torch.manual_seed(0)
        made = MultiInputClassifier([Convolved(), Convolved()], mean=MEAN, std=STD, ensemble="logits")
        objective = MixMo(made, 3, **changes)
        prepared, optimizer = accelerator.prepare(objective, sgd(objective))
        tasks = {"classifier": Task(prepared, {"supervised": 1.0}, optimizer, cosine(0.1, 9))}
        list(fit(tasks, stream(accelerator, 1).from_step(0), Clock(6, 3), accelerator, seed=0))
        after[name] = torch.cat([p.detach().flatten() for p in objective.parameters()])
    return after


def neighbours(count: int, *_) -> PatchMixing:
    """Images 0 and 1 together, 2 and 3, ...; of 4×4 patches the first input's are one row where it sees an even image,
    two rows where an odd one, so that every share is a quarter or more."""
    first = torch.arange(count)
    rows = torch.arange(4).view(1, 4, 1).expand(count, 4, 4)
    return PatchMixing(torch.stack([first, first ^ 1]), (rows > (first % 2).view(-1, 1, 1)).long())


def mixvit(accelerator: Accelerator) -> dict[str, torch.Tensor]:
    """The parameters after six steps: of one input, in which draws change nothing; of two, whose draws are each
    process's own; and of two of which each sees what it would see in the whole batch: neighbours together, the upper
    patches of the one and the lower ones of the other."""
    after = {}
    for name, inputs, source in (("1", 1, "none"), ("2", 2, "encoding"), ("2-fixed", 2, "encoding")):
        torch.manual_seed(0)
        plain = make_network("convit-12-3-1-patch4", 3, image_size=16)
        how = dict(source=source, place="late", encoders="one", inference="separate", ensemble="logits")
        made = Classifier(MultiInputTransformer(plain, inputs=inputs, **how), mean=MEAN, std=STD)
        options = dict(mixing="patches", alpha=0.5, patch_probability=0.5, msda=False, smoothing=0.1)
        objective = MixViT(made, 3, **options)
        if name == "2-fixed":
            objective.draw = neighbours
        prepared, optimizer = accelerator.prepare(objective, sgd(objective))
        tasks = {"classifier": Task(prepared, {"supervised": 1.0}, optimizer, cosine(0.1, 9))}
        list(fit(tasks, stream(accelerator, 1).from_step(0), Clock(6, 3), accelerator, seed=0))
        after[name] = torch.cat([p.detach().flatten() for p in objective.parameters()])
    return after


def everything(accelerator: Accelerator) -> dict[str, dict[str, torch.Tensor]]:
    seen = torch.stack(
        [torch.cat([b.labelled[0], b.unlabelled[0]]) for b in islice(stream(accelerator, 1).from_step(0), 3)]
    )
    return {
        "gradients": gradients(accelerator),
        "in_bf16": in_bf16(accelerator),
        "scimix": scimix(accelerator),
        "fixmatch": fixmatch(accelerator),
        "mean_teacher": mean_teacher(accelerator),
        "synchronized": synchronized(accelerator),
        "uneven": uneven(accelerator),
        "samosa": samosa(accelerator),
        "recursivemix": recursivemix(accelerator),
        "mixmo": mixmo(accelerator),
        "mixvit": mixvit(accelerator),
        "samosas_hybrids": samosas_hybrids(accelerator),
        "accuracies": accuracies(accelerator),
        "stream": {"images": seen},
    }


if __name__ == "__main__":
    here = make_accelerator(precision="fp32", threads=1)
    torch.save(everything(here), Path(sys.argv[1]) / f"process-{here.process_index}.pt")
