"""Every preset of every recipe makes its plans, at its own size and on its own network: on the meta device, where
nothing is computed. What is refused in the middle of a long run would be refused here."""

import os
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from recipe_modules import NAMES, recipe

from hybridgen.configuration import parse
from hybridgen.data.datasets import Dataset, Part
from hybridgen.data.sources import InMemory
from hybridgen.methods.hybrids import Mixer, WithHybrids
from hybridgen.methods.samosa import Samosa
from hybridgen.tables.compare import Comparison
from hybridgen.training.context import Context, split_of
from hybridgen.training.plan import Plan

SETS = {
    "digits-m": (1797 - 500, 10, 32),
    "cifar10": (50_000, 10, 32),
    "cifar100": (50_000, 100, 32),
    "svhn": (73_257, 10, 32),
    "mnist-m": (60_000, 10, 28),
    "folder:data/CUB_200": (3000, 200, None),
    "folder:data/imagenet": (5000, 1000, None),
}
"""Training images, classes and side of the sets of the presets; of ImageNet fewer images than there are."""


class Made(Exception):
    """Plans, in the place of their training."""

    def __init__(self, *plans: Plan) -> None:
        super().__init__()
        self.plans = plans


def synthetic(name: str, image_size: int | None) -> Dataset:
    """Black images of the set's number, size and classes, which take next to no memory."""
    count, classes, side = SETS[name if name in SETS else name.partition(":")[0]]
    side = image_size or side
    pixels = torch.zeros(1, 3, 1, 1, dtype=torch.uint8)
    part = lambda count: Part(InMemory(pixels.expand(count, 3, side, side)), torch.arange(count) % classes)
    names = tuple(map(str, range(classes)))
    return Dataset(name, names, side, part(count), part(2000), "f" * 64, True, (0.5,) * 3, (0.25,) * 3)


@pytest.fixture
def made(monkeypatch):
    """From a recipe's name and arguments to the plans that its `main` makes."""

    def of(cls, settings) -> Context:
        with torch.device("cpu"):
            dataset = synthetic(settings.data, settings.image_size)
            return cls(settings, Accelerator(cpu=True), dataset, split_of(settings, dataset))

    class Planned(Comparison):
        def __init__(self, settings, context, variants) -> None:
            raise Made(*(make(settings.seed) for make in variants.values()))

    def train(plan, settings, folder, seed, **more):
        raise Made(plan)

    def plans(name: str, *arguments: str) -> tuple[Plan, ...]:
        module = recipe(name)
        config = parse(module.Config, module.PRESETS, list(arguments))
        replaced = {
            "Comparison": Planned,
            "train": train,
            "load_hybridizer": lambda *given, **more: Mixer("mixup"),
            "claim": lambda *given, **more: None,
            "sample_grid": lambda *given: None,
        }
        for function, other in replaced.items():
            if hasattr(module, function):
                monkeypatch.setattr(module, function, other)
        with pytest.raises(Made) as caught, torch.device("meta"):
            module.main(config)
        return caught.value.plans

    monkeypatch.setattr(Context, "of", classmethod(of))
    monkeypatch.setattr(Accelerator, "device", property(lambda self: torch.device("meta")))
    return plans


def presets() -> Iterator[tuple[str, str]]:
    for name in NAMES:
        if not name.endswith("ablation"):
            yield from ((name, preset) for preset in ("", *recipe(name).PRESETS))


@pytest.mark.parametrize(("name", "preset"), tuple(presets()))
def test_every_preset_makes_its_plans(made, name, preset):
    if (name, preset) == ("adain", "paper"):
        pytest.skip("VGG's weights are read from a file")
    given = ("--preset", preset) if preset else ()
    if name == "mixing_baselines" and "net" in preset:  # large ones, which take their time
        given += ("--methods", "none", "patchup-soft", "recursivemix")
    plans = made(name, *given)
    for plan in plans:
        assert plan.clock.steps >= plan.clock.steps_per_epoch * 0.05 and plan.judged is not None
        for task in plan.tasks.values():
            assert all(parameter.is_meta for parameter in task.parameters) and task.parameters
            assert all(callable(weight) or weight >= 0 for weight in task.weights.values())
            assert task.rate(plan.clock) >= 0
    objectives = [task.objective for plan in plans for task in plan.tasks.values()]
    if name.startswith(("scimix_", "fixmatch", "mixmatch", "mean_teacher")):
        assert [isinstance(each, WithHybrids) for each in objectives] == [False, True]
    elif name.startswith("samosa"):
        assert [isinstance(each, Samosa) for each in objectives] == [False, True, False]
        assert plans[0].clock.steps == plans[1].clock.steps
    else:
        config = parse(recipe(name).Config, recipe(name).PRESETS, list(given))
        number = {"recursivemix": 2, "scimix": 2, "adain": 1, "scimix_supervised": 2}
        assert len(objectives) == (len(config.methods) if name == "mixing_baselines" else number[name])


