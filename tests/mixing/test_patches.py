"""Corrected CutMix of patches against votes counted pixel by pixel, and against the laws of its draws."""

from math import inf, sqrt

import pytest
import torch

from hybridgen.mixing import inputs as module
from hybridgen.mixing import masks
from hybridgen.mixing.inputs import PatchMixing, cut_and_mixed, mix_patches
from hybridgen.types import InputError

SIZE, PATCH = (12, 20), 4


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def drawn(inputs: int = 2, count: int = 8, seed: int = 0, size=SIZE, **more) -> PatchMixing:
    options = dict(alpha=0.5, patch=PATCH) | more
    return mix_patches(count, size, inputs=inputs, generator=generator(seed), **options)


@pytest.mark.parametrize("inputs", [1, 2, 3, 4])
@pytest.mark.parametrize("seed", range(3))
def test_every_patch_is_of_the_input_of_most_of_its_pixels(inputs, seed):
    """The draws once more, and the votes of all pixels counted."""
    count, own = 8, generator(seed)
    partners = [torch.arange(count), *(torch.randperm(count, generator=own) for _ in range(1, inputs))]
    shares = masks.log_gammas(inputs, count, 0.5, own).double().softmax(dim=0)
    layers = torch.zeros(count, *SIZE, dtype=torch.int64)
    for layer in range(1, inputs):
        before = shares[:layer].sum(dim=0)
        boxes = masks.cutmix_boxes((before / (before + shares[layer])).float(), *SIZE, own)
        for image, (top, left, height, width) in enumerate(boxes.tolist()):
            layers[image, top : top + height, left : left + width] = layer
    order, roles, _ = (torch.rand(count, inputs, generator=own).argsort(dim=1).tolist() for _ in range(3))
    mixing = drawn(inputs, seed=seed)
    assert torch.equal(mixing.partners, torch.stack(partners))
    ties = 0
    for image, row, column in torch.cartesian_prod(*(torch.arange(n) for n in (count, 3, 5))).tolist():
        seen = layers[image, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4].flatten().tolist()
        votes = [seen.count(layer) for layer in range(inputs)]
        best = [layer for layer in range(inputs) if votes[layer] == max(votes)]
        ties += len(best) > 1
        winner = max(best, key=lambda layer: order[image][layer])
        assert mixing.owners[image, row, column] == roles[image][winner]
    assert inputs == 1 or ties


def test_tied_patches_of_an_image_are_all_of_one_input_at_random(monkeypatch):
    """A box over the upper half of the image and half of the patches below it."""
    monkeypatch.setattr(module.masks, "cutmix_boxes", lambda ratio, *_: torch.tensor([[0, 0, 6, 20]] * len(ratio)))
    owners = drawn(count=400).owners
    assert (owners[:, 0] == owners[:, :1, 0]).all() and (owners[:, 2] == 1 - owners[:, 0]).all()
    tied = owners[:, 1]
    assert (tied == tied[:, :1]).all()
    for same in (tied[:, 0] == owners[:, 0, 0], owners[:, 0, 0] == 0):  # whose the ties are, and whose the box is
        assert abs(same.float().mean() - 0.5) < 4 * 0.5 / sqrt(400)


@pytest.mark.parametrize("inputs", [2, 3])
def test_shares_are_those_of_the_patches_and_no_input_is_favoured(inputs):
    mixing = drawn(inputs, count=2000)
    counted = torch.stack([(mixing.owners == each).flatten(1).sum(dim=1) for each in range(inputs)])
    torch.testing.assert_close(mixing.ratios, counted / 15)
    assert torch.equal(mixing.masks.sum(dim=0), torch.ones(2000, 1, 3, 5)) and mixing.masks.shape[0] == inputs
    assert all(torch.equal(mixing.masks[each, :, 0], (mixing.owners == each).float()) for each in range(inputs))
    deviation = mixing.ratios.std(dim=1) / sqrt(2000)
    assert ((mixing.ratios.mean(dim=1) - 1 / inputs).abs() < 4 * deviation).all()
    equal = drawn(inputs, count=2000, alpha=inf).ratios
    assert equal.std() < mixing.ratios.std() * 0.75


