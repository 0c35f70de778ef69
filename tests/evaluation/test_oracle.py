"""The oracle learns, is kept, and a damaged one is never used."""

import json
from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator

from hybridgen.data.datasets import Dataset, InMemory, Part
from hybridgen.evaluation import oracle as module
from hybridgen.evaluation.oracle import (
    Settings,
    default_cache,
    load_or_train_oracle,
    load_oracle,
    save_oracle,
    settings_for,
    train_oracle,
)
from hybridgen.types import InputError

QUICK = Settings(steps=40, batch_size=16, width=1)


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
    oracle, accuracy = load_or_train_oracle(dataset, Accelerator(), cache=cache, settings=QUICK)
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
    again, measured = load_or_train_oracle(dataset, Accelerator(), cache=cache, settings=QUICK)
    assert measured == accuracy
    for name, tensor in state(oracle).items():
        assert torch.equal(tensor, again.state_dict()[name]), name


def test_training_is_a_function_of_the_seed_and_leaves_the_random_state(dataset, kept):
    before = torch.get_rng_state()
    again = train_oracle(dataset, Accelerator(), QUICK)
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
        config.write_text(config.read_text().replace('"version": 1', '"version": 2'))
    with pytest.raises(InputError, match=str(folder)):
        load_oracle(folder, dataset)
    again, _ = load_or_train_oracle(dataset, Accelerator(), cache=tmp_path, settings=QUICK)
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
    load_or_train_oracle(dataset, Accelerator(), cache=cache, settings=other)
    (second,) = set(cache.iterdir()) - {folder}
    for file in second.iterdir():
        file.unlink()
    second.rmdir()


def test_a_cache_that_cannot_be_written_loses_nothing(dataset, kept, monkeypatch, tmp_path, capsys):
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setattr(module, "train_oracle", lambda *arguments, **options: kept[1])
    _, accuracy = load_or_train_oracle(dataset, Accelerator(), cache=blocked / "cache", settings=QUICK)
    assert accuracy == kept[2]
    assert "not kept" in capsys.readouterr().err


def test_cache_folder_follows_xdg(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache() == tmp_path / "hybridgen" / "oracles"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_cache() == tmp_path / ".cache" / "hybridgen" / "oracles"


def test_settings_grow_with_the_data(dataset):
    assert settings_for(dataset) == Settings()
    assert settings_for(dataset, steps=50).steps == 50
    large = settings_for(replace(dataset, image_size=64), width=4)
    assert (large.depth, large.width) == (28, 4)
    assert large.steps > Settings().steps


def test_bad_input_is_named(dataset):
    with pytest.raises(InputError, match="steps: 5"):
        Settings(steps=5)
    unknown = Part(dataset.train.images, torch.full_like(dataset.train.labels, -1))
    with pytest.raises(InputError, match="known class"):
        train_oracle(replace(dataset, train=unknown), Accelerator(), QUICK)


def test_save_is_read_back(dataset, kept, tmp_path):
    save_oracle(kept[1], tmp_path / "mine", dataset, QUICK)
    again = load_oracle(tmp_path / "mine", dataset)
    images = dataset.test.images.pixels.float() / 255
    assert torch.equal(again(images), kept[1](images))
