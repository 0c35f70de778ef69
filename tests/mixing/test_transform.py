"""`Mix` called like torchvision's transforms, in the loops of others."""

import copy
import subprocess
import sys

import jaxtyping
import pytest
import timm.loss
import timm.optim
import torch
import torch.nn.functional as F
from torchvision import tv_tensors
from torchvision.transforms import v2

from hybridgen.data.augmix import augmix
from hybridgen.methods.recursivemix import align
from hybridgen.mixing import transform
from hybridgen.mixing.methods import METHODS
from hybridgen.mixing.recursive import Box
from hybridgen.mixing.transform import NAMES, Mix
from hybridgen.types import InputError


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def images():
    return torch.rand(7, 3, 12, 9, generator=generator())


@pytest.fixture
def labels():
    return torch.tensor([0, 3, 1, 1, 2, 0, 3])


@pytest.fixture
def unchecked():
    """As without the tests' checks of annotations."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.parametrize("name", METHODS)
def test_a_name_is_its_method(images, labels, name):
    """Labels as indices, one-hot or soft give the same; the seed decides."""
    mixing = METHODS[name](images, per_sample=True, generator=generator(3))
    targets = F.one_hot(labels, 4).float()
    for given in (labels, targets, targets.double()):
        mixed, soft = Mix(name, 4, generator=generator(3), per_sample=True)(images, given)
        assert torch.equal(mixed, mixing.mix(images))
        torch.testing.assert_close(soft.float(), mixing.mix_targets(targets))
        torch.testing.assert_close(soft.sum(dim=1), torch.ones(7, dtype=soft.dtype))


@pytest.mark.parametrize("name", NAMES)
def test_it_stands_where_torchvisions_stands(images, labels, name):
    """Same call, same shapes and kinds of results."""
    theirs, ours = v2.CutMix(num_classes=4)(images, labels), Mix(name, 4)(images, labels)
    assert isinstance(ours, tuple) and len(ours) == len(theirs)
    for own, other in zip(ours, theirs, strict=True):
        assert own.shape == other.shape and own.dtype == other.dtype
    loader = torch.utils.data.DataLoader(list(zip(images, labels.tolist(), strict=True)), batch_size=3)
    choice = v2.RandomChoice([Mix(name, 4), v2.MixUp(num_classes=4)])
    for batch in loader:  # the last of one image
        mixed, soft = choice(*batch)
        loss = F.cross_entropy(mixed.mean(dim=(2, 3)) @ torch.ones(3, 4), soft)
        assert loss.isfinite()


def test_probability(images, labels):
    targets, mix = F.one_hot(labels, 4).float(), Mix("mixup", 4, probability=0.3, generator=generator())
    results = [mix(images, labels) for _ in range(400)]
    spared = [torch.equal(mixed, images) and torch.equal(soft, targets) for mixed, soft in results]
    assert sum(spared) / 400 == pytest.approx(0.7, abs=0.08)
    again = Mix("mixup", 4, probability=0.3, generator=generator())
    assert all(torch.equal(again(images, labels)[0], mixed) for mixed, _ in results)
    never = Mix("cutmix", 4, probability=0.0)
    assert all(torch.equal(never(images, labels)[0], images) for _ in range(20))


def test_a_coin_on_a_device_stays_there(images, labels, monkeypatch):
    """It chooses between mixed and given images without being read, which the meta device would not allow."""
    mix, targets = Mix("mixup", 4, probability=0.5, generator=generator(3)), F.one_hot(labels, 4).float()
    mixing = METHODS["mixup"](images, generator=generator(3))
    monkeypatch.setattr(transform, "toss", lambda *_: torch.tensor(True))
    mixed, soft = mix(images, labels)
    assert torch.equal(mixed, mixing.mix(images)) and torch.equal(soft, mixing.mix_targets(targets))
    monkeypatch.setattr(transform, "toss", lambda *_: torch.tensor(False))
    mixed, soft = mix(images, labels)
    assert torch.equal(mixed, images) and torch.equal(soft, targets) and (mix.mixing.ratio == 1).all()
    monkeypatch.setattr(transform, "toss", lambda *_: torch.empty((), dtype=torch.bool, device="meta"))
    assert mix(images.to("meta"), labels.to("meta"))[0].is_meta


def test_evaluation_mixes_nothing(images, labels):
    mixed, soft = Mix("cutmix", 4).eval()(images, labels)
    assert torch.equal(mixed, images) and torch.equal(soft, F.one_hot(labels, 4).float())


def test_making_one_draws_nothing():
    state = torch.get_rng_state()
    source = generator()
    before = source.get_state()
    for name in NAMES:
        Mix(name, 4, generator=source)
    assert torch.equal(torch.get_rng_state(), state) and torch.equal(source.get_state(), before)


def test_nothing_is_read_back_from_a_device(images, labels):
    for name in NAMES:
        mix = Mix(name, 4, generator=generator())
        for _ in range(2):
            mixed, soft = mix(images.to("meta"), labels.to("meta"))
            assert mixed.is_meta and mixed.shape == images.shape and soft.shape == (7, 4)


def test_it_is_a_module():
    mix = Mix("cutmix", 10, alpha=0.5, probability=0.25)
    assert repr(mix) == "Mix('cutmix', num_classes=10, probability=0.25, alpha=0.5)"
    assert not mix.state_dict() and copy.deepcopy(mix).options == {"alpha": 0.5}


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (("cutmax", 3), {}, "method: 'cutmax' is unknown; there are mixup, "),
        (("cutmix", 3), {"beta": 1.0}, "cutmix: .*beta"),
        (("cutmix", 3), {"alpha": 0.0}, "alpha: 0.0"),
        (("cutmix", 3), {"probability": 1.5}, "probability: 1.5"),
        (("recursivemix", 3), {"alpha": 1.5}, "alpha: 1.5"),
        (("augmix", 3), {"severity": 11}, "severity: 11"),
        (("augmix", 3), {"per_sample": True}, "augmix: .*per_sample"),
        (("cutmix", 0), {}, "num_classes: 0"),
    ],
)
def test_bad_arguments(arguments, options, message):
    with pytest.raises(InputError, match=rf"^{message}"):
        Mix(*arguments, **options)


def test_bad_batches(unchecked, images, labels):
    mix = Mix("mixup", 4)
    for batch, message in (
        ((images, labels[:5]), "labels: 5 for 7 images"),
        ((images, labels + 1), "labels: class 4"),
        ((images[:0], labels[:0]), "images: an empty batch"),
        (((images * 255).long(), labels), "images: torch.int64"),
        ((images[0], labels), r"images: of shape \(3, 12, 9\)"),
    ):
        with pytest.raises(InputError, match=rf"^{message}"):
            mix(*batch)


def test_recursivemix_shows_what_the_last_call_gave(images, labels):
    """Torch's resized images in the box, its area in the labels; also where the batch and its size change."""
    mix, past, shown_at_all = Mix("recursivemix", 4, alpha=1.0, generator=generator(3)), None, 0.0
    for count, side in ((7, 9), (7, 9), (4, 9), (7, 6), (7, 6)):
        given, own = images[:count, :, :, :side].contiguous(), labels[:count]
        mixed, soft = mix(given, own)
        want, targets = given.clone(), F.one_hot(own, 4).double()
        if past is None:
            assert mix.mixing is None
        else:
            top, left, height, width = mix.mixing.boxes[0].tolist()
            assert mix.mixing.partner.tolist() == [i % len(past[0]) for i in range(count)]
            shown, share = past[0][mix.mixing.partner], height * width / (12 * side)
            if share:
                want[:, :, top : top + height, left : left + width] = F.interpolate(shown, (height, width))
            shown_at_all += share
            targets = (1 - share) * targets + share * past[1][mix.mixing.partner]
            assert (1 - mix.mixing.ratio).tolist() == pytest.approx([share] * count)
        torch.testing.assert_close(mixed, want)
        torch.testing.assert_close(soft.double(), targets, rtol=0, atol=1e-6)
        past = mixed.clone(), soft.double()
        mixed.zero_()  # what was kept is not what was given
    assert shown_at_all > 0.5
    with pytest.raises(InputError, match=r"^recursivemix: \[2, 4\] channels and classes after \[3, 4\]"):
        mix(images[:, :2], labels)
    mix.forget()
    assert torch.equal(mix(images[:, :2], labels)[0], images[:, :2])


