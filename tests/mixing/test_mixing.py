"""The value `Mixing` against loops over pixels in float64: pixels, maps and tokens, roles, boxes, bad input."""

from collections import Counter

import jaxtyping
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from hybridgen.mixing.mixing import Mixing, as_targets, fill, other_partners
from hybridgen.types import InputError

BATCH, CHANNELS, HEIGHT, WIDTH = 5, 3, 6, 4


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.fixture
def images():
    return draw(BATCH, CHANNELS, HEIGHT, WIDTH)


@pytest.fixture
def partner():
    return torch.tensor([3, 0, 2, 4, 1])


@pytest.fixture
def unchecked():
    """As without the tests' checks of annotations."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def by_hand(mask, partner, rows, others, exchanged):
    """Each pixel: the base's share of the base, the rest of what is laid over it."""
    mask = mask.expand(len(rows), *rows.shape[1:]).numpy()
    mixed = np.empty(rows.shape)
    for i, j in enumerate(partner.tolist()):
        base, overlaid = rows[i].numpy(), others[j].numpy()
        if exchanged[i]:
            base, overlaid = overlaid, base
        mixed[i] = mask[i] * base + (1 - mask[i]) * overlaid
    return mixed


@pytest.mark.parametrize("roles", [None, [True], [True, False, False, True, False]])
@pytest.mark.parametrize(
    "shape", [(1, 1, 1, 1), (BATCH, 1, 1, 1), (1, 1, HEIGHT, WIDTH), (BATCH, 1, HEIGHT, WIDTH), (BATCH, CHANNELS, 6, 4)]
)
def test_each_pixel_and_target_is_both_parents_by_their_shares(images, partner, shape, roles):
    mask, others = draw(*shape, seed=1), draw(7, CHANNELS, HEIGHT, WIDTH, seed=2)
    exchanged = None if roles is None else torch.tensor(roles)
    mixing = Mixing(mask, partner, exchanged)
    each = [False] * BATCH if roles is None else roles * (BATCH // len(roles))
    np.testing.assert_allclose(mixing.mix(images), by_hand(mask, partner, images, images, each), rtol=1e-12)
    np.testing.assert_allclose(mixing.mix(images, others), by_hand(mask, partner, images, others, each), rtol=1e-12)

    means = mask.expand(BATCH, -1, -1, -1).flatten(1).numpy().mean(axis=1)
    ratio = np.where(each, 1 - means, means)
    np.testing.assert_allclose(mixing.ratio, ratio, rtol=1e-12)
    targets = draw(BATCH, 3, seed=3).softmax(1)
    expected = ratio[:, None] * targets.numpy() + (1 - ratio[:, None]) * targets[partner].numpy()
    np.testing.assert_allclose(mixing.mix_targets(targets), expected, rtol=1e-12)
    soft = draw(7, 3, seed=4).softmax(1)
    expected = ratio[:, None] * targets.numpy() + (1 - ratio[:, None]) * soft[partner].numpy()
    np.testing.assert_allclose(mixing.mix_targets(targets, soft), expected, rtol=1e-12)


@pytest.mark.parametrize("shape", [(BATCH, 1, 1, 1), (1, 1, HEIGHT, WIDTH), (BATCH, CHANNELS, HEIGHT, WIDTH)])
def test_tokens_are_mixed_as_the_maps_that_they_are(images, partner, shape):
    mixing = Mixing(draw(*shape, seed=1), partner, torch.tensor([True, False, False, True, False]))
    tokens = images.flatten(2).mT
    others = draw(7, CHANNELS, HEIGHT, WIDTH, seed=2)
    assert torch.equal(mixing.mix(tokens), mixing.mix(images).flatten(2).mT)
    assert torch.equal(mixing.mix(tokens, others.flatten(2).mT), mixing.mix(images, others).flatten(2).mT)
    boxes = torch.tensor([[1, 0, 3, 2]])
    mask = torch.ones(1, 1, HEIGHT, WIDTH)
    mask[:, :, 1:4, :2] = 0
    mixing = Mixing(mask, partner, boxes=boxes)
    assert torch.equal(mixing.mix(tokens), mixing.mix(images).flatten(2).mT)


def test_feature_maps_take_the_mean_of_the_mask_over_their_area(images, partner):
    mask = (draw(BATCH, 1, 12, 8, seed=1) < 0.4).double()
    smaller = Mixing(mask, partner).at(HEIGHT, WIDTH)
    expected = mask.reshape(BATCH, 1, 6, 2, 4, 2).mean(dim=(3, 5))
    torch.testing.assert_close(smaller.mask, expected)
    torch.testing.assert_close(smaller.ratio, Mixing(mask, partner).ratio)
    np.testing.assert_allclose(smaller.mix(images), by_hand(expected, partner, images, images, [0] * 5), rtol=1e-12)
    uneven = Mixing(mask, partner).at(5, 3)
    assert uneven.mask.shape[2:] == (5, 3) and uneven.mask.min() >= 0 and uneven.mask.max() <= 1
    same = Mixing(draw(1, 1, 1, 1), partner)
    assert same.at(9, 9) is same


def test_ratios_of_one_and_zero_give_the_image_and_its_partner_themselves(images, partner):
    for shape in ((1, 1, 1, 1), (BATCH, 1, HEIGHT, WIDTH)):
        assert torch.equal(Mixing(torch.ones(shape), partner).mix(images), images)
        assert torch.equal(Mixing(torch.zeros(shape), partner).mix(images), images[partner])


def test_mixing_with_oneself_changes_nothing(images):
    targets = draw(BATCH, 3, seed=3).softmax(1)
    for shape in ((BATCH, 1, 1, 1), (BATCH, 1, HEIGHT, WIDTH)):
        mixing = Mixing(draw(*shape, seed=1), torch.arange(BATCH))
        torch.testing.assert_close(mixing.mix(images), images, rtol=1e-15, atol=1e-15)
        torch.testing.assert_close(mixing.mix_targets(targets), targets, rtol=1e-15, atol=1e-15)


def test_exchanging_roles(images, partner):
    """Twice is none; once is the image and its partner with each other's shares."""
    mask, every = draw(BATCH, 1, HEIGHT, WIDTH, seed=1), torch.tensor([True])
    mixing = Mixing(mask, partner)
    once = mixing.exchange(every)
    torch.testing.assert_close(once.mix(images), mask * images[partner] + (1 - mask) * images)
    torch.testing.assert_close(once.ratio, 1 - mixing.ratio)
    assert torch.equal(once.exchange(every).mix(images), mixing.mix(images))
    assert torch.equal(once.exchange(every).ratio, mixing.ratio)
    some = torch.tensor([True, False, True, False, False])
    rest = mixing.exchange(some).exchange(every)
    assert rest.exchanged.tolist() == [False, True, False, True, True]


def test_an_exchange_with_boxes_resizes_the_image_into_its_partner(images, partner):
    mask = torch.ones(1, 1, HEIGHT, WIDTH)
    mask[:, :, 2:6, :2] = 0
    mixing = Mixing(mask, partner, torch.tensor([True]), torch.tensor([[2, 0, 4, 2]]), "bilinear")
    expected = images[partner].clone()
    expected[:, :, 2:6, :2] = F.interpolate(images, (4, 2), mode="bilinear")
    torch.testing.assert_close(mixing.mix(images), expected, rtol=0, atol=1e-6)
    assert mixing.ratio.tolist() == pytest.approx([8 / 24] * BATCH)


@pytest.mark.parametrize("shape", [(BATCH, 1, 1, 1), (BATCH, 1, 2, 2)])
def test_gradient_reaches_both_parents_and_the_mask(partner, shape):
    rows, others, mask = draw(BATCH, 2, 2, 2), draw(7, 2, 2, 2, seed=1), draw(*shape, seed=2)
    for each in (rows, others, mask):
        each.requires_grad_()
    for exchanged in (None, torch.tensor([True, False, True, True, False])):
        for at in (lambda maps: maps, lambda maps: maps.flatten(2).mT):
            mix = lambda rows, others, mask, at=at, role=exchanged: Mixing(mask, partner, role).mix(
                at(rows), at(others)
            )
            assert torch.autograd.gradcheck(mix, (rows, others, mask), fast_mode=True)
    weight = draw(BATCH, 2, 2, 2, seed=3)
    Mixing(mask, partner).mix(rows, others).mul(weight).sum().backward()
    share = mask.detach().expand(BATCH, 1, 2, 2)
    torch.testing.assert_close(rows.grad, share * weight)
    expected = torch.zeros_like(others).index_add(0, partner, (1 - share) * weight)
    torch.testing.assert_close(others.grad, expected)


def test_inputs_are_left_alone(images, partner):
    before = images.clone()
    for exchanged in (None, torch.tensor([True])):
        for boxes in (None, torch.tensor([[0, 0, 2, 2]])):
            Mixing(draw(1, 1, HEIGHT, WIDTH), partner, exchanged, boxes).mix(images)
    targets = draw(BATCH, 3)
    Mixing(draw(1, 1, 1, 1), partner).mix_targets(targets)
    assert torch.equal(images, before) and torch.equal(targets, draw(BATCH, 3))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (BATCH, 1, HEIGHT, WIDTH)])
