"""The command: what it prints, writes and refuses. In this process where possible."""

import csv
import importlib.util
import json
import math
import os
import resource
import shutil
import subprocess
import sys
from dataclasses import dataclass, fields, is_dataclass, replace
from operator import attrgetter
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image

import hybridgen
from hybridgen import cli
from hybridgen.assets import bundled
from hybridgen.cli import COMMANDS, command, main
from hybridgen.commands import train
from hybridgen.commands.mixing import MIXING_STUDIES
from hybridgen.commands.options import load
from hybridgen.data.datasets import Part, load_dataset
from hybridgen.data.sources import Files, InMemory, decode
from hybridgen.data.splits import Split, make_split
from hybridgen.errors import InputError, exit_codes
from hybridgen.evaluation.explore import Explorer, Server
from hybridgen.evaluation.export import BLOCK, Row
from hybridgen.evaluation.figures import image_table
from hybridgen.evaluation.grid import SMALL as SMALL_LETTERS
from hybridgen.evaluation.grid import choose_parents, hybrid_grid, letters, sample_grid
from hybridgen.evaluation.oracle import Training, save_oracle, train_oracle
from hybridgen.evaluation.studies import STUDIES
from hybridgen.hybridizer import Hybridizer, Origin
from hybridgen.networks.autoencoder import Architecture, SemanticAutoencoder
from hybridgen.networks.classifiers import Classifier, load_classifier, save_classifier
from hybridgen.networks.registry import make_network
from hybridgen.settings import checked, flags, plain
from hybridgen.training.engine import make_accelerator

spec = importlib.util.spec_from_file_location("recipes_as_processes", Path(__file__).with_name("test_recipes.py"))
processes = importlib.util.module_from_spec(spec)
spec.loader.exec_module(processes)
recipes = processes.recipes  # fixture
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}
ONE = ["--threads", "1"]


@dataclass
class Said:
    """What a command left behind."""

    code: int
    out: str
    err: str


@pytest.fixture
def run(capsys):
    """Runs the command in this process."""

    def command(*arguments: object) -> Said:
        code = 0
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as stop:
            code = int(stop.code or 0)
        captured = capsys.readouterr()
        return Said(code, captured.out, captured.err)

    return command


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits-m")


@pytest.fixture(scope="module")
def artefact(tmp_path_factory, digits) -> Path:
    """An untrained hybridizer."""
    folder = tmp_path_factory.mktemp("artefact") / "tiny"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        architecture = Architecture(image_size=16, network="leaky-wrn-10-1", generator_channels=(8, 8, 8))
        network = SemanticAutoencoder(architecture)
    Hybridizer(network, Origin("digits-m", digits.fingerprint, "0" * 16, digits.classes)).save_pretrained(folder)
    return folder


def test_a_hybridizer_is_loaded_to_the_device(artefact, monkeypatch):
    accelerator = Accelerator(cpu=True)
    monkeypatch.setattr(Accelerator, "device", torch.device("meta"))
    assert {parameter.device.type for parameter in load(str(artefact), accelerator).parameters()} == {"meta"}


@pytest.fixture(scope="module")
def oracle(tmp_path_factory, digits) -> Path:
    folder = tmp_path_factory.mktemp("oracle") / "quick"
    training = Training(steps=10, batch_size=16, network="leaky-wrn-10-1")
    trained = train_oracle(
        digits, make_accelerator(precision="fp32", threads=1), training, folder.with_name("training")
    )
    save_oracle(trained, folder, digits, training)
    return folder


@pytest.fixture
def images(tmp_path) -> list[Path]:
    """Files of other sizes and modes."""
    paths = []
    for index, (mode, size) in enumerate((("RGB", (20, 16)), ("L", (40, 30)), ("RGBA", (9, 9)))):
        paths.append(tmp_path / f"{index}.png")
        Image.new(mode, size, 60 * (index + 1) if mode == "L" else (60 * (index + 1),) * len(mode)).save(paths[-1])
    return paths


def rows_of(folder: Path) -> list[Row]:
    with (folder / "metadata.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    assert header == list(Row._fields)
    return [Row(*row) for row in rows]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# --- help and version -----------------------------------------------------------------------------------


def test_overview_lists_every_command(run):
    said = run("--help")
    assert said.code == 0
    for name in ("train", *COMMANDS):
        assert f"  {name} " in said.out


POSITIONAL = (
    ("study", "name"), ("score", "runs"), ("export", "model"), ("predict", "images"),
    ("report", "runs"), ("push", "model"), ("push", "repository"),
)  # fmt: skip


@pytest.mark.parametrize("name", COMMANDS)
def test_help_names_every_option(run, name):
    said = run(name, "--help")
    assert said.code == 0 and said.err == ""
    assert f"hybridgen {name}" in said.out
    for field in command(name).__dataclass_fields__:
        assert f"--{field.replace('_', '-')}" in said.out or (name, field) in POSITIONAL
    for field in command(name).__dataclass_fields__.values():
        assert field.name in ("semantic", "nonsemantic") or "MISSING" not in said.out


# --- train ----------------------------------------------------------------------------------------------


@pytest.fixture
def trained(run, monkeypatch):
    """Runs a recipe in this process, whose own main module comes back."""
    monkeypatch.setattr(sys, "argv", sys.argv)
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])
    return lambda *arguments: run("train", *arguments)


@pytest.mark.parametrize("arguments", [[], ["--help"]])
def test_train_lists_every_recipe_by_its_first_sentence(run, arguments):
    said = run("train", *arguments)
    files = sorted((Path(__file__).parent.parent / "recipes").glob("*.py"))
    names = [path.stem.replace("_", "-") for path in files]
    if not arguments:
        refused(said, "a recipe is missing", *names)
        return
    rows = [line.split(maxsplit=1) for line in said.out.splitlines() if line.startswith("  ")]
    assert [name for name, _ in rows] == names
    sentences = dict(rows)
    assert sentences["fixmatch"] == "Train FixMatch; given a hybridizer of any method, without and with its hybrids."
    assert all(sentence.endswith(".") and len(sentence) > 30 for sentence in sentences.values())


def test_train_runs_a_recipe_with_its_arguments(trained, tmp_path):
    """By either spelling; its help and its errors are the recipe's, under the name that was typed."""
    said = trained("scimix-fixmatch", "--help")
    assert said.code == 0 and "usage: hybridgen train scimix-fixmatch " in said.out and "--hybrids.alpha" in said.out
    assert "usage: hybridgen train mean-teacher " in trained("mean_teacher", "--help").out
    refused(trained("scimix_fixmatch", "--labels", "0", "--out", tmp_path / "run"), "--labels: 0 should be greater")
    data = tmp_path / "toy.npz"
    pixels, labels = np.random.RandomState(0).randint(0, 255, (40, 16, 16, 3), np.uint8), np.arange(40) % 2
    np.savez(data, x_train=pixels, y_train=labels, x_test=pixels[:20], y_test=labels[:20])
    given = ("--data", f"npz:{data}", "--validation", 4, "--batch", 16, "--epochs", 0.5, "--network", "wrn-10-1")
    done = trained("mixmo", "--methods", "plain", *given, *ONE, "--out", tmp_path / "run")
    assert done.code == 0 and "Plain network" in done.out
    assert (tmp_path / "run" / "plain-network-seed0" / "network.safetensors").is_file()


