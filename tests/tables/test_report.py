"""The page of runs: what it says, compared with the files that it is made of."""

import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from math import nan
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image

from hybridgen.cli import main
from hybridgen.evaluation.oracle import Training
from hybridgen.evaluation.paired import gain_of_runs, paired_gain
from hybridgen.evaluation.transfer import HYBRIDIZER, MIXUP, spoken_rates, verdict
from hybridgen.tables import ending
from hybridgen.tables.cost import noise
from hybridgen.tables.ending import conclude_hybridizer, end, save_transfer
from hybridgen.tables.pictures import pictures_of
from hybridgen.tables.report import confusion, curves_of
from hybridgen.training.context import RunSettings
from hybridgen.types import InputError

NAUGHTY = "<b>cat</b>"


class Page(HTMLParser):
    """Tables as rows of texts, headings, scripts, and every address that would be loaded."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows, self.loaded, self.tags, self.scripts, self.pictures, self.text = [], [], set(), [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.loaded += [value for name, value in attributes if name in ("src", "href", "srcset", "data", "action")]
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag == "script":
            self.scripts.append("")
        if tag == "img":
            self.pictures.append(dict(attributes))

    def handle_data(self, data):
        if self.lasttag == "script":
            self.scripts[-1] += data
        elif self.lasttag != "style":
            self.text += data
        if self.rows and self.rows[-1] and self.lasttag in ("td", "th", "small"):
            self.rows[-1][-1] += data

    def all_rows(self, *beginning: str) -> list[list[str]]:
        found = (row for row in self.rows if row[: len(beginning)] == list(beginning))
        return [[re.sub(r"\s+", " ", text).strip() for text in row] for row in found]

    def row(self, *beginning: str) -> list[str]:
        (found,) = self.all_rows(*beginning)
        return found


def leave(
    folder: Path,
    *,
    seed: int = 0,
    right: int = 3,
    finished: bool = True,
    seconds: float = 75.0,
    classes=(NAUGHTY, "dog", "none"),
) -> None:
    """What a run leaves: of six test images, three of each of two classes, the first `right` are predicted right."""
    folder.mkdir(parents=True)
    method = "method:\n  threshold: 0.9\n  epochs: 3.0\n  rate: null\n"
    (folder / "config.yaml").write_text(f"data: toy\nseed: 0\nlabels: auto\n{method}")
    rows = [
        {"step": step, "epoch": step / 4, "classifier/total": 1 / step, "classifier/weighted/total": 7.0}
        for step in (1, 2, 3)
    ]
    rows.append({"step": 3, "epoch": 0.75, "validation/accuracy": float("nan")})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    setup = {
        "data": {"name": "toy", "fingerprint": "f" * 64, "classes": list(classes), "train": 40, "test": 6},
        "split": {"labelled": 4, "unlabelled": 30, "validation": 5, "seed": 0, "hash": "abc123"},
        "changed": ["method.epochs"], "chosen": {"method.rate": 0.03, "method.epochs": 14, "labels": 4}, "steps": 12,
        "environment": {"torch": "9.8.7", "processor": "an abacus"},
    }  # fmt: skip
    (folder / "setup.json").write_text(json.dumps(setup))
    if not finished:
        return
    labels = np.array([0, 0, 0, 1, 1, 1])
    predicted = np.where(np.arange(6) < right, labels, 1 - labels)
    np.savez(
        folder / "predictions.npz",
        logits=np.eye(3, dtype=np.float32)[predicted],
        labels=labels,
        classes=np.array(classes),
    )
    result = {
        "test_accuracy_last": 0.5,
        "test_accuracy_selected": right / 6,
        "selected_step": 2,
        "seed": seed,
        "steps": 3,
        "seconds": seconds,
    }
    (folder / "result.json").write_text(json.dumps(result | {"split_hash": "abc123"}))


def report(*folders: Path) -> Page:
    out = folders[0].parent / "page.html"
    main(["report", *map(str, folders), "--out", str(out)])
    return Page(out.read_text())


def test_the_page_says_what_the_files_say_and_loads_nothing(tmp_path):
    leave(tmp_path / "run")
    picture = tmp_path / "run" / "grid.png"
    Image.new("RGB", (4, 6)).save(picture)
    page = report(tmp_path / "run")
    # Of six images Wilson's interval of a half is [18.8, 81.2], by the formula of 1927
    figures = ["50.0 [18.8, 81.2]", "50.0 [18.8, 81.2]", "2", "3", "1 min 15 s"]
    assert page.row("run, seed 0", "finished")[2:] == figures
    drawn = json.loads(page.scripts[0])["curves"]
    assert drawn == {
        "validation/accuracy": [{"run": 0, "points": [[3, None]]}],
        "classifier/total": [{"run": 0, "points": [[1, 1.0], [2, 0.5], [3, 1 / 3]]}],
    }
    assert page.row("epochs") == ["epochs", "3.0"] and page.row("threshold") == ["threshold", "0.9"]
    assert page.row("rate") == ["rate", "0.03, chosen"]
    assert page.row("labels") == ["labels", "4, chosen"]
    order = [row[0].strip() for row in page.rows]
    place = order.index("setting")  # what is no default comes first, and of both the settings of no group
    assert order[place:][:10] == [
        "setting", "method", "epochs", "setting", "run", "data", "seed", "labels", "method", "threshold",
    ]  # fmt: skip
    assert "5 other settings" in page.text
    assert "is not recorded of every run" not in page.text and "its selected network" in page.text
    assert page.row("of them unlabelled") == ["of them unlabelled", "30"] and page.row("processor")[1] == "an abacus"
    assert page.row("hash of the split")[1] == "abc123" and page.row("classes") == ["classes", "3"]
    assert page.row("fingerprint")[1] == "f" * 16 + "…"  # of 64 letters
    # Three of the first class right, none of the second; of the third there are no images
    assert page.row(NAUGHTY, "3") == [NAUGHTY, "3", "100.0 [43.9, 100.0]"]
    assert page.row("dog", "3") == ["dog", "3", "0.0 [0.0, 56.1]"]
    assert page.row("none", "none in the test") == ["none", "none in the test", "–"]
    assert page.row(NAUGHTY, "100") == [NAUGHTY, "100", "", ""] and page.row("dog", "100") == ["dog", "100", "", ""]
    assert page.row("none", "–") == ["none", "–", "–", "–"]
    assert "b" not in page.tags and "<b>" not in page.scripts[0]
    assert all(address.startswith("data:image/png;base64,") for address in page.loaded) and len(page.pictures) == 1
    text = (tmp_path / "page.html").read_text()
    assert re.findall(r'data-curve="(\S+)"', text) == ["validation/accuracy", "classifier/total"]
    assert 'title="dog as dog: 0 of 3"' in text
    assert not re.search(r"url\(|@import|fetch\(|XMLHttpRequest|import\(", text) and "link" not in page.tags


def test_variants_stand_in_one_table_where_only_some_have_several_seeds(tmp_path):
    for name in ("fixmatch-seed0", "fixmatch-seed1", "other-seed0"):
        leave(tmp_path / "run" / name)
    for name in ("config.yaml", "setup.json"):
        shutil.copy(tmp_path / "run" / "other-seed0" / name, tmp_path / "run")
    once = {"test_accuracy_last": {"mean": 0.5}, "test_accuracy_selected": {"mean": 0.25}, "seconds": {"mean": 61.0}}
    several = {name: figures | {"std": 0.125} for name, figures in once.items()}
    result = {"classifiers": {"fixmatch": several, "other": once}}
    (tmp_path / "run" / "result.json").write_text(json.dumps(result))
    page = report(tmp_path / "run")
    assert page.row("variant") == ["variant", "last, %", "selected, %", "gain over the first, points", "time a run"]
    # Wilson's interval of a half and of a quarter of six images
    of_fixmatch = ["50.0 ± 12.5 [18.8, 81.2]", "25.0 ± 12.5 [6.0, 63.5]", "–", "1 min 01 s"]
    assert page.row("fixmatch")[1:] == of_fixmatch
    assert page.row("other")[1:] == ["50.0 [18.8, 81.2]", "25.0 [6.0, 63.5]", "–", "1 min 01 s"]
    # Where there is no setup.json, of as many images as the result says, or as were predicted
    for folder in (tmp_path / "run", tmp_path / "run" / "other-seed0"):
        (folder / "setup.json").unlink()
    page = report(tmp_path / "run")
    assert page.row("other")[1] == "50.0" and page.row("other, seed 0", "finished")[2] == "50.0 [18.8, 81.2]"
    (tmp_path / "run" / "result.json").write_text(json.dumps(result | {"test_images": 6}))
    assert report(tmp_path / "run").row("other")[1] == "50.0 [18.8, 81.2]"


RATES = {
    "semantic_transfer": 0.61, "semantic_transfer_interval": [0.59, 0.63], "nonsemantic_preservation": 0.97,
    "nonsemantic_preservation_interval": [0.96, 0.98], "background_inheritance": None, "oracle_accuracy": 0.9,
}  # fmt: skip


def test_a_comparison_of_rounds_tells_gains_further_figures_and_what_each_rounds_hybrids_inherit(tmp_path):
    """Runs stand in the order of the table, then by number of their seeds; what is trained beside stands last."""
    run, variants = tmp_path / "run", ("ZMatch", "ZMatch + SciMix", "ZMatch + SciMix, round 2")
    for name in ("zmatch-seed2", "zmatch-seed10", "scimix-seed2", "scimix-round-2-seed2", "hybridizer-seed2"):
        right = {"zmatch-seed10": 6, "scimix-seed2": 5}.get(name, 4)
        leave(run / name, seed=int(name.rpartition("-seed")[2]), right=right, finished=name != "hybridizer-seed2")
    own = run / "scimix-seed2" / "result.json"
    own.write_text(json.dumps(json.loads(own.read_text()) | {"test_nll_last": 0.123456, "test_ece_last": 2}))
    for name in ("config.yaml", "setup.json"):
        shutil.copy(run / "zmatch-seed2" / name, run)
    Image.new("RGB", (4, 6)).save(run / "grid.png")
    with (run / "zmatch-seed2" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "epoch": 1.0, "x": 1.0}\n' * 400)
    figures = {"test_accuracy_last": {"mean": 0.5, "std": 0.1}, "test_accuracy_selected": {"mean": 0.5, "std": 0.1},
               "seconds": {"mean": 61.0}}  # fmt: skip
    gains = ({}, {"gain": {"mean": 0.12, "low": -0.01, "high": 0.25}}, {"gain": {"mean": 0.2, "low": 0.1, "high": 0.3}})
    several = {name: value for name, value in RATES.items() if not name.endswith("_interval")}
    result = {
        "classifiers": {name: figures | gain for name, gain in zip(variants, gains, strict=True)},
        "beside": {"Hybridizer": {"seconds": {"mean": 1.0}}}, "earlier": {"ZMatch + SciMix": RATES},
        "transfer": several | {"semantic_transfer": 0.3, "semantic_transfer_std": 0.02},
    }  # fmt: skip
    (run / "result.json").write_text(json.dumps(result))
    seen = {"classes": ["a", "b"], "confusion": [[0.75, 0.25], [None, None]]}
    (run / "transfer.json").write_text(json.dumps(RATES | {"semantic_transfer": 0.45} | seen))
    page = report(run)
    order = ["ZMatch, seed 2", "ZMatch, seed 10", "ZMatch + SciMix, seed 2", "ZMatch + SciMix, round 2, seed 2",
             "Hybridizer, seed 2"]  # fmt: skip
    assert [each["name"] for each in json.loads(page.scripts[0])["runs"]] == order
    assert [each["alt"] for each in page.pictures] == ["as last drawn"] and "hybrids that were used" in page.text
    assert "Of longer curves 400 records at most are drawn" in page.text
    assert page.row("ZMatch + SciMix")[3] == "+12.0 [-1.0, +25.0] within chance"
    assert page.row("ZMatch + SciMix, round 2")[3] == "+20.0 [+10.0, +30.0]"
    assert "mean ± standard deviation over seeds, and Wilson's 95 % interval. Gains" in page.text
    assert "95 % intervals by Student's t." in page.text
    assert page.row("run", "ece last") == ["run", "ece last", "nll last"]
    assert page.row(order[2], "2")[1:] == ["2", "0.1235"] and page.row(order[0], "–")[1:] == ["–", "–"]
    # Of each variant the first seed; of its six images four or five are right
    assert "Accuracy by class, of each variant's first seed and its selected network; Wilson's" in page.text
    titles = re.findall(r"Confusion, (.+) right", page.text)
    assert titles == [f"{name}, seed 2: {right} of 6" for name, right in zip(variants, (4, 5, 4), strict=True)]
    assert [cell.partition(" ")[0] for cell in page.row("dog", "3")[2:]] == ["33.3", "66.7", "33.3"]
    assert [row[1:3] for row in page.all_rows("dog")[1:]] == [["67", "33"], ["33", "67"], ["67", "33"]]
    # Of several hybridizers their means and deviations, in the place of the one whose picture and confusion there is
    rates = [row[1:] for row in page.all_rows(HYBRIDIZER)]
    assert rates == [["61.0 [59.0, 63.0]", "97.0 [96.0, 98.0]", "–"], ["30.0 ± 2.0", "97.0", "–"]]
    verdicts = re.findall(r"Verdict: (good enough to teach|semantic transfer below)", page.text)
    assert verdicts == ["good enough to teach", "semantic transfer below"]
    assert page.text.partition("Verdict: ")[0].rstrip().endswith("\nZMatch + SciMix")  # whose hybrids those were
    assert not page.all_rows("a", "75")

    # Of one, with its confusion and the simpler hybrids beside it; and gains by image
    for gain in result["classifiers"].values():
        gain |= {"gain_by_image": gain.pop("gain")} if "gain" in gain else {}
    (run / "result.json").write_text(json.dumps(result | {"transfer": RATES, "earlier": None}))
    of_mixup = {"semantic_transfer": 0.2, "semantic_transfer_interval": [0.1, 0.3], "nonsemantic_preservation": 0.7,
                "nonsemantic_preservation_interval": [0.6, 0.8], "background_inheritance": 0.5,
                "background_inheritance_interval": [0.4, 0.6]}  # fmt: skip
    one = RATES | seen | {"mixup": of_mixup, "semantic_parents": 28, "repeats": 4, "own_semantic_transfer": 0.777}
    (run / "transfer.json").write_text(json.dumps(one))
    page = report(run)
    assert page.row(MIXUP)[1:] == ["20.0 [10.0, 30.0]", "70.0 [60.0, 80.0]", "50.0 [40.0, 60.0]"]
    assert (
        "sees the class of 90.0% of the test images; 95 % intervals by 28 semantic parents of 4 partners. The "
        "hybridizer's own classifier sees a semantic transfer of 77.7%." in page.text
    )
    assert page.row("a", "75") == ["a", "75", "25"] and page.row("b", "–") == ["b", "–", "–"]
    assert "paired by image, of the selected networks" in page.text


def test_runs_stand_side_by_side_and_unfinished_ones_say_so(tmp_path):
    leave(tmp_path / "one" / "fixmatch-seed0", right=6)
    leave(tmp_path / "two" / "fixmatch-seed0", finished=False)
    for name in ("one", "two"):
        (tmp_path / name / "config.yaml").write_text(f"data: toy\nseed: 0\nlabels: {len(name) + (name == 'two')}\n")
    page = report(tmp_path / "one", tmp_path / "two")
    assert page.row("one: fixmatch, seed 0", "finished")[3] == "100.0 [61.0, 100.0]"
    assert page.row("two: fixmatch, seed 0")[1:4] == ["unfinished, recorded up to step 3 of 12", "–", "–"]
    assert "two: unfinished: result.json is not there yet" in page.text
    assert page.row("labels") == ["labels", "3", "4"]
    assert page.row("hash of the split") == ["hash of the split", "abc123", "not recorded"]
    data = json.loads(page.scripts[0])
    assert [each["run"] for each in data["curves"]["classifier/total"]] == [0, 1]
    assert [run["colour"] for run in data["runs"]] == [0, 1]
    (tmp_path / "three").mkdir()
    (tmp_path / "three" / "config.yaml").write_text("data: toy\n")
    empty = report(tmp_path / "three").text
    assert "no training has begun" in empty and "is not recorded of every run" in empty
    (tmp_path / "three" / "checkpoints").mkdir()  # before the first record
    assert report(tmp_path / "three").row("three")[1] == "unfinished, recorded up to step 0"


def test_classes_of_other_data_stand_in_a_table_of_their_own(tmp_path):
    """Of the last network, where none was selected."""
    leave(tmp_path / "one", right=6)
    leave(tmp_path / "two", right=3, classes=("x", "y", "z"))
    result = json.loads((tmp_path / "two" / "result.json").read_text())
    (tmp_path / "two" / "result.json").write_text(
        json.dumps({name: figure for name, figure in result.items() if "selected" not in name})
    )
    page = report(tmp_path / "one", tmp_path / "two")
    assert [page.row(name, "3")[2:] for name in ("dog", "x")] == [["100.0 [43.9, 100.0]"]] * 2
    assert page.row("y", "3")[2:] == ["0.0 [0.0, 56.1]"]
    captions = re.findall(r"of each variant's first seed and its (\w+) network", page.text)
    assert captions == ["selected", "last"] and "one · two" in page.text


def test_curves_of_a_variant_have_a_colour_and_lines_apart_from_all_others_of_it(tmp_path):
    """The ninth has the first one's colour again, and another line."""
    for name in (*(f"{letter}-seed0" for letter in "abcdefghij"), "a-seed1", "a-seed2"):
        leave(tmp_path / "run" / name, finished=False)
    (tmp_path / "run" / "config.yaml").write_text("data: toy\n")
    runs = {run["name"]: run for run in json.loads(report(tmp_path / "run").scripts[0])["runs"]}
    firsts = [runs[f"{letter}, seed 0"] for letter in "abcdefghij"]
    assert [run["colour"] for run in firsts] == [*range(8), 0, 1]
    assert len({(run["colour"], run["dash"]) for run in firsts}) == 10
    seeds = [runs[f"a, seed {seed}"] for seed in range(3)]
    assert {run["colour"] for run in seeds} == {0} and len({run["dash"] for run in seeds}) == 3


