from itertools import chain, islice

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode

from hybridgen.data.datasets import Part
from hybridgen.data.sources import Files, InMemory, Photographs
from hybridgen.data.splits import Split
from hybridgen.data.streams import Stream, batches, derive_seed
from hybridgen.types import InputError

GOLDEN_SEED = 215183960303368750

COUNT = 50
SPLIT = Split(
    dataset="toy",
    fingerprint="f",
    seed=0,
    labelled=tuple(range(0, 10)),
    unlabelled=tuple(range(10, 43)),
    validation=tuple(range(43, COUNT)),
)


def numbered() -> torch.Tensor:
    """Images that carry their own index in every pixel."""
    return torch.arange(COUNT, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 4, 4).contiguous()


def in_memory() -> Part:
    return Part(InMemory(numbered()), torch.arange(COUNT) % 5)


@pytest.fixture(scope="module")
def on_disk(tmp_path_factory) -> Part:
    folder = tmp_path_factory.mktemp("images")
    for i, image in enumerate(numbered()):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{i}.png")
    return Part(Files([folder / f"{i}.png" for i in range(COUNT)], 4), torch.arange(COUNT) % 5)


def plain(images, generator):
    return images


def noisy(images, generator):
    return images + torch.rand(images.shape, generator=generator, device=images.device)


def stream(part: Part | None = None, split: Split = SPLIT, **changes) -> Stream:
    options = dict(labelled=4, unlabelled=8, labelled_views=(plain,), unlabelled_views=(plain,), seed=0)
    return Stream(part or in_memory(), split, **(options | changes))


def numbers(images: torch.Tensor) -> list[int]:
    return (images[:, 0, 0, 0] * 255).round().long().tolist()


def assert_equal(first, second) -> None:
    for ours, theirs in zip(first, second, strict=True):
        assert torch.equal(ours.labels, theirs.labels)
        for mine, other in zip(ours.labelled + ours.unlabelled, theirs.labelled + theirs.unlabelled, strict=True):
            assert torch.equal(mine, other)


def test_batches_have_the_views_labels_and_values_that_were_asked_for():
    batch = next(stream(labelled_views=(plain, noisy), unlabelled_views=(plain, noisy, noisy)).from_step(0))
    assert [len(view) for view in batch.labelled] == [4, 4]
    assert [len(view) for view in batch.unlabelled] == [8, 8, 8]
    indices = numbers(batch.labelled[0])
    assert batch.labels.tolist() == [i % 5 for i in indices]
    expected = torch.tensor(indices, dtype=torch.float32) / 255
    torch.testing.assert_close(batch.labelled[0], expected.view(-1, 1, 1, 1).expand(-1, 3, 4, 4))
    assert not torch.equal(batch.unlabelled[1], batch.unlabelled[2])
    noise = batch.unlabelled[1] - batch.unlabelled[0]
    assert len(noise[:, 0, 0, 0].unique()) == 8


@pytest.mark.parametrize("changes", [{}, {"repetitions": 2}, {"rank": 1, "world": 2}, {"labelled": None}])
def test_batches_tell_which_unlabelled_images_they_hold(changes):
    flow = stream(labelled_views=(plain,), unlabelled_views=(plain, noisy), **changes)
    for step, batch in enumerate(islice(flow.from_step(0), 7)):
        assert numbers(batch.unlabelled[0]) == batch.indices.tolist() == flow.indices(step)[1].tolist()


def test_an_epoch_visits_the_pool_once_and_leaves_out_another_remainder_each_time():
    flow = stream()
    assert flow.steps_per_epoch == 43 // 8
    steps = flow.from_step(0)
    remainders, orders = set(), set()
    for _ in range(12):
        seen = list(chain.from_iterable(numbers(next(steps).unlabelled[0]) for _ in range(flow.steps_per_epoch)))
        assert len(set(seen)) == len(seen) == 40 and set(seen) <= set(range(43))
        remainders.add(frozenset(set(range(43)) - set(seen)))
        orders.add(tuple(seen))
    assert len(remainders) > 6 and len(orders) == 12
    assert frozenset.intersection(*remainders) == frozenset()  # so every image of the pool is visited


def test_labelled_images_come_equally_often_with_batches_across_epochs():
    steps = stream().from_step(0)
    seen = list(chain.from_iterable(numbers(batch.labelled[0]) for batch in islice(steps, 25)))
    for epoch in range(10):
        assert sorted(seen[10 * epoch : 10 * epoch + 10]) == list(range(10))
    assert seen[:10] != seen[10:20]


