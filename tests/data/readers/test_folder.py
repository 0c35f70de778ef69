import os
import shutil
from importlib.resources import files
from pathlib import Path

import pytest
import torch

from hybridgen.data import datasets
from hybridgen.data.datasets import load_dataset
from hybridgen.data.readers import folder
from hybridgen.data.sources import Files, InMemory, Photographs, decode
from hybridgen.types import InputError


def test_folder_holds_classes_in_order_and_unlabelled_images_last(tmp_path, picture, write, image_folder):
    root = image_folder(tmp_path / "pets")
    unknown = write(root / "unlabeled" / "deep" / "er" / "x.png", picture(77))
    (root / "train" / "cat" / "notes.txt").write_text("passed over")
    (root / "train" / ".cache").mkdir()
    dataset = load_dataset(f"folder:{root}")
    assert dataset.classes == ("cat", "dog") and dataset.image_size == 8 and dataset.flip
    assert dataset.train.labels.tolist() == [0, 0, 0, 1, 1, 1, -1]
    assert dataset.test.labels.tolist() == [0, 0, 1, 1]
    assert isinstance(dataset.train.images, InMemory)
    assert torch.equal(dataset.train.images.pixels[-1], decode(unknown, 8))
    assert torch.equal(dataset.train.images.pixels[4], decode(root / "train" / "dog" / "1.png", 8))
    assert dataset.train.files[3:] == (
        "train/dog/0.png",
        "train/dog/1.png",
        "train/dog/2.png",
        "unlabeled/deep/er/x.png",
    )
    assert dataset.test.files == ("test/cat/0.png", "test/cat/1.png", "test/dog/0.png", "test/dog/1.png")


def test_some_classes_of_a_folder_are_those_that_a_text_file_in_it_names(tmp_path, picture, write, image_folder):
    """As ImageNet-100's of ImageNet; other classes are not even looked at."""
    root = image_folder(tmp_path / "pets")
    for part in ("train", "test"):
        write(root / part / "ant" / "0.png", picture(5))
        (root / part / "cow").mkdir()
    (root / "some.txt").write_text("dog\n\n ant\n", encoding="utf-8-sig")
    dataset = load_dataset(str(root / "some.txt"))
    assert (dataset.name, dataset.classes) == (f"classes:{root / 'some.txt'}", ("ant", "dog"))
    assert dataset.train.labels.tolist() == [0, 1, 1, 1] and dataset.test.labels.tolist() == [0, 1, 1]
    assert torch.equal(dataset.train.images.pixels[2], decode(root / "train" / "dog" / "1.png", 8))
    whole = load_dataset(f"classes:{root / 'some.txt'}", image_size=8, whole=True)
    assert isinstance(whole.train.images, Photographs)
    for names, words in (
        ("dog\nemu\nyak", "train: no images of class 'emu'; of the 3 classes that are asked for 2 are missing"),
        ("cow\ndog", "train: no images of class 'cow'; of the 2 classes that are asked for 1 are missing"),
        ("dog\ncat\ndog", "some.txt: class 'dog' comes twice"),
        ("dog\n../pets", "some.txt: '../pets' is no folder's name"),
        ("", "some.txt: 0 class"),
    ):
        (root / "some.txt").write_text(names)
        with pytest.raises(InputError, match=words):
            load_dataset(f"classes:{root / 'some.txt'}")


def test_the_hundred_classes_of_imagenet_100_are_at_hand(tmp_path, picture, write):
    """Each is one of ImageNet's thousand, which timm lists too; others are not even looked at."""
    with (files("timm") / "data" / "_info" / "imagenet_synsets.txt").open() as lines:
        thousand = {line.strip() for line in lines}
    chosen = (Path(__file__).parents[3] / "assets" / "classes" / "imagenet-100.txt").read_text().split()
    assert len(set(chosen)) == 100 and set(chosen) <= thousand and chosen == sorted(chosen)
    for part in ("train", "test"):
        for name in (*chosen, "n01440764"):
            write(tmp_path / part / name / "0.png", picture(1))
    dataset = load_dataset(f"imagenet-100:{tmp_path}")
    assert dataset.classes == tuple(chosen) and len(dataset.train) == len(dataset.test) == 100
    assert isinstance(load_dataset(f"imagenet-100:{tmp_path}", image_size=8, whole=True).train.images, Photographs)
    shutil.rmtree(tmp_path / "test" / "n02119022")
    with pytest.raises(InputError, match=r"test: no images of class 'n02119022'; of the 100 classes .* 1 are missing"):
        load_dataset(f"imagenet-100:{tmp_path}")


