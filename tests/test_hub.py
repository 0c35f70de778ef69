"""What goes to the hub and comes from it, by huggingface_hub's own client and a hub of this process."""

import json
import math
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
import yaml
from hub_server import TOKEN, Server, serving
from huggingface_hub import ModelCard, constants, file_download
from huggingface_hub.errors import GatedRepoError
from recipe_modules import recipe

from hybridgen.assets import bundled
from hybridgen.cli import main
from hybridgen.configuration import parse
from hybridgen.hub import Figure, without_places
from hybridgen.hybridizer import Hybridizer
from hybridgen.networks.classifiers import Classifier, load_classifier, save_classifier
from hybridgen.networks.registry import make_network
from hybridgen.settings import plain
from hybridgen.tables.card import classifier_card, command, figures, trained
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
def hub(tmp_path, monkeypatch) -> Iterator[Server]:
    """The one that there is, to somebody who has its token and has read nothing yet."""
    with serving() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.address)
        template = server.address + "/{repo_id}/resolve/{revision}/{filename}"
        for module in (constants, file_download):  # which has one of its own in some versions
            monkeypatch.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
        for name in ("HF_OIDC_RESOURCE", "HUGGING_FACE_HUB_TOKEN"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))  # hf_xet's journal
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.chdir(tmp_path)
        yield server


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
    leave_classifier(tmp_path / "run", seed=0)
    return tmp_path / "run"


def leave_classifier(folder: Path, seed: int) -> None:
    torch.manual_seed(seed)
    classifier = Classifier(make_network("wrn-10-1", 3), mean=(0.5,) * 3, std=(0.25,) * 3)
    about = dict(name="wrn-10-1", classes=("a", "b", "c"), image_size=16, split_hash="abc123")
    save_classifier(classifier, folder / "network.safetensors", **about)


def same_weights(one: Classifier, other: Classifier) -> bool:
    """Bit for bit."""
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def refused(capsys, *arguments: object) -> str:
    with pytest.raises(SystemExit) as stop:
        main(["push", *map(str, arguments)])
    said = capsys.readouterr()
    assert stop.value.code == 2 and said.out == "" and said.err.count("\n") == 1
    return said.err


def test_a_classifier_there_and_back(hub, run, capsys):
    main(["push", str(run), "me/toy", "--private", "--revision", "runs/1", "--license", "mit"])
    repository = hub.repositories["me/toy"]
    made = repository.branches["runs/1"]
    assert capsys.readouterr().out == f"{hub.address}/me/toy/commit/{made}\n"
    assert repository.private and repository.branches.keys() == {"main", "runs/1"}
    assert repository.files("main").keys() == {".gitattributes"}
    assert repository.files("runs/1").keys() == {".gitattributes", "README.md", "network.safetensors"}
    assert repository.files("runs/1")["network.safetensors"] == (run / "network.safetensors").read_bytes()
    assert repository.commits[made].message == "Upload by hybridgen"
    assert repository.commits[made].client.startswith("hybridgen/")
    images, (own, *_) = torch.rand(2, 3, 16, 16), load_classifier(run)
    for given in (dict(path="me/toy", revision="runs/1"), dict(path="me/toy@runs/1")):
        classifier, classes, side = load_classifier(**given)
        assert torch.equal(classifier(images), own(images)) and (classes, side) == (("a", "b", "c"), 16)
        assert same_weights(classifier, own)

    card = ModelCard(repository.files("runs/1")["README.md"].decode())
    data = card.data
    assert (data.license, data.library_name, data.metrics) == ("mit", "hybridgen", ["accuracy"])
    assert data.datasets == ["toy.npz"]
    assert (data.pipeline_tag, data.model_name) == ("image-classification", "toy")
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
    capsys.readouterr()
    assert "--license mit: " in refused(capsys, run, "me/mine", "--license", "mit")
    main(["push", str(run / "network.safetensors"), "me/mine"])
    assert not hub.repositories["me/mine"].private
    assert hub.repositories["me/mine"].files("main")["README.md"].decode() == mine == (run / "README.md").read_text()


