"""The command `score` on runs that recipes finished, in this process."""

import json
import shutil
from contextlib import redirect_stdout
from dataclasses import replace
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from recipe_modules import recipe
from scipy.stats import binomtest
from sklearn.metrics import confusion_matrix

from hybridgen.cli import main
from hybridgen.configuration import parse
from hybridgen.data.cifar_c import NAMES
from hybridgen.data.corruptions import CORRUPTIONS, corrupt
from hybridgen.data.datasets import load_dataset
from hybridgen.data.splits import Split, make_split
from hybridgen.data.streams import derive_seed
from hybridgen.evaluation.classification import nll, top_accuracy
from hybridgen.evaluation.finished import dataset_of, find, network_of
from hybridgen.evaluation.intervals import Estimate
from hybridgen.evaluation.predictions import Predictions
from hybridgen.evaluation.scoring import ByClass, Robustness, Shown, class_tables, picture, scores_of, table
from hybridgen.evaluation.sharing import influence
from hybridgen.hybridizer import Hybridizer, Origin
from hybridgen.networks.autoencoder import Architecture, SemanticAutoencoder
from hybridgen.networks.classifiers import load_classifier
from hybridgen.training.context import split_of
from hybridgen.training.engine import make_accelerator
from hybridgen.training.record import read_result
from hybridgen.types import InputError

THREADS = torch.get_num_threads()
FIGURES = ("accuracy", "top5", "nll", "nll_calibrated", "ece", "brier")
OF_MEMBERS = ("member_accuracy", "member_accuracy_0", "member_accuracy_1", "disagreement", "error_correlation")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Three classes, of another brightness and another texture, on noise."""
    random = np.random.RandomState(0)
    arrays: dict[str, np.ndarray] = {}
    for part, count in (("train", 60), ("test", 40)):
        labels = np.arange(count) % 3
        pixels = 90 + 25 * labels[:, None, None, None] + 60 * random.randn(count, 16, 16, 3)
        pixels[labels == 1, ::2] += 60
        arrays[f"x_{part}"], arrays[f"y_{part}"] = pixels.clip(0, 255).astype(np.uint8), labels
    path = tmp_path_factory.mktemp("score") / "toy.npz"
    np.savez(path, **arrays)
    return path


def hybridizer(folder: Path) -> None:
    """One that was never trained, on these images or others."""
    shape = dict(image_size=16, classes=3, network="leaky-wrn-10-1", mean=(0.5,) * 3, std=(0.25,) * 3)
    torch.manual_seed(0)
    made = SemanticAutoencoder(Architecture(**shape, nonsemantic_channels=2, generator_channels=(4, 4)))
    Hybridizer(made.eval(), Origin("noise", "other", "0", ("0", "1", "2"))).save_pretrained(folder)


@pytest.fixture(scope="module")
def runs(data) -> Path:
    """Folders of finished runs: of several inputs in `mixmo`, `probable` and, with hybrids and without an average,
    `shared`; of semi-supervised recipes."""
    common = (
        "--data", f"npz:{data}", "--validation", "9", "--threads", "1", "--precision", "fp32", "--save-every", "3",
        "--evaluate-every", "3",
    )  # fmt: skip
    labelled = (*common, "--network", "wrn-10-1", "--batch", "17", "--epochs", "5", "--ema-decay", "0.5")
    semi = (*common, "--labels", "12", "--labelled-batch", "6", "--unlabelled-batch", "6", "--epochs", "2")
    semi += ("--hybridizer", "none", "--oracle", "none")
    with redirect_stdout(StringIO()):
        probable = ("--method.ensemble", "probabilities", "--seed", "1", "--crop", "12")
        probable += ("--method.encoders", "one", "--method.attribution", "encoding")
        hybridizer(data.parent / "hybridizer")
        shared = ("--method.encoders", "one", "--method.classifiers", "one", "--hybridizer")
        shared += (str(data.parent / "hybridizer"), "--hybrids.no-keep-consistent", "--ema-decay", "0")
        for out, name, *more in (
            ("mixmo", "mixmo", *labelled, "--methods", "plain", "cut-mixmo"),
            ("probable", "mixmo", *labelled, "--methods", "mimo", "plain", *probable),
            ("shared", "mixmo", *labelled, "--methods", "cut-mixmo", *shared),
            ("mixshare", "mixshare", *labelled, "--methods", "mixshare"),
            ("fixmatch", "fixmatch", *semi),
            ("teacher", "mean_teacher", *semi),
        ):
            module = recipe(name)
            module.main(parse(module.Config, module.PRESETS, [*more, "--out", str(data.parent / out)]))
    return data.parent


@pytest.fixture
def score(capsys):
    """Runs the command; gives what it printed as JSON, or its error."""

    def command(*arguments: object, json_: bool = True) -> dict | str:
        said = ["score", *map(str, arguments), "--threads", str(THREADS)]
        try:
            main([*said, "--json"] if json_ else said)
        except SystemExit as stop:
            captured = capsys.readouterr()
            assert stop.code == 2 and captured.out == "" and captured.err.count("\n") == 1, captured
            return captured.err
        captured, command.told = capsys.readouterr()
        return json.loads(captured) if json_ else captured

    return command


def test_images(data: Path) -> tuple[torch.Tensor, torch.Tensor]:
    with np.load(data) as arrays:
        pixels, labels = torch.from_numpy(arrays["x_test"]), torch.from_numpy(arrays["y_test"])
    return pixels.permute(0, 3, 1, 2).float() / 255, labels


test_images.__test__ = False


# --- What runs recorded ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "folder",
    [
        "mixmo/plain-network-seed0", "mixmo/cut-mixmo-seed0", "probable/mimo-seed1", "probable/plain-network-seed1",
        "mixshare/mixshare-fade-out-seed0", "shared/cut-mixmo-seed0",
    ],
)  # fmt: skip
def test_figures_are_those_that_the_run_recorded(score, runs, folder):
    """Of several inputs the members' own, of averaged weights, also where no plain network computes them."""
    found, recorded = score(runs / folder), read_result(runs / folder)
    (name, own), *none = found["classifiers"].items()
    several = "plain" not in folder and not folder.startswith("shared")  # one classifier gives one answer
    assert (name, none, found["images"], found["part"]) == (Path(folder).name, [], 40, "test")
    fingerprint = load_dataset(f"npz:{runs / 'toy.npz'}").fingerprint
    assert (found["fingerprint"], found["ensemble"], found["seed"]) == (fingerprint, "logits", 0)
    for figure in FIGURES + OF_MEMBERS * several:
        assert own[figure] == pytest.approx(recorded[f"test_{figure}_selected"], rel=1e-6), figure
    assert several == ("disagreement" in own) and (runs / folder / "network.safetensors").exists() == (
        not folder.startswith("probable")
    )


