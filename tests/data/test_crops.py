"""Random resized crops and random erasing against torchvision's own and plain loops."""

import math

import pytest
import torch
from torch.nn import functional as F
from torchvision.transforms import RandomErasing, v2

from hybridgen.data.augment import erase, resized_crop
from hybridgen.types import InputError


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def smooth(batch: int, height: int, width: int) -> torch.Tensor:
    """Images whose two channels are their pixels' coordinates: a crop shows where it comes from."""
    row = (torch.arange(height) + 0.5) / height
    column = (torch.arange(width) + 0.5) / width
    maps = [row[:, None].expand(height, width), column.expand(height, width), torch.zeros(height, width)]
    return torch.stack(maps).expand(batch, 3, height, width).contiguous()


def crops(count: int = 2000, flip: bool = False, **options):
    """Sides and left edges of the crops, in parts of the image, read off the pictures."""
    images = smooth(count, 64, 96)
    made = resized_crop(images, generator(), size=16, flip=flip, **options)
    spread = lambda line: (line[:, -1] - line[:, 0]) * 16 / 15
    return made, spread(made[:, 0, :, 8]), spread(made[:, 1, 8, :])


def test_areas_and_proportions_are_those_that_are_asked_for():
    _, tall, wide = crops(scale=(0.25, 0.5))
    area, aspect = tall * wide, wide * 96 / (tall * 64)
    assert area.min() > 0.24 and area.max() < 0.51 and abs(area.mean() - 0.375) < 0.01
    logs = aspect.log()
    assert abs(logs.min() - math.log(3 / 4)) < 0.02 and abs(logs.max() - math.log(4 / 3)) < 0.02
    assert abs(logs.mean()) < 0.02


def test_crops_lie_where_they_are_drawn():
    """By a number for the left and another for the top, of what the crop leaves free."""
    made, tall, wide = crops(50, scale=(0.25, 0.5))
    _, _, left, top, _ = torch.rand(5, 50, generator=generator())
    torch.testing.assert_close(made[:, 1, 8, 0] - wide / 32, left * (1 - wide), atol=1e-5, rtol=0)
    torch.testing.assert_close(made[:, 0, 0, 8] - tall / 32, top * (1 - tall), atol=1e-5, rtol=0)


def test_a_crop_is_the_part_of_the_image_brought_to_size():
    """As torchvision resizes the same part; inside, where no border pixel counts."""
    images = torch.rand(6, 3, 40, 60, generator=generator(1))
    made = resized_crop(images, generator(2), size=32, flip=False, scale=(0.3, 0.6))
    where = resized_crop(smooth(6, 40, 60), generator(2), size=32, flip=False, scale=(0.3, 0.6))
    for image, crop, place in zip(images, made, where, strict=True):
        grid = torch.stack([2 * place[1] - 1, 2 * place[0] - 1], dim=2)
        expected = F.grid_sample(image[None], grid[None], align_corners=False, padding_mode="border")[0]
        torch.testing.assert_close(crop, expected, atol=2e-4, rtol=0)


def test_the_whole_image_is_torchvisions_resize():
    images = torch.rand(3, 3, 32, 32, generator=generator(1))
    made = resized_crop(images, generator(), size=48, flip=False, scale=(1.0, 1.0), aspect=(1.0, 1.0))
    torch.testing.assert_close(made, v2.functional.resize(images, [48, 48], antialias=False), atol=1e-5, rtol=0)


def test_half_are_flipped_and_digits_never():
    _, _, wide = crops(flip=True)
    assert 0.45 < (wide < 0).float().mean() < 0.55
    assert (crops(flip=False)[2] > 0).all()


def test_draws_come_from_the_generator_and_differ_between_images():
    images = torch.rand(4, 3, 20, 20)
    ours, again, other = (resized_crop(images, generator(seed), size=16, flip=True) for seed in (0, 0, 1))
    assert torch.equal(ours, again) and not torch.equal(ours, other)
    same = images[:1].expand(4, -1, -1, -1)
    assert not torch.equal(*resized_crop(same, generator(), size=16, flip=False)[:2])
    assert ours.min() >= 0 and ours.max() <= 1


