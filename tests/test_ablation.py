"""The ablations: what each row runs, how a table stops and goes on, and MixUp, CutMix and a generator's own classifier
in the recipes of classifiers."""

import contextlib
import importlib.util
import json
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from recipe_modules import recipe

from hybridgen.configuration import parse
from hybridgen.hybridizer import Hybridizer
from hybridgen.methods import scimix
from hybridgen.methods.hybrids import start_from
from hybridgen.networks.classifiers import Classifier
from hybridgen.networks.registry import make_network
from hybridgen.settings import changed, plain
from hybridgen.tables.jobs import ACCURACIES, Job, finish, measured, text_of
from hybridgen.types import InputError

spec = importlib.util.spec_from_file_location("recipes_as_processes", Path(__file__).with_name("test_recipes.py"))
processes = importlib.util.module_from_spec(spec)
spec.loader.exec_module(processes)
recipes, toy, stage_1, refuse = (
    processes.recipes, processes.toy, processes.stage_1, processes.refuse
)  # fixtures  # fmt: skip
ablation = recipe("ablation")
Config, TABLES, GENERATORS, jobs_of = ablation.Config, ablation.TABLES, ablation.GENERATORS, ablation.jobs_of


# --- what the rows run ---------------------------------------------------------------------------------------


def configured(job: Job) -> Any:
    """The configuration that the job's recipe makes of its arguments."""
    of = recipe(job.recipe.stem)
    return parse(of.Config, of.PRESETS, [*job.arguments, "--out", str(job.folder)])


def test_generators_are_the_variants_of_stage_1():
    """Each changes what the preset of the same name changes, and nothing else."""
    stage_1 = recipe("scimix")
    svhn = changed(stage_1.Config(), stage_1.PRESETS["paper-svhn-60"])
    for name, arguments in GENERATORS.items():
        given = parse(stage_1.Config, stage_1.PRESETS, ["--preset", "paper-svhn-60", *arguments])
        assert given == changed(svhn, stage_1.PRESETS.get(f"variant-{name}", {}))
        assert (given == svhn) is (name == "full")
        alone = plain(parse(stage_1.Config, {}, list(arguments)))
        default = plain(stage_1.Config())
        assert {key for key in alone["method"] if alone["method"][key] != default["method"][key]} == set(
            scimix.VARIANTS.get(name, {}))  # fmt: skip
        assert alone | {"method": None} == default | {"method": None}
    assert len(GENERATORS) == 5 == 1 + len(scimix.VARIANTS)


@pytest.mark.parametrize("backbone", ["mean-teacher", "fixmatch", "mixmatch"])
def test_every_row_of_every_table_is_taken_by_its_recipe(backbone):
    for name, table in TABLES.items():
        config = Config(
            table=name, backbone=backbone, data="svhn", labels=60, hybridizer="owner/hybrids",
            common="--threads 3 --epochs 99", generator="--network leaky-wrn-16-1 --epochs 12",
            classifier="--seeds 9 --epochs 13",
        )  # fmt: skip
        for key, row in table.rows.items():
            *generators, last = jobs_of(config, key, 2)
            for job in generators:
                method = configured(job).method
                assert (method.network, method.epochs, job.recipe.name) == ("leaky-wrn-16-1", 12, "scimix.py")
            values = configured(last)
            assert (values.data, values.labels, values.threads, values.seed) == ("svhn", 60, 3, 2)
            if row.classifier is not None:
                stem = last.recipe.stem.removeprefix("scimix_")
                assert stem == backbone.replace("-", "_")
                assert values.method.epochs == 13 and values.seeds == 1
                hybrids = values.hybrids
                assert hybrids.baseline is (key == "alone") is (hybrids.hybridizer == "none")
                if generators:
                    assert hybrids.hybridizer == str(generators[0].folder / "hybridizer")
                elif key in ("mixup", "cutmix"):
                    assert hybrids.hybridizer == key
                elif key != "alone":
                    assert hybrids.hybridizer == "owner/hybrids"
                assert hybrids.from_hybridizer is (key == "trained-on")
                assert hybrids.use == (key if name == "A.15" and key != "alone" else "contradict")


