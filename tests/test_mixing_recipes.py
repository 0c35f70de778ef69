"""The recipes of the methods that mix images, as their users run them."""

import csv
import importlib.util
import json
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from accelerate import Accelerator
from PIL import Image
from recipe_modules import recipe
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from hybridgen.cli import main
from hybridgen.configuration import parse
from hybridgen.data.datasets import Dataset, Part
from hybridgen.data.sources import InMemory
from hybridgen.data.splits import Split
from hybridgen.methods.labelled import TrainingSettings, augmentation, rate_of
from hybridgen.methods.mixing import TITLES, how, mixed
from hybridgen.networks.classifiers import Classifier, about_classifier
from hybridgen.networks.registry import make_network
from hybridgen.training.context import Context, RunSettings
from hybridgen.training.schedules import Clock

spec = importlib.util.spec_from_file_location("recipes_as_processes", Path(__file__).with_name("test_recipes.py"))
processes = importlib.util.module_from_spec(spec)
spec.loader.exec_module(processes)
recipes, toy, refuse = processes.recipes, processes.toy, processes.refuse  # fixtures
ablation = recipe("recursivemix_ablation")


def tiny(data: str, out: Path | str, *more: str | Path) -> tuple[str | Path, ...]:
    """18 steps of a very small network."""
    return (
        "--preset", "smoke", "--data", data, "--validation", "8", "--batch", "8", "--epochs", "2", "--threads", "1",
        "--record-every", "3", "--evaluate-every", "6", "--save-every", "4", "--out", out, *more,
    )  # fmt: skip


@pytest.fixture(scope="module")
def run(recipes, toy) -> Path:
    recipes.succeed("recursivemix.py", *tiny(toy, "recursivemix"))
    return recipes.folder / "recursivemix"


def of_two_classes(side: int = 16) -> Context:
    """Grey images that are flipped."""
    images = torch.full((2, 3, side, side), 128, dtype=torch.uint8)
    part = Part(InMemory(images), torch.arange(2))
    dataset = Dataset("grey", ("a", "b"), side, part, part, "f", True, (0.5,) * 3, (0.5,) * 3)
    return Context(RunSettings(), Accelerator(cpu=True), dataset, Split("grey", "f", 0, (0, 1), (), ()))


def result(folder: Path) -> dict:
    return json.loads((folder / "result.json").read_text())


def test_recursivemix_leaves_both_networks_and_a_table(recipes, toy, run):
    said = result(run)
    assert list(said["classifiers"]) == ["No mixing", "RecursiveMix"]
    assert said["steps"] == 18 and said["test_accuracy_last"] == said["classifiers"]["RecursiveMix"][
        "test_accuracy_last"]["mean"]  # fmt: skip
    for name in ("no-mixing-seed0", "recursivemix-seed0"):
        there = {path.name for path in (run / name).iterdir()}
        assert {"config.yaml", "metrics.jsonl", "curves.png", "result.json", "network.safetensors"} <= there
    rows = [json.loads(line) for line in (run / "recursivemix-seed0" / "metrics.jsonl").read_text().splitlines()]
    assert all(row["classifier/history_share"] > 0 for row in rows if "classifier/history_share" in row)
    assert rows[-1]["classifier/consistency"] > 0


def test_torchvision_loads_what_is_deployed(run):
    """The CIFAR form of ResNet-18 at an eighth of its filters; no second head and no normalisation in the file."""
    path = run / "recursivemix-seed0" / "network.safetensors"
    weights = load_file(path)
    network = torchvision.models.ResNet(torchvision.models.resnet.BasicBlock, [2, 2, 2, 2], num_classes=2)
    names = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    assert weights.keys() == names.keys()
    with safe_open(path, "pt") as file:
        about = file.metadata()
    assert about["network"] == "cifar-resnet18" and json.loads(about["classes"]) == ["0", "1"]
    again = make_network("cifar-resnet18", 2, width=0.125)
    again.load_state_dict(weights)
    assert isinstance(again.fc, nn.Linear)


