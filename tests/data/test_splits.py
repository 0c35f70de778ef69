import json
import os
import threading

import pytest
import torch

from hybridgen.data.datasets import Dataset, Part
from hybridgen.data.sources import InMemory
from hybridgen.data.splits import Split, make_split
from hybridgen.types import InputError

GOLDEN_DRAW = ((16, 30, 33, 39, 52, 80), (13, 26, 27, 53))


def dataset(counts=(30, 30, 30), unknown=10, fingerprint="f" * 64, name="toy") -> Dataset:
    """`counts` images of each class in a shuffled order, then `unknown` ones of no class."""
    labels = torch.cat([torch.full((count,), label) for label, count in enumerate(counts)])
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))]
    labels = torch.cat([labels, torch.full((unknown,), -1)])
    part = Part(InMemory(torch.zeros(len(labels), 3, 2, 2, dtype=torch.uint8)), labels)
    classes = tuple(f"class{label}" for label in range(len(counts)))
    return Dataset(name, classes, 2, part, part, fingerprint, False, (0.5,) * 3, (0.5,) * 3)


def per_class(data: Dataset, indices) -> list[int]:
    labels = data.train.labels[torch.tensor(list(indices), dtype=torch.int64)]
    return torch.bincount(labels, minlength=len(data.classes)).tolist()


def split(**changes) -> Split:
    fields = dict(dataset="toy", fingerprint="f" * 64, seed=0, labelled=(0, 3), unlabelled=(1, 4), validation=(2,))
    return Split(**(fields | changes))


# --- drawing --------------------------------------------------------------------------------------------


def test_a_split_is_stratified_disjoint_and_complete():
    data = dataset()
    drawn = make_split(data, labels=12, seed=1, validation=9)
    assert per_class(data, drawn.labelled) == [4, 4, 4]
    assert per_class(data, drawn.validation) == [3, 3, 3]
    assert sorted(drawn.labelled + drawn.unlabelled + drawn.validation) == list(range(100))
    assert set(range(90, 100)) <= set(drawn.unlabelled)
    drawn.check(data)


def test_a_remainder_goes_to_random_classes():
    data = dataset()
    counts = [per_class(data, make_split(data, labels=11, seed=seed).labelled) for seed in range(20)]
    assert all(sorted(count) == [3, 4, 4] for count in counts)
    assert {count.index(3) for count in counts} == {0, 1, 2}


@pytest.mark.parametrize(
    ("counts", "labels", "expected"),
    [
        ((30, 2, 30), 30, [14, 2, 14]),
        ((1, 1, 30), 3, [1, 1, 1]),
        ((1, 5, 30), 30, [1, 5, 24]),
        ((2, 3, 4), 9, [2, 3, 4]),
    ],
)
def test_small_classes_give_all_they_have_and_others_make_up_for_it(counts, labels, expected):
    data = dataset(counts)
    assert per_class(data, make_split(data, labels=labels).labelled) == expected


def test_validation_follows_the_proportions_and_leaves_the_labelled_images_alone():
    data = dataset((60, 30, 10))
    without = make_split(data, labels=9, seed=3)
    with_validation = make_split(data, labels=9, seed=3, validation=20)
    assert without.labelled == with_validation.labelled
    assert per_class(data, with_validation.validation) == [12, 6, 2]  # of the 57, 27 and 7 that are left
    everything = make_split(data, labels=9, seed=3, validation=91)
    assert everything.unlabelled == tuple(range(100, 110))


def test_draws_are_a_function_of_labels_and_seed():
    first = make_split(dataset(), labels=6, seed=5, validation=4)
    torch.manual_seed(123)
    assert make_split(dataset(), labels=6, seed=5, validation=4) == first
    assert make_split(dataset(fingerprint="other"), labels=6, seed=5, validation=4).labelled == first.labelled
    assert make_split(dataset(), labels=6, seed=6, validation=4).labelled != first.labelled
    # Recorded: the same on every machine.
    assert (first.labelled, first.validation) == GOLDEN_DRAW


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"labels": 0}, "labels = 0"),
        ({"labels": -3}, "labels = -3"),
        ({"labels": 91}, "labels = 91: toy has 90"),
        ({"labels": 2}, "labels = 2: fewer than the 3 classes"),
        ({"labels": 30, "validation": 61}, "validation = 61: 60"),
        ({"labels": 30, "validation": -1}, "validation = -1"),
        ({"labels": 30, "seed": -1}, "seed = -1"),
    ],
)
def test_impossible_requests_are_refused(arguments, words):
    with pytest.raises(InputError, match=words):
        make_split(dataset(), **arguments)


def test_a_class_without_training_images_is_named():
    with pytest.raises(InputError, match="'class1' has no training image"):
        make_split(dataset((5, 0, 5)), labels=6)


# --- files ----------------------------------------------------------------------------------------------


