"""Every preset of every recipe makes its plans, at its own size and on its own network: on the meta device, where
nothing is computed. What is refused in the middle of a long run would be refused here."""

import os
import shlex
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from operator import attrgetter
from pathlib import Path
from types import MappingProxyType

import pytest
import torch
from accelerate import Accelerator
from recipe_modules import NAMES, recipe

from hybridgen.configuration import parse
from hybridgen.data.datasets import Dataset, Part
from hybridgen.data.sources import InMemory
from hybridgen.data.splits import Split
from hybridgen.methods.hybrids import Mixer, WithHybrids
from hybridgen.methods.samosa import Cycles, Samosa
from hybridgen.tables import pipeline
from hybridgen.tables.compare import Comparison
from hybridgen.tables.jobs import Job
from hybridgen.training.context import Context, RunSettings, split_of
from hybridgen.training.plan import Plan

pytestmark = pytest.mark.usefixtures("unchecked")

SETS = {
    "digits-m": (1797 - 500, 10, 32),
    "cifar10": (50_000, 10, 32),
    "cifar100": (50_000, 100, 32),
    "svhn": (73_257, 10, 32),
    "mnist-m": (60_000, 10, 28),
    "folder:data/CUB_200": (3000, 200, None),
    "folder:data/imagenet": (5000, 1000, None),
    "imagenet-100:data/imagenet": (5000, 100, None),
    "folder:data/tiny-imagenet-200": (100_000, 200, None),
}
"""Training images, classes and side of the sets of the presets; of ImageNet fewer images than there are."""


class Made(Exception):
    """Plans, in the place of their training."""

    def __init__(self, *plans: Plan) -> None:
        super().__init__()
        self.plans = plans


@cache
def synthetic(name: str, image_size: int | None) -> Dataset:
    """Black images of the set's number, size and classes, which take next to no memory."""
    count, classes, side = SETS[name if name in SETS else name.partition(":")[0]]
    side = image_size or side
    pixels = torch.zeros(1, 3, 1, 1, dtype=torch.uint8)
    part = lambda count: Part(InMemory(pixels.expand(count, 3, side, side)), torch.arange(count) % classes)
    names = tuple(map(str, range(classes)))
    return Dataset(name, names, side, part(count), part(2000), "f" * 64, True, (0.5,) * 3, (0.25,) * 3)


@cache
def split(name: str, image_size: int | None, **drawn: int | None) -> Split:
    return split_of(RunSettings(out=Path(), **drawn), synthetic(name, image_size))


@pytest.fixture
def made(monkeypatch):
    """From a recipe's name and arguments to the plans that its `main` makes."""

    def of(cls, settings) -> Context:
        with torch.device("cpu"):
            of = settings.data, settings.image_size
            drawn = {name: getattr(settings, name) for name in ("labels", "split_seed", "validation")}
            return cls(settings, Accelerator(cpu=True), synthetic(*of), split(*of, **drawn))

    class Planned(Comparison):
        def __init__(self, settings, context, variants, beside=MappingProxyType({})) -> None:
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
            "is_trained": lambda settings, *given, **more: settings.hybridizer == "trained",
            "claim": lambda *given, **more: None,
            "sample_grid": lambda *given: None,
        }
        for function, other in replaced.items():
            for place in (module, pipeline):
                if hasattr(place, function):
                    monkeypatch.setattr(place, function, other)
        with pytest.raises(Made) as caught, torch.device("meta"):
            module.main(config)
        return caught.value.plans

    for function in ("kaiming_normal_", "kaiming_uniform_", "normal_", "uniform_", "xavier_uniform_"):
        monkeypatch.setattr(torch.nn.init, function, lambda tensor, *given, **more: tensor)  # which has no values
    monkeypatch.setattr("timm.layers.weight_init._trunc_normal_", lambda tensor, *given: tensor)
    monkeypatch.setattr(torch.nn.functional, "batch_norm", lambda images, *given, **more: images)  # nor have these
    monkeypatch.setattr(Context, "of", classmethod(of))
    monkeypatch.setattr(Context, "patches", torch.zeros(12, 12, dtype=torch.float64))  # of black images
    monkeypatch.setattr(Accelerator, "device", property(lambda self: torch.device("meta")))
    return plans