def test_variants_are_trained_once_and_own_classifiers_from_every_seed():
    once, each = (
        [jobs_of(Config(table=table), key, seed) for key in TABLES[table].rows for seed in (0, 1, 2)]
        for table in ("A.14", "2.3")
    )
    folders = lambda jobs: {job.folder.name for row in jobs for job in row if job.recipe.name == "scimix.py"}
    assert folders(once) == {f"generator-{name}-seed0" for name in GENERATORS}
    assert folders(each) == {f"generator-full-seed{seed}" for seed in (0, 1, 2)}
    assert len({job.folder for row in once for job in row}) == 5 + 6 * 3
    assert len({job.folder for row in each for job in row}) == 3 + 3 * 3
    for job in (job for row in (*once, *each) for job in row):
        assert job.arguments[job.arguments.index("--seed") + 1] == job.folder.name.rpartition("-seed")[2]


def test_generators_are_judged_by_whom_they_are_told_to():
    judge = lambda **given: configured(jobs_of(Config(table="2.3", **given), "own", 0)[0]).oracle.oracle
    assert judge() == "none" and judge(generator="--oracle any/one") == "any/one"


def test_a_table_holds_means_and_deviations_and_dashes_where_nothing_is():
    with_rates = [
        {"test_accuracy_last": last, "test_accuracy_selected": 0.5, "transfer": {"semantic_transfer": last / 2}}
        for last in (0.2, 0.6)
    ]
    alone = [{"test_accuracy_last": 0.25, "transfer": None}] * 2
    measures = {**ACCURACIES, "semantic_transfer": "s_c", "nonsemantic_preservation": "s_r"}
    figures = {key: measured(results, measures) for key, results in {"alone": alone, "full": with_rates}.items()}
    assert figures["full"]["test_accuracy_last"] == {
        "mean": pytest.approx(0.4), "std": pytest.approx(np.std([0.2, 0.6], ddof=1)),
    }  # fmt: skip
    assert figures["full"]["semantic_transfer"]["mean"] == pytest.approx(0.2)
    assert figures["alone"]["test_accuracy_selected"] is figures["alone"]["semantic_transfer"] is None
    names = {"alone": "no hybrids", "full": "full"}
    text = text_of("Table A.14", "digits-m", names, figures, measures, 2, "A note.").splitlines()
    assert text[0] == "Table A.14" and text[2].split() == ["digits-m", *measures.values()]
    assert text[3].replace("no hybrids", "").split() == ["25.0", "±", "0.0", "-", "-", "-"]
    assert text[4].replace("full", "").split() == ["40.0", "±", "28.3", "50.0", "±", "0.0", "20.0", "±", "14.1", "-"]
    assert "± standard deviation over 2 seed(s)" in text[6] and text[7] == "A note."


ROWS = {
    "A.14": ("variants of the generator", "one", {
        "alone": "no hybrids", "structural": "structural z_c (z_r as style)", "no-hybridization": "no L_hyb",
        "basic": "basic L_hyb", "not-frozen": "criteria not frozen", "full": "full",
    }),
    "A.15": ("uses of hybrids", "none", {
        "alone": "no hybrids", "labelled": "labelled", "pseudo-label": "pseudo-label", "consistency": "consistency",
        "contradict": "contradict",
    }),
    "2.3": ("the generator's own classifier or a new one", "each", {
        "alone": "no hybrids", "own": "generator's classifier", "trained-on": "generator's classifier, then hybrids",
        "new": "new classifier, hybrids",
    }),
    "2.6": ("hybrids against MixUp and CutMix", "none", {
        "alone": "no hybrids", "mixup": "MixUp", "cutmix": "CutMix", "scimix": "SciMix",
    }),
}  # fmt: skip
"""By the folders, for which the tests above tell what they run."""


def test_rows_are_named_for_what_they_run():
    found = {
        name: (table.title, table.generators, {key: row.name for key, row in table.rows.items()})
        for name, table in TABLES.items()
    }
    assert found == ROWS


