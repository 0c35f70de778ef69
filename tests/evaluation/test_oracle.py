"""The oracle learns, is kept, and a damaged one is never used."""

import json
from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator

from hybridgen.data.datasets import Dataset, Part
from hybridgen.data.sources import InMemory
from hybridgen.evaluation import oracle as module
from hybridgen.evaluation.oracle import (
    OracleSettings,
    Training,
    default_cache,
    judge_of,
    load_or_train_oracle,
    load_oracle,
    save_oracle,
    train_oracle,
    training_for,
)
from hybridgen.training.schedules import Clock
from hybridgen.types import Batch, InputError

QUICK = Training(steps=40, batch_size=16, network="leaky-wrn-10-1")


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    """Two classes, dark and bright; one training image of unknown class at the end."""
    g = torch.Generator().manual_seed(0)

    def part(count: int) -> Part:
        labels = torch.arange(count) % 2
        pixels = torch.randint(0, 120, (count, 3, 16, 16), generator=g, dtype=torch.uint8)
        return Part(InMemory(pixels + (labels * 100).byte().view(-1, 1, 1, 1)), labels)

    train, test = part(41), part(20)
    train.labels[-1] = -1
    return Dataset("brightness", ("dark", "bright"), 16, train, test, "a" * 64, False, (0.4,) * 3, (0.2,) * 3)


@pytest.fixture(scope="module")
def kept(dataset, tmp_path_factory):
    """A cache that holds one oracle, and the oracle."""
    cache = tmp_path_factory.mktemp("oracles")
    oracle, accuracy = load_or_train_oracle(dataset, Accelerator(), QUICK, cache=cache)
    return cache, oracle, accuracy


def state(oracle: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in oracle.state_dict().items()}


def test_oracle_learns_and_is_frozen(kept):
    _, oracle, accuracy = kept
    assert accuracy == 1.0
    assert not oracle.training
    assert not any(parameter.requires_grad for parameter in oracle.parameters())


def test_cached_oracle_is_the_trained_one_and_is_not_trained_again(dataset, kept, monkeypatch):
    cache, oracle, accuracy = kept

    def never(*arguments, **options):
        raise AssertionError("trained again")

    monkeypatch.setattr(module, "train_oracle", never)
    again, measured = load_or_train_oracle(dataset, Accelerator(), QUICK, cache=cache)
    assert measured == accuracy
    for name, tensor in state(oracle).items():
        assert torch.equal(tensor, again.state_dict()[name]), name


def test_training_is_a_function_of_the_seed_and_leaves_the_random_state(dataset, kept, tmp_path):
    before = torch.get_rng_state()
    again = train_oracle(dataset, Accelerator(), QUICK, tmp_path / "run")
    assert torch.equal(before, torch.get_rng_state())
    for name, tensor in state(kept[1]).items():
        assert torch.equal(tensor, again.state_dict()[name]), name


@pytest.mark.parametrize("damage", ["truncated", "changed", "description", "version"])
def test_damaged_cache_is_trained_again_with_a_word(dataset, kept, tmp_path, capsys, damage):
    cache, oracle, _ = kept
    (source,) = cache.iterdir()
    folder = tmp_path / source.name
    folder.mkdir()
    for file in source.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    weights, config = folder / module.WEIGHTS, folder / module.CONFIG
    content = weights.read_bytes()
    if damage == "truncated":
        weights.write_bytes(content[:-100])
    elif damage == "changed":
        weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif damage == "description":
        config.write_text(config.read_text()[:50])
    else:
        config.write_text(config.read_text().replace('"version": 2', '"version": 3'))
    with pytest.raises(InputError, match=str(folder)):
        load_oracle(folder, dataset)
    again, _ = load_or_train_oracle(dataset, Accelerator(), QUICK, cache=tmp_path)
    assert "trained again" in capsys.readouterr().err
    for name, tensor in state(oracle).items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    load_oracle(folder, dataset)  # repaired


