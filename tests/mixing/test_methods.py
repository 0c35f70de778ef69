"""Every method: what counts is what is realised; torchvision's own; presets, draws, precision, bad input."""

from functools import partial

import jaxtyping
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torchvision.transforms import v2

from hybridgen.mixing import masks, methods
from hybridgen.mixing.methods import METHODS
from hybridgen.mixing.mixing import Mixing
from hybridgen.types import InputError

PER_SAMPLE = {"cowmix", "horizontal-concat", "vertical-concat", "resizemix"}
"""Those whose masks a paper draws for each image."""


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def draw(*shape, seed=0):
    return torch.rand(*shape, generator=generator(seed))


@pytest.fixture
def unchecked():
    """As without the tests' checks of annotations."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def test_names():
    assert METHODS.keys() == {
        "mixup", "manifold-mixup", "cutmix", "resizemix", "saliencymix", "fmix", "cowmix", "horizontal-concat",
        "vertical-concat", "patchup-hard", "patchup-soft",
    }  # fmt: skip


def test_names_with_options_of_their_own():
    """Manifold Mixup's α is 2 (Verma et al. 2019)."""
    options = {name: each.keywords for name, each in METHODS.items() if isinstance(each, partial)}
    assert options == {
        "manifold-mixup": {"alpha": 2.0},
        "patchup-hard": {"kind": "hard"},
        "patchup-soft": {"kind": "soft"},
    }
    assert METHODS["manifold-mixup"].func is METHODS["mixup"]


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize(
    "shape", [(1, 3, 8, 8), (2, 3, 32, 32), (7, 3, 9, 16), (5, 64, 4, 4), (3, 1, 1, 1), (3, 2, 1, 5)]
)
@pytest.mark.parametrize("name", METHODS)
def test_any_batch_of_any_size(name, shape, per_sample):
    """The ratio is the mask's mean; partners are a permutation; both parents alone count at each place, by the mask."""
    images, targets = draw(*shape), torch.eye(shape[0])
    for seed in range(3):
        mixing = METHODS[name](images, per_sample=per_sample, generator=generator(seed))
        mixed, soft = mixing.mix(images), mixing.mix_targets(targets)
        rows = mixing.mask.expand(shape[0], -1, -1, -1).double()
        assert len(mixing.mask) == (shape[0] if per_sample or name == "resizemix" else 1)
        np.testing.assert_allclose(mixing.ratio, rows.mean(dim=(1, 2, 3)), atol=1e-6)
        assert sorted(mixing.partner.tolist()) == list(range(shape[0]))
        if mixing.boxes is None:
            expected = rows * images + (1 - rows) * images[mixing.partner]
            torch.testing.assert_close(mixed.double(), expected, rtol=0, atol=1e-6)
        assert mixed.shape == images.shape and mixed.min() >= 0 and mixed.max() <= 1
        share = mixing.ratio.unsqueeze(1)
        torch.testing.assert_close(soft, share * targets + (1 - share) * targets[mixing.partner])


@pytest.mark.parametrize("name", METHODS)
def test_presets_draw_for_the_batch_or_each_image_as_the_paper_does(name):
    assert len(METHODS[name](draw(6, 3, 16, 16), generator=generator()).mask) == (6 if name in PER_SAMPLE else 1)


@pytest.mark.parametrize("name", METHODS)
def test_the_generator_decides(name):
    images, state = draw(9, 3, 16, 12), torch.get_rng_state()
    first, again, other = (METHODS[name](images, per_sample=True, generator=generator(seed)) for seed in (3, 3, 4))
    assert torch.equal(first.mask, again.mask) and torch.equal(first.partner, again.partner)
    assert not torch.equal(first.mask, other.mask)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(5)
    drawn = METHODS[name](images)
    torch.manual_seed(5)
    assert torch.equal(METHODS[name](images).mask, drawn.mask)  # without one: torch's own