@pytest.mark.parametrize("folder", ["fixmatch/fixmatch-seed0", "teacher/mean-teacher-seed0"])
def test_a_folder_is_what_was_selected_and_a_checkpoint_what_was_evaluated(score, runs, folder):
    run = runs / folder
    recorded, last = read_result(run), max((run / "checkpoints").glob("step-*.pt"))
    (chosen,) = score(run)["classifiers"].values()
    (same,) = score(run / "network.safetensors")["classifiers"].values()
    (evaluated,) = score(last)["classifiers"].values()
    assert chosen == same and chosen["accuracy"] == pytest.approx(recorded["test_accuracy_selected"])
    assert evaluated["accuracy"] == pytest.approx(recorded["test_accuracy_last"])
    first = min((run / "checkpoints").glob("step-*.pt"))
    assert score(first)["classifiers"][first.stem]["nll"] != evaluated["nll"]
    beside, whole = find(last), find(run)
    assert (beside.about, beside.split_hash) == (whole.about, whole.split_hash)
    assert beside.config == whole.config | {"split_hash": whole.split_hash, "processes": 1}


def test_members_of_a_folder_are_those_of_the_network_that_was_selected(score, runs, tmp_path):
    """Here an earlier one; a checkpoint is what was evaluated."""
    folder = shutil.copytree(runs / "mixmo" / "cut-mixmo-seed0", tmp_path / "early")
    first, *_, last = sorted((folder / "checkpoints").glob("step-*.pt"))
    early, state = (torch.load(path, weights_only=True) for path in (first, last))
    average = early["modules"]["average"]
    state["modules"]["selected"] |= {name: average[name] for name in average if name.startswith("network.")}
    torch.save(state, last)
    own, chosen, evaluated = (next(iter(score(path)["classifiers"].values())) for path in (folder, first, last))
    for figure in FIGURES + OF_MEMBERS:
        assert own[figure] == pytest.approx(chosen[figure], rel=1e-6), figure
    assert own["nll"] != pytest.approx(evaluated["nll"], rel=1e-3)


def test_a_checkpoint_of_an_unfinished_run_of_several_inputs_is_its_members(score, runs, tmp_path):
    """From its configuration and its parameters, where no network is left yet."""
    recorded = read_result(runs / "mixmo" / "cut-mixmo-seed0")
    folder = shutil.copytree(runs / "mixmo" / "cut-mixmo-seed0", tmp_path / "unfinished")
    for path in (folder / "result.json", folder / "network.safetensors"):
        path.unlink()
    (own,) = score(max((folder / "checkpoints").glob("step-*.pt")))["classifiers"].values()
    for figure in FIGURES + OF_MEMBERS:
        assert own[figure] == pytest.approx(recorded[f"test_{figure}_last"], rel=1e-6), figure


def test_likelihood_of_a_file_by_hand(score, runs, data):
    """As torch computes it from the plain state of the network; 95 % around it."""
    run = runs / "fixmatch" / "fixmatch-seed0"
    classifier, *_ = load_classifier(run / "network.safetensors")
    images, labels = test_images(data)
    with torch.no_grad():
        expected = torch.nn.functional.cross_entropy(classifier(images), labels.long()).item()
    found = score(run / "network.safetensors", "--batch", 7)["classifiers"]["fixmatch-seed0"]
    low, high = found["nll_interval"]
    assert low < found["nll"] < high and found["nll"] == pytest.approx(expected, rel=1e-5)
    assert found["aurc_interval"][0] < found["aurc"] < found["aurc_interval"][1]


def test_the_validation_part_is_the_splits(score, runs):
    found = score(runs / "mixmo" / "cut-mixmo-seed0", "--part", "validation")
    (own,) = found["classifiers"].values()
    rows = (runs / "mixmo" / "cut-mixmo-seed0" / "metrics.jsonl").read_text().splitlines()
    last = [row for row in map(json.loads, rows) if "validation/nll" in row][-1]
    assert (found["images"], found["part"]) == (9, "validation")
    assert own["nll"] == pytest.approx(last["validation/nll"], rel=1e-6)
    assert own["disagreement"] == pytest.approx(last["validation/disagreement"])


