"""Files of predictions, and which belong together."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from hybridgen.evaluation.predictions import Predictions, check_alike, read_predictions, together, write_predictions
from hybridgen.types import InputError

GENERATOR = torch.Generator().manual_seed(0)
MEMBERS = torch.randn(2, 5, 3, generator=GENERATOR)
LABELS = torch.tensor([0, 2, 1, 1, 0])
WHOLE = Predictions(
    "whole",
    MEMBERS,
    LABELS,
    "probabilities",
    ("a", "b", "c"),
    torch.tensor([9, 2, 3, 4, 7]),
    "f" * 64,
    "test",
    "0" * 16,
)


def same(first: Predictions, other: Predictions) -> bool:
    return all(
        torch.equal(mine, theirs) if isinstance(mine, torch.Tensor) else mine == theirs
        for mine, theirs in zip(vars(first).values(), vars(other).values(), strict=True)
    )


def written(path: Path, **arrays) -> Path:
    np.savez(path, **{key: value for key, value in arrays.items() if value is not None})
    return path


def test_what_is_written_is_read(tmp_path):
    single = Predictions("whole", MEMBERS[:1].double(), LABELS)
    for predictions in (WHOLE, single, replace(WHOLE, members=MEMBERS[1:], ensemble="logits")):
        write_predictions(tmp_path / "p.npz", predictions)
        assert same(read_predictions(tmp_path / "p.npz", name="whole"), predictions)
    with np.load(tmp_path / "p.npz") as file:
        assert file["logits"].shape == (5, 3) and file["labels"].tolist() == LABELS.tolist()


def test_probabilities_are_logits_too(tmp_path):
    probabilities = np.array([[0.7, 0.2, 0.1], [0.0, 1.0, 0.0]])
    path = written(tmp_path / "p.npz", probabilities=probabilities, labels=np.array([0, 1], dtype=np.uint8))
    read = read_predictions(path, name="p")
    np.testing.assert_allclose(read.logits.softmax(dim=1), probabilities, rtol=1e-12)
    assert read.labels.tolist() == [0, 1] and read.logits.dtype == torch.float64
    half = written(tmp_path / "half.npz", logits=MEMBERS.numpy().astype(np.float16), labels=LABELS.numpy())
    for ensemble in ("logits", "probabilities"):
        read = read_predictions(half, name="half", ensemble=ensemble)
        assert read.ensemble == ensemble and read.members.shape == (2, 5, 3) and read.logits.dtype == torch.float32


@pytest.mark.parametrize("kind", ["longdouble", ">f8", ">f4"])
def test_floating_point_numbers_of_any_kind_are_read(tmp_path, kind):
    """Longer ones than torch knows as float64."""
    path = written(tmp_path / "p.npz", logits=MEMBERS[0].numpy().astype(kind), labels=LABELS.numpy())
    read = read_predictions(path, name="p").logits
    assert read.dtype == (torch.float32 if kind == ">f4" else torch.float64)
    assert torch.equal(read, MEMBERS[0].to(read.dtype))


@pytest.mark.parametrize(("total", "taken"), [(1.0009, True), (1.0011, False), (0.9991, True), (0.9989, False)])
def test_probabilities_sum_to_one_but_for_a_thousandth(tmp_path, total, taken):
    path = written(tmp_path / "p.npz", probabilities=np.array([[0.5, total - 0.5]]), labels=np.array([1]))
    if taken:
        assert read_predictions(path, name="p").members.exp().sum().item() == pytest.approx(total)
    else:
        with pytest.raises(InputError, match=f"sum to {total}"):
            read_predictions(path, name="p")


GOOD = dict(logits=MEMBERS[0].numpy(), labels=LABELS.numpy())
EVEN = np.full((5, 3), 1 / 3)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"logits": None}, "no logits; logits or probabilities are needed"),
        ({"probabilities": EVEN}, "logits and probabilities; logits or probabilities"),
        ({"labels": None}, "labels are missing"),
        ({"predictions": EVEN}, "unknown key predictions; known are logits, probabilities, labels, classes"),
        ({"logits": MEMBERS[0, 0].numpy()}, "logits are float32 of shape [3]; needed are floating point"),
        ({"logits": np.ones((5, 3), dtype=int)}, "logits are int64 of shape [5, 3]"),
        ({"logits": np.where(np.eye(5, 3) == 1, np.nan, 0)}, "nan or infinite; logits are numbers"),
        ({"logits": np.full((5, 3), -np.inf)}, "all of whose classes have the logit -inf, of a member or"),
        ({"logits": None, "probabilities": np.eye(3)[[LABELS, (LABELS + 1) % 3]]}, "or of the mean of all"),
        ({"logits": np.zeros((0, 3)), "labels": np.zeros(0, dtype=int)}, "predictions of no image"),
        ({"labels": LABELS[:4].numpy()}, "predictions: of 5 images, but there are 4 labels"),
        ({"labels": LABELS.numpy() + 1}, "predictions: of 3 classes, but labels are in 1..3"),
        ({"labels": LABELS.double().numpy()}, "labels are float64 of shape [5]; needed are integers [images]"),
        ({"classes": np.array(["a", "b"])}, "predictions of 3 classes, but 2 names of classes"),
        ({"classes": np.ones((3, 2))}, "classes are float64 of shape [3, 2]; needed is a list of names"),
        ({"indices": np.arange(4)}, "predictions of 5 images, but 4 indices"),
        ({"fingerprint": np.arange(4)}, "fingerprint is int64 of shape [4]; needed is a text"),
        ({"ensemble": "votes"}, "ensemble is 'votes', none of logits, probabilities"),
        ({"logits": None, "probabilities": 1.1 * EVEN}, "probabilities of an image sum to 1.1; they sum to 1"),
        ({"logits": None, "probabilities": np.tile([1.2, -0.2, 0], (5, 1))}, "probabilities are nan or negative"),
        ({"logits": None, "probabilities": np.full((5, 3), np.nan)}, "probabilities are nan or negative"),
    ],
)
def test_faults_of_files_are_named(tmp_path, changes, words):
    path = written(tmp_path / "p.npz", **(GOOD | changes))
    with pytest.raises(InputError) as caught:
        read_predictions(path, name="p")
    assert str(caught.value).startswith(f"{path}: ") and words in str(caught.value)
    assert "\n" not in str(caught.value) and str(caught.value).count(str(path)) == 1


def test_a_damaged_file_is_named(tmp_path):
    (tmp_path / "p.npz").write_bytes(written(tmp_path / "q.npz", **GOOD).read_bytes()[:100])
    for name in ("p.npz", "none.npz"):
        with pytest.raises(InputError, match=f"{name}: not a readable npz file"):
            read_predictions(tmp_path / name, name="p")


def test_an_ensemble_is_the_mean_of_what_its_members_answer():
    single = Predictions("single", MEMBERS[1:], LABELS)
    for of in ("logits", "probabilities"):
        both = together([WHOLE, single], of)
        inner = MEMBERS.softmax(dim=2).mean(dim=0).log()
        outer = torch.stack([inner, MEMBERS[1]])
        expected = outer.mean(0).softmax(1) if of == "logits" else outer.softmax(2).mean(0)
        torch.testing.assert_close(both.logits.softmax(dim=1), expected)
        assert (both.name, both.classes, both.part, both.split_hash) == (
            "ensemble of 2",
            ("a", "b", "c"),
            "test",
            "0" * 16,
        )
        assert torch.equal(both.indices, WHOLE.indices) and both.fingerprint == WHOLE.fingerprint
        assert both.ensemble == of and torch.equal(both.labels, LABELS)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(members=MEMBERS[:, :4], labels=LABELS[:4], indices=None), "4 images, 5 in the other: another number"),
        (dict(members=MEMBERS.repeat(1, 1, 2), classes=None), "6 classes, 3 in the other: another number"),
        (dict(classes=("a", "c", "b")), "other names of classes, or another order of them,"),
        (dict(fingerprint="e" * 64), "of another data set"),
        (dict(part="validation"), "of another part (validation, test in the other)"),
        (dict(indices=torch.tensor([9, 2, 4, 3, 7])), "other images, or another order of them,"),
        (dict(labels=LABELS.roll(1), indices=None), "other labels: other images, or another order of them,"),
        (dict(split_hash="1" * 16), f"trained on another split ({'1' * 16}, {'0' * 16} in the other)"),
    ],
)
def test_members_that_do_not_belong_together_are_refused(changes, words):
    """Whether the first two know it or not."""
    other = replace(WHOLE, name="other", **changes)
    unknown = Predictions("unknown", MEMBERS, LABELS)
    check_alike([WHOLE, unknown, replace(WHOLE, name="again")])
    for each in (
        ([WHOLE, other], [unknown, WHOLE, other])
        if "labels" not in changes and len(changes) == 1
        else ([WHOLE, other],)
    ):
        with pytest.raises(InputError) as caught:
            check_alike(each)
        assert str(caught.value) == f"other: {words} than whole; members of an ensemble have the same"