def test_a_saved_split_comes_back_equal(tmp_path):
    first = make_split(dataset(), labels=6, validation=5)
    first.save(tmp_path / "new" / "split.json")
    again = Split.load(tmp_path / "new" / "split.json")
    assert again == first and again.hash == first.hash
    assert os.listdir(tmp_path / "new") == ["split.json"]
    assert (tmp_path / "new" / "split.json").stat().st_mode & 0o444 == 0o444


def test_the_hash_is_of_the_content_and_not_of_the_name():
    first = split()
    assert len(first.hash) == 16 and int(first.hash, 16) >= 0
    assert split(dataset="folder:/elsewhere").hash == first.hash
    others = [
        split(seed=1),
        split(fingerprint="e" * 64),
        split(labelled=(0,), unlabelled=(1, 3, 4)),
        split(unlabelled=(1, 2, 4), validation=()),
    ]
    assert len({first.hash, *(other.hash for other in others)}) == 5


def test_a_split_is_never_overwritten(tmp_path):
    path = tmp_path / "split.json"
    split().save(path)
    before = path.read_bytes()
    with pytest.raises(InputError, match=r"split\.json: exists already"):
        split(seed=9).save(path)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["split.json"]


def test_of_several_writers_one_wins_and_the_file_is_its(tmp_path):
    path, refused = tmp_path / "split.json", []

    def save(seed):
        try:
            split(seed=seed).save(path)
        except InputError:
            refused.append(seed)

    threads = [threading.Thread(target=save, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(refused) == 7 and Split.load(path).seed in set(range(8)) - set(refused)


def test_a_full_disk_leaves_nothing_behind(tmp_path, monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match=r"split\.json: cannot be written: No space left"):
        split().save(tmp_path / "split.json")
    assert os.listdir(tmp_path) == []


def test_without_hard_links_saving_still_works(tmp_path, monkeypatch):
    def no_links(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    split().save(tmp_path / "split.json")
    assert Split.load(tmp_path / "split.json") == split()
    assert os.listdir(tmp_path) == ["split.json"]


def test_an_unwritable_place_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"split\.json: cannot be written: .*file is not a folder"):
        split().save(tmp_path / "file" / "split.json")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seed": None}, "field seed is missing"),
        ({"colour": 3}, "unknown field colour"),
        ({"seed": "0"}, "seed must be an integer"),
        ({"seed": True}, "seed must be an integer"),
        ({"dataset": 3}, "dataset must be text"),
        ({"labelled": 3}, "labelled must be a list of integers"),
        ({"labelled": [0, 1.5]}, "labelled must be a list of integers"),
        ({"validation": ["2"]}, "validation must be a list of integers"),
        ({"labelled": [0, 1]}, "labelled and unlabelled overlap.*1"),
        ({"labelled": [0, 2]}, "labelled and validation overlap.*2"),
        ({"validation": [4]}, "unlabelled and validation overlap.*4"),
        ({"labelled": [3, 0]}, "labelled is not ascending"),
        ({"labelled": [0, 0]}, "labelled is not ascending"),
        ({"labelled": [-1, 3]}, "labelled has the negative index -1"),
    ],
)
def test_damaged_fields_are_named(tmp_path, change, words):
    path = tmp_path / "split.json"
    split().save(path)
    content = json.loads(path.read_text()) | change
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
    with pytest.raises(InputError, match=rf"split\.json: .*{words}"):
        Split.load(path)


@pytest.mark.parametrize("content", [b"", b"{", b"[1, 2]", b"\xff\xfe\x00", b"[" * 100_000])
def test_damaged_files_are_named(tmp_path, content):
    path = tmp_path / "split.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"split\.json: not a split file") as caught:
        Split.load(path)
    assert "\n" not in str(caught.value)


def test_missing_files_are_named(tmp_path):
    with pytest.raises(InputError, match=r"none\.json: cannot be read"):
        Split.load(tmp_path / "none.json")


# --- checking against a data set ------------------------------------------------------------------------


def test_a_split_of_other_data_is_refused():
    drawn = make_split(dataset(), labels=6)
    with pytest.raises(InputError, match=r"split of toy \(fingerprint ffff.*belong to other \(fingerprint eeee"):
        drawn.check(dataset(fingerprint="e" * 64, name="other"))


def test_indices_must_exist_and_have_labels():
    data = dataset((2, 2), unknown=2)
    fitting = make_split(data, labels=2)
    fitting.check(data)
    for change, words in (
        ({"unlabelled": (*fitting.unlabelled[:-1], 6)}, "toy.*unlabelled index 6 of 6"),
        ({"labelled": (*fitting.labelled, 5), "unlabelled": ()}, "toy.*labelled index 5 .*unknown class"),
        ({"validation": (4,), "unlabelled": ()}, "toy.*validation index 4 .*unknown class"),
        ({"labelled": fitting.labelled[:1]}, "toy.*class 'class[01]' has no labelled image"),
    ):
        with pytest.raises(InputError, match=words):
            Split(**(fitting.__dict__ | change)).check(data)
