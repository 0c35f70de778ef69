"""Endless training batches and plain evaluation batches, every draw a function of (seed, rank, step)."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import count

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from hybridgen.data.datasets import ImageSource, InMemory, Part
from hybridgen.data.splits import Split
from hybridgen.types import Batch, Images, InputError, Labels

View = Callable[[Images, torch.Generator], Images]
"""One random augmentation of a batch in [0, 1], each image with parameters of its own."""


def derive_seed(*parts: int | str) -> int:
    """A seed in [0, 2^63) that is well mixed and the same everywhere, from what it is to depend on."""
    digest = hashlib.sha256(json.dumps(parts).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


class Stream:
    """Training batches of one process.

    `labelled` and `unlabelled` are global batch sizes, of which each of `world` processes takes its slice.
    Unlabelled images are drawn from all that the split labels or leaves unlabelled, in a new order every
    epoch; what does not fill a batch at the end of an epoch is left out of that epoch. Labelled images are the
    split's, or those of `labelled_pool` (indices of the part, of images that the split need not know), and come
    in orders that follow on one another without a gap. With `unlabelled` None a batch has no unlabelled images,
    and an epoch is as many steps as the labelled ones fill batches. The orders depend on the seed alone, the
    draws of step k's augmentation on seed, rank and k.

    Images in memory are moved to the device once, as uint8. Files are decoded by `workers` processes (0: by
    this one) and nothing is kept of them.

    Raises InputError for batch sizes that are not positive, not divisible by `world` or larger than the data.
    """

    def __init__(
        self,
        part: Part,
        split: Split,
        *,
        labelled: int,
        unlabelled: int | None,
        labelled_views: Sequence[View],
        unlabelled_views: Sequence[View] = (),
        seed: int,
        rank: int = 0,
        world: int = 1,
        device: torch.device | str = "cpu",
        workers: int = 0,
        labelled_pool: Sequence[int] | None = None,
    ) -> None:
        pools = {
            "labelled": split.labelled if labelled_pool is None else labelled_pool,
            "unlabelled": sorted(split.labelled + split.unlabelled),
        }
        sizes = {"labelled": labelled} | ({} if unlabelled is None else {"unlabelled": unlabelled})
        for field, size in sizes.items():
            _check_batch_size(field, size, len(pools[field]), world)
        if not 0 <= rank < world:
            raise InputError(f"rank = {rank}: outside 0..{world - 1}")
        if workers < 0:
            raise InputError(f"workers = {workers}: must not be negative")
        last = max(max(pools[field]) for field in sizes)
        if last >= len(part):
            raise InputError(f"split: index {last} of {len(part)} training images")
        self._labelled = _Draws(pools["labelled"], labelled, rank, world, derive_seed(seed, "labelled"))
        self._unlabelled = _Draws(pools["unlabelled"], unlabelled or 0, rank, world, derive_seed(seed, "unlabelled"))
        self._views = (tuple(labelled_views), tuple(unlabelled_views) if unlabelled else ())
        self._seed, self._rank, self._workers = seed, rank, workers
        self._device = torch.device(device)
        self._images = part.images.to(self._device) if isinstance(part.images, InMemory) else part.images
        self._labels = part.labels.to(self._device)
        field = list(sizes)[-1]
        self.steps_per_epoch: int = len(pools[field]) // sizes[field]

    def from_step(self, step: int) -> Iterator[Batch]:
        """Batches of the steps `step`, `step` + 1, … without end."""
        if step < 0:
            raise InputError(f"step = {step}: must not be negative")
        return self._batches(step)

    def indices(self, step: int) -> tuple[Int64[Tensor, " labelled"], Int64[Tensor, " unlabelled"]]:
        """Which labelled and unlabelled images of the part this process sees at `step`."""
        epoch, within = divmod(step, self.steps_per_epoch)
        start = epoch * len(self._unlabelled.pool) + within * self._unlabelled.batch_size
        return self._labelled.at(step * self._labelled.batch_size), self._unlabelled.at(start)

    def _batches(self, step: int) -> Iterator[Batch]:
        keys = ((number, torch.cat(self.indices(number))) for number in count(step))
        for number, indices, pixels in _gathered(self._images, keys, self._device, self._workers):
            generator = torch.Generator(self._device)
            generator.manual_seed(derive_seed(self._seed, "views", self._rank, number))
            sizes = (self._labelled.share, self._unlabelled.share)
            labels = self._labels[indices[: sizes[0]].to(self._device)]
            images = _as_images(pixels).split(sizes)
            labelled, unlabelled = (
                tuple(view(group, generator) for view in views)
                for group, views in zip(images, self._views, strict=True)
            )
            yield Batch(labelled, labels, unlabelled)


def batches(
    part: Part,
    indices: Int64[Tensor, " n"] | Sequence[int],
    batch_size: int,
    device: torch.device | str = "cpu",
    workers: int = 0,
) -> Iterator[tuple[Images, Labels]]:
    """Un-augmented images in [0, 1] and their labels in the order of `indices`; the last may be short."""
    if batch_size <= 0:
        raise InputError(f"batch_size = {batch_size}: must be positive")
    device = torch.device(device)
    chunks = enumerate(torch.as_tensor(indices, dtype=torch.int64).cpu().split(batch_size))
    keys = ((number, chunk) for number, chunk in chunks if len(chunk))
    for _, chunk, pixels in _gathered(part.images, keys, device, workers):
        yield _as_images(pixels), part.labels[chunk].to(device)


def _check_batch_size(field: str, size: int, available: int, world: int) -> None:
    if size <= 0:
        raise InputError(f"{field}_batch = {size}: a batch needs at least one {field} image")
    if size % world:
        raise InputError(f"{field}_batch = {size}: the global batch does not divide among {world} processes")
    if size > available:
        raise InputError(f"{field}_batch = {size}: larger than the {available} {field} images that there are")


def _as_images(pixels: UInt8[Tensor, "b 3 h w"]) -> Images:
    return pixels.float().div_(255)


class _Draws:
    """A pool's permutations, one after the other without end, and a process's slices of global batches."""

    def __init__(self, pool: Sequence[int], batch_size: int, rank: int, world: int, seed: int) -> None:
        self.pool = torch.tensor(pool, dtype=torch.int64)
        self.batch_size = batch_size
        self.share = batch_size // world
        self._offset = rank * self.share
        self._seed = seed
        self._known: dict[int, Tensor] = {}

    def at(self, start: int) -> Int64[Tensor, " share"]:
        """This process's images of the global batch that begins at place `start` of the endless order."""
        if not self.share:
            return self.pool[:0]
        first, last = start + self._offset, start + self._offset + self.share
        epochs = range(first // len(self.pool), (last - 1) // len(self.pool) + 1)
        order = torch.cat([self._order(epoch) for epoch in epochs])
        return order[first - epochs[0] * len(self.pool) :][: self.share]

    def _order(self, epoch: int) -> Tensor:
        if epoch not in self._known:
            generator = torch.Generator().manual_seed(derive_seed(self._seed, epoch))
            order = self.pool[torch.randperm(len(self.pool), generator=generator)]
            self._known = {known: kept for known, kept in self._known.items() if known == epoch - 1}
            self._known[epoch] = order
        return self._known[epoch]


def _gathered(
    images: ImageSource, keys: Iterable[tuple[int, Tensor]], device: torch.device, workers: int
) -> Iterator[tuple[int, Tensor, UInt8[Tensor, "b 3 h w"]]]:
    """(number, indices, pixels on the device) for each (number, indices), in order."""
    if isinstance(images, InMemory):
        for number, indices in keys:
            yield number, indices, images.gather(indices).to(device)
        return
    loader = DataLoader(
        _Decoding(images),
        sampler=keys,
        batch_size=None,
        num_workers=workers,
        pin_memory=device.type == "cuda",
        generator=torch.Generator(),  # or else it would draw from the global one
    )
    for number, indices, pixels in loader:
        if isinstance(pixels, InputError):
            raise pixels
        yield number, indices, pixels.to(device, non_blocking=True)


class _Decoding(Dataset):
    """A worker's part of `_gathered`. An error travels as a value: raised, it would arrive as a traceback."""

    def __init__(self, images: ImageSource) -> None:
        self.images = images

    def __getitem__(self, key: tuple[int, Tensor]) -> tuple[int, Tensor, Tensor | InputError]:
        number, indices = key
        try:
            return number, indices, self.images.gather(indices)
        except InputError as error:
            return number, indices, InputError(*error.args)