@pytest.mark.parametrize(
    ("options", "field"),
    [({"size": 0}, "size"), ({"scale": (0.0, 1.0)}, "scale"), ({"scale": (0.5, 1.1)}, "scale"),
     ({"aspect": (2.0, 1.0)}, "aspect")],
)  # fmt: skip
def test_impossible_crops_are_refused(options, field):
    with pytest.raises(InputError, match=f"^{field}: "):
        resized_crop(torch.rand(1, 3, 8, 8), generator(), **({"size": 4, "flip": False} | options))


def test_a_rectangle_is_erased_with_its_probability():
    images = torch.full((3000, 3, 32, 32), 2.0)
    made = erase(images, generator(), probability=0.25)
    gone = (made != 2.0).all(dim=1)
    erased = gone.any(dim=(1, 2))
    assert 0.22 < erased.float().mean() < 0.28
    area = gone[erased].float().mean(dim=(1, 2))
    assert area.min() > 0.01 and area.max() < 0.36 and 0.14 < area.mean() < 0.2
    for mask in gone[erased][:50]:
        rows, columns = mask.any(1), mask.any(0)
        assert torch.equal(mask, rows[:, None] & columns)  # one rectangle
    noise = made[(made != 2.0)]
    assert noise.min() >= 0 and noise.max() < 1 and abs(noise.mean() - 0.5) < 0.01
    assert torch.equal(erase(images, generator(), probability=0.0), images)


def test_rectangles_are_erased_where_they_are_drawn():
    """Of whole pixels, in any place."""
    height, width = 20, 30
    gone = (erase(torch.full((60, 3, height, width), 2.0), generator(4), probability=0.7) != 2.0).all(dim=1)
    for own, draws in zip(gone, torch.rand(5, 60, generator=generator(4)).double().T.tolist(), strict=True):
        area = (0.02 + (1 / 3 - 0.02) * draws[0]) * height * width
        aspect = math.exp(math.log(0.3) + (math.log(10 / 3) - math.log(0.3)) * draws[1])
        tall, wide = round(min(math.sqrt(area / aspect), height)), round(min(math.sqrt(area * aspect), width))
        left, top = math.floor(draws[2] * (width - wide + 1)), math.floor(draws[3] * (height - tall + 1))
        expected = torch.zeros(height, width, dtype=torch.bool)
        if draws[4] < 0.7:
            expected[top : top + tall, left : left + wide] = True
        assert torch.equal(own, expected)


def test_no_side_is_erased_more_often_than_the_other():
    """Nor than torchvision's RandomErasing does it."""
    count = 3000
    ours = (erase(torch.full((count, 3, 16, 12), 2.0), generator(1), probability=1.0) != 2.0)[:, 0].float().mean(dim=0)
    torch.manual_seed(0)
    theirs = torch.zeros(16, 12)
    for _ in range(count):
        top, left, tall, wide, _ = RandomErasing.get_params(
            torch.zeros(3, 16, 12), scale=(0.02, 1 / 3), ratio=(0.3, 10 / 3), value=[0.0]
        )
        theirs[top : top + tall, left : left + wide] += 1 / count
    for dim in (0, 1):
        torch.testing.assert_close(ours.mean(dim), ours.mean(dim).flip(0), rtol=0, atol=0.015)
        torch.testing.assert_close(ours.mean(dim), theirs.mean(dim), rtol=0, atol=0.02)


@pytest.mark.parametrize("probability", [-0.1, 1.1])
def test_an_impossible_probability_is_refused(probability):
    with pytest.raises(InputError, match=r"^probability: "):
        erase(torch.rand(1, 3, 8, 8), generator(), probability=probability)
