import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hybridgen.data import datasets
from hybridgen.data.datasets import DATASETS, Files, InMemory, Part, decode, load_dataset
from hybridgen.types import InputError

SHARED_CIFAR = Path(__file__).parents[3] / "shared" / "data" / "cifar10"
GOLDEN_DIGITS_M = "2ff5c2bf3d714ec69217e2246656ff8d37d04fb39cf3a088478b2e68644cabae"


def picture(seed: int, height: int = 8, width: int = 8) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def write(path: Path, array: np.ndarray, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)
    return path


def image_folder(root: Path, size: int = 8) -> Path:
    for part, copies in (("train", 3), ("test", 2)):
        for label, name in enumerate(("cat", "dog")):
            for i in range(copies):
                write(root / part / name / f"{i}.png", picture(10 * label + i + 100 * copies, size, size))
    return root


def fails(name: str, *words: str, **options) -> None:
    """Loading `name` is refused in one line that holds all of `words`."""
    with pytest.raises(InputError) as caught:
        load_dataset(name, **options)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message


# --- digits-m -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=[16, 32])
def digits(request):
    return load_dataset("digits-m", image_size=request.param)


def test_digits_m_composites_are_the_difference_of_background_and_digit(digits):
    for part in (digits.train, digits.test):
        pixels, backgrounds = part.images.pixels.int(), part.backgrounds.int()
        # |b - d| with one d for the three channels: on the mask (d >= 128) some d explains all three.
        d = torch.arange(256).view(-1, 1, 1)
        for i in range(0, len(part), 97):
            explained = (backgrounds[i].flatten(1)[None] - d).abs() == pixels[i].flatten(1)[None]
            fits = explained.all(1)
            assert fits.any(0).all()
            mask = part.masks[i].flatten()
            assert (fits & (d[:, 0] >= 128)).any(0)[mask].all()
            assert (fits & (d[:, 0] < 128)).any(0)[~mask].all()


def test_digits_m_parts_are_complete_stratified_and_disjoint(digits):
    from sklearn.datasets import load_digits

    assert (len(digits.train), len(digits.test)) == (5188, 500)
    assert torch.bincount(digits.test.labels).tolist() == [50] * 10
    # Every digit for training on four crops, every digit for the test on one.
    counts = digits.train.labels.bincount() + 4 * digits.test.labels.bincount()
    assert torch.equal(counts, 4 * torch.from_numpy(load_digits().target).bincount())
    masks = {part: {mask.numpy().tobytes() for mask in getattr(digits, part).masks} for part in ("train", "test")}
    # Two digits may share a mask, which is coarser; if digits were in both parts, all of them would.
    assert len(masks["train"] & masks["test"]) < 5