def test_of_long_curves_few_points_are_drawn_and_of_many_classes_the_largest_errors():
    rows = [{"step": step, "epoch": 0.0, "loss": step / 2} for step in range(1, 1002)]
    (drawn,) = curves_of([SimpleNamespace(trainings=[SimpleNamespace(rows=rows)])])["loss"]
    assert drawn["points"] == [(step, step / 2) for step in (*range(1, 1002, 3), 1001)]  # 400 at most, and the last
    classes, shares = [f"class {place}" for place in range(51)], np.eye(51)
    shares[7, 9], shares[9, 8], shares[3, 3] = 0.25, 0.5, 0.0
    errors = confusion(shares.tolist(), classes, "")["errors"]
    assert list(errors.rows) == [("class 9", "class 8", ("50.0", "")), ("class 7", "class 9", ("25.0", ""))]
    assert len(confusion(np.full((51, 51), 1 / 51).tolist(), classes, "")["errors"].rows) == 20
    assert len(confusion(np.eye(50).tolist(), classes[:50], "")["rows"]) == 50


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(59.7, "1 min 00 s"), (3599, "59 min 59 s"), (3600, "1 h 00 min"), (7559, "2 h 05 min")],
)
def test_times_are_told_in_seconds_below_an_hour(seconds, said, tmp_path):
    leave(tmp_path / "run", seconds=seconds)
    assert report(tmp_path / "run").row("run, seed 0", "finished")[-1] == said


