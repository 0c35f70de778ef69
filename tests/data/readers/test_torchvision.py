import pickle

import numpy as np
import pytest
import torch

from hybridgen.data.datasets import load_dataset


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "svhn", "stl10", "mnist"])
def test_missing_data_say_what_to_do(tmp_path, name, fails):
    fails(name, name, str(tmp_path), "--download", "--data-root", data_root=tmp_path)


@pytest.mark.parametrize(
    "damaged",
    [
        lambda whole: whole[:-100],
        lambda whole: b"",
        lambda whole: b"<html>No such page.</html>",
        lambda whole: whole[:2] + bytes([9]) + whole[3:],  # numbers of another type
        lambda whole: whole[:2] + bytes([10]) + whole[3:],  # of none
    ],
    ids=["truncated", "empty", "a page", "signed", "unknown"],
)
def test_damaged_data_say_what_to_do(tmp_path, fails, mnist_files, damaged):
    mnist_files(tmp_path)
    path = tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte"
    path.write_bytes(damaged(path.read_bytes()))
    fails("mnist", "not whole", str(tmp_path), "--download", data_root=tmp_path)


def test_a_download_that_fails_is_one_line(tmp_path, monkeypatch, fails, mnist_files):
    def no_network(*args, **kwargs):
        raise OSError("no route\nto host")

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", no_network)
    fails("cifar10", "download of CIFAR10", str(tmp_path), "no route to host", data_root=tmp_path, download=True)


def test_mnist_is_padded_to_32_and_repeated(tmp_path, mnist_files):
    images, labels = mnist_files(tmp_path)
    dataset = load_dataset("mnist", data_root=tmp_path)
    pixels = dataset.train.images.pixels
    assert pixels.shape == (30, 3, 32, 32) and not dataset.flip
    assert torch.equal(pixels[:, :, 2:-2, 2:-2], torch.from_numpy(images[:30])[:, None].expand(-1, 3, -1, -1))
    assert pixels.sum() == pixels[:, :, 2:-2, 2:-2].sum()
    assert dataset.test.labels.tolist() == labels[30:].tolist()
    assert load_dataset("mnist", data_root=tmp_path, image_size=16).image_size == 16


def test_mnist_m_composites_on_photographs_that_the_parts_do_not_share(tmp_path, write, mnist_files):
    images, _ = mnist_files(tmp_path / "data")
    photographs = tmp_path / "photographs"
    for i in range(6):
        colour = np.full((20 if i == 3 else 50, 60, 3), 40 * i, np.uint8)
        write(photographs / "deep" / f"{i}.png", colour)
    dataset = load_dataset(f"mnist-m:{photographs}", data_root=tmp_path / "data")
    assert dataset.image_size == 32 and not dataset.flip
    digits = torch.from_numpy(np.pad(images, ((0, 0), (2, 2), (2, 2))))[:, None].int()
    for part, chosen in ((dataset.train, digits[:30]), (dataset.test, digits[30:])):
        assert torch.equal((part.backgrounds.int() - chosen).abs(), part.images.pixels.int())
        assert torch.equal(part.masks, chosen[:, 0] >= 128)
    shades = [set(part.backgrounds.unique().tolist()) for part in (dataset.train, dataset.test)]
    assert shades[1] == {0, 200} and shades[0] == {40, 80, 120, 160}
    small = load_dataset(f"mnist-m:{photographs}", data_root=tmp_path / "data", image_size=16)
    assert small.train.masks.shape == (30, 16, 16) and small.train.backgrounds.shape == (30, 3, 16, 16)
    assert small.fingerprint == dataset.fingerprint

    write(photographs / "train" / "a.png", np.full((40, 40, 3), 7, np.uint8))
    write(photographs / "test" / "b.png", np.full((40, 40, 3), 9, np.uint8))
    dataset = load_dataset(f"mnist-m:{photographs}", data_root=tmp_path / "data")
    assert dataset.train.backgrounds.unique().tolist() == [7]
    assert dataset.test.backgrounds.unique().tolist() == [9]