def test_a_run_outlives_the_file_of_its_split(score, data, tmp_path):
    file, run = tmp_path / "split.json", tmp_path / "run" / "fixmatch-seed0"
    split = make_split(load_dataset(f"npz:{data}"), labels=15, seed=3, validation=9)
    split.save(file)
    module, few = recipe("fixmatch"), ("--epochs", "0.5", "--unlabelled-batch", "6", "--precision", "fp32")
    arguments = ["--data", f"npz:{data}", "--split", str(file), "--out", str(run.parent), "--threads", "1", *few]
    with redirect_stdout(StringIO()):
        module.main(parse(module.Config, module.PRESETS, arguments))
    file.unlink()
    checkpoint = next((run / "checkpoints").iterdir())
    for path in (run, run / "network.safetensors", checkpoint):
        assert Split.load(find(path).settings.split) == split
        assert score(path, "--part", "train")["images"] == 15


def test_the_train_part_is_the_labelled_images_as_they_are(score, runs, data):
    """Twelve labels; which, the run's own split tells."""
    run = runs / "fixmatch" / "fixmatch-seed0"
    labelled = list(split_of(find(run).settings, load_dataset(f"npz:{data}")).labelled)
    with np.load(data) as arrays, torch.no_grad():
        images = torch.from_numpy(arrays["x_train"][labelled]).permute(0, 3, 1, 2).float() / 255
        logits = load_classifier(run / "network.safetensors")[0](images)
        expected = torch.nn.functional.cross_entropy(logits, torch.from_numpy(arrays["y_train"][labelled])).item()
    found = score(run, "--part", "train")
    (own,) = found["classifiers"].values()
    assert (found["images"], found["part"]) == (12, "train") and own["nll"] == pytest.approx(expected, rel=1e-5)


def test_what_rounds_to_zero_has_no_sign():
    assert Shown("NLL").number(-1e-9) == "0.000" and Shown("ECE, %", percent=True).number(-1e-5) == "0.0"
    assert Shown("NLL").number(-0.0104) == "-0.010"


# --- Ensembles ---------------------------------------------------------------------------------------------------


def test_two_equal_members_are_one(score, runs, tmp_path):
    run, copy = runs / "mixmo" / "cut-mixmo-seed0", tmp_path / "copy"
    shutil.copytree(run, copy)
    for of in ("logits", "probabilities"):
        first, second, both = score(run, copy, "--ensemble", of)["classifiers"].values()
        assert first == second
        for figure in (*FIGURES, "aurc"):
            assert both[figure] == pytest.approx(first[figure], rel=1e-5, abs=1e-7)
        assert both["member_accuracy"] == first["accuracy"] and both["disagreement"] == 0 == both["ratio_error"]
        assert both["error_correlation"] == pytest.approx(1)


def test_ensembles_of_several_runs_and_what_is_written_of_them(score, runs, data, tmp_path):
    """A MixMo and a plain network, by hand; and the same from the file of their predictions."""
    folders = [runs / "mixmo" / name for name in ("cut-mixmo-seed0", "plain-network-seed0")]
    images, labels = test_images(data)
    each = []
    for folder in folders:
        classifier, *_ = load_classifier(folder / "network.safetensors")
        with torch.no_grad():
            each.append(classifier(images).double())
    by_hand = {
        "logits": torch.stack(each).mean(dim=0),
        "probabilities": torch.stack(each).softmax(dim=2).mean(dim=0).log(),
    }
    predicted = [own.argmax(dim=1) for own in each]
    for of, expected in by_hand.items():
        found = score(*folders, "--ensemble", of, "--predictions", tmp_path / f"{of}.npz")
        assert list(found["classifiers"]) == ["cut-mixmo-seed0", "plain-network-seed0", "ensemble of 2"]
        both = found["classifiers"]["ensemble of 2"]
        assert found["ensemble"] == of and both["nll"] == pytest.approx(nll(expected, labels.long()), rel=1e-4)
        assert both["disagreement"] == pytest.approx((predicted[0] != predicted[1]).double().mean().item())
        assert both["member_accuracy_0"] == top_accuracy(each[0], labels.long())
        (read,) = score(tmp_path / f"{of}.npz")["classifiers"].values()
        assert read == both and read["disagreement"] > 0
        with np.load(tmp_path / f"{of}.npz") as arrays:
            np.savez(tmp_path / "bare.npz", logits=arrays["logits"], labels=arrays["labels"])
        (bare,) = score(tmp_path / "bare.npz", "--ensemble", of)["classifiers"].values()
        assert bare == both
    (own,) = score(folders[0], "--predictions", tmp_path / "one.npz")["classifiers"].values()
    again = score(folders[1], tmp_path / "one.npz")["classifiers"]
    plain, read, _ = again.values()  # in the order in which they are given
    assert read == own == found["classifiers"]["cut-mixmo-seed0"]
    assert plain == found["classifiers"]["plain-network-seed0"]
    intervals = [score(tmp_path / "one.npz", "--seed", seed)["classifiers"]["one"]["nll_interval"] for seed in (0, 1)]
    assert intervals[0] == own["nll_interval"] != intervals[1]


