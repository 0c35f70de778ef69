"""What goes to the hub and comes from it, by a hub that is a folder."""

import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from recipe_modules import recipe

from hybridgen.assets import bundled
from hybridgen.cli import main
from hybridgen.configuration import parse
from hybridgen.hub import Figure, without_places
from hybridgen.hybridizer import Hybridizer
from hybridgen.networks.classifiers import Classifier, load_classifier, save_classifier
from hybridgen.networks.registry import make_network
from hybridgen.settings import plain
from hybridgen.tables.card import command, figures
from hybridgen.tables.left import Group
from hybridgen.training.record import identity
from hybridgen.training.setup import begun_by
from hybridgen.types import InputError

SETUP = {
    "data": {"name": "toy.npz", "test": 6}, "split": {"labelled": 4, "unlabelled": 30, "validation": 5},
    "recipe": "mean_teacher", "flags": {
        "data": "--data", "labels": "--labels", "method.epochs": "--epochs", "hybrids.baseline": "--hybrids.baseline",
    },
}  # fmt: skip
CONFIG = (
    "data: npz:/elsewhere/me/toy.npz\nlabels: 4\nout: /elsewhere/me/run\nmethod:\n  epochs: 3.0\n  rate: 0.1\n"
    "hybrids:\n  baseline: false\n"
)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """`calls` of its interface; repositories are folders in `place`."""
    made = SimpleNamespace(calls=[], place=tmp_path / "hub")

    class Api:
        def __init__(self, library_name):
            assert library_name == "hybridgen"

        def create_repo(self, repo_id, *, private, exist_ok):
            made.calls.append(("create_repo", repo_id, private, exist_ok))

        def create_branch(self, repo_id, *, branch, exist_ok):
            made.calls.append(("create_branch", repo_id, branch, exist_ok))

        def upload_folder(self, *, repo_id, folder_path, revision, commit_message):
            made.calls.append(("upload_folder", repo_id, revision))
            shutil.copytree(folder_path, made.place / repo_id / (revision or "main"))
            return f"https://hub/{repo_id}"

    def download(name, *, revision, allow_patterns):
        assert {path.name for path in (made.place / name / (revision or "main")).iterdir()} > set(allow_patterns)
        return str(made.place / name / (revision or "main"))

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "a token")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.chdir(tmp_path)
    return made


def leave(folder: Path, **result) -> None:
    """What every finished run leaves."""
    folder.mkdir(exist_ok=True)
    (folder / "config.yaml").write_text(CONFIG)
    (folder / "setup.json").write_text(json.dumps(SETUP))
    found = dict(seed=0, steps=1234, seconds=75.0, split_hash="abc123") | result
    (folder / "result.json").write_text(json.dumps(found))


@pytest.fixture
def run(tmp_path) -> Path:
    """A finished run of a classifier; of its six test images the half, and of the last network a third, are right."""
    leave(tmp_path / "run", test_accuracy_selected=0.5, test_accuracy_last=1 / 3, seed=7)
    torch.manual_seed(0)
    classifier = Classifier(make_network("wrn-10-1", 3), mean=(0.5,) * 3, std=(0.25,) * 3)
    about = dict(name="wrn-10-1", classes=("a", "b", "c"), image_size=16, split_hash="abc123")
    save_classifier(classifier, tmp_path / "run" / "network.safetensors", **about)
    return tmp_path / "run"


def refused(capsys, *arguments: object) -> str:
    with pytest.raises(SystemExit) as stop:
        main(["push", *map(str, arguments)])
    said = capsys.readouterr()
    assert stop.value.code == 2 and said.out == "" and said.err.count("\n") == 1
    return said.err