@pytest.mark.parametrize(
    ("change", "field"), [({"fingerprint": "b" * 64}, "fingerprint"), ({"image_size": 32}, "image_size")]
)
def test_oracle_of_other_data_is_refused(dataset, kept, change, field):
    (folder,) = kept[0].iterdir()
    with pytest.raises(InputError, match=f"other data: {field}"):
        load_oracle(folder, replace(dataset, **change))


def test_missing_oracle_is_named(dataset, tmp_path):
    with pytest.raises(InputError, match=r"oracle\.json: cannot be read"):
        load_oracle(tmp_path, dataset)
    (tmp_path / module.CONFIG).write_text(json.dumps({"format": "other"}))
    with pytest.raises(InputError, match="not the description of an oracle"):
        load_oracle(tmp_path, dataset)


def test_settings_and_data_have_caches_of_their_own(dataset, kept, monkeypatch):
    cache, oracle, _ = kept
    (folder,) = cache.iterdir()
    other = replace(QUICK, seed=1)
    monkeypatch.setattr(module, "train_oracle", lambda *arguments, **options: oracle)
    load_or_train_oracle(dataset, Accelerator(), other, cache=cache)
    (second,) = set(cache.iterdir()) - {folder}
    for file in second.iterdir():
        file.unlink()
    second.rmdir()


def test_a_cache_that_cannot_be_written_loses_nothing(dataset, kept, monkeypatch, tmp_path, capsys):
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setattr(module, "train_oracle", lambda *arguments, **options: kept[1])
    _, accuracy = load_or_train_oracle(dataset, Accelerator(), QUICK, cache=blocked / "cache")
    assert accuracy == kept[2]
    assert "not kept" in capsys.readouterr().err


