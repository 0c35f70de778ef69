"""RecursiveMix against a plain float64 loop over the paper's equations."""

import pytest
import torch
from objectives import RecursiveMix
from torch import nn
from torch.nn import functional as F
from torchvision.ops import roi_align

from hybridgen.methods.recursivemix import History, align
from hybridgen.mixing.recursive import Box, draw_box, recursive
from hybridgen.networks.classifiers import Classifier
from hybridgen.training.schedules import Clock
from hybridgen.types import Batch, InputError

CLASSES = 4


class Network(Classifier):
    """Two convolutions, a mean and a linear layer; the last map has half the image's sides."""

    channels = 6

    def __init__(self) -> None:
        nn.Module.__init__(self)
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Conv2d(3, 5, 3, 2, 1), nn.Tanh(), nn.Conv2d(5, 6, 3, 1, 1), nn.Tanh())
        self.head = nn.Linear(6, CLASSES)

    def features(self, images):
        return self.body(images)

    def classify(self, features):
        return self.head(features.mean(dim=(2, 3)))


def batch(size: int = 5, height: int = 8, width: int = 12, seed: int = 0, dtype=torch.float64) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(size, 3, height, width, generator=generator, dtype=dtype)
    return Batch((images,), torch.randint(CLASSES, (size,), generator=generator), ())


def objective(**options) -> RecursiveMix:
    torch.manual_seed(1)
    return RecursiveMix(Network(), CLASSES, **options).double()


def step(made: RecursiveMix, number: int, given: Batch | None = None, **shape):
    torch.manual_seed(100 + number)
    return made(given or batch(seed=number, **shape), Clock(100, 10, number))


def box_of(number: int, height: int = 8, width: int = 12, alpha: float = 0.5) -> Box:
    torch.manual_seed(100 + number)
    return draw_box(height, width, alpha=alpha)


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
@pytest.mark.parametrize(("shared_head", "divergence"), [(False, "kl"), (True, "kl"), (True, "cross-entropy")])
def test_equations_1_to_5_over_six_steps(interpolation, shared_head, divergence):
    made = objective(interpolation=interpolation, shared_head=shared_head, divergence=divergence)
    network, history = made.classifier, None
    for number in range(6):
        given, box = batch(seed=number), box_of(number)
        losses, rates, *_ = step(made, number)

        # A plain reference, image by image
        images, targets = given.labelled[0].clone(), F.one_hot(given.labels, CLASSES).double()
        if history is not None:
            for i, image in enumerate(images):
                if box.height and box.width:
                    small = F.interpolate(history[0][i : i + 1], (box.height, box.width), mode=interpolation)[0]
                    image[:, box.top : box.top + box.height, box.left : box.left + box.width] = small
            share = box.height * box.width / (8 * 12)
            targets = share * history[1] + (1 - share) * targets
        features = network.body(images)
        logits = network.head(features.mean(dim=(2, 3)))
        supervised = -(targets * logits.log_softmax(1)).sum(1).mean()
        torch.testing.assert_close(losses["supervised"], supervised)

        consistency = torch.zeros((), dtype=torch.float64)
        if history is not None:
            corners = [box.left / 2, box.top / 2, (box.left + box.width) / 2, (box.top + box.height) / 2]
            rois = torch.tensor([[i, *corners] for i in range(5)], dtype=torch.float64)
            region = roi_align(features, rois, 1, aligned=True).flatten(1)
            region = (network.head if shared_head else made.region_head)(region)
            then = history[2].softmax(1)
            known = then.log() if divergence == "kl" else 0.0
            consistency = share * (then * (known - region.log_softmax(1))).sum(1).mean()
            assert rates["history_share"] == pytest.approx(share)
        torch.testing.assert_close(losses["consistency"], consistency, rtol=1e-5, atol=1e-7)
        history = images, targets, logits.detach()


def test_the_first_step_is_plain_training_and_reaches_every_parameter():
    made = objective()
    losses, rates, *_ = step(made, 0)
    given = batch(seed=0)
    logits = made.classifier.classify(made.classifier.features(given.labelled[0]))
    torch.testing.assert_close(losses["supervised"], F.cross_entropy(logits, given.labels))
    assert losses["consistency"] == 0 and rates["history_share"] == 0
    (losses["supervised"] + losses["consistency"]).backward()
    assert all(p.grad is not None for p in made.parameters())
    assert not made.region_head.weight.grad.any()


