"""What recipes connect: which settings, seeds and hybrids each of their runs has. Nothing is trained."""

import importlib.util
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator

from hybridgen.configuration import parse
from hybridgen.evaluation.ensembles import judged_by
from hybridgen.evaluation.grid import sample_grid
from hybridgen.hybridizer import Hybridizer, Origin
from hybridgen.methods import (
    adain,
    fixmatch,
    hybrids,
    mean_teacher,
    mixing,
    mixmatch,
    mixmo,
    mixshare,
    mixvit,
    recursivemix,
    samosa,
    scimix,
    supervised,
)
from hybridgen.methods.hybrids import HybridInputs, WithHybrids
from hybridgen.networks.autoencoder import Architecture, SamosaArchitecture, SamosaAutoencoder, SemanticAutoencoder
from hybridgen.tables import compare, pipeline
from hybridgen.tables.compare import OF_ENSEMBLES, Comparison
from hybridgen.tables.cost import noise
from hybridgen.tables.ending import conclude_hybridizer
from hybridgen.training.context import Context
from hybridgen.training.schedules import value
from hybridgen.types import InputError

RECIPES = Path(__file__).parent.parent / "recipes"
SMALL = ("--validation", "0", "--seed", "3", "--threads", "1", "--rate", "0.037", "--epochs", "6")
BATCHES = ("--labelled-batch", "4", "--unlabelled-batch", "8")
TRAINED = ("--hybridizer", "trained")
JUDGE = "in the place of an oracle, which judges nothing here"


def load(name: str):
    spec = importlib.util.spec_from_file_location(f"recipe_{name}", RECIPES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def of(method: str, data: str = "other") -> Hybridizer:
    """One whose classifier has distinct weights, trained on these data."""
    torch.manual_seed(11)
    shape = dict(image_size=16, classes=3, network="leaky-wrn-10-1", mean=(0.5,) * 3, std=(0.25,) * 3)
    if method == "scimix":
        made = SemanticAutoencoder(Architecture(**shape, nonsemantic_channels=2, generator_channels=(4, 4)))
    else:
        made = SamosaAutoencoder(SamosaArchitecture(**shape))
    return Hybridizer(made.eval(), Origin("noise", data, "0", ("0", "1", "2"), method=method))


class Ran:
    """The recipe's runs, which are not trained: plan, folder and seed by variant."""

    def __init__(
        self,
        name: str,
        tmp_path: Path,
        monkeypatch,
        *arguments: str,
        hybridizer: Hybridizer | None = None,
        **others: Callable[["Ran"], Callable],
    ):
        self.module, self.runs, self.parts = load(name), {}, []
        self.concluded, self.judged = [], []
        conclude, judged = Comparison.conclude, Comparison.judged
        noted = lambda compared, **how: self.concluded.append(how) or conclude(compared, **how)
        monkeypatch.setattr(Comparison, "conclude", noted)
        noted = lambda compared, made, judge: self.judged.append((made, judge)) or judged(compared, made, None)
        monkeypatch.setattr(Comparison, "judged", noted)
        presets = getattr(self.module, "PRESETS", {})
        self.config = parse(self.module.Config, presets, [*arguments, "--out", str(tmp_path / "out")])
        made = noise(3, 16, 40, Accelerator(cpu=True), labelled=12)
        self.context = replace(made, settings=self.config)
        monkeypatch.setattr(Context, "of", classmethod(lambda cls, settings: self.context))
        if hybridizer is not None:
            monkeypatch.setattr(Hybridizer, "from_pretrained", classmethod(lambda cls, source: hybridizer))
        given = {name: of(self) for name, of in others.items()}
        own = {"train": self.train, "judge_of": self.judge_of, "conclude_hybridizer": self.conclude_hybridizer}
        for replaced, by in (own | given).items():
            places = [place for place in (self.module, pipeline) if hasattr(place, replaced)]
            assert places or replaced not in given
            for place in places:
                monkeypatch.setattr(place, replaced, by)
        self.result = self.module.main(self.config)

    def train(self, plan, settings, folder, seed, **more):
        assert settings is self.config or "table" in vars(settings)  # a row of which has settings of its own
        assert (settings.out, settings.resume, settings.seed) == (self.config.out, False, self.config.seed)
        self.runs[folder.relative_to(settings.out).as_posix()] = SimpleNamespace(
            plan=plan, seed=seed, more=more, settings=settings
        )
        scores = {f"test_accuracy_{which}": seed / 10 for which in ("last", "selected")}
        return scores | {"seconds": 1.0, "steps": plan.clock.steps}

    def judge_of(self, settings, dataset):
        assert settings is self.config.oracle and dataset is self.context.dataset
        return JUDGE

    def conclude_hybridizer(self, settings, plan, hybridizer, judge, result, **more):
        self.judged.append((hybridizer, judge))
        return conclude_hybridizer(settings, plan, hybridizer, None, result, **more)


def weights(plan) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in plan.network.parameters()])


def images(plan) -> torch.Tensor:
    return next(plan.stream.from_step(0)).labelled[0]