def test_digits_m_crops_of_train_and_test_come_from_different_pixels(monkeypatch):
    """Each photograph's pixels are replaced by their column, so that crops tell where they came from."""
    import sklearn.datasets

    photographs = sklearn.datasets.load_sample_images()
    column = np.broadcast_to(np.arange(640)[None, :, None] // 4, (427, 640, 3)).astype(np.uint8)
    photographs.images = [column, column.copy()]
    photographs.images[1][..., 2] = 255  # tells the second photograph from the first
    monkeypatch.setattr(sklearn.datasets, "load_sample_images", lambda: photographs)
    dataset = load_dataset("digits-m", image_size=32)
    seen = {}
    for part in ("train", "test"):
        backgrounds = getattr(dataset, part).backgrounds
        of_second = (backgrounds[:, 2] == 255).flatten(1).all(1)
        for photograph in (0, 1):
            seen[part, photograph] = set(backgrounds[of_second == bool(photograph), 0].unique().tolist())
    assert all(seen.values())
    for photograph in (0, 1):
        assert not seen["train", photograph] & seen["test", photograph]


def test_digits_m_is_the_same_every_time_and_its_fingerprint_for_both_sizes(digits):
    again = load_dataset("digits-m", image_size=digits.image_size)
    assert torch.equal(again.train.images.pixels, digits.train.images.pixels)
    # Recorded: a change would orphan the splits and the artefact that the project ships.
    assert digits.fingerprint == again.fingerprint == GOLDEN_DIGITS_M
    recorded = {16: (0.399635, 0.393051, 0.380733), 32: (0.400052, 0.393463, 0.381021)}
    assert digits.mean == pytest.approx(recorded[digits.image_size], abs=1e-3)  # JPEG decoders differ a little
    assert not digits.flip and digits.classes == tuple("0123456789")


def test_digits_m_backgrounds_differ_and_masks_are_strokes(digits):
    shares = digits.train.masks.float().mean((1, 2))
    assert shares.min() > 0.05 and shares.max() < 0.5
    assert digits.train.masks.float().mean(0).max() > 0.5
    assert len(digits.train.backgrounds.flatten(1).unique(dim=0)) == len(digits.train)
    margin = digits.image_size // 16
    assert not digits.train.masks[:, :margin].any() and not digits.train.masks[:, :, -margin:].any()


def test_channel_statistics_are_those_of_the_training_pixels(digits):
    values = digits.train.images.pixels.double() / 255
    torch.testing.assert_close(torch.tensor(digits.mean).double(), values.mean((0, 2, 3)), atol=1e-6, rtol=0)
    deviation = values.std((0, 2, 3), correction=0)
    torch.testing.assert_close(torch.tensor(digits.std).double(), deviation, atol=1e-6, rtol=0)


def test_digits_m_size_and_unknown_names():
    fails("digits-m", "24", "16 and 32", image_size=24)
    fails("digits-m", "image_size = 0", image_size=0)
    fails("imagenet", "imagenet", *DATASETS)
    fails("folder:", "folder:PATH")
    fails("folder", "folder:PATH")
    fails("cifar10:here", "cifar10:here")


# --- decoding -------------------------------------------------------------------------------------------


def test_every_mode_becomes_the_rgb_it_means(tmp_path):
    rgb = Image.fromarray(picture(0))
    reference = torch.from_numpy(np.array(rgb)).permute(2, 0, 1)
    modes = {"RGB": rgb, "RGBA": rgb.convert("RGBA"), "CMYK": rgb.convert("CMYK")}
    for mode, image in modes.items():
        image.save(tmp_path / f"{mode}.tiff")
        assert torch.equal(decode(tmp_path / f"{mode}.tiff", 8), reference), mode

    for mode in ("L", "LA", "1", "P"):
        image = rgb.convert(mode)
        image.save(tmp_path / f"{mode}.png")
        expected = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
        assert torch.equal(decode(tmp_path / f"{mode}.png", 8), expected), mode


def test_transparency_is_laid_on_white(tmp_path):
    pixels = np.zeros((2, 2, 4), dtype=np.uint8)
    pixels[0, 0] = (200, 100, 0, 255)
    pixels[0, 1] = (200, 100, 0, 51)
    write(tmp_path / "a.png", pixels)
    decoded = decode(tmp_path / "a.png", 2)
    assert decoded[:, 0, 0].tolist() == [200, 100, 0]
    assert decoded[:, 0, 1].tolist() == [244, 224, 204]
    assert decoded[:, 1].unique().tolist() == [255]


def test_transparent_palette_entry_is_laid_on_white(tmp_path):
    image = Image.new("P", (2, 2), 1)
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((0, 0), 0)
    image.save(tmp_path / "p.png", transparency=0)
    decoded = decode(tmp_path / "p.png", 2)
    assert decoded[:, 0, 0].tolist() == [255, 255, 255]
    assert decoded[:, 1, 1].tolist() == [40, 50, 60]


@pytest.mark.parametrize("suffix", ["png", "tiff", "pgm"])
def test_16_bits_are_scaled_and_not_clipped(tmp_path, suffix):
    values = np.array([[0, 128, 257], [1000, 32768, 40000], [65278, 65407, 65535]], dtype=np.uint16)
    path = tmp_path / f"deep.{suffix}"
    if suffix == "pgm":
        path.write_bytes(b"P5 3 3 65535\n" + values.astype(">u2").tobytes())
    else:
        Image.fromarray(values).save(path)
    expected = torch.from_numpy(np.round(values / 257).astype(np.uint8))
    assert torch.equal(decode(path, 3), expected.expand(3, 3, 3))


def test_values_without_a_known_range_are_refused(tmp_path):
    for array in (np.full((2, 2), 0.5, np.float32), np.full((2, 2), 100_000, np.int32)):
        path = tmp_path / f"{array.dtype}.tiff"
        Image.fromarray(array).save(path)
        with pytest.raises(InputError, match=f"{array.dtype}.tiff.*known range"):
            decode(path, 2)


def test_exif_orientation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to see it upright
    array = picture(1)
    Image.fromarray(array).save(tmp_path / "turned.png", exif=exif)
    expected = torch.from_numpy(np.rot90(array, -1).copy()).permute(2, 0, 1)
    assert torch.equal(decode(tmp_path / "turned.png", 8), expected)


def test_other_shapes_are_cropped_at_the_centre_and_resized_with_antialias(tmp_path):
    wide = np.zeros((40, 100, 3), dtype=np.uint8)
    wide[:, 30:70] = 200  # exactly the central square
    decoded = decode(write(tmp_path / "wide.png", wide), 8)
    assert (decoded.int() - 200).abs().max() <= 20  # the filter looks a little beyond the edge
    assert (decoded[:, :, 2:-2] == 200).all()
    stripes = np.zeros((64, 64, 3), dtype=np.uint8)
    stripes[::2] = 255
    decoded = decode(write(tmp_path / "stripes.png", stripes), 8)[:, 1:-1]
    assert (decoded.int() - 127).abs().max() <= 2
    pixel = decode(write(tmp_path / "pixel.png", picture(2, 1, 1)), 8)
    assert torch.equal(pixel, torch.from_numpy(picture(2, 1, 1)).permute(2, 0, 1).expand(3, 8, 8))


def test_large_photographs_decode_fast_and_true(tmp_path):
    y, x = np.mgrid[0:600, 0:800]
    smooth = np.stack([x * 255 // 799, y * 255 // 599, (x + y) * 255 // 1398], -1).astype(np.uint8)
    path = write(tmp_path / "large.jpg", smooth, quality=95)
    with Image.open(path) as image:
        whole = np.asarray(image.convert("RGB").resize((16, 16), Image.Resampling.BICUBIC, box=(100, 0, 700, 600)))
    assert (decode(path, 16).permute(1, 2, 0).numpy().astype(int) - whole).__abs__().max() <= 6


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "gif", "bmp", "tiff"])
def test_truncated_and_foreign_files_are_named(tmp_path, suffix):
    path = write(tmp_path / f"cut.{suffix}", picture(3, 64, 64))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    foreign = tmp_path / f"text.{suffix}"
    foreign.write_text("not an image")
    empty = tmp_path / f"empty.{suffix}"
    empty.touch()
    for bad in (path, foreign, empty, tmp_path / f"missing.{suffix}"):
        with pytest.raises(InputError, match=bad.name) as caught:
            decode(bad, 64)
        assert "\n" not in str(caught.value)


# --- image sources --------------------------------------------------------------------------------------


def test_files_and_memory_gather_alike_and_files_keep_nothing(tmp_path):
    paths = [write(tmp_path / f"{i}.png", picture(i)) for i in range(5)]
    files = Files(paths, 8)
    memory = InMemory(torch.stack([torch.from_numpy(picture(i)).permute(2, 0, 1) for i in range(5)]))
    indices = torch.tensor([3, 0, 3])
    assert torch.equal(files.gather(indices), memory.gather(indices))
    assert (len(files), files.image_size) == (len(memory), memory.image_size) == (5, 8)
    assert files.gather(torch.empty(0, dtype=torch.int64)).shape == (0, 3, 8, 8)

    before = len(pickle.dumps(files))
    write(paths[3], picture(99))
    assert torch.equal(files.gather(indices)[0], torch.from_numpy(picture(99)).permute(2, 0, 1))
    assert len(pickle.dumps(files)) == before


def test_part_refuses_labels_of_another_length():
    images = InMemory(torch.zeros(3, 3, 4, 4, dtype=torch.uint8))
    with pytest.raises(InputError, match="2 for 3 images"):
        Part(images, torch.zeros(2, dtype=torch.int64))


# --- folder ---------------------------------------------------------------------------------------------


def test_folder_holds_classes_in_order_and_unlabelled_images_last(tmp_path):
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


def test_folder_beyond_the_memory_limit_stays_on_disk_with_the_same_pixels(tmp_path):
    root = image_folder(tmp_path)
    memory = load_dataset(f"folder:{root}", image_size=6)
    files = load_dataset(f"folder:{root}", image_size=6, memory_limit=3 * 6 * 6 * 10 - 1)
    assert isinstance(files.train.images, Files) and isinstance(memory.train.images, InMemory)
    everything = torch.arange(6)
    assert torch.equal(files.train.images.gather(everything), memory.train.images.pixels)
    assert (files.mean, files.std, files.fingerprint) == (memory.mean, memory.std, memory.fingerprint)


def test_statistics_of_large_folders_come_from_a_sample(tmp_path, monkeypatch):
    root = image_folder(tmp_path)
    monkeypatch.setattr(datasets, "STATISTICS_SAMPLE", 3)
    dataset = load_dataset(f"folder:{root}", memory_limit=0)
    sample = dataset.train.images.gather(torch.tensor([0, 2, 4])).double() / 255
    torch.testing.assert_close(torch.tensor(dataset.mean).double(), sample.mean((0, 2, 3)), atol=1e-6, rtol=0)


def test_folder_fingerprint_follows_the_files_and_neither_place_nor_size(tmp_path, monkeypatch):
    first = load_dataset(f"folder:{image_folder(tmp_path / 'a')}")
    second = load_dataset(f"folder:{image_folder(tmp_path / 'b' / 'c')}", image_size=4)
    assert first.fingerprint == second.fingerprint
    bitmap = tmp_path / "b" / "c" / "train" / "cat" / "0.png"
    changed = bytearray(bitmap.read_bytes())
    changed[-1] ^= 1  # as many bytes as before
    bitmap.write_bytes(changed)
    assert load_dataset(f"folder:{tmp_path / 'b' / 'c'}").fingerprint != first.fingerprint
    monkeypatch.setattr(datasets, "CONTENT_HASH_LIMIT", 0)
    by_size = load_dataset(f"folder:{tmp_path / 'a'}").fingerprint
    assert by_size == load_dataset(f"folder:{tmp_path / 'b' / 'c'}").fingerprint != first.fingerprint
    bitmap.rename(bitmap.with_name("other.png"))
    assert load_dataset(f"folder:{tmp_path / 'b' / 'c'}").fingerprint != by_size


def test_folder_faults(tmp_path):
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


def test_links_are_followed_to_what_there_is(tmp_path):
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
def test_links_in_circles_or_to_nothing_end_in_one_line(tmp_path, link, target, words):
    root = image_folder(tmp_path / "own")
    if target == "../dog":
        (root / "train" / "dog" / "back").symlink_to("../cat")
    (root / link).symlink_to(target)
    fails(f"folder:{root}", str(root / link.split("/")[0]), words)


def test_what_only_has_an_images_name_is_passed_over(tmp_path):
    root = image_folder(tmp_path)
    before = load_dataset(f"folder:{root}").fingerprint
    os.mkfifo(root / "train" / "cat" / "pipe.png")
    (root / "train" / "cat" / "folder.png").mkdir()
    (root / "train" / "notes.txt").write_text("mine")
    assert load_dataset(f"folder:{root}").fingerprint == before


def test_names_may_hold_anything_but_a_class_must_be_utf_8(tmp_path):
    root = image_folder(tmp_path)
    (root / "train" / "cat").rename(root / "train" / "chat noir é 猫")
    (root / "test" / "cat").rename(root / "test" / "chat noir é 猫")
    (root / "train" / "dog" / "0.png").rename(root / "train" / "dog" / os.fsdecode(b"\xff 0.png"))
    assert load_dataset(f"folder:{root}").classes == ("chat noir é 猫", "dog")
    (root / "train" / "dog").rename(root / "train" / os.fsdecode(b"do\xff"))
    fails(f"folder:{root}", r"do\xff", "not UTF-8")


def test_a_file_that_vanishes_or_may_not_be_read_is_named(tmp_path, monkeypatch):
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
    monkeypatch.setattr(datasets, "_images_below", lambda folder: [path.with_name("gone.png")])
    fails(f"folder:{root}", "gone.png: not a readable image (No such file or directory)")


def test_folder_of_unequal_sizes_needs_image_size(tmp_path):
    root = image_folder(tmp_path)
    write(root / "train" / "cat" / "1.png", picture(0, 8, 9))
    fails(f"folder:{root}", "--image-size", "9x8")
    write(root / "train" / "cat" / "1.png", picture(0, 1, 1))
    fails(f"folder:{root}", "--image-size", "1x1")
    assert load_dataset(f"folder:{root}", image_size=4).train.images.pixels.shape == (6, 3, 4, 4)


def test_a_class_without_test_images_is_allowed(tmp_path):
    root = image_folder(tmp_path)
    write(root / "train" / "ant" / "0.png", picture(0))
    dataset = load_dataset(f"folder:{root}")
    assert dataset.classes == ("ant", "cat", "dog") and dataset.test.labels.tolist() == [1, 1, 2, 2]


# --- npz ------------------------------------------------------------------------------------------------


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


def test_npz_grey_is_repeated_and_sizes_change_with_antialias(tmp_path):
    stripes = np.zeros((6, 32, 32), np.uint8)
    stripes[:, ::2] = 255
    name = saved(tmp_path / "a.npz", x_train=stripes, x_test=stripes[:3], masks_test=stripes[:3] > 0)
    whole, small = load_dataset(name), load_dataset(name, image_size=4)
    assert torch.equal(whole.train.images.pixels, torch.from_numpy(stripes)[:, None].expand(6, 3, 32, 32))
    assert small.image_size == 4 and small.test.masks.shape == (3, 4, 4)
    assert (small.train.images.pixels[:, :, 1:-1].int() - 127).abs().max() <= 2
    assert small.fingerprint == whole.fingerprint


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


def test_npz_faults(tmp_path):
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


def test_npz_and_folder_of_the_same_images_give_the_same_pixels_at_any_size(tmp_path):
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


# --- torchvision's sets ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "svhn", "stl10", "mnist"])
def test_missing_data_say_what_to_do(tmp_path, name):
    fails(name, name, str(tmp_path), "--download", "--data-root", data_root=tmp_path)


def test_truncated_data_say_what_to_do(tmp_path):
    mnist_files(tmp_path)
    path = tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-100])
    fails("mnist", "not whole", str(tmp_path), "--download", data_root=tmp_path)