@pytest.mark.parametrize(("screen", "rank", "said"), [(True, None, 1), (True, "1", 0), (False, None, 0)])
def test_a_terminal_hears_at_once_that_a_recipe_starts(trained, monkeypatch, screen, rank, said):
    """From the first process alone; torch comes after it."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: screen)
    if rank:
        monkeypatch.setenv("LOCAL_RANK", rank)
    heard = trained("scimix-fixmatch", "--help").err
    assert [heard.count(f"scimix-fixmatch: {what} is loaded") for what in ("PyTorch", "the recipe")] == [said] * 2


def test_recipes_of_other_names_are_refused_with_the_nearest(run):
    refused(run("train", "scimix_fixmach"), "unknown recipe 'scimix_fixmach'; perhaps you meant scimix-fixmatch; there")
    refused(run("train", "zzz"), "unknown recipe 'zzz'; there are ablation, adain")


def test_wheels_carry_recipes_and_assets_inside_the_package(tmp_path, monkeypatch):
    """And what carries neither says so."""
    package = tmp_path / "site" / "hybridgen"
    monkeypatch.setattr(hybridgen, "__file__", str(package / "__init__.py"))
    for words, ask in (("recipes: this", train.recipes), (r"hybridizer: digits-m-scimix is .*assets: this", bundled)):
        with pytest.raises(InputError, match=f"^{words} installation does not carry them"):
            ask()
    (package / "_recipes").mkdir(parents=True)
    (package / "_recipes" / "some_thing.py").touch()
    (package / "_assets" / "hybridizers" / "one").mkdir(parents=True)
    for others in ("recipes", "assets"):  # of another package
        (tmp_path / "site" / others).mkdir()
    assert train.recipes() == {"some-thing": package / "_recipes" / "some_thing.py"}
    assert bundled("one") == package / "_assets" / "hybridizers" / "one"
    with pytest.raises(InputError, match=r"^hybridizer: this installation does not carry digits-m-scimix"):
        bundled()


def test_version(run):
    assert run("--version").out == f"hybridgen {hybridgen.__version__}\n"


def test_help_version_and_mistakes_do_not_wait_for_torch():
    """Nor does the help of one command for the others."""
    script = (
        "import sys; from hybridgen.cli import main\n"
        "try: main(['hybridize', '--help'])\n"
        "except SystemExit: pass\n"
        "commands = {name for name in sys.modules if name.startswith('hybridgen.commands.')}\n"
        "assert commands == {f'hybridgen.commands.{name}' for name in ('hybridize', 'options')}, commands\n"
        "main(['--help']); main(['--version']); main(['train', '--help'])\n"
        "for line in ('evaluate --help', 'score --help', 'train nothing', 'study cam --help',\n"
        "             'hybridise', 'hybridize --out',\n"
        "             'hybridize --out g.png --rows 0', 'hybridize --out f', 'study nothing', 'evaluate --seed x'):\n"
        "    try: main(line.split())\n"
        "    except SystemExit: pass\n"
        "    else: raise AssertionError(line)\n"
        "slow = {'torch', 'torchvision', 'numpy', 'accelerate', 'jaxtyping', 'matplotlib', 'PIL'} & set(sys.modules)\n"
        "assert not slow, slow"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("line", ["--help", "--version", "hybridize --help", "study cam --help"])
def test_a_reader_who_has_gone_needs_no_word(line, unbuffered):
    """As `hybridgen --help | head -1`, when head is done before the command is."""
    readable, writable = os.pipe()
    os.close(readable)
    command = [sys.executable, "-m", "hybridgen.cli", *line.split()]
    try:
        environment = ENVIRONMENT | {"PYTHONUNBUFFERED": unbuffered}
        done = subprocess.run(command, stdout=writable, stderr=subprocess.PIPE, text=True, env=environment)
    finally:
        os.close(writable)
    assert (done.returncode, done.stderr) == (141, "")


def test_a_broken_pipe_of_another_kind_is_told(capsys):
    with pytest.raises(BrokenPipeError, match="a worker"), exit_codes():
        raise BrokenPipeError("a worker has gone")


def test_bench_is_wired_to_its_module(run, monkeypatch):
    import types

    called = []
    measure = types.ModuleType("hybridgen.bench.measure")
    measure.run = lambda **how: called.append(how)
    monkeypatch.setitem(sys.modules, "hybridgen.bench.measure", measure)
    assert run("bench", "--json").code == 0
    assert run("bench", "--only", "ema", "fixmatch", "--rounds", 3, "--threads", 2, "--quick").code == 0
    assert called == [
        dict(json=True, only=(), rounds=None, threads=None, quick=False),
        dict(json=False, only=("ema", "fixmatch"), rounds=3, threads=2, quick=True),
    ]


# --- split ----------------------------------------------------------------------------------------------


def test_split_is_written_and_described(run, tmp_path):
    said = run("split", "--labels", 100, "--seed", 3, "--validation", 50, "--out", tmp_path / "split.json")
    split = Split.load(tmp_path / "split.json")
    assert said.code == 0
    assert "100 labelled" in said.out and "50 validation" in said.out and split.hash in said.out
    assert len(split.unlabelled) == len(load_dataset("digits-m").train) - 150
    assert split.seed == 3


def test_splits_of_files_need_no_size(run, tmp_path):
    """Of images of any sizes; it belongs to them at every size."""
    for name, side in (("cat", 20), ("dog", 33)):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for i in range(5):
            Image.new("RGB", (side + i, 24), (40 * i, side, 0)).save(tmp_path / "pets" / name / f"{i}.png")
    said = run("split", "--data", tmp_path / "pets", "--labels", 4, "--validation", 2, "--out", tmp_path / "split.json")
    assert said.code == 0 and "4 labelled, 2 unlabelled, 2 validation" in said.out
    Split.load(tmp_path / "split.json").check(load_dataset(str(tmp_path / "pets"), image_size=16))


def test_split_is_never_overwritten(run, tmp_path):
    arguments = ("split", "--labels", 100, "--out", tmp_path / "split.json")
    run(*arguments)
    before = (tmp_path / "split.json").read_bytes()
    said = run(*arguments, "--seed", 1)
    assert said.code == 2 and "never overwritten" in said.err
    assert (tmp_path / "split.json").read_bytes() == before


# --- predict --------------------------------------------------------------------------------------------


@pytest.fixture
def model(tmp_path) -> Path:
    """A run's folder with a classifier of three classes and images of 16 pixels, and what it is."""
    torch.manual_seed(0)
    classifier = Classifier(make_network("wrn-10-1", 3), mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25)).eval()
    folder = tmp_path / "run"
    classes = ("cat", "dog", "fox")
    save_classifier(classifier, folder / "network.safetensors", name="wrn-10-1", classes=classes, image_size=16)
    return folder


def probabilities_of(model: Path, images: list[Path]) -> torch.Tensor:
    pixels = torch.stack([decode(path, 16) for path in images]).float() / 255
    with torch.no_grad():
        return load_classifier(model / "network.safetensors")[0](pixels).softmax(dim=1)


def test_images_of_any_kind_have_a_class(run, model, images, tmp_path):
    """Files and folders, in their order; a file of the model will do."""
    (tmp_path / "more" / "deep").mkdir(parents=True)
    shutil.copy(images[1], tmp_path / "more" / "deep" / "x.png")
    expected = probabilities_of(model, [images[2], tmp_path / "more" / "deep" / "x.png"])
    for path in (model, model / "network.safetensors"):
        said = run("predict", "--model", path, images[2], tmp_path / "more", *ONE)
        rows = [line.rsplit(maxsplit=2) for line in said.out.splitlines()]
        assert said.code == 0 and [name for name, *_ in rows] == [str(images[2]), str(tmp_path / "more/deep/x.png")]
        for row, p in zip(rows, expected, strict=True):
            assert row[1:] == [("cat", "dog", "fox")[p.argmax()], f"{p.max():.3f}"]


def test_a_table_of_predictions_has_every_probability(run, model, images, tmp_path):
    out = tmp_path / "out.csv"
    assert "out.csv: 3 images" in run("predict", "--model", model, *images, "--batch", 2, "--out", out, *ONE).out
    header, *rows = list(csv.reader(out.open()))
    assert header == ["image", "class", "probability", "cat", "dog", "fox"]
    for row, path, p in zip(rows, images, probabilities_of(model, images), strict=True):
        assert row[0] == str(path) and row[1] == header[3 + p.argmax()] and float(row[2]) == max(map(float, row[3:]))
        assert [float(each) for each in row[3:]] == pytest.approx(p.tolist(), abs=1e-5)


def test_images_whose_names_are_not_utf_8_are_classified(run, model, images, tmp_path):
    odd = tmp_path / "some" / os.fsdecode(b"f\xfcnf.png")
    odd.parent.mkdir()
    shutil.copy(images[0], odd)
    said = run("predict", "--model", model, odd.parent, *ONE)
    assert said.code == 0 and said.out.startswith(rf"{odd.parent}/f\xfcnf.png  ")
    assert run("predict", "--model", model, odd.parent, "--out", tmp_path / "out.csv", *ONE).code == 0
    assert list(csv.reader((tmp_path / "out.csv").open()))[1][0] == rf"{odd.parent}/f\xfcnf.png"


def test_test_images_of_a_data_set_are_told_with_their_labels(run, model, tmp_path):
    for name in ("cat", "dog", "fox"):
        for i in range(2):
            (tmp_path / "pets" / name).mkdir(parents=True, exist_ok=True)
            colour = (90 * i, 10 * len(name), 30 * ord(name[0]) % 256)
            Image.new("RGB", (20, 24), colour).save(tmp_path / "pets" / name / f"{i}.png")
    out = tmp_path / "out.csv"
    assert run("predict", "--model", model, "--data", tmp_path / "pets", "--out", out, *ONE).code == 0
    header, *rows = list(csv.reader(out.open()))
    assert header == ["image", "class", "probability", "label", "cat", "dog", "fox"]
    assert [row[0] for row in rows] == ["test/0", "test/1", "test/2"] and [row[3] for row in rows] == header[4:]


def test_what_cannot_be_classified_leaves_no_table(run, model, images, tmp_path):
    words = tmp_path / "words.png"
    words.write_text("no image")
    out = tmp_path / "out.csv"
    (tmp_path / "empty").mkdir()
    for arguments, said in (
        ((model, images[0], words, "--out", out), "words.png: not a readable image"),
        ((model, tmp_path / "nowhere.png", "--out", out), "nowhere.png: not a readable image"),
        ((model, tmp_path / "empty", "--out", out), "empty: no images in it"),
        ((model, "--out", out), "IMAGES: missing; give images, or --data"),
        ((model, images[0], "--data", "digits-m", "--out", out), "IMAGES: given beside --data"),
        ((model, images[0], "--out", tmp_path / "out.txt"), "a .csv file is needed"),
        (
            (tmp_path / "empty", images[0], "--out", out),
            "no classifier there; a finished run's folder, or its network.safe",
        ),
        ((model.parent, images[0], "--out", out), f"no classifier there; give one of {model}\n"),
        ((words, images[0], "--out", out), "words.png: damaged, or not a safetensors file"),
    ):
        refused(run("predict", "--model", *arguments, *ONE), said)
    assert not out.exists() and not list(tmp_path.glob(".*"))


# --- grid -----------------------------------------------------------------------------------------------


def test_grid_shows_parents_along_its_edges(run, artefact, digits, tmp_path):
    said = run(
        *("hybridize", "--hybridizer", artefact, "--out", tmp_path / "grid.png", "--seed", 5),
        *("--rows", 3, "--columns", 2, *ONE),
    )
    assert said.code == 0 and "3 semantic parents" in said.out
    shown = np.asarray(Image.open(tmp_path / "grid.png"))
    assert shown.shape == (2 + 8 + 4 * 66, 2 + 8 + 3 * 66, 3)
    semantic, nonsemantic = choose_parents(digits.test, 3, 2, 5)
    assert digits.test.labels[semantic].tolist() == [0, 1, 2]
    assert not set(semantic.tolist()) & set(nonsemantic.tolist())
    five = Part(InMemory(digits.test.images.pixels[:5]), digits.test.labels[:5])
    assert sorted(index for edge in choose_parents(five, 2, 3, 0) for index in edge.tolist()) == [0, 1, 2, 3, 4]
    for row, index in enumerate(semantic.tolist()):
        top = 2 + 8 + (row + 1) * 66
        parent = shown[top : top + 64 : 4, 2:66:4].transpose(2, 0, 1)
        np.testing.assert_array_equal(parent, digits.test.images.pixels[index].numpy())
    for column, index in enumerate(nonsemantic.tolist()):
        left = 2 + 8 + (column + 1) * 66
        parent = shown[2:66:4, left : left + 64 : 4].transpose(2, 0, 1)
        np.testing.assert_array_equal(parent, digits.test.images.pixels[index].numpy())
    hybridizer = Hybridizer.from_pretrained(artefact)
    x_c, x_r = (digits.test.images.gather(i).float() / 255 for i in (semantic, nonsemantic))
    hybrid = hybridizer.hybridize(semantic=x_c[2:], nonsemantic=x_r[1:])[0].clamp(0, 1).numpy() * 255
    corner = shown[-66:-2:4, -66:-2:4].transpose(2, 0, 1)
    np.testing.assert_allclose(corner, hybrid, atol=1)


