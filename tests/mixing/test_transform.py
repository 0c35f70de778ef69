"""`Mix` called like torchvision's transforms, in the loops of others."""

import copy
import inspect

import jaxtyping
import pytest
import timm.loss
import timm.optim
import torch
import torch.nn.functional as F
from torchvision.transforms import v2

from hybridgen.mixing.methods import METHODS
from hybridgen.mixing.transform import Mix
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


@pytest.mark.parametrize("name", METHODS)
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
    monkeypatch.setattr(mix, "_toss", lambda: torch.tensor(True))
    mixed, soft = mix(images, labels)
    assert torch.equal(mixed, mixing.mix(images)) and torch.equal(soft, mixing.mix_targets(targets))
    monkeypatch.setattr(mix, "_toss", lambda: torch.tensor(False))
    mixed, soft = mix(images, labels)
    assert torch.equal(mixed, images) and torch.equal(soft, targets)
    monkeypatch.setattr(mix, "_toss", lambda: torch.empty((), dtype=torch.bool, device="meta"))
    assert mix(images.to("meta"), labels.to("meta"))[0].is_meta


def test_evaluation_mixes_nothing(images, labels):
    mixed, soft = Mix("cutmix", 4).eval()(images, labels)
    assert torch.equal(mixed, images) and torch.equal(soft, F.one_hot(labels, 4).float())


def test_making_one_draws_nothing():
    state = torch.get_rng_state()
    source = generator()
    before = source.get_state()
    for name in METHODS:
        Mix(name, 4, generator=source)
    assert torch.equal(torch.get_rng_state(), state) and torch.equal(source.get_state(), before)


def test_nothing_is_read_back_from_a_device(images, labels):
    for name in METHODS:
        mixed, soft = Mix(name, 4, generator=generator())(images.to("meta"), labels.to("meta"))
        assert mixed.is_meta and mixed.shape == images.shape and soft.shape == (7, 4)


def test_it_is_a_module():
    mix = Mix("cutmix", 10, alpha=0.5, probability=0.25)
    assert repr(mix) == "Mix('cutmix', classes=10, probability=0.25, alpha=0.5)"
    assert not mix.state_dict() and copy.deepcopy(mix).options == {"alpha": 0.5}
    assert list(inspect.signature(mix.forward).parameters) == ["images", "labels"]


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (("cutmax", 3), {}, "method: 'cutmax' is unknown; there are mixup, "),
        (("cutmix", 3), {"beta": 1.0}, "cutmix: .*beta"),
        (("cutmix", 3), {"alpha": 0.0}, "alpha: 0.0"),
        (("cutmix", 3), {"probability": 1.5}, "probability: 1.5"),
        (("cutmix", 0), {}, "classes: 0"),
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
        (((images * 255).byte(), labels), "images: torch.uint8"),
        ((images[0], labels), "labels: 7 for 3 images"),
    ):
        with pytest.raises(InputError, match=rf"^{message}"):
            mix(*batch)


@pytest.mark.parametrize("name", METHODS)
def test_any_method_stands_in_a_timm_training_loop(name):
    """In the place of `timm.data.Mixup`, before timm's loss for soft targets: the network learns."""
    torch.manual_seed(0)
    images, labels = torch.rand(12, 3, 8, 8), torch.arange(12) % 3
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 3))
    optimizer = timm.optim.create_optimizer_v2(network, opt="sgd", lr=0.05)
    criterion, mixup_fn = timm.loss.SoftTargetCrossEntropy(), Mix(name, classes=3)
    losses = []
    for _ in range(60):
        mixed, targets = mixup_fn(images, labels)
        loss = criterion(network(mixed), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-10:]) < sum(losses[:10])