def test_a_download_that_fails_is_one_line(tmp_path, monkeypatch):
    def no_network(*args, **kwargs):
        raise OSError("no route\nto host")

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", no_network)
    fails("cifar10", "download of CIFAR10", str(tmp_path), "no route to host", data_root=tmp_path, download=True)


def mnist_files(root: Path) -> tuple[np.ndarray, np.ndarray]:
    images = np.random.default_rng(0).integers(0, 256, (40, 28, 28), dtype=np.uint8)
    labels = np.arange(40, dtype=np.uint8) % 10
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for stem, chosen in (("train", slice(0, 30)), ("t10k", slice(30, 40))):
        header = np.array([0x803, len(images[chosen]), 28, 28], dtype=">u4").tobytes()
        (raw / f"{stem}-images-idx3-ubyte").write_bytes(header + images[chosen].tobytes())
        header = np.array([0x801, len(labels[chosen])], dtype=">u4").tobytes()
        (raw / f"{stem}-labels-idx1-ubyte").write_bytes(header + labels[chosen].tobytes())
    return images, labels


def test_mnist_is_padded_to_32_and_repeated(tmp_path):
    images, labels = mnist_files(tmp_path)
    dataset = load_dataset("mnist", data_root=tmp_path)
    pixels = dataset.train.images.pixels
    assert pixels.shape == (30, 3, 32, 32) and not dataset.flip
    assert torch.equal(pixels[:, :, 2:-2, 2:-2], torch.from_numpy(images[:30])[:, None].expand(-1, 3, -1, -1))
    assert pixels.sum() == pixels[:, :, 2:-2, 2:-2].sum()
    assert dataset.test.labels.tolist() == labels[30:].tolist()
    assert load_dataset("mnist", data_root=tmp_path, image_size=16).image_size == 16


def test_mnist_m_composites_on_photographs_that_the_parts_do_not_share(tmp_path):
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


def test_mnist_m_faults(tmp_path):
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
    assert dataset.classes == tuple(names) and dataset.flip
    assert dataset.test.labels.tolist() == [0, 1, 2, count - 1]
    assert (dataset.mean == (0.4914, 0.4822, 0.4465)) == (name == "cifar10")
    assert (dataset.std == (0.2470, 0.2435, 0.2616)) == (name == "cifar10")


def test_svhn_is_read_through_torchvision(tmp_path, monkeypatch):
    from scipy.io import savemat

    monkeypatch.setattr("torchvision.datasets.svhn.check_integrity", lambda *args: True)
    images = np.random.default_rng(0).integers(0, 256, (32, 32, 3, 5), dtype=np.uint8)
    for part in ("train", "test"):
        savemat(tmp_path / f"{part}_32x32.mat", {"X": images, "y": np.array([[1], [2], [10], [9], [1]])})
    dataset = load_dataset("svhn", data_root=tmp_path)
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
    assert dataset.image_size == 96 and dataset.flip and len(dataset.classes) == 10


# --- real images ----------------------------------------------------------------------------------------


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