@pytest.mark.parametrize(
    ("given", "part", "sides"),
    [((), "test", (10, 10)), (("--part", "train", "--rows", "2"), "train", (2, 10)),
     (("--part", "test", "--columns", "3"), "test", (10, 3))],
)  # fmt: skip
def test_a_grid_is_of_ten_by_ten_test_images_unless_told(
    run, artefact, digits, tmp_path, monkeypatch, given, part, sides
):
    seen = []
    monkeypatch.setattr(
        "hybridgen.evaluation.grid.hybrid_grid",
        lambda hybridizer, *parents: seen.extend(parents) or torch.zeros(3, 2, 2),
    )
    said = run("hybridize", "--hybridizer", artefact, "--out", tmp_path / "g.png", "--seed", 4, *given, *ONE)
    assert said.out == f"{tmp_path / 'g.png'}: {sides[0]} semantic parents (left) by {sides[1]} non-semantic (top)\n"
    for images, chosen in zip(seen, choose_parents(getattr(digits, part), *sides, 4), strict=True):
        assert torch.equal(images, getattr(digits, part).images.gather(chosen).float() / 255)


def test_a_grid_of_few_images_is_of_half_of_them_each_way(artefact, digits):
    hybridizer = Hybridizer.from_pretrained(artefact)
    for count, side in ((30, 8), (7, 3)):
        part = Part(InMemory(digits.test.images.pixels[:count]), digits.test.labels[:count])
        parents = (part.images.gather(chosen) / 255 for chosen in choose_parents(part, side, side, 5))
        grid, expected = sample_grid(hybridizer, part, 5), hybrid_grid(hybridizer, *parents)
        assert torch.equal(grid[:, :, -expected.shape[2] :], expected)


def test_names_of_classes_are_written_in_more_letters_than_those_of_english():
    font = letters(14)
    unknown = bytes(font.getmask("\uffff"))
    assert not [letter for letter in "ÄßéñłжλÅ" if bytes(font.getmask(letter)) == unknown]


def test_a_sample_has_names_and_reconstructions_left_of_its_rows(artefact, digits):
    hybridizer = Hybridizer.from_pretrained(artefact)
    names = ("nought", *"abcdefgh", "an uncommonly long name")
    hybridizer.origin = replace(hybridizer.origin, classes=names)
    part = Part(InMemory(digits.test.images.pixels[4:10]), digits.test.labels[4:10].clone())
    part.labels[:] = torch.tensor([9, 0, 3, 9, 0, 3])
    semantic = choose_parents(part, 3, 3, 5)[0]
    parents = part.images.gather(semantic) / 255
    again = hybridizer.hybridize(semantic=parents, nonsemantic=parents).clamp(0, 1)
    left = sample_grid(hybridizer, part, 5)[:, :, : -hybrid_grid(hybridizer, parents, parents).shape[2]]
    for row, index in enumerate(semantic):
        top = 2 + 8 + (row + 1) * 66
        torch.testing.assert_close(left[:, top : top + 64 : 4, -64::4].clamp(0, 1), again[row])
        written = left[:, top : top + 64, :-66]
        inked = (written < 0.5).flatten(0, 1).any(dim=0).nonzero()
        width = letters(14).getlength(names[part.labels[index]])
        assert abs(int(inked.max() - inked.min()) + 1 - width) <= 4 and inked.max() >= written.shape[2] - 6
    assert letters(SMALL_LETTERS).getlength("reconstructed") <= 64  # the side of an image
    assert (left[:, 2:66, -64:] < 0.5).any() and (left[:, :60, :-64] == 1).all()  # over reconstructions is written so
    part.labels[:] = -1  # nobody knows the classes
    assert (sample_grid(hybridizer, part, 5)[:, 70:, :2] == 1).all()


@pytest.mark.parametrize(("size", "shown"), [(16, 64), (32, 64), (48, 96), (96, 96)])
def test_grid_is_legible_at_any_size(size, shown):
    with torch.random.fork_rng():
        architecture = Architecture(image_size=size, network="leaky-wrn-10-1", generator_channels=(4, 4))
        hybridizer = Hybridizer(SemanticAutoencoder(architecture), Origin("x", "0", "0", tuple("0123456789")))
    grid = hybrid_grid(hybridizer, torch.rand(1, 3, size, size), torch.rand(2, 3, size, size))
    assert grid.shape == (3, 2 + 8 + 2 * (shown + 2), 2 + 8 + 3 * (shown + 2))


def test_grid_of_files_of_any_size_and_mode(run, artefact, images, tmp_path):
    said = run(
        *("hybridize", "--hybridizer", artefact, "--out", tmp_path / "new" / "grid.png", *ONE),
        *("--semantic", *images[:2], "--nonsemantic", *images),
    )
    assert said.code == 0
    assert Image.open(tmp_path / "new" / "grid.png").size == (2 + 8 + 4 * 66, 2 + 8 + 3 * 66)


# --- folder ---------------------------------------------------------------------------------------------

COUNT = 2 * BLOCK + 10


@pytest.fixture(scope="module")
def folder(artefact, tmp_path_factory) -> Path:
    """Hybrids written by one process."""
    out = tmp_path_factory.mktemp("hybrids") / "out"
    main(["hybridize", "--hybridizer", str(artefact), "--out", str(out), "--count", str(COUNT), *ONE])
    return out