def test_recursivemix_remembers_without_gradient(images, labels):
    """What one call has learnt from is not learnt from again in the next."""
    mix = Mix("recursivemix", 4, alpha=1.0, generator=generator(3))
    past, soft = images.clone().requires_grad_(), F.one_hot(labels, 4).float().requires_grad_()
    for _ in range(2):
        mixed, targets = mix(past, soft)
        (mixed.sum() + targets.sum()).backward()
    shown, told = mix(images, F.one_hot(labels, 4).float())
    assert (mix.mixing.ratio < 1).all() and not shown.requires_grad and not told.requires_grad


def test_recursivemix_remembers_what_was_not_mixed(labels, monkeypatch):
    images = torch.rand(7, 3, 40, 30)
    mix = Mix("recursivemix", 4, probability=0.5, resize=False, generator=generator())
    monkeypatch.setattr(transform, "toss", lambda *_: False)
    assert torch.equal(mix(1 - images, labels)[0], 1 - images) and mix.mixing is None
    mix.eval()(images, labels)  # seen by nobody
    monkeypatch.setattr(transform, "toss", lambda *_: True)
    mixed, _ = mix.train()(images, labels)
    inside = mix.mixing.mask == 0
    assert torch.equal(mixed, torch.where(inside, 1 - images, images)) and 0 < inside.sum() < 1200