# --- Classes -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def predicted(tmp_path_factory) -> Path:
    """Of forty images of four of five classes; most images of each are taken for the one after it."""
    random, labels = np.random.RandomState(0), np.arange(40) % 4
    logits = random.randn(40, 5) + 2 * np.eye(5)[labels] + 2.2 * np.eye(5)[labels + 1]
    path = tmp_path_factory.mktemp("classes") / "five.npz"
    np.savez(path, logits=logits, labels=labels, classes=np.array(["ant", "bee", "cat", "dog", "eel"]))
    return path


def test_accuracy_and_confusion_of_every_class_by_other_libraries(score, predicted):
    """By scikit-learn and scipy; there is no eel."""
    with np.load(predicted) as arrays:
        expected = confusion_matrix(arrays["labels"], arrays["logits"].argmax(1), labels=range(5))
    found = score(predicted)
    (own,) = found["classifiers"].values()
    assert found["classes"] == ["ant", "bee", "cat", "dog", "eel"] and own["confusion"] == expected.tolist()
    assert (expected != expected.T).any() and own["class_accuracy"][4] is None is own["class_accuracy_interval"][4]
    shown = score(predicted, "--per-class", json_=False).splitlines()
    rows = {line.split()[0]: line for line in shown if line[:3] in found["classes"]}
    for place, name in enumerate(found["classes"][:4]):
        right = int(expected[place, place])
        low, high = binomtest(right, 10).proportion_ci(method="wilson")
        assert own["class_accuracy"][place] == right / 10
        assert own["class_accuracy_interval"][place] == pytest.approx([low, high], abs=1e-6)
        line = next(line for line in shown if line.startswith(f"{name} "))
        assert line.split(maxsplit=2) == [name, "10", f"{10 * right}.0 [{100 * low:.1f}, {100 * high:.1f}]"]
        assert rows[name].split()[1:] == [str(count) for count in expected[place]]
    assert next(line for line in shown if line.startswith("eel ")).split() == ["eel", "0", "–"]
    assert "Confusion of five: rows are classes of images, columns what is predicted of them" in shown


def test_of_many_classes_the_largest_confusions_are_told():
    counts = torch.diag(torch.full((21,), 5))
    counts[3, 20], counts[20, 3] = 2, 4
    told = class_tables({"other": ByClass(counts.T), "one": ByClass(counts)}, [f"c{number}" for number in range(21)])
    row = told.splitlines()[4].split()  # of 5 of 9 images, and 5 of 7
    assert (row[:3], row[5:6]) == (["c3", "7", "55.6"], ["71.4"]) and "one, top-1, %" in told.splitlines()[0][-20:]
    assert told.splitlines()[-4:] == [
        "The twenty largest confusions of one", "class  taken for  images", "c20    c3         4 of 9",
        "c3     c20        2 of 7",
    ]  # fmt: skip


def test_evaluate_with_models_is_score_class_by_class(score, predicted, capsys, tmp_path):
    def evaluate(*arguments: object) -> str:
        main(["evaluate", *map(str, arguments), "--threads", str(THREADS)])
        return capsys.readouterr().out

    other = shutil.copy(predicted, tmp_path / "other.npz")
    both = (predicted, other)
    assert json.loads(evaluate("--model", *both, "--seed", 3, "--json")) == score(*both, "--seed", 3)
    assert evaluate("--json", f"--model={predicted}") == json.dumps(score(predicted), indent=2) + "\n"
    assert evaluate("--model", predicted) == score(predicted, "--per-class", json_=False)
    assert evaluate("--model", predicted, "--no-per-class") == score(predicted, json_=False)
    for arguments, words in (
        (("--model", predicted, "--hybridizer", "h"), "--hybridizer: is of a hybridizer's transfer rates"),
        (("--model", predicted, "--oracle.steps=3"), "--oracle.steps: is of a hybridizer's transfer rates"),
        (("--picture", "a.png"), "--picture: is of classifiers, which --model RUN names"),
        (("--no-per-class",), "--per-class: is of classifiers, which --model RUN names"),
        (("--model",), "RUNS: none; one or more are needed"),
        (("--model", predicted, "--picture", "a.jpg"), "--picture a.jpg: a .png file is needed"),
    ):
        with pytest.raises(SystemExit, match="2"):
            evaluate(*arguments)
        said = capsys.readouterr()
        assert words in said.err and said.err.count("\n") == 1 and said.out == ""


# --- Deployment --------------------------------------------------------------------------------------------------


def test_a_finished_run_is_exported_as_a_program(unchecked, runs, data, capsys, tmp_path):
    """Which a process that knows nothing of the run loads, for any number of images."""
    run, out = runs / "fixmatch" / "fixmatch-seed0", tmp_path / "model.pt2"
    main(["export", str(run), "--out", str(out)])
    assert f"{out}: leaky-wrn-10-1, of images [n, 3, 16, 16] in [0, 1], 3 classes" in capsys.readouterr().out
    told = dict.fromkeys(("network", "classes", "image_size", "mean", "std", "split_hash"), "")
    program = torch.export.load(out, extra_files=told).module()
    images, _ = test_images(data)
    classifier, classes, side = load_classifier(run / "network.safetensors")
    with torch.no_grad():
        for count in (1, 40):
            torch.testing.assert_close(program(images[:count]), classifier(images[:count]))
    assert (tuple(json.loads(told["classes"])), told["image_size"]) == (classes, str(side))
    assert json.loads(told["mean"]) == pytest.approx(classifier.normalize.mean.flatten().tolist())
    assert json.loads(told["std"]) == pytest.approx(classifier.normalize.std.flatten().tolist())
    assert (told["network"], told["split_hash"]) == ("leaky-wrn-10-1", read_result(run)["split_hash"])


