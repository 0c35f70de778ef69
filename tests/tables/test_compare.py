"""Runs of a comparison and what is said of them, with results that are given."""

import json
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from recipe_modules import recipe

from hybridgen.configuration import parse
from hybridgen.data.datasets import Dataset, Part
from hybridgen.data.sources import InMemory
from hybridgen.data.splits import Split
from hybridgen.evaluation.oracle import Training
from hybridgen.hybridizer import Hybridizer, Origin
from hybridgen.methods import mixvit
from hybridgen.networks.autoencoder import Architecture, SemanticAutoencoder
from hybridgen.settings import from_arguments, settings
from hybridgen.tables import compare
from hybridgen.tables.compare import (
    CompareSettings,
    Comparison,
    check_taken,
    gain,
    mean_rates,
    some_of,
    spoken_gain,
    spoken_rates,
)
from hybridgen.training.context import Context
from hybridgen.training.plan import Plan
from hybridgen.training.record import write_result
from hybridgen.training.schedules import Clock
from hybridgen.types import InputError

TRAIN, TEST = (
    Part(InMemory(torch.zeros(len(labels), 3, 16, 16, dtype=torch.uint8)), torch.tensor(labels))
    for labels in ([0] * 60, [0] * 30 + [-1] * 2)  # of two the class is not known
)
DATASET = Dataset("toy", ("a",), 16, TRAIN, TEST, "f" * 64, True, (0.5,) * 3, (0.5,) * 3)
SPLIT = Split("toy", "f" * 64, 0, tuple(range(40)), tuple(range(40, 60)), ())
CONTEXT = Context(CompareSettings(), Accelerator(cpu=True), DATASET, SPLIT)
GIVEN = {
    ("FixMatch", 3): (0.50, 0.62, 10.0),
    ("FixMatch + SciMix", 3): (0.70, 0.81, 20.0),
    ("FixMatch", 4): (0.60, 0.66, 12.0),
    ("FixMatch + SciMix", 4): (0.80, 0.83, 24.0),
}


def comparison(folder, made=None, beside=None, **changes) -> Comparison:
    settings = CompareSettings(**(dict(out=folder, seed=3, seeds=2) | changes))
    made = [] if made is None else made

    def plan(name, seed):
        made.append((name, seed))
        return SimpleNamespace(clock=Clock(7, 2), stream=SimpleNamespace(images_per_step=11 if "+" in name else 8))

    variants = {name: (lambda seed, name=name: plan(name, seed)) for name, _ in list(GIVEN)[:2]}
    return Comparison(settings, CONTEXT, variants, beside or {})


def result(run) -> dict[str, float]:
    last, selected, seconds = GIVEN[run.variant, run.seed]
    return dict(test_accuracy_last=last, test_accuracy_selected=selected, seconds=seconds, steps=7)


@pytest.mark.parametrize(
    ("words", "field"),
    [
        (("--method.place", "early"), "place"),
        (("--method.place", "early", "--methods", "early-embedding"), None),
        (("--method.source", "encoding"), None),  # MixViT-encoding has it
        (("--method.source", "encoding", "--methods", "mixvit-embedding"), "source"),
        (("--method.source", "encoding", "--methods", "sum"), None),
        (("--method.alpha", "2"), None),
        (("--method.msda", "--methods", "single"), None),
        (("--preset", "of-three", "--methods", "single"), None),
        (("--preset", "of-three", "--methods", "single", "--method.inputs", "4"), "inputs"),
    ],
)
def test_what_no_chosen_method_takes_is_refused_unless_a_preset_says_it(words, field):
    of = recipe("mixvit")
    presets = {**of.PRESETS, "of-three": {"method": {"inputs": 3}}}
    config = parse(of.Config, presets, list(words))
    methods = [mixvit.variant(name, config.method) for name in config.methods]
    if field is None:
        check_taken(config, presets, methods)
    else:
        with pytest.raises(InputError, match=rf"^method\.{field}: \w+, but every "):
            check_taken(config, presets, methods)
    # What a run keeps as its configuration says the same again
    for name, own in zip(config.methods, methods, strict=True):
        again = replace(config, methods=(name,), method=own)
        check_taken(again, presets, [mixvit.variant(name, own)])


