"""What the methods of mixing have in common: how images come in, and what is evaluated."""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from hybridgen.data.datasets import load_dataset
from hybridgen.data.splits import make_split
from hybridgen.methods import labelled, mixing
from hybridgen.methods.labelled import TrainingSettings, augmentation, central, chosen_network
from hybridgen.networks.classifiers import FILE, about_classifier, load_classifier
from hybridgen.training.context import Context
from hybridgen.types import InputError

SETTINGS = TrainingSettings(network="cifar-resnet18", width=0.125, batch=6)


def viewed(settings: TrainingSettings, context: Context, images: torch.Tensor) -> torch.Tensor:
    return augmentation(settings, context)(images, torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("height", "width", "crop", "top", "left"), [(10, 16, 6, 2, 5), (17, 9, 8, 4, 0), (8, 8, 8, 0, 0)]
)
def test_the_central_square_is_in_the_middle_of_oblong_images_too(height, width, crop, top, left):
    images = torch.arange(height * width).float().view(1, 1, height, width).expand(2, 3, -1, -1)
    cut = central(images, crop)
    assert cut.shape == (2, 3, crop, crop)
    assert torch.equal(cut, images[:, :, top : top + crop, left : left + crop])
    assert central(images, None) is images


def test_images_are_evaluated_in_the_middle_and_trained_on_in_random_crops(context):
    plan = mixing.plan("none", replace(SETTINGS, crop=8), context, 0)
    seen = []
    plan.network.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    images = torch.rand(2, 3, 16, 16)
    plan.classify(plan.network.eval(), images)
    assert torch.equal(seen[0], images[:, :, 4:12, 4:12])
    batch = next(plan.stream.from_step(0))
    assert batch.labelled[0].shape == (6, 3, 8, 8)


@pytest.mark.parametrize("decay", [0.0, 0.75])
def test_what_is_selected_is_left_with_its_width_and_split(decay, context, tmp_path):
    """The average where there is one."""
    plan = mixing.plan("none", replace(SETTINGS, ema_decay=decay), context, 0)
    with torch.no_grad():
        plan.network.network.fc.weight.add_(1.0)
    chosen = deepcopy(plan.judged)  # by the validation images, before the last step
    with torch.no_grad():
        plan.judged.network.fc.bias.add_(1.0)
    plan.finish(tmp_path, chosen)
    about = about_classifier(tmp_path / FILE)
    assert (about.network, about.width, about.classes) == ("cifar-resnet18", 0.125, context.dataset.classes)
    assert about.split_hash == context.split.hash
    left = load_classifier(tmp_path / FILE)[0].network.fc
    assert torch.equal(left.weight, chosen.network.fc.weight) and torch.equal(left.bias, chosen.network.fc.bias)
    assert torch.equal(left.weight, plan.network.network.fc.weight) is (decay == 0)
    assert not any(module.training for module in plan.judged.modules()) or decay == 0


@pytest.mark.parametrize(("crop", "side"), [(8, 8), (None, 16)])
def test_the_file_of_a_network_names_the_side_of_the_images_that_it_sees(crop, side, context, tmp_path):
    plan = mixing.plan("none", replace(SETTINGS, crop=crop), context, 0)
    plan.finish(tmp_path, plan.judged)
    assert about_classifier(tmp_path / FILE).image_size == side


def test_augmix_with_jsd_sees_clean_what_other_methods_see(context):
    """Hendrycks et al. 2020: the divergence is between the clean image and two mixtures of it."""
    (seen,), (clean,), (mixture,) = (
        next(mixing.plan(name, SETTINGS, context, 0).stream.from_step(0)).labelled
        for name in ("none", "augmix-jsd", "augmix")
    )
    assert torch.equal(clean, seen) and not torch.equal(mixture, seen)


def test_shifts_reflect_or_uncover_zeros(context):
    images = torch.full((40, 3, 16, 16), 0.7)
    assert (viewed(SETTINGS, context, images) == 0.7).all()
    black = viewed(replace(SETTINGS, padding="zeros"), context, images) == 0
    assert black.any() and black.float().mean() < 0.2