def test_folder_beyond_the_memory_limit_stays_on_disk_with_the_same_pixels(tmp_path, image_folder):
    root = image_folder(tmp_path)
    memory = load_dataset(f"folder:{root}", image_size=6)
    files = load_dataset(f"folder:{root}", image_size=6, memory_limit=3 * 6 * 6 * 10 - 1)
    assert isinstance(files.train.images, Files) and isinstance(memory.train.images, InMemory)
    everything = torch.arange(6)
    assert torch.equal(files.train.images.gather(everything), memory.train.images.pixels)
    assert (files.mean, files.std, files.fingerprint) == (memory.mean, memory.std, memory.fingerprint)


def test_statistics_of_large_folders_come_from_a_sample(tmp_path, monkeypatch, image_folder):
    root = image_folder(tmp_path)
    monkeypatch.setattr(datasets, "STATISTICS_SAMPLE", 3)
    dataset = load_dataset(f"folder:{root}", memory_limit=0)
    sample = dataset.train.images.gather(torch.tensor([0, 2, 4])).double() / 255
    torch.testing.assert_close(torch.tensor(dataset.mean).double(), sample.mean((0, 2, 3)), atol=1e-6, rtol=0)


def test_folder_fingerprint_follows_the_files_and_neither_place_nor_size(tmp_path, monkeypatch, image_folder):
    first = load_dataset(f"folder:{image_folder(tmp_path / 'a')}")
    second = load_dataset(f"folder:{image_folder(tmp_path / 'b' / 'c')}", image_size=4)
    assert first.fingerprint == second.fingerprint
    bitmap = tmp_path / "b" / "c" / "train" / "cat" / "0.png"
    changed = bytearray(bitmap.read_bytes())
    changed[-1] ^= 1  # as many bytes as before
    bitmap.write_bytes(changed)
    assert load_dataset(f"folder:{tmp_path / 'b' / 'c'}").fingerprint != first.fingerprint
    monkeypatch.setattr(folder, "CONTENT_HASH_LIMIT", 0)
    by_size = load_dataset(f"folder:{tmp_path / 'a'}").fingerprint
    assert by_size == load_dataset(f"folder:{tmp_path / 'b' / 'c'}").fingerprint != first.fingerprint
    bitmap.rename(bitmap.with_name("other.png"))
    assert load_dataset(f"folder:{tmp_path / 'b' / 'c'}").fingerprint != by_size


@pytest.mark.parametrize("file", ["train/cat/0.png", "test/dog/1.png", "unlabeled/x.png"])
def test_folder_fingerprint_is_of_every_part(tmp_path, file, picture, write, image_folder):
    root = image_folder(tmp_path)
    write(root / "unlabeled" / "x.png", picture(5))
    before = load_dataset(f"folder:{root}").fingerprint
    write(root / file, picture(77))
    assert load_dataset(f"folder:{root}").fingerprint != before


def test_folder_faults(tmp_path, picture, write, image_folder, fails):
    fails(f"folder:{tmp_path / 'nowhere'}", "nowhere", "no such folder")
    empty = tmp_path / "empty"
    (empty / "train").mkdir(parents=True)
    fails(f"folder:{empty}", str(empty / "train"), "no images")
    (empty / "train" / "cat").mkdir()
    fails(f"folder:{empty}", str(empty / "train"), "no images")
    write(empty / "train" / "cat" / "0.png", picture(0))
    fails(f"folder:{empty}", str(empty / "test"), "no such folder")

    stranger = image_folder(tmp_path / "stranger")
    write(stranger / "test" / "fox" / "0.png", picture(0))
    fails(f"folder:{stranger}", "'fox'", "in test but not in train")

    loose = image_folder(tmp_path / "loose")
    write(loose / "train" / "0.png", picture(0))
    fails(f"folder:{loose}", str(loose / "train" / "0.png"), "class folder")

    hollow = image_folder(tmp_path / "hollow")
    (hollow / "train" / "fox").mkdir()
    fails(f"folder:{hollow}", "'fox'", "no images")

    damaged = image_folder(tmp_path / "damaged")
    path = damaged / "train" / "dog" / "1.png"
    path.write_bytes(path.read_bytes()[:60])
    fails(f"folder:{damaged}", str(path), "not a readable image")
    fails(f"folder:{damaged}", str(path), "not a readable image", image_size=8)