def test_a_run_s_hybridizer_with_what_its_hybrids_inherit(hub, tmp_path, capsys):
    leave(tmp_path / "run", test_accuracy_last=0.5, test_accuracy_selected=0.25)  # as SAMOSA does
    own = Hybridizer.from_pretrained(bundled())
    own.save_pretrained(tmp_path / "run" / "hybridizer")
    rates = {"semantic_transfer": 0.75, "nonsemantic_preservation": 0.0, "background_inheritance": None}
    rates |= {"semantic_transfer_interval": [0.25, 0.875], "nonsemantic_preservation_interval": [0.0, 0.125]}
    rates |= {"oracle_accuracy": 0.9}
    (tmp_path / "run" / "transfer.json").write_text(json.dumps(rates | {"classes": ["a"], "confusion": [[1.0]]}))
    main(["push", str(tmp_path / "run"), "me/digits", "--private", "--revision", "v1", "--license", "mit"])
    assert hub.repositories["me/digits"].private
    images = torch.rand(2, 3, own.image_size, own.image_size)
    assert torch.equal(Hybridizer.from_pretrained("me/digits@v1")(images), own(images))
    files = hub.repositories["me/digits"].files("v1")
    assert files.keys() == {".gitattributes", "README.md", "config.json", "model.safetensors"}
    card = ModelCard(files["README.md"].decode())
    assert (card.data.license, card.data.library_name, card.data.datasets) == ("mit", "hybridgen", ["digits-m"])
    assert card.data.eval_results[0].metric_value == 0.5
    assert (card.data.pipeline_tag, card.data.model_name) == ("image-to-image", "digits")
    assert card.data.tags == ["hybridgen", "data-augmentation", "semi-supervised-learning", "scimix"]
    assert 'hybridizer = Hybridizer.from_pretrained("me/digits")\n' in card.text
    assert "hybridizer.hybridize(semantic=a, nonsemantic=b)  # [n, 3, 16, 16] in [0, 1]\n" in card.text
    assert f"hybridgen refuses other splits than {own.origin.split_hash}." in card.text
    assert "| semantic transfer, by an oracle | 75.0 % | 25.0 to 87.5 |" in card.text
    assert (
        "| non-semantic preservation (nearer in pixels to the non-semantic parent) | 0.0 % | 0.0 to 12.5 |" in card.text
    )
    assert "| on the 6 test images |" in card.text and "seed 0, 1,234 steps, 75 seconds" in card.text
    assert "| accuracy of its own classifier, after the last step | 50.0 % | 18.8 to 81.2 |" in card.text
    assert "| accuracy of the oracle that judges hybrids | 90.0 % | – |" in card.text
    assert f"Split {own.origin.split_hash}." in card.text and "background" not in card.text
    assert (tmp_path / "run" / "hybridizer" / "README.md").read_text() == card.content


@pytest.mark.parametrize("name", ["digits-m", "folder:my birds"])
def test_data_are_told_to_the_hub_where_it_may_have_them(name):
    """By an id, which a folder's name with a space is not."""
    own = Hybridizer.from_pretrained(bundled())
    own.origin = replace(own.origin, dataset=name)
    card = ModelCard(own.card("me/own"))
    assert card.data.datasets == (None if " " in name else [name]) and name.rpartition(":")[2] in card.text