def test_every_precision_stays_in_range(partner, dtype, shape):
    images = torch.cat([draw(3, 3, HEIGHT, WIDTH), torch.ones(1, 3, HEIGHT, WIDTH), torch.zeros(1, 3, HEIGHT, WIDTH)])
    for seed in range(50):
        mixing = Mixing(draw(*shape, seed=seed).float(), torch.tensor([3, 0, 2, 3, 1]))
        mixed = mixing.mix(images.to(dtype))
        assert mixed.dtype == dtype and mixed.min() >= 0 and mixed.max() <= 1 and (mixed[3] == 1).all()
        torch.testing.assert_close(mixed.double(), mixing.mix(images), rtol=0, atol=2 * torch.finfo(dtype).eps)
        assert mixing.mix_targets(draw(BATCH, 2).softmax(1).to(dtype)).dtype == dtype


def test_nothing_is_read_back_from_a_device(images, partner):
    """The meta device has nothing to read."""
    for exchanged in (None, torch.tensor([True])):
        for boxes in (None, torch.tensor([[0, 0, 2, 2]])):
            for interpolation in ("nearest", "bilinear"):
                mixing = Mixing(draw(1, 1, HEIGHT, WIDTH), partner, exchanged, boxes, interpolation).to("meta")
                assert mixing.mix(images.to("meta")).shape == images.shape and mixing.ratio.is_meta
    assert as_targets(torch.zeros(4, dtype=torch.long, device="meta"), 3).shape == (4, 3)
    mixing = Mixing(draw(1, 1, HEIGHT, WIDTH), partner)
    assert mixing.to("cpu") is mixing


