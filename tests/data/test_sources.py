import math
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms.v2 import functional as tv

from hybridgen.data import sources
from hybridgen.data.sources import Files, InMemory, Photographs, decode, random_box
from hybridgen.types import InputError


def test_every_mode_becomes_the_rgb_it_means(tmp_path, picture):
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


def test_transparency_is_laid_on_white(tmp_path, write):
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


def test_exif_orientation_is_applied(tmp_path, picture):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to see it upright
    array = picture(1)
    Image.fromarray(array).save(tmp_path / "turned.png", exif=exif)
    expected = torch.from_numpy(np.rot90(array, -1).copy()).permute(2, 0, 1)
    assert torch.equal(decode(tmp_path / "turned.png", 8), expected)


def test_other_shapes_are_cropped_at_the_centre_and_resized_with_antialias(tmp_path, picture, write):
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


def test_large_photographs_decode_fast_and_true(tmp_path, write):
    y, x = np.mgrid[0:600, 0:800]
    smooth = np.stack([x * 255 // 799, y * 255 // 599, (x + y) * 255 // 1398], -1).astype(np.uint8)
    path = write(tmp_path / "large.jpg", smooth, quality=95)
    with Image.open(path) as image:
        whole = np.asarray(image.convert("RGB").resize((16, 16), Image.Resampling.BICUBIC, box=(100, 0, 700, 600)))
    assert (decode(path, 16).permute(1, 2, 0).numpy().astype(int) - whole).__abs__().max() <= 6


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "gif", "bmp", "tiff"])
def test_truncated_and_foreign_files_are_named(tmp_path, suffix, picture, write):
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


def test_files_and_memory_gather_alike_and_files_keep_nothing(tmp_path, picture, write):
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


def test_a_file_is_decoded_once_however_often_it_is_asked_for(tmp_path, monkeypatch, picture, write):
    paths = [write(tmp_path / f"{i}.png", picture(i, 10, 14)) for i in range(3)]
    seen = []

    def counted(path, *rest):
        seen.append(path)
        return opened(path, *rest)

    opened = sources.opened
    monkeypatch.setattr(sources, "opened", counted)
    indices = torch.tensor([2, 0, 2, 2, 0])
    for gather in (Files(paths, 8).gather, Photographs(paths, 8).gather):
        pixels = gather(indices)
        assert sorted(seen) == sorted(str(paths[i]) for i in (0, 2))
        seen.clear()
        assert torch.equal(pixels[1], pixels[4]) and not torch.equal(pixels[0], pixels[1])
        assert torch.equal(pixels, torch.cat([gather(index[None]) for index in indices]))
        seen.clear()
    Photographs(paths, 8).crops(indices, torch.Generator().manual_seed(0))
    assert len(seen) == 2


def test_large_files_are_decoded_at_twice_what_is_needed(tmp_path, monkeypatch, picture, write):
    """Of parts of photographs whole."""
    asked, opened = [], sources.opened
    monkeypatch.setattr(sources, "opened", lambda path, *enough: asked.append(enough) or opened(path, *enough))
    paths, first = [write(tmp_path / "a.png", picture(0, 60, 70))], torch.tensor([0])
    Files(paths, 14).gather(first)
    Photographs(paths, 14).gather(first)  # 256/224 of which is 16
    Photographs(paths, 14).crops(first, torch.Generator())
    assert asked == [(28,), (32,), ()]


# --- whole photographs ----------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(60, 100), (131, 50), (224, 256), (20, 20), (3, 200), (1, 1)])
@pytest.mark.parametrize("size", [1, 24, 56])
def test_the_middle_is_that_of_torchvisions_resize_and_central_crop(tmp_path, shape, size, picture, write):
    path = write(tmp_path / "a.png", picture(0, *shape))
    with Image.open(path) as image:
        resized = tv.resize(image, round(size * 256 / 224), interpolation=tv.InterpolationMode.BILINEAR)
        expected = tv.pil_to_tensor(tv.center_crop(resized, size))
    pixels = Photographs([path], size).gather(torch.tensor([0]))[0]
    assert (pixels.int() - expected.int()).abs().max() <= 1


