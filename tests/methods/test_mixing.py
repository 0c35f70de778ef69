import pytest
import torch
from objectives import AugMix, Mixed
from torch import nn
from torch.nn import functional as F

from hybridgen.methods.mixing import mixed_before
from hybridgen.mixing.methods import cutmix, mixup, patchup
from hybridgen.training.schedules import Clock
from hybridgen.types import Batch, InputError

CLASSES = 4
CLOCK = Clock(10, 10)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 5, 3, padding=1), nn.Tanh(), nn.Conv2d(5, 6, 3, padding=1), nn.AdaptiveAvgPool2d(1)
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(6, CLASSES)).double()


def batch() -> Batch:
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(6, 3, 8, 8, generator=generator, dtype=torch.float64)
    return Batch((images,), torch.tensor([0, 1, 2, 3, 1, 2]), ())


def run(made: nn.Module, seed: int = 7):
    torch.manual_seed(seed)
    return made(batch(), CLOCK)


def after_two_draws(seed: int = 7) -> None:
    """Torch's global generator where a method begins to draw."""
    torch.manual_seed(seed)
    torch.rand(()), torch.randint(1, ())


@pytest.mark.parametrize("draw", [mixup, cutmix])
def test_the_loss_is_that_of_both_labels_by_the_realised_share(draw):
    losses, rates, *_ = run(Mixed(network(), CLASSES, draw=draw))
    after_two_draws()
    given = batch()
    mixing = draw(given.labelled[0])
    logits = network()(mixing.mix(given.labelled[0]))
    each = F.cross_entropy(logits, given.labels, reduction="none")
    others = F.cross_entropy(logits, given.labels[mixing.partner], reduction="none")
    share = mixing.ratio.double()
    torch.testing.assert_close(losses["supervised"], (share * each + (1 - share) * others).mean())
    assert rates["ratio"] == mixing.ratio.mean()


def test_without_a_method_or_a_chance_images_stay_as_they_are():
    given, plain = batch(), network()
    expected = F.cross_entropy(plain(given.labelled[0]), given.labels)
    for options in ({}, {"draw": cutmix, "probability": 0.0}):
        losses, rates, *_ = run(Mixed(network(), CLASSES, **options))
        torch.testing.assert_close(losses["supervised"], expected)
        assert rates["ratio"] == 1
    smoothed, *_ = run(Mixed(network(), CLASSES, smoothing=0.2))
    expected = F.cross_entropy(plain(given.labelled[0]), given.labels, label_smoothing=0.2)
    torch.testing.assert_close(smoothed["supervised"], expected)


def test_probability_is_that_of_a_step():
    made = Mixed(network(), CLASSES, draw=mixup, probability=0.3)
    mixed = [run(made, seed)[1]["ratio"].item() < 1 for seed in range(300)]
    assert 0.2 < sum(mixed) / len(mixed) < 0.4


def test_manifold_mixup_mixes_before_a_stage_that_is_drawn():
    plain = network()
    made = Mixed(plain, CLASSES, draw=mixup, stages=(plain[2],))
    seen = set()
    for seed in range(20):
        torch.manual_seed(seed)
        torch.rand(())
        place = int(torch.randint(2, ()))
        state = torch.get_rng_state()
        losses, *_ = run(made, seed)
        torch.set_rng_state(state)
        given = batch()
        maps = given.labelled[0] if place == 0 else plain[1](plain[0](given.labelled[0]))
        mixing = mixup(maps)
        layers = plain if place == 0 else plain[2:]
        logits = layers(mixing.mix(maps))
        known = F.one_hot(given.labels, CLASSES).double()
        torch.testing.assert_close(losses["supervised"], F.cross_entropy(logits, mixing.mix_targets(known)))
        seen.add(place)
    assert seen == {0, 1}
    assert not plain[2]._forward_pre_hooks


def test_patchup_mixes_maps_by_one_method_and_images_by_another():
    plain = network()
    drawn = []

    def of(method):
        def draw(maps):
            drawn.append((method, maps.shape[1]))
            return method(maps)

        return draw

    made = Mixed(plain, CLASSES, draw=of(patchup), draw_images=of(cutmix), stages=(plain[2],))
    for seed in range(20):
        run(made, seed)
    assert set(drawn) == {(patchup, 5), (cutmix, 3)}


def test_terms_count_on_maps_and_not_on_images():
    """PatchUp's loss is a sum of two equal parts on maps, one on images."""
    plain = network()
    ratios = set()
    for seed in range(20):
        once, twice = (
            run(Mixed(plain, CLASSES, draw=patchup, draw_images=cutmix, stages=(plain[2],), terms=terms), seed)[0]
            for terms in (1, 2)
        )
        ratios.add(round((twice["supervised"] / once["supervised"]).item(), 6))
    assert ratios == {1.0, 2.0}


def test_gradient_reaches_what_lies_before_a_mixed_stage_through_both_parents():
    plain = network()
    images = batch().labelled[0].requires_grad_()
    with mixed_before(plain[2], lambda maps: mixup(maps, alpha=100.0)) as drawn:
        logits = plain(images)
    logits[0].sum().backward()
    partner = int(drawn[0].partner[0])
    reached = [i for i in range(6) if images.grad[i].any()]
    assert set(reached) == {0, partner}


def test_a_failing_forward_leaves_no_hook():
    plain = network()
    with pytest.raises(ZeroDivisionError), mixed_before(plain[2], lambda maps: 1 / 0):
        plain(batch().labelled[0])
    assert not plain[2]._forward_pre_hooks


def test_augmix_trains_on_the_images_and_ties_them_to_two_mixtures(monkeypatch):
    """Of the same crops: Hendrycks et al. 2020 have them made of what was cropped and flipped."""
    made, plain = [], network()
    monkeypatch.setattr(
        "hybridgen.methods.augmix.augmix",
        lambda images, generator: made.append((images, torch.rand_like(images))) or made[-1][1],
    )
    losses, *_ = run(AugMix(network(), consistent=True))
    given = batch()
    ((images, mixtures),) = made
    assert all(torch.equal(each, given.labelled[0]) for each in images.chunk(2))
    logits = [plain(view) for view in (given.labelled[0], *mixtures.chunk(2))]
    torch.testing.assert_close(losses["supervised"], F.cross_entropy(logits[0], given.labels))
    first, second, third = (each.softmax(1) for each in logits)
    middle = (first + second + third) / 3
    kl = [(p * (p.log() - middle.log())).sum(1).mean() for p in (first, second, third)]
    torch.testing.assert_close(losses["jensen_shannon"], sum(kl) / 3)
    assert run(AugMix(network()))[0].keys() == {"supervised"}


@pytest.mark.parametrize("field", ["probability", "smoothing"])
@pytest.mark.parametrize("value", [-0.1, 1.1])
def test_shares_outside_0_and_1_are_refused(field, value):
    with pytest.raises(InputError, match=f"^{field}: {value}"):
        Mixed(network(), CLASSES, **{field: value})
    if field == "smoothing":
        with pytest.raises(InputError, match=f"^smoothing: {value}"):
            AugMix(network(), smoothing=value)