def test_every_variant_from_every_seed_and_no_other(tmp_path):
    made = []
    compared = comparison(tmp_path / "c", made)
    assert made == [("FixMatch", 3), ("FixMatch + SciMix", 3)]  # refused before there is a folder, if they must be
    assert json.loads((tmp_path / "c" / "setup.json").read_text())["data"]["name"] == "toy"
    todo = list(compared.unfinished())
    assert [(run.variant, run.seed) for run in todo] == list(GIVEN)
    names = ["fixmatch-seed3", "scimix-seed3", "fixmatch-seed4", "scimix-seed4"]
    assert [run.folder for run in todo] == [tmp_path / "c" / name for name in names]
    of_this = {folder: steps for folder, steps in CONTEXT.expected.items() if tmp_path in folder.parents}
    assert of_this == {tmp_path / "c" / name: 7 for name in names}  # one bar is of them all


def test_means_and_deviations_by_hand(tmp_path, capsys):
    compared = comparison(tmp_path / "c")
    for run in compared.unfinished():
        compared.add(run, result(run))
    concluded = compared.conclude(kept=1)
    deviation = 0.1 / 2**0.5  # of two values 0.1 apart, with n - 1
    rows = concluded["classifiers"]
    assert rows["FixMatch"]["test_accuracy_last"] == pytest.approx({"mean": 0.55, "std": deviation})
    assert rows["FixMatch"]["test_accuracy_selected"] == pytest.approx({"mean": 0.64, "std": 0.04 / 2**0.5})
    assert rows["FixMatch + SciMix"]["seconds"] == pytest.approx({"mean": 22.0, "std": 4 / 2**0.5})
    # The method's own figures are those of its last variant
    assert concluded["test_accuracy_last"] == pytest.approx(0.75)
    assert concluded["test_accuracy_selected"] == pytest.approx(0.82)
    assert concluded["seconds"] == pytest.approx(66.0)
    told = {"seed": 3, "seeds": 2, "steps": 7, "split_hash": SPLIT.hash, "test_images": 30, "kept": 1, "transfer": None}
    assert told.items() <= concluded.items()
    assert json.loads((tmp_path / "c" / "result.json").read_text()) == concluded
    said = capsys.readouterr().out
    assert "toy, 40 labels, 7 steps, 2 seed(s)" in said
    # Of 30 test images Wilson's interval of 55 % is [37.7, 71.2], of 64 % [46.2, 78.7], by the formula of 1927
    row = ["55.0", "±", "7.1", "[37.7,", "71.2]", "64.0", "±", "2.8", "[46.2,", "78.7]", "11"]
    assert row in [line.split()[1:] for line in said.splitlines()]
    assert compare.spoken_accuracy({"mean": 0.55, "std": 0.071}, 0) == "55.0 ± 7.1"  # of no image none


def test_the_methods_own_figures_are_of_its_last_variant_though_another_is_better(tmp_path, capsys):
    compared = comparison(tmp_path / "c")
    for run in compared.unfinished():
        better = {"test_accuracy_last": 0.9, "steps": 18} if run.variant == "FixMatch" else {}
        compared.add(run, result(run) | better)
    concluded = compared.conclude()
    assert concluded["test_accuracy_last"] == pytest.approx(0.75) and concluded["steps"] == 7
    assert "toy, 40 labels, 7 to 18 steps, 2 seed(s)" in capsys.readouterr().out


def test_finished_runs_are_read_and_not_repeated(tmp_path):
    first = comparison(tmp_path / "c")
    for run, _ in zip(first.unfinished(), range(3), strict=False):
        run.folder.mkdir()
        write_result(run.folder, CONTEXT.accelerator, **result(run))
    again = comparison(tmp_path / "c", resume=True)
    (left,) = again.unfinished()
    assert (left.variant, left.seed) == list(GIVEN)[-1]
    again.add(left, result(left))
    assert again.conclude()["classifiers"]["FixMatch"]["test_accuracy_last"]["mean"] == pytest.approx(0.55)


