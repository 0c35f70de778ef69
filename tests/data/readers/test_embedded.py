from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from hybridgen.data.datasets import load_dataset
from hybridgen.data.readers import embedded

DIGITS_M = embedded.digits_m
GOLDEN_DIGITS_M = "2ff5c2bf3d714ec69217e2246656ff8d37d04fb39cf3a088478b2e68644cabae"


@pytest.fixture(autouse=True)
def made_each_time(monkeypatch):
    monkeypatch.setattr(embedded, "digits_m", DIGITS_M)


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


def test_digits_m_digits_are_those_of_their_labels(digits):
    from sklearn.datasets import load_digits

    theirs, margin = load_digits(), digits.image_size // 16
    inner = (digits.image_size - 2 * margin,) * 2
    drawn = set()
    for grey, label in zip(theirs.images, theirs.target.tolist(), strict=True):
        enlarged = Image.fromarray((grey * 255 // 16).astype(np.uint8)).resize(inner, Image.Resampling.BICUBIC)
        drawn.add((label, np.pad(np.asarray(enlarged) >= 128, margin).tobytes()))
    for part in (digits.train, digits.test):
        found = {(label, mask.numpy().tobytes()) for label, mask in zip(part.labels.tolist(), part.masks, strict=True)}
        assert found <= drawn and len(found) > 400


def test_digits_m_crops_of_train_and_test_come_from_different_pixels(monkeypatch):
    """Each photograph's pixels are replaced by their column, so that crops tell where they came from."""
    column = np.broadcast_to(np.arange(640)[None, :, None] // 4, (427, 640, 3)).astype(np.uint8)
    photographs = [column, column.copy()]
    photographs[1][..., 2] = 255  # tells the second photograph from the first
    monkeypatch.setattr(embedded, "read_photographs", lambda: photographs)
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


def test_digits_m_comes_in_two_sizes(fails):
    fails("digits-m", "24", "16 and 32", image_size=24)


def test_the_files_are_what_scikit_learn_makes_of_them():
    from sklearn.datasets import load_digits, load_sample_images

    images, labels = embedded.read_digits()
    theirs = load_digits()
    assert np.array_equal(images, theirs.images) and images.dtype == np.uint8
    assert np.array_equal(labels, theirs.target) and labels.dtype == np.int64
    photographs, theirs = embedded.read_photographs(), load_sample_images()
    assert [Path(name).name for name in theirs.filenames] == list(embedded.PHOTOGRAPHS)
    assert all(np.array_equal(ours, own) for ours, own in zip(photographs, theirs.images, strict=True))


@pytest.mark.parametrize("found", [None, SimpleNamespace(origin=str(Path("nowhere", "__init__.py")))])
def test_without_scikit_learn_the_error_says_what_is_missing(monkeypatch, fails, found):
    monkeypatch.setattr(embedded, "find_spec", lambda name: found)
    fails("digits-m", "digits-m", "scikit-learn")