def test_a_whole_table_by_hand(tmp_path, monkeypatch, capsys):
    """Of results that are given: each job once, and of several seeds the text, the values and the picture."""
    accuracies = {"alone": 0.5, "generator-full": 0.6, "trained-on": 0.7, "new": 0.8}
    done, drawn = [], []

    def given(job: Job, environment: dict) -> dict:
        stem, _, seed = job.folder.name.rpartition("-seed")
        last = accuracies[stem] + 0.02 * (seed == "5")
        rates = {"semantic_transfer": last - 0.5, "nonsemantic_preservation": 0.9}
        done.append(job.folder.name)
        made = {"test_accuracy_last": last, "test_accuracy_selected": last - 0.1}
        return made | ({} if stem == "generator-full" else {"transfer": None if stem == "alone" else rates})

    def kept(figure: Figure, path: Path, **how: Any) -> None:
        drawn.append(figure)
        path.write_bytes(b"a picture")

    monkeypatch.setattr("hybridgen.tables.jobs.finish", given)
    monkeypatch.setattr(Figure, "savefig", kept)
    out = tmp_path / "out"
    ablation.main(Config(table="2.3", out=out, backbone="fixmatch", labels=60, seed=4, seeds=2))
    names = [f"{stem}-seed{seed}" for stem in accuracies for seed in (4, 5)]
    assert done == names
    text = (out / "table.txt").read_text()
    assert text.splitlines()[:9] == [
        "Table 2.3: the generator's own classifier or a new one",
        "",
        "digits-m, 60 labels, fixmatch         last        selected    s_c         s_r",
        "no hybrids                            51.0 ± 1.4  41.0 ± 1.4  -           -",
        "generator's classifier                61.0 ± 1.4  51.0 ± 1.4  -           -",
        "generator's classifier, then hybrids  71.0 ± 1.4  61.0 ± 1.4  21.0 ± 1.4  90.0 ± 0.0",
        "new classifier, hybrids               81.0 ± 1.4  71.0 ± 1.4  31.0 ± 1.4  90.0 ± 0.0",
        "",
        "In %: mean ± standard deviation over 2 seed(s); last and selected: test accuracy of that epoch.",
    ]
    assert "s_c and s_r: semantic transfer and non-semantic preservation of the hybrids. Every seed has" in text
    told = "".join(f"{number}/8 {out / name}\n" for number, name in enumerate(names, start=1))
    assert capsys.readouterr().out == f"{told}\n{text}{out / 'table.png'}\n"
    values = json.loads((out / "table.json").read_text())
    rows = values.pop("rows")
    assert values == {"table": "2.3", "data": "digits-m", "labels": 60, "seeds": [4, 5]}
    assert {key: [Path(run).name for run in row["runs"]] for key, row in rows.items()} == {
        "alone": names[:2], "own": names[2:4], "trained-on": names[4:6], "new": names[6:],
    }  # fmt: skip
    assert rows["own"]["name"] == "generator's classifier"
    (axis,) = drawn[0].axes
    assert axis.get_title() == f"{text.splitlines()[0]} (digits-m, 60 labels, fixmatch, 2 seed(s))"
    assert [tick.get_text() for tick in axis.get_xticklabels()] == list(ROWS["2.3"][2].values())
    legend = [each.get_text() for each in axis.get_legend().get_texts()]
    assert legend == ["test accuracy", "semantic transfer", "nonsemantic preservation"]
    bars = [each for each in axis.containers if hasattr(each, "patches")]
    heights = [[bar.get_height() for bar in each] for each in bars]
    assert heights == [pytest.approx([0.51, 0.61, 0.71, 0.81]), pytest.approx([0.21, 0.31]), [0.9, 0.9]]
    low, high = bars[0].errorbar.lines[2][0].get_segments()[0][:, 1]
    assert (low, high) == (pytest.approx(0.51 - 0.02 / 2**0.5), pytest.approx(0.51 + 0.02 / 2**0.5))


def test_of_one_seed_there_is_no_deviation():
    figures = {"alone": measured([{"test_accuracy_last": 0.25, "test_accuracy_selected": 0.5}], ACCURACIES)}
    text = text_of("Table", "data", {"alone": "no hybrids"}, figures, ACCURACIES, 1, "").splitlines()
    assert [line.split() for line in text[2:4]] == [["data", "last", "selected"], ["no", "hybrids", "25.0", "50.0"]]
    assert text[5] == "In %: mean over 1 seed(s); last and selected: test accuracy of that epoch." and len(text) == 6


# --- jobs ----------------------------------------------------------------------------------------------------