def test_stopped_and_resumed_equals_never_stopped(recipes, toy, run):
    """With its history: each classifier is stopped once."""
    out = recipes.folder / "stopped"
    arguments = tiny(toy, out)
    for folder, step in ((out / "no-mixing-seed0", 4), (out / "recursivemix-seed0", 8)):
        resume = ("--resume",) if out.exists() else ()
        recipes.start("recursivemix.py", *arguments, *resume)
        there = lambda folder=folder, step=step: (folder / "checkpoints" / f"step-{step:08d}.pt").exists()
        assert recipes.stop(signal.SIGTERM, there) == 128 + signal.SIGTERM, recipes.stderr()
    recipes.succeed("recursivemix.py", *arguments, "--resume")
    for name in ("no-mixing-seed0", "recursivemix-seed0"):
        ours, theirs = (load_file(folder / name / "network.safetensors") for folder in (out, run))
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
        metrics = [(folder / name / "metrics.jsonl").read_text() for folder in (out, run)]
        assert metrics[0] == metrics[1]
    last = [torch.load(folder / "recursivemix-seed0" / "checkpoints" / "step-00000018.pt") for folder in (out, run)]
    ours, theirs = (state["modules"]["history"]["_extra_state"] for state in last)
    assert all(torch.equal(ours[key], theirs[key]) for key in ("images", "targets", "logits"))


def test_a_run_is_not_resumed_with_another_batch(recipes, toy, run):
    said = recipes.refuse("recursivemix.py", *tiny(toy, run, "--resume", "--batch", "4"))
    assert said.endswith("has training.batch = 8, this run 4")


def test_every_method_trains_and_stands_in_one_table(recipes, toy):
    recipes.succeed("mixing_baselines.py", *tiny(toy, "baselines", "--epochs", "0.5", "--evaluate-every", "100"))
    said = result(recipes.folder / "baselines")
    assert list(said["classifiers"]) == list(TITLES.values())
    losses = set()
    for name in TITLES.values():
        assert recipes.stdout().count(f"{name} ") >= 1
        folder = recipes.folder / "baselines" / f"{processes_slug(name)}-seed0"
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        losses.add(rows[0]["classifier/supervised"])
    assert len(losses) == len(TITLES)  # from the same weights and images, no two compute the same


def processes_slug(name: str) -> str:
    return "-".join("".join(c if c.isalnum() else " " for c in name.lower()).split())


def test_the_same_method_is_the_same_in_both_recipes(recipes, toy, run):
    recipes.succeed("mixing_baselines.py", *tiny(toy, "some", "--methods", "none", "recursivemix"))
    for name in ("no-mixing-seed0", "recursivemix-seed0"):
        ours, theirs = (load_file(f / name / "network.safetensors") for f in (recipes.folder / "some", run))
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_imagenets_presets_train_on_a_folder(recipes):
    """PVTv2 at its size on a few small files, in parts of photographs, one step; evaluated in the middle."""
    random = np.random.default_rng(0)
    for part, count in (("train", 4), ("test", 2)):
        for name in ("cat", "dog"):
            folder = recipes.folder / "imagenet" / part / name
            folder.mkdir(parents=True, exist_ok=True)
            for i in range(count):
                shape = (48 + i, 60, 3)
                Image.fromarray(random.integers(256, size=shape, dtype=np.uint8)).save(folder / f"{i}.jpg")
    recipes.succeed(
        "recursivemix.py", "--preset", "paper-imagenet-pvtv2", "--data", f"folder:{recipes.folder / 'imagenet'}",
        "--image-size", "64", "--batch", "4", "--epochs", "1", "--warmup", "0", "--no-baseline",
        "--threads", "1", "--workers", "1", "--out", "pvtv2",
    )  # fmt: skip
    weights = load_file(recipes.folder / "pvtv2" / "recursivemix-seed0" / "network.safetensors")
    with torch.device("meta"):
        make_network("pvt_v2_b1_li", 2).load_state_dict(weights, assign=True)
    assert_predicted(recipes.folder / "pvtv2" / "recursivemix-seed0", recipes.folder / "imagenet", "test/*/*.jpg")