def test_runs_of_another_split_are_no_rows_of_the_same_table(tmp_path):
    """And nothing is written of a comparison that would go on with them, or with what was trained beside them."""
    run = next(comparison(tmp_path / "c").unfinished())
    beside = {"Hybridizer": SimpleNamespace(clock=Clock(7, 2), stream=SimpleNamespace(images_per_step=8))}
    (tmp_path / "c" / "hybridizer-seed4").mkdir(parents=True)
    write_result(tmp_path / "c" / "hybridizer-seed4", CONTEXT.accelerator, split_hash="0123abcd")
    with pytest.raises(InputError, match="hybridizer-seed4 was trained on the split 0123abcd"):
        comparison(tmp_path / "c", beside=beside, resume=True)
    run.folder.mkdir(parents=True)
    write_result(run.folder, CONTEXT.accelerator, split_hash="0123abcd", **result(run))
    before = {path: path.read_bytes() for path in (tmp_path / "c").iterdir() if path.is_file()}
    with pytest.raises(InputError, match=f"fixmatch-seed3 was trained on the split 0123abcd, this is {SPLIT.hash}"):
        comparison(tmp_path / "c", resume=True)
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.parametrize("lacking", ["test_accuracy_last", "test_accuracy_selected", "seconds", "steps"])
def test_a_result_without_a_figure_is_not_taken(tmp_path, lacking):
    run = next(comparison(tmp_path / "c").unfinished())
    run.folder.mkdir(parents=True)
    write_result(run.folder, CONTEXT.accelerator, **{key: one for key, one in result(run).items() if key != lacking})
    with pytest.raises(InputError, match=f"result.json: {lacking} is missing or no number"):
        next(comparison(tmp_path / "c", resume=True).unfinished())


# --- gains ---------------------------------------------------------------------------------------------------


def of(*accuracies):
    return [dict(test_accuracy_last=each) for each in accuracies]


def test_gains_are_by_seed_and_their_interval_is_students(tmp_path, capsys):
    """t of two degrees of freedom is 4.303 at 97.5 %, of one 12.706, by every table."""
    found = gain(of(0.50, 0.60, 0.40), of(0.51, 0.62, 0.46))  # 0.01, 0.02 and 0.06 more
    deviation = ((0.02**2 + 0.01**2 + 0.03**2) / 2) ** 0.5
    assert found["mean"] == pytest.approx(0.03)
    for name, sign in (("low", -1), ("high", 1)):
        assert found[name] == pytest.approx(0.03 + sign * 4.3027 * deviation / 3**0.5, rel=1e-4)
    assert spoken_gain(found) == "+3.0 [-3.6, +9.6], within chance"
    found = gain(of(0.5, 0.6), of(0.52, 0.622))
    assert found["high"] - found["mean"] == pytest.approx(12.7062 * 0.001, rel=1e-4)
    assert spoken_gain(found) == "+2.1 [+0.8, +3.4]"
    for low, high in ((0.0, 0.02), (-0.02, 0.0), (0.0, 0.0)):  # an interval has its ends
        assert spoken_gain({"mean": (low + high) / 2, "low": low, "high": high}).endswith(", within chance")
    assert spoken_gain(gain(of(0.5, 0.6), of(0.48, 0.578))) == "-2.1 [-3.4, -0.8]"

    compared = comparison(tmp_path / "c")
    for run in compared.unfinished():
        compared.add(run, result(run) | (dict(test_accuracy_last=0.71) if run.seed == 3 and "+" in run.variant else {}))
    rows = compared.conclude()["classifiers"]
    assert "gain" not in rows["FixMatch"] and rows["FixMatch + SciMix"]["gain"]["mean"] == pytest.approx(0.205)
    said = capsys.readouterr().out
    assert "gain of the last, 95 % by Student's t" in said and "+20.5 [+14.1, +26.9]\n" in said


def test_of_one_seed_gains_are_by_image_of_its_runs_and_the_networks_that_are_there_may_be_scored(
    tmp_path, monkeypatch, capsys
):
    asked, out = [], tmp_path / "c"
    paired = {"mean": 0.2, "low": 0.1, "high": 0.35}
    monkeypatch.setattr(compare, "gain_of_runs", lambda *runs: asked.append(runs) or paired)
    compared = comparison(out, seeds=1)
    for run in compared.unfinished():
        run.folder.mkdir()
        compared.add(run, result(run))
    (out / "scimix-seed3" / "network.safetensors").touch()
    rows = compared.conclude(transfer=RATES)["classifiers"]
    assert asked == [(out / "fixmatch-seed3", out / "scimix-seed3")]
    assert "gain_by_image" not in rows["FixMatch"] and rows["FixMatch + SciMix"]["gain_by_image"] == paired
    said = capsys.readouterr().out
    assert "95 % paired by image" in said and "Student" not in said and "+20.0 [+10.0, +35.0]\n" in said
    assert f"hybrids: {spoken_rates(RATES)}; {out / 'grid.png'}\nhybrids: good enough to teach" in said
    assert said.endswith(f"next: hybridgen score {out / 'scimix-seed3'}\n")