def test_a_hybridizer_of_no_run_and_figures_of_unknown_images(hub, tmp_path):
    """Without a number of test images there is no interval, and without a test image of known class no figure."""
    shutil.copytree(bundled(), tmp_path / "own", ignore=shutil.ignore_patterns("README.md"))
    main(["push", str(tmp_path / "own"), "me/digits", "--license", "mit"])
    assert ModelCard(hub.repositories["me/digits"].files("main")["README.md"].decode()).data.license == "mit"
    group = Group(Path(), "a", {}, {}, {"test_accuracy_selected": 0.25, "test_accuracy_last": math.nan}, None, [], [])
    how = "accuracy, selected on the validation images"
    assert figures(group, "accuracy") == [Figure(how, 0.25, None, "accuracy")]
    after, both = "accuracy, after the last step", {"test_accuracy_selected": 0.25, "test_accuracy_last": 0.5}
    last = figures(replace(group, result=both), "accuracy", last=True)
    assert last == [Figure(after, 0.5, None, "accuracy")]
    assert figures(replace(group, result=both), "accuracy") == [
        Figure(how, 0.25, None, "accuracy"), Figure(after, 0.5, None, None)
    ]  # fmt: skip
    rates = {"background_inheritance": 0.5, "background_inheritance_interval": [0.4, 0.6], "oracle_accuracy": 0.9}
    assert figures(replace(group, result={}, transfer=rates), "accuracy") == [
        Figure("background inheritance (by the known masks)", 0.5, (0.4, 0.6)),
        Figure("accuracy of the oracle that judges hybrids", 0.9),
    ]


def test_a_classifier_of_whose_beginning_nothing_is_recorded(run):
    (run / "setup.json").unlink()
    made = classifier_card(run / "network.safetensors", "me/toy")
    assert "of toy.npz: images" in made and "\n\nseed 7, 1,234 steps, 75 seconds. Split abc123." in made
    assert "elsewhere" not in made and "| on the test images |" in made


def test_a_hybridizer_in_memory(hub):
    own = Hybridizer.from_pretrained(bundled())
    own.origin.training["split"] = "/elsewhere/me/split.json"
    commit = own.push_to_hub("me/digits", private=True, revision="v2")
    repository = hub.repositories["me/digits"]
    assert commit == f"{hub.address}/me/digits/commit/{repository.branches['v2']}" and repository.private
    again = Hybridizer.from_pretrained("me/digits@v2")
    assert again.origin.training == own.origin.training | {"split": "split.json"}
    assert ModelCard(repository.files("v2")["README.md"].decode()).data.eval_results is None

    # The two files that it has are asked for, and no other
    asked = {request for request in hub.requests if "resolve" in request}
    files = [f"/me/digits/resolve/{repository.branches['v2']}/{name}" for name in ("config.json", "model.safetensors")]
    assert asked == {f"{method} {file}" for method in ("HEAD", "GET") for file in files}


def test_a_revision_is_a_branch_or_a_commit(hub, run, capsys):
    olds, own = load_classifier(run)[0], Hybridizer.from_pretrained(bundled())
    main(["push", str(run), "me/toy", "--revision", "v1"])
    older = hub.repositories["me/toy"].branches["v1"]
    assert same_weights(load_classifier("me/toy@v1")[0], olds)
    leave_classifier(run, seed=1)
    main(["push", str(run), "me/toy", "--revision", "v1"])
    newer, news = hub.repositories["me/toy"].branches["v1"], load_classifier(run)[0]
    assert hub.repositories["me/toy"].commits[newer].parent == older and not same_weights(news, olds)
    for revision, expected in (("v1", news), (newer, news), (older, olds)):
        assert same_weights(load_classifier("me/toy", revision=revision)[0], expected)
        assert same_weights(load_classifier(f"me/toy@{revision}")[0], expected)

    # What has not changed is no other commit
    capsys.readouterr()
    main(["push", str(run), "me/toy", "--revision", "v1"])
    assert capsys.readouterr().out == f"{hub.address}/me/toy/commit/{newer}\n"

    # Of hybridizers, too
    images = torch.rand(2, 3, own.image_size, own.image_size)
    older, before = own.push_to_hub("me/digits").rpartition("/")[2], own(images)
    with torch.no_grad():
        next(own.autoencoder.generator.parameters()).mul_(1.5)
    own.push_to_hub("me/digits")
    assert not torch.equal(own(images), before)
    assert torch.equal(Hybridizer.from_pretrained("me/digits")(images), own(images))
    assert torch.equal(Hybridizer.from_pretrained("me/digits", revision="main")(images), own(images))
    assert torch.equal(Hybridizer.from_pretrained("me/digits", revision=older)(images), before)
    assert torch.equal(Hybridizer.from_pretrained(f"me/digits@{older}")(images), before)