# --- what is resized into a box -------------------------------------------------------------------------


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
def test_a_filled_box_is_torchs_resized_image_and_the_rest_its_border(images, interpolation):
    boxes = torch.tensor([[0, 0, 9, 7], [2, 3, 5, 1], [8, 6, 1, 1], [1, 1, 6, 4], [3, 0, 2, 6]])
    canvas = fill(images, boxes, (9, 7), interpolation)
    for image, whole, (top, left, height, width) in zip(images, canvas, boxes.tolist(), strict=True):
        expected = F.interpolate(image[None], (height, width), mode=interpolation)[0]
        inside = whole[:, top : top + height, left : left + width]
        torch.testing.assert_close(inside, expected, rtol=0, atol=1e-6)
        assert whole.min() >= image.min() and whole.max() <= image.max()
    one = fill(images, boxes[1:2], (9, 7), interpolation)
    assert torch.equal(one, fill(images, boxes[1:2].expand(BATCH, 4), (9, 7), interpolation))
    assert fill(images, torch.tensor([[3, 2, 0, 0]]), (9, 7), interpolation).shape == (BATCH, 3, 9, 7)
    assert torch.autograd.gradcheck(
        lambda x: fill(x, boxes.clamp(max=2), (3, 2), interpolation), draw(BATCH, 1, 2, 2).requires_grad_()
    )


# --- labels ---------------------------------------------------------------------------------------------


def test_labels_as_indices_one_hot_or_soft():
    indices, soft = torch.tensor([2, 0]), torch.tensor([[0.2, 0.3, 0.5], [1.0, 0.0, 0.0]])
    hot = [[0, 0, 1], [1, 0, 0]]
    assert as_targets(indices, 3).tolist() == hot and as_targets(indices, 3).dtype == torch.float32
    assert as_targets(torch.tensor(hot).float(), 3).tolist() == hot
    assert as_targets(soft, 3) is soft and as_targets(soft.half(), 3).dtype == torch.float16