def test_a_classifier_there_and_back(hub, run, capsys):
    main(["push", str(run), "me/toy", "--private", "--revision", "v1", "--license", "mit"])
    assert capsys.readouterr().out == "https://hub/me/toy\n"
    assert hub.calls == [
        ("create_repo", "me/toy", True, True), ("create_branch", "me/toy", "v1", True),
        ("upload_folder", "me/toy", "v1"),
    ]  # fmt: skip
    assert {path.name for path in (hub.place / "me/toy/v1").iterdir()} == {"README.md", "network.safetensors"}
    images, (own, *_) = torch.rand(2, 3, 16, 16), load_classifier(run)
    for given in (dict(path="me/toy", revision="v1"), dict(path="me/toy@v1")):
        classifier, classes, side = load_classifier(**given)
        assert torch.equal(classifier(images), own(images)) and (classes, side) == (("a", "b", "c"), 16)

    card = ModelCard.load(hub.place / "me/toy/v1/README.md")
    data = card.data
    assert (data.license, data.library_name, data.metrics) == ("mit", "hybridgen", ["accuracy"])
    assert data.datasets == ["toy.npz"]
    assert data.tags == ["hybridgen", "image-classification", "semi-supervised-learning"]
    (accuracy,) = data.eval_results  # Wilson's interval of three of six by the formula of 1927: [18.8, 81.2]
    assert accuracy.metric_value == 0.5
    assert accuracy.metric_args["interval_95"] == [pytest.approx(0.1876, abs=1e-4), pytest.approx(0.8124, abs=1e-4)]
    for said in (
        "| on the 6 test images | | 95 % interval |",
        "| accuracy, selected on the validation images | 50.0 % | 18.8 to 81.2 |",
        "| accuracy, after the last step | 33.3 % | 9.7 to 70.0 |",
        "images of 16×16, 3 classes (a, b, c)",
        "`hybridgen train mean-teacher --data npz:toy.npz --labels 4 --epochs 3.0 --hybrids.no-baseline`: from "
        "4 labelled, 30 unlabelled, 5 validation images; seed 7, 1,234 steps, 75 seconds. Split abc123.",
        'classifier, classes, side = load_classifier("me/toy")\n',
        "classifier(images)  # of [b, 3, 16, 16] in [0, 1]",
        "It knows its 3 classes alone",
        "  epochs: 3.0\n  rate: 0.1\n",
    ):
        assert said in card.text, said
    assert "elsewhere" not in card.content
    configuration = yaml.safe_load(card.text.split("```yaml\n")[1].split("```")[0])
    method = {"epochs": 3.0, "rate": 0.1}  # and not where the run lay
    assert configuration == {"data": "npz:toy.npz", "labels": 4, "method": method, "hybrids": {"baseline": False}}

    # A card that lies there goes as it stands
    mine = "---\nlicense: other\n---\n# Mine\n"
    (run / "README.md").write_text(mine)
    main(["push", str(run / "network.safetensors"), "me/mine"])
    assert ("create_repo", "me/mine", None, True) in hub.calls
    assert (hub.place / "me/mine/main/README.md").read_text() == (run / "README.md").read_text() == mine


def test_a_run_s_hybridizer_with_what_its_hybrids_inherit(hub, tmp_path, capsys):
    leave(tmp_path / "run", test_accuracy_last=0.5)
    own = Hybridizer.from_pretrained(bundled())
    own.save_pretrained(tmp_path / "run" / "hybridizer")
    rates = {"semantic_transfer": 0.75, "nonsemantic_preservation": 0.5, "background_inheritance": None}
    rates |= {f"{name}_interval": [0.25, value and value + 0.125] for name, value in rates.items()}
    rates |= {"oracle_accuracy": 0.9}
    (tmp_path / "run" / "transfer.json").write_text(json.dumps(rates | {"classes": ["a"], "confusion": [[1.0]]}))
    main(["push", str(tmp_path / "run"), "me/digits", "--private", "--revision", "v1", "--license", "mit"])
    assert hub.calls[0] == ("create_repo", "me/digits", True, True)
    images = torch.rand(2, 3, own.image_size, own.image_size)
    assert torch.equal(Hybridizer.from_pretrained("me/digits@v1")(images), own(images))
    card = ModelCard.load(hub.place / "me/digits/v1/README.md")
    assert (card.data.license, card.data.library_name, card.data.datasets) == ("mit", "hybridgen", ["digits-m"])
    assert card.data.eval_results[0].metric_value == 0.5
    assert "| semantic transfer, by an oracle | 75.0 % | 25.0 to 87.5 |" in card.text
    assert (
        "| non-semantic preservation (nearer in pixels to the non-semantic parent) | 50.0 % | 25.0 to 62.5 |"
        in card.text
    )
    assert "| on the 6 test images |" in card.text and "seed 0, 1,234 steps, 75 seconds" in card.text
    assert "| accuracy of its own classifier, after the last step | 50.0 % | 18.8 to 81.2 |" in card.text
    assert "| accuracy of the oracle that judges hybrids | 90.0 % | – |" in card.text
    assert f"Split {own.origin.split_hash}." in card.text and "background" not in card.text
    assert (tmp_path / "run" / "hybridizer" / "README.md").read_text() == card.content