# --- presets within ablations --------------------------------------------------------------------------------


def taken(job) -> object:
    of = recipe(job.recipe.stem)
    return parse(of.Config, of.PRESETS, [*job.arguments, "--out", str(job.folder)])


@pytest.mark.parametrize("preset", recipe("recursivemix").PRESETS)
def test_every_row_of_recursivemixs_ablations_takes_every_preset(preset):
    """A baseline's row is another recipe's."""
    ablation = recipe("recursivemix_ablation")
    for table, (_, rows) in ablation.TABLES.items():
        if table not in ("2", "figure-4") and preset != "paper-cifar100-resnet18":
            continue
        config = ablation.Config(table=table, arguments=f"--preset {preset} --download", seeds=2)
        configured = [taken(job) for key in rows for job in ablation.jobs_of(config, key, 1)]
        assert len(configured) == len(rows)
        assert len({(each.data, each.training) for each in configured}) == 1 and all(e.download for e in configured)


@pytest.mark.parametrize(
    ("preset", "backbone"),
    [
        ("smoke", "mean-teacher"), ("smoke", "fixmatch"), ("smoke", "mixmatch"), ("paper-svhn-60", "mean-teacher"),
        ("paper-svhn-60", "fixmatch"), ("paper-cifar10-250", "mean-teacher"), ("paper-cifar10-250", "fixmatch"),
        ("paper-cifar10-250", "mixmatch"),
    ],
)  # fmt: skip
def test_every_row_of_the_theses_ablations_takes_their_presets(preset, backbone):
    ablation = recipe("ablation")
    for table in ablation.TABLES:
        given = ["--preset", preset, "--table", table, "--backbone", backbone, "--hybridizer", "x"]
        config = parse(ablation.Config, ablation.PRESETS, given)
        for key in ablation.TABLES[table].rows:
            for job in ablation.jobs_of(config, key, 0):
                made = taken(job)
                assert (made.data, made.labels) == (config.data, config.labels)
                kind = recipe(job.recipe.stem).PRESETS[preset]["method"]
                assert {name: getattr(made.method, name) for name in kind if name not in vary(job)} == {
                    name: value for name, value in kind.items() if name not in vary(job)}  # fmt: skip


def vary(job) -> set[str]:
    """The fields of the method that a row changes."""
    return {word.removeprefix("--method.").removeprefix("no-").replace("-", "_") for word in job.arguments}


@pytest.mark.parametrize("backbone", ["mean-teacher", "fixmatch", "mixmatch"])
@pytest.mark.parametrize("table", ["A.14", "A.15", "2.3", "2.6"])
def test_every_table_is_begun_with_every_backbone(monkeypatch, tmp_path, table, backbone):
    """`main` comes to its runs, of which every one is a recipe that there is."""
    ablation = recipe("ablation")
    begun = []

    def run_table(folder, title, setting, names, planned, environment, **more) -> dict:
        begun.append(planned)
        assert (folder, backbone in setting, table in title) == (tmp_path / "runs", True, True)
        assert names.keys() == planned.keys() and environment.items() >= dict(os.environ).items()
        return {}

    monkeypatch.setattr(ablation, "run_table", run_table)
    given = ["--table", table, "--backbone", backbone, "--out", str(tmp_path / "runs"), "--seeds", "2"]
    if table in ("A.15", "2.6"):
        given += ["--hybridizer", "bundled"]
    ablation.main(parse(ablation.Config, ablation.PRESETS, given))
    (planned,) = begun
    assert all(job.recipe.exists() for row in planned.values() for jobs in row for job in jobs)
    assert all(len(row) == 2 for row in planned.values())
    assert shlex.join(planned["alone"][1][-1].arguments).endswith("--seed 1 --seeds 1 --hybridizer none")
    assert Path(planned["alone"][0][-1].recipe).stem == f"scimix_{backbone.replace('-', '_')}"