@pytest.mark.parametrize("parts", [False, True])
def test_unlabelled_images_are_found_in_either_spelling(tmp_path, picture, write, image_folder, parts):
    root = image_folder(tmp_path) if parts else image_folder(tmp_path) / "train"
    for name in ("unlabelled", "unlabeled"):
        write(root / name / "x.png", picture(77))
    dataset = load_dataset(f"folder:{root}")
    assert dataset.classes == ("cat", "dog") and not dataset.told
    assert dataset.train.files[-2:] == ("unlabeled/x.png", "unlabelled/x.png")
    assert dataset.train.labels[-3:].tolist() == [1, -1, -1]


def test_folders_beside_the_parts_are_told(tmp_path, picture, write, image_folder):
    root = image_folder(tmp_path)
    before = load_dataset(f"folder:{root}")
    for name in ("val", "extra", ".hidden"):
        write(root / name / "cat" / "0.png", picture(1))
    after = load_dataset(f"folder:{root}")
    assert (before.told, after.told) == ((), (f"of folder:{root} is not used: extra, val",))
    assert before.fingerprint == after.fingerprint


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ({"train": "Train", "test": "Test"}, "Test: has capitals; needed is test"),
        ({"train": "TRAIN"}, "TRAIN: has capitals; needed is train"),
        ({"train/dog": "Unlabelled"}, "Unlabelled: has capitals; needed is unlabelled"),
        ({"train/dog": "train/unlabelled"}, "train/unlabelled: images without classes are of no part; needed is "),
        ({"test/dog": "test/Unlabeled"}, "test/Unlabeled: images without classes are of no part; needed is "),
    ],
)
def test_names_that_are_nearly_those_of_parts_are_refused(tmp_path, image_folder, fails, names, words):
    root = image_folder(tmp_path / "own")
    for before, after in names.items():
        (root / before).rename(root / after)
    fails(f"folder:{root}", f"{root}/{words}")


def test_a_class_may_be_called_train(tmp_path, image_folder):
    root = image_folder(tmp_path / "own") / "train"
    (root / "dog").rename(root / "Train")
    assert load_dataset(f"folder:{root}").classes == ("Train", "cat")


def test_links_are_followed_to_what_there_is(tmp_path, image_folder):
    plain, linked = image_folder(tmp_path / "plain"), image_folder(tmp_path / "linked")
    (linked / "train" / "dog").rename(tmp_path / "elsewhere")
    (linked / "train" / "dog").symlink_to(tmp_path / "elsewhere")
    (linked / "test" / "cat" / "0.png").rename(tmp_path / "0.png")
    (linked / "test" / "cat" / "0.png").symlink_to("../../../0.png")
    assert load_dataset(f"folder:{linked}").fingerprint == load_dataset(f"folder:{plain}").fingerprint


@pytest.mark.parametrize(
    ("link", "target", "words"),
    [
        ("train/cat/here", ".", "a folder in which it lies"),
        ("train/cat/up", "..", "a folder in which it lies"),
        ("train/cat/around", "../dog", "a folder in which it lies"),  # train/dog/back leads to cat again
        ("train/all", "..", "a folder in which it lies"),
        ("unlabeled", "nowhere", "No such file or directory"),
        ("train/fox", "nowhere", "leads nowhere"),
        ("train/cat/more", "nowhere", "leads nowhere"),
        ("train/cat/3.png", "nowhere.png", "leads nowhere"),
        ("train/cat/4.png", "4.png", "leads nowhere"),
    ],
)
def test_links_in_circles_or_to_nothing_end_in_one_line(tmp_path, link, target, words, image_folder, fails):
    root = image_folder(tmp_path / "own")
    if target == "../dog":
        (root / "train" / "dog" / "back").symlink_to("../cat")
    (root / link).symlink_to(target)
    fails(f"folder:{root}", str(root / link.split("/")[0]), words)


def test_what_only_has_an_images_name_is_passed_over(tmp_path, image_folder):
    root = image_folder(tmp_path)
    before = load_dataset(f"folder:{root}").fingerprint
    os.mkfifo(root / "train" / "cat" / "pipe.png")
    (root / "train" / "cat" / "folder.png").mkdir()
    (root / "train" / "notes.txt").write_text("mine")
    assert load_dataset(f"folder:{root}").fingerprint == before