def presets() -> Iterator[tuple[str, str]]:
    for name in NAMES:
        if not name.endswith("ablation"):
            alike = name in ("fixmatch", "mean_teacher", "mixmatch")  # as scimix_fixmatch, ...
            yield from ((name, preset) for preset in ("", *(() if alike else recipe(name).PRESETS)))


def test_a_hybridizer_is_planned_by_every_preset_of_its_pipeline(made):
    for preset in recipe("scimix_fixmatch").PRESETS:
        alone, together = made("scimix_fixmatch", "--preset", preset, "--hybridizer", "trained")
        assert alone.clock == together.clock
        objectives = [plan.tasks["classifier"].objective for plan in (alone, together)]
        assert [isinstance(each, WithHybrids) for each in objectives] == [False, True]


@pytest.mark.parametrize(("name", "preset"), tuple(presets()))
def test_every_preset_makes_its_plans(made, name, preset):
    if (name, preset) == ("adain", "paper"):
        pytest.skip("VGG's weights are read from a file")
    given = ("--preset", preset) if preset else ()
    if preset not in ("", "paper-cifar100"):  # there are all methods
        only = {"mixing_baselines": "patchup-soft", "mixvit": "mixvit-encoding"}  # RecursiveMix has a recipe of its own
        given += ("--methods", only[name]) if name in only else ()
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
        assert len(objectives) == (len(config.methods) if hasattr(config, "methods") else number[name])


# --- what recipes hand on ------------------------------------------------------------------------------------


def objectives(plan: Plan) -> tuple[torch.nn.Module, torch.nn.Module]:
    """A classifier's objective, and what it wraps or itself."""
    outer = plan.tasks["classifier"].objective
    return outer, getattr(outer, "base", outer)


BASES = {
    "fixmatch": (["--method.threshold", "0.77"], "labelling.weighting.threshold", 0.77),
    "mean_teacher": (["--method.reduction", "sum"], "reduction", "sum"),
    "mixmatch": (["--method.temperature", "0.77"], "temperature", 0.77),
}


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("form", ["{}", "scimix_{}", "samosa_{}"])
def test_every_recipe_of_a_classifier_hands_on_its_settings(made, monkeypatch, form, base):
    """Both variants train the same method, from the same seed, and the oracle is the one that is asked for."""
    name, (given, attribute, value) = form.format(base), BASES[base]
    judges = []
    monkeypatch.setattr(recipe(name), "judge_of", lambda settings, dataset: judges.append(settings))
    plans = made(name, *given, "--rate", "0.0123", "--seed", "5", "--oracle.steps", "33", "--data", "svhn")
    assert [settings.steps for settings in judges] == [33] and len(plans) == 2
    for plan in plans:
        assert attrgetter(attribute)(objectives(plan)[1]) == value
        assert plan.tasks["classifier"].rate(plan.clock) == pytest.approx(0.0123)
        assert plan.context.dataset.name == "svhn"
    streams = [getattr(plan.stream, "plain", plan.stream) for plan in plans]
    assert len({(stream._seed, stream.steps_per_epoch) for stream in streams}) == 1 and streams[0]._seed == 5


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("form", ["{}", "scimix_{}"])
def test_hybrids_teach_in_the_window_of_the_method_and_above_16_pixels_of_the_epochs(made, form, base):
    """Ours: of 14 epochs from 1.5 to 12, of MixMatch's eight from 1 to 7; else from a third on to six sevenths."""
    epochs, window = (8, (1.0, 7.0)) if base == "mixmatch" else (14, (1.5, 12.0))
    for size, expected in (("16", window), ("32", (epochs / 3, epochs * 6 / 7))):
        taught = objectives(made(form.format(base), "--image-size", size)[1])[0].settings
        assert (taught.start, taught.stop) == pytest.approx(expected)


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("form", ["{}", "scimix_{}"])
def test_a_classifier_with_hybrids_starts_where_it_is_told_to(made, monkeypatch, form, base):
    name, started = form.format(base), []

    def start_of(settings, hybridizer, classifier, context, *, heads=1):
        started.append(context.classifier(classifier.network, heads=heads))
        return started[-1]

    monkeypatch.setattr(recipe(name), "start_of", start_of)
    alone, together = made(name)
    (start,) = started
    assert together.network is start and alone.network is not start
    assert alone.network.heads == start.heads == (2 if base == "mean_teacher" else 1)
    (only,) = made(name, "--no-baseline")
    assert isinstance(objectives(only)[0], WithHybrids)