# --- hybrids, and who judges them ----------------------------------------------------------------------------


RATES = {
    "semantic_transfer": 0.61, "semantic_transfer_interval": [0.59, 0.63], "nonsemantic_preservation": 0.97,
    "nonsemantic_preservation_interval": [0.96, 0.98], "background_inheritance": None,
    "background_inheritance_interval": None, "oracle_accuracy": 0.9, "seed": 0,
}  # fmt: skip


def test_rates_of_one_hybridizer_have_their_interval_and_of_several_a_deviation():
    assert mean_rates([]) is None is mean_rates([None, None])
    assert mean_rates([RATES]) == RATES
    assert spoken_rates(RATES) == (
        "semantic transfer 0.610 [0.590, 0.630], non-semantic preservation 0.970 [0.960, 0.980] (oracle's own accuracy "
        "0.900)"
    )
    other = RATES | {"semantic_transfer": 0.67, "nonsemantic_preservation": 0.95}
    assert mean_rates([RATES, other])["own_semantic_transfer"] is None
    both = mean_rates([RATES | {"own_semantic_transfer": 0.5}, None, other | {"own_semantic_transfer": 0.8}])
    assert both["own_semantic_transfer"] == pytest.approx(0.65)
    assert both["semantic_transfer"] == pytest.approx(0.64) and both["background_inheritance"] is None
    assert both["semantic_transfer_std"] == pytest.approx(0.06 / 2**0.5) and both["oracle_accuracy"] == 0.9
    assert spoken_rates(both).startswith("semantic transfer 0.640 ± 0.042, non-semantic preservation 0.960 ± 0.014 (")


@pytest.fixture
def hybridizer() -> Hybridizer:
    made = SemanticAutoencoder(
        Architecture(
            image_size=16, classes=1, network="leaky-wrn-10-1", nonsemantic_channels=2, generator_channels=(4, 4)
        )
    )
    return Hybridizer(made, Origin("toy", "f" * 64, SPLIT.hash, ("a",)))


def test_hybrids_are_judged_by_one_oracle_of_the_comparisons_size(tmp_path, monkeypatch, hybridizer):
    asked, drawn, kept = [], [], []
    monkeypatch.setattr(compare, "oracle_of", lambda judge, *_: asked.append(judge) or (lambda images: images))
    monkeypatch.setattr(compare, "sample_grid", lambda *given: drawn.append(given) or torch.zeros(3, 4, 6))
    rates = lambda hybridizer, dataset, oracle, accelerator: SimpleNamespace(to_dict=lambda: {"by": oracle})
    monkeypatch.setattr(compare, "transfer_rates", rates)
    monkeypatch.setattr(compare, "save_transfer", lambda *given: kept.append(given))
    compared = comparison(tmp_path / "c")
    assert compared.drawn == 2 * 7 * (8 + 11)  # seeds, steps, images a step of both variants
    judge = Training(steps=80, batch_size=2, shrinks=True)
    assert compared.judged(hybridizer, judge)["by"] is compared.judged(hybridizer, judge)["by"]
    assert asked == [judge.within(266)] and asked[0].steps == 20  # 66 images are a quarter of what is drawn
    assert (tmp_path / "c" / "grid.png").exists()
    source, part, seed = drawn[0]
    assert source is hybridizer and part is compared.context.dataset.test and seed == compared.settings.seed
    assert [folder for folder, *_ in kept] == [tmp_path / "c"] * 2 and kept[0][2] is CONTEXT
    assert compared.judged(None, judge) is None and compared.judged(hybridizer, None) is None


def test_what_is_trained_is_said_when_training_begins(tmp_path, capsys):
    compared = comparison(tmp_path / "c", seeds=1)
    assert "are trained" not in capsys.readouterr().out
    compared.context.say()
    said = f"in {tmp_path / 'c'} are trained: FixMatch (7 steps), FixMatch + SciMix (7 steps)\n"
    assert capsys.readouterr().out.endswith(said)