@pytest.mark.parametrize("start", [1, 4, 5, 17])
def test_a_stream_from_step_k_is_the_uninterrupted_one(start):
    options = dict(labelled_views=(noisy,), unlabelled_views=(noisy, noisy))
    uninterrupted = islice(stream(**options).from_step(0), start, start + 7)
    torch.manual_seed(start)  # the global generator must not matter
    assert_equal(islice(stream(**options).from_step(start), 7), uninterrupted)


@pytest.mark.parametrize(
    ("changes", "images", "steps"),
    [({}, 12, 5), ({"unlabelled": None}, 4, 2), ({"labelled": None}, 8, 5), ({"world": 2}, 12, 5),
     ({"repetitions": 2}, 12, 10)],
)  # fmt: skip
def test_images_of_a_step_and_steps_of_an_epoch(changes, images, steps):
    """Of all processes; images that are repeated count each time."""
    made = stream(**changes)
    assert (made.images_per_step, made.steps_per_epoch) == (images, steps)


def test_iterators_of_one_stream_do_not_disturb_each_other():
    flow = stream(labelled_views=(noisy,))
    first, second = flow.from_step(0), flow.from_step(30)
    interleaved = [(next(first), next(second)) for _ in range(6)]
    assert_equal([ours for ours, _ in interleaved], islice(stream(labelled_views=(noisy,)).from_step(0), 6))
    assert_equal([ours for _, ours in interleaved], islice(stream(labelled_views=(noisy,)).from_step(30), 6))


def test_another_seed_gives_other_orders_and_other_noise():
    ours, theirs = (next(stream(seed=seed, unlabelled_views=(plain, noisy)).from_step(0)) for seed in (0, 1))
    assert numbers(ours.unlabelled[0]) != numbers(theirs.unlabelled[0])
    assert numbers(ours.labelled[0]) != numbers(theirs.labelled[0])
    noise = [batch.unlabelled[1] - batch.unlabelled[0] for batch in (ours, theirs)]
    assert not torch.allclose(*noise)


def test_labelled_and_unlabelled_images_come_in_orders_of_their_own():
    pool = range(10)
    given = stream(labelled_pool=pool, unlabelled_pool=pool, labelled=10, unlabelled=10)
    labelled, unlabelled = (indices.tolist() for indices in given.indices(0))
    assert sorted(labelled) == sorted(unlabelled) == list(pool)
    assert labelled != unlabelled


@pytest.mark.parametrize("world", [2, 4])
def test_ranks_share_out_the_global_batch_and_draw_noise_of_their_own(world):
    alone = islice(stream().from_step(0), 11)
    views = (plain, noisy)
    flows = [stream(rank=rank, world=world, unlabelled_views=views).from_step(0) for rank in range(world)]
    for whole in alone:
        shares = [next(flow) for flow in flows]
        assert list(chain.from_iterable(numbers(share.labelled[0]) for share in shares)) == numbers(whole.labelled[0])
        assert list(chain.from_iterable(numbers(share.unlabelled[0]) for share in shares)) == numbers(
            whole.unlabelled[0]
        )
        assert torch.equal(torch.cat([share.labels for share in shares]), whole.labels)
        noise = [share.unlabelled[1] - share.unlabelled[0] for share in shares]
        assert not torch.allclose(noise[0], noise[1])
    assert stream(rank=0, world=world).steps_per_epoch == stream().steps_per_epoch


@pytest.mark.parametrize("workers", [0, 2])
def test_files_give_the_batches_of_memory(on_disk, workers):
    options = dict(labelled_views=(noisy,), unlabelled_views=(plain, noisy))
    state = torch.get_rng_state()
    from_files = list(islice(stream(on_disk, workers=workers, **options).from_step(3), 8))
    assert torch.equal(torch.get_rng_state(), state)
    assert_equal(from_files, islice(stream(**options).from_step(3), 8))