def test_mnist_m_faults(tmp_path, picture, write, fails, mnist_files):
    mnist_files(tmp_path / "data")
    fails(f"mnist-m:{tmp_path / 'none'}", "none", "photographs", data_root=tmp_path / "data")
    write(tmp_path / "one" / "a.png", picture(0))
    fails(f"mnist-m:{tmp_path / 'one'}", "at least 2", data_root=tmp_path / "data")
    (tmp_path / "one" / "b.png").write_text("no image")
    fails(f"mnist-m:{tmp_path / 'one'}", "b.png", data_root=tmp_path / "data")


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_is_read_through_torchvision(tmp_path, monkeypatch, name):
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *args: True)
    folder = tmp_path / {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}[name]
    folder.mkdir()
    count = int(name.removeprefix("cifar"))
    names = [f"class {i}" for i in range(count)]
    key, meta = {"cifar10": ("label_names", "batches.meta"), "cifar100": ("fine_label_names", "meta")}[name]
    (folder / meta).write_bytes(pickle.dumps({key: names}))
    rng = np.random.default_rng(0)
    files = {
        "cifar10": [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"],
        "cifar100": ["train", "test"],
    }
    written = {}
    for file in files[name]:
        written[file] = rng.integers(0, 256, (4, 3072), dtype=np.uint8)
        labels = {"labels" if name == "cifar10" else "fine_labels": [0, 1, 2, count - 1]}
        (folder / file).write_bytes(pickle.dumps({"data": written[file], **labels}))
    dataset = load_dataset(name, data_root=tmp_path)
    train = np.concatenate([written[file] for file in files[name][:-1]]).reshape(-1, 3, 32, 32)
    assert np.array_equal(dataset.train.images.pixels.numpy(), train)
    assert np.array_equal(dataset.test.images.pixels.numpy(), written[files[name][-1]].reshape(-1, 3, 32, 32))
    assert dataset.classes == tuple(names) and dataset.flip
    assert dataset.test.labels.tolist() == [0, 1, 2, count - 1]
    assert (dataset.mean == (0.4914, 0.4822, 0.4465)) == (name == "cifar10")
    assert (dataset.std == (0.2470, 0.2435, 0.2616)) == (name == "cifar10")


def test_svhn_is_read_through_torchvision(tmp_path, monkeypatch):
    from scipy.io import savemat

    monkeypatch.setattr("torchvision.datasets.svhn.check_integrity", lambda *args: True)
    images = np.random.default_rng(0).integers(0, 256, (32, 32, 3, 5), dtype=np.uint8)
    for part, own in (("train", images), ("test", 255 - images)):
        savemat(tmp_path / f"{part}_32x32.mat", {"X": own, "y": np.array([[1], [2], [10], [9], [1]])})
    dataset = load_dataset("svhn", data_root=tmp_path)
    assert dataset.classes == tuple("0123456789")
    assert np.array_equal(dataset.test.images.pixels.numpy(), 255 - images.transpose(3, 2, 0, 1))
    assert dataset.train.labels.tolist() == [1, 2, 0, 9, 1] and not dataset.flip
    assert np.array_equal(dataset.train.images.pixels.numpy(), images.transpose(3, 2, 0, 1))


def test_stl10_has_its_unlabelled_part_at_the_end(tmp_path, monkeypatch):
    monkeypatch.setattr("torchvision.datasets.stl10.STL10._check_integrity", lambda self: True)
    folder = tmp_path / "stl10_binary"
    folder.mkdir()
    rng = np.random.default_rng(0)
    pixels = {part: rng.integers(0, 256, (2, 3, 96, 96), dtype=np.uint8) for part in ("train", "test", "unlabeled")}
    for part, images in pixels.items():
        (folder / f"{part}_X.bin").write_bytes(images.transpose(0, 1, 3, 2).tobytes())
        (folder / f"{part}_y.bin").write_bytes(bytes([1, 10]))
    (folder / "class_names.txt").write_text("\n".join(f"name{i}" for i in range(10)) + "\n")
    (folder / "fold_indices.txt").write_text("0\n")
    dataset = load_dataset("stl10", data_root=tmp_path)
    assert dataset.train.labels.tolist() == [0, 9, -1, -1] and dataset.test.labels.tolist() == [0, 9]
    expected = np.concatenate([pixels["train"], pixels["unlabeled"]])
    assert np.array_equal(dataset.train.images.pixels.numpy(), expected)
    assert np.array_equal(dataset.test.images.pixels.numpy(), pixels["test"])
    assert dataset.image_size == 96 and dataset.flip and dataset.classes == tuple(f"name{i}" for i in range(10))