def test_the_box_of_recursivemixs_loss(labels):
    """RoIAlign of the mixed images themselves, in the box of the last mixing, finds what the last batch showed."""
    mix, size, images = Mix("recursivemix", 4, generator=generator(3)), (40, 30), torch.rand(7, 3, 40, 30)
    grey = torch.full_like(images, 0.25)
    mix(grey, labels)
    mixed, _ = mix(images, labels)
    torch.testing.assert_close(align(mixed, Box(*mix.mixing.boxes[0].tolist(), size)), grey[:, :, :1, :1])


def test_augmix_leaves_labels(images, labels):
    given = torch.rand(7, 4, generator=generator()).softmax(dim=1)
    mix = Mix("augmix", generator=generator(3), width=2)
    made, soft = mix(images, given)
    assert torch.equal(made, augmix(images, generator(3), width=2)) and soft is given and mix.mixing is None
    with pytest.raises(InputError, match=r"^augmix: one batch of images a sample"):
        mix({"img": [tv_tensors.Image(images)] * 2, "labels": given})


STEPS = """
import torch, torch.nn.functional as F
from torchvision import tv_tensors
from hybridgen.hybridizer import Hybridize, Hybridizer, Origin
from hybridgen.mixing.transform import Mix
from hybridgen.networks.autoencoder import Architecture, SemanticAutoencoder

network, images, labels = torch.nn.Linear(3, 4), torch.rand(7, 3, 12, 9), torch.tensor([0, 3, 1, 1, 2, 0, 3])
architecture = Architecture(
    image_size=16, classes=4, network='leaky-wrn-10-1', nonsemantic_channels=2, generator_channels=(4, 4)
)
hybridizer = Hybridizer(SemanticAutoencoder(architecture), Origin('none', 'f', '0', ('a', 'b', 'c', 'd')))
square = torch.rand(7, 3, 16, 16)
for make, images in (
    (lambda: Mix('mixup', 4), tv_tensors.Image(images)),
    (lambda: Mix('recursivemix', 4, probability=0.5), images),
    (lambda: Hybridize(hybridizer, keep_consistent=True), tv_tensors.Image(square)),
):
    for compiled in (True, False):
        mix = make()

        def step(images, labels):
            mixed, soft = mix(images, labels)
            return F.cross_entropy(network(mixed.square().mean(dim=(2, 3))), soft)

        torch.manual_seed(0)
        step = torch.compile(step, backend='eager', fullgraph=True) if compiled else step
        losses = torch.stack([step(images, labels) for _ in range(4)])
        losses.sum().backward()
        print(*losses.tolist())
"""


def test_a_compiled_step_has_no_graph_break():
    """Mixing or hybrids, network and loss as one graph give the losses of the same draws without compilation; of
    tv_tensors, too. In a process of its own, in which nothing is wrapped to check types."""
    done = subprocess.run([sys.executable, "-c", STEPS], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    losses = [[float(loss) for loss in line.split()] for line in done.stdout.splitlines()]
    for got, want in (losses[:2], losses[2:4], losses[4:]):
        assert got == pytest.approx(want, rel=1e-5) and len(set(want)) > 2 and len(got) == 4


def test_workers_and_epochs_of_a_loader_draw_apart_from_one_generator():
    """And again the same from the same seeds."""

    def ratios() -> list[float]:
        torch.manual_seed(5)
        mix = Mix("mixup", num_classes=4, generator=torch.Generator().manual_seed(0))

        def mixed(samples: list) -> float:
            mix(*torch.utils.data.default_collate(samples))
            return mix.mixing.ratio[0].item()

        data = torch.utils.data.TensorDataset(torch.rand(8, 3, 4, 4), torch.arange(8) % 4)
        loader = torch.utils.data.DataLoader(data, batch_size=2, num_workers=2, collate_fn=mixed)
        return [ratio for _ in range(2) for ratio in loader]

    drawn = ratios()
    assert len(drawn) == len(set(drawn)) == 8 and ratios() == drawn


@pytest.mark.parametrize("name", METHODS)
def test_any_method_stands_in_a_timm_training_loop(name):
    """In the place of `timm.data.Mixup`, before timm's loss for soft targets: the network learns."""
    torch.manual_seed(0)
    images, labels = torch.rand(12, 3, 8, 8), torch.arange(12) % 3
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 3))
    optimizer = timm.optim.create_optimizer_v2(network, opt="sgd", lr=0.05)
    criterion, mixup_fn = timm.loss.SoftTargetCrossEntropy(), Mix(name, num_classes=3)
    losses = []
    for _ in range(60):
        mixed, targets = mixup_fn(images, labels)
        loss = criterion(network(mixed), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-10:]) < sum(losses[:10])