def test_the_middle_of_a_large_photograph_is_true(tmp_path, write):
    """As JPEG decoders may halve it first."""
    y, x = np.mgrid[0:600, 0:1000]
    smooth = np.stack([x * 255 // 999, y * 255 // 599, (x + y) * 255 // 1598], -1).astype(np.uint8)
    path = write(tmp_path / "large.jpg", smooth, quality=95)
    with Image.open(path) as image:
        expected = tv.pil_to_tensor(tv.center_crop(tv.resize(image.convert("RGB"), 64), 56))
    pixels = Photographs([path], 56).gather(torch.tensor([0]))[0]
    assert (pixels.int() - expected.int()).abs().max() <= 3


def drawn_boxes(shape: tuple[int, int], count: int, scale: tuple, aspect: tuple) -> torch.Tensor:
    """left, top, width, height of `count` boxes in images of [height, width]."""
    draws = torch.rand(count, 10, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).tolist()
    boxes = torch.tensor([random_box(shape[1], shape[0], own, scale, aspect) for own in draws])
    boxes[:, 2:] -= boxes[:, :2]
    return boxes


@pytest.mark.parametrize("shape", [(375, 500), (500, 333), (60, 400), (400, 40), (7, 9)])
@pytest.mark.parametrize(("scale", "aspect"), [((0.08, 1.0), (3 / 4, 4 / 3)), ((0.3, 0.4), (1.5, 2.5))])
def test_parts_are_distributed_as_torchvisions(shape, scale, aspect):
    """Each of left, top, width and height by the Kolmogorov-Smirnov distance, and the middle as often."""
    count = 1500
    boxes = drawn_boxes(shape, count, scale, aspect)
    torch.manual_seed(1)
    image = torch.empty(3, *shape, device="meta")
    theirs = torch.tensor([RandomResizedCrop.get_params(image, scale, aspect) for _ in range(count)])
    theirs = theirs[:, [1, 0, 3, 2]]  # from top, left, height, width
    assert (boxes[:, :2] >= 0).all() and (boxes[:, :2] + boxes[:, 2:] <= torch.tensor(shape).flip(0)).all()
    for ours, own in zip(boxes.T, theirs.T, strict=True):
        at = torch.cat([ours, own]).unique()
        distance = ((ours[:, None] <= at).double().mean(0) - (own[:, None] <= at).double().mean(0)).abs().max()
        assert distance < 1.95 * math.sqrt(2 / count)  # 1 in 1,000 by chance
    products = [(each[:, 0] * each[:, 1]).double().mean().item() for each in (boxes + 1, theirs + 1)]
    assert products[0] == pytest.approx(products[1], rel=0.15)


def test_where_no_part_fits_it_is_the_middle():
    """As torchvision's: the largest within the proportions."""
    for shape in ((10, 1000), (1000, 10), (1, 50), (50, 1)):
        image = torch.empty(3, *shape, device="meta")
        top, left, height, width = RandomResizedCrop.get_params(image, (1.0, 1.0), (3 / 4, 4 / 3))
        box = random_box(shape[1], shape[0], [[0.5] * 4] * 10, (1.0, 1.0), (3 / 4, 4 / 3))
        assert box == (left, top, left + width, top + height)


@pytest.mark.parametrize("ranges", [((0.08, 1.0), (3 / 4, 4 / 3)), ((0.5, 0.9), (0.5, 1.2))])
def test_a_part_is_torchvisions_crop_resized(tmp_path, picture, write, ranges):
    shapes = [(60, 100), (131, 50), (1, 1), (2, 70)]
    paths = [write(tmp_path / f"{i}.png", picture(i, *shape)) for i, shape in enumerate(shapes)]
    indices = torch.tensor([1, 0, 0, 2, 3, 1])
    photographs = Photographs(paths, 24, scale=ranges[0], aspect=ranges[1])
    pixels = photographs.crops(indices, torch.Generator().manual_seed(5))
    draws = torch.rand(6, 10, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(5)).tolist()
    for row, index in enumerate(indices.tolist()):
        with Image.open(paths[index]) as image:
            left, top, right, bottom = random_box(*image.size, draws[row], *ranges)
            expected = tv.resized_crop(image, top, left, bottom - top, right - left, [24, 24])
        assert torch.equal(pixels[row], tv.pil_to_tensor(expected))
    assert not torch.equal(pixels[1], pixels[2])


def test_photographs_are_turned_upright_and_become_rgb(tmp_path):
    """Rows count downwards in red and columns to the right in green, once it stands upright."""
    rows, columns = np.mgrid[0:60, 0:100].astype(np.uint8)
    upright = np.stack([4 * rows, 2 * columns, np.zeros_like(rows)], 2)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.rot90(upright).copy()).save(tmp_path / "turned.png", exif=exif)
    Image.fromarray(upright).save(tmp_path / "upright.png")
    Image.fromarray(rows).save(tmp_path / "grey.png")
    photographs = Photographs([tmp_path / f"{name}.png" for name in ("turned", "upright", "grey")], 16)
    middle = photographs.gather(torch.arange(3))
    assert torch.equal(middle[0], middle[1])
    assert torch.equal(middle[2, 0], middle[2, 1]) and torch.equal(middle[2, 0], middle[2, 2])
    parts = photographs.crops(torch.tensor([0, 0, 2]), torch.Generator().manual_seed(0))
    for part in parts[:2].int():
        assert (part[0].diff(dim=0) > 0).all() and (part[1].diff(dim=1) > 0).all()
        assert (part[0].diff(dim=1).abs() <= 1).all() and (part[1].diff(dim=0).abs() <= 1).all()
    assert torch.equal(parts[2, 0], parts[2, 2])


def test_photographs_keep_nothing_and_name_what_cannot_be_read(tmp_path, picture, write):
    paths = [write(tmp_path / f"{i}.jpg", picture(i, 40, 30)) for i in range(2)]
    photographs = Photographs(paths, 8)
    before = pickle.dumps(photographs)
    photographs.gather(torch.tensor([0, 1]))
    photographs.crops(torch.tensor([0, 1]), torch.Generator())
    assert pickle.dumps(photographs) == before and (len(photographs), photographs.image_size) == (2, 8)
    assert photographs.gather(torch.empty(0, dtype=torch.int64)).shape == (0, 3, 8, 8)
    paths[1].write_bytes(paths[1].read_bytes()[:300])
    with pytest.raises(InputError, match=r"1\.jpg: not a readable image"):
        photographs.gather(torch.tensor([1]))
    with pytest.raises(InputError, match=r"1\.jpg: not a readable image"):
        photographs.crops(torch.tensor([0, 1]), torch.Generator())


@pytest.mark.parametrize(
    ("options", "field"),
    [({"image_size": 0}, "image_size"), ({"scale": (0.0, 1.0)}, "scale"), ({"scale": (0.5, 1.1)}, "scale"),
     ({"aspect": (2.0, 1.0)}, "aspect")],
)  # fmt: skip
def test_impossible_parts_are_refused(options, field):
    with pytest.raises(InputError, match=f"^{field}"):
        Photographs([], **({"image_size": 8} | options))