def test_an_accuracy_that_is_no_number_is_a_dash(tmp_path):
    leave(tmp_path / "run")
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    (tmp_path / "run" / "result.json").write_text(json.dumps(result | {"test_accuracy_last": nan}))
    assert report(tmp_path / "run").row("run, seed 0", "finished")[2] == "–"


def test_a_folder_may_have_a_name_of_two_lines(tmp_path):
    leave(tmp_path / "two\nlines-seed3", seed=3)
    page = report(tmp_path / "two\nlines-seed3")
    assert page.row("two\nlines, seed 3", "finished")[3] == "50.0 [18.8, 81.2]"


def test_what_is_damaged_is_one_line_or_a_note(tmp_path, capsys):
    leave(tmp_path / "run")
    out = tmp_path / "page.html"

    def refused(*arguments: str) -> str:
        with pytest.raises(SystemExit) as end:
            main(["report", *arguments])
        said = capsys.readouterr().err.splitlines()
        assert end.value.code == 2 and len(said) == 1 and not out.exists()
        return said[0]

    assert "nowhere: no such folder" in refused(str(tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    assert "config.yaml is missing" in refused(str(tmp_path / "empty"))
    assert "--out: is missing" in refused(str(tmp_path / "run"), str(tmp_path / "empty"))
    assert "a .html file is needed" in refused(str(tmp_path / "run"), "--out", str(tmp_path / "page.txt"))
    assert "each once" in refused(str(tmp_path / "run"), str(tmp_path / "run"), "--out", str(out))
    whole = (tmp_path / "run" / "result.json").read_text()
    for damaged in (whole[:40], '{"classifiers": 5}', '{"classifiers": {"FixMatch": {}}}'):
        (tmp_path / "run" / "result.json").write_text(damaged)
        assert "result.json" in refused(str(tmp_path / "run"), "--out", str(out))
    (tmp_path / "run" / "result.json").write_text(whole)
    for name in ("predictions.npz", "setup.json", "grid.png", "transfer.json"):
        (tmp_path / "run" / name).write_text(
            '{"confusion": [[1]], "classes": ["a"]}' if name == "transfer.json" else "?"
        )
    page = report(tmp_path / "run")
    for name in ("predictions.npz", "setup.json", "grid.png", "transfer.json"):
        assert re.search(rf"left out: \S*{name}", page.text), name
    assert page.row("run, seed 0", "finished")[2] == "50.0"  # of how many images is not known
    (tmp_path / "run" / "setup.json").write_text('{"data": 5, "changed": "x", "steps": "many", "recipe": "r"}')
    assert report(tmp_path / "run").row("training images") == ["training images", "not recorded"]
    inner = {
        "data": {"classes": 3, "test": "many", "train": 40}, "split": {"labelled": None}, "changed": [["a"], "seed"],
        "environment": {"torch": None, "Python": "9.8"}, "flags": {"seed": 5},
    }  # fmt: skip
    (tmp_path / "run" / "setup.json").write_text(json.dumps(inner))
    page = report(tmp_path / "run")
    assert page.row("training images") == ["training images", "40"] and page.row("Python") == ["Python", "9.8"]
    for wrong in ("data.classes is 3", "data.test is 'many'", "split.labelled is None", "environment.torch is None"):
        assert f"setup.json: {wrong}" in page.text
    lopsided = {"classes": ["a", "b"], "confusion": [[1.0], [0.0]]}
    (tmp_path / "run" / "transfer.json").write_text(json.dumps(RATES | lopsided))
    assert re.search(r"left out: \S*transfer.json", report(tmp_path / "run").text)


def test_pictures_over_training_are_those_of_tensorboard_without_steps_that_were_done_again(tmp_path):
    from torch.utils.tensorboard import SummaryWriter

    image, run = lambda grey: torch.full((3, 2, 2), grey / 255), tmp_path / "run"
    leave(run)
    files: list[Path] = []
    for number, purge, steps in ((9, None, (1, 2, 3)), (10, 3, (4, 5))):
        with SummaryWriter(str(run / "tensorboard"), purge_step=purge) as writer:
            for step in steps:
                writer.add_image("grid", image(10.0 * step), step)
                writer.add_scalar("loss", 1.0, step)
        (file,) = {*(run / "tensorboard").iterdir()} - {*files}
        files.append(file.rename(file.with_name(f"events.out.tfevents.1700000000.host.7.{number}")))  # of one second
    assert pictures_of(run, most=9) == []  # a run that has no picture of its own draws none
    Image.new("RGB", (2, 2)).save(run / "grid.png")
    found = pictures_of(run, most=9)
    assert [step for step, _ in found] == [1, 2, 4, 5]
    (tmp_path / "one.png").write_bytes(found[2][1])
    with Image.open(tmp_path / "one.png") as picture:
        assert picture.getpixel((0, 0)) == (40, 40, 40)
    for most, steps in ((1, [5]), (2, [1, 5]), (3, [1, 2, 5])):
        assert [step for step, _ in pictures_of(run, most=most)] == steps
    assert [each["alt"] for each in report(run).pictures] == ["step 1", "step 2", "step 4", "step 5"]


# --- gains by image, and verdicts ----------------------------------------------------------------------------


def test_paired_gains_are_bonett_and_prices():
    """By hand: of 100 images 5 are lost and 15 won, so that p12 = 6/102 and p21 = 16/102."""
    first = torch.arange(100) < 50
    other = first.clone()
    other[:5], other[50:65] = False, True
    gain, middle = paired_gain(first, other), 10 / 102
    spread = 1.959964 * ((22 / 102 - middle**2) / 102) ** 0.5
    assert gain == pytest.approx({"mean": 0.1, "low": middle - spread, "high": middle + spread})
    backwards = paired_gain(other, first)
    assert (backwards["low"], backwards["high"]) == pytest.approx((-gain["high"], -gain["low"]))
    same = paired_gain(first, first)
    assert same["mean"] == 0 and same["low"] < 0 < same["high"]


def test_paired_intervals_hold_the_truth_as_often_as_they_say():
    """Of 60 images that one alone (8 %), the other alone (20 %), or neither alone has right."""
    random, held = np.random.default_rng(0), 0
    for lost, won, _ in random.multinomial(60, (0.08, 0.20, 0.72), 1000):
        first, other = torch.zeros(60, dtype=torch.bool), torch.zeros(60, dtype=torch.bool)
        first[:lost], other[lost : lost + won] = True, True
        gain = paired_gain(first, other)
        held += gain["low"] <= 0.12 <= gain["high"]
    assert 930 <= held <= 975


def test_gains_of_runs_are_those_of_their_predictions(tmp_path):
    for name, right in (("a", 2), ("b", 5)):
        leave(tmp_path / name, right=right)
    assert gain_of_runs(tmp_path / "a", tmp_path / "b")["mean"] == pytest.approx(0.5)
    assert gain_of_runs(tmp_path / "a", tmp_path) is None
    leave(tmp_path / "c", classes=("other", "dog", "none"))
    with pytest.raises(InputError, match="c: other names of classes"):
        gain_of_runs(tmp_path / "a", tmp_path / "c")


def test_the_end_of_a_recipe_lists_what_is_in_each_folder_the_report_first(tmp_path, capsys, monkeypatch):
    """Runs stand on lines of their own, and not among what the folder above them holds."""
    leave(tmp_path / "fixmatch-seed0")
    leave(tmp_path / "other-seed0", finished=False)
    for name in ("config.yaml", "setup.json", ".claimed"):
        shutil.copy(tmp_path / "other-seed0" / "config.yaml", tmp_path / name)
    (tmp_path / "hybridizer").mkdir()
    end(tmp_path, Accelerator(cpu=True), ["score", "a b"])
    assert capsys.readouterr().out.splitlines() == [
        "written:",
        f"  {tmp_path}: report.html, config.yaml, hybridizer/, setup.json",
        f"  {tmp_path / 'fixmatch-seed0'}: config.yaml, metrics.jsonl, predictions.npz, result.json, setup.json",
        "next: hybridgen score 'a b'",
    ]
    # One that cannot be written fails nothing
    (tmp_path / "result.json").write_text('{"classifiers": 5}')
    (tmp_path / "report.html").unlink()
    end(tmp_path, Accelerator(cpu=True))
    said = capsys.readouterr()
    assert said.err.startswith("report: not written: ") and "result.json" in said.err
    assert said.out.splitlines()[1] == f"  {tmp_path}: config.yaml, hybridizer/, result.json, setup.json"
    assert "next" not in said.out
    monkeypatch.setattr(Accelerator, "is_main_process", False)
    end(tmp_path, Accelerator(cpu=True), ["score"])
    assert capsys.readouterr() == ("", "")  # of several processes the first says it


@pytest.mark.parametrize(("method", "recipe"), [("scimix", "scimix-fixmatch"), ("adain", "fixmatch")])
def test_a_hybridizer_is_judged_and_may_teach_a_classifier_of_the_same_data(
    method, recipe, tmp_path, monkeypatch, capsys
):
    """By an oracle of the run's size: 266 images that are drawn allow 20 of its 80 steps."""
    rates = {"semantic_transfer": 0.61, "semantic_transfer_interval": [0.59, 0.63], "nonsemantic_preservation": 0.97,
             "nonsemantic_preservation_interval": [0.96, 0.98], "oracle_accuracy": 0.9}  # fmt: skip
    asked, judged = [], []
    monkeypatch.setattr(ending, "oracle_of", lambda judge, *given: asked.append(judge.steps) or "the oracle")
    found = SimpleNamespace(to_dict=lambda: rates, confusion=torch.eye(3))
    monkeypatch.setattr(ending, "transfer_rates", lambda *given: judged.append(given) or found)
    context = noise(3, 16, 40, Accelerator(cpu=True), labelled=12)
    labels = torch.where(torch.arange(40) < 20, context.dataset.test.labels, -1)  # of twenty images the class is known
    context = replace(context, dataset=replace(context.dataset, test=replace(context.dataset.test, labels=labels)))
    plan = SimpleNamespace(context=context, stream=SimpleNamespace(images_per_step=38))
    hybridizer = SimpleNamespace(origin=SimpleNamespace(method=method))
    settings = RunSettings(
        out=tmp_path, data="svhn", image_size=32, data_root="d", labels=60, split=Path("s.json"), split_seed=7,
        validation=9, seed=5, whole=True, flip="never",
    )  # fmt: skip
    result = {"test_accuracy_last": 0.55, "steps": 7, "seconds": 66.4}
    judge = Training(steps=80, batch_size=2, shrinks=True)
    assert conclude_hybridizer(settings, plan, hybridizer, judge, result) is result
    assert asked == [20] and judged == [(hybridizer, context.dataset, "the oracle", context.accelerator)]
    assert json.loads((tmp_path / "transfer.json").read_text()).items() >= rates.items()
    # Of 20 test images Wilson's interval of 55 % is [34.2, 74.2], by the formula of 1927
    lines = [
        "noise, 12 labels, 7 steps, 66 seconds",
        "its own classifier: test accuracy 55.0 % [34.2, 74.2], 95 % by 20 test images",
        f"hybrids: {spoken_rates(rates)}; {tmp_path / 'grid.png'}",
        f"hybrids: {verdict(rates)}",
    ]
    said = capsys.readouterr().out.splitlines()
    assert said[1:5] == lines and said[-1] == (
        f"next: hybridgen train {recipe} --hybridizer {tmp_path / 'hybridizer'} --data svhn --image-size 32 "
        "--whole --flip never --data-root d --labels 60 --split s.json --split-seed 7 --validation 9"
    )
    # An oracle that is there is taken as it is; and of images of no known class there is no accuracy
    unknown = replace(context.dataset.test, labels=torch.full((40,), -1))
    plan.context = replace(context, dataset=replace(context.dataset, test=unknown))
    conclude_hybridizer(settings, plan, hybridizer, SimpleNamespace(steps=99), result | {"test_accuracy_last": nan})
    assert asked == [20, 99] and "its own classifier: no test image of known class\n" in capsys.readouterr().out
    conclude_hybridizer(settings, plan, hybridizer, None, result, teaches=False)
    said = capsys.readouterr().out
    assert f"hybrids: not judged (--oracle none); {tmp_path / 'grid.png'}" in said and "next" not in said
    assert len(judged) == 2


def test_confusions_of_hybrids_are_kept_with_the_class_of_the_semantic_parent_as_row(tmp_path, monkeypatch):
    """A quarter of those of a class is seen as the third, all of the next one too; of the third there are none."""
    shares = torch.tensor([[0.75, 0, 0.25], [0, 0, 1], [torch.nan] * 3], dtype=torch.float64)
    rates = SimpleNamespace(to_dict=lambda: {"semantic_transfer": 0.6}, confusion=shares)
    dataset = SimpleNamespace(classes=("a", "b", "c"))
    save_transfer(tmp_path, rates, SimpleNamespace(accelerator=Accelerator(cpu=True), dataset=dataset))
    assert json.loads((tmp_path / "transfer.json").read_text()) == {
        "semantic_transfer": 0.6, "classes": ["a", "b", "c"],
        "confusion": [[0.75, 0.0, 0.25], [0.0, 0.0, 1.0], [None, None, None]],
    }  # fmt: skip
    (tmp_path / "transfer.json").unlink()
    monkeypatch.setattr(Accelerator, "is_main_process", False)
    save_transfer(tmp_path, rates, SimpleNamespace(accelerator=Accelerator(cpu=True), dataset=dataset))
    assert not (tmp_path / "transfer.json").exists()


@pytest.mark.parametrize(("semantic", "preserved", "oracle", "own", "said"), [
    (0.49, 0.99, 0.9, 0.58, "too low to teach; train the hybridizer longer, or guided by a better classifier"),
    (0.49, 0.99, 0.9, None, "too low to teach; train the hybridizer longer"),
    (0.49, 0.99, 0.9, 0.6, "too low to teach; its own classifier is fooled, for it sees 60%; train the"),
    (0.51, 0.99, 0.9, 0.9, "good enough to teach; hybrids still lose"),
    (0.51, 0.30, 0.9, None, "nearer to their semantic parents"),
    (0.85, 0.99, 0.9, None, "good: classes"),
    (0.85, 0.99, 0.59, None, "too few to judge by"), (0.23, 0.99, 0.61, None, "too low to teach"),
])  # fmt: skip
def test_verdicts(semantic, preserved, oracle, own, said):
    rates = {"semantic_transfer": semantic, "nonsemantic_preservation": preserved, "oracle_accuracy": oracle}
    assert said in verdict(rates | {"own_semantic_transfer": own})
    assert own is not None or said in verdict(rates)  # of a run that was judged before
