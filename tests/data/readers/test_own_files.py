"""Images that have no train and test parts, or are listed in a CSV file."""

import hashlib
import os
from pathlib import Path

import pytest
import torch

from hybridgen.data.datasets import load_dataset
from hybridgen.data.readers.folder import drawn_test
from hybridgen.data.sources import decode


@pytest.fixture
def plain(picture, write):
    """Makes PATH/<class>/…: eleven cats, two dogs, and one image without a class."""

    def make(root: Path) -> Path:
        for name, count in (("cat", 11), ("dog", 2)):
            for i in range(count):
                write(root / name / f"{i}.png", picture(i + 50 * (name == "dog")))
        write(root / "unlabeled" / "x.png", picture(99))
        return root

    return make


def test_a_test_part_is_drawn_of_a_folder_without_one(tmp_path, plain):
    """One in five of every class, at least one: those whose names have the lowest SHA-256."""
    root = plain(tmp_path / "pets")
    dataset = load_dataset(f"folder:{root}")
    assert dataset.classes == ("cat", "dog")
    assert dataset.test.labels.tolist() == [0, 0, 1] and dataset.train.labels.tolist() == [0] * 9 + [1, -1]
    code = lambda name: hashlib.sha256(name.encode()).hexdigest()
    lowest = sorted((f"cat/{i}.png" for i in range(11)), key=code)[:2]
    lowest = [*sorted(lowest), min("dog/0.png", "dog/1.png", key=code)]
    assert torch.equal(dataset.test.images.pixels, torch.stack([decode(root / name, 8) for name in lowest]))
    shown = {each.numpy().tobytes() for each in dataset.train.images.pixels}
    assert len(shown) == 11 and not shown & {each.numpy().tobytes() for each in dataset.test.images.pixels}


@pytest.mark.parametrize(("images", "tested"), [(2, 1), (7, 1), (8, 2), (12, 2), (13, 3)])
def test_a_fifth_is_rounded_and_one_at_least(images, tested):
    paths = [Path(f"{i}.png") for i in range(images)]
    train, test = drawn_test({"cat": paths}, Path(), "pets")
    assert len(test["cat"]) == tested and sorted(train["cat"] + test["cat"]) == sorted(paths)


def test_names_that_are_not_utf_8_are_drawn_by_their_bytes(tmp_path, plain):
    root = plain(tmp_path / "pets")
    (root / "dog" / "1.png").rename(root / "dog" / os.fsdecode(b"f\xfcnf.png"))
    (root / "unlabeled" / "x.png").rename(root / "unlabeled" / os.fsdecode(b"\xff.png"))
    dataset = load_dataset(f"folder:{root}")
    lowest = min((b"dog/0.png", b"dog/f\xfcnf.png"), key=lambda name: hashlib.sha256(name).digest())
    assert dataset.test.files[-1] == lowest.decode(errors="backslashreplace")
    assert dataset.train.files[-1] == r"unlabeled/\xff.png"


def test_it_is_the_same_elsewhere(tmp_path, plain):
    first, second = (load_dataset(f"folder:{plain(tmp_path / name)}") for name in ("a", "b"))
    assert first.fingerprint == second.fingerprint
    assert torch.equal(first.test.images.pixels, second.test.images.pixels)


def test_a_class_may_have_its_images_at_any_depth(tmp_path, plain):
    even = load_dataset(f"folder:{plain(tmp_path / 'even')}")
    mixed = plain(tmp_path / "mixed")
    (mixed / "cat" / "more" / "still").mkdir(parents=True)
    (mixed / "cat" / "3.png").rename(mixed / "cat" / "more" / "still" / "3.png")
    found = load_dataset(f"folder:{mixed}")
    assert found.classes == even.classes and found.train.labels.tolist() == even.train.labels.tolist()
    assert "cat/more/still/3.png" in found.train.files + found.test.files