@pytest.mark.parametrize("alpha", [0.01, 0.2, 1.0, 4.0])
@pytest.mark.parametrize("name", [name for name in METHODS if name != "resizemix"])
def test_small_and_large_alphas(name, alpha):
    mixing = METHODS[name](draw(64, 3, 12, 12), alpha=alpha, per_sample=True, generator=generator())
    assert mixing.ratio.isfinite().all() and mixing.mix(draw(64, 3, 12, 12)).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("name", METHODS)
def test_every_precision_takes_the_same_draws(name, dtype):
    images = draw(6, 3, 10, 12)
    expected = METHODS[name](images, generator=generator())
    mixing = METHODS[name](images.to(dtype), generator=generator())
    if name != "saliencymix":  # whose peak may be another in half precision
        assert torch.equal(mixing.mask, expected.mask)
    mixed = mixing.mix(images.to(dtype))
    assert mixed.dtype == dtype and mixed.min() >= 0 and mixed.max() <= 1


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("name", METHODS)
def test_nothing_is_read_back_from_a_device(name, per_sample):
    """The meta device has nothing to read. Draws are on a CPU or there."""
    images = torch.empty(6, 3, 16, 12, device="meta")
    for source in (None, generator()):
        mixing = METHODS[name](images, per_sample=per_sample, generator=source)
        assert mixing.mask.is_meta and mixing.partner.is_meta and mixing.mix(images).shape == images.shape
        assert mixing.mix_targets(torch.empty(6, 4, device="meta")).shape == (6, 4)


@pytest.mark.parametrize("name", METHODS)
def test_gradient_reaches_both_parents(name):
    """Of feature maps, by the mask."""
    maps, others = (draw(16, 8, 8, 8, seed=seed).double().requires_grad_() for seed in range(2))
    mixing = METHODS[name](maps, per_sample=True, generator=generator())
    mixing.mix(maps, others).sum().backward()
    share = mixing.mask.expand(16, 8, 8, 8).double()
    torch.testing.assert_close(maps.grad, share)
    torch.testing.assert_close(others.grad[mixing.partner].sum(), (1 - share).sum())
    assert 0.01 < mixing.ratio.mean() < 0.99


# --- areas ----------------------------------------------------------------------------------------------


def ratios(name, count=3000, size=32, **options):
    return METHODS[name](draw(count, 1, size, size), per_sample=True, generator=generator(), **options).ratio.double()


@pytest.mark.parametrize("alpha", [0.3, 1.0, 3.0])
@pytest.mark.parametrize("name", ["mixup", "manifold-mixup", "fmix", "cowmix", "horizontal-concat", "vertical-concat"])
def test_areas_are_betas(name, alpha):
    expected = np.random.default_rng(0).beta(alpha, alpha, 100_000)
    own = ratios(name, alpha=alpha).numpy()
    assert own.mean() == pytest.approx(0.5, abs=0.03) and own.std() == pytest.approx(expected.std(), abs=0.015)
    np.testing.assert_allclose(np.quantile(own, [0.2, 0.4]), np.quantile(expected, [0.2, 0.4]), atol=0.05)


def test_areas_of_boxes():
    """CutMix's is cut off at the borders: for ratio λ, a side s = √(1 - λ) shows s (1 - s / 4) of its length."""
    share = np.linspace(0, 1, 100_001)
    side = np.sqrt(1 - share)
    expected = 1 - (side * (1 - side / 4)) ** 2
    assert ratios("cutmix", size=64).mean().item() == pytest.approx(expected.mean(), abs=0.02)
    assert ratios("saliencymix", count=500, size=64).mean().item() == pytest.approx(expected.mean(), abs=0.1)
    resized = 1 - ratios("resizemix", size=64)  # the square of the scale, at most 0.8, at least 0.1
    assert resized.min() > 0.006 and resized.max() <= 0.64
    assert resized.mean().item() == pytest.approx((0.8**3 - 0.1**3) / 3 / 0.7, abs=0.01)