def test_a_hybridizer_of_no_run_and_figures_of_unknown_images(hub, tmp_path):
    """Without a number of test images there is no interval, and without a test image of known class no figure."""
    shutil.copytree(bundled(), tmp_path / "own", ignore=shutil.ignore_patterns("README.md"))
    main(["push", str(tmp_path / "own"), "me/digits", "--license", "mit"])
    assert ModelCard.load(hub.place / "me/digits/main/README.md").data.license == "mit"
    group = Group(Path(), "a", {}, {}, {"test_accuracy_selected": 0.25, "test_accuracy_last": math.nan}, None, [], [])
    how = "accuracy, selected on the validation images"
    assert figures(group, "accuracy") == [Figure(how, 0.25, None, "accuracy")]


def test_a_hybridizer_in_memory(hub):
    own = Hybridizer.from_pretrained(bundled())
    own.origin.training["split"] = "/elsewhere/me/split.json"
    assert own.push_to_hub("me/digits", revision="v2") == "https://hub/me/digits"
    again = Hybridizer.from_pretrained("me/digits@v2")
    assert again.origin.training == own.origin.training | {"split": "split.json"}
    assert ModelCard.load(hub.place / "me/digits/v2/README.md").data.eval_results is None


def test_what_is_no_finished_artefact_is_not_pushed(hub, run, tmp_path, capsys):
    assert "no such file or folder" in refused(capsys, tmp_path / "none", "me/toy")
    assert "hub: 'toy' is no id" in refused(capsys, run, "toy")
    weights = (run / "network.safetensors").read_bytes()
    (run / "network.safetensors").write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
    assert "changed: the SHA-256" in refused(capsys, run, "me/toy")
    (run / "network.safetensors").write_bytes(weights)
    shutil.copytree(bundled(), run / "hybridizer")
    assert "has a hybridizer and a classifier; give" in refused(capsys, run, "me/toy")
    (run / "network.safetensors").unlink()
    (run / "result.json").unlink()
    assert "no result (result.json is missing)" in refused(capsys, run, "me/toy")
    assert hub.calls == []


def test_without_a_token_or_a_network(hub, run, monkeypatch, capsys):
    def fail(*_, **__):
        raise ConnectionError("no route\nto the hub")

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", fail)
    assert "hub: me/toy cannot be written (no route)" in refused(capsys, run, "me/toy")
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    assert "hub: there is no token; log in by `hf auth login`" in refused(capsys, run, "me/toy")


def test_a_classifier_s_file_has_no_revision(run):
    for path in (run, run / "network.safetensors"):
        with pytest.raises(InputError, match="revision: v1, of a hub id"):
            load_classifier(path, revision="v1")
    with pytest.raises(InputError, match="cannot be read"):
        load_classifier("missing/network.safetensors")


def test_the_command_of_a_card_is_one_of_the_same_settings():
    given = ["--preset", "smoke", "--data", "svhn", "--labels", "40", "--no-baseline", "--hybrids.no-keep-consistent"]
    module = recipe("fixmatch")
    config = parse(module.Config, module.PRESETS, [*given, "--epochs", "3", "--rate-epochs", "4", "--out", "elsewhere"])
    group = Group(Path(), "a", plain(config), begun_by(config), {}, None, [], [])
    hybridgen, train, name, *arguments = command(group)
    assert (hybridgen, train, name) == ("hybridgen", "train", "fixmatch")
    assert identity(parse(module.Config, module.PRESETS, arguments)) == identity(config)


def test_places_of_a_machine_go_and_names_stay():
    given = {"data": "npz:/a/b/c.npz", "split": "~/d/e.json", "of": ["C:\\x\\y", "owner/name@v1", "runs/a"], "n": 3}
    assert without_places(given) == {
        "data": "npz:c.npz", "split": "e.json", "of": ["y", "owner/name@v1", "runs/a"], "n": 3,
    }  # fmt: skip