def test_one_is_not_taken_for_the_other(hub, run):
    main(["push", str(run), "me/toy"])
    Hybridizer.from_pretrained(bundled()).push_to_hub("me/digits")
    with pytest.raises(
        InputError, match=r"^classifier: me/digits on the hub has no network\.safetensors; .* classifier"
    ):
        load_classifier("me/digits")
    with pytest.raises(InputError, match=r"^hybridizer: me/toy@main on the hub has no config\.json and no model\."):
        Hybridizer.from_pretrained("me/toy@main")


def test_what_is_no_finished_artefact_is_not_pushed(hub, run, tmp_path, capsys):
    assert "no such file or folder" in refused(capsys, tmp_path / "none", "me/toy")
    assert "hub: 'toy' is no id" in refused(capsys, run, "toy")
    weights = (run / "network.safetensors").read_bytes()
    (run / "network.safetensors").write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
    assert "changed: the SHA-256" in refused(capsys, run, "me/toy")
    (run / "network.safetensors").write_bytes(weights)
    (run / "result.json").rename(tmp_path / "result.json")
    for path in (run, run / "network.safetensors"):
        assert f"{run}: no result (result.json is missing)" in refused(capsys, path, "me/toy")
    (tmp_path / "result.json").rename(run / "result.json")
    shutil.copytree(bundled(), run / "hybridizer")
    assert "has a hybridizer and a classifier; give" in refused(capsys, run, "me/toy")
    (run / "network.safetensors").unlink()
    (run / "result.json").unlink()
    assert "no result (result.json is missing)" in refused(capsys, run, "me/toy")
    assert hub.requests == []


def not_given(source: str) -> str:
    """Why the hub does not give a hybridizer; nor a classifier, for the same reason."""
    told = []
    for what, load in (("hybridizer", Hybridizer.from_pretrained), ("classifier", load_classifier)):
        with pytest.raises(InputError) as error:
            load(source)
        begin, end = f"{what}: {source} is no folder, and the hub does not give it (", ")"
        assert str(error.value).startswith(begin) and str(error.value).endswith(end)
        told.append(str(error.value).removeprefix(begin).removesuffix(end))
    assert told[0] == told[1] and "\n" not in told[0]
    return told[0]


LOGIN = "log in by `hf auth login`, or set HF_TOKEN"
HIDDEN = f"there is no such repository, or it is private; for one of yours, {LOGIN}"


def test_what_the_hub_does_not_give(hub, run, monkeypatch):
    main(["push", str(run), "me/toy", "--private"])
    assert not_given("me/none") == HIDDEN
    assert not_given("me/toy@v9") == "Invalid rev id: v9"
    assert not_given(f"me/toy@{'e' * 40}") == f"Invalid rev id: {'e' * 40}"
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert not_given("me/toy") == f"the token is not valid; {LOGIN}"
    monkeypatch.delenv("HF_TOKEN")
    assert not_given("me/toy") == not_given("me/none") == HIDDEN
    hub.repositories["me/toy"].private = False
    load_classifier("me/toy")

    # What has been read stays
    hub.shutdown()
    hub.server_close()
    load_classifier("me/toy")
    with pytest.raises(InputError, match=r"^classifier: me/other is no folder, and .* give it \(.*Connection refused"):
        load_classifier("me/other")


def test_what_the_hub_does_not_take(hub, run, monkeypatch, capsys):
    main(["push", str(run), "me/toy"])
    capsys.readouterr()
    (run / "README.md").unlink()
    before = dict(hub.repositories["me/toy"].branches)
    invalid = 'Invalid metadata in README.md "license" must be one of [apache-2.0, cc-by-4.0, mit, other]'
    foreign = 'You don\'t have the rights to create a model under the namespace "you".'
    for repository, licence, reason in (("me/toy", "none", invalid), ("you/toy", "mit", foreign)):
        said = refused(capsys, run, repository, "--license", licence)
        assert said == f"error: hub: {repository} cannot be written ({reason})\n"
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert f"hub: me/toy cannot be written (the token is not valid; {LOGIN})" in refused(capsys, run, "me/toy")
    monkeypatch.delenv("HF_TOKEN")
    assert f"hub: there is no token; {LOGIN}\n" in refused(capsys, run, "me/toy")
    assert hub.repositories.keys() == {"me/toy"} and hub.repositories["me/toy"].branches == before
    assert not (run / "README.md").exists()  # with the wrong licence or for another id

    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.shutdown()
    hub.server_close()
    said = refused(capsys, run, "me/toy")
    assert "hub: me/toy cannot be written (" in said and "Connection refused" in said