def test_areas_of_cows_are_uniform():
    own = ratios("cowmix")
    assert own.min() > 0.198 and own.max() < 0.802
    np.testing.assert_allclose(np.quantile(own, [0.25, 0.5, 0.75]), [0.35, 0.5, 0.65], atol=0.02)
    assert ratios("cowmix", count=20, shares=(0.5, 0.5)).sub(0.5).abs().max() < 2e-3


@pytest.mark.parametrize(("kind", "gamma"), [("hard", 0.5), ("soft", 0.75)])
def test_areas_of_patchup(kind, gamma):
    """A feature is in no square with the probability (1 - rate)^(number of centres around it)."""
    own = methods.patchup(draw(200, 4, 21, 21), kind=kind, per_sample=True, generator=generator())
    rate = gamma * 21**2 / (7**2 * 15**2)
    place = np.arange(21)
    around = (np.abs(place[:, None] - place) <= 3).sum(axis=1)
    kept = ((1 - rate) ** np.outer(around, around)).mean()
    expected = kept if kind == "hard" else kept + (1 - kept) / 2
    assert own.ratio.mean().item() == pytest.approx(expected, abs=0.03)
    assert own.mask.shape == (200, 4, 21, 21)


@pytest.mark.parametrize("size", [(9, 21), (21, 9)])
def test_places_that_patchups_squares_leave(size):
    """The rate at every place of a map that is not square, counted; γ is what whole squares would cover if none met."""
    height, width = size
    mask = methods.patchup(draw(1500, 4, *size), gamma=0.4, side=5, per_sample=True, generator=generator()).mask
    rate = 0.4 * height * width / (25 * (height - 4) * (width - 4))
    down, right = ((np.abs(np.subtract.outer(place, place)) <= 2).sum(axis=1) for place in map(np.arange, size))
    np.testing.assert_allclose(mask.mean(dim=(0, 1)), (1 - rate) ** np.outer(down, right), atol=0.03)
    narrow = methods.patchup(draw(500, 4, 4, 21), gamma=0.4, side=7, per_sample=True, generator=generator()).mask
    rate = 0.4 * 4 * 21 / (9 * 2 * 19)  # squares of 3, the largest odd number that 4 rows hold
    around = np.outer([2, 3, 3, 2], [2, *[3] * 19, 2])
    np.testing.assert_allclose(narrow.mean(dim=(0, 1)), (1 - rate) ** around, atol=0.05)


@pytest.mark.parametrize(("name", "along"), [("horizontal-concat", 3), ("vertical-concat", 2)])
def test_concatenation_of_images_that_are_not_square(name, along):
    """The image to the left or above, at its own place, its partner on the other side; all else is the same along the
    line."""
    images = draw(6, 3, 9, 20)
    mixing = METHODS[name](images, alpha=4.0, generator=generator())
    mixed = mixing.mix(images)
    ratio = masks.beta(6, 4.0, generator())
    for i, share in enumerate(ratio.tolist()):
        length = images.shape[along]
        kept = round(share * length)
        parts = [images[i].narrow(along - 1, 0, kept), images[mixing.partner[i]].narrow(along - 1, kept, length - kept)]
        assert torch.equal(mixed[i], torch.cat(parts, dim=along - 1))
        assert mixing.ratio[i].item() == pytest.approx(kept / length)


def test_fmix_of_images_on_their_side():
    """The longest waves lie along the longer side, and their borders across it, some two an image."""
    for size, along, across in (((16, 64), 3, 2), ((64, 16), 2, 3)):
        mask = methods.fmix(draw(600, 1, *size), alpha=50.0, per_sample=True, generator=generator()).mask
        assert 3 * mask.diff(dim=across).abs().mean() < mask.diff(dim=along).abs().mean()
        assert 63 * mask.diff(dim=along).abs().mean().item() == pytest.approx(2, abs=0.5)


# --- each its own ---------------------------------------------------------------------------------------