def test_streaming_files_keeps_no_pixels(on_disk):
    flow = stream(on_disk)
    held = {id(value) for value in vars(on_disk.images).values()}
    for _ in islice(flow.from_step(0), 3 * flow.steps_per_epoch):
        pass
    assert {id(value) for value in vars(on_disk.images).values()} == held
    assert set(vars(on_disk.images)) == {"paths", "image_size"}
    kept = [value for value in vars(flow).values() if isinstance(value, torch.Tensor)]
    assert all(value.ndim == 1 for value in kept)
    for draws in (flow._labelled, flow._unlabelled):
        assert len(draws._known) <= 2  # two orders, however long it runs


@pytest.mark.parametrize("workers", [0, 1])
def test_a_file_that_breaks_meanwhile_is_named_in_one_line(tmp_path, workers):
    for i, image in enumerate(numbered()):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / f"{i}.png")
    part = Part(Files([tmp_path / f"{i}.png" for i in range(COUNT)], 4), torch.arange(COUNT) % 5)
    for i in range(COUNT):
        (tmp_path / f"{i}.png").write_bytes(b"broken")
    with pytest.raises(InputError, match=r"\.png: not a readable image") as caught:
        next(stream(part, workers=workers).from_step(0))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"labelled": 0}, "^labelled_batch = 0"),
        ({"unlabelled": 0}, "unlabelled_batch = 0"),
        ({"unlabelled": -8}, "unlabelled_batch = -8"),
        ({"labelled": 11}, "labelled_batch = 11: .* 10 labelled"),
        ({"unlabelled": 44}, "unlabelled_batch = 44: .* 43 unlabelled"),
        ({"labelled": 3, "world": 2}, "labelled_batch = 3: .* 2 processes"),
        ({"unlabelled": 7, "world": 2}, "unlabelled_batch = 7: .* 2 processes"),
        ({"labelled": None, "unlabelled": None}, "labelled_batch, unlabelled_batch: both are None"),
        ({"repetitions": 0}, "repetitions = 0"),
        ({"repetitions": 3}, "repetitions = 3: .* the 4 labelled images"),
        ({"labelled": 8, "repetitions": 8, "world": 2}, "repetitions = 8: .* the 4 labelled images"),
        ({"labelled": 22, "unlabelled": None, "repetitions": 2}, "labelled_batch = 22: 11 .* 10 labelled"),
        ({"labelled": 9, "repetitions": 3, "world": 2, "asked": "batch = 3"}, "^batch = 3: .* 2 processes"),
        ({"labelled": 33, "unlabelled": None, "repetitions": 3, "asked": "batch = 11"}, "^batch = 11: 11 .* 10 "),
        ({"labelled_pool": (0, 1, 2, -1)}, "index -1 of 50"),
        ({"unlabelled_pool": range(43, 51)}, "index 50 of 50"),
        ({"unlabelled_pool": ()}, "unlabelled_batch = 8: .* 0 unlabelled"),
        ({"rank": 1}, "rank = 1"),
        ({"workers": -1}, "workers = -1"),
    ],
)
def test_impossible_batches_are_refused(changes, words):
    with pytest.raises(InputError, match=words):
        stream(**changes)


def test_a_split_of_more_images_than_there_are_is_refused():
    with pytest.raises(InputError, match="index 50 of 50"):
        stream(split=Split("toy", "f", 0, SPLIT.labelled, (*SPLIT.unlabelled, COUNT), ()))


def test_negative_steps_are_refused_at_once():
    with pytest.raises(InputError, match="step = -1"):
        stream().from_step(-1)


def test_a_batch_may_be_all_there_is():
    batch = next(stream(labelled=10, unlabelled=43).from_step(7))
    assert sorted(numbers(batch.labelled[0])) == list(range(10))
    assert sorted(numbers(batch.unlabelled[0])) == list(range(43))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("place", ["memory", "disk"])
def test_evaluation_batches_keep_the_order_and_end_short(on_disk, place, workers):
    part = in_memory() if place == "memory" else on_disk
    indices = torch.from_numpy(np.random.default_rng(0).permutation(COUNT)[:23])
    parts = list(batches(part, indices, 10, "cpu", workers))
    assert [len(images) for images, _ in parts] == [10, 10, 3]
    assert list(chain.from_iterable(numbers(images) for images, _ in parts)) == indices.tolist()
    assert torch.equal(torch.cat([labels for _, labels in parts]), indices % 5)
    assert parts[0][0].dtype == torch.float32
    assert list(batches(part, [], 10)) == []
    assert numbers(next(batches(part, SPLIT.validation, 3))[0]) == [43, 44, 45]
    with pytest.raises(InputError, match="batch_size = 0"):
        next(batches(part, indices, 0))