def test_what_cannot_be_exported_is_one_line(runs, capsys, tmp_path):
    run = runs / "fixmatch" / "fixmatch-seed0"
    unfinished, there, out = tmp_path / "unfinished", tmp_path / "there.onnx", tmp_path / "new.onnx"
    shutil.copytree(run, unfinished)
    (unfinished / "result.json").unlink()
    there.write_text("mine")
    for model, to, words in (
        (run, tmp_path / "model.pt", "model.pt: a .onnx or .pt2 file is needed"),
        (run, there, "there.onnx: is there already; give another name, or remove it"),
        (unfinished, out, "unfinished: no result (result.json is missing); let the run finish"),
        (runs / "mixmo", out, "mixmo: holds several runs; give some of"),
        (runs / "probable" / "mimo-seed1", out, "mimo-seed1: no classifier in it (network.safetensors is missing)"),
        (tmp_path / "nothing", out, "nothing: no such file or folder; a finished run's folder, or its network"),
    ):
        with pytest.raises(SystemExit, match="2"):
            main(["export", str(model), "--out", str(to)])
        said = capsys.readouterr()
        assert words in said.err and said.err.count("\n") == 1 and said.out == ""
    assert there.read_text() == "mine" and not out.exists()


# --- Corruptions -------------------------------------------------------------------------------------------------


def test_own_corruptions_by_hand(score, runs, data):
    """The images that the fifth severity gives, drawn batch by batch, and the means."""
    run = runs / "fixmatch" / "fixmatch-seed0"
    kinds = ("--corruptions", "impulse-noise", "contrast", "--severities", "2", "5", "--batch", "25", "--seed", "3")
    found = score(run, *kinds)["corruptions"]
    assert "corruptions: 4 times all images, about " in score.told
    assert (found["of"], found["severities"]) == ("hybridgen's own corruptions", [2, 5])
    own = found["classifiers"]["fixmatch-seed0"]
    classifier, *_ = load_classifier(run / "network.safetensors")
    images, labels = test_images(data)
    for name in ("impulse-noise", "contrast"):
        generator = torch.Generator().manual_seed(derive_seed(3, name, 5, 0))
        with torch.no_grad():
            logits = torch.cat([classifier(corrupt(part, name, 5, generator)) for part in images.split(25)])
        assert own["severities"][name]["nll"][1] == pytest.approx(nll(logits, labels.long()), rel=1e-5)
        assert own["severities"][name]["accuracy"][1] == top_accuracy(logits, labels.long())
        assert own["means"][name]["ece"] == pytest.approx(sum(own["severities"][name]["ece"]) / 2)
    assert own["means"]["mean"]["nll"] == pytest.approx(
        (own["means"]["impulse-noise"]["nll"] + own["means"]["contrast"]["nll"]) / 2
    )


def test_all_corruptions_stand_in_the_table_of_the_ensemble(score, runs, tmp_path):
    """Beside a picture."""
    folders = [runs / "mixmo" / name for name in ("cut-mixmo-seed0", "plain-network-seed0")]
    arguments = (*folders, "--corruptions", "all", "--severities", "1", "--picture", tmp_path / "score.png")
    said = score(*arguments, json_=False)
    lines = said.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("Corrupted by hybridgen's own corruptions"))
    rows = [line.split("  ")[0] for line in lines[start + 1 :]]
    means = ["mean", "mean of cut-mixmo-seed0", "mean of plain-network-seed0"]
    assert rows == ["ensemble of 2", *CORRUPTIONS, *means]
    assert "40 test images; ensembles average logits; 95 % intervals" in said
    found = score(*arguments[:-2])["classifiers"]
    heads, *of_each = (line for line in lines[:4])
    assert [head.strip() for head in heads.split("  ") if head.strip()] == [
        "top-1, %", "top-5, %", "NLL", "NLL_c", "ECE, %", "Brier", "AURC",
    ]  # fmt: skip
    for line, (name, own) in zip(of_each, found.items(), strict=True):
        told = [part.split(" [")[0] for part in line.removeprefix(name).split("]")]
        figures = ("accuracy", "top5", "nll", "nll_calibrated", "ece", "brier", "aurc")
        shown = [f"{100 * own[f]:.1f}" if f in ("accuracy", "top5", "ece") else f"{own[f]:.3f}" for f in figures]
        assert [part.strip() for part in told[:-1]] == shown
        low, high = own["nll_interval"]
        assert f"{own['nll']:.3f} [{low:.3f}, {high:.3f}]" in line
    picture = Image.open(tmp_path / "score.png")
    assert min(picture.size) > 400 and len(np.unique(np.asarray(picture.convert("RGB")).reshape(-1, 3), axis=0)) > 100


