import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from hybridgen.data.datasets import load_dataset

SHARED_CIFAR = Path(__file__).parents[4] / "shared" / "data" / "cifar10"


def arrays(**changes) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    content = {
        "x_train": rng.integers(0, 256, (6, 8, 8, 3), dtype=np.uint8),
        "y_train": np.array([0, 1, 2, 0, 1, 2]),
        "x_test": rng.integers(0, 256, (3, 8, 8, 3), dtype=np.uint8),
        "y_test": np.array([2, 1, 0], dtype=np.uint8),
    } | changes
    return {key: value for key, value in content.items() if value is not None}


def saved(path: Path, **changes) -> str:
    np.savez(path, **arrays(**changes))
    return f"npz:{path}"


def test_npz_keeps_pixels_labels_masks_and_unlabelled_images(tmp_path):
    masks = np.random.default_rng(1).random((6, 8, 8)) > 0.5
    name = saved(
        tmp_path / "a.npz",
        classes=np.array(["x", "y", "z"]),
        x_unlabeled=np.zeros((2, 8, 8, 3), np.uint8),
        masks_train=masks,
        masks_unlabeled=np.ones((2, 8, 8), np.uint8),
    )
    dataset = load_dataset(name)
    assert dataset.classes == ("x", "y", "z") and dataset.flip and dataset.image_size == 8
    assert dataset.train.labels.tolist() == [0, 1, 2, 0, 1, 2, -1, -1]
    kept = dataset.train.images.pixels.permute(0, 2, 3, 1).numpy()
    assert np.array_equal(kept[:6], arrays()["x_train"]) and not kept[6:].any()
    assert np.array_equal(dataset.train.masks.numpy()[:6], masks) and dataset.train.masks[6:].all()
    assert dataset.test.masks is None
    labels = {key: np.where(arrays()[key] == 1, 2, arrays()[key]) for key in ("y_train", "y_test")}
    assert load_dataset(saved(tmp_path / "b.npz", **labels)).classes == ("0", "1", "2")  # of 1 there is no image


def test_npz_grey_is_repeated_and_sizes_change_with_antialias(tmp_path):
    stripes = np.zeros((6, 32, 32), np.uint8)
    stripes[:, ::2] = 255
    name = saved(tmp_path / "a.npz", x_train=stripes, x_test=stripes[:3], masks_test=stripes[:3] > 0)
    whole, small = load_dataset(name), load_dataset(name, image_size=4)
    assert torch.equal(whole.train.images.pixels, torch.from_numpy(stripes)[:, None].expand(6, 3, 32, 32))
    assert small.image_size == 4 and small.test.masks.shape == (3, 4, 4)
    assert (small.train.images.pixels[:, :, 1:-1].int() - 127).abs().max() <= 2
    assert small.fingerprint == whole.fingerprint


def test_npz_masks_of_another_size_are_of_the_middles_of_pixels(tmp_path):
    masks = np.random.default_rng(1).random((3, 12, 12)) > 0.5
    images = np.zeros((6, 12, 12), np.uint8)
    name = saved(tmp_path / "a.npz", x_train=images, x_test=images[:3], masks_test=masks)
    assert np.array_equal(load_dataset(name, image_size=4).test.masks.numpy(), masks[:, 1::3, 1::3])
    assert np.array_equal(load_dataset(name, image_size=36).test.masks.numpy(), masks.repeat(3, 1).repeat(3, 2))


def test_npz_fingerprint_follows_classes_labels_and_pixels(tmp_path):
    def fingerprint(**changes):
        return load_dataset(saved(tmp_path / "a.npz", **changes)).fingerprint

    same = fingerprint()
    assert fingerprint(y_test=np.array([2, 1, 0], dtype=np.int32)) == same
    pixels = arrays()["x_train"].copy()
    pixels[5, 7, 7, 2] ^= 1
    different = [
        fingerprint(classes=np.array(["a", "b", "c"])),
        fingerprint(y_train=np.array([0, 1, 2, 0, 2, 1])),
        fingerprint(x_train=pixels),
    ]
    assert len({same, *different}) == 4