def test_seeds_are_mixed_and_the_same_everywhere():
    assert derive_seed(0, "views", 1, 2) == GOLDEN_SEED
    seeds = {derive_seed(seed, rank, step) for seed in range(10) for rank in range(10) for step in range(10)}
    assert len(seeds) == 1000 and all(0 <= seed < 2**63 for seed in seeds)
    assert derive_seed(1, 23) != derive_seed(12, 3) and derive_seed("1") != derive_seed(1)
    ones = torch.tensor([bin(seed).count("1") for seed in seeds]).double()
    assert abs(ones.mean() - 31.5) < 0.5  # of 63 bits


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_images_move_once_and_batches_are_the_same(on_disk):
    alone = list(islice(stream().from_step(0), 6))
    for part in (in_memory(), on_disk):
        flow = stream(part, device="cuda", workers=1)
        for ours, theirs in zip(flow.from_step(0), alone, strict=False):
            assert ours.unlabelled[0].is_cuda and ours.labels.is_cuda
            assert torch.equal(ours.unlabelled[0].cpu(), theirs.unlabelled[0])
            assert torch.equal(ours.labels.cpu(), theirs.labels)


@pytest.mark.parametrize("source", ["memory", "files"])
def test_labelled_images_can_be_drawn_from_others_that_the_split_does_not_know(on_disk, source):
    """Of ten images after the part's own; unlabelled images stay those of the split."""
    part = (on_disk if source == "files" else in_memory()).extended(numbered()[:10] + 200, torch.arange(10) % 5)
    drawn = stream(part, labelled_pool=(0, *range(COUNT, COUNT + 10)))
    known = stream(part)
    seen = set()
    for batch, plain_batch in islice(zip(drawn.from_step(0), known.from_step(0), strict=True), 12):
        values = numbers(batch.labelled[0])
        seen |= set(values)
        assert batch.labels.tolist() == [(value - 200 if value >= 200 else value) % 5 for value in values]
        assert torch.equal(batch.unlabelled[0], plain_batch.unlabelled[0])
    assert seen == {0, *range(200, 210)}


def test_a_pool_beyond_the_images_is_refused():
    with pytest.raises(InputError, match=f"index {COUNT} of {COUNT}"):
        stream(labelled_pool=(*range(4), COUNT))


def test_labels_alone_make_epochs_of_their_own():
    """Without unlabelled images: every labelled image once an epoch, in batches of which the last is full too."""
    flow = stream(labelled=3, unlabelled=None, unlabelled_views=())
    assert flow.steps_per_epoch == 3
    seen = list(islice(flow.from_step(0), 10))
    assert all(batch.unlabelled == () and batch.labels.tolist() == [n % 5 for n in numbers(batch.labelled[0])]
               for batch in seen)  # fmt: skip
    drawn = list(chain.from_iterable(numbers(batch.labelled[0]) for batch in seen))
    assert [sorted(drawn[i : i + 10]) for i in (0, 10, 20)] == [list(range(10))] * 3
    with_unlabelled = list(islice(stream(labelled=3).from_step(0), 10))
    assert drawn == list(chain.from_iterable(numbers(batch.labelled[0]) for batch in with_unlabelled))
    halves = [stream(labelled=4, unlabelled=None, rank=rank, world=2).from_step(0) for rank in (0, 1)]
    whole = stream(labelled=4, unlabelled=None).from_step(0)
    for _ in range(5):
        parts = [numbers(next(half).labelled[0]) for half in halves]
        assert parts[0] + parts[1] == numbers(next(whole).labelled[0])


def test_files_without_unlabelled_images(on_disk):
    ours, theirs = (next(stream(part, unlabelled=None, labelled=5).from_step(1)) for part in (on_disk, in_memory()))
    assert torch.equal(ours.labelled[0], theirs.labelled[0]) and ours.unlabelled == ()


def test_unlabelled_images_alone():
    """The batches of a stream with labels, but for these; its epochs too."""
    alone, both = stream(labelled=None), stream()
    assert alone.steps_per_epoch == both.steps_per_epoch
    for ours, theirs in islice(zip(alone.from_step(0), both.from_step(0), strict=True), 12):
        assert ours.labelled == () and ours.labels.shape == (0,) and ours.labels.dtype == torch.int64
        assert torch.equal(ours.unlabelled[0], theirs.unlabelled[0])
    assert alone.indices(3)[0].tolist() == []