def test_the_rows_of_corruptions_and_of_members_by_hand():
    one = {
        "accuracy": [0.5, 0.75],
        "top5": [1.0, 0.875],
        "nll": [0.25, 1.0],
        "ece": [0.125, 0.25],
        "brier": [0.5, 0.25],
    }
    other = {name: [2 * value for value in values] for name, values in one.items()}
    figures = {"a": {"fog": one, "jpeg": other}, "both": {"fog": other, "jpeg": one | {"nll": [4.0, 4.5]}}}
    assert [" ".join(row.split()) for row in Robustness((1, 3), figures).table().splitlines()] == [
        "both top-1, % top-5, % NLL ECE, % Brier",
        "fog 125.0 187.5 1.250 37.5 0.750", "jpeg 62.5 93.8 4.250 18.8 0.375",
        "mean 93.8 140.6 2.750 28.1 0.562", "mean of a 93.8 140.6 0.938 28.1 0.562",
    ]  # fmt: skip

    alone = dict.fromkeys(("accuracy", "top5", "nll", "nll_calibrated", "ece", "brier"), Estimate(0.5, 0.25, 0.75))
    own = ("member_accuracy", "disagreement", "ratio_error", "error_correlation")
    several = alone | {name: Estimate(n / 8, -n / 16, n / 4) for n, name in enumerate(own, start=1)}
    rows = table({"a": alone, "b": several, "c": alone}).splitlines()
    assert [" ".join(row.split()) for row in rows[4:]] == [
        "", "members' top-1, % disagreement, % ratio-error correlation of errors",
        "b 12.5 [-6.2, 25.0] 25.0 [-12.5, 50.0] 0.375 [-0.188, 0.750] 0.500 [-0.250, 1.000]",
    ]  # fmt: skip


def test_cifar_c_folders(score, runs, data, tmp_path):
    """Files that have the clean images, but for one that at severity 4 is black."""
    with np.load(data) as arrays:
        pixels, labels = np.tile(arrays["x_test"], (5, 1, 1, 1)), np.tile(arrays["y_test"], 5)
    for name in NAMES:
        np.save(tmp_path / f"{name}.npy", pixels)
    pixels[3 * 40 : 4 * 40] = 0
    np.save(tmp_path / "fog.npy", pixels)
    np.save(tmp_path / "labels.npy", labels)
    several = [runs / "mixmo" / "plain-network-seed0", runs / "mixmo" / "cut-mixmo-seed0"]
    found = score(*several, "--cifar-c", tmp_path, "--severities", 2, 4, "--ensemble", "probabilities")
    own = found["corruptions"]
    assert (own["of"], own["severities"]) == (str(tmp_path), [2, 4])
    assert list(own["classifiers"]) == ["plain-network-seed0", "cut-mixmo-seed0", "ensemble of 2"]
    for name, clean in found["classifiers"].items():
        of = own["classifiers"][name]
        assert list(of["severities"]) == list(NAMES)
        for figure in ("accuracy", "top5", "nll", "ece", "brier"):
            assert of["severities"]["snow"][figure] == pytest.approx([clean[figure]] * 2, rel=1e-6)
        still, black = of["severities"]["fog"]["accuracy"]
        assert still == clean["accuracy"] and black in (14 / 40, 13 / 40)
        expected = (14 * clean["accuracy"] + (still + black) / 2) / 15
        assert of["means"]["mean"]["accuracy"] == pytest.approx(expected)

    np.save(tmp_path / "snow.npy", pixels[:-1])
    assert "snow.npy: uint8 of shape [199, 16, 16, 3]; needed is uint8 [200, 16, 16, 3]" in score(
        several[0], "--cifar-c", tmp_path
    )


def test_the_curves_of_the_picture_by_hand():
    """At 0.9 right three times of four, at 0.6 once of twice; the surest come first, and none before the others."""
    sure = torch.tensor([0.9, 0.6, 0.9, 0.9, 0.6, 0.9], dtype=torch.float64)
    labels = torch.tensor([0, 1, 1, 0, 0, 0])
    one = Predictions("one", torch.stack([sure, 1 - sure], dim=1).log()[None], labels)
    first = Predictions("first", one.members.flip(2) / 8, labels)
    scores = {each.name: scores_of(each, seed=0) for each in (first, one)}
    reliability, confidences, curves, matrix, _ = picture([first, one], scores).axes
    assert confidences.get_title() == "confidences of one" and len(curves.lines) == 2
    assert matrix.images[0].get_array().tolist() == [[1, 0], [1, 0]] and matrix.get_title() == "one: confusion, %"
    assert (matrix.get_ylabel(), matrix.get_xlabel()) == ("class of the image", "class that is predicted")
    _, points, diagonal = reliability.lines
    assert points.get_xydata().flatten().tolist() == pytest.approx([0.6, 0.5, 0.9, 0.75])
    assert diagonal.get_xydata().tolist() == [[0, 0], [1, 1]] and points.get_label() == "one, ECE 13.3%"
    heights = {round(bar.get_x() + bar.get_width() / 2, 3): bar.get_height() for bar in confidences.patches}
    assert {at: height for at, height in heights.items() if height} == {0.567: 2, 0.9: 4} and len(heights) == 15
    curve = curves.lines[1]
    assert curve.get_xdata().tolist() == pytest.approx([1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6, 1])
    assert curve.get_ydata().tolist() == pytest.approx([1 / 4, 1 / 4, 1 / 4, 1 / 4, 1.5 / 5, 2 / 6])
    assert curve.get_label() == f"one, AURC {(1 + 1.5 / 5 + 2 / 6) / 6:.4f}"


# --- Bad input ---------------------------------------------------------------------------------------------------


