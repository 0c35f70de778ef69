"""Transfer rates against plain numpy, and on hybridizers whose rates are known."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from scipy.stats import binomtest

from hybridgen.data.datasets import Dataset, Part
from hybridgen.data.sources import InMemory
from hybridgen.evaluation import transfer
from hybridgen.evaluation.transfer import Distances, draw_pairs, fda, mixup, transfer_rates, wilson
from hybridgen.hybridizer import Hybridizer, Origin
from hybridgen.networks.autoencoder import Architecture, SemanticAutoencoder
from hybridgen.types import InputError

COUNT, SIZE = 24, 8


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    """Backgrounds of random colour noise; the class is the column of a white bar."""
    g = torch.Generator().manual_seed(0)
    labels = torch.arange(COUNT) % 3
    backgrounds = torch.randint(0, 200, (COUNT, 3, SIZE, SIZE), generator=g, dtype=torch.uint8)
    masks = torch.zeros(COUNT, SIZE, SIZE, dtype=torch.bool)
    masks[torch.arange(COUNT), :, 2 * labels] = True
    pixels = torch.where(masks[:, None], torch.tensor(255, dtype=torch.uint8), backgrounds)
    part = Part(InMemory(pixels), labels, masks, backgrounds)
    return Dataset("bars", ("a", "b", "c"), SIZE, part, part, "f" * 64, False, (0.5,) * 3, (0.25,) * 3)


def oracle(images: torch.Tensor) -> torch.Tensor:
    """Sees the class of an image as the brightest of three columns; and is wrong about some on purpose."""
    columns = images.mean((1, 2))[:, [0, 2, 4]]
    doubt = (images.flatten(1)[:, 100] > 0.6).float()
    return columns + doubt[:, None] * torch.tensor([3.0, 0.0, 0.0])


def measured(dataset: Dataset, hybridize, **options):
    return transfer_rates(hybridize, dataset, oracle, Accelerator(), **{"repeats": 3, "batch_size": 7} | options)


def test_returning_the_nonsemantic_parent_preserves_all_of_it(dataset):
    rates = measured(dataset, lambda semantic, nonsemantic: nonsemantic)
    assert rates.hybridizer.nonsemantic_preservation.value == 1.0
    pairs = draw_pairs(COUNT, 3, 0)
    images = dataset.test.images.pixels.float() / 255
    seen = oracle(images).argmax(1)[pairs.nonsemantic] == dataset.test.labels[pairs.semantic]
    assert rates.hybridizer.semantic_transfer.value == pytest.approx(seen.double().mean().item())


def test_returning_the_semantic_parent_transfers_the_class_as_far_as_the_oracle_sees_it(dataset):
    rates = measured(dataset, lambda semantic, nonsemantic: semantic)
    assert rates.hybridizer.nonsemantic_preservation.value == 0.0
    assert rates.hybridizer.background_inheritance.value == 0.0
    images, labels = dataset.test.images.pixels.float() / 255, dataset.test.labels
    expected = (oracle(images).argmax(1) == labels).double().mean().item()
    assert 0 < expected < 1
    assert rates.oracle_accuracy == pytest.approx(expected)
    assert rates.hybridizer.semantic_transfer.value == pytest.approx(expected)


def test_a_hybridizers_own_classifier_is_asked_too(dataset, monkeypatch):
    """What it sees in the hybrids, not in their parents; a function has none."""
    architecture = Architecture(image_size=16, classes=3, network="leaky-wrn-10-1", generator_channels=(4, 4))
    hybridizer = Hybridizer(SemanticAutoencoder(architecture), Origin("bars", "f", "0", ("a", "b", "c")))
    monkeypatch.setattr(hybridizer, "hybridize", lambda *, semantic, nonsemantic: semantic.flip(3))
    columns = lambda images: images.mean((1, 2))
    seen = torch.tensor([1.0, 1.0, 0.0])  # never the last
    monkeypatch.setattr(hybridizer, "classify", lambda images: columns(images)[:, [7, 5, 3]] * seen)
    rates = measured(dataset, hybridizer)
    assert (
        rates.own_semantic_transfer == pytest.approx(wilson(2 / 3, COUNT))
        and rates.hybridizer.semantic_transfer.value < 0.5
    )
    plain = rates.to_dict()
    assert plain["own_semantic_transfer"] == rates.own_semantic_transfer.value
    assert plain["own_semantic_transfer_interval"] == list(rates.own_semantic_transfer[1:])
    bare = measured(dataset, lambda semantic, nonsemantic: semantic).to_dict()
    assert bare["own_semantic_transfer"] is None is bare["own_semantic_transfer_interval"]
    # Nor has one of other classes, whose first is not theirs
    other = measured(replace(dataset, classes=("b", "a", "c")), hybridizer)
    assert other.own_semantic_transfer is None and other == replace(rates, own_semantic_transfer=None)


def test_semantic_object_on_the_other_background_inherits_all(dataset):
    backgrounds = {  # by the image, since the function sees images only
        image.numpy().tobytes(): background
        for image, background in zip(dataset.test.images.pixels, dataset.test.backgrounds, strict=True)
    }

    def composite(semantic, nonsemantic):
        rows = [backgrounds[(image * 255).round().byte().numpy().tobytes()] for image in nonsemantic]
        other = torch.stack(rows).float() / 255
        return torch.where((semantic == 1).all(1, keepdim=True), semantic, other)

    rates = measured(dataset, composite)
    assert rates.hybridizer.background_inheritance.value == 1.0


def test_rates_equal_a_plain_reference(dataset):
    def mean(semantic, nonsemantic):
        return 0.45 * semantic + 0.55 * nonsemantic.flip(3)

    rates = measured(dataset, mean, seed=4)
    pairs = draw_pairs(COUNT, 3, 4)
    x = dataset.test.images.pixels.numpy().astype(np.float64) / 255
    b = dataset.test.backgrounds.numpy().astype(np.float64) / 255
    m = ~dataset.test.masks.numpy()
    right = near = inherited = 0
    for c, r in zip(pairs.semantic.tolist(), pairs.nonsemantic.tolist(), strict=True):
        h = 0.45 * x[c] + 0.55 * x[r][:, :, ::-1]
        right += int(oracle(torch.tensor(h[None])).argmax()) == int(dataset.test.labels[c])
        near += np.linalg.norm(h - x[r]) < np.linalg.norm(h - x[c])
        inherited += np.linalg.norm(m[c] * (h - b[r])) < np.linalg.norm(m[c] * (h - b[c]))
    own = rates.hybridizer
    assert own.semantic_transfer.value == pytest.approx(right / len(pairs.semantic))
    assert own.nonsemantic_preservation.value == pytest.approx(near / len(pairs.semantic))
    assert own.background_inheritance.value == pytest.approx(inherited / len(pairs.semantic))


def test_intervals_count_semantic_parents_and_not_their_pairs(dataset):
    rates = measured(dataset, lambda semantic, nonsemantic: semantic, repeats=40).hybridizer
    right = round(rates.semantic_transfer.value * COUNT)
    for rate, hits in ((rates.semantic_transfer, right), (rates.nonsemantic_preservation, 0)):
        expected = binomtest(hits, COUNT).proportion_ci(method="wilson")
        assert (rate.low, rate.high) == pytest.approx((expected.low, expected.high), abs=1e-6)


def test_batches_do_not_change_rates(dataset):
    mean = lambda semantic, nonsemantic: (semantic + nonsemantic.flip(2)) / 2
    assert measured(dataset, mean, batch_size=5) == measured(dataset, mean, batch_size=500)


def test_mixup_stays_nearer_to_its_dominant_parent_and_unrelated_images_to_neither(dataset):
    rates = measured(dataset, lambda semantic, nonsemantic: semantic, repeats=40)
    assert rates.mixup.nonsemantic_preservation.value == 0.0
    assert rates.chance.nonsemantic_preservation.value == pytest.approx(0.5, abs=0.1)
    assert rates.chance.semantic_transfer.value == pytest.approx(1 / 3, abs=0.1)


def test_background_inheritance_is_unknown_without_masks(dataset):
    part = Part(dataset.test.images, dataset.test.labels)
    bare = Dataset("bare", dataset.classes, SIZE, part, part, "e" * 64, False, (0.5,) * 3, (0.25,) * 3)
    rates = measured(bare, lambda semantic, nonsemantic: semantic)
    assert rates.hybridizer.background_inheritance is None
    assert rates.to_dict()["background_inheritance"] is None
    assert "unknown" in rates.table()


def test_test_images_of_unknown_class_are_no_parents_and_are_not_judged(dataset):
    """As if they were not there."""
    kept = torch.tensor([i for i in range(COUNT) if i % 5 != 1])
    part, labels = dataset.test, dataset.test.labels.clone()
    labels[1::5] = -1
    unknown = replace(dataset, test=replace(part, labels=labels))
    few = Part(InMemory(part.images.pixels[kept]), part.labels[kept], part.masks[kept], part.backgrounds[kept])
    mean = lambda semantic, nonsemantic: 0.45 * semantic + 0.55 * nonsemantic.flip(3)
    rates = measured(unknown, mean)
    assert rates == measured(replace(dataset, test=few), mean) and rates.semantic_parents == 19


def test_table_and_note_are_of_the_rates(dataset):
    """As in table 2.5; a row a method, in percent."""
    rates = measured(dataset, lambda semantic, nonsemantic: 0.45 * semantic + 0.55 * nonsemantic.flip(3))
    head, *rows = rates.table().splitlines()
    titles = ("semantic transfer", "non-semantic preservation", "background inheritance")
    at = [head.index(title) for title in titles]
    assert at == sorted(at)
    names = ("hybridizer", "MixUp, dominant label", "FDA", "unrelated image")
    for line, name, own in zip(rows, names, (rates.hybridizer, rates.mixup, rates.fda, rates.chance), strict=True):
        assert line.startswith(name)
        of_own = (own.semantic_transfer, own.nonsemantic_preservation, own.background_inheritance)
        for place, (value, low, high) in zip(at, of_own, strict=True):
            assert line[place:].startswith(f"{100 * value:5.1f}%  [{100 * low:.1f}%, {100 * high:.1f}%]")
    assert transfer.note("bars", 0.875, 24, 3) == (
        "oracle accuracy 87.5% on the test images of bars; 24 semantic parents, 3 partners each\n"
        "95 % intervals by the number of semantic parents"
    )
    plain = rates.to_dict()
    for name in ("mixup", "fda", "chance"):
        assert plain[name] == getattr(rates, name).to_dict()
    assert [plain[key] for key in ("semantic_parents", "repeats", "seed", "fda_beta")] == [COUNT, 3, 0, 0.1]


def test_dictionary_is_json_with_the_promised_keys(dataset):
    plain = json.loads(json.dumps(measured(dataset, lambda semantic, nonsemantic: nonsemantic).to_dict()))
    assert plain["nonsemantic_preservation"] == 1.0
    low, high = plain["nonsemantic_preservation_interval"]
    assert 0 < low < high <= 1.0
    for key in ("semantic_transfer", "oracle_accuracy", "background_inheritance", "repeats", "seed"):
        assert key in plain
    for row in ("mixup", "fda", "chance"):
        assert set(plain[row]) >= {"semantic_transfer", "nonsemantic_preservation_interval"}


def test_pairs_are_of_different_images_and_every_image_is_semantic_equally_often():
    pairs = draw_pairs(5, 2000, 1)
    assert torch.bincount(pairs.semantic).tolist() == [2000] * 5
    for first, second in ((0, 1), (0, 2), (1, 2)):
        assert not (pairs[first] == pairs[second]).any()
    for role in (pairs.nonsemantic, pairs.other):  # uniform over the 20 ordered pairs
        counts = torch.bincount(pairs.semantic * 5 + role, minlength=25).view(5, 5)
        assert counts.diagonal().sum() == 0
        assert counts[~torch.eye(5, dtype=torch.bool)].sub(500).abs().max() < 100
    assert torch.equal(pairs.nonsemantic, draw_pairs(5, 2000, 1).nonsemantic)
    assert not torch.equal(pairs.nonsemantic, draw_pairs(5, 2000, 2).nonsemantic)


@pytest.mark.parametrize(("right", "count"), [(0, 10), (3, 10), (10, 10), (431, 500)])
def test_wilson_interval_solves_its_equation(right, count):
    """Both ends are the shares p at which |p̂ - p| is z standard deviations of p: the definition."""
    share, z = right / count, 1.959964
    rate = wilson(share, count)
    roots = np.roots([1 + z * z / count, -2 * share - z * z / count, share**2])
    assert rate.value == share
    assert (rate.low, rate.high) == pytest.approx(tuple(np.clip(sorted(roots.real), 0, 1)), abs=1e-9)
    assert 0 <= rate.low <= share <= rate.high + 1e-12 <= 1 + 1e-12


def test_mixup_equals_numpy():
    g = np.random.default_rng(0)
    x_c, x_r, ratio = g.random((4, 3, 6, 6)), g.random((4, 3, 6, 6)), np.array([0.1, 0.5, 0.7, 1.0])
    weight = np.array([0.9, 0.5, 0.7, 1.0])[:, None, None, None]
    mixed = mixup(*(torch.tensor(a, dtype=torch.float32) for a in (x_c, x_r, ratio)))
    np.testing.assert_allclose(mixed.numpy(), weight * x_c + (1 - weight) * x_r, atol=1e-6)


@pytest.mark.parametrize(
    ("size", "beta"),
    [((16, 16), 0.1), ((16, 16), 0.0), ((9, 9), 0.2), ((32, 32), 0.1), ((32, 10), 0.2), ((10, 32), 0.2)],
)
def test_fda_equals_the_shifted_spectrum_form(size, beta):
    """As its authors wrote it: amplitudes around the centre of the shifted spectrum are replaced."""
    g = np.random.default_rng(0)
    x_c, x_r = g.random((2, 3, *size)), g.random((2, 3, *size))
    content, style = np.fft.fft2(x_c), np.fft.fft2(x_r)
    amplitude, other = (np.fft.fftshift(np.abs(s), axes=(-2, -1)) for s in (content, style))
    b = math.floor(beta * min(size))
    square = np.s_[..., *(slice(side // 2 - b, side // 2 + b + 1) for side in size)]
    amplitude[square] = other[square]
    amplitude = np.fft.ifftshift(amplitude, axes=(-2, -1))
    expected = np.fft.ifft2(amplitude * np.exp(1j * np.angle(content))).real.clip(0, 1)
    made = fda(*(torch.tensor(a, dtype=torch.float32) for a in (x_c, x_r)), beta)
    np.testing.assert_allclose(made.numpy(), expected, atol=1e-5)


def test_fda_of_an_image_with_itself_is_the_image():
    images = torch.rand(3, 3, 16, 16)
    torch.testing.assert_close(fda(images, images, 0.2), images, atol=1e-5, rtol=0)


def test_bad_input_is_named(dataset):
    identity = lambda semantic, nonsemantic: semantic
    with pytest.raises(InputError, match="repeats = 0"):
        measured(dataset, identity, repeats=0)
    with pytest.raises(InputError, match=r"beta = 0\.7"):
        measured(dataset, identity, fda_beta=0.7)
    part = Part(InMemory(dataset.test.images.pixels[:2]), dataset.test.labels[:2])
    two = Dataset("two", dataset.classes, SIZE, dataset.train, part, "d" * 64, False, (0.5,) * 3, (0.25,) * 3)
    with pytest.raises(InputError, match="2 test images"):
        measured(two, identity)


def test_the_time_of_judging_is_that_of_a_few_images_for_all(dataset, monkeypatch):
    """Of those of known class."""
    now, seen = [0.0], []
    part = dataset.test
    images = InMemory(part.images.pixels.repeat(5, 1, 1, 1))
    many = replace(dataset, test=Part(images, part.labels.repeat(5)))
    many.test.labels[:20] = -1

    def rates(hybridizer, sample, oracle, accelerator):
        assert oracle == hybridizer.classify
        seen.append(sample.test)
        now[0] += 0.25 * len(sample.test)

    monkeypatch.setattr(transfer, "transfer_rates", rates)
    monkeypatch.setattr(transfer, "perf_counter", lambda: now[0])
    architecture = Architecture(image_size=16, classes=3, network="leaky-wrn-10-1", generator_channels=(4, 4))
    hybridizer = Hybridizer(SemanticAutoencoder(architecture), Origin("bars", "f", "0", ("a", "b", "c")))
    assert transfer.judging_seconds(hybridizer, many, Accelerator()) == pytest.approx(0.25 * 100)
    (sample,), few = seen, slice(20, 84)
    assert torch.equal(sample.images.pixels, images.pixels[few]) and torch.equal(sample.labels, many.test.labels[few])


def test_a_hybrid_as_near_to_both_parents_has_inherited_nothing():
    """A copy of both, of one parent twice, is no evidence."""
    distances = Distances(torch.tensor([2.0, 1.0, 0.0, 1.0]).double(), torch.tensor([1.0, 2.0, 0.0, 1.0]).double())
    assert distances.inherited.tolist() == [True, False, False, False]
