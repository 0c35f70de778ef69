"""What training costs, against counts by hand."""

import re

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from hybridgen.methods import mixing
from hybridgen.methods.labelled import TrainingSettings
from hybridgen.methods.mixing import TITLES
from hybridgen.networks.classifiers import Classifier
from hybridgen.networks.registry import make_network
from hybridgen.tables import cost as module
from hybridgen.tables.cost import LiveBytes, Trainee, cost, flops, noise, parameters
from hybridgen.types import InputError

SETTINGS = TrainingSettings(network="wrn-10-1", width=1, batch=4)


def small(methods=("cutmix", "recursivemix"), **options):
    options = {"classes": 3, "image_size": 16, "rounds": 2, "steps": 1} | options
    return cost(SETTINGS, methods, Accelerator(cpu=True), **options)


def test_bytes_that_live_at_once():
    with LiveBytes() as memory:
        one = torch.zeros(1000)
        view = one.view(10, 100)[2:]
        assert memory.live == 4000
        two = one + 1
        assert memory.live == memory.peak == 8000
        one.mul_(2)
        del one
        assert memory.live == 8000  # the view holds it
        del view, two
        assert memory.live == 0
        torch.zeros(500, dtype=torch.float64)
    assert memory.live == 0 and memory.peak == 8000


def test_bytes_that_a_backward_needs():
    """Three squares keep their three inputs; their gradients come one after the other."""
    with LiveBytes() as memory:
        x = torch.ones(1000, requires_grad=True)
        y = x.square().square().square().sum()
        assert memory.live >= 3 * 4000
        y.backward()
    assert 4 * 4000 <= memory.peak <= 7 * 4000


def test_flops_of_known_layers():
    """A 3×3 convolution of 3 to 4 maps of 8×8, its ReLU, mean and a linear layer: two for each multiply-add."""

    class Network(nn.Module):
        num_features = 4

        def __init__(self):
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4, 5)

        def forward_features(self, x):
            return self.conv(x).relu()

        def forward_head(self, x):
            return self.fc(x.mean(dim=(2, 3)))

    classifier = Classifier(Network(), mean=(0.5,) * 3, std=(0.5,) * 3)
    assert flops(classifier, 8) == 2 * (64 * 4 * 27 + 4 * 5)
    assert next(classifier.parameters()).device.type == "cpu" and classifier.training


def test_table_11_of_the_paper(monkeypatch):
    """ResNet-50 at 224 pixels: 4.12 G multiply-adds, 25.56 M parameters, with RecursiveMix 27.61 M in training."""
    config = TrainingSettings(network="resnet50", width=1)
    context = noise(1000, 8, config.batch, Accelerator(cpu=True))
    monkeypatch.setattr(Accelerator, "device", torch.device("meta"))
    with torch.device("meta"):
        training = [mixing.plan(name, config, context, 0) for name in ("none", "cutmix", "recursivemix")]
    objectives = [each.tasks["classifier"].objective for each in training]
    assert [round(parameters(each) / 1e6, 2) for each in objectives] == [25.56, 25.56, 27.61]
    assert flops(training[0].network, 224) / 2e9 == pytest.approx(4.12, abs=0.04)