def test_colours_jitter_and_rectangles_are_erased_if_asked_for(context):
    images = torch.rand(12, 3, 16, 16) * 0.5 + 0.25
    plain = viewed(SETTINGS, context, images)
    jittered = viewed(replace(SETTINGS, color_jitter=True), context, images)
    assert (jittered != plain).float().mean() > 0.9  # every image and place
    erased = viewed(replace(SETTINGS, erasing=1.0), context, images)
    changed = (erased != plain).any(dim=1).flatten(1).float().mean(dim=1)
    assert (changed > 0).all() and (changed < 0.5).all()
    assert torch.equal(viewed(replace(SETTINGS, erasing=0.0), context, images), plain)


@pytest.mark.parametrize("policy", ["cifar10", "imagenet"])
def test_autoaugment_is_before_jitter_and_erasing(context, monkeypatch, policy):
    """As DeiT has it, after shifts and flips."""
    seen = []
    noting = lambda name: lambda images, generator, **options: (seen.append((name, options)), images + 1)[1]
    monkeypatch.setattr(labelled, "autoaugment", noting("autoaugment"))
    for name in ("color_jitter", "lighting", "erase"):
        monkeypatch.setattr(labelled.augment, name, noting(name))
    images = torch.rand(4, 3, 16, 16)
    plain = viewed(SETTINGS, context, images)
    given = viewed(replace(SETTINGS, autoaugment=policy, color_jitter=True, erasing=0.3), context, images)
    assert [name for name, _ in seen] == ["autoaugment", "color_jitter", "lighting", "erase"]
    assert seen[0][1] == {"policy": policy}
    torch.testing.assert_close(given, plain + 4)


@pytest.mark.parametrize("name", ["none", "augmix-jsd"])
def test_batch_augmentation_repeats_images_and_neither_steps_nor_the_rate_change(context, name):
    """Hoffer et al. 2020: B images, each augmented anew M times, are M · B samples."""
    once, thrice = (mixing.plan(name, replace(SETTINGS, views=views), context, 0) for views in (1, 3))
    assert thrice.stream.steps_per_epoch == once.stream.steps_per_epoch and thrice.clock == once.clock
    rates = [plan.tasks["classifier"].rate(plan.clock) for plan in (once, thrice)]
    assert rates[0] == rates[1]
    for step in range(thrice.clock.steps_per_epoch):
        indices, _ = thrice.stream.indices(step)
        assert len(indices) == 3 * SETTINGS.batch and set(indices.bincount().tolist()) <= {0, 3}
        assert indices.unique().tolist() == sorted(once.stream.indices(step)[0].tolist())
    shown = next(thrice.stream.from_step(0)).labelled[0].flatten(1)
    assert len(shown.unique(dim=0)) > SETTINGS.batch


def test_a_crop_is_no_larger_than_the_image(context):
    with pytest.raises(InputError, match="crop: 17 pixels of images of 16"):
        augmentation(replace(SETTINGS, crop=17), context)


@pytest.mark.parametrize("whole", [True, False])
def test_what_is_not_shifted_takes_no_shift(context, monkeypatch, whole):
    monkeypatch.setattr(labelled, "holds_photographs", lambda images: whole)
    crop = None if whole else 8
    with pytest.raises(InputError, match=r"^shift: 2, but neither crops nor parts of --whole photographs are shifted$"):
        augmentation(replace(SETTINGS, crop=crop, shift=2), context)
    for shift in (None, 0):
        augmentation(replace(SETTINGS, crop=crop, shift=shift), context)