def test_cache_folder_follows_xdg(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache() == tmp_path / "hybridgen" / "oracles"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_cache() == tmp_path / ".cache" / "hybridgen" / "oracles"


def test_settings_grow_with_the_data(dataset):
    assert training_for(OracleSettings(), dataset) == Training()
    assert training_for(OracleSettings(steps=50), dataset) == Training(steps=50)
    large = training_for(OracleSettings(network="leaky-wrn-28-4"), replace(dataset, image_size=64))
    assert large.network == "leaky-wrn-28-4" and training_for(OracleSettings(), replace(dataset, image_size=64)) == (
        Training(steps=20_000, batch_size=128, network="leaky-wrn-28-2"))  # fmt: skip
    assert large.steps > Training().steps
    # up to 10,000 images of known class, whatever there is beside them, and 32 pixels
    labels = lambda known, unknown: torch.cat([torch.zeros(known).long(), torch.full((unknown,), -1)])
    pixels = lambda count: InMemory(torch.zeros(1, 3, 1, 1, dtype=torch.uint8).expand(count, 3, 1, 1))
    of = lambda known, unknown: replace(
        dataset, image_size=32, train=Part(pixels(known + unknown), labels(known, unknown))
    )
    assert training_for(OracleSettings(), of(10_000, 5)) == Training()
    assert training_for(OracleSettings(), of(10_001, 0)).steps == 20_000
    assert training_for(OracleSettings(), replace(of(3, 0), image_size=33)).steps == 20_000


def test_a_judge_that_cannot_be_had_is_named_before_anything_is_trained(dataset):
    before = torch.get_rng_state()
    assert judge_of(OracleSettings(steps=30), dataset) == Training(steps=30)
    assert torch.equal(before, torch.get_rng_state())
    with pytest.raises(InputError, match="depth: 11"):
        judge_of(OracleSettings(network="leaky-wrn-11-1"), dataset)
    part = lambda count: Part(InMemory(dataset.test.images.pixels[:count]), dataset.test.labels[:count])
    judge_of(OracleSettings(), replace(dataset, test=part(3)))
    with pytest.raises(InputError, match="brightness: 2 test images"):
        judge_of(OracleSettings(), replace(dataset, test=part(2)))


def test_bad_input_is_named(dataset, tmp_path):
    with pytest.raises(InputError, match="steps: 5"):
        Training(steps=5)
    with pytest.raises(InputError, match="steps: 9 should be greater than or equal to 10"):
        OracleSettings(steps=9)
    assert OracleSettings(steps=10).steps == Training(steps=10).steps == 10
    unknown = Part(dataset.train.images, torch.full_like(dataset.train.labels, -1))
    with pytest.raises(InputError, match="known class"):
        train_oracle(replace(dataset, train=unknown), Accelerator(), QUICK, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_oracle_that_was_stopped_is_continued(dataset, kept, monkeypatch, tmp_path):
    """Its run lies beside where it will be kept, and is removed once it is."""
    seen = []

    def stopping(made, settings, folder, seed):
        seen.append((folder, settings.resume))
        if len(seen) == 1:
            folder.mkdir(parents=True)
            raise KeyboardInterrupt
        return {}

    monkeypatch.setattr(module, "train", stopping)
    with pytest.raises(KeyboardInterrupt):
        load_or_train_oracle(dataset, Accelerator(), QUICK, cache=tmp_path)
    load_or_train_oracle(dataset, Accelerator(), QUICK, cache=tmp_path)
    (first, fresh), (second, resumed) = seen
    assert first == second and first.parent.parent == tmp_path and (fresh, resumed) == (False, True)
    (kept_in,) = tmp_path.iterdir()
    assert kept_in.name == first.parent.name.removesuffix(".training")
    load_oracle(kept_in, dataset)


def test_training_is_on_every_image_of_known_class_and_no_other(dataset):
    made = module.plan(QUICK, dataset, Accelerator())
    assert made.context.split.labelled == tuple(range(40)) and not made.context.split.validation
    assert made.clock.steps == 40 and made.select is None and made.average is None
    seen = torch.cat([made.stream.indices(step)[0] for step in range(5)])
    assert sorted(set(seen.tolist())) == list(range(40))
    assert made.tasks["oracle"].objective.smoothing == QUICK.label_smoothing == 0.05
    assert made.tasks["oracle"].optimizer.param_groups[0]["weight_decay"] == QUICK.weight_decay
    rates = [made.tasks["oracle"].rate(replace(made.clock, step=step)) for step in range(40)]
    assert max(rates) == pytest.approx(QUICK.rate) and rates.index(max(rates)) == 11 and rates[-1] < 1e-4 * QUICK.rate


def test_its_loss_is_a_smoothed_cross_entropy(dataset):
    """(1 - s) of the target on the label and s spread over all classes."""
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 4 * 4, 3))
    labels = torch.tensor([0, 2, 1, 1, 0])
    batch = Batch((torch.rand(5, 3, 4, 4),), labels, ())
    for smoothing in (0.0, 0.05, 0.3):
        judging, logits = module.Judging(network, smoothing=smoothing), network(batch.labelled[0]).double()
        loss = judging(batch, Clock(1, 1)).losses["supervised"]
        targets = (1 - smoothing) * torch.eye(3, dtype=torch.float64)[labels] + smoothing / 3
        expected = -(targets * logits.log_softmax(dim=1)).sum(dim=1).mean()
        torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=0)


def test_save_is_read_back(dataset, kept, tmp_path):
    save_oracle(kept[1], tmp_path / "mine", dataset, QUICK)
    again = load_oracle(tmp_path / "mine", dataset)
    images = dataset.test.images.pixels.float() / 255
    assert torch.equal(again(images), kept[1](images))


def test_an_oracle_that_another_process_trains_or_whose_run_is_damaged_is_trained_anew(dataset, kept, tmp_path, capsys):
    (folder,) = kept[0].iterdir()
    run = tmp_path / f"{folder.name}.training" / "oracle"
    run.mkdir(parents=True)
    (run / "config.yaml").write_text("damaged: [")
    capsys.readouterr()
    trained, _ = load_or_train_oracle(dataset, Accelerator(), QUICK, cache=tmp_path)
    assert "oracle: not kept for the next time: " in capsys.readouterr().err
    for mine, theirs in zip(trained.state_dict().values(), kept[1].state_dict().values(), strict=True):
        assert torch.equal(mine, theirs)