@pytest.mark.parametrize("inputs", [2, 3])
def test_whole_images_are_of_one_input_with_their_chance(inputs):
    none, some, all_ = (drawn(inputs, count=2000, whole=chance) for chance in (0.0, 0.3, 1.0))
    alone = all_.owners[:, 0, 0]
    assert (all_.owners == alone[:, None, None]).all()
    each = alone.bincount(minlength=inputs) / 2000
    assert ((each - 1 / inputs).abs() < 4 * 0.5 / sqrt(2000)).all()
    chosen = (some.owners == all_.owners).flatten(1).all(dim=1)
    assert torch.equal(some.owners[~chosen], none.owners[~chosen])
    already = (none.owners == all_.owners).flatten(1).all(dim=1).float().mean()
    expected = 0.3 + 0.7 * already
    assert abs(chosen.float().mean() - expected) < 4 * 0.5 / sqrt(2000)


def test_images_and_tokens_show_what_their_patches_own():
    mixing, own = drawn(3, count=4), generator(5)
    images = torch.randn(3, 4, 2, *SIZE, generator=own).unbind()
    tokens = torch.randn(3, 4, 15, 6, generator=own).requires_grad_()
    mixed, mixed_tokens = mixing.mix(images), mixing.mix(tokens.unbind())
    for image, row, column in torch.cartesian_prod(*(torch.arange(n) for n in (4, 3, 5))).tolist():
        owner = mixing.owners[image, row, column]
        place = (image, slice(None), slice(4 * row, 4 * row + 4), slice(4 * column, 4 * column + 4))
        assert torch.equal(mixed[place], images[owner][place])
        assert torch.equal(mixed_tokens[image, 5 * row + column], tokens[owner, image, 5 * row + column])
    wide = mixing.mix([image[:, :, ::2] for image in images])  # of patches of another shape
    assert torch.equal(wide, mixed[:, :, ::2])
    mixed_tokens.sum().backward()
    owned = mixing.masks.flatten(2).unsqueeze(3).expand_as(tokens)
    assert torch.equal(tokens.grad, owned)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(inputs=9), "inputs: 9 of a batch of 8 images"),
        (dict(inputs=0), "inputs: 0 of a batch"),
        (dict(alpha=0.0), "alpha: 0.0 is not above 0"),
        (dict(whole=1.5), r"whole: 1.5 is outside \[0, 1\]"),
        (dict(patch=5), "patch: 5 pixels do not divide images of 12×20"),
    ],
)
def test_what_cannot_be_drawn_is_one_error(changes, words):
    with pytest.raises(InputError, match=words):
        drawn(**changes)


def test_what_does_not_fit_is_one_error():
    with pytest.raises(InputError, match="inputs: 1; 2 are to be mixed"):
        drawn().mix([torch.rand(8, 15, 6)])
    for shape in ((8, 16, 6), (8, 2, 13, 20), (8, 2, 12, 21)):
        with pytest.raises(InputError, match="3×5 patches do not fit them"):
            drawn().mix([torch.rand(shape)] * 2)


def test_cutmix_and_mixup_at_once():
    """A.1.5: Mixup's ratio outside of CutMix's box, its rest inside; both drawn for each image."""
    mixing, own = cut_and_mixed(50, SIZE, generator=generator(3)), generator(3)
    boxes = masks.cutmix_boxes(masks.beta(50, 1.0, own), *SIZE, own)
    share = masks.beta(50, 0.8, own)
    for image, (top, left, height, width) in enumerate(boxes.tolist()):
        expected = torch.full(SIZE, share[image].item())
        expected[top : top + height, left : left + width] = 1 - share[image]
        torch.testing.assert_close(mixing.mask[image, 0], expected)
    assert (mixing.partner != torch.arange(50)).all() and sorted(mixing.partner.tolist()) == list(range(50))
    images, targets = torch.rand(50, 3, *SIZE), torch.eye(50)
    mixed = mixing.mask * images + (1 - mixing.mask) * images[mixing.partner]
    torch.testing.assert_close(mixing.mix(images), mixed)
    kept = mixing.mix_targets(targets).diagonal()
    torch.testing.assert_close(kept, mixing.mask.mean(dim=(1, 2, 3)))