SCRIPT = """
import json, os, signal, sys, time
from pathlib import Path
out = Path(sys.argv[sys.argv.index("--out") + 1])
out.mkdir(exist_ok=True)
if "{how}" == "stopped":
    os.kill(os.getppid(), signal.SIGTERM)
    time.sleep(60)
if "{how}" == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
if "{how}" == "unfinished":
    sys.exit()
if "{how}" == "silent":
    print("one", "its last line", "", sep="\\n")
    sys.exit(5)
if "{how}" not in ("fine", "without"):
    print("error: of an earlier part", file=sys.stderr)
    print("50%\\rerror: epochs: 0 is not above 0", "more", sep="\\n", file=sys.stderr)
    sys.exit({how})
result = dict(test_accuracy_last=0.5, arguments=sys.argv[1:], variable=os.environ["VARIABLE"])
if "{how}" == "without":
    del result["test_accuracy_last"]
(out / "result.json").write_text(json.dumps(result))
"""


@pytest.fixture
def job(tmp_path):
    def make(how: object = "fine") -> Job:
        (tmp_path / "script.py").write_text(SCRIPT.replace("{how}", str(how)))
        return Job(tmp_path / "run", tmp_path / "script.py", ("--epochs", "3"))

    return make


ENVIRONMENT = {"VARIABLE": "given"}


def test_a_job_gives_its_result_and_is_never_done_twice(job, tmp_path):
    result = finish(job(), ENVIRONMENT)
    arguments = ["--epochs", "3", "--out", str(tmp_path / "run")]
    assert result == {"test_accuracy_last": 0.5, "arguments": arguments, "variable": "given"}
    (tmp_path / "script.py").unlink()
    assert finish(job(2), ENVIRONMENT) == result


def test_a_job_that_was_begun_is_continued(job, tmp_path):
    (tmp_path / "run").mkdir()
    assert "--resume" not in finish(job(), ENVIRONMENT)["arguments"]  # a folder without a configuration is no run
    (tmp_path / "run" / "result.json").unlink()
    (tmp_path / "run" / "config.yaml").touch()
    assert finish(job(), ENVIRONMENT)["arguments"][-1] == "--resume"


@pytest.mark.parametrize(
    "how, code, reason",
    [
        (2, 2, "epochs: 0 is not above 0"),
        (7, 7, "epochs: 0 is not above 0"),
        ("silent", 5, "its last line"),
        ("killed", 1, "killed by signal 9"),
        ("unfinished", 1, ""),
    ],
)
def test_a_failing_job_is_one_line_with_its_name_and_its_error(job, tmp_path, capfd, how, code, reason):
    (tmp_path / "run.log").write_text("error: of an earlier time\n")
    with pytest.raises(SystemExit) as end:
        finish(job(how), ENVIRONMENT)
    assert end.value.code == code
    said = capfd.readouterr()
    run, log = tmp_path / "run", tmp_path / "run.log"
    assert said.err == f"error: {run}, a run of script.py: {reason}; all it said is in {log}\n" and said.out == ""
    assert log.read_text().startswith("error: of an earlier time\n")


def test_a_result_without_its_accuracy_is_none(job, tmp_path):
    for _ in range(2):  # when it is made, and when it is found
        with pytest.raises(InputError, match=r"run/result\.json: test_accuracy_last is missing or no number"):
            finish(job("without"), ENVIRONMENT)


def test_a_signal_is_handed_on(job, capfd):
    before = signal.getsignal(signal.SIGTERM)
    began = time.monotonic()
    with pytest.raises(SystemExit) as end:
        finish(job("stopped"), ENVIRONMENT)
    assert end.value.code == 143 and time.monotonic() - began < 50
    assert "stopped by signal 15" in capfd.readouterr().err and signal.getsignal(signal.SIGTERM) is before


# --- a whole table -------------------------------------------------------------------------------------------


def of_table(table: str, data: str, *more: str) -> tuple[str, ...]:
    """As in `processes.tiny`: 24 steps of stage 1, 24 of classifiers."""
    common = (
        "--preset smoke --validation 8 --labelled-batch 4 --unlabelled-batch 9 --epochs 3 --threads 1 "
        "--record-every 3 --evaluate-every 6 --save-every 5"
    )
    return (
        "--table", table, "--data", data, "--labels", "8", "--seeds", "1", f"--common={common}",
        "--generator=--method.generator-channels 8 8",
        "--classifier=--hybrids.start 1 --hybrids.stop 2.5 --oracle.steps 10", *more,
    )  # fmt: skip