def test_folder_holds_what_its_table_says(folder, artefact, digits):
    rows = rows_of(folder)
    hybridizer = Hybridizer.from_pretrained(artefact)
    assert len(rows) == COUNT
    assert [int(Path(row.file_name).stem) for row in rows] == list(range(COUNT))
    assert set(contents(folder)) == {row.file_name for row in rows} | {"metadata.csv", "hybrids.json"}
    images = digits.train.images.pixels.float() / 255
    for row in rows[:: COUNT // 5]:
        c, r = int(row.semantic_parent), int(row.nonsemantic_parent)
        assert c != r
        assert row.label == digits.classes[digits.train.labels[c]] == Path(row.file_name).parent.name
        assert row.label_source == "given"
        written = torch.from_numpy(np.array(Image.open(folder / row.file_name))).permute(2, 0, 1)[None].float() / 255
        hybrid = hybridizer.hybridize(semantic=images[c][None], nonsemantic=images[r][None])
        torch.testing.assert_close(written, hybrid.clamp(0, 1), atol=0.51 / 255, rtol=0)
        probabilities = hybridizer.classify(written).softmax(1)[0]
        assert row.predicted == digits.classes[probabilities.argmax()]
        assert float(row.confidence) == pytest.approx(probabilities.max().item(), abs=2e-4)
        assert row.consistent == str(int(row.predicted == row.label))
        closer = (written - images[r]).norm() < (written - images[c]).norm()
        assert row.closer_to_nonsemantic == str(int(closer))
    assert len({row.semantic_parent for row in rows}) > COUNT * 0.8


def test_what_is_said_of_a_folder_is_what_its_table_says(run, folder, artefact, tmp_path):
    """Also where nothing is left to be made; and hybrids of another hybridizer are not added to it."""
    rows = rows_of(folder)
    consistent, closer = (sum(getattr(row, f) == "1" for row in rows) for f in ("consistent", "closer_to_nonsemantic"))
    assert consistent != closer
    said = run("hybridize", "--hybridizer", artefact, "--out", folder, "--count", COUNT, *ONE)
    assert said.out == (
        f"{folder}: {COUNT} hybrids, 0 of them made now; by the hybridizer's own classifier {consistent / COUNT:.1%} "
        f"have the class of their semantic parent; {closer / COUNT:.1%} are nearer to their non-semantic parent\n"
        "classes are given of all parents, also where the hybridizer's split has none; --split hides these\n"
    )
    other = Hybridizer.from_pretrained(artefact)
    next(other.parameters()).data += 1
    other.save_pretrained(tmp_path / "other")
    refused(
        run("hybridize", "--hybridizer", tmp_path / "other", "--out", folder, "--count", COUNT, *ONE),
        f"out: {folder} holds hybrids of another hybridizer (",
    )


def test_folder_is_continued(run, folder, artefact, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(folder, out)
    rows = rows_of(out)
    gone = [rows[0].file_name, rows[BLOCK].file_name, rows[-1].file_name]
    for file in gone:
        (out / file).unlink()
    times = {file: (out / file).stat().st_mtime_ns for file in (row.file_name for row in rows) if file not in gone}
    said = run("hybridize", "--hybridizer", artefact, "--out", out, "--count", COUNT, *ONE)
    assert said.code == 0 and "3 of them made now" in said.out
    assert contents(out) == contents(folder)
    assert all((out / file).stat().st_mtime_ns == time for file, time in times.items())


def test_interrupted_folder_is_continued(run, folder, artefact, tmp_path):
    """As after SIGKILL: no table yet, rows of one block, the last of them cut off, a file left aside."""
    out = tmp_path / "out"
    shutil.copytree(folder, out)
    rows = rows_of(out)
    (out / "metadata.csv").unlink()
    (out / ".unmerged").mkdir()
    lines = [",".join(row) for row in rows[:BLOCK]]
    (out / ".unmerged" / "0.csv").write_text("\n".join(lines)[:-20])
    for row in rows[BLOCK:]:
        (out / row.file_name).unlink()
    (out / Path(rows[0].file_name).parent / ".000099.png.7.tmp").write_bytes(b"half")
    said = run("hybridize", "--hybridizer", artefact, "--out", out, "--count", COUNT, *ONE)
    assert f"{COUNT - BLOCK + 1} of them made now" in said.out
    assert contents(out) == contents(folder)


def test_folder_of_a_process_killed_before_its_first_hybrid_is_taken(run, folder, artefact, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / ".hybrids.json.7.tmp").write_bytes(b"half")
    run("hybridize", "--hybridizer", artefact, "--out", out, "--count", COUNT, *ONE)
    assert contents(out) == contents(folder)


def test_two_processes_equal_one(recipes, folder, artefact, tmp_path):
    out = tmp_path / "two"
    line = ("hybridize", "--hybridizer", artefact, "--out", out, "--count", COUNT, *ONE)
    recipes.succeed(cli.__file__, *line, processes=2)
    assert recipes.stdout().count(f"{COUNT} of them made now") == 1
    assert contents(out) == contents(folder)


def test_folder_of_other_arguments_is_refused(run, folder, artefact, tmp_path):
    before = contents(folder)
    common = ("hybridize", "--hybridizer", artefact, "--out", folder, *ONE)
    for change, named in ((("--count", 5), "count"), (("--count", COUNT, "--seed", 1), "seed")):
        said = run(*common, *change)
        assert said.code == 2 and f"another {named}" in said.err
    said = run(*common, "--count", COUNT, "--part", "test")
    assert said.code == 2 and "another images" in said.err
    (tmp_path / "mine.txt").write_text("mine")
    said = run("hybridize", "--hybridizer", artefact, "--out", tmp_path, "--count", 5, *ONE)
    assert said.code == 2 and "not empty" in said.err
    assert contents(folder) == before


def test_images_of_unknown_class_take_the_predicted_one(run, artefact, images, tmp_path):
    out = tmp_path / "out"
    said = run(
        *("hybridize", "--hybridizer", artefact, "--out", out, "--count", 5, *ONE),
        *("--semantic", *images, "--nonsemantic", images[0]),
    )
    assert said.code == 0
    rows = rows_of(out)
    assert {row.label_source for row in rows} == {"predicted"}
    assert {row.nonsemantic_parent for row in rows} == {str(images[0])}
    hybridizer = Hybridizer.from_pretrained(artefact)
    parents = Files([row.semantic_parent for row in rows], 16).gather(torch.arange(5)) / 255
    seen = hybridizer.classify(parents).argmax(dim=1).tolist()
    assert [row.label for row in rows] == [hybridizer.origin.classes[each] for each in seen]


def with_origin(artefact: Path, folder: Path, **changes: str) -> Path:
    hybridizer = Hybridizer.from_pretrained(artefact)
    Hybridizer(hybridizer.autoencoder, replace(hybridizer.origin, **changes)).save_pretrained(folder)
    return folder


def test_a_split_hides_classes_and_leaves_its_validation_out(run, artefact, digits, tmp_path):
    split = make_split(digits, labels=100, seed=1, validation=1000)
    split.save(tmp_path / "split.json")
    own = with_origin(artefact, tmp_path / "own", split_hash=split.hash)
    common = ("hybridize", "--data", "digits-m", "--count", 40, *ONE)
    said = run(*common, "--hybridizer", own, "--out", tmp_path / "out", "--split", tmp_path / "split.json")
    assert said.code == 0 and "--split" not in said.out and said.err.count("warning") == 0
    rows = rows_of(tmp_path / "out")
    parents = [(int(row.semantic_parent), int(row.nonsemantic_parent)) for row in rows]
    assert {index for pair in parents for index in pair} <= {*split.labelled, *split.unlabelled}
    assert all(c != r for c, r in parents) and len(set(parents)) > 35
    seen = Hybridizer.from_pretrained(own).classify(digits.train.images.pixels[[c for c, _ in parents]] / 255).argmax(1)
    for row, (c, _), guess in zip(rows, parents, seen.tolist(), strict=True):
        known = c in split.labelled
        assert row.label_source == ("given" if known else "predicted")
        assert row.label == digits.classes[digits.train.labels[c] if known else guess]
    assert {row.label_source for row in rows} == {"given", "predicted"}
    assert "--split hides" in run(*common, "--hybridizer", own, "--out", tmp_path / "all").out
    for more, word in (
        (("--hybridizer", artefact, "--split", tmp_path / "split.json"), "its labels would leak"),
        (("--hybridizer", own, "--split", tmp_path / "split.json", "--part", "test"), "--split"),
        (("--hybridizer", own, "--split", tmp_path / "none.json"), "none.json"),
    ):
        said = run(*common, "--out", tmp_path / "refused", *more)
        assert said.code == 2 and word in said.err and not (tmp_path / "refused").exists()


PHOTOGRAPHS = {"fingerprint": "0" * 64, "dataset": "photographs"}
WARNING = "warning: the hybridizer was trained on photographs, not on these images of digits-m\n"


def test_images_that_the_hybridizer_was_not_trained_on_are_told(run, artefact, tmp_path):
    other = with_origin(artefact, tmp_path / "other", **PHOTOGRAPHS)
    grid = ("hybridize", "--rows", 2, "--columns", 2, *ONE)
    said = run(*grid, "--hybridizer", other, "--out", tmp_path / "a.png")
    assert said.code == 0
    assert said.err.count(WARNING) == 1
    assert WARNING not in run(*grid, "--hybridizer", artefact, "--out", tmp_path / "b.png").err


def test_own_classes_must_be_the_hybridizers(run, artefact, tmp_path):
    for part in ("train", "test"):
        for name in ("cat", "dog"):
            (tmp_path / "own" / part / name).mkdir(parents=True)
            Image.new("RGB", (16, 16)).save(tmp_path / "own" / part / name / "0.png")
    said = run(
        *("hybridize", "--hybridizer", artefact, "--data", f"folder:{tmp_path / 'own'}"),
        *("--out", tmp_path / "out", "--count", 4, *ONE),
    )
    assert said.code == 2 and "cat, dog" in said.err
    assert not (tmp_path / "out").exists()


# --- evaluate -------------------------------------------------------------------------------------------


def test_evaluate_prints_rates(run, artefact, oracle, tmp_path):
    common = ("evaluate", "--hybridizer", artefact, "--oracle", oracle, "--repeats", 1, *ONE)
    plain = json.loads(run(*common, "--json").out)
    for key in ("semantic_transfer", "nonsemantic_preservation", "oracle_accuracy", "background_inheritance"):
        assert 0 <= plain[key] <= 1
    assert plain["data"] == "digits-m" and plain["semantic_parents"] == 500
    assert plain["mixup"]["nonsemantic_preservation"] == 0
    assert [plain[key] for key in ("repeats", "seed", "fda_beta")] == [1, 0, 0.1]
    other = json.loads(run(*common, "--json", "--seed", 3, "--fda-beta", 0.2).out)
    assert [other[key] for key in ("repeats", "seed", "fda_beta")] == [1, 3, 0.2]
    assert other["fda"] != plain["fda"] and other["mixup"] != plain["mixup"]
    said = run("evaluate", "--hybridizer", with_origin(artefact, tmp_path, **PHOTOGRAPHS), *common[3:])
    table = said.out
    assert (
        said.err.count(WARNING) == 1
        and f"{plain['semantic_transfer']:.1%}" in table
        and f"{plain['oracle_accuracy']:.1%}" in table
    )
    assert "MixUp" in table and "FDA" in table
    own, interval = plain["own_semantic_transfer"], plain["own_semantic_transfer_interval"]
    low, high = interval
    assert table.splitlines()[-1] == (
        f"semantic transfer by the hybridizer's own classifier: {own:.1%}  [{low:.1%}, {high:.1%}]"
    )


def test_evaluate_trains_and_keeps_an_oracle(run, artefact, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    common = ("evaluate", "--hybridizer", artefact, "--repeats", 1, "--json", *ONE)
    common += ("--oracle.steps", 10, "--oracle.network", "leaky-wrn-10-1")
    first, kept = run(*common), contents(tmp_path)
    assert {Path(file).name for file in kept} == {"oracle.json", "oracle.safetensors"}
    again = run(*common)
    assert json.loads(first.out) == json.loads(again.out)
    assert "oracle:" in first.err and "oracle:" not in again.err
    assert contents(tmp_path) == kept


@pytest.mark.parametrize("line", ["evaluate", "explore --oracle trained", "study probe --out {out}"])
def test_an_oracle_mirrors_as_its_hybridizers_training_did_or_as_is_asked(run, artefact, tmp_path, monkeypatch, line):
    asks(monkeypatch, "hybridgen.evaluation.oracle.oracle_of")
    of_letters = with_origin(artefact, tmp_path, training={"flip": "always"})
    words = line.format(out=tmp_path / "out").split()
    for hybridizer, given, expected in (
        (artefact, (), False),
        (of_letters, (), True),
        (of_letters, ("--flip", "never"), False),
        (artefact, ("--flip", "always"), True),
    ):
        with pytest.raises(Asked) as asked:
            run(*words, "--hybridizer", hybridizer, *given, *ONE)
        assert asked.value.args[0][1].flip is expected


# --- study ----------------------------------------------------------------------------------------------


def test_help_of_study_names_every_study(run):
    for line in (("study", "--help"), ("study", "nothing", "--help"), ("study", "--seed", "x", "-h")):
        said = run(*line)
        assert said.code == 0 and f"{{{','.join(STUDIES)}}}" in said.out


@pytest.mark.parametrize("name", STUDIES)
def test_study_prints_what_it_writes(run, artefact, oracle, tmp_path, name):
    common = ("study", name, "--hybridizer", artefact, "--oracle", oracle, "--repeats", 1, "--out", tmp_path, *ONE)
    more = {"probe": ("--probe-images", 60), "methods": ("--fda-beta", 0.2)}.get(name, ())
    said = run(*common, *more)
    assert said.code == 0, said.err
    assert said.out == (tmp_path / f"{name}.txt").read_text() + f"{tmp_path / name}.png\n"
    values = json.loads((tmp_path / f"{name}.json").read_text())
    assert (values["study"], values["data"], values["repeats"]) == (name, "digits-m", 1)
    assert values.get("probe_images") == (60 if name == "probe" else None)
    assert values.get("fda_beta") == (0.2 if name == "methods" else None)
    before = contents(tmp_path)
    assert set(before) == {f"{name}.{end}" for end in ("json", "txt", "png")}
    refused(run(*common, *more), f"{name}.json is there already")
    assert contents(tmp_path) == before


def test_study_that_cannot_be_made_trains_no_oracle(run, artefact, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    images, labels = np.zeros((30, 16, 16, 3), dtype=np.uint8), np.arange(30) % 10
    np.savez(tmp_path / "own.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    common = ("--hybridizer", artefact, "--data", f"npz:{tmp_path / 'own.npz'}", "--out", tmp_path / "out", *ONE)
    refused(run("study", "background", *common), "masks", "digits-m and mnist-m:PATH have them")
    np.savez(tmp_path / "own.npz", x_train=images, y_train=labels % 2, x_test=images, y_test=labels % 2)
    refused(run("study", "transfer", *common), "SciMix knows the classes 0, 1, 2")
    assert not (tmp_path / "cache").exists() and not (tmp_path / "out").exists()


def test_study_agrees_with_evaluate(run, artefact, oracle, tmp_path):
    common = ("--hybridizer", artefact, "--oracle", oracle, "--repeats", 1, "--seed", 3, *ONE)
    rates = json.loads(run("evaluate", *common, "--json").out)
    other = with_origin(artefact, tmp_path / "other", **PHOTOGRAPHS)
    assert run("study", "transfer", "--hybridizer", other, *common[2:], "--out", tmp_path).err.count(WARNING) == 1
    (own,) = json.loads((tmp_path / "transfer.json").read_text())["hybridizers"].values()
    for key in ("semantic_transfer", "semantic_transfer_interval", "nonsemantic_preservation"):
        assert own[key] == rates[key]


def test_study_over_the_course_of_training(run, artefact, oracle, tmp_path):
    for step in (10, 2):
        shutil.copytree(artefact, tmp_path / "snapshots" / f"step-{step}")
    common = ("study", "transfer", "--hybridizer", tmp_path / "snapshots", "--oracle", oracle, "--repeats", 1, *ONE)
    assert run(*common, "--out", tmp_path / "out").code == 0
    values = json.loads((tmp_path / "out" / "transfer.json").read_text())
    assert values["steps"] == [2, 10] and list(values["hybridizers"]) == ["SciMix step-2", "SciMix step-10"]


def test_two_processes_study_what_one_does(run, recipes, artefact, oracle, tmp_path):
    common = ("study", "transfer", "--hybridizer", artefact, "--oracle", oracle, "--repeats", 1, *ONE)
    run(*common, "--out", tmp_path / "one")
    recipes.succeed(cli.__file__, *common, "--out", tmp_path / "two", processes=2)
    one, two = (json.loads((tmp_path / folder / "transfer.json").read_text()) for folder in ("one", "two"))
    (own,), (other,) = one.pop("hybridizers").values(), two.pop("hybridizers").values()
    assert two == one
    for key, value in own.items():
        np.testing.assert_allclose(
            np.array(other[key], dtype=float), np.array(value, dtype=float), atol=2e-3, rtol=1e-4
        )


class Asked(Exception):
    """Of a function that is called in a test, with what."""


def asks(monkeypatch, place: str) -> None:
    """The function raises what it is called with."""

    def ask(*given: Any, **how: Any) -> None:
        raise Asked(given, how)

    monkeypatch.setattr(place, ask)


LYING = ("--data-root", "here", "--download")


@pytest.mark.parametrize(
    ("line", "data", "how"),
    [
        ("hybridize --out g.png --hybridizer {artefact} --data cifar10", "cifar10", {}),
        ("hybridize --out g.png --hybridizer {artefact}", "digits-m", {}),
        ("evaluate --hybridizer {artefact} --data svhn", "svhn", {}),
        ("study probe --out o --hybridizer {artefact} --data svhn", "svhn", {}),
        ("predict --model {model} --data cifar10", "cifar10", dict(whole=False)),
        ("split --labels 10 --out s.json --data cifar10", "cifar10", None),
        ("split --labels 10 --out s.json --data folder:a", "folder:a", dict(image_size=8, memory_limit=0)),
        ("study sequence --out o --data svhn", "svhn", dict(image_size=None)),
        ("study sequence --out o --image-size 24", "digits-m", dict(image_size=24)),
        ("study cam --out o --networks {network}", "digits-m", {}),
        ("study cam --out o --networks {network} --image-size 9", "digits-m", dict(image_size=9)),
    ],
)
def test_data_are_looked_for_where_they_lie(run, artefact, networks, model, tmp_path, monkeypatch, line, data, how):
    """At the size that the hybridizer or the network takes, here 16."""
    monkeypatch.chdir(tmp_path)
    asks(monkeypatch, "hybridgen.data.datasets.load_dataset")
    with pytest.raises(Asked) as asked:
        run(*line.format(artefact=artefact, network=networks[0], model=model).split(), *LYING)
    how = {} if how is None else {"image_size": 16} | how
    assert asked.value.args == ((data,), {"data_root": "here", "download": True} | how)


def test_data_of_finished_runs_are_looked_for_where_they_lie(run, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("hybridgen.evaluation.finished.find", lambda path: path)
    asks(monkeypatch, "hybridgen.evaluation.finished.dataset_of")
    lying = {"data_root": "here", "download": True}
    for line, given, how in (
        ("score r s --data svhn --image-size 9", (["r", "s"], "svhn"), {"image_size": 9}),
        ("score r", (["r"], None), {"image_size": None}),
        ("study sharing --out o --runs r s", (["r", "s"],), {}),
        ("study attention --out o --runs r", (["r"],), {}),
    ):
        with pytest.raises(Asked) as asked:
            run(*line.split(), *LYING)
        (left, *rest), options = asked.value.args
        assert ([str(path) for path in left], *rest) == given and options == lying | how


def test_maps_are_of_drawn_images_of_the_test_unless_told(run, networks, digits, monkeypatch, tmp_path):
    from hybridgen.evaluation.mixing_studies import drawn_batches, mixed_inputs

    asks(monkeypatch, "hybridgen.evaluation.cam.cam")
    for words, method, count, seed, steps, shape in (
        ((), "none", 64, 0, 1, (64, 1)),
        (("--mixed", "cutmix", "--count", 5, "--seed", 3, "--most", 1), "cutmix", 5, 3, 1, (5, 1)),
        (("--mixed", "recursivemix", "--count", 6), "recursivemix", 6, 0, 4, (6, 3)),
        (
            ("--mixed", "recursivemix", "--count", 6, "--steps", 2, "--classes", "3", "5"),
            "recursivemix",
            6,
            0,
            2,
            (6, 2),
        ),
    ):
        with pytest.raises(Asked) as asked:
            run("study", "cam", "--networks", *networks, "--out", tmp_path, *words, *ONE)
        of, inputs, chosen, classes, names = asked.value.args[0]
        source = torch.Generator().manual_seed(seed)
        made = mixed_inputs(method, drawn_batches(digits.test, 10, count, source), source)
        expected = [next(made) for _ in range(steps)][-1]
        assert torch.equal(inputs.images, expected.images) and torch.equal(inputs.targets, expected.targets)
        assert list(of) == ["none", "cutmix"] and classes == digits.classes and chosen.shape == shape
        word = "image" if method == "none" else method
        assert names == [f"{word} {number}" for number in range(1, 1 + count)]
    assert chosen.tolist() == [[3, 5]] * 6


def test_options_of_studies_are_what_is_studied(run, monkeypatch, tmp_path, digits):
    """Each by other values than its default."""
    from hybridgen.evaluation.mixing_studies import MIXERS
    from hybridgen.methods.labelled import TrainingSettings
    from hybridgen.methods.mixing import TITLES

    monkeypatch.setattr("hybridgen.data.datasets.load_dataset", lambda *given, **how: digits)
    of_images = "hybridgen.evaluation.mixing_studies"
    for place, words, given, how in (
        (f"{of_images}.sequence", "--steps 3 --places 2 --alpha 0.25 --seed 7",
         (digits,), dict(steps=3, places=2, alpha=0.25, seed=7)),
        (f"{of_images}.targets", "--methods fmix none --steps 3 --batch 5 --runs 2 --seed 7",
         (digits, ("fmix", "none")), dict(steps=3, batch=5, runs=2, seed=7, titles=TITLES)),
        (f"{of_images}.mixing", "--columns 3 --seed 7", (digits, MIXERS[1:]), dict(columns=3, seed=7, titles=TITLES)),
        (f"{of_images}.mixing", "--methods fmix", (digits, ("fmix",)), dict(columns=8, seed=0, titles=TITLES)),
        ("hybridgen.tables.over.over", "--runs a b --over labels --figures ece nll --epoch selected",
         ("labels", (Path("a"), Path("b")), ("ece", "nll")), dict(epoch="selected")),
        ("hybridgen.tables.cost.cost",
         "--network wrn-10-1 --width 2 --methods fmix --classes 3 --image-size 8 --batch 5 --rounds 2 --steps 4",
         (TrainingSettings(network="wrn-10-1", width=2.0, batch=5), ("fmix",)),
         dict(classes=3, image_size=8, rounds=2, steps=4)),
    ):  # fmt: skip
        asks(monkeypatch, place)
        name = place.rpartition(".")[2].replace("over", "runs")
        with pytest.raises(Asked) as asked:
            run("study", name, "--out", tmp_path, *words.split(), *ONE)
        were, options = asked.value.args
        assert (were if name != "cost" else were[:2], options) == (given, how), name


def test_studies_of_networks_see_so_many_drawn_images(run, monkeypatch, tmp_path, digits):
    """And one more that stays at the other inputs, for what they share."""
    from hybridgen.commands.mixing import OfNetworks

    images = torch.rand(9, 3, 4, 4)
    counts = []

    def networks(self, accelerator, count):
        counts.append(count)
        return "data", {"a": ("network a", images[:count]), "b": ("network b", images[:count] / 2)}

    monkeypatch.setattr(OfNetworks, "_networks", networks)
    found = {}
    monkeypatch.setattr(
        "hybridgen.evaluation.sharing.shared_by", lambda network, *shown: found.update({network: shown})
    )
    asks(monkeypatch, "hybridgen.evaluation.sharing.study")
    with pytest.raises(Asked):
        run("study", "sharing", "--runs", "r", "--images", 7, "--out", tmp_path, *ONE)
    for name, of in (("network a", images), ("network b", images / 2)):
        assert torch.equal(found[name][0], of[1:8]) and torch.equal(found[name][1], of[:1])

    drawn = {}
    monkeypatch.setattr(
        "hybridgen.evaluation.attention.attention_of",
        lambda network, shown, generator: drawn.update({network: (shown, generator.initial_seed())}),
    )
    asks(monkeypatch, "hybridgen.evaluation.attention.study")
    with pytest.raises(Asked) as asked:
        run("study", "attention", "--runs", "r", "--images", 6, "--seed", 5, "--out", tmp_path, *ONE)
    assert counts == [8, 6] and asked.value.args == (({"a": None, "b": None},), {})
    for name, of in (("network a", images), ("network b", images / 2)):
        assert torch.equal(drawn[name][0], of[:6]) and drawn[name][1] == 5


@pytest.mark.parametrize(
    ("words", "own", "classes", "side"),
    [
        ("", dict(inputs=2, source="embedding", place="late"), 100, 32),
        ("--inputs 3 --source encoding --place early --classes 7 --image-size 16",
         dict(inputs=3, source="encoding", place="early"), 7, 16),
    ],
)  # fmt: skip
def test_a_new_network_whose_inferences_are_studied_is_as_it_is_asked_for(
    run, monkeypatch, tmp_path, words, own, classes, side
):
    asks(monkeypatch, "hybridgen.evaluation.inference.costs")
    new = ("--network", "vit-8-2-1", "--batch", 5, "--rounds", 4, "--seed", 3, *words.split())
    with pytest.raises(Asked) as asked:
        run("study", "inference", "--out", tmp_path, *new, *ONE)
    (every, images), how = asked.value.args
    network = every["separate"].network
    assert images.shape == (5, 3, side, side) and how == {"rounds": 4}
    assert network.options.items() >= own.items() and network.num_classes == classes and network.image_size == side
    torch.manual_seed(3)
    first = make_network("vit-8-2-1", classes, image_size=side).patch_embed
    assert torch.equal(network.encoders[0].proj.weight, first.proj.weight)


# --- studies of mixing ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def networks(tmp_path_factory, digits) -> list[Path]:
    """Two untrained ones."""
    folder = tmp_path_factory.mktemp("networks")
    paths = [folder / name / "network.safetensors" for name in ("none", "cutmix")]
    for path in paths:
        classifier = Classifier(make_network("wrn-10-1", 10), mean=digits.mean, std=digits.std)
        save_classifier(classifier, path, name="wrn-10-1", classes=digits.classes, image_size=digits.image_size)
    return paths


SMALL = {
    "cam": ("--count", 8, "--mixed", "recursivemix", "--steps", 2),
    "sequence": ("--steps", 2, "--places", 1),
    "targets": ("--steps", 2, "--runs", 1, "--batch", 8, "--methods", "none", "recursivemix"),
    "cost": ("--network", "wrn-10-1", "--batch", 2, "--rounds", 1, "--steps", 1, "--image-size", 16),
    "mixing": ("--columns", 2, "--methods", "mixup", "fmix"),
}


@pytest.mark.parametrize("name", SMALL)
def test_study_of_mixing_prints_what_it_writes(run, networks, tmp_path, name):
    common = ("study", name, "--out", tmp_path, "--seed", 1, *SMALL[name], *ONE)
    if name == "cam":
        common += ("--networks", *networks)
    said = run(*common)
    assert said.code == 0, said.err
    assert said.out == (tmp_path / f"{name}.txt").read_text() + f"{tmp_path / name}.png\n"
    values = json.loads((tmp_path / f"{name}.json").read_text())
    assert values["study"] == name and values.get("seed", 1) == 1
    assert values.get("data", "digits-m") == "digits-m" and ({"seed", "data"} <= values.keys() or name == "cost")
    if name == "cam":  # the first of both steps is seen in the second, and nothing else
        assert max(len(image["classes"]) for image in values["images"]) == 2
    before = contents(tmp_path)
    assert set(before) == {f"{name}.{end}" for end in ("json", "txt", "png")}
    if name != "cost":
        assert run(*common, "--out", tmp_path / "again").code == 0
        assert contents(tmp_path / "again") == before
    refused(run(*common), f"{name}.json is there already")


@pytest.mark.parametrize("name", MIXING_STUDIES)
def test_help_of_a_study_of_mixing(run, name):
    said = run("study", name, "--help")
    assert said.code == 0 and f"hybridgen study {name}" in said.out and name in run("study", "--help").out
    for field in MIXING_STUDIES[name].__dataclass_fields__:
        assert f"--{field.replace('_', '-')}" in said.out


def test_maps_of_files_and_of_chosen_images(run, networks, images, tmp_path):
    common = ("study", "cam", "--networks", networks[0], *ONE)
    assert run(*common, "--files", *images[:2], "--classes", "3", "5", "--out", tmp_path / "a").code == 0
    values = json.loads((tmp_path / "a" / "cam.json").read_text())
    assert [image["image"] for image in values["images"]] == ["0.png", "1.png"] and values["data"] is None
    assert [[each["class"] for each in image["classes"]] for image in values["images"]] == [["3", "5"]] * 2
    assert list(values["networks"]) == ["none"] and values["networks"]["none"].keys() == {"probability"}
    assert run(*common, "--index", 4, 2, "--out", tmp_path / "b").code == 0
    values = json.loads((tmp_path / "b" / "cam.json").read_text())
    labels = load_dataset("digits-m").test.labels
    assert [image["image"] for image in values["images"]] == ["image 4", "image 2"]
    assert [image["classes"][0]["class"] for image in values["images"]] == [str(int(labels[i])) for i in (4, 2)]


def test_files_of_one_name_are_told_apart_by_their_folders(run, networks, tmp_path, monkeypatch):
    """Each row shows its own image, and maps of it."""
    drawn = []
    keep = lambda rows, titles: drawn.append(rows) or image_table(rows, titles)
    monkeypatch.setattr("hybridgen.evaluation.cam.image_table", keep)
    for folder, grey in (("p", 40), ("q", 120), ("r", 220)):
        (tmp_path / folder).mkdir()
        Image.new("L", (16, 16), grey).save(tmp_path / folder / "1.png")
    files = [tmp_path / folder / "1.png" for folder in "pqr"]
    line = ("study", "cam", "--networks", networks[0], "--files", *files, "--classes", "3", "--out", tmp_path / "o")
    assert run(*line, *ONE).code == 0
    values = json.loads((tmp_path / "o" / "cam.json").read_text())
    assert [image["image"] for image in values["images"]] == ["p", "q", "r"]
    (rows,) = drawn
    shown = {name: {round(255 * float(cell.image.mean())) for cell in row} for name, row in rows.items()}
    assert shown == {"p": {40}, "q": {120}, "r": {220}}


def test_maps_of_data_of_other_classes_are_refused(run, networks, tmp_path):
    images, labels = np.zeros((6, 16, 16, 3), dtype=np.uint8), np.arange(6) % 3
    np.savez(tmp_path / "own.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    line = ("study", "cam", "--networks", networks[0], "--data", f"npz:{tmp_path / 'own.npz'}", "--out", tmp_path / "o")
    said = f"--data: the networks know the classes {', '.join('0123456789')}; npz:{tmp_path / 'own.npz'} has 0, 1, 2"
    refused(run(*line, *ONE), said)


def test_a_study_that_is_interrupted_leaves_nothing(run, tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    def stop(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(Figure, "savefig", stop)
    assert run("study", "sequence", "--out", tmp_path, *SMALL["sequence"], *ONE).code == 130
    assert not list(tmp_path.iterdir())


# --- bad input ------------------------------------------------------------------------------------------


def damaged(artefact: Path, folder: Path, how: str) -> Path:
    shutil.copytree(artefact, folder)
    weights, config = folder / "model.safetensors", folder / "config.json"
    if how == "truncated":
        weights.write_bytes(weights.read_bytes()[:-50])
    elif how == "tampered":
        content = bytearray(weights.read_bytes())
        content[-3] ^= 1
        weights.write_bytes(content)
    elif how == "version":
        config.write_text(config.read_text().replace('"version": 2', '"version": 99'))
    elif how == "description":
        config.write_text(config.read_text()[:100])
    return folder


@pytest.mark.parametrize(
    ("how", "says"),
    [("truncated", "SHA-256"), ("tampered", "SHA-256"), ("version", "version 99"), ("description", "damaged JSON")],
)
@pytest.mark.parametrize("command", ["hybridize", "evaluate"])
def test_damaged_artefact(run, artefact, tmp_path, command, how, says):
    folder = damaged(artefact, tmp_path / "damaged", how)
    out = ("--out", tmp_path / "grid.png") if command == "hybridize" else ()
    refused(run(command, "--hybridizer", folder, *out, *ONE), says, str(folder))


def refused(said: Said, *words: str) -> None:
    """Exit code 2, one line on standard error, nothing on standard output."""
    assert said.code == 2, said
    assert said.out == ""
    assert said.err.startswith("error: ") and said.err.count("\n") == 1, said.err
    for word in words:
        assert word in said.err


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("", ("a command is missing",)),
        ("hybridise", ("unknown command 'hybridise'", "hybridize")),
        ("hybridize", ("--out",)),
        (
            "hybridize --out g.png --rwos 3",
            ("Unrecognized options: --rwos, 3; perhaps you meant --rows; see hybridgen h",),
        ),
        (
            "hybridize --out g.png --rwos 3 --colums 2",
            ("--rwos, 3, --colums, 2; perhaps you meant --columns, --rows; see",),
        ),
        ("hybridize --out g.png --rows many", ("Error parsing --rows: no type matching {None}|INT", "['many']; see")),
        ("hybridize --out g.png --rows 0", ("--rows: 0 should be greater than or equal to 1",)),
        ("hybridize --out g.png --columns -1", ("--columns: -1 should be greater than or equal to 1",)),
        ("hybridize --out f --count 0", ("--count: 0 should be greater than or equal to 1",)),
        ("hybridize --out g.png --rows 0 --columns 10001 --seed -1", ("--rows: 0", "--columns: 10001", "--seed: -1")),
        ("hybridize --out f --count 3 --rows 2", ("--rows", "--count")),
        ("hybridize --out f", ("--count", "f")),
        ("hybridize --out g.png --count 3", ("g.png",)),
        ("hybridize --out g.png --semantic a.png", ("--semantic", "--nonsemantic")),
        ("hybridize --out g.png --nonsemantic a.png", ("--nonsemantic: needs --semantic",)),
        ("hybridize --out g.png --semantic a.png --nonsemantic b.png --data cifar10", ("--data",)),
        ("hybridize --out g.png --semantic a.png --nonsemantic b.png --rows 1", ("--rows",)),
        ("hybridize --out g.png --part validation", ("--part", "validation")),
        ("hybridize --out g.png --hybridizer nowhere", ("nowhere",)),
        ("hybridize --out g.png --hybridizer {artefact} --data digits-n", ("digits-n", "digits-m")),
        ("hybridize --out g.png --hybridizer {artefact} --data folder:nowhere", ("nowhere",)),
        ("hybridize --out g.png --hybridizer {artefact} --data cifar10 --data-root none", ("--download",)),
        ("hybridize --out g.png --hybridizer {artefact} --rows 400 --columns 101", ("501", "500 images")),
        ("hybridize --out g.png --hybridizer {artefact} --semantic a.png --nonsemantic b.png", ("a.png",)),
        ("hybridize --out f --count 2 --hybridizer {artefact} --semantic a.png --nonsemantic b.png", ("a.png",)),
        ("explore --hybridizer nowhere", ("hybridizer: nowhere is neither a folder",)),
        ("explore --hybridizer {artefact} --data digits-n", ("digits-n",)),
        ("explore --hybridizer {artefact} --oracle nowhere", ("nowhere", "cannot be read")),
        ("explore --hybridizer {artefact} --oracle nowhere --oracle.steps 50", ("--oracle.steps", "--oracle nowhere")),
        ("explore --hybridizer {artefact} --port 65536", ("--port: 65536 should be less than or equal to 65535",)),
        ("evaluate --hybridizer {artefact} --data digits-n", ("digits-n",)),
        ("evaluate --hybridizer {artefact} --image-size 32", ("--image-size 32", "16")),
        ("evaluate --hybridizer {artefact} --oracle nowhere", ("nowhere",)),
        ("evaluate --hybridizer {artefact} --oracle nowhere --oracle.steps 50", ("--oracle.steps", "--oracle nowhere")),
        ("evaluate --hybridizer {artefact} --oracle none", ("--oracle: none, but this is what an oracle measures",)),
        ("study probe --out o --hybridizer {artefact} --oracle none", ("--oracle: none",)),
        ("evaluate --hybridizer {artefact} --oracle.steps 9", ("--oracle.steps: 9",)),
        ("evaluate --hybridizer {artefact} --oracle {oracle} --repeats 0", ("--repeats: 0",)),
        (
            "evaluate --hybridizer {artefact} --oracle {oracle} --fda-beta 2",
            ("--fda-beta: 2.0 should be less than or equal to 0.5",),
        ),
        ("evaluate --hybridizer {artefact} --oracle.network leaky-wrn-11-1", ("depth: 11",)),
        ("study --out o", ("transfer,background,probe,methods",)),
        ("study nothing --out o", ("unknown study 'nothing'", "transfer", "cost, mixing")),
        ("study transfer", ("--out",)),
        ("study transfer --out o --probe-images 5", ("--probe-images", "probe", "transfer")),
        ("study probe --out o --fda-beta 0.1", ("--fda-beta", "methods", "probe")),
        ("study transfer --out o --hybridizer nowhere", ("nowhere",)),
        ("study transfer --out o --hybridizer {artefact} {artefact}", ("given twice",)),
        ("study transfer --out o --hybridizer {artefact} --oracle nowhere", ("nowhere",)),
        (
            "study transfer --out o --hybridizer {artefact} --oracle nowhere --oracle.network leaky-wrn-10-5",
            ("--oracle.network",),
        ),
        ("study transfer --out o --hybridizer {artefact} --image-size 32", ("--image-size 32", "16")),
        ("study transfer --out o --hybridizer {artefact} --oracle {oracle} --repeats 0", ("--repeats: 0",)),
        (
            "study methods --out o --hybridizer {artefact} --oracle {oracle} --fda-beta 2",
            ("--fda-beta: 2.0 should be less than or equal to 0.5",),
        ),
        ("study probe --out o --hybridizer {artefact} --oracle {oracle} --probe-images 0", ("--probe-images: 0",)),
        ("study transfer --out {oracle}/oracle.json/o --hybridizer {artefact}", ("is not a folder",)),
        ("study cam --out o", ("--networks",)),
        ("study cam --out o --networks nowhere", ("nowhere", "cannot be read")),
        ("study cam --out o --networks {oracle}/oracle.safetensors", ("oracle.safetensors", "metadata lack network")),
        ("study cam --out o --networks {network} --classes 3 x", ("--classes: 'x'", "0, 1, 2")),
        ("study cam --out o --networks {network} --index 999999", ("--index 999999", "test images")),
        ("study cam --out o --networks {network} --index 3 5 3", ("--index: 3 is there twice",)),
        ("study cam --out o --networks {network} --files a.png", ("--files", "--classes")),
        ("study cam --out o --networks {network} --files a.png a.png --classes 3", ("--files: a.png is there twice",)),
        ("study cam --out o --networks {network} --files a.png --classes 3", ("a.png", "not a readable image")),
        ("study cam --out o --networks {network} --files a.png --index 3", ("--files", "--index")),
        ("study cam --out o --networks {network} --index 3 --mixed cutmix", ("--index", "--mixed")),
        ("study cam --out o --networks {network} --mixed x", ("--mixed: 'x'", "cutmix")),
        ("study cam --out o --networks {network} --steps 3", ("--steps", "recursivemix")),
        ("study cam --out o --networks {network} --count 0", ("--count: 0",)),
        ("study cam --out o --networks {network} --data npz:x.npz", ("x.npz",)),
        ("study sequence --out o --alpha 2", ("--alpha: 2.0 should be less than or equal to 1",)),
        ("study sequence --out o --steps 0", ("--steps: 0",)),
        ("study sequence --out o --repeats 1", ("--repeats", "hybridgen study sequence --help")),
        ("study targets --out o --methods x", ("--methods: 'x'", "recursivemix")),
        ("study mixing --out o --columns 9999", ("--columns 9999",)),
        ("study cost --out o --network resnet51", ("resnet51",)),
        ("study cost --out o --network resnet50 --width 2", ("width: 2",)),
        ("study cost --out o --width 0", ("--width: 0.0 should be greater than or equal to 0.001",)),
        ("study cost --out o --methods x", ("'x'", "recursivemix")),
        ("study cost --out o --rounds 0", ("--rounds: 0",)),
        ("split --out s.json", ("--labels",)),
        ("split --labels 0 --out s.json", ("--labels: 0",)),
        ("split --labels 5 --out s.json", ("labels = 5", "10 classes")),
        ("split --labels 6000 --out s.json", ("labels = 6000",)),
        ("split --labels 100 --data digits-n --out s.json", ("digits-n",)),
        ("split --labels 100 --data none.txt --out s.json", ("none.txt: cannot be read (No such file or directory)",)),
        ("split --labels 100 --data nowhere --out s.json", ("unknown data set 'nowhere'",)),
        ("bench --jsn", ("--jsn",)),
    ],
)
def test_bad_input(run, artefact, oracle, networks, tmp_path, monkeypatch, line, words):
    monkeypatch.chdir(tmp_path)
    arguments = [word.format(artefact=artefact, oracle=oracle, network=networks[0]) for word in line.split()]
    if arguments[:1] in (["hybridize"], ["explore"], ["evaluate"], ["study"]):
        arguments += ONE
    refused(run(*arguments), *words)
    assert not list(tmp_path.iterdir())


def test_explore_serves_until_it_is_interrupted(run, artefact, oracle, monkeypatch, capsys, tmp_path):
    """With an oracle, at the port that is free; a port that is taken is one line."""
    taken: list[Server] = []
    printed: list[tuple[str, str]] = []

    def serve(server: Server) -> None:
        taken.append(server)
        explorer = server.explorer
        assert list(explorer.judges) == ["hybridizer's classifier", "oracle"]
        assert torch.equal(explorer.order, Explorer(explorer.hybridizer, explorer.dataset, "train", seed=5).order)
        printed.append(capsys.readouterr())
        refused(run("explore", "--hybridizer", artefact, "--port", server.server_port, *ONE), "--port", "not to be had")
        raise KeyboardInterrupt

    monkeypatch.setattr(Server, "serve_forever", serve)
    other = with_origin(artefact, tmp_path, **PHOTOGRAPHS)
    said = run("explore", "--hybridizer", other, "--oracle", oracle, "--part", "train", "--seed", 5, *ONE)
    assert (said.code, said.out, said.err) == (130, "", "") and taken[0].socket.fileno() == -1
    ((line, warning),) = printed
    assert line == f"http://127.0.0.1:{taken[0].server_port}/ shows hybrids of digits-m; Ctrl-C ends it\n"
    assert warning == WARNING


NEEDED = {
    "hybridize": ("--out", "g.png"),
    "explore": (),
    "evaluate": (),
    "predict": ("--model", "run", "image.png"),
    "report": ("run",),
    "score": ("run",),
    "export": ("run", "--out", "m.onnx"),
    "push": ("run", "owner/name"),
    "study": ("transfer", "--out", "o"),
    "split": ("--labels", "10", "--out", "s.json"),
    "bench": (),
    **{f"study {name}": ("--out", "o") for name in MIXING_STUDIES},
    "study runs": ("--out", "o", "--runs", "r", "--over", "labels"),
    "study sharing": ("--out", "o", "--runs", "r"),
    "study attention": ("--out", "o", "--runs", "r"),
}
KINDS = {name: command(name) for name in COMMANDS} | {f"study {name}": kind for name, kind in MIXING_STUDIES.items()}


RANGES: dict[str, tuple[float, float]] = {
    "seed": (0, 2**63 - 1),
    "port": (1, 65535),
    "threads": (1, 1024),
    "image_size": (1, 4096),
    "rows": (1, 10_000),
    "columns": (1, 10_000),
    "count": (1, 10_000_000),
    "repeats": (1, 1000),
    "oracle.steps": (10, 2**31 - 1),
    "probe_images": (1, 10_000_000),
    "fda_beta": (0.0, 0.5),
    "labels": (1, 10_000_000),
    "validation": (0, 10_000_000),
    "index": (0, 10_000_000),
    "most": (1, 100_000),
    "steps": (1, 1_000_000),
    "places": (1, 10_000),
    "batch": (1, 100_000),
    "runs": (1, 10_000),
    "severities": (1, 5),
    "images": (2, 1_000_000),
    "inputs": (2, 16),
    "rounds": (1, 1_000_000),
    "classes": (1, 100_000),
    "alpha": (1e-6, 1.0),
    "width": (1e-3, 100.0),
}
"""The least and the most that each number may be, whatever its command; real where both are."""


def holds(kind: Any, *what: type) -> bool:
    return kind in what or any(holds(each, *what) for each in get_args(kind))


def numbers(name: str) -> dict[str, Any]:
    """The types of a command's fields that are numbers, or several; those of a group as `oracle.steps`."""
    every = {field.name: field.type for field in fields(KINDS[name])}
    for group, kind in list(every.items()):
        if is_dataclass(kind):
            every |= {f"{group}.{field.name}": field.type for field in fields(kind)}
    return {place: kind for place, kind in every.items() if holds(kind, int, float)}


def nested(place: str, value: Any) -> dict[str, Any]:
    """The fields that give this place this value."""
    group, _, field = place.rpartition(".")
    return {group: {field: value}} if group else {field: value}


def given(name: str) -> dict[str, Any]:
    """The fields that a command cannot do without."""
    needed = {"out": "o"} if name not in ("explore", "evaluate", "predict", "push", "report", "score", "bench") else {}
    more = {
        "predict": {"model": "run"},
        "push": {"model": "run", "repository": "a/b"},
        "report": {"runs": ["run"]},
        "score": {"runs": ["run"]},
        "export": {"model": "run"},
        "study": {"name": "transfer"},
        "split": {"labels": 10},
        "study cam": {"networks": ["n"]},
        "study runs": {"runs": ["r"], "over": "labels"},
        "study sharing": {"runs": ["r"]},
        "study attention": {"runs": ["r"]},
    }
    return needed | more.get(name, {})


NEVER = (-1, math.nan, math.inf, -math.inf, 1e30, 10**30, True, False, "many", "nan", "inf", "", "0x10")
"""What no number of a command is."""


@pytest.mark.parametrize("name", KINDS)
def test_ranges_of_every_number_of_a_command(name):
    """Both ends are in; what is beyond them, or what nobody means, is not: by constructor and as flags are checked."""
    kind, flag = KINDS[name], flags(KINDS[name])
    made = kind(**given(name))
    assert checked(kind, plain(made)) == made  # its defaults are in their ranges
    for field, annotation in numbers(name).items():
        least, most = RANGES[field]
        several, real = field in ("index", "severities"), isinstance(least, float)
        assert several == ("..." in str(annotation)) and real == holds(annotation, float)

        def values(value: Any) -> dict[str, Any]:
            return given(name) | nested(field, (value,) if several else value)  # noqa: B023

        for value in (least, most):
            assert attrgetter(field)(kind(**values(value))) == ((value,) if several else value)
            assert checked(kind, values(value)) == kind(**values(value))
        wrong = (*NEVER, *((math.nextafter(least, -1), math.nextafter(most, 1e9)) if real else (least - 1, most + 1)))
        wrong += (() if real else (1.5, -0.5)) + (() if least == 0 else (0,))
        wrong += () if holds(annotation, type(None)) else (None,)
        for value in wrong:
            with pytest.raises(InputError, match=rf"\A{field}{r'[.]0' * several}: .*\Z"):
                pytest.fail(f"{kind(**values(value))} was taken")
            with pytest.raises(InputError, match=rf"\A{flag[field]}: .*\Z"):
                pytest.fail(f"{checked(kind, values(value), names=flag)} was taken")


@pytest.mark.parametrize("name", KINDS)
def test_all_numbers_out_of_range_are_one_line(run, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    needed = NEEDED[name] + (("--networks", "n") if name == "study cam" else ())
    monkeypatch.setattr(KINDS[name], "run", lambda command: pytest.fail(f"{command} was taken"))
    flag, kinds = flags(KINDS[name]), numbers(name)
    reals = [field for field, kind in kinds.items() if holds(kind, float)]
    wholes = [field for field in kinds if field not in reals]
    for value, chosen in (
        *((value, [field for field in kinds if value != "0" or RANGES[field][0] > 0]) for value in ("-1", "0")),
        (str(10**30), list(kinds)),
        *((value, reals) for value in ("nan", "inf", "-inf", "1e30")),
    ):
        if chosen:
            words = [word for field in chosen for word in (flag[field], value)]
            refused(run(*name.split(), *needed, *words), *(f"{flag[field]}: " for field in chosen))
    for value, chosen in ((value, wholes) for value in ("many", "", "nan", "inf", "1e30", "0x10", "1.5") if wholes):
        words = [word for field in chosen for word in (flag[field], value)]
        refused(run(*name.split(), *needed, *words), *(flag[field] for field in chosen[:1]))
    for field in kinds:
        refused(run(*name.split(), *needed, flag[field], "many"), flag[field])
    assert not list(tmp_path.iterdir())


OF_DATA = {"data_root": "data", "download": False}
JUDGED = {
    **OF_DATA, "data": "digits-m", "repeats": 4, "seed": 0, "image_size": None, "threads": None,
    "flip": "auto", "oracle": {"oracle": "trained", "steps": None, "network": None},
}  # fmt: skip
OF_MIXING = {"seed": 0, "threads": None}
OF_IMAGES = OF_MIXING | OF_DATA | {"data": "digits-m", "image_size": None}
OF_NETWORKS = OF_MIXING | {"images": 512, "data_root": None, "download": False}
DEFAULTS = {
    "hybridize": {
        **OF_DATA, "hybridizer": None, "data": None, "semantic": [], "nonsemantic": [], "rows": None, "columns": None,
        "count": None, "part": None, "split": None, "seed": 0, "threads": None,
    },
    "explore": OF_DATA | {
        "hybridizer": None, "data": "digits-m", "part": "test", "port": None, "seed": 0, "threads": None,
        "flip": "auto", "oracle": {"oracle": "none", "steps": None, "network": None},
    },
    "evaluate": JUDGED | {"hybridizer": None, "json": False, "fda_beta": 0.1},  # Yang and Soatto 2020: up to 0.1
    "predict": OF_DATA | {"images": [], "data": None, "out": None, "batch": 256, "threads": None},
    "report": {"out": None},
    "export": {},
    "push": {"private": False, "revision": None, "license": None},
    "score": {
        "part": "test", "ensemble": "logits", "data": None, "allow_other_data": False, "image_size": None,
        "data_root": None, "download": False, "corruptions": [], "cifar_c": None, "severities": [1, 2, 3, 4, 5],
        "predictions": None, "picture": None, "per_class": False, "json": False, "batch": 512, "seed": 0,
        "threads": None,
    },
    "study": JUDGED | {"hybridizer": [], "probe_images": None, "fda_beta": None},
    "split": OF_DATA | {"data": "digits-m", "seed": 0, "validation": 0},
    "bench": {"json": False, "only": [], "rounds": None, "threads": None, "quick": False},
    "study cam": OF_IMAGES | {
        "index": [], "files": [], "count": None, "classes": [], "most": 3, "mixed": None, "steps": None,
    },
    "study sequence": OF_IMAGES | {"steps": 8, "places": 4, "alpha": 0.5},  # RecursiveMix, figure S1; its α
    "study targets": OF_IMAGES | {
        "methods": ["none", "mixup", "cutmix", "resizemix", "recursivemix"], "steps": 100, "batch": 64, "runs": 3,
    },
    "study mixing": OF_IMAGES | {"methods": [], "columns": 8},
    "study cost": OF_MIXING | {
        "network": None, "width": None, "methods": ["mixup", "cutmix", "recursivemix"], "classes": 10, "image_size": 32,
        "batch": 64, "rounds": 5, "steps": 3,
    },
    "study runs": OF_MIXING | {"figures": ["accuracy"], "epoch": "last"},
    "study sharing": OF_NETWORKS,
    "study attention": OF_NETWORKS,
    "study inference": OF_MIXING | {
        "data_root": None, "download": False,
        "of": None, "network": None, "inputs": None, "source": None, "place": None, "classes": None, "image_size": None,
        "batch": 64, "rounds": 5,
    },
}  # fmt: skip
"""Of every command; ours unless said."""


@pytest.mark.parametrize("name", KINDS)
def test_options_that_are_not_given(name):
    own = plain(KINDS[name](**given(name)))
    assert {field: value for field, value in own.items() if field not in given(name)} == DEFAULTS[name]


def test_every_number_has_its_range():
    assert {field for name in KINDS for field in numbers(name)} == RANGES.keys()


def test_the_largest_seed_is_one(run, artefact, tmp_path):
    seed = ("--seed", 2**63 - 1)
    hybrids = ("hybridize", "--hybridizer", artefact, *seed, *ONE)
    assert run(*hybrids, "--out", tmp_path / "g.png", "--rows", 1, "--columns", 1).code == 0
    assert run(*hybrids, "--out", tmp_path / "f", "--count", 1).code == 0
    assert run("split", "--labels", 100, "--out", tmp_path / "s.json", *seed).code == 0
    assert run("study", "sequence", "--out", tmp_path, *SMALL["sequence"], *seed, *ONE).code == 0


def test_damaged_image_is_named(run, artefact, images, tmp_path):
    (tmp_path / "half.png").write_bytes(images[1].read_bytes()[:40])
    said = run(
        *("hybridize", "--hybridizer", artefact, "--out", tmp_path / "grid.png", *ONE),
        *("--semantic", images[0], "--nonsemantic", tmp_path / "half.png"),
    )
    refused(said, "half.png", "not a readable image")
    assert not (tmp_path / "grid.png").exists()


def test_out_below_a_file_is_refused(run, artefact, tmp_path):
    (tmp_path / "file").write_text("mine")
    common = ("hybridize", "--hybridizer", artefact, *ONE)
    refused(run(*common, "--out", tmp_path / "file" / "grid.png"), str(tmp_path / "file"))
    refused(run(*common, "--out", tmp_path / "file", "--count", 3), "not a folder")
    refused(run("split", "--labels", 100, "--out", tmp_path / "file" / "s.json"), str(tmp_path / "file"))
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("target", ["grid.png", "folder"])
def test_full_disk_leaves_nothing_half_written(run, artefact, tmp_path, target):
    """A limit on the size of files stands for the full disk: the system refuses the write in the same way."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300, hard))  # Python ignores the signal that comes with it
    try:
        said = run(
            *("hybridize", "--hybridizer", artefact, *ONE, "--out", tmp_path / target),
            *(("--count", 3) if target == "folder" else ()),
        )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    last = said.err.splitlines()[-1]
    assert said.code == 2 and last.startswith("error: ") and "cannot be written" in last
    assert not list(tmp_path.rglob("*.png"))
    assert not list(tmp_path.rglob("*.tmp"))


def test_missing_bundled_hybridizer_is_explained(run, monkeypatch, tmp_path):
    monkeypatch.setattr(hybridgen, "__file__", str(tmp_path / "hybridgen" / "__init__.py"))
    refused(run("evaluate", *ONE), "digits-m-scimix", "--hybridizer")