def assert_same_plan(ours, theirs) -> None:
    """Of the same weights, images, times, rates and weights of losses."""
    assert torch.equal(weights(ours), weights(theirs)) and torch.equal(images(ours), images(theirs))
    assert (ours.clock, ours.select, ours.tasks.keys()) == (theirs.clock, theirs.select, theirs.tasks.keys())
    for name, task in ours.tasks.items():
        other = theirs.tasks[name]
        for step in (0, ours.clock.steps // 3, ours.clock.steps - 1):
            clock = replace(ours.clock, step=step)
            assert task.rate(clock) == other.rate(clock) and task.clip == other.clip
            both = [{term: value(w, clock) for term, w in each.weights.items()} for each in (task, other)]
            assert both[0] == both[1]


METHODS = {
    "fixmatch": (fixmatch, "FixMatch", ("--method.threshold", "0.123")),
    "mean_teacher": (mean_teacher, "Mean Teacher", ("--method.teacher-decay", "0.123")),
    "mixmatch": (mixmatch, "MixMatch", ("--unlabelled-batch", "4", "--method.temperature", "0.123")),
    "scimix_fixmatch": (fixmatch, "FixMatch", ("--method.threshold", "0.123")),
    "scimix_mean_teacher": (mean_teacher, "Mean Teacher", ("--method.teacher-decay", "0.123")),
    "scimix_mixmatch": (mixmatch, "MixMatch", ("--unlabelled-batch", "4", "--method.temperature", "0.123")),
    "scimix_supervised": (supervised, "Supervised", ("--method.weight-supervised", "0.123")),
}


@pytest.mark.parametrize("name", METHODS)
def test_a_classifier_is_trained_alone_and_with_hybrids_from_every_seed_by_the_same_settings(
    name, tmp_path, monkeypatch
):
    module, title, own = METHODS[name]
    hybrid = ("--hybridizer", "any/one", "--hybrids.start", "1", "--hybrids.stop", "5", "--hybrids.weight", "1.7")
    ran = Ran(name, tmp_path, monkeypatch, *SMALL, *BATCHES, *own, *hybrid, "--seeds", "2", hybridizer=of("scimix"))
    alone, wrapped = title.lower().replace(" ", "-"), "scimix"
    assert list(ran.runs) == [f"{alone}-seed3", f"{wrapped}-seed3", f"{alone}-seed4", f"{wrapped}-seed4"]
    for seed in (3, 4):
        plain = lambda seed=seed: module.plan(ran.config.method, ran.context, seed)
        first, second = ran.runs[f"{alone}-seed{seed}"], ran.runs[f"{wrapped}-seed{seed}"]
        assert (first.seed, second.seed) == (seed, seed)
        assert_same_plan(first.plan, plain())
        hybridizer = second.plan.tasks["classifier"].objective._others[1]
        assert_same_plan(second.plan, hybrids.with_hybrids(plain(), hybridizer, ran.config.hybrids))
        objective = second.plan.tasks["classifier"].objective
        assert isinstance(objective, WithHybrids) and objective.settings == ran.config.hybrids.chosen(16, 6)
        field = own[-2].removeprefix("--method.").replace("-", "_")
        owner = objective.base.labelling.weighting if "fixmatch" in name else objective.base
        if hasattr(owner, field):
            assert getattr(owner, field) == 0.123
    assert list(ran.result["classifiers"]) == [title, f"{title} + SciMix"]
    assert ran.judged == [(hybridizer, JUDGE)]
    assert ran.result["classifiers"][title]["test_accuracy_last"]["mean"] == pytest.approx(0.35)


@pytest.mark.parametrize(
    ("source", "trained_on", "fits"),
    [
        ("bundled", "noise", True),
        ("bundled", "other", False),
        (None, "noise", True),
        (None, "other", False),
        ("any/one", "noise", True),
        ("any/one", "other", True),
    ],
)
def test_the_bundled_hybridizer_alone_must_be_of_the_same_data(source, trained_on, fits, monkeypatch):
    made = of("scimix")
    made.origin = replace(made.origin, dataset=trained_on)
    monkeypatch.setattr(Hybridizer, "from_pretrained", classmethod(lambda cls, source: made))
    context = noise(3, 16, 40, Accelerator(cpu=True), labelled=12)
    load = lambda: hybrids.load_hybridizer(hybrids.Settings(hybridizer=source), context)
    if fits:
        assert load() is made
        monkeypatch.setattr(Accelerator, "device", torch.device("meta"))
        assert {parameter.device.type for parameter in load().parameters()} == {"meta"}
    else:
        with pytest.raises(InputError, match=r"^hybridizer: the bundled one was trained on other, not on noise"):
            load()


def test_an_empty_name_is_not_the_bundled_hybridizers(monkeypatch):
    """As of a shell's variable that is not set."""
    context = noise(3, 16, 40, Accelerator(cpu=True), labelled=12)
    with pytest.raises(InputError, match=r"config\.json"):
        hybrids.load_hybridizer(hybrids.Settings(hybridizer=""), context)


def test_a_run_knows_the_weights_of_the_hybridizer_that_it_read(monkeypatch):
    """By a digest of them, though its name stays the same."""
    made, digests = of("scimix"), []
    monkeypatch.setattr(Hybridizer, "from_pretrained", classmethod(lambda cls, source: made))
    for _ in range(2):
        context = noise(3, 16, 40, Accelerator(cpu=True), labelled=12)
        hybrids.load_hybridizer(hybrids.Settings(hybridizer="any/one"), context)
        digests.append(context.read["hybridizer"])
        with torch.no_grad():
            next(made.parameters()).mul_(0.5)
    assert len(set(digests)) == 2


def test_a_hybridizer_of_other_classes_teaches_and_starts_nobody(monkeypatch):
    made = of("samosa")
    made.origin = replace(made.origin, classes=("1", "0", "2"))
    monkeypatch.setattr(Hybridizer, "from_pretrained", classmethod(lambda cls, source: made))
    context = noise(3, 16, 40, Accelerator(cpu=True), labelled=12)
    told = r"^hybridizer: knows the classes 1, 0, 2, in this order; noise has 0, 1, 2$"
    for given in ({}, {"from_hybridizer": True}):
        with pytest.raises(InputError, match=told):
            hybrids.load_hybridizer(hybrids.Settings(hybridizer="any/one", **given), context)
    with pytest.raises(InputError, match=told):
        hybrids.with_hybrid_inputs(SimpleNamespace(), hybrids.InClass(hybridizer="any/one"), context, crop=None)


@pytest.mark.parametrize("given", [{"baseline": False}, {"from_hybridizer": True}])
def test_without_a_hybridizer_nothing_can_be_left_out_or_started_from_it(given):
    with pytest.raises(InputError, match=r"^hybridizer: none, but --no-baseline and --from-hybridizer need one"):
        hybrids.load_hybridizer(
            hybrids.Settings(hybridizer="none", **given), noise(3, 16, 40, Accelerator(cpu=True), labelled=12)
        )


@pytest.mark.parametrize(
    ("given", "data", "split", "trained"),
    [
        ({"hybridizer": "trained"}, "own", "own", True), ({"hybridizer": "bundled"}, "other", "other", False),
        ({"hybridizer": "none"}, "other", "other", False), ({"hybridizer": "any/one"}, "other", "other", False),
        ({}, "own", "own", False), ({}, "other", "own", True), ({}, "own", "other", True),
        ({"allow_other_split": True}, "own", "other", False),
    ],
)  # fmt: skip
def test_a_hybridizer_is_trained_where_one_is_asked_for_or_the_bundled_one_is_of_other_images(
    given, data, split, trained, monkeypatch, capsys
):
    context = noise(3, 16, 40, Accelerator(cpu=True), labelled=12)
    made = of("scimix", context.dataset.fingerprint if data == "own" else "f" * 64)
    made.origin = replace(made.origin, split_hash=context.split.hash if split == "own" else "0")
    monkeypatch.setattr(Hybridizer, "from_pretrained", classmethod(lambda cls, source: made))
    assert hybrids.is_trained(hybrids.Settings(**given), context, rounds=1) is trained
    context.say()
    said = capsys.readouterr().out
    assert ("a hybridizer is trained first" in said) is (trained and not given)
    assert ("labels of these images" in said) is (data == "own" and trained and not given)
    if trained:
        assert hybrids.is_trained(hybrids.Settings(**given), context, rounds=2)
        for more in ({"baseline": False}, {"from_hybridizer": True}):
            with pytest.raises(InputError, match=r"^hybridizer: one that is trained first is guided by the classifier"):
                hybrids.is_trained(hybrids.Settings(**given, **more), context, rounds=1)
    else:
        with pytest.raises(InputError, match=r"^rounds: 2, but no hybridizer is trained"):
            hybrids.is_trained(hybrids.Settings(**given), context, rounds=2)


def test_rounds_of_a_hybridizer_that_is_there_are_refused(tmp_path, monkeypatch):
    given = (*SMALL, *BATCHES, "--hybridizer", "any/one", "--rounds", "2")
    with pytest.raises(InputError, match=r"^rounds: 2, but no hybridizer is trained"):
        Ran("scimix_fixmatch", tmp_path, monkeypatch, *given, hybridizer=of("scimix"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", sorted(METHODS.keys() - {"scimix_fixmatch"}))
def test_other_recipes_train_no_hybridizer(name, tmp_path, monkeypatch):
    more = ("--unlabelled-batch", "4") if "mixmatch" in name else ()
    with pytest.raises(InputError, match=r"^hybridizer: 'trained' is for scimix_fixmatch.py"):
        Ran(name, tmp_path, monkeypatch, *SMALL, *BATCHES, *more, *TRAINED)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", METHODS)
def test_a_classifier_starts_from_the_hybridizers_if_asked_to(name, tmp_path, monkeypatch):
    hybridizer = of("scimix")
    more = ("--unlabelled-batch", "4") if "mixmatch" in name else ()
    given = ("--hybridizer", "any/one", "--from-hybridizer", "--no-baseline", "--hybrids.stop", "5")
    given = (*given, "--method.momentum", "0.123")
    ran = Ran(name, tmp_path, monkeypatch, *SMALL, *BATCHES, *more, *given, hybridizer=hybridizer)
    ((folder, run),) = ran.runs.items()
    assert folder == "scimix-seed3"
    theirs = hybridizer.autoencoder.classifier
    kernel = run.plan.network.network.encoder.trunk.stem.weight
    assert torch.equal(kernel, theirs.encoder.trunk.stem.weight)
    momenta = [part.momentum for part in run.plan.network.modules() if isinstance(part, torch.nn.BatchNorm2d)]
    assert momenta and set(momenta) == {0.123}
    images = torch.rand(5, 3, 16, 16)
    with torch.no_grad():
        mine, their = run.plan.classify(run.plan.judged.eval(), images), theirs.eval()(images)[1]
    torch.testing.assert_close(mine, their)
    if "mean_teacher" in name:
        teacher = run.plan.tasks["classifier"].objective.base.teacher.network
        assert torch.equal(teacher.network.encoder.trunk.stem.weight, theirs.encoder.trunk.stem.weight)


def test_a_hybridizer_of_another_split_of_the_same_data_is_refused_unless_allowed(tmp_path, monkeypatch):
    given = (*SMALL, *BATCHES, "--hybridizer", "any/one", "--hybrids.stop", "5")
    with pytest.raises(InputError, match="would leak"):
        Ran("mean_teacher", tmp_path, monkeypatch, *given, hybridizer=of("scimix", "noise"))


@pytest.mark.parametrize("name", METHODS)
def test_a_hybridizer_of_another_split_is_noted_where_it_is_allowed(name, tmp_path, monkeypatch):
    more = ("--unlabelled-batch", "4") if "mixmatch" in name else ()
    given = (*SMALL, *BATCHES, *more, "--hybridizer", "any/one", "--hybrids.stop", "5", "--allow-other-split")
    allowed = Ran(name, tmp_path, monkeypatch, *given, hybridizer=of("scimix", "noise"))
    assert allowed.result["allow_other_split"] is True and len(allowed.runs) == 2


def test_hybrids_of_another_method_are_refused_by_recipes_of_scimix(tmp_path, monkeypatch):
    given = (*SMALL, *BATCHES, "--hybridizer", "any/one", "--hybrids.stop", "5")
    with pytest.raises(InputError, match="made by samosa; one made by scimix is needed"):
        Ran("scimix_mean_teacher", tmp_path, monkeypatch, *given, hybridizer=of("samosa"))
    ran = Ran("mean_teacher", tmp_path, monkeypatch, *given, hybridizer=of("samosa"))
    assert list(ran.result["classifiers"]) == ["Mean Teacher", "Mean Teacher + SAMOSA"]


def test_without_a_hybridizer_there_is_the_baseline_alone(tmp_path, monkeypatch):
    ran = Ran("scimix_fixmatch", tmp_path, monkeypatch, *SMALL, *BATCHES, "--hybridizer", "none")
    assert list(ran.runs) == ["fixmatch-seed3"] and ran.result["transfer"] is None


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_mixtures_stand_for_hybrids(kind, tmp_path, monkeypatch):
    ran = Ran("fixmatch", tmp_path, monkeypatch, *SMALL, *BATCHES, "--hybridizer", kind)
    assert list(ran.runs) == ["fixmatch-seed3", f"{kind}-seed3"]
    assert ran.runs[f"{kind}-seed3"].plan.tasks["classifier"].objective._others[1].kind == kind


SAMOSA = {
    "samosa_mean_teacher": (mean_teacher, "mean-teacher", 2, ()),
    "samosa_fixmatch": (fixmatch, "fixmatch", 1, ()),
    "samosa_mixmatch": (mixmatch, "mixmatch", 1, ("--unlabelled-batch", "4", "--probability", "0.77")),
}


@pytest.mark.parametrize("name", SAMOSA)
def test_samosa_is_beside_its_base_method_in_as_many_cycles(name, tmp_path, monkeypatch):
    module, title, heads, more = SAMOSA[name]
    how = ("--samosa.cycles", "2", "--samosa.start", "1", "--samosa.stop", "5", "--samosa.rate", "0.43")
    ran = Ran(name, tmp_path, monkeypatch, *SMALL, *BATCHES, *more, *how, hybridizer=of("samosa"))
    assert list(ran.runs) == [f"{title}-seed3", "samosa-seed3"]
    alone, together = (run.plan for run in ran.runs.values())
    method = ran.config.method
    if name == "samosa_mixmatch":
        method = replace(method, network="leaky-wrn-10-1-normalized")
    assert_same_plan(alone, samosa.alone(module.plan(method, ran.context, 3), ran.config.samosa))
    assert together.clock.steps == alone.clock.steps and together.clock.steps_per_epoch == alone.clock.steps_per_epoch
    made = samosa.networks(method, ran.context, 3, heads=heads)
    assert torch.equal(weights(together), torch.cat([p.detach().flatten() for p in made.autoencoder.parameters()]))
    assert together.tasks["reconstruction"].rate(together.clock) == 0.43
    objective = together.tasks["classifier"].objective
    assert objective.clean_only is (name == "samosa_fixmatch")
    assert isinstance(together.stream, samosa.Cycles) is (name != "samosa_mixmatch")
    if name == "samosa_mixmatch":
        replacement = objective.base.replacement
        assert replacement.probability == 0.77
        cycle = alone.clock.steps // 2
        epoch = alone.clock.steps_per_epoch
        inside = [replacement.window(replace(alone.clock, step=step)) for step in range(2 * cycle)]
        assert inside == [epoch <= step % cycle < 5 * epoch for step in range(2 * cycle)]
        assert alone.tasks["classifier"].objective.replacement is None
        return
    seeds = []
    monkeypatch.setattr(samosa.HybridSet, "make", lambda *given: float(seeds.append(given[-1]) is None))
    bases = [module.plan(method, ran.context, 3, classifier=made.watched) for _ in range(2)]
    others = [samosa.with_samosa(base, made, ran.config.samosa, seed) for base, seed in zip(bases, (3, 0), strict=True)]
    for plan in (together, *others):  # after the first cycle
        plan.clock.step = plan.clock.steps // 2
        plan.after_step(tmp_path)
    assert seeds[0] == seeds[1] != seeds[2]


@pytest.mark.parametrize("name", SAMOSA)
def test_samosa_is_trained_from_every_seed_and_its_hybrids_are_judged_by_those_of_the_first(
    name, tmp_path, monkeypatch
):
    loaded = []
    more = (*SAMOSA[name][3], "--samosa.cycles", "1", "--samosa.start", "1", "--samosa.stop", "5", "--seeds", "2")
    made = of("samosa")
    monkeypatch.setattr(Hybridizer, "from_pretrained", classmethod(lambda cls, source: loaded.append(source) or made))
    ran = Ran(name, tmp_path, monkeypatch, *SMALL, *BATCHES, *more)
    assert loaded == [ran.config.out / "samosa-seed3" / "hybridizer"] and len(ran.runs) == 4
    assert ran.judged == [(made, JUDGE)]
    module, title, heads, _ = SAMOSA[name]
    method = ran.config.method
    if name == "samosa_mixmatch":
        method = replace(method, network="leaky-wrn-10-1-normalized")
    for seed in (3, 4):
        alone, together = (ran.runs[f"{each}-seed{seed}"] for each in (title, "samosa"))
        assert alone.seed == together.seed == seed
        assert_same_plan(alone.plan, samosa.alone(module.plan(method, ran.context, seed), ran.config.samosa))
        drawn = samosa.networks(method, ran.context, seed, heads=heads).autoencoder.parameters()
        assert torch.equal(weights(together.plan), torch.cat([parameter.detach().flatten() for parameter in drawn]))


def labelled(*more: str) -> tuple[str, ...]:
    return (*SMALL, "--network", "wrn-10-1", "--batch", "8", "--seeds", "2", *more)


def test_mixing_baselines_are_the_methods_from_every_seed_as_asked_for(tmp_path, monkeypatch):
    arguments = labelled("--methods", "none", "cutmix", "recursivemix", "--alphas", "automix")
    ran = Ran("mixing_baselines", tmp_path, monkeypatch, *arguments)
    names = ("no-mixing", "cutmix", "recursivemix")
    assert list(ran.runs) == [f"{name}-seed{seed}" for seed in (3, 4) for name in names]
    for seed in (3, 4):
        for folder, name in (("no-mixing", "none"), ("cutmix", "cutmix"), ("recursivemix", "recursivemix")):
            run = ran.runs[f"{folder}-seed{seed}"]
            assert run.seed == seed
            assert_same_plan(run.plan, mixing.plan(name, ran.config.training, ran.context, seed))
        objective = ran.runs[f"cutmix-seed{seed}"].plan.tasks["classifier"].objective
        assert objective.probability == 1.0 and objective.draw.keywords["alpha"] == 0.2  # AutoMix's


def test_recursivemix_is_beside_no_mixing_by_its_own_settings(tmp_path, monkeypatch):
    ran = Ran("recursivemix", tmp_path, monkeypatch, *labelled("--method.weight-consistency", "0.77"))
    assert list(ran.runs) == [f"{name}-seed{seed}" for seed in (3, 4) for name in ("no-mixing", "recursivemix")]
    for seed in (3, 4):
        own = recursivemix.plan(ran.config.method, ran.config.training, ran.context, seed)
        assert_same_plan(ran.runs[f"recursivemix-seed{seed}"].plan, own)
        assert own.tasks["classifier"].weights["consistency"] == 0.77
        assert_same_plan(
            ran.runs[f"no-mixing-seed{seed}"].plan, mixing.plan("none", ran.config.training, ran.context, seed)
        )
    again = Ran("recursivemix", tmp_path / "again", monkeypatch, *labelled("--no-baseline"))
    assert list(again.runs) == ["recursivemix-seed3", "recursivemix-seed4"]


def test_mixmo_is_every_method_from_every_seed_by_its_own_settings(tmp_path, monkeypatch):
    given = ("--method.alpha", "0.7", "--method.ensemble", "probabilities")
    ran = Ran("mixmo", tmp_path, monkeypatch, *labelled(*given))
    names = {"plain-network": "plain", "mimo": "mimo", "linear-mixmo": "linear-mixmo", "cut-mixmo": "cut-mixmo"}
    assert list(ran.runs) == [f"{name}-seed{seed}" for seed in (3, 4) for name in names]
    for seed in (3, 4):
        for folder, name in names.items():
            run, of = ran.runs[f"{folder}-seed{seed}"], mixmo.variant(name, ran.config.method)
            assert run.seed == seed
            own = mixmo.plan(of, ran.config.training, ran.context, seed, measure=judged_by("probabilities"))
            assert_same_plan(run.plan, own)
            network, test = own.network.eval(), ran.context.dataset.test
            assert run.plan.score(run.plan.network.eval(), test, range(9))[0] == own.score(network, test, range(9))[0]
    assert columns(ran) == list(OF_ENSEMBLES)
    few = Ran("mixmo", tmp_path / "few", monkeypatch, *labelled("--methods", "cut-mixmo", "plain"))
    assert list(few.runs)[:2] == ["cut-mixmo-seed3", "plain-network-seed3"]


def test_hybrids_are_among_the_images_of_every_method_of_mixmo(tmp_path, monkeypatch):
    given = ("--hybridizer", "any/one", "--hybrids.share", "0.3", "--hybrids.no-keep-consistent")
    hybridizer = of("samosa")
    ran = Ran("mixmo", tmp_path, monkeypatch, *labelled(*given), hybridizer=hybridizer)
    assert len(ran.runs) == 8
    for run in ran.runs.values():
        objective = run.plan.tasks["classifier"].objective
        assert isinstance(objective, HybridInputs) and isinstance(objective.base, mixmo.MixMo)
        assert (objective.share, objective.keep_consistent, *objective._hybridizer) == (0.3, False, hybridizer)
        assert objective.base.classifier is run.plan.network
    same = of("scimix", data=ran.context.dataset.fingerprint)
    refused = partial(Ran, "mixmo", tmp_path / "refused", monkeypatch, hybridizer=same)
    with pytest.raises(InputError, match=r"^hybridizer: trained on split 0 of noise"):
        refused(*labelled("--hybridizer", "any/one"))
    assert refused(*labelled("--hybridizer", "any/one", "--allow-other-split")).runs
    with pytest.raises(InputError, match=r"^hybridizer: mixup makes no hybrids of one class"):
        refused(*labelled("--hybridizer", "mixup"))
    with pytest.raises(InputError, match=r"^crop: 8 pixels of images, but hybrids are of whole ones"):
        refused(*labelled("--hybridizer", "any/one", "--crop", "8"))


def test_mixshare_is_every_method_from_every_seed_by_its_own_settings(tmp_path, monkeypatch):
    given = (
        "--method.alpha", "0.7", "--method.ensemble", "probabilities", "--method.fade", "3", "--method.part", "0.5"
    )  # fmt: skip
    ran = Ran("mixshare", tmp_path, monkeypatch, *labelled(*given))
    names = {"plain-network": "plain", "cut-mixmo": "cut-mixmo", "mixshare-partial": "mixshare-partial",
             "mixshare-fade-out": "mixshare"}  # fmt: skip
    assert list(ran.runs) == [f"{name}-seed{seed}" for seed in (3, 4) for name in names]
    for seed in (3, 4):
        for folder, name in names.items():
            run, of = ran.runs[f"{folder}-seed{seed}"], mixshare.variant(name, ran.config.method)
            module = mixshare if "mixshare" in name else mixmo
            own = module.plan(of, ran.config.training, ran.context, seed, measure=judged_by("probabilities"))
            assert run.seed == seed
            assert_same_plan(run.plan, own)
            network, test = own.network.eval(), ran.context.dataset.test
            assert run.plan.score(run.plan.network.eval(), test, range(9))[0] == own.score(network, test, range(9))[0]
    assert columns(ran) == list(OF_ENSEMBLES)
    every = Ran("mixshare", tmp_path / "every", monkeypatch, *labelled("--methods", "unmixing-aligned", "unmixing"))
    assert list(every.runs)[:2] == ["unmixing-kernels-aligned-seed3", "unmixing-seed3"]


def test_mixvit_is_every_method_from_every_seed_by_its_own_settings(tmp_path, monkeypatch):
    given = ("--method.alpha", "0.7", "--method.ensemble", "probabilities", "--network", "vit-8-2-1")
    names = {"one-input": "single", "mixvit-encoding": "mixvit-encoding", "mixvit-embedding": "mixvit-embedding"}
    ran = Ran("mixvit", tmp_path, monkeypatch, *labelled("--methods", *names.values(), *given))
    assert list(ran.runs) == [f"{name}-seed{seed}" for seed in (3, 4) for name in names]
    for seed in (3, 4):
        for folder, name in names.items():
            run, of = ran.runs[f"{folder}-seed{seed}"], mixvit.variant(name, ran.config.method)
            assert run.seed == seed
            own = mixvit.plan(of, ran.config.training, ran.context, seed, measure=judged_by("probabilities"))
            assert_same_plan(run.plan, own)
            network, test = own.network.eval(), ran.context.dataset.test
            assert run.plan.score(run.plan.network.eval(), test, range(9))[0] == own.score(network, test, range(9))[0]
            assert run.settings == replace(ran.config, methods=(name,), method=of)
            assert mixvit.variant(name, of) == of  # so that its configuration trains it again
    assert columns(ran) == [*OF_ENSEMBLES, ("MFLOPs", "test_mflops_last", False)]


def test_tables_of_mixvit_are_their_rows_from_every_seed(tmp_path, monkeypatch):
    given = labelled("--table", "figure-4.4", "--network", "vit-8-2-1", "--method.msda", "--views", "2")
    ran = Ran("mixvit", tmp_path, monkeypatch, *given)
    models = {"convit": "single", "mixvit-embedding": "mixvit-embedding", "mixvit-encoding": "mixvit-encoding"}
    rows = {f"{model}-views-{views}": (name, views) for views in (1, 2, 3) for model, name in models.items()}
    assert list(ran.runs) == [f"{row}-seed{seed}" for seed in (3, 4) for row in rows]
    for row, (name, views) in rows.items():
        run, own = ran.runs[f"{row}-seed4"], mixvit.variant(name, ran.config.method)
        training = replace(ran.config.training, views=views)
        assert run.plan.stream.images_per_step == views * training.batch and own.msda
        assert run.settings == replace(ran.config, methods=(name,), table=None, method=own, training=training)
    with pytest.raises(InputError, match=r"^methods: table 4\.1 has its own; give one or the other"):
        Ran("mixvit", tmp_path / "both", monkeypatch, *labelled("--table", "4.1", "--methods", "single", "sum"))


def columns(ran: Ran) -> list:
    """Of the table, beside accuracies and time."""
    (how,) = ran.concluded
    return list(how["columns"])


def drawn(ran: Ran, run: SimpleNamespace, method: str) -> torch.Tensor:
    """Hybrids by the average of a run's networks, of test images that its seed chooses."""
    hybridizer = Hybridizer(run.plan.average.network, Origin.of(ran.context, method))
    return sample_grid(hybridizer, ran.context.dataset.test, run.seed)


def test_scimix_is_trained_once_with_pictures_of_its_averages(tmp_path, monkeypatch):
    small = ("--method.generator-channels", "8", "8", "--method.discriminator-width", "0.25", "--rate-epochs", "9")
    ran = Ran("scimix", tmp_path, monkeypatch, *SMALL, *BATCHES, *small)
    ((folder, run),) = ran.runs.items()
    assert (folder, run.seed) == (".", 3)
    assert run.plan.tasks["generator"].rate(run.plan.clock) == 0.037
    (before,) = run.plan.pictures().values()
    with torch.no_grad():
        for parameter in run.plan.average.network.generator.parameters():
            parameter.mul_(3)
    (after,) = run.plan.pictures().values()
    assert not torch.equal(before, after) and torch.equal(after, drawn(ran, run, "scimix"))
    ((hybridizer, judge),) = ran.judged
    assert hybridizer.autoencoder is run.plan.average.network and judge == JUDGE


def finished(guides: list):
    """In the place of what reads a finished classifier: one of the weights of the third of each call."""

    def of(ran: Ran) -> Callable:
        def classifier(run: Path, network: str, context: Context):
            torch.manual_seed(100 + len(guides))
            guides.append((run.relative_to(ran.config.out.parent).as_posix(), context.classifier(network)))
            return guides[-1][1]

        return classifier

    return of


def test_scimix_starts_from_a_finished_classifier_if_one_is_given(tmp_path, monkeypatch):
    small = ("--method.generator-channels", "8", "8", "--method.discriminator-width", "0.25", "--rate-epochs", "9")
    given, guides = (*small, "--classifier", str(tmp_path / "run"), "--method.classifier-rate", "0.5"), []
    ran = Ran("scimix", tmp_path, monkeypatch, *SMALL, *BATCHES, *given, finished_classifier=finished(guides))
    ((folder, classifier),), (run,) = guides, ran.runs.values()
    assert folder == "run"
    assert_same_plan(run.plan, scimix.plan(ran.config.method, ran.context, 3, classifier=classifier)[0])
    stem = run.plan.network.classifier.encoder.trunk.stem.weight
    assert torch.equal(stem, classifier.network.encoder.trunk.stem.weight)
    assert run.plan.tasks["generator"].optimizer.param_groups[-1]["factor"] == 0.5


def test_scimixs_finished_classifier_is_read_as_the_network_that_is_asked_for(tmp_path, monkeypatch):
    small = ("--method.generator-channels", "8", "8", "--network", "leaky-wrn-16-1", "--classifier", "run")
    guides = []
    ran = Ran("scimix", tmp_path, monkeypatch, *SMALL, *BATCHES, *small, finished_classifier=lambda ran: (
        lambda run, network, context: guides.append(network) or context.classifier(network)))  # fmt: skip
    assert guides == ["leaky-wrn-16-1"] and list(ran.runs) == ["."]


def test_the_pipeline_goes_from_classifier_to_hybridizer_to_classifier_round_by_round(tmp_path, monkeypatch):
    hybrid = ("--hybrids.start", "1", "--hybrids.stop", "5", "--hybrids.weight", "1.7", "--method.threshold", "0.123")
    generator = {
        "labelled-batch": 4, "unlabelled-batch": 8, "epochs": 5, "generator-channels": "8 8", "rate": 0.0123,
        "discriminator-width": 0.25,
    }  # fmt: skip
    words = [word for name, each in generator.items() for word in (f"--generator.{name}", *str(each).split())]
    guides, told, loaded = [], [], []
    made = of("scimix")
    monkeypatch.setattr(Hybridizer, "from_pretrained", classmethod(lambda cls, source: loaded.append(source) or made))
    shares = iter((0.1, 0.2, 0.3, 0.5))  # that hybrids inherit, of both seeds of the first round, and of the second
    rates = lambda *_: {"semantic_transfer": next(shares), "background_inheritance": None, **dict.fromkeys(
        ("nonsemantic_preservation", "oracle_accuracy"), 0.9)}  # fmt: skip
    monkeypatch.setattr(Comparison, "judged", rates)
    monkeypatch.setattr(Comparison, "tell_time", lambda self, *about, like: told.append(about))
    monkeypatch.setattr(compare, "read_result", lambda folder: {"seconds": 1.0})
    ran = Ran(
        "scimix_fixmatch", tmp_path, monkeypatch, *TRAINED, *SMALL, *BATCHES, *hybrid, *words,
        "--rounds", "2", "--seeds", "2", finished_classifier=finished(guides),
        read_result=lambda ran: lambda folder: {} if folder.name in ran.runs else None,
    )  # fmt: skip
    order = ("fixmatch", "hybridizer", "scimix", "hybridizer-round-2", "scimix-round-2")
    assert list(ran.runs) == [f"{name}-seed{seed}" for seed in (3, 4) for name in order]
    # Each hybridizer is guided by the classifier before it
    guided = [f"out/{name}-seed{seed}" for seed in (3, 4) for name in ("fixmatch", "scimix")]
    assert [folder for folder, _ in guides] == guided
    classifiers = iter(classifier for _, classifier in guides)
    for seed in (3, 4):
        plain = fixmatch.plan(ran.config.method, ran.context, seed)
        assert_same_plan(ran.runs[f"fixmatch-seed{seed}"].plan, plain)
        for number in ("", "-round-2"):
            run, classifier = ran.runs[f"hybridizer{number}-seed{seed}"], next(classifiers)
            expected, _ = scimix.plan(ran.config.generator, ran.context, seed, classifier=classifier)
            assert_same_plan(run.plan, expected)
            assert run.plan.clock.steps == 25 and run.plan.tasks["generator"].rate(run.plan.clock) == 0.0123
            mine, theirs = run.plan.network.classifier.heads.predictions.weight, classifier.network.head.weight
            assert run.seed == seed and torch.equal(mine, theirs) and run.plan.context.group == "generator"
            assert torch.equal(run.plan.pictures()["grid"], drawn(ran, run, "scimix"))
            run = ran.runs[f"scimix{number}-seed{seed}"]
            objective = run.plan.tasks["classifier"].objective
            base = fixmatch.plan(ran.config.method, ran.context, seed)
            assert_same_plan(run.plan, hybrids.with_hybrids(base, made, ran.config.hybrids))
            assert (
                objective._others[1] is made
                and objective.base.labelling.weighting.threshold == 0.123
                and run.seed == seed
            )
    rows = ["FixMatch", "FixMatch + SciMix", "FixMatch + SciMix, round 2"]
    assert list(ran.result["classifiers"]) == rows
    assert ran.result["beside"].keys() == {"Hybridizer", "Hybridizer, round 2"}
    ((plans, count, judge),) = told
    assert plans.keys() == {*rows, "Hybridizer", "Hybridizer, round 2"} and (count, judge) == (2, JUDGE)
    assert ran.judged == [(made, JUDGE)] * 4
    of_rounds = [f"hybridizer{number}-seed{seed}" for number in ("", "-round-2") for seed in (3, 4)]
    taught = [of_rounds[place] for place in (0, 2, 1, 3)]  # seed by seed; and judged round by round
    assert loaded == [ran.config.out / name / "hybridizer" for name in (*taught, *of_rounds)]
    assert list(ran.result["earlier"]) == rows[1:2]
    assert ran.result["earlier"][rows[1]]["semantic_transfer"] == pytest.approx(0.15)
    assert ran.result["transfer"]["semantic_transfer"] == pytest.approx(0.4)
    assert plans["Hybridizer"].tasks.keys() == {"generator", "discriminator"}
    assert isinstance(plans[rows[2]].tasks["classifier"].objective, WithHybrids)
    assert not isinstance(plans[rows[0]].tasks["classifier"].objective, WithHybrids)


def test_a_pipeline_of_two_networks_is_refused_before_there_is_a_folder(tmp_path, monkeypatch):
    given = ("--generator.labelled-batch", "4", "--generator.unlabelled-batch", "8")
    for networks, said in (
        (("--network", "leaky-wrn-16-1", "--generator.network", "leaky-wrn-10-1"), "one --network for both"),
        (("--generator.network", "leaky-wrn-16-1"), "one --network for both"),
        (("--network", "wrn-10-1"), "network: 'wrn-10-1'; encoders are made from"),
    ):
        with pytest.raises(InputError, match=said):
            Ran("scimix_fixmatch", tmp_path, monkeypatch, *TRAINED, *SMALL, *BATCHES, *given, *networks)
    assert not (tmp_path / "out").exists()


def test_the_pipelines_generator_takes_the_classifiers_network(tmp_path, monkeypatch):
    given = ("--generator.labelled-batch", "4", "--generator.unlabelled-batch", "8", "--network", "leaky-wrn-16-1")
    guides = []
    monkeypatch.setattr(Comparison, "tell_time", lambda *_, **__: None)
    monkeypatch.setattr(compare, "read_result", lambda folder: {"seconds": 1.0})
    ran = Ran(
        "scimix_fixmatch", tmp_path, monkeypatch, *TRAINED, *SMALL, *BATCHES, *given, "--hybrids.start", "1",
        "--generator.generator-channels", "8", "8", hybridizer=of("scimix"), finished_classifier=finished(guides),
        read_result=lambda ran: lambda folder: {} if folder.name in ran.runs else None,
    )  # fmt: skip
    assert ran.runs["hybridizer-seed3"].plan.network.architecture.network == "leaky-wrn-16-1"


def test_adain_trains_perception_and_then_the_decoder(tmp_path, monkeypatch, capsys):
    given = ("--batch", "8", "--perception-batch", "5", "--perception-steps", "33", "--perceptual", "all")
    ran = Ran("adain", tmp_path, monkeypatch, *SMALL, *given)
    assert list(ran.runs) == ["perception", "."]
    first, second = ran.runs["perception"], ran.runs["."]
    assert (first.plan.clock.steps, first.seed, second.seed) == (33, 3, 3)
    assert second.more == {"claimed": True, "seconds": 1.0}
    assert first.plan.network is second.plan.network.classifier
    assert torch.equal(second.plan.pictures()["grid"], drawn(ran, second, "adain"))
    ((hybridizer, judge),) = ran.judged
    assert hybridizer.autoencoder is second.plan.average.network and judge == JUDGE
    own = adain.transfer_stream(ran.config.method, second.plan.context, 3)
    assert second.plan.stream.indices(0)[1].tolist() == own.indices(0)[1].tolist()
    for run in (first, second):  # all labels are shown
        assert run.plan.context.split.labelled == tuple(range(40))
    assert len(next(first.plan.stream.from_step(0)).labels) == 5
    assert "next: " not in capsys.readouterr().out  # of a classifier of fewer labels, which would refuse it
    Ran("adain", tmp_path / "few", monkeypatch, *SMALL, *given[:-1], "labelled")
    assert "next: hybridgen train fixmatch" in capsys.readouterr().out