def writing(log: Path) -> list[str]:
    """Processes whose output goes there."""
    found = []
    for path in Path("/proc").glob("[0-9]*/fd/1"):
        with contextlib.suppress(OSError):
            found += [path.parts[2]] if path.readlink() == log else []
    return found


def times(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_a_table_stopped_and_killed_continues_and_leaves_finished_runs_alone(recipes, toy):
    folder, arguments = recipes.folder / "own", of_table("2.3", toy, "--out", "own")
    generator, trained_on = folder / "generator-full-seed0", folder / "trained-on-seed0"
    recipes.start("ablation.py", *arguments)
    assert recipes.stop(signal.SIGTERM, processes.reached(generator, 5)) == 143
    assert "stopped by signal 15 in own/generator-full-seed0; --resume continues" in recipes.stderr()
    assert not (generator / "result.json").exists() and not (folder / "table.json").exists()
    done = times(folder / "alone-seed0")

    recipes.start("ablation.py", *arguments, "--resume")
    log, there = folder / "trained-on-seed0.log", processes.reached(trained_on / "scimix-seed0", 5)
    linux = sys.platform == "linux"
    assert recipes.stop(signal.SIGKILL, lambda: there() and (not linux or writing(log))) == -signal.SIGKILL
    if linux:
        began = time.monotonic()
        while writing(log):
            assert time.monotonic() - began < 30
            time.sleep(0.05)
        assert not (trained_on / "result.json").exists()  # nobody went on
    done |= times(generator)

    recipes.succeed("ablation.py", *arguments, "--resume")
    assert times(folder / "alone-seed0") | times(generator) == done
    values = json.loads((folder / "table.json").read_text())
    accuracies = {key: row["test_accuracy_last"]["mean"] for key, row in values["rows"].items()}
    assert accuracies == {
        "alone": processes.result(folder / "alone-seed0" / "mean-teacher-seed0")["test_accuracy_last"],
        "own": processes.result(generator)["test_accuracy_last"],
        "trained-on": processes.result(trained_on / "scimix-seed0")["test_accuracy_last"],
        "new": processes.result(folder / "new-seed0" / "scimix-seed0")["test_accuracy_last"],
    }
    assert [path.name for path in trained_on.glob("*-seed0")] == ["scimix-seed0"]
    rates = processes.result(folder / "new-seed0")["transfer"]
    assert values["rows"]["new"]["semantic_transfer"] == {"mean": rates["semantic_transfer"]}
    assert values["rows"]["alone"]["semantic_transfer"] is values["rows"]["own"]["semantic_transfer"] is None
    assert (folder / "table.txt").read_text() in recipes.stdout()
    with Image.open(folder / "table.png") as picture:
        picture.load()
        assert min(picture.size) > 300

    assert "seeds = 1, this run 2" in recipes.refuse("ablation.py", *arguments, "--resume", "--seeds", "2")
    assert "own is not empty" in recipes.refuse("ablation.py", *arguments)


def test_a_failing_run_stops_the_table(recipes, toy):
    bad = "--classifier=--network leaky-wrn-11-1 --oracle.steps 10"
    assert recipes.run("ablation.py", *of_table("2.6", toy, "--hybridizer", "bundled", "--out", "fails"), bad) == 2
    said = recipes.stderr().splitlines()
    assert len(said) == 1 and said[0].startswith("error: fails/alone-seed0, a run of scimix_mean_teacher.py: depth")
    assert not (recipes.folder / "fails" / "mixup-seed0").exists()


BAD = {
    "unknown table": (["--table", "A.16"], ["--table", "A.14"]),
    "no hybridizer": (["--table", "A.15"], ["hybridizer", "A.15"]),
    "none as hybridizer": (["--table", "2.6", "--hybridizer", "none"], ["hybridizer", "2.6"]),
    "one that would not be used": (["--table", "A.14", "--hybridizer", "bundled"], ["hybridizer", "A.14", "its own"]),
    "no seeds": (["--table", "2.3", "--seeds", "0"], ["seeds"]),
    "below a file": (["--table", "2.3", "--out", "toy.npz/run"], ["toy.npz/run", "cannot be written"]),
    "unbalanced quotes": (["--table", "2.3", "--generator=--data 'a"], ["generator", "'a"]),
    "nothing to resume": (["--table", "2.3", "--resume"], ["resume", "no run"]),
    "unknown backbone": (["--backbone", "adamatch"], ["adamatch", "mixmatch"]),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_and_leaves_no_run(recipes, refuse, toy, name):
    arguments, words = BAD[name]
    said = (recipes.refuse if name == "no hybridizer" else refuse)(
        "ablation.py", "--data", toy, "--out", "bad", *arguments
    )
    for word in words:
        assert word in said, said
    assert not (recipes.folder / "bad").exists()


# --- what the tables ask of the recipes of classifiers --------------------------------------------------------


@pytest.mark.parametrize("name, kind", [("Mean Teacher", "cutmix"), ("MixMatch", "mixup"), ("FixMatch", "mixup")])
def test_a_classifier_learns_from_mixtures_in_the_place_of_hybrids(recipes, toy, name, kind):
    recipe = f"{name.lower().replace(' ', '_')}.py"
    batches = (*processes.MIXMATCH_BATCHES, "--hybrids.stop", "1.2") if name == "MixMatch" else ()
    arguments = (*processes.tiny_stage_2(toy, kind, kind, "--no-baseline"), *batches)
    out = f"{recipe}-{kind}"
    recipes.succeed(recipe, *arguments, "--out", out)
    folder = recipes.folder / out
    assert [path.name for path in folder.glob("*-seed0")] == [f"{kind}-seed0"]
    title = f"{name} + {'CutMix' if kind == 'cutmix' else 'MixUp'}"
    assert list(processes.result(folder)["classifiers"]) == [title] and title in recipes.stdout()
    assert processes.result(folder)["transfer"] is None and not (folder / "grid.png").exists()
    losses = [row["classifier/hybrids"] for row in processes.metrics(folder / f"{kind}-seed0") if len(row) > 4]
    assert losses[0] == 0 and max(losses) > 0


REFUSED = {
    "of scimix": ("scimix_mean_teacher.py", "mixup", [], ["mixup", "scimix"]),
    "another use": ("mean_teacher.py", "mixup", ["--hybrids.use", "labelled"], ["use: 'labelled'", "contradict"]),
    "nothing to train": ("mean_teacher.py", "none", ["--no-baseline"], ["hybridizer", "--no-baseline"]),
    "nothing to start from": ("mean_teacher.py", "none", ["--from-hybridizer"], ["hybridizer", "--from-hybridizer"]),
    "mixtures have no classifier": ("mean_teacher.py", "cutmix", ["--from-hybridizer"], ["from_hybridizer", "cutmix"]),
}


@pytest.mark.parametrize("name", REFUSED)
def test_recipes_of_classifiers_refuse(recipes, refuse, toy, name):
    recipe, hybridizer, more, words = REFUSED[name]
    said = refuse(recipe, *processes.tiny_stage_2(toy, hybridizer, "refused", *more))
    for word in words:
        assert word in said, said
    assert not (recipes.folder / "refused").exists()


def test_a_classifier_starts_from_the_one_that_guided_the_hybridizer(stage_1):
    hybridizer = Hybridizer.from_pretrained(stage_1 / "hybridizer")
    images = torch.rand(5, 3, 16, 16)
    shape = hybridizer.autoencoder.architecture
    make = lambda name, heads: Classifier(make_network(name, 2), mean=shape.mean, std=shape.std, heads=heads)
    for heads in (2, 1):
        network = make("leaky-wrn-10-1", heads).eval()
        before = [value.clone() for value in network.state_dict().values()]
        assert start_from(network, hybridizer) is network
        predictions = network(images)[0] if heads == 2 else network(images)
        torch.testing.assert_close(predictions, hybridizer.classify(images))
        assert any(not torch.equal(a, b) for a, b in zip(before, network.state_dict().values(), strict=True))
        for other in ("leaky-wrn-16-1", "leaky-wrn-10-2", "wrn-16-1", "cifar-resnet18"):
            with pytest.raises(InputError, match=r"^from_hybridizer: .*--network"):
                start_from(make(other, heads), hybridizer)