def test_what_nobody_judges_is_said_so(tmp_path, monkeypatch, capsys, hybridizer):
    monkeypatch.setattr(compare, "sample_grid", lambda *_: torch.zeros(3, 4, 6))
    compared = comparison(tmp_path / "c")
    for run in compared.unfinished():
        compared.add(run, result(run))
    concluded = compared.conclude(transfer=compared.judged(hybridizer, None))
    assert concluded["transfer"] is None
    assert f"hybrids: not judged (--oracle none); {tmp_path / 'c' / 'grid.png'}" in capsys.readouterr().out
    (tmp_path / "c" / "grid.png").unlink()
    monkeypatch.setattr(Accelerator, "is_main_process", False)
    compared.judged(hybridizer, None)
    assert not (tmp_path / "c" / "grid.png").exists()  # which the first of several processes draws


def test_what_is_trained_beside_the_variants_is_counted(tmp_path, capsys, monkeypatch, hybridizer):
    """Its time is told before, as far as it is still to come, and is part of the whole after."""
    told = []
    monkeypatch.setattr(compare, "whole_time", lambda parts: told.append(parts) or 600.0)
    monkeypatch.setattr(compare, "oracle_seconds", lambda judge, *_: 0.5 * judge.steps)
    monkeypatch.setattr(compare, "judging_seconds", lambda *_: 75.0)  # of each: 600 + 400 + 2 · 2 · 75 s are 22 minutes
    plan = object.__new__(Plan)
    plan.clock, plan.stream = Clock(1234, 2), SimpleNamespace(images_per_step=3)
    compared = comparison(tmp_path / "c", beside={"Hybridizer": plan})
    assert compared.drawn == 2 * (7 * (8 + 11) + 1234 * 3)  # the generator's images are the run's, too
    parts = {"FixMatch": plan, "FixMatch + SciMix": plan, "Hybridizer": plan}
    judge = Training(steps=1600, batch_size=2, shrinks=True)  # 800 steps of it see a quarter of these 7,670 at most
    compared.tell_time(parts, 2, judge, like=hybridizer)
    assert capsys.readouterr().out.endswith(
        f"in {tmp_path / 'c'} are trained: FixMatch (7 steps), FixMatch + SciMix (7 steps), Hybridizer (1,234 steps), "
        "each from 2 seeds\nwhat is left of 6 trainings and of judging takes about 22 minutes\n"
    )
    comparison(tmp_path / "d", seeds=1).tell_time({"FixMatch": plan})
    assert capsys.readouterr().out.endswith("what is left of the training takes about 10 minutes\n")
    compared.tell_time(parts, 2, None, like=hybridizer)
    assert capsys.readouterr().out == "what is left of 6 trainings takes about 10 minutes\n"
    monkeypatch.setattr(compare, "whole_time", lambda parts: 0.0)
    compared.tell_time(parts)
    assert capsys.readouterr().out == ""  # nothing is left
    names = [f"{name}-seed{seed}" for name in ("fixmatch", "scimix", "hybridizer") for seed in (3, 4)]
    assert [place.name for place in told[0]] == names
    assert [CONTEXT.expected[tmp_path / "c" / name] for name in names] == [7] * 4 + [1234] * 2
    for seed, seconds in ((3, 100.0), (4, 110.0)):
        write_result(tmp_path / "c" / f"hybridizer-seed{seed}", CONTEXT.accelerator, seconds=seconds)
    for run in compared.unfinished():
        compared.add(run, result(run))
    concluded = compared.conclude(earlier={"FixMatch": None, "FixMatch + SciMix": RATES})
    assert concluded["seconds"] == pytest.approx(66 + 210)
    assert concluded["earlier"] == {"FixMatch": None, "FixMatch + SciMix": RATES}
    assert concluded["beside"]["Hybridizer"]["seconds"]["mean"] == pytest.approx(105)
    said = capsys.readouterr().out
    assert "hybrids of FixMatch + SciMix: semantic transfer 0.610" in said
    (row,) = (line for line in said.splitlines() if line.split() == ["Hybridizer", "105"])
    (header,) = (line for line in said.splitlines() if line.startswith("test accuracy, %"))
    assert len(row) == header.index("seconds") + len("seconds")  # below those of the variants