def test_gradient_of_the_consistency_reaches_the_region_and_never_what_is_kept():
    made = objective()
    given = Batch((batch().labelled[0].requires_grad_(),), batch().labels, ())
    step(made, 0, given)
    assert not any(t.requires_grad for t in (made.history.images, made.history.targets, made.history.logits))
    losses, *_ = step(made, 1)
    losses["consistency"].backward()
    assert made.region_head.weight.grad.any() and made.classifier.body[0].weight.grad.any()
    assert made.classifier.head.weight.grad is None
    assert given.labelled[0].grad is None


def test_the_box_is_that_of_equation_2():
    torch.manual_seed(0)
    boxes = [draw_box(32, 48, alpha=0.5) for _ in range(3000)]
    shares = torch.tensor([box.share for box in boxes])
    assert shares.max() <= 0.5
    # λ uniform on (0, 0.5) of which a box around a uniform centre keeps a part: an interior one keeps all
    whole = [b for b in boxes if b.top > 0 and b.left > 0 and b.top + b.height < 32 and b.left + b.width < 48]
    assert all(abs(b.width / 48 - b.height / 32) < 0.1 for b in whole)
    assert 0.12 < shares.mean() < 0.2
    generator = torch.Generator().manual_seed(3)
    again = torch.Generator().manual_seed(3)
    assert draw_box(32, 32, generator=generator) == draw_box(32, 32, generator=again)


def test_the_image_is_whole_outside_of_the_box_and_the_history_whole_inside():
    box = Box(2, 3, 4, 6, (8, 12))
    images, before = torch.rand(2, 3, 8, 12), torch.rand(2, 3, 8, 12)
    mixed = recursive(images, box, 2).mix(images, before)
    assert torch.equal(mixed[:, :, 2:6, 3:9], F.interpolate(before, (4, 6), mode="nearest"))
    mixed[:, :, 2:6, 3:9] = images[:, :, 2:6, 3:9]
    assert torch.equal(mixed, images)
    cut = recursive(images, box, 2, resize=False).mix(images, before)
    assert torch.equal(cut[:, :, 2:6, 3:9], before[:, :, 2:6, 3:9])


def test_a_box_of_the_whole_map_is_its_mean_and_one_without_area_is_nothing():
    features = torch.rand(3, 5, 4, 6)
    torch.testing.assert_close(align(features, Box(0, 0, 8, 12, (8, 12)))[..., 0, 0], features.mean((2, 3)))
    assert align(features, Box(3, 3, 0, 0, (8, 12))).isfinite().all()
    part = align(features, Box(2, 4, 4, 4, (8, 12)))  # places 1 to 3 of 4 rows, 2 to 4 of 6 columns
    assert part.shape == (3, 5, 1, 1)
    torch.testing.assert_close(part[..., 0, 0], features[:, :, 1:3, 2:4].mean((2, 3)))


def test_a_box_is_found_on_a_map_whose_rows_and_columns_are_of_other_sizes():
    """Each place is 2 pixels high and 4 wide: rows 1 and 2 of column 2."""
    features = torch.rand(2, 5, 4, 6)
    part = align(features, Box(2, 8, 4, 4, (8, 24)))
    torch.testing.assert_close(part[..., 0, 0], features[:, :, 1:3, 2].mean(2))
    tall = align(features.mT, Box(8, 2, 4, 4, (24, 8)))
    torch.testing.assert_close(tall[..., 0, 0], features[:, :, 1:3, 2].mean(2))


def test_batches_and_images_may_change_their_size():
    made = objective()
    step(made, 0, height=6, width=20)
    before = made.history.images
    step(made, 3)
    box = box_of(3)
    shown = made.history.images[:, :, box.top : box.top + box.height, box.left : box.left + box.width]
    assert box.share > 0.1 and torch.equal(shown, F.interpolate(before, shown.shape[2:]))  # from their own size
    for number, (size, height, width) in enumerate([(5, 8, 12), (2, 8, 12), (5, 8, 12), (3, 16, 8), (1, 9, 7)]):
        losses, *_ = step(made, number, size=size, height=height, width=width)
        assert all(loss.isfinite() for loss in losses.values())
    made = objective(resize=False)
    for number, side in enumerate((8, 12)):
        losses, *_ = step(made, number, height=side, width=side)
        assert losses["supervised"].isfinite()


def test_a_short_batch_leaves_its_images_to_a_longer_one_in_turn():
    mixing = recursive(torch.rand(5, 3, 8, 8), Box(0, 0, 8, 8, (8, 8)), 2)
    assert mixing.partner.tolist() == [0, 1, 0, 1, 0]


def test_logits_that_are_not_finite_teach_nothing():
    made = objective()
    step(made, 0)
    made.history.logits[1] = torch.nan
    made.history.logits[2, 0] = torch.inf
    with_nan, *_ = step(made, 1)
    kept = made.history.logits
    with_nan["consistency"].backward()
    assert with_nan["consistency"].isfinite() and kept.isfinite().all()
    assert all(p.grad.isfinite().all() for p in made.parameters() if p.grad is not None)
    other = objective()
    step(other, 0)
    whole, *_ = step(other, 1)
    assert with_nan["consistency"] < whole["consistency"]