def assert_predicted(run: Path, data: Path, files: str) -> None:
    """`hybridgen predict` gives files, and the data set, the probabilities of what the run left of them."""
    left = torch.from_numpy(np.load(run / "predictions.npz")["logits"]).softmax(dim=1)
    for asked in ((map(str, sorted(data.glob(files)))), ("--data", f"folder:{data}")):
        out = run / "table.csv"
        main(["predict", "--model", str(run), *asked, "--threads", "1", "--out", str(out)])
        rows = list(csv.reader(out.open()))
        found = torch.tensor([[float(each) for each in row[-left.shape[1] :]] for row in rows[1:]])
        torch.testing.assert_close(found, left, rtol=0, atol=1e-4)
        out.unlink()


def test_what_was_judged_by_a_centre_is_asked_by_it(recipes):
    """The run's own predictions are those of `hybridgen predict`, of a network for 10 of 16 pixels."""
    random = np.random.default_rng(0)
    for part, count in (("train", 12), ("test", 6)):
        for name in ("cat", "dog"):
            folder = recipes.folder / "pets" / part / name
            folder.mkdir(parents=True)
            for i in range(count):
                Image.fromarray(random.integers(256, size=(20, 24, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    recipes.succeed(
        "mixing_baselines.py", "--data", f"folder:{recipes.folder / 'pets'}", "--image-size", "16", "--crop", "10",
        "--methods", "none", "--batch", "8", "--epochs", "1", "--warmup", "0", "--network", "wrn-10-1",
        "--threads", "1", "--out", "cropped",
    )  # fmt: skip
    run = recipes.folder / "cropped" / "no-mixing-seed0"
    seen = about_classifier(run / "network.safetensors").seen
    assert seen == "the centre 10×10 of the central square, brought to 16 pixels"
    assert_predicted(run, recipes.folder / "pets", "test/*/*.png")


# --- settings ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["recursivemix", "mixing_baselines"])
def test_presets_are_the_papers(name):
    made = recipe(name)
    assert len(made.PRESETS) > 12
    for preset in made.PRESETS:
        config = parse(made.Config, made.PRESETS, ["--preset", preset])
        training = config.training
        if preset == "paper-cifar100-resnet18":
            assert (training.epochs, training.batch, training.rate, training.warmup, training.weight_decay) == (
                200, 128, 0.1, 5, 5e-4)  # fmt: skip
            if name == "recursivemix":
                method = config.method
                assert (method.alpha, method.weight_consistency, method.interpolation) == (0.5, 0.1, "nearest")
            schedule = rate_of(training)
            assert schedule(Clock(78000, 390, 1949)) == pytest.approx(0.1, rel=2e-3)
            assert schedule(Clock(78000, 390, 77999)) < 1e-6
        if preset == "paper-cifar10-pyramidnet200":
            schedule = rate_of(training)
            assert [schedule(Clock(9000, 30, epoch * 30)) for epoch in (0, 149, 150, 225)] == pytest.approx(
                [0.25, 0.25, 0.025, 0.0025])  # fmt: skip
        if preset == "paper-imagenet-pvtv2":
            assert (training.optimizer, config.image_size, config.whole) == ("adamw", 224, True)
            assert name != "recursivemix" or config.method.weight_consistency == 0.5


def test_augmentation_of_large_images_crops_and_erases():
    context = of_two_classes(side=40)
    view = augmentation(TrainingSettings(crop=32, erasing=1.0), context)
    images = torch.rand(4, 3, 40, 40)
    made = view(images, torch.Generator().manual_seed(0))
    assert made.shape == (4, 3, 32, 32)
    plain = augmentation(TrainingSettings(crop=32), context)(images, torch.Generator().manual_seed(0))
    assert 0 < (made != plain).any(dim=1).float().mean() < 0.5


@pytest.mark.parametrize("name", [name for name in TITLES if not name.startswith(("augmix", "recursive", "none"))])
def test_alphas_of_automix_are_smaller_where_its_authors_took_smaller_ones(name):
    """AutoMix A.1: CutMix, FMix and SaliencyMix with 0.2, the others as they come; its ResizeMix is cut at borders."""
    settings = TrainingSettings(width=0.125)
    shares = []
    for alphas in ("own", "automix"):
        network = Classifier(make_network("cifar-resnet18", 2, width=0.125), mean=(0.5,) * 3, std=(0.5,) * 3)

        objective = mixed(settings, 2, how(name, alphas))(network).objective
        torch.manual_seed(0)
        ratios = torch.cat([objective.draw_images(torch.rand(2, 3, 16, 16)).ratio[:1] for _ in range(100)])
        shares.append((ratios * (1 - ratios)).mean())
    smaller = name in ("cutmix", "cutmix-resized", "fmix", "saliencymix", "resizemix")
    assert shares[1] < 0.9 * shares[0] if smaller else shares[1] == shares[0]


def test_every_row_of_every_ablation_is_taken_by_its_recipe():
    names = {"4a": 2, "4b": 2, "2": 5, "figure-4": 10, "figure-5": 11}
    for table, (_, rows) in ablation.TABLES.items():
        config = ablation.Config(table=table, arguments="--epochs 3 --network wrn-10-1")
        assert len(rows) == names[table]
        seen = set()
        for key in rows:
            (job,) = ablation.jobs_of(config, key, 5)
            of = recipe(job.recipe.stem)
            made = parse(of.Config, of.PRESETS, [*job.arguments, "--out", str(job.folder)])
            assert (made.training.epochs, made.training.network, made.seed, made.seeds) == (3, "wrn-10-1", 5, 1)
            seen.add((job.recipe.name, job.arguments))
        assert len(seen) == len(rows)


SHARED_BASELINE = {"baseline": ("no mixing", "mixing_baselines", "--methods none")}
OMEGA, ALPHA = "--method.weight-consistency", "--method.alpha"
ROWS = {
    "2": ("Table 2: components", SHARED_BASELINE | {
        "cutmix": ("CutMix", "mixing_baselines", "--methods cutmix"),
        "resize": ("resize", "mixing_baselines", "--methods cutmix-resized"),
        "history": ("resize, history", "recursivemix", f"--no-baseline {OMEGA} 0"),
        "consistency": ("resize, history, consistency", "recursivemix", "--no-baseline"),
    }),
    "4a": ("Table 4a: weights of the two linear layers", {
        "unshared": ("unshared", "recursivemix", "--no-baseline"),
        "shared": ("shared", "recursivemix", "--no-baseline --method.shared-head"),
    }),
    "4b": ("Table 4b: interpolation", {
        "nearest": ("nearest", "recursivemix", "--no-baseline"),
        "bilinear": ("bilinear", "recursivemix", "--no-baseline --method.interpolation bilinear"),
    }),
    "figure-4": ("Figure 4: α", SHARED_BASELINE | {
        f"alpha-0.{n}": (f"α = 0.{n}", "recursivemix", f"--no-baseline {ALPHA} 0.{n}") for n in range(1, 10)
    }),
    "figure-5": ("Figure 5: ω", SHARED_BASELINE | {
        f"omega-{n}": (f"ω = {n}", "recursivemix", f"--no-baseline {OMEGA} {n if '.' in n else n + '.0'}")
        for n in ["0", "0.01", "0.05", "0.08", "0.1", "0.2", "0.3", "0.4", "0.5", "1"]
    }),
}  # fmt: skip
"""RecursiveMix's tables 2, 4a and 4b, figures 4 and 5: name, recipe and arguments of each row."""


def test_rows_of_the_ablations_are_the_papers():
    found = {
        table: (title, {key: (name, recipe.removesuffix(".py"), " ".join(words)) for key, (name, recipe, words) in
                        rows.items()})
        for table, (title, rows) in ablation.TABLES.items()
    }  # fmt: skip
    assert found == ROWS
    config = ablation.Config(table="4a", arguments="--epochs 3")
    assert ablation.jobs_of(config, "shared", 5)[0].arguments == (
        "--epochs", "3", "--seed", "5", "--seeds", "1", "--no-baseline", "--method.shared-head",
    )  # fmt: skip


def test_an_ablation_makes_its_table_and_never_repeats_a_run(recipes, toy):
    out = recipes.folder / "ablation"
    words = " ".join(map(str, tiny(toy, "x")[:-2]))
    arguments = ("--table", "4a", "--seeds", "1", f"--arguments={words} --epochs 0.5", "--out", out)
    recipes.succeed("recursivemix_ablation.py", *arguments)
    table = json.loads((out / "table.json").read_text())
    assert [row["name"] for row in table["rows"].values()] == ["unshared", "shared"]
    assert (table["table"], table["arguments"], table["seeds"]) == ("4a", f"{words} --epochs 0.5", [0])
    said = (out / "table.txt").read_text().splitlines()
    assert said[0] == "Table 4a: weights of the two linear layers" and said[2].startswith(f"{words} --epochs 0.5  last")
    assert all(set(row["test_accuracy_last"]) == {"mean"} for row in table["rows"].values())
    before = {path: path.stat().st_mtime_ns for path in out.glob("*-seed*/result.json")}
    assert len(before) == 2 and (out / "table.png").exists()
    recipes.succeed("recursivemix_ablation.py", *arguments, "--resume")
    assert before == {path: path.stat().st_mtime_ns for path in out.glob("*-seed*/result.json")}


# --- bad input -----------------------------------------------------------------------------------------------

BAD = {
    "alpha": (("--method.alpha", "0"), "--method.alpha: 0.0 should be greater than 0"),
    "alpha above": (("--method.alpha", "1.1"), "--method.alpha: 1.1 should be less than or equal to 1"),
    "batch": (("--batch", "0"), "--batch: 0 should be greater than or equal to 1"),
    "batch of all": (("--batch", "100"), "error: batch = 100: larger than the 72"),
    "network": (("--network", "resnet19"), "network: 'resnet19' is unknown"),
    "no map": (("--network", "vit_tiny_patch16_224"), "network: VisionTransformer gives features"),
    "width": (("--width", "0"), "--width: 0.0 should be greater than 0"),
    "width of no network": (("--width", "0.3"), "width: 0.3 is not a positive multiple of 1/8"),
    "epochs": (("--epochs", "0"), "--epochs: 0.0 should be greater than 0"),
    "rate": (("--rate", "-1"), "--rate: -1.0 should be greater than 0"),
    "warmup": (("--warmup", "-1"), "--warmup: -1.0 should be greater than or equal to 0"),
    "smoothing": (("--label-smoothing", "1.5"), "--label-smoothing: 1.5 should be less than or equal to 1"),
    "erasing": (("--erasing", "2"), "--erasing: 2.0 should be less than or equal to 1"),
    "crop": (("--crop", "17"), "crop: 17 pixels of images of 16"),
    "decay": (("--ema-decay", "1"), "--ema-decay: 1.0 should be less than 1"),
    "consistency alone": (("--method.no-history",), "consistency: there is nothing to be consistent with"),
    "consistency": (("--method.weight-consistency", "-1"), "--method.weight-consistency: -1.0 should be greater than"),
    "interpolation": (("--method.interpolation", "cubic"), "--method.interpolation"),
    "labels": (("--labels", "90"), "labels = 90: npz:"),
    "validation": (("--validation", "80"), "validation = 80: npz:"),
    "width beyond": (("--width", "9"), "--width: 9.0 should be less than or equal to 8"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_and_leaves_no_run(recipes, refuse, toy, name):
    arguments, words = BAD[name]
    assert words in (recipes.refuse if name == "labels" else refuse)("recursivemix.py", *tiny(toy, "bad", *arguments))
    assert not (recipes.folder / "bad").exists()


@pytest.mark.parametrize(("methods", "words"), [
    (("cutmax",), "'cutmax' for argument '--methods'. Expected one of ('none', 'mixup'"),
    (("cutmix", "cutmix"), "--methods: ['cutmix', 'cutmix'] should be one or more, each once"),
])  # fmt: skip
def test_unknown_methods_are_refused(recipes, toy, methods, words):
    assert words in recipes.refuse("mixing_baselines.py", *tiny(toy, "bad", "--methods", *methods))


def test_an_ablation_says_no(recipes, refuse):
    assert "--seeds: 0 should be greater than" in refuse("recursivemix_ablation.py", "--seeds", "0")
    assert "--table" in refuse("recursivemix_ablation.py", "--table", "3")
    assert "arguments: " in recipes.refuse("recursivemix_ablation.py", "--arguments", "'")


@pytest.mark.parametrize("recipe", ["recursivemix.py", "mixing_baselines.py", "recursivemix_ablation.py"])
def test_help_names_the_presets(recipes, recipe):
    recipes.succeed(recipe, "--help")
    assert "--preset NAME takes the values of one of: smoke" in recipes.stdout()
