"""RecursiveMix's box and what it shows, on images whose height is not their width."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from hybridgen.mixing.recursive import Box, draw_box, recursive
from hybridgen.types import InputError


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def draw(*shape, seed=0):
    return torch.rand(*shape, generator=generator(seed))


def test_boxes_from_their_draws():
    """A share, a row and a column, in this order: sides √λ of the image's, halves rounded down, cut off."""
    for seed in range(200):
        box, g = draw_box(12, 30, generator=generator(seed)), generator(seed)
        share = 0.5 * torch.rand(1, generator=g).item()
        row, column = (torch.randint(length, (1,), generator=g).item() for length in (12, 30))
        down, right = int(share**0.5 * 12) // 2, int(share**0.5 * 30) // 2
        top, left = max(row - down, 0), max(column - right, 0)
        assert tuple(box) == (top, left, min(row + down, 12) - top, min(column + right, 30) - left, (12, 30))
        assert box.share == box.height * box.width / 360


def test_shares_and_centres_of_boxes():
    """λ ~ U(0, ½) before the borders cut: sides s = √λ show s (1 - s / 4) of theirs; all rows and columns are hit."""
    boxes = [draw_box(64, 96, generator=g) for g in [generator()] for _ in range(4000)]
    side = np.sqrt(np.linspace(0, 0.5, 100_001))
    expected = ((side * (1 - side / 4)) ** 2).mean()
    assert np.mean([box.share for box in boxes]) == pytest.approx(expected, abs=0.01)
    inside = [b for b in boxes if 0 < b.top < 64 - b.height and 0 < b.left < 96 - b.width and b.height and b.width]
    for length, along, start in ((64, "height", "top"), (96, "width", "left")):
        assert max(getattr(box, along) for box in boxes) == 2 * int(0.5**0.5 * length / 2)
        assert max(getattr(box, start) + getattr(box, along) for box in boxes) == length
        assert all(abs(box.height * 96 - box.width * 64) <= 2 * 96 + 2 * 64 for box in inside)
    narrow = [draw_box(8, 8, alpha=0.1, generator=g).share for g in [generator()] for _ in range(200)]
    assert (
        max(narrow) <= 0.1 < max(draw_box(8, 8, alpha=1.0, generator=g).share for g in [generator()] for _ in "a" * 50)
    )


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
def test_the_box_shows_all_of_the_past(interpolation):
    """Rows go to rows: what is in the box is torch's resized image, and its share is exact."""
    images, past = draw(3, 3, 10, 16), draw(2, 3, 10, 16, seed=1)
    box = Box(1, 4, 6, 9, (10, 16))
    mixing = recursive(images, box, len(past), interpolation=interpolation)
    expected = images.clone()
    expected[:, :, 1:7, 4:13] = F.interpolate(past[[0, 1, 0]], (6, 9), mode=interpolation)
    torch.testing.assert_close(mixing.mix(images, past), expected, rtol=0, atol=1e-6)
    assert mixing.ratio.tolist() == pytest.approx([1 - 54 / 160] * 3) == [1 - box.share] * 3
    soft = mixing.mix_targets(torch.eye(3), torch.tensor([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]))
    share = 54 / 160
    expected = [[1 - share, 0, share], [share, 1 - share, 0], [0, 0, 1]]
    torch.testing.assert_close(soft, torch.tensor(expected, dtype=torch.float32))


def test_without_resizing_the_box_shows_the_same_place():
    images, past = draw(2, 3, 10, 16), draw(2, 3, 10, 16, seed=1)
    expected = images.clone()
    expected[:, :, 1:7, 4:13] = past[:, :, 1:7, 4:13]
    mixing = recursive(images, Box(1, 4, 6, 9, (10, 16)), 2, resize=False)
    assert torch.equal(mixing.mix(images, past), expected)


def test_boxes_that_do_not_fit():
    images = draw(2, 3, 10, 16)
    with pytest.raises(InputError, match=r"^box: of an image of 16×10; these have 10×16"):
        recursive(images, Box(1, 4, 6, 9, (16, 10)), 2)
    for box in (Box(4, 1, 7, 3, (10, 16)), Box(1, 8, 3, 9, (10, 16)), Box(-1, 0, 2, 2, (10, 16))):
        with pytest.raises(InputError, match=r"^box: .* is not inside 10×16 pixels"):
            recursive(images, box, 2)
    recursive(images, Box(0, 13, 10, 3, (10, 16)), 2)
    for alpha in (0.0, 1.5):
        with pytest.raises(InputError, match=r"^alpha: "):
            draw_box(4, 5, alpha=alpha)