def test_npz_faults(tmp_path, fails):
    path = tmp_path / "a.npz"

    def refused(*words, **changes):
        fails(saved(path, **changes), str(path), *words)

    fails(f"npz:{tmp_path / 'none.npz'}", "none.npz", "no such file")
    path.write_bytes(b"PK\x03\x04 damaged")
    fails(f"npz:{path}", str(path), "not a readable npz")
    saved(path)
    path.write_bytes(path.read_bytes()[:-200])
    fails(f"npz:{path}", str(path), "not a readable npz")
    for key in ("x_train", "y_train", "x_test", "y_test"):
        refused(key, "missing", **{key: None})
    refused("x_unlabelled", "unknown", x_unlabelled=np.zeros((1, 8, 8), np.uint8))
    refused("x_train", "float32", "uint8", x_train=np.zeros((6, 8, 8, 3), np.float32))
    refused("y_train", "float64", y_train=np.zeros(6))
    refused("y_train", "5 labels for 6 images", y_train=np.zeros(5, int))
    refused("y_test", "label 7", "0..2", y_test=np.array([0, 1, 7]))
    refused("y_train", "label -1", y_train=np.array([0, 1, 2, -1, 1, 2]))
    refused("y_train", "label 2", "0..1", classes=np.array(["a", "b"]))
    refused("'c'", "not in train", classes=np.array(list("abcd")), y_train=np.array([0, 1, 1, 0, 1, 3]))
    refused("twice", classes=np.array(["a", "b", "a"]))
    refused("classes 'B' and 'b' differ by upper and lower case only", classes=np.array(["a", "B", "b"]))
    refused("1 class (0); two or more are needed", y_train=np.zeros(6, int), y_test=np.zeros(3, int))
    refused("not a readable npz", classes=np.array(["a", 1, None], dtype=object))
    refused("x_train", "8x9", "squares", x_train=np.zeros((6, 8, 9), np.uint8))
    refused("x_train", "shape", x_train=np.zeros((6, 8, 8, 4), np.uint8))
    refused("x_train: 8", "x_test: 6", x_test=np.zeros((3, 6, 6), np.uint8))
    refused("x_train", "no images", x_train=np.zeros((0, 8, 8), np.uint8), y_train=np.zeros(0, int))
    refused("masks_train", "[6, 8, 8]", masks_train=np.zeros((6, 4, 4), bool))
    refused("masks_unlabeled", "x_unlabeled is missing", masks_unlabeled=np.zeros((6, 8, 8), bool))
    refused(
        "masks_unlabeled is missing",
        x_unlabeled=np.zeros((1, 8, 8), np.uint8),
        masks_train=np.zeros((6, 8, 8), bool),
    )


def test_npz_and_folder_of_the_same_images_give_the_same_pixels_at_any_size(tmp_path, write):
    content = arrays()
    for part in ("train", "test"):
        for i, (image, label) in enumerate(zip(content[f"x_{part}"], content[f"y_{part}"], strict=True)):
            write(tmp_path / "set" / part / str(label) / f"{i}.png", image)
    for size in (None, 5, 12):
        folder = load_dataset(f"folder:{tmp_path / 'set'}", image_size=size)
        npz = load_dataset(saved(tmp_path / "set.npz"), image_size=size)
        order = npz.train.labels.argsort(stable=True)
        assert torch.equal(folder.train.images.pixels, npz.train.images.pixels[order])
        assert torch.equal(folder.train.labels, npz.train.labels[order])
        assert (folder.mean, folder.std) == (npz.mean, npz.std)


@pytest.mark.shared_data
def test_cifar10_unpacked_as_npz_and_as_folder_is_the_same_data(tmp_path):
    if not SHARED_CIFAR.is_dir():
        pytest.skip(f"{SHARED_CIFAR} is absent")
    script = [
        sys.executable,
        str(SHARED_CIFAR.parent / "unpack.py"),
        "cifar10",
        str(tmp_path),
        "--limit",
        "150",
    ]
    for form in ("npz", "folder"):
        subprocess.run([*script, "--format", form], check=True)
    npz = load_dataset(f"npz:{tmp_path / 'cifar10.npz'}")
    folder = load_dataset(f"folder:{tmp_path / 'cifar10'}")
    assert npz.classes == folder.classes == tuple(json.loads((SHARED_CIFAR / "index.json").read_text())["classes"])
    for part in ("train", "test"):
        ours, theirs = getattr(folder, part), getattr(npz, part)
        order = theirs.labels.argsort(stable=True)
        assert torch.equal(ours.labels, theirs.labels[order])
        assert torch.equal(ours.images.pixels, theirs.images.pixels[order])
    assert (npz.mean, npz.std) == (folder.mean, folder.std)