@pytest.mark.parametrize("long", [28, 29])
def test_of_long_work_its_time_is_said_once_before(tmp_path, capsys, monkeypatch, long):
    """Four runs of seven steps each, of which one is finished when they go on."""
    monkeypatch.setattr(compare, "LONG", long)
    monkeypatch.setattr("hybridgen.training.estimate.seconds_of", lambda plan: 120.0)

    def said(compared):
        capsys.readouterr()
        todo = list(compared.unfinished())
        return todo, capsys.readouterr().out

    compared = comparison(tmp_path / "c")
    todo, first = said(compared)
    assert said(compared) == (todo, "")
    run = todo[0]
    run.folder.mkdir()
    write_result(run.folder, CONTEXT.accelerator, **result(run))
    _, second = said(comparison(tmp_path / "c", resume=True))
    expected = [f"what is left of 4 trainings takes about {minutes} minutes" for minutes in (8, 6)]
    assert [line.splitlines()[-1:] for line in (first, second)] == [[line] if long == 28 else [] for line in expected]


def test_further_columns_stand_between_accuracies_and_seconds(tmp_path, capsys):
    """Of what all runs of a variant have; a dash where they have not, and no deviation of what is infinite."""
    columns = (
        compare.FigureColumn("NLL", "test_nll_last"), compare.FigureColumn("members", "test_members_last", percent=True)
    )  # fmt: skip
    compared = comparison(tmp_path / "c")
    for run, nll in zip(list(compared.unfinished()), (0.25, math.inf, 0.75, 1.0), strict=True):
        more = {"test_members_last": 0.4} if run.variant == "FixMatch" else {}
        compared.add(run, result(run) | {"test_nll_last": nll} | more)
    told = compared.conclude(columns=columns)["classifiers"]
    assert told["FixMatch"]["test_nll_last"] == {"mean": 0.5, "std": pytest.approx(0.5 / math.sqrt(2))}
    assert told["FixMatch + SciMix"]["test_nll_last"]["mean"] == math.inf
    assert "test_members_last" not in told["FixMatch + SciMix"]
    header, first, second = capsys.readouterr().out.splitlines()[3:6]
    assert header.split()[3:8] == ["last", "selected", "NLL", "members", "seconds"]
    assert first.removeprefix("FixMatch").split()[10:17] == ["0.500", "±", "0.354", "40.0", "±", "0.0", "11"]
    assert second.removeprefix("FixMatch + SciMix").split()[10:15] == ["inf", "±", "nan", "–", "22"]


def test_columns_of_ensembles():
    """Of figures between 0 and 1 in percent, and of ratios and likelihoods as they are."""
    row = {
        "test_member_accuracy_last": {"mean": 0.4321}, "test_nll_calibrated_last": {"mean": 0.4321},
        "test_ece_last": {"mean": 0.0432}, "test_disagreement_last": {"mean": 0.1234},
        "test_ratio_error_last": {"mean": 2.3456},
    }  # fmt: skip
    assert [(column.title, column.text(row)) for column in compare.OF_ENSEMBLES] == [
        ("members", "43.2"), ("NLL_c", "0.432"), ("ECE, %", "4.3"), ("disagree, %", "12.3"), ("ratio-error", "2.346"),
    ]  # fmt: skip


@settings
class Some:
    methods: some_of({"plain": "Plain network", "cut": "CutMix", "mix": "Mixup"}) = ("plain", "mix")
    """Which ones."""


def test_methods_are_some_of_those_that_there_are_each_once(capsys):
    """By every way in, and listed in the help."""
    assert from_arguments(Some, ["--methods", "cut", "plain"]).methods == Some(methods=["cut", "plain"]).methods
    assert from_arguments(Some, []).methods == ("plain", "mix")
    for given in ([], ["cut", "cut"]):
        with pytest.raises(InputError, match=r"^methods: .* should be one or more, each once$"):
            Some(methods=given)
        with pytest.raises(InputError, match=r"^--methods: .* should be one or more, each once$"):
            from_arguments(Some, ["--methods", *given])
    with pytest.raises(InputError, match=r"^methods.0: 'saliency' should be 'plain', 'cut' or 'mix'$"):
        Some(methods=["saliency"])
    with pytest.raises(InputError, match=r"'saliency'.*'plain', 'cut', 'mix'"):
        from_arguments(Some, ["--methods", "saliency"])
    with pytest.raises(SystemExit):
        from_arguments(Some, ["--help"])
    assert "{plain,cut,mix}" in capsys.readouterr().out