def test_bad_input_is_one_line(score, runs, data, tmp_path):
    plain, mixmo, fixmatch = (
        runs / name for name in ("mixmo/plain-network-seed0", "mixmo/cut-mixmo-seed0", "fixmatch/fixmatch-seed0")
    )
    other = tmp_path / "other.npz"
    with np.load(data) as arrays:
        kept = dict(arrays)
    np.savez(other, **(kept | {"x_test": kept["x_test"][::-1]}))
    renamed = tmp_path / "renamed.npz"
    np.savez(renamed, **kept, classes=np.array(["a", "b", "c"]))
    unfinished, memberless, empty = (tmp_path / name for name in ("unfinished", "memberless", "empty"))
    shutil.copytree(fixmatch, unfinished)
    (unfinished / "result.json").unlink()
    shutil.copytree(mixmo, memberless)
    shutil.rmtree(memberless / "checkpoints")
    empty.mkdir()
    lone = tmp_path / "network.safetensors"
    shutil.copy(plain / "network.safetensors", lone)
    damaged = tmp_path / "step-00000001.pt"
    damaged.write_bytes(b"PK")
    predictions = tmp_path / "p.npz"
    score(plain, "--predictions", predictions)
    for arguments, words in (
        ((), "RUNS: none; one or more are needed, each once"),
        ((plain, plain), "each once"),
        ((tmp_path / "nothing",), "nothing: no such file or folder; a finished run's folder"),
        ((empty,), "empty: not the folder of a run (config.yaml is missing)"),
        ((runs / "mixmo",), f"mixmo: holds several runs; give some of {mixmo}, {plain}"),
        ((unfinished,), "unfinished: no result (result.json is missing); let the run finish"),
        ((memberless,), "memberless: its members are not there"),
        ((damaged,), "step-00000001.pt: damaged checkpoint"),
        ((lone,), "network.safetensors: in no run's folder, so that its data are not known; give --data"),
        ((lone, "--data", "digits-m"), "network.safetensors: a classifier of 3 (0, 1, 2) classes, digits-m has 10"),
        ((lone, "--data", f"npz:{data}", "--part", "validation"), "no run's folder tells which images these are"),
        ((lone, "--data", f"npz:{data}", "--image-size", 32), "a network for images of 16×16, these have 32×32"),
        ((lone, "--data", f"npz:{data}", "--image-size", 8), "these have 8×8; --image-size 16 makes them alike"),
        ((lone, "--data", f"npz:{data}", "--part", "train"), "--part train: no run's folder tells which images"),
        (
            (plain, "--data", f"npz:{other}"),
            f"another split than npz:{other} (split {find(plain).split_hash}, of these",
        ),
        ((plain, "--data", f"npz:{renamed}"), "a classifier of 3 (0, 1, 2) classes"),
        ((mixmo, "--data", f"npz:{renamed}", "--allow-other-data"), "a classifier of 3 (0, 1, 2) classes"),
        ((plain, fixmatch), "trained on another split"),
        ((plain, "--allow-other-data"), "--allow-other-data: is of --data, which is missing"),
        (
            (plain, "--data", f"npz:{other}", "--allow-other-data", "--part", "train"),
            "--part train: other data have none that the runs trained on or set aside",
        ),
        ((plain, "--corruptions", "gaussian_noise"), "--corruptions: 'gaussian_noise' is unknown; there are gaussian"),
        ((plain, "--corruptions", "fog", "--severities", "6"), "--severities"),
        ((plain, "--corruptions", "fog", "--severities", "1", "1"), "--severities: 1 1; each once"),
        ((plain, "--corruptions", "fog", "--cifar-c", tmp_path), "--corruptions and --cifar-c: give one or the other"),
        ((plain, "--cifar-c", tmp_path), "labels.npy, gaussian_noise.npy"),
        ((plain, "--cifar-c", tmp_path, "--part", "train"), "--cifar-c: is of test images"),
        ((plain, "--corruptions", "fog", "--part", "validation"), "--corruptions: is of test images"),
        ((predictions, "--corruptions", "fog"), "--corruptions: files of predictions are of images"),
        ((predictions, "--data", "digits-m"), "--data: files of predictions are of images that are not there"),
        ((plain, "--picture", tmp_path / "a.jpg"), "a.jpg: a .png file is needed"),
        ((plain, "--predictions", tmp_path / "a.csv"), "a.csv: a .npz file is needed"),
        ((data,), "toy.npz: no logits; logits or probabilities are needed"),
    ):
        said = score(*arguments)
        assert isinstance(said, str) and said.startswith("error: ") and words in said, (arguments, said)
    reordered = tmp_path / "reordered.npz"
    with np.load(predictions) as arrays:
        np.savez(
            reordered,
            **{key: arrays[key][::-1] if key in ("logits", "labels", "indices") else arrays[key] for key in arrays},
        )
    assert "other images, or another order of them, than" in score(predictions, reordered)

    # Where nothing is wrong
    (own,) = score(plain, "--data", f"npz:{other}", "--allow-other-data")["classifiers"].values()
    assert own["accuracy"] != score(plain)["classifiers"]["plain-network-seed0"]["accuracy"]
    assert score(lone, "--data", f"npz:{data}")["classifiers"][tmp_path.name]["nll"] == pytest.approx(
        score(plain)["classifiers"]["plain-network-seed0"]["nll"], rel=1e-4
    )