def test_names_may_hold_anything_but_a_class_must_be_utf_8(tmp_path, image_folder, fails):
    root = image_folder(tmp_path)
    (root / "train" / "cat").rename(root / "train" / "chat noir é 猫")
    (root / "test" / "cat").rename(root / "test" / "chat noir é 猫")
    (root / "train" / "dog" / "0.png").rename(root / "train" / "dog" / os.fsdecode(b"\xff 0.png"))
    assert load_dataset(f"folder:{root}").classes == ("chat noir é 猫", "dog")
    (root / "train" / "dog").rename(root / "train" / os.fsdecode(b"do\xff"))
    fails(f"folder:{root}", r"do\xff", "not UTF-8")


def test_a_file_that_vanishes_or_may_not_be_read_is_named(tmp_path, monkeypatch, image_folder, fails):
    root = image_folder(tmp_path)
    path = root / "train" / "dog" / "1.png"

    def forbidden(self):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "read_bytes", forbidden)
    fails(f"folder:{root}", str(root), "cannot be read (Permission denied)")
    monkeypatch.undo()
    monkeypatch.setattr(os, "scandir", lambda folder: forbidden(folder))
    fails(f"folder:{root}", str(root / "train"), "cannot be read (Permission denied)")
    monkeypatch.undo()
    monkeypatch.setattr(folder, "images_below", lambda folder: [path.with_name("gone.png")])
    fails(f"folder:{root}", "gone.png: not a readable image (No such file or directory)")


def test_classes_and_files_are_in_the_order_of_their_code_points(tmp_path, picture, write):
    for name in ("apple", "Zebra", "äpfel"):
        for file in ("b", "C"):
            write(tmp_path / "train" / name / f"{file}.png", picture(1))
            write(tmp_path / "test" / name / f"{file}.png", picture(2))
    dataset = load_dataset(f"folder:{tmp_path}")
    assert dataset.classes == ("Zebra", "apple", "äpfel")
    assert dataset.test.files[:3] == ("test/Zebra/C.png", "test/Zebra/b.png", "test/apple/C.png")


def test_unequal_images_are_brought_to_a_size_that_the_middle_one_has(tmp_path, picture, write, image_folder):
    root = image_folder(tmp_path)  # of 8×8 pixels
    size = lambda: load_dataset(f"folder:{root}").image_size
    assert size() == 8
    names = [f"train/{name}/{i}.png" for name in ("cat", "dog") for i in range(3)]
    names += [f"test/{name}/{i}.png" for name in ("cat", "dog") for i in range(2)]
    for count, (height, width), side in (
        (1, (8, 9), 16), (1, (1, 1), 16), (5, (31, 60), 16), (5, (70, 32), 32), (4, (70, 32), 16), (10, (63, 90), 32),
        (10, (90, 64), 64), (10, (300, 200), 64), (10, (90, 90), 90),
    ):  # fmt: skip
        for place, name in enumerate(names):
            write(root / name, picture(0, *((height, width) if place >= 10 - count else (8, 8))))
        assert size() == side, (count, height, width)
    assert load_dataset(f"folder:{root}", image_size=4).train.images.pixels.shape == (6, 3, 4, 4)


def test_a_class_without_test_images_is_allowed(tmp_path, picture, write, image_folder):
    root = image_folder(tmp_path)
    write(root / "train" / "ant" / "0.png", picture(0))
    dataset = load_dataset(f"folder:{root}")
    assert dataset.classes == ("ant", "cat", "dog") and dataset.test.labels.tolist() == [1, 1, 2, 2]


def test_whole_photographs_of_a_folder(tmp_path, image_folder, picture, write, fails):
    root = image_folder(tmp_path)
    wide = write(root / "train" / "cat" / "1.png", picture(5, 20, 50))
    dataset = load_dataset(f"folder:{root}", image_size=8, whole=True)
    assert dataset.image_size == 8 and dataset.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    for part in (dataset.train, dataset.test):
        assert isinstance(part.images, Photographs)
    expected = Photographs([wide], 8).gather(torch.tensor([0]))
    middle = dataset.train.images.gather(torch.arange(6))
    assert torch.equal(middle[1], expected[0])
    values = middle.double() / 255
    torch.testing.assert_close(torch.tensor(dataset.mean).double(), values.mean((0, 2, 3)), atol=1e-6, rtol=0)
    assert dataset.fingerprint == load_dataset(f"folder:{root}", image_size=8).fingerprint
    fails(f"folder:{root}", "--image-size", whole=True)
    fails("digits-m", "whole = True", "folder:PATH", whole=True)