@pytest.mark.parametrize("error", [ConnectionError("no route\nto the hub"), TimeoutError()])
def test_whatever_else_goes_wrong(monkeypatch, error, tmp_path):
    def fail(*_, **__):
        raise error

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    assert not_given("me/toy") == ("no route to the hub" if str(error) else "TimeoutError")


def test_a_repository_that_is_shut_is_not_said_to_be_missing(monkeypatch, tmp_path):
    response = SimpleNamespace(headers={}, request=None, status_code=403)
    error = GatedRepoError("403 (Request ID: 1)", response=response, server_message="Access to me/toy is restricted.")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: (_ for _ in ()).throw(error))
    assert not_given("me/toy") == "Access to me/toy is restricted."


def test_one_revision_alone_is_given_and_of_a_hub_id(run):
    for source, revision in (("me/toy@v2", "v1"), ("me/toy@", None), (str(run), "v1")):
        for load in (Hybridizer.from_pretrained, load_classifier):
            with pytest.raises(InputError, match="revision"):
                load(source, revision=revision)
    with pytest.raises(InputError, match="revision: v1, of a hub id"):
        load_classifier(run / "network.safetensors", revision="v1")
    with pytest.raises(InputError, match="cannot be read"):
        load_classifier("missing/network.safetensors")


@pytest.mark.parametrize(
    ("recipe_name", "own"),
    [
        ("fixmatch", "--no-baseline --hybrids.no-keep-consistent --rate-epochs 4 --split 'two words'"),
        ("mixing_baselines", "--methods none cutmix --decay-at 2 2.5 --no-nesterov"),
    ],
)
def test_the_command_of_a_card_is_one_of_the_same_settings(recipe_name, own):
    given = ["--preset", "smoke", "--data", "svhn", "--labels", "40", "--epochs", "3", *shlex.split(own)]
    module = recipe(recipe_name)
    config = parse(module.Config, module.PRESETS, [*given, "--out", "elsewhere"])
    group = Group(Path(), "a", plain(config), begun_by(config), {}, None, [], [])
    hybridgen, train, name, *arguments = command(group)
    assert (hybridgen, train, name) == ("hybridgen", "train", recipe_name.replace("_", "-"))
    assert identity(parse(module.Config, module.PRESETS, arguments)) == identity(config)
    written = trained(replace(group, result={"seed": 3, "steps": 7, "seconds": 2})).split("`")[1]
    assert shlex.split(written) == command(group)


@pytest.mark.parametrize("data", ["hf:owner/name", "hf:owner/name,label=fine"])
def test_the_card_names_the_data_set_of_the_hub(run, data):
    (run / "setup.json").write_text(json.dumps(SETUP | {"data": SETUP["data"] | {"name": data}}))
    made = ModelCard(classifier_card(run / "network.safetensors", "me/toy"))
    assert made.data.datasets == ["owner/name"] and made.data.eval_results[0].dataset_type == "owner/name"
    assert f", of {data.removeprefix('hf:')}: images" in made.text


def test_places_of_a_machine_go_and_names_stay():
    given = {"data": "npz:/a/b/c.npz", "split": "~/d/e.json", "of": ["C:\\x\\y", "owner/name@v1", "runs/a"], "n": 3}
    assert without_places(given) == {
        "data": "npz:c.npz", "split": "e.json", "of": ["y", "owner/name@v1", "runs/a"], "n": 3,
    }  # fmt: skip