@pytest.mark.parametrize("flip", [True, False])
def test_whole_photographs_come_as_random_parts_that_are_only_flipped(flip, tmp_path, context):
    """Of an image whose left half is black and whose right half is white, parts differ; the middle has both. Where
    images are not flipped, white stays on the right."""
    for part in ("train", "test"):
        for name in ("a", "b"):
            (tmp_path / part / name).mkdir(parents=True)
            image = Image.new("RGB", (60, 40))
            image.paste((255, 255, 255), (30, 0, 60, 40))
            for i in range(6):
                image.save(tmp_path / part / name / f"{i}.png")
    dataset = replace(load_dataset(f"folder:{tmp_path}", image_size=16, whole=True), flip=flip)
    split = make_split(dataset, labels=12)
    whole = Context(context.settings, context.accelerator, dataset, split)
    plan = mixing.plan("none", replace(SETTINGS, batch=12), whole, 0)
    batch = next(plan.stream.from_step(0))
    white = batch.labelled[0].mean(dim=(1, 2, 3))
    assert batch.labelled[0].shape == (12, 3, 16, 16) and white.std() > 0.1
    left, right = batch.labelled[0][..., 0].mean(dim=(1, 2)), batch.labelled[0][..., -1].mean(dim=(1, 2))
    assert (left > right + 0.5).any() == flip
    with pytest.raises(InputError, match="crop: of --whole photographs"):
        augmentation(replace(SETTINGS, crop=8), whole)


def test_only_the_network_that_is_not_asked_for_depends_on_the_images():
    for size in (8, 16):
        assert chosen_network(None, None, size) == ("cifar-resnet18", 0.125)
    for size in (17, 224):
        assert chosen_network(None, None, size) == ("fast", 1)
    for size in (16, 32):
        assert chosen_network("cifar-resnet18", None, size) == ("cifar-resnet18", 1)
        assert chosen_network("wrn-10-1", None, size) == ("wrn-10-1", 1)
        assert chosen_network("fast", None, size) == ("fast", 1)
        assert chosen_network(None, 0.5, size) == ("cifar-resnet18", 0.5)


@pytest.mark.parametrize("name", ["manifold-mixup", "patchup-hard", "patchup-soft"])
def test_maps_are_mixed_after_the_first_and_the_second_stage_and_images(name, context):
    """Verma et al. 2019: of 32 pixels, masks of 32, 32 and 16; here of images of 16."""
    plan = mixing.plan(name, SETTINGS, context, 0)
    objective, sides = plan.tasks["classifier"].objective, set()
    for attribute in ("draw", "draw_images"):
        draw = getattr(objective, attribute)
        setattr(objective, attribute, lambda maps, draw=draw: sides.add(tuple(maps.shape[1:])) or draw(maps))
    batch = next(plan.stream.from_step(0))
    for seed in range(40):
        torch.manual_seed(seed)
        objective(batch, plan.clock)
    assert sides == {(3, 16, 16), (8, 16, 16), (16, 8, 8)}


def test_a_network_of_too_few_stages_cannot_have_its_maps_mixed(context):
    large = replace(context, dataset=replace(context.dataset, image_size=32))
    with pytest.raises(InputError, match="network: it has"):
        mixing.plan("manifold-mixup", replace(SETTINGS, network="fast-8", width=None), large, 0)


def test_patchups_loss_has_two_terms_on_maps_and_one_on_images(context):
    """Both are the cross-entropy with the target of the realised ratio."""
    plan, means = mixing.plan("patchup-soft", SETTINGS, context, 0), mixing.how("patchup-soft", "own")
    assert plan.tasks["classifier"].objective.draw_images == means.draw_images != means.draw
    objective, batch = plan.tasks["classifier"].objective, next(plan.stream.from_step(0))
    made, logits, seen = [], [], set()

    def noting(terms, draw):
        return lambda maps: made.append((terms, draw(maps))) or made[-1][1]

    objective.draw, objective.draw_images = noting(2, means.draw), noting(1, means.draw_images)
    plan.network.register_forward_hook(lambda module, inputs, output: logits.append(output))
    for seed in range(20):
        torch.manual_seed(seed)
        loss = objective(batch, plan.clock).losses["supervised"]
        terms, drawn = made[-1]
        target = drawn.mix_targets(F.one_hot(batch.labels, 3).float())
        torch.testing.assert_close(loss, terms * F.cross_entropy(logits[-1], target))
        seen.add(terms)
    assert seen == {1, 2}