def test_mixup_is_torchvisions_for_the_same_draws():
    images, labels, partner = draw(8, 3, 9, 7), torch.arange(8) % 5, torch.arange(8).roll(1)
    for seed in range(30):
        theirs = v2.MixUp(num_classes=5)
        torch.manual_seed(seed)
        mixed, soft = theirs(images, labels)
        torch.manual_seed(seed)
        mixing = Mixing(theirs._dist.sample(()).view(1, 1, 1, 1), partner)
        torch.testing.assert_close(mixing.mix(images), mixed, rtol=0, atol=1e-7)
        torch.testing.assert_close(mixing.mix_targets(F.one_hot(labels, 5).float()), soft, rtol=0, atol=1e-7)


@pytest.mark.parametrize("size", [(9, 7), (32, 32), (1, 1)])
def test_cutmix_is_torchvisions_for_the_same_draws(size):
    """torchvision draws a ratio, a column and a row."""
    images, labels, partner = draw(8, 3, *size), torch.arange(8) % 5, torch.arange(8).roll(1)
    for seed in range(30):
        theirs = v2.CutMix(num_classes=5)
        torch.manual_seed(seed)
        mixed, soft = theirs(images, labels)
        torch.manual_seed(seed)
        share = theirs._dist.sample(()).view(1)
        column, row = (torch.randint(length, (1,)) for length in (size[1], size[0]))
        mask = masks.inside(masks.box_around(share, row, column, *size), *size)
        mixing = Mixing(mask, partner)
        assert torch.equal(mixing.mix(images), mixed)
        torch.testing.assert_close(mixing.mix_targets(F.one_hot(labels, 5).float()), soft, rtol=0, atol=1e-6)