def test_study_measures_every_method_beside_no_mixing():
    finding = small()
    methods = finding.values["methods"]
    assert list(methods) == ["none", "cutmix", "recursivemix"]
    bare = parameters(make_network("wrn-10-1", 3))
    for name, of in methods.items():
        assert of["parameters_deployed"] == bare
        assert of["parameters_training"] == bare + (name == "recursivemix") * (64 * 3 + 3)
        assert of["flops_ratio"] == 1 and of["seconds_per_step"] > 0
        for key in ("peak_bytes", "parameters_training", "seconds_per_step"):
            assert of[f"{key}_ratio"] == pytest.approx(of[key] / methods["none"][key])
    units = {"peak_bytes": 2**20, "flops": 2e6, "parameters_training": 1e6, "parameters_deployed": 1e6,
             "seconds_per_step": 1e-3}  # fmt: skip
    titles, *rows = (re.split(r"\s{2,}", line) for line in finding.table.splitlines()[:4])
    assert titles[1::2] == ["memory, MiB", "multiply-adds, M", "#P training, M", "#P deployed, M", "ms a step"]
    for row, of in zip(rows, methods.values(), strict=True):
        told = [of[key] / unit for key, unit in units.items()]
        assert [float(cell) for cell in row[1::2]] == pytest.approx(told, abs=0.0501)
        assert [float(cell) for cell in row[2::2]] == pytest.approx([of[f"{key}_ratio"] for key in units], abs=6e-4)
    history = 4 * (4 * 3 * 16 * 16 + 2 * 4 * 3)
    assert methods["recursivemix"]["peak_bytes"] >= methods["none"]["peak_bytes"] + history
    assert methods["none"]["peak_bytes"] > 3 * 4 * bare  # weights, gradients, momenta
    assert methods["none"]["flops"] == flops(
        Classifier(make_network("wrn-10-1", 3), mean=(0.5,) * 3, std=(0.5,) * 3), 16
    )
    assert [row[0] for row in rows] == [TITLES[name] for name in methods]
    about = {"study": "cost", "network": "wrn-10-1", "width": 1, "classes": 3, "image_size": 16, "batch": 4,
             "device": "cpu", "rounds": 2, "steps": 1, "memory_measure": module.MEASURES["cpu"]}  # fmt: skip
    assert finding.values.items() >= about.items()
    for words in (
        "wrn-10-1, width 1, 3 classes; batches of 4 images of 16×16; cpu, ",
        "memory: bytes of all tensors that lived at once, at most; multiply-adds: of a forward of the deployed network",
        "time: median of 2 rounds of 1 steps, augmentation included; ratios: to no mixing",
    ):
        assert words in finding.table
    axes, drawn = finding.figure.axes, ("peak_bytes", "parameters_training", "seconds_per_step")
    assert [axis.get_title() for axis in axes] == ["memory, MiB", "#P training, M", "ms a step"]
    for axis, key in zip(axes, drawn, strict=True):
        widths = [bar.get_width() for bar in axis.containers[0]]
        assert widths == pytest.approx([of[key] / units[key] for of in methods.values()])
        assert [text.get_text() for text in axis.texts] == [f"{of[f'{key}_ratio']:.3f}×" for of in methods.values()]
    assert small().values["methods"]["cutmix"]["peak_bytes"] == methods["cutmix"]["peak_bytes"]


def test_times_are_medians_of_rounds_over_their_steps(monkeypatch):
    """Methods take turns: the clock shows what each took in each round, and once before it."""
    took = {"none": (2.0, 10.0, 4.0), "cutmix": (6.0, 12.0, 3.0)}
    times = [time for round_ in range(3) for name in took for time in (0.0, took[name][round_])]
    clock = iter(times)
    monkeypatch.setattr(module, "now", lambda device: next(clock))
    methods = small(("cutmix",), rounds=3, steps=2).values["methods"]
    assert {name: of["seconds_per_step"] for name, of in methods.items()} == {"none": 2.0, "cutmix": 3.0}
    assert methods["cutmix"]["seconds_per_step_ratio"] == 1.5 and next(clock, None) is None


@pytest.mark.parametrize("name", TITLES)
def test_every_method_makes_its_steps(name):
    trainee = Trainee(SETTINGS, name, noise(3, 16, 4, Accelerator(cpu=True)))
    before = [parameter.clone() for parameter in trainee.objective.parameters()]
    for _ in range(3):
        trainee.step()
    largest = max((a - b).abs().max().item() for a, b in zip(before, trainee.objective.parameters(), strict=True))
    assert largest < 0.02  # of random images no loss is to diverge
    assert not any(torch.equal(*pair) for pair in zip(before, trainee.objective.parameters(), strict=True))


def test_what_cannot_be_measured():
    for options, says in (
        ({"methods": ("x",)}, "'x' is unknown"),
        ({"methods": ()}, "methods: none; one or more"),
        ({"methods": ("mixup", "mixup")}, "each once"),
        *(({field: 0}, f"{field}: 0 is not above 0") for field in ("classes", "image_size", "rounds", "steps")),
    ):
        with pytest.raises(InputError, match=says):
            small(**options)