def test_without_history_the_batch_is_mixed_with_itself():
    made = objective(history=False, consistent=False)
    losses, rates, *_ = step(made, 3)
    assert losses.keys() == {"supervised"} and rates["history_share"] == pytest.approx(box_of(3).share) != 0
    assert made.history.images is None and made.region_head is None


def test_without_history_the_box_shows_another_image_and_the_target_both_labels():
    """Each image's partner is its own place in a permutation that is drawn after the box."""
    made, given = objective(history=False, consistent=False), batch()
    seen = []
    made.classifier.body.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    losses, *_ = step(made, 3, given)
    box, (images,), network = box_of(3), given.labelled, made.classifier
    order = torch.randperm(5)  # the next draw
    assert not torch.equal(order, torch.arange(5))
    mixed = images.clone()
    inside = (..., slice(box.top, box.top + box.height), slice(box.left, box.left + box.width))
    mixed[inside] = F.interpolate(images[order], (box.height, box.width))
    torch.testing.assert_close(seen[0], mixed)
    known = F.one_hot(given.labels, CLASSES).double()
    targets = (1 - box.share) * known + box.share * known[order]
    logits = network.classify(network.features(mixed))
    torch.testing.assert_close(losses["supervised"], F.cross_entropy(logits, targets))


def test_history_alone_has_no_second_head():
    made = objective(consistent=False)
    step(made, 0)
    losses, rates, *_ = step(made, 1)
    assert losses.keys() == {"supervised"} and rates["history_share"] > 0
    assert not [name for name, _ in made.named_parameters() if name.startswith("region")]


def test_resetting_starts_every_epoch_without_history():
    made = objective(reset_each_epoch=True)
    seen = []
    for number in range(12):
        step(made, number)
        seen.append(made.history.images)
        if number % 10 == 0:  # as if it were the first step
            alone = objective(reset_each_epoch=True)
            step(alone, number)
            assert torch.equal(alone.history.images, made.history.images)
            assert torch.equal(made.history.images, batch(seed=number).labelled[0])
    assert not torch.equal(seen[11], batch(seed=11).labelled[0])


def test_a_checkpoint_carries_the_history():
    made, again = objective(), objective()
    for number in range(2):
        step(made, number)
    again.load_state_dict(made.state_dict())
    ours, theirs = step(made, 2)[0], step(again, 2)[0]
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    empty = History()
    empty.load_state_dict(History().state_dict())
    assert empty.images is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    made = objective().float()
    for number in range(3):
        torch.manual_seed(100 + number)
        with torch.autocast("cpu", dtype):
            losses, *_ = made(batch(seed=number, dtype=torch.float32), Clock(100, 10, number))
        assert all(loss.isfinite() for loss in losses.values())
    assert made.history.logits.dtype == torch.float32
    whole = objective().float()
    for number in range(3):
        expected, *_ = step(whole, number, batch(seed=number, dtype=torch.float32))
    torch.testing.assert_close(losses["supervised"].float(), expected["supervised"], rtol=0.02, atol=0.02)


def test_smoothing():
    losses, *_ = step(objective(smoothing=0.1), 0)
    given, made = batch(seed=0), objective()
    logits = made.classifier.classify(made.classifier.features(given.labelled[0]))
    torch.testing.assert_close(losses["supervised"], F.cross_entropy(logits, given.labels, label_smoothing=0.1))


@pytest.mark.parametrize("alpha", [0.0, -0.1, 1.1, float("nan")])
def test_an_impossible_alpha_is_refused(alpha):
    with pytest.raises(InputError, match=r"^alpha"):
        objective(alpha=alpha)


@pytest.mark.parametrize("box", [(0, 0, 9, 4), (0, 0, 4, 13), (5, 0, 4, 4), (-1, 0, 4, 4), (0, 0, -1, 4)])
def test_a_box_that_is_not_inside_the_image_is_refused(box):
    with pytest.raises(InputError, match=r"^box: .* is not inside 8×12 pixels"):
        recursive(torch.rand(2, 3, 8, 12), Box(*box, size=(8, 12)), 2)
    with pytest.raises(InputError, match=r"^box: of an image of 8×8; these have 8×12"):
        recursive(torch.rand(2, 3, 8, 12), Box(0, 0, 4, 4, (8, 8)), 2)


def test_consistency_needs_history():
    with pytest.raises(InputError, match=r"^consistency"):
        objective(history=False)