def test_resizemix_shows_the_whole_partner_in_its_box():
    images = draw(6, 3, 20, 30)
    for interpolation, border in (("nearest", "inside"), ("bilinear", "inside"), ("bilinear", "cut")):
        options = {"interpolation": interpolation, "border": border, "per_sample": True}
        mixing = methods.resizemix(images, **options, generator=generator())
        for i, (top, left, height, width) in enumerate(mixing.boxes.tolist()):
            assert 0 <= top <= 20 - height and 0 <= left <= 30 - width
            expected = images[i].clone()
            resized = F.interpolate(images[mixing.partner[i]][None], (height, width), mode=interpolation)[0]
            expected[:, top : top + height, left : left + width] = resized
            torch.testing.assert_close(mixing.mix(images)[i], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("border", ["inside", "cut"])
def test_places_of_resizemix(border):
    """One scale, a centre for each image; over the border, shifted inside or cut off."""
    boxes = methods.resizemix(draw(3000, 1, 12, 20), scope=(0.5, 0.5), border=border, generator=generator()).boxes
    for start, length, size in ((0, 2, 12), (1, 3, 20)):
        side = size // 2
        expected = []
        for centre in range(size):
            low, high = centre - side // 2, centre + side // 2
            if border == "cut":
                low, high = max(low, 0), min(high, size)
            else:
                low = min(max(low, 0), size - side)
                high = low + side
            expected.append((low, high - low))
        drawn = [tuple(pair) for pair in boxes[:, [start, length]].tolist()]
        assert set(drawn) == set(expected)
        for place in set(expected):
            assert drawn.count(place) / 3000 == pytest.approx(expected.count(place) / size, abs=0.03)
    assert len(boxes.unique(dim=0)) > 60  # rows and columns are drawn apart


@pytest.mark.parametrize(("border", "share"), [("inside", 0.771), ("cut", 0.841)])
def test_areas_of_resizemix_are_the_authors_and_openmixups(border, share):
    """At 32 pixels, by counting; one scale a batch unless each image has its own."""
    own = ratios("resizemix", count=30_000, border=border)
    assert own.mean().item() == pytest.approx(share, abs=0.003)
    for seed in range(3):
        boxes = methods.resizemix(draw(50, 1, 32, 48), generator=generator(seed)).boxes
        assert len(boxes[:, 2:].unique(dim=0)) == 1 and len(boxes[:, :2].unique(dim=0)) > 5


def test_cutmix_can_resize():
    images = draw(6, 3, 12, 20)
    plain, resized = (
        methods.cutmix(images, per_sample=True, resize=resize, generator=generator()) for resize in (False, True)
    )
    assert torch.equal(plain.mask, resized.mask) and plain.boxes is None
    top, left, height, width = resized.boxes[0].tolist()
    expected = F.interpolate(images[resized.partner[0]][None], (height, width))[0]
    assert torch.equal(resized.mix(images)[0][:, top : top + height, left : left + width], expected)


@pytest.mark.parametrize("per_sample", [False, True])
def test_saliencymix_takes_the_partners_most_salient_pixel(per_sample):
    """A white pixel on grey."""
    images = torch.full((6, 3, 24, 30), 0.5)
    spots = [(3 * i + 3, 5 * i + 2) for i in range(6)]
    for image, (row, column) in zip(images, spots, strict=True):
        image[:, row, column] = 1.0
    mixing = methods.saliencymix(images, alpha=8.0, per_sample=per_sample, generator=generator())
    ratio = masks.beta(6 if per_sample else 1, 8.0, generator())
    for i, mask in enumerate(mixing.mask[:, 0]):
        row, column = (torch.tensor([at]) for at in spots[mixing.partner[i]])
        expected = masks.inside(masks.box_around(ratio[i : i + 1], row, column, 24, 30), 24, 30)
        assert torch.equal(mask, expected[0, 0]) and mask[spots[mixing.partner[i]]] == 0


def test_patchup_soft_mixes_what_patchup_hard_replaces():
    maps = draw(5, 6, 14, 14)
    for options in ({}, {"per_sample": True}, {"channelwise": False}):
        hard, soft = (
            methods.patchup(maps, kind=kind, gamma=0.5, generator=generator(), **options) for kind in ("hard", "soft")
        )
        ratio = masks.beta(len(hard.mask), 2.0, generator()).view(-1, 1, 1, 1)
        torch.testing.assert_close(soft.mask, torch.where(hard.mask == 1, 1.0, ratio.expand_as(hard.mask)))
        assert hard.mask.shape[1] == (1 if "channelwise" in options else 6)
    everywhere = methods.patchup(maps, gamma=1.0, side=1, generator=generator())
    assert not everywhere.mask.any() and torch.equal(everywhere.mix(maps), maps[everywhere.partner])
    assert methods.patchup(maps, gamma=0.0).mask.all()


# --- bad input ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_bad_images(unchecked, name):
    for images, message in (
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), "torch.uint8 of shape"),
        (torch.zeros(3, 8, 8), r"shape \(3, 8, 8\)"),
        (torch.zeros(0, 3, 8, 8), "an empty batch"),
        (torch.zeros(2, 3, 0, 8), "an empty batch"),
    ):
        with pytest.raises(InputError, match=rf"^images: .*{message}"):
            METHODS[name](images)


@pytest.mark.parametrize("alpha", [0.0, -1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("name", [name for name in METHODS if name != "resizemix"])
def test_bad_alphas(name, alpha):
    with pytest.raises(InputError, match=r"^alpha: .* is not a number above 0"):
        METHODS[name](torch.zeros(2, 3, 8, 8), alpha=alpha)


@pytest.mark.parametrize(
    "bad",
    [
        partial(methods.resizemix, scope=(0.0, 0.5)),
        partial(methods.resizemix, scope=(0.6, 0.5)),
        partial(methods.resizemix, scope=(0.6, 1.5)),
        partial(methods.resizemix, border="outside"),
        partial(methods.cowmix, sigmas=(0.0, 2.0)),
        partial(methods.cowmix, sigmas=(3.0, 2.0)),
        partial(methods.cowmix, shares=(0.5, 1.2)),
        partial(methods.patchup, gamma=1.2),
        partial(methods.patchup, side=4),
        partial(methods.patchup, side=0),
    ],
)
def test_bad_options(bad, unchecked):
    (name,) = bad.keywords
    with pytest.raises(InputError, match=rf"^{name}: "):
        bad(torch.zeros(2, 3, 8, 8))