def test_unlabelled_images_of_a_pool():
    flow = stream(unlabelled_pool=range(43, COUNT), unlabelled=3)
    assert flow.steps_per_epoch == 7 // 3
    seen = [numbers(batch.unlabelled[0]) for batch in islice(flow.from_step(0), 40)]
    for first, second in zip(seen[::2], seen[1::2], strict=True):
        assert len({*first, *second}) == 6
    assert set(chain.from_iterable(seen)) == set(range(43, COUNT))
    labelled = [numbers(batch.labelled[0]) for batch in islice(flow.from_step(0), 5)]
    assert labelled == [numbers(batch.labelled[0]) for batch in islice(stream().from_step(0), 5)]


@pytest.mark.parametrize(("world", "repetitions"), [(1, 2), (1, 4), (2, 2)])
def test_repetitions(world, repetitions):
    """Counted: twelve images in batches of eight, each b times an epoch, all b times in one process's batch."""
    options = dict(labelled=8, unlabelled=None, labelled_pool=range(12), labelled_views=(plain, noisy))
    flows = [stream(rank=rank, world=world, repetitions=repetitions, **options) for rank in range(world)]
    steps = 12 // (8 // repetitions)
    assert [flow.steps_per_epoch for flow in flows] == [steps] * world
    running = [flow.from_step(0) for flow in flows]
    for _ in range(3):
        epoch = []
        for _ in range(steps):
            shares = [next(flow) for flow in running]
            for share in shares:
                drawn = numbers(share.labelled[0])
                assert len(drawn) == 8 // world and share.labels.tolist() == [n % 5 for n in drawn]
                assert [drawn.count(n) for n in drawn] == [repetitions] * len(drawn)
                assert len((share.labelled[1] - share.labelled[0])[:, 0, 0, 0].unique()) == len(drawn)
            together = list(chain.from_iterable(numbers(share.labelled[0]) for share in shares))
            assert len(set(together)) == 8 // repetitions
            epoch += together
        assert [epoch.count(n) for n in range(12)] == [repetitions] * 12


def test_repetitions_of_unlabelled_images():
    flow = stream(repetitions=2)
    assert flow.steps_per_epoch == 43 // 4
    seen = [batch.unlabelled[0] for batch in islice(flow.from_step(0), 10)]
    drawn = list(chain.from_iterable(numbers(images) for images in seen))
    assert {drawn.count(n) for n in drawn} == {2} and len(set(drawn)) == 40
    whole = list(islice(stream(labelled=2, unlabelled=4).from_step(0), 10))
    assert [sorted(numbers(images)[:4]) for images in seen] == [sorted(numbers(batch.unlabelled[0])) for batch in whole]