def test_whole_numbers_of_any_kind_are_labels(unchecked):
    assert as_targets(torch.tensor([2, 0], dtype=torch.int32), 3).argmax(1).tolist() == [2, 0]
    assert as_targets(torch.tensor([2, 0], dtype=torch.uint8), 3).argmax(1).tolist() == [2, 0]
    assert as_targets(torch.tensor([[0, 1]]), 2).dtype == torch.float32


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.tensor([0, 3]), "class 3 is outside 0..2"),
        (torch.tensor([-1, 0]), "class -1 is outside 0..2"),
        (torch.rand(2, 4), "4 columns for 3 classes"),
        (torch.rand(2), "torch.float32 of shape (2,)"),
        (torch.zeros(2, 3, 1), "shape (2, 3, 1)"),
        (torch.tensor([True]), "torch.bool"),
    ],
)
def test_bad_labels(unchecked, labels, message):
    with pytest.raises(InputError, match=r"^labels: ") as error:
        as_targets(labels, 3)
    assert message in str(error.value)


# --- what does not fit ----------------------------------------------------------------------------------


def test_bad_masks(unchecked, partner):
    for bad, found in ((1.5, "1.5"), (-0.25, "-0.25"), (float("nan"), "nan")):
        mask = torch.full((1, 1, 2, 2), 0.5)
        mask[0, 0, 1, 1] = bad
        with pytest.raises(InputError, match=rf"^mask: in \[.*{found}.*not in \[0, 1\]"):
            Mixing(mask, partner)
    with pytest.raises(InputError, match=r"^mask: 4 rows for 5 partners"):
        Mixing(torch.ones(4, 1, 1, 1), partner)
    with pytest.raises(InputError, match=r"^exchanged: 2 rows for 5"):
        Mixing(torch.ones(1, 1, 1, 1), partner, torch.tensor([True, False]))
    with pytest.raises(InputError, match=r"^boxes: 3 rows for 5"):
        Mixing(torch.ones(1, 1, 1, 1), partner, boxes=torch.zeros(3, 4, dtype=torch.long))


def test_rows_that_do_not_fit(unchecked, images, partner):
    mixing = Mixing(torch.ones(1, 3, HEIGHT, WIDTH), partner)
    for rows, message in (
        (images[:4], r"^images: of shape \(4, 3, 6, 4\); \[5, channels"),
        (images[0, 0], r"^images: of shape \(6, 4\)"),
        (images[:, :, :5], r"^mixing: maps of 5×4, but the mask is 6×4"),
        (images[:, :2], r"^mixing: maps of 2 channels, but the mask has 3"),
        (images[:, :, :5].flatten(2).mT, r"^mixing: 20 tokens, but the mask has 6×4 places"),
        ((images * 255).to(torch.uint8), r"^images: torch.uint8; floating point is needed"),
    ):
        with pytest.raises(InputError, match=message):
            mixing.mix(rows)
    with pytest.raises(InputError, match=r"^targets: torch.int64"):
        mixing.mix_targets(partner)
    with pytest.raises(InputError, match=r"^targets: of shape \(4, 2\)"):
        mixing.mix_targets(torch.rand(4, 2))
    with pytest.raises(InputError, match=r"^mixing: what is resized into a box"):
        Mixing(torch.ones(1, 1, 6, 4), partner, boxes=torch.tensor([[0, 0, 2, 2]])).at(3, 2)


# --- partners -------------------------------------------------------------------------------------------


def test_nobody_is_their_own_partner():
    """All 6 cycles of four are as frequent; a batch of one has no other."""
    seen = Counter()
    source = torch.Generator().manual_seed(0)
    for _ in range(1200):
        partner = tuple(other_partners(4, source).tolist())
        assert sorted(partner) == [0, 1, 2, 3] and all(i != own for i, own in enumerate(partner))
        seen[partner] += 1
    assert len(seen) == 6 and all(abs(times - 200) < 60 for times in seen.values())
    assert other_partners(1).tolist() == [0] and other_partners(2).tolist() == [1, 0]
    assert other_partners(0).tolist() == [] and other_partners(5, device="meta").is_meta
    torch.manual_seed(3)
    first = other_partners(9)
    torch.manual_seed(3)
    assert torch.equal(other_partners(9), first)