@pytest.mark.parametrize("part", [False, True])
def test_a_csv_file_lists_images_labels_and_parts(tmp_path, plain, part):
    """As the folder does; other columns are passed over, and the mark that Excel begins UTF-8 with."""
    root = plain(tmp_path / "pets")
    folder = load_dataset(f"folder:{root}")
    rows = ["file_name,size,Label" + ",split" * part]
    for label, count in (("dog", 2), ("cat", 11)):
        rows += [f"{label}/{i}.png,8,{label}" + f",{'test' if i == 1 else 'train'}" * part for i in range(count)]
    rows += ["unlabeled/x.png,8," + ",train" * part]
    listing = root / "list.csv"
    listing.write_text("\n".join(rows) + "\n", encoding="utf-8-sig")
    dataset = load_dataset(f"csv:{listing}")
    assert dataset.classes == folder.classes and dataset.name == f"csv:{listing}"
    if part:
        assert dataset.test.labels.tolist() == [0, 1] and dataset.train.labels.tolist() == [0] * 10 + [1, -1]
        expected = torch.stack([decode(root / name, 8) for name in ("cat/1.png", "dog/1.png")])
        assert torch.equal(dataset.test.images.pixels, expected)
        return
    assert torch.equal(dataset.train.labels, folder.train.labels)
    for ours, theirs in ((dataset.train, folder.train), (dataset.test, folder.test)):
        known = ours.labels >= 0
        assert {each.numpy().tobytes() for each in ours.images.pixels[known]} == {
            each.numpy().tobytes() for each in theirs.images.pixels[known]
        }


def test_the_fingerprint_of_a_csv_file_is_of_labels_too(tmp_path, plain):
    root = plain(tmp_path)
    found = []
    for second in ("dog", "fox"):
        (root / "list.csv").write_text(
            "path,label\n" + "".join(f"{name}/{i}.png,{name if name == 'cat' else second}\n" for name in ("cat", "dog")
                                     for i in range(2))
        )  # fmt: skip
        found.append(load_dataset(f"csv:{root / 'list.csv'}").fingerprint)
    assert found[0] != found[1]


@pytest.mark.parametrize("linked", [False, True])
def test_whole_paths_in_a_csv_file_are_those_from_its_folder(tmp_path, plain, picture, write, monkeypatch, linked):
    """However the file is spelled, from here, as a whole, or by a link, the same images are in the test, in one order,
    and the fingerprint is one; of other places the whole path counts."""
    root = plain(tmp_path / "pets")
    if linked:
        (root / "dog").rename(tmp_path / "dogs")
        (root / "dog").symlink_to(tmp_path / "dogs")
    (tmp_path / "link").symlink_to(root)
    monkeypatch.chdir(tmp_path)
    names = [f"{name}/{i}.png" for name, count in (("cat", 11), ("dog", 2)) for i in range(count)]
    lines = {
        "short.csv": [f"{name},{name[:3]}" for name in names],
        "whole.csv": [f"{root / name if i % 3 else name},{name[:3]}" for i, name in enumerate(names)],
    }
    for file, rows in lines.items():
        (root / file).write_text("path,label\n" + "\n".join(rows))
    expected = load_dataset("pets/short.csv")
    for spelled in ("pets/whole.csv", f"{root}/whole.csv", *([] if linked else ["link/whole.csv"])):
        found = load_dataset(spelled)
        assert found.fingerprint == expected.fingerprint, spelled
        assert (found.train.files, found.test.files) == (expected.train.files, expected.test.files)

    write(tmp_path / "else" / "0.png", picture(1))
    (root / "whole.csv").write_text("\n".join(["path,label", *lines["whole.csv"], f"{tmp_path}/else/0.png,cat"]))
    ours, theirs = (load_dataset(spelled) for spelled in ("pets/whole.csv", f"{root}/whole.csv"))
    assert (ours.fingerprint, ours.train.files) == (theirs.fingerprint, theirs.train.files)
    assert f"{tmp_path}/else/0.png" in ours.train.files


@pytest.mark.parametrize("again", ["{root}/cat/0.png", "dog/../cat/0.png", "link/0.png", "same.png"])
def test_an_image_may_not_be_listed_twice_by_two_paths(tmp_path, plain, fails, monkeypatch, again):
    root = plain(tmp_path / "pets")
    monkeypatch.chdir(root)
    (root / "link").symlink_to("cat")
    (root / "same.png").symlink_to("cat/0.png")
    again = again.format(root=root)
    (root / "list.csv").write_text(f"path,label,part\ncat/0.png,cat,train\ndog/0.png,dog,train\n{again},cat,test\n")
    fails("csv:list.csv", f"row 4: {again} comes twice")


