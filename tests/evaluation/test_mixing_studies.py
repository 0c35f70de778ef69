"""The studies of mixing against counting, and against the objective that trains."""

import json
import re
from itertools import islice

import pytest
import torch
from objectives import RecursiveMix
from torch import nn

from hybridgen.data.datasets import Dataset, Part
from hybridgen.data.sources import InMemory
from hybridgen.evaluation import mixing_studies as studies
from hybridgen.evaluation.mixing_studies import (
    MIXERS,
    THRESHOLDS,
    drawn_batches,
    effective_classes,
    inputs_of,
    mixed_inputs,
)
from hybridgen.evaluation.studies import files_of, write
from hybridgen.mixing.methods import METHODS
from hybridgen.networks.classifiers import Classifier
from hybridgen.training.schedules import Clock
from hybridgen.types import Batch, InputError

SIZE, CLASSES = 16, ("a", "b", "c", "d")


def dataset(count: int = 40, unknown: int = 5) -> Dataset:
    """Every image of a class has its own grey; objects are the left half."""
    labels = torch.arange(count) % 4
    pixels = (60 * labels + 20).to(torch.uint8)[:, None, None, None].expand(-1, 3, SIZE, SIZE).contiguous()
    masks = torch.zeros(count, SIZE, SIZE, dtype=torch.bool)
    masks[..., : SIZE // 2] = True
    labels[count - unknown :] = -1
    part = Part(InMemory(pixels), labels, masks)
    return Dataset("greys", CLASSES, SIZE, part, part, "f" * 64, True, (0.5,) * 3, (0.25,) * 3)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def made(method: str, steps: int = 6, seed: int = 0):
    batches = drawn_batches(dataset().train, 4, 9, generator(seed))
    return list(islice(mixed_inputs(method, batches, generator(seed + 1)), steps))


class Nothing(Classifier):
    """In the place of a network."""

    channels = 3

    def __init__(self) -> None:
        nn.Module.__init__(self)

    def features(self, images):
        return images

    def classify(self, features):
        return torch.zeros(len(features), 4)


def test_batches_are_of_images_of_known_class():
    batches = drawn_batches(dataset().train, 4, 30, generator())
    for inputs in islice(batches, 4):
        labels = inputs.targets.argmax(dim=1)
        torch.testing.assert_close(inputs.images[:, 0, 0, 0], (60 * labels + 20) / 255)
        assert torch.equal(inputs.places[:, 3, 4], labels)
        assert torch.equal(inputs.objects[:, 5], torch.arange(SIZE).expand(30, -1) < SIZE // 2)
    assert len(next(drawn_batches(dataset().train, 4, 1000, generator())).images) == 35
    with pytest.raises(InputError, match=r"^image 39: its class is not known"):
        inputs_of(dataset().train, torch.tensor([2, 39]), 4)


@pytest.mark.parametrize("method", MIXERS)
def test_what_shows_where_is_known_unless_images_blend(method):
    """The class at every place is told by its grey."""
    for step, inputs in enumerate(made(method)):
        assert inputs.targets.sum(dim=1).allclose(torch.ones(9))
        if method in ("mixup", "manifold-mixup", "patchup-hard", "patchup-soft"):
            assert inputs.places is None and inputs.objects is None
            continue
        torch.testing.assert_close(inputs.images, ((60 * inputs.places + 20) / 255)[:, None].expand(-1, 3, -1, -1))
        if method in METHODS and method != "resizemix":
            shares = torch.stack([(inputs.places == c).float().mean(dim=(1, 2)) for c in range(4)], dim=1)
            torch.testing.assert_close(inputs.targets, shares)
        assert (inputs.box is not None) == (method == "recursivemix" and step > 0)


def test_recursive_inputs_are_those_of_the_objective_that_trains():
    inputs = list(islice(drawn_batches(dataset().train, 4, 9, generator()), 5))
    objective = RecursiveMix(Nothing(), 4, alpha=0.7, consistent=False)
    torch.manual_seed(3)
    expected = []
    for step, each in enumerate(inputs):
        objective(Batch((each.images,), each.targets.argmax(dim=1), ()), Clock(10, 10, step))
        expected.append((objective.history.images, objective.history.targets))
    torch.manual_seed(3)
    ours = mixed_inputs("recursivemix", inputs, torch.default_generator, alpha=0.7)
    for mixed, (images, targets) in zip(ours, expected, strict=True):
        torch.testing.assert_close(mixed.images, images)
        torch.testing.assert_close(mixed.targets, targets)


def test_effective_classes_are_counted():
    targets = torch.tensor([[0.5, 0.3, 0.2, 0.0], [1.0, 0.0, 0.0, 0.0], [0.9999, 1e-4, 0.0, 0.0]])
    for threshold in (0.0, 1e-5, 0.25, 0.5, 1.0):
        counted = [sum(share > threshold for share in torch.tensor(row).tolist()) for row in targets.tolist()]
        assert effective_classes(targets, threshold).tolist() == pytest.approx(counted, abs=1e-9)


def test_targets_study_counts_what_it_mixes():
    assert THRESHOLDS == (1e-5, 1e-4, 1e-3, 0.003, 0.01, 0.03, 0.1, 0.2, 0.3, 0.4, 0.5)
    methods = ("none", "cutmix", "recursivemix")
    finding = studies.targets(dataset(), methods, steps=7, batch=9, runs=2, seed=5, titles={"cutmix": "CutMix"})
    values = finding.values["methods"]
    assert values["none"]["effective_classes"] == [1.0] * len(THRESHOLDS)
    for method in methods:
        runs = []
        for run in range(2):
            batches = drawn_batches(dataset().train, 4, 9, studies._generator(5, "targets", run))
            draws = studies._generator(5, "targets", run, "mixing")
            rows = [row for x in islice(mixed_inputs(method, batches, draws), 7) for row in x.targets.tolist()]
            runs.append([sum(share > bound for row in rows for share in row) / len(rows) for bound in THRESHOLDS])
        for own, other in zip(values[method]["runs"], runs, strict=True):
            assert own == pytest.approx(other, rel=1e-6)
        mean = [(one + two) / 2 for one, two in zip(*runs, strict=True)]
        assert values[method]["effective_classes"] == pytest.approx(mean, rel=1e-6)
    at = THRESHOLDS.index(1e-4)
    assert values["cutmix"]["effective_classes"][at] < 2 < values["recursivemix"]["effective_classes"][at]
    titles = {"none": "none", "cutmix": "CutMix", "recursivemix": "recursivemix"}
    (axis,) = finding.figure.axes
    curves = {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in axis.lines}
    rows = {"classes above": [f"{bound:g}" for bound in THRESHOLDS]}
    for method, title in titles.items():
        rows[title] = [f"{number:.2f}" for number in values[method]["effective_classes"]]
        assert curves.pop(title) == (list(THRESHOLDS), values[method]["effective_classes"])
    assert not curves and axis.get_title() == "classes of a target above a threshold, greys"
    table = finding.table.splitlines()
    for line, (title, numbers) in zip(table[:4], rows.items(), strict=True):
        assert line.startswith(title) and line.removeprefix(title).split() == numbers
    assert table[5] == "Means over 2 runs of 7 steps with batches of 9; every method mixes in every step."
    assert [finding.values[key] for key in ("study", "data", "seed", "steps", "batch")] == ["targets", "greys", 5, 7, 9]


def test_sequence_shows_and_tells_every_step():
    finding = studies.sequence(dataset(), steps=5, places=3, alpha=0.4, seed=2)
    steps = finding.values["steps"]
    assert len(steps) == 5 and steps[0]["box"] is None and steps[0]["share"] == 0
    for before, step in zip([None, *steps], steps, strict=False):
        assert len(step["targets"]) == len(step["effective_classes"]) == 3
        for i, target in enumerate(step["targets"]):
            assert sum(target.values()) == pytest.approx(1) and list(target.values()) == sorted(target.values())[::-1]
            assert step["effective_classes"][i] == sum(share > 1e-4 for share in target.values())
            if before is not None:
                assert step["share"] == step["box"]["height"] * step["box"]["width"] / SIZE**2 <= 0.4
                for name, share in before["targets"][i].items():  # all of the step before is in this one
                    assert target.get(name, 0) >= step["share"] * share - 1e-6
    assert [finding.values[key] for key in ("alpha", "threshold", "seed")] == [0.4, 1e-4, 2]
    head, *rows = finding.table.splitlines()[:6]
    assert re.split(" {2,}", head) == ["step", "λ", "box", *(f"classes, place {i}" for i in (1, 2, 3))]
    axes = finding.figure.axes
    assert len(axes) == 15 and [axis.get_ylabel() for axis in axes[::5]] == ["place 1", "place 2", "place 3"]
    for number, (line, step) in enumerate(zip(rows, steps, strict=True)):
        top, left, height, width = (step["box"] or dict.fromkeys(("top", "left", "height", "width"))).values()
        box = "" if step["box"] is None else f"{height}×{width} at ({top}, {left})"
        assert line.split()[:2] == [f"{number + 1}", f"{step['share']:.2f}"]
        assert line[head.index("box") : head.index("classes")].strip() == box
        assert line[head.index("classes") :].split() == [f"{count:.0f}" for count in step["effective_classes"]]
        assert axes[number].get_title() == f"step {number + 1}\nλ = {step['share']:.2f}"
        for place, axis in enumerate(axes[number::5]):
            largest = [f"{name}: {share:.2f}" for name, share in step["targets"][place].items() if share >= 0.01]
            assert axis.get_xlabel() == "\n".join(largest[:3])
            boxes = [(*patch.get_xy(), patch.get_height(), patch.get_width()) for patch in axis.patches]
            assert boxes == ([] if step["box"] is None else [(left - 0.5, top - 0.5, height, width)])
            grey = axis.images[0].get_array().mean()  # of images of one grey each, the target's
            expected = sum(
                share * (60 * CLASSES.index(name) + 20) / 255 for name, share in step["targets"][place].items()
            )
            assert grey == pytest.approx(expected, abs=0.03)  # but for rounded boxes
    assert finding.values == studies.sequence(dataset(), steps=5, places=3, alpha=0.4, seed=2).values
    assert finding.values["steps"] != studies.sequence(dataset(), steps=5, places=3, alpha=0.4, seed=3).values["steps"]
    with pytest.raises(InputError, match="alpha: 2"):
        studies.sequence(dataset(), alpha=2)


def test_picture_of_methods_shows_the_ratio_that_is_realised():
    """Of parents of one grey each, a mixed image's mean grey tells its ratio."""
    finding = studies.mixing(dataset(), MIXERS, columns=3, titles={"mixup": "Mixup"})
    ratios, pairs = finding.values["ratios"], finding.values["parents"]
    assert pairs == [["a", "b"], ["c", "d"], ["a", "b"]] and list(ratios) == list(MIXERS)
    assert ratios["none"] == [1.0] * 3
    axes = [axis for axis in finding.figure.axes]
    assert len(axes) == 3 * (2 + len(MIXERS))
    assert [axis.yaxis.label.get_text() for axis in (axes[0], axes[3])] == ["image", "partner"]
    for place in (0, 1):  # below each parent its class
        for axis, pair in zip(axes[3 * place :], pairs, strict=False):
            grey = (60 * CLASSES.index(pair[place]) + 20) / 255
            assert axis.get_xlabel() == pair[place] and axis.images[0].get_array().mean() == pytest.approx(grey)
    for i, method in enumerate(MIXERS):
        for j, (own, other) in enumerate(pairs):
            grey = axes[3 * (2 + i) + j].images[0].get_array().mean()
            own, other = ((60 * CLASSES.index(name) + 20) / 255 for name in (own, other))
            assert (grey - other) / (own - other) == pytest.approx(ratios[method][j], abs=1e-3), method
            assert axes[3 * (2 + i) + j].get_xlabel() == f"{ratios[method][j]:.2f}"
    assert axes[6 + 3].yaxis.label.get_text() == "Mixup"
    head, *rows = finding.table.splitlines()[: 1 + len(MIXERS)]
    assert head.split("  ")[-3:] == ["a with b", "c with d", "a with b"]
    for line, (method, shares) in zip(rows, ratios.items(), strict=True):
        title = {"mixup": "Mixup"}.get(method, method)
        assert line.split() == [title, *(f"{share:.2f}" for share in shares)]
    again = studies.mixing(dataset(), ("mixup",), columns=3, seed=1)
    assert again.values["ratios"]["mixup"] != studies.mixing(dataset(), ("mixup",), columns=3).values["ratios"]["mixup"]


def test_finding_is_written(tmp_path):
    paths = files_of("sequence", tmp_path)
    write(studies.sequence(dataset(), steps=2, places=1), paths)
    assert json.loads(paths[0].read_text())["study"] == "sequence"
    assert paths[2].read_bytes().startswith(b"\x89PNG")


def test_what_cannot_be_studied():
    for methods, says in (
        ((), "none; one or more"),
        (("mixup", "mixup"), "each once"),
        (("x",), "'x' is unknown; there"),
    ):
        with pytest.raises(InputError, match=f"^--methods: .*{says}"):
            studies.targets(dataset(), methods)
    with pytest.raises(InputError, match="unknown"):
        next(mixed_inputs("x", [], generator()))
    with pytest.raises(InputError, match=r"^--columns 30: needs 60 images, there are 35"):
        studies.mixing(dataset(), ("mixup",), columns=30)
    for study in (studies.sequence, lambda data: studies.targets(data, ("none",))):
        with pytest.raises(InputError, match="no training image is of known class"):
            study(dataset(unknown=40))