@pytest.mark.parametrize("base", BASES)
def test_samosa_regularizes_and_draws_as_its_base_has_it(made, base):
    alone, together = made(f"samosa_{base}", "--samosa.cycles", "3", "--samosa.start", "1", "--samosa.stop", "5")
    cycle = alone.clock.steps // 3
    assert alone.clock.steps == together.clock.steps == 3 * cycle
    outer, inner = objectives(together)
    assert outer.clean_only is (base == "fixmatch")  # whose strong views nobody reconstructs
    assert inner.classifier.heads == (2 if base == "mean_teacher" else 1)
    assert isinstance(together.stream, Cycles) is (base != "mixmatch")  # which mixes by hybrids instead
    rates = [alone.tasks["classifier"].rate(replace(alone.clock, step=step)) for step in (0, cycle, 2 * cycle)]
    assert rates[0] == rates[1] == rates[2]  # rates start anew
    if base == "mixmatch":
        assert objectives(alone)[1].replacement is None and inner.replacement.probability == 0.2
        epoch = together.clock.steps_per_epoch
        assert [
            inner.replacement.window(replace(together.clock, step=step))
            for step in (epoch - 1, epoch, 5 * epoch - 1, 5 * epoch, cycle, cycle + epoch)
        ] == [False, True, True, False, False, True]


def test_recursivemix_hands_on_its_settings(made):
    plain, recursive = made(
        "recursivemix", "--method.alpha", "0.3", "--method.no-resize", "--rate", "0.07", "--method.weight-consistency",
        "0.7", "--label-smoothing", "0.2", "--data", "cifar10", "--warmup", "0",
    )  # fmt: skip
    ((without, _), (objective, _)) = objectives(plain), objectives(recursive)
    assert (objective.alpha, objective.resize, objective.recursive) == (0.3, False, True)
    assert without.draw is None and without.smoothing == objective.smoothing == 0.2
    assert recursive.tasks["classifier"].weights == {"supervised": 1.0, "consistency": 0.7}
    assert all(plan.tasks["classifier"].rate(plan.clock) == pytest.approx(0.07) for plan in (plain, recursive))
    (only,) = made("recursivemix", "--no-baseline")
    assert objectives(only)[0].recursive


def test_baselines_mix_as_they_are_told_to(made):
    own, automix = (
        made("mixing_baselines", "--methods", "cutmix", "--alphas", alphas, "--label-smoothing", "0.2")
        for alphas in ("own", "automix")
    )
    first, second = objectives(own[0])[0], objectives(automix[0])[0]
    assert (first.draw.keywords["alpha"], first.probability) == (1.0, 0.5)
    assert (second.draw.keywords["alpha"], second.probability) == (0.2, 1.0)
    assert first.smoothing == second.smoothing == 0.2