def test_a_bare_path_is_taken_for_what_lies_there(tmp_path, plain, monkeypatch):
    plain(tmp_path / "pets")
    (tmp_path / "pets" / "list.csv").write_text("path,label\n" + "".join(f"{n}/{i}.png,{n}\n" for n in ("cat", "dog")
                                                                         for i in range(2)))  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert load_dataset("pets").name == "folder:pets"
    assert load_dataset("pets/list.csv").name == "csv:pets/list.csv"
    assert load_dataset("digits-m").name == "digits-m"


def test_whole_photographs_may_be_listed(tmp_path, plain):
    root = plain(tmp_path)
    (root / "list.csv").write_text("path,label\n" + "".join(f"{n}/{i}.png,{n}\n" for n in ("cat", "dog")
                                                            for i in range(2)))  # fmt: skip
    assert load_dataset(f"{root / 'list.csv'}", image_size=4, whole=True).image_size == 4


def test_faults_of_folders_without_parts(tmp_path, plain, picture, write, fails):
    lone = plain(tmp_path / "lone")
    write(lone / "fox" / "0.png", picture(0))
    fails(f"folder:{lone}", "class 'fox' has 1 image; two are needed, one of them for the test")
    hollow = plain(tmp_path / "hollow")
    (hollow / "fox").mkdir()
    fails(f"folder:{hollow}", "class 'fox' has no images")
    one = tmp_path / "one"
    for i in range(3):
        write(one / "cat" / f"{i}.png", picture(i))
    fails(f"folder:{one}", "1 class (cat); two or more are needed")
    alike = plain(tmp_path / "alike")
    for i in range(2):
        write(alike / "Cat" / f"{i}.png", picture(i))
    fails(f"folder:{alike}", "classes 'Cat' and 'cat' differ by upper and lower case only")
    (tmp_path / "empty").mkdir()
    fails(f"folder:{tmp_path / 'empty'}", "no images in <class> folders below it")
    fails(f"folder:{tmp_path}", "class 'empty' has no images")
    deep = plain(tmp_path / "deep" / "er")  # a folder too high
    fails(f"folder:{deep.parent}", "1 class (er); two or more are needed")
    loose = plain(tmp_path / "loose")
    write(loose / "0.png", picture(0))
    fails(f"folder:{loose}", "lies outside a class folder")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "no column path or file or file_name or filename or image; it has none"),
        ("path,size\n", "no column label or class; it has path, size"),
        ("path,label\ncat/0.png,cat\ncat/77.png,cat\n", "row 3: cat/77.png: no such file"),
        ("path,label\n,cat\n", "row 2: no path: no such file"),
        ("path,label\ncat/0.png,cat\ncat/0.png,dog\n", "row 3: cat/0.png comes twice"),
        ("path,label\ncat/0.png,\ncat/1.png,\n", "no row has a label"),
        ("path,label\ncat/0.png,cat\ncat/1.png,cat\n", "1 class (cat); two or more are needed"),
        ("path,label\ncat/0.png,a\ncat/1.png,a\ncat/2.png,A\ncat/3.png,A\n", "classes 'A' and 'a' differ by upper"),
        ("path,label,part\ncat/0.png,cat,training\n", "row 2: part 'training'; train or test is needed"),
        ("path,label,part\ncat/0.png,,test\n", "row 2: an image of the test has no label"),
        ("path,label,part\ncat/0.png,cat,train\ndog/0.png,dog,train\n", "no row has part 'test'"),
        ("path,label,part\ncat/0.png,cat,train\ndog/0.png,dog,test\n", "class 'dog' is in test but not in train"),
        ("path,label\ncat/0.png,cat\ndog/0.png,dog\ndog/1.png,dog\n", "class 'cat' has 1 image; two are needed"),
    ],
)
def test_faults_of_csv_files(tmp_path, plain, fails, content, words):
    listing = plain(tmp_path) / "list.csv"
    listing.write_text(content)
    fails(f"csv:{listing}", str(tmp_path), words)


def test_csv_files_that_cannot_be_read(tmp_path, fails):
    fails(f"csv:{tmp_path / 'no.csv'}", "no.csv: cannot be read")
    (tmp_path / "bytes.csv").write_bytes(b"path,label\n\xff\xfe,\x00\n")
    fails(f"csv:{tmp_path / 'bytes.csv'}", "bytes.csv: not a CSV file")