def test_what_files_of_predictions_cannot_obey_is_refused(score, predicted, tmp_path, monkeypatch):
    set_aside = tmp_path / "set-aside.npz"
    with np.load(predicted) as arrays:
        np.savez(set_aside, **arrays, part="validation")
    for arguments, words in (
        ((set_aside, "--part", "train"), f"--part train: {set_aside} is of validation images; leave it out"),
        ((predicted, "--part", "train"), f"--part train: {predicted} tells no part; leave it out"),
        ((predicted, "--data-root", "here"), "--data-root: files of predictions are of images that are not there"),
        ((predicted, "--download"), "--download: files of predictions are of images that are not there"),
        ((predicted, "--batch", 7), "--batch: files of predictions are of images that are not there"),
    ):
        assert score(*arguments) == f"error: {words}{'' if 'leave' in words else '; leave it out'}\n"
    assert score(set_aside, "--part", "validation") == score(set_aside)
    # One file under several spellings is no ensemble
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link.npz").symlink_to(set_aside)
    for other in ("set-aside.npz", f"{tmp_path}/../{tmp_path.name}/set-aside.npz", "link.npz"):
        said = score(set_aside, other)
        assert isinstance(said, str) and "RUNS: " in said and "each once" in said


# --- What subnetworks share --------------------------------------------------------------------------------------


def test_study_sharing_is_of_the_networks_that_runs_left(runs, tmp_path, capsys):
    names = [f"mixmo/{name}-seed0" for name in ("plain-network", "cut-mixmo")]
    folders = [str(runs / name) for name in names]
    main(["study", "sharing", "--runs", *folders, "--images", "20", "--out", str(tmp_path), "--threads", str(THREADS)])
    found = json.loads((tmp_path / "sharing.json").read_text())
    assert (found["study"], found["data"], found["images"]) == ("sharing", f"npz:{runs / 'toy.npz'}", 20)
    assert {path.name for path in tmp_path.iterdir()} == {"sharing.json", "sharing.txt", "sharing.png"}
    plain, several = (found["networks"][name] for name in ("plain-network-seed0", "cut-mixmo-seed0"))
    state = torch.load(max((runs / names[1] / "checkpoints").glob("*.pt")), weights_only=True)["modules"]["average"]
    for place, part in (("encoders", "encoders.{}.weight"), ("classifiers", "heads.{}.weight")):
        norms = [state[f"network.{part.format(i)}"].double().abs() for i in (0, 1)]
        norms = [norm.sum(dim=(1, 2, 3)) if norm.ndim == 4 else norm.sum(dim=0) for norm in norms]
        rate = (torch.minimum(*norms) / torch.maximum(*norms)).mean().item()
        assert several["sharing"][place] == pytest.approx(rate) and plain["sharing"][place] is None
    assert plain["active_filters"] != several["active_filters"]
    assert capsys.readouterr().out.startswith("%")


def test_study_sharing_shows_what_the_run_showed_and_refuses_other_data(runs, tmp_path, capsys):
    folder = runs / "probable" / "mimo-seed1"
    common = ["--images", "100", "--seed", "3", "--threads", str(THREADS), "--out"]
    main(["study", "sharing", "--runs", str(folder), *common, str(tmp_path)])
    (own,) = json.loads((tmp_path / "sharing.json").read_text())["networks"].values()
    images, _ = test_images(runs / "toy.npz")
    fixed, *others = images[torch.randperm(40, generator=torch.Generator().manual_seed(3)), :, 2:14, 2:14].split(
        [1, 39]
    )
    left = find(folder)
    network, _ = network_of(left, dataset_of([left]), make_accelerator(precision="fp32", threads=THREADS))
    for place, uses in influence(network, *others, fixed).items():
        torch.testing.assert_close(torch.tensor(own["uses"][place], dtype=torch.float64), uses, rtol=1e-6, atol=0)

    other = shutil.copytree(folder, tmp_path / "other")
    config = (other / "config.yaml").read_text()
    (other / "config.yaml").write_text(config.replace("split_seed: 0", "split_seed: 1"))
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(["study", "sharing", "--runs", str(other), *common, str(tmp_path / "out")])
    assert "another split" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_the_data_are_those_of_the_run_where_they_lie(runs, monkeypatch):
    asked, digits = [], load_dataset("digits-m")
    monkeypatch.setattr(
        "hybridgen.evaluation.finished.load_dataset", lambda data, **how: asked.append((data, how)) or digits
    )
    left = find(runs / "fixmatch" / "fixmatch-seed0")
    moved = replace(left, config=left.config | {"data_root": "elsewhere", "image_size": 16})
    smaller = replace(left, config=left.config | {"image_size": 8})
    with pytest.raises(InputError, match=r"^RUNS: of images of different sizes \((16, 8|8, 16)\)"):
        dataset_of([moved, smaller])
    dataset_of([moved])
    dataset_of([moved], "digits-m", data_root="here", image_size=8, download=True)
    photographs = replace(left, config=left.config | {"data": "folder:a", "image_size": 16, "whole": True})
    dataset_of([photographs])
    dataset_of([photographs], "svhn")
    common, own = {"image_size": 16, "data_root": "data", "download": False}, left.config["data"]
    assert asked == [
        (own, common | {"data_root": "elsewhere", "whole": False}),
        ("digits-m", {"image_size": 8, "data_root": "here", "download": True, "whole": False}),
        ("folder:a", common | {"whole": True}),
        ("svhn", common | {"whole": False}),  # which has no files that could be whole
    ]
