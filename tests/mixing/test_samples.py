"""`Mix` beside torchvision's MixUp and CutMix on equal draws, case by case, on images that are not square."""

import PIL.Image
import pytest
import torch
import torch.nn.functional as F
from torch.utils._pytree import tree_flatten
from torchvision import tv_tensors
from torchvision.transforms import v2

from hybridgen.mixing import masks
from hybridgen.mixing.transform import NAMES, Mix
from hybridgen.types import InputError

COUNT, HEIGHT, WIDTH = 5, 9, 14
THEIRS = {"mixup": v2.MixUp, "cutmix": v2.CutMix}

pytestmark = pytest.mark.usefixtures("unchecked")  # what is asked for is an InputError


def draw(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


IMAGES, FRAMES = draw(COUNT, 3, HEIGHT, WIDTH), draw(COUNT, 2, 3, HEIGHT, WIDTH)
LABELS = torch.tensor([0, 3, 1, 1, 2])
ONE_HOT, SOFT = F.one_hot(LABELS, 4), draw(COUNT, 4, seed=1).softmax(dim=1)
BOXES = tv_tensors.BoundingBoxes(torch.zeros(COUNT, 4), format="XYXY", canvas_size=(HEIGHT, WIDTH))


@pytest.fixture(params=[0.3137, 0.8642])
def same_draws(request, monkeypatch):
    """λ, the box's centre (so near a border that the larger box is cut off) and partners, for both."""
    centre = {HEIGHT: 2, WIDTH: 8}
    monkeypatch.setattr(masks, "beta", lambda count, *_, **__: torch.full((count,), request.param))
    monkeypatch.setattr(torch.distributions.Beta, "sample", lambda *_: torch.tensor([request.param]))
    monkeypatch.setattr(torch, "randint", lambda high, *_, **__: torch.tensor([centre.get(high, 0)]))
    monkeypatch.setattr(torch, "randperm", lambda count, **_: torch.arange(count).roll(1))


def assert_same(ours, theirs):
    (ours, own), (theirs, other) = tree_flatten(ours), tree_flatten(theirs)
    assert own == other and [type(entry) for entry in ours] == [type(entry) for entry in theirs]
    for entry, expected in zip(ours, theirs, strict=True):
        if isinstance(expected, torch.Tensor):
            assert entry.stride() == expected.stride()
            torch.testing.assert_close(entry, expected)
        else:
            assert entry is expected


TARGET = dict(labels_getter=lambda sample: sample["target"])
SAMPLES = {
    "two arguments": ((IMAGES, LABELS), {}),
    "one tuple": (((IMAGES, LABELS),), {}),
    "one list": (([IMAGES, LABELS],), {}),
    "more arguments": ((IMAGES, LABELS, "name", None, 3, LABELS + 1), {}),
    "one-hot": ((IMAGES, ONE_HOT), {}),
    "soft": ((IMAGES, SOFT.double()), {}),
    "a dictionary": (({"img": IMAGES, "index": LABELS + 7, "Labels": LABELS, "label": "no"},), {}),
    "a name with label in it": (({"img": IMAGES, "fooLaBeLBar": LABELS, "name": "x"},), {}),
    "a dictionary second": ((IMAGES, {"index": LABELS + 7, "labels": LABELS}), {}),
    "a function": (({"img": IMAGES, "target": LABELS, "name": ["x"] * COUNT},), TARGET),
    "nested": (({"views": [{"img": tv_tensors.Image(IMAGES)}, ("x", None)], "target": SOFT},), TARGET),
    "images of tv_tensors": (
        ({"weight": draw(COUNT), "img": [tv_tensors.Image(IMAGES), tv_tensors.Image(1 - IMAGES)], "target": LABELS},),
        TARGET,
    ),
    "a video": ((tv_tensors.Video(FRAMES), LABELS), {}),
    "a video and images": (({"img": tv_tensors.Image(IMAGES), "clip": tv_tensors.Video(FRAMES), "labels": SOFT},), {}),
    "channels last": ((IMAGES.contiguous(memory_format=torch.channels_last), LABELS), {}),
    "double": ((IMAGES.double(), LABELS), {}),
}


@pytest.mark.parametrize("method", THEIRS)
@pytest.mark.parametrize("name", SAMPLES)
def test_a_sample_comes_back_as_torchvisions(same_draws, method, name):
    inputs, getter = SAMPLES[name]
    indices = name not in ("one-hot", "soft", "nested", "a video and images")
    for classes in (4,) if indices else (4, None):
        theirs = THEIRS[method](num_classes=classes, **getter)(*inputs)
        ours = Mix(method, classes, **getter)(*inputs)
        assert_same(ours, theirs)
        changed = [a is not b for a, b in zip(tree_flatten(ours)[0], tree_flatten(inputs)[0], strict=True)]
        assert sum(changed) == 2 + (name in ("images of tv_tensors", "a video and images"))


CALLS = {
    "labels without a dimension": ((IMAGES, torch.tensor(3)), r"labels: torch.int64 of shape \(\)"),
    "labels of three dimensions": ((IMAGES, SOFT[None]), r"labels: torch.float32 of shape \(1, 5, 4\)"),
    "labels that are no tensor": ((IMAGES, {"labels": [0, 3]}), "labels: list; a tensor is needed"),
    "other columns": ((IMAGES, SOFT[:, :3]), "labels: 3 columns for 4 classes"),
    "fewer labels": ((IMAGES, LABELS[:3]), "labels: 3 for 5 images"),
    "one image": ((IMAGES[0], LABELS), r"images: of shape \(3, 9, 14\); \[batch, channels, height, width\]"),
    "a plain video": ((FRAMES, LABELS), r"images: of shape \(5, 2, 3, 9, 14\); \[batch, channels,"),
    "a video of images": ((tv_tensors.Video(IMAGES), LABELS), r"images: .*; \[batch, frames, channels, "),
    "no labels": ((IMAGES, "x"), "labels: neither the second entry"),
    "no name like it": (({"img": IMAGES, "target": LABELS},), "labels: neither the second entry"),
    "PIL images": ((IMAGES, LABELS, PIL.Image.new("RGB", (4, 4))), "sample: Image; PIL images, "),
    "boxes": ((IMAGES, LABELS, BOXES), "sample: BoundingBoxes; "),
    "masks": ((IMAGES, {"labels": LABELS, "masks": tv_tensors.Mask(IMAGES[:, 0])}), "sample: Mask; "),
}


@pytest.mark.parametrize("method", THEIRS)
@pytest.mark.parametrize("name", CALLS)
def test_what_torchvision_refuses_is_refused(method, name):
    inputs, message = CALLS[name]
    with pytest.raises(ValueError):
        THEIRS[method](num_classes=4)(*inputs)
    with pytest.raises(InputError, match=f"^{message}"):
        Mix(method, 4)(*inputs)


def test_labels_that_nobody_finds():
    for getter, message in ((None, "labels: NoneType"), (lambda sample: sample[1].tolist(), "labels: list")):
        for transform in (v2.MixUp(num_classes=4, labels_getter=getter), Mix("mixup", 4, labels_getter=getter)):
            ours = isinstance(transform, Mix)
            with pytest.raises(InputError if ours else ValueError, match=message if ours else "must be a tensor"):
                transform(IMAGES, LABELS)
    for name, build in {"labels_getter: 'target'": Mix, "labels_getter": v2.MixUp}.items():
        with pytest.raises(ValueError, match=name):
            build(*["mixup"] * (build is Mix), labels_getter="target")
    with pytest.raises(ValueError, match="num_classes must be passed"):
        v2.MixUp()(IMAGES, LABELS)
    with pytest.raises(InputError, match=r"^num_classes: needed where labels are indices"):
        Mix("mixup")(IMAGES, LABELS)


def test_beyond_torchvision():
    """There a copy of the labels ends in StopIteration, and labels that come first are taken for images, which then
    are not mixed."""
    with pytest.raises(InputError, match=r"^labels: what labels_getter gives is no entry"):
        Mix("mixup", 4, labels_getter=lambda sample: sample[1].clone())(IMAGES, LABELS)
    with pytest.raises(InputError, match=r"^images: none in the sample"):
        Mix("mixup", 4)({"labels": LABELS})
    with pytest.raises(InputError, match=r"^images: torch.int32; uint8 or floating point"):
        Mix("cutmix", 4)(IMAGES.int(), LABELS)
    torch.manual_seed(0)
    first = Mix("mixup", 4)({"labels": LABELS, "img": IMAGES})
    torch.manual_seed(0)
    assert_same(list(first.values())[::-1], list(Mix("mixup", 4)(IMAGES, LABELS)))


def test_levels(same_draws):
    """MixUp of torchvision does not take uint8; rounded, its levels are ours. CutMix's are ours as they are."""
    levels = (IMAGES * 255).round().byte()
    with pytest.raises(RuntimeError, match="can't be cast"):
        v2.MixUp(num_classes=4)(levels, LABELS)
    want = v2.MixUp(num_classes=4)(levels.float(), LABELS)[0].round().byte()
    got = Mix("mixup", 4)(levels, LABELS)[0]
    assert got.dtype == torch.uint8 and torch.equal(got, want)
    assert_same(Mix("cutmix", 4)(levels, LABELS), v2.CutMix(num_classes=4)(levels, LABELS))
    image = tv_tensors.Image(levels)
    assert_same(Mix("cutmix", 4)(image, LABELS), v2.CutMix(num_classes=4)(image, LABELS))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("method", THEIRS)
def test_half_precision(same_draws, method, dtype):
    images = IMAGES.to(dtype)
    (ours, soft), (theirs, expected) = (mix(images, LABELS) for mix in (Mix(method, 4), THEIRS[method](num_classes=4)))
    assert ours.dtype == theirs.dtype == dtype and soft.dtype == expected.dtype == torch.float32
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2 * torch.finfo(dtype).eps)
    torch.testing.assert_close(soft, expected)


@pytest.mark.parametrize("name", NAMES)
def test_layout_and_kind_are_kept(name):
    """By every method, of floats and levels, mixed, not mixed and in evaluation."""
    for images in (IMAGES, (IMAGES * 255).byte()):
        last = tv_tensors.Image(images.contiguous(memory_format=torch.channels_last))
        mix = Mix(name, 4)
        for made in (mix(last, LABELS)[0], mix(last, LABELS)[0], mix.eval()(last, LABELS)[0]):
            assert type(made) is tv_tensors.Image and made.dtype == images.dtype and made.stride() == last.stride()
        assert torch.equal(made, images)