class Copies(TorchDispatchMode):
    """Notes every copy from one kind of device to another, and whether it is waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, str, bool]] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if function is torch.ops.aten._to_copy.default and result.device.type != args[0].device.type:
            self.seen.append((args[0].device.type, result.device.type, not kwargs.get("non_blocking", False)))
        return result


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("place", ["memory", "disk"])
def test_nothing_waits_for_the_device(on_disk, place, whole, monkeypatch):
    """The meta device has nothing to read back, and copies to it are those to any other."""
    part = in_memory() if place == "memory" else on_disk
    if whole:
        part = Part(Photographs(on_disk.images.paths, 4), part.labels)
    with Copies() as once:
        flow = stream(part, device="meta", labelled_views=(plain, plain), repetitions=2)
    assert all(seen[:2] == ("cpu", "meta") for seen in once.seen)  # the images and labels, before the first step
    monkeypatch.setattr("torch.Generator", lambda device="cpu", make=torch.Generator: make())  # meta has none
    with Copies() as copies:
        taken = list(islice(flow.from_step(0), 3))
        evaluated = list(batches(part, SPLIT.validation, 3, "meta"))
    assert all(batch.unlabelled[0].is_meta and batch.labels.is_meta for batch in taken)
    assert all(images.is_meta and labels.is_meta for images, labels in evaluated)
    assert len(copies.seen) >= 2 * 3 + 2 * 3 and set(copies.seen) == {("cpu", "meta", False)}


# --- whole photographs ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def photographs(tmp_path_factory) -> Part:
    """Of 40 by 60 pixels: red counts rows, green columns, blue the photographs."""
    folder = tmp_path_factory.mktemp("photographs")
    rows, columns = np.mgrid[0:40, 0:60].astype(np.uint8)
    for i in range(COUNT):
        Image.fromarray(np.stack([6 * rows, 4 * columns, np.full_like(rows, i)], 2)).save(folder / f"{i}.png")
    return Part(Photographs([folder / f"{i}.png" for i in range(COUNT)], 8), torch.arange(COUNT) % 5)


def blues(images: torch.Tensor) -> list[int]:
    return (images[:, 2, 4, 4] * 255).round().long().tolist()


def test_every_view_of_a_photograph_is_a_part_of_its_own(photographs):
    flow = stream(photographs, labelled_views=(plain, plain), unlabelled_views=(plain, plain, plain), repetitions=2)
    batch = next(flow.from_step(2))
    labelled, unlabelled = flow.indices(2)
    assert batch.labels.tolist() == [i % 5 for i in labelled.tolist()]
    for views, indices in ((batch.labelled, labelled), (batch.unlabelled, unlabelled)):
        assert all(blues(view) == indices.tolist() for view in views)
        parts = [image[:2].numpy().tobytes() for view in views for image in view]
        assert len(set(parts)) == len(parts)  # also of the same photograph, repeated or in another view
    assert torch.equal(batch.indices, unlabelled)


@pytest.mark.parametrize("workers", [0, 2])
def test_parts_of_photographs_depend_on_seed_rank_and_step_alone(photographs, workers):
    options = dict(labelled_views=(noisy,), unlabelled_views=(plain, noisy))
    ours = list(islice(stream(photographs, workers=workers, **options).from_step(3), 4))
    assert_equal(ours, islice(stream(photographs, **options).from_step(0), 3, 7))
    others = [
        next(stream(photographs, **options, **changes).from_step(3)).unlabelled[0][:4]
        for changes in ({}, {"seed": 1}, {"rank": 1, "world": 2}, {"rank": 0, "world": 2})
    ]
    assert torch.equal(others[0], ours[0].unlabelled[0][:4])
    assert not any(torch.equal(others[0], other) for other in others[1:3])
    again = next(stream(photographs, **options).from_step(4)).unlabelled[0][:4]
    assert not torch.equal(again, others[0])


def test_processes_draw_parts_of_their_own(photographs):
    """Of one photograph, which is there as often as there are images."""
    part = Part(Photographs(photographs.images.paths[:1] * COUNT, 8), photographs.labels)
    first, second = (next(stream(part, rank=rank, world=2).from_step(0)) for rank in (0, 1))
    assert not torch.equal(first.labelled[0], second.labelled[0])


def test_photographs_without_views_still_have_labels(photographs):
    flow = stream(photographs, labelled_views=())
    batch = next(flow.from_step(0))
    assert batch.labelled == () and batch.labels.tolist() == [i % 5 for i in flow.indices(0)[0].tolist()]
    assert blues(batch.unlabelled[0]) == flow.indices(0)[1].tolist()


def test_images_that_join_photographs_come_as_they_are(photographs):
    more = torch.full((6, 3, 8, 8), 200, dtype=torch.uint8)
    part = photographs.extended(more, torch.arange(6) % 5)
    flow = stream(part, labelled_pool=(0, 1, *range(COUNT, COUNT + 6)), labelled=8, labelled_views=(plain, plain))
    batch = next(flow.from_step(0))
    indices = flow.indices(0)[0].tolist()
    assert blues(batch.labelled[1]) == [i if i < COUNT else 200 for i in indices]
    assert len({view[row].numpy().tobytes() for view in batch.labelled for row in range(8)}) == 5


def test_evaluation_sees_the_middle_of_photographs(photographs):
    images, labels = next(batches(photographs, [7, 3], 2))
    assert blues(images) == [7, 3] and labels.tolist() == [2, 3]
    # 40 rows become 9, of which 8 are kept; 60 columns 13: the centre of the square lies at the photograph's
    centre = (images[0, :2] * 255).mean((1, 2))
    assert abs(centre[0] - 6 * 19.5) < 6 * 3 and abs(centre[1] - 4 * 29.5) < 4 * 3
    spread = (images[0, :, :, 4] * 255)[0].diff().mean()
    assert spread.item() == pytest.approx(6 * 40 / 9, abs=2)