def test_mixmo_hands_on_its_settings(made):
    plans = made(
        "mixmo", "--method.inputs", "3", "--method.alpha", "0.3", "--method.root", "inf", "--method.mask", "cowmix",
        "--method.patch-probability", "0.7", "--method.repetitions", "4", "--method.input-repetition", "0.1",
        "--method.ensemble", "probabilities", "--rate", "0.08", "--warmup", "0", "--label-smoothing", "0.2",
    )  # fmt: skip
    found = [objectives(plan)[0] for plan in plans]
    assert [each.classifier.inputs for each in found] == [1, 3, 3, 3]
    assert [each.alpha for each in found[1:]] == [float("inf"), 0.3, 0.3]
    assert [each.patch_probability for each in found[1:]] == [0.0, 0.0, 0.7]
    for each in found:
        assert (each.root, each.mask, each.input_repetition, each.smoothing) == (float("inf"), "cowmix", 0.1, 0.2)
        assert each.classifier.ensemble == "probabilities"
    rates = [plan.tasks["classifier"].rate(plan.clock) for plan in plans]
    assert rates == pytest.approx([0.08, 0.02, 0.02, 0.02])
    steps = [plan.clock.steps_per_epoch for plan in plans]
    assert steps == [(1297 - 100) // (64 // times) for times in (1, 4, 4, 4)]


def test_mixshare_hands_on_its_settings(made):
    plans = made(
        "mixshare", "--methods", "plain", "cut-mixmo", "unmixing", "mixshare-partial", "mixshare",
        "--method.inputs", "3", "--method.alpha", "0.3", "--method.root", "2", "--method.mask", "cowmix",
        "--method.patch-probability", "0.7", "--method.repetitions", "4", "--method.input-repetition", "0.2",
        "--method.ensemble", "probabilities", "--method.classifiers", "random", "--method.encoders", "one",
        "--method.part", "0.4", "--method.fade", "9", "--method.cutmix", "0.6", "--rate", "0.08", "--warmup", "0",
        "--label-smoothing", "0.2",
    )  # fmt: skip
    found = [objectives(plan)[0] for plan in plans]
    assert [each.classifier.inputs for each in found] == [1, 3, 3, 3, 3]
    for each in found:
        assert (each.alpha, each.mask, each.smoothing, each.cutmix) == (0.3, "cowmix", 0.2, 0.6)
        assert each.classifier.ensemble == "probabilities"
    own = [(each.root, each.patch_probability, each.input_repetition, each.classifiers) for each in found]
    assert own == [(3.0, 0.5, 0.0, "own")] * 2 + [(2.0, 0.7, 0.2, "random")] * 3  # MixMo's are MixMo's own
    assert [(each.part, each.fade) for each in found[2:]] == [(1.0, float("inf")), (0.4, float("inf")), (1.0, 9.0)]
    shared = [each.classifier.encoders[0] is each.classifier.encoders[-1] for each in found]
    assert shared == [True, False, True, True, True]
    rates = [plan.tasks["classifier"].rate(plan.clock) for plan in plans]
    assert rates == pytest.approx([0.08, 0.02, 0.02, 0.02, 0.02])


def test_mixvit_hands_on_its_settings(made):
    plans = made(
        "mixvit", "--methods", "single", "mixvit-encoding", "mixmo", "--method.inputs", "3", "--method.alpha", "0.3",
        "--method.patch-probability", "0.7", "--method.msda", "--method.ensemble", "probabilities", "--network",
        "vit-8-2-1", "--stochastic-depth", "0.2", "--rate", "0.08", "--rate-batch", "256", "--batch", "64",
        "--warmup", "0", "--label-smoothing", "0.2",
    )  # fmt: skip
    found = [objectives(plan)[0] for plan in plans]
    assert [each.classifier.network.inputs for each in found] == [1, 3, 3]
    assert [each.classifier.network.source for each in found] == ["none", "encoding", "none"]
    assert [each.mixing for each in found] == ["patches", "patches", "mixmo"]
    for each in found:
        assert (each.alpha, each.patch_probability, each.msda, each.smoothing) == (0.3, 0.7, True, 0.2)
        assert each.classifier.network.ensemble == "probabilities"
        assert each.classifier.network.core.blocks[0].drop_path1.drop_prob == 0.2
    rates = [plan.tasks["classifier"].rate(plan.clock) for plan in plans]
    assert rates == pytest.approx([0.04] * 3)


def test_stage_1_draws_a_grid_and_takes_its_settings(made):
    (plan,) = made("scimix", "--method.teacher-decay", "0.5", "--guide", "mean-teacher", "--rate", "0.07")
    assert plan.pictures().keys() == {"grid"}
    assert plan.tasks["generator"].objective.teacher.decay == 0.5
    assert plan.tasks["generator"].rate(plan.clock) == pytest.approx(0.07)


def test_adain_sees_all_labels_only_if_asked_to(made):
    few, every = (made("adain", "--perceptual", perceptual)[0].context for perceptual in ("labelled", "all"))
    assert len(few.split.labelled) == 100 and few.split.unlabelled
    assert len(every.split.labelled) == len(every.dataset.train) and not every.split.unlabelled


def test_adain_counts_the_time_of_both_its_trainings(made, monkeypatch):
    module, done = recipe("adain"), []

    def train(plan, settings, folder, seed, *, claimed=False, seconds=0.0):
        done.append((sorted(plan.tasks), folder, claimed, seconds, plan.pictures().keys()))
        if len(done) == 2:
            raise Made(plan)
        return {"seconds": 12.5}

    made("adain")  # replaces all that reads and writes
    monkeypatch.setattr(module, "train", train)
    with pytest.raises(Made), torch.device("meta"):
        module.main(parse(module.Config, module.PRESETS, ["--out", "x"]))
    assert done == [
        (["perception"], Path("x/perception"), False, 0.0, {}.keys()),
        (["transfer"], Path("x"), True, 12.5, {"grid": None}.keys()),
    ]


# --- presets within ablations --------------------------------------------------------------------------------


@cache
def taken(job: Job) -> object:
    """What the job's recipe makes of its arguments; several rows share a job."""
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
    given += ["--seed", "4"]
    if table in ("A.15", "2.6"):
        given += ["--hybridizer", "bundled"]
    ablation.main(parse(ablation.Config, ablation.PRESETS, given))
    (planned,) = begun
    assert all(job.recipe.exists() for row in planned.values() for jobs in row for job in jobs)
    assert all(len(row) == 2 for row in planned.values())
    assert shlex.join(planned["alone"][1][-1].arguments).endswith("--seed 5 --seeds 1 --hybridizer none")
    assert Path(planned["alone"][0][-1].recipe).stem == f"scimix_{backbone.replace('-', '_')}"


def test_the_ablations_of_recursivemix_are_begun_from_their_seeds(monkeypatch, tmp_path):
    ablation, begun = recipe("recursivemix_ablation"), []
    monkeypatch.setattr(ablation, "run_table", lambda *given, **more: begun.append((given, more)) or {})
    given = ["--table", "figure-4", "--seed", "4", "--seeds", "2", "--out", str(tmp_path / "runs")]
    ablation.main(parse(ablation.Config, ablation.PRESETS, given))
    (((folder, _, _, names, planned, _), more),) = begun
    assert folder == tmp_path / "runs" and more["about"]["seeds"] == [4, 5]
    assert [jobs[0].folder.name for jobs in planned["alpha-0.3"]] == ["alpha-0.3-seed4", "alpha-0.3-seed5"]
    for name, row in planned.items():
        for seed, (job,) in zip((4, 5), row, strict=True):
            made = taken(job)
            assert (made.seed, made.seeds) == (seed, 1)
            assert name == "baseline" or (f"alpha-{made.method.alpha}", names[name]) == (name, f"α = {name[6:]}")
