"""Endless training batches and plain evaluation batches, every draw a function of (seed, rank, step)."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import copy
from itertools import count, cycle

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from hybridgen.data.datasets import Part
from hybridgen.data.sources import ImageSource, InMemory, crops_where_whole, holds_photographs, to_device
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

    `labelled` and `unlabelled` are global batch sizes, of which each of `world` processes takes its slice; None leaves
    these images out, and batches have `labelled` or `unlabelled` of no views. Unlabelled images are drawn from all that
    the split labels or leaves unlabelled, labelled ones from those that it labels, or from a pool: indices of the part,
    of images that the split need not know. Unlabelled images come in a new order every epoch; what does not fill a
    batch at its end is left out of that epoch. Labelled ones come in orders that follow on one another without a gap,
    whether unlabelled images are there or not. An epoch is as many steps as the unlabelled images fill batches, the
    labelled ones where there are no others. The orders depend on the seed alone, the draws of step k's augmentation on
    seed, rank and k.

    With `repetitions` b > 1 (MixMo's batch repetition, Ramé et al. 2021; Hoffer et al. 2020) a batch holds a b-th as
    many different images, all of them b times in turn, and an epoch has b times as many steps. Repeated images are
    augmented independently, as different ones are.

    Images in memory are moved to the device once, as uint8. Files are decoded by `workers` processes (0: by
    this one) and nothing is kept of them. Of whole photographs (`Photographs`) each view gets random parts of its own,
    which are cut out where the file is decoded, once for all views. Nothing waits for the device.

    Raises InputError for batch sizes that are not positive, not divisible by `world` and `repetitions`, or larger than
    the data, and if both are None. Errors say `asked`, such as `batch = 64`, where the user gave the size by another
    name or number than `labelled_batch = 192`.
    """

    def __init__(
        self,
        part: Part,
        split: Split,
        *,
        labelled: int | None,
        unlabelled: int | None,
        labelled_views: Sequence[View] = (),
        unlabelled_views: Sequence[View] = (),
        seed: int,
        rank: int = 0,
        world: int = 1,
        device: torch.device | str = "cpu",
        workers: int = 0,
        labelled_pool: Sequence[int] | None = None,
        unlabelled_pool: Sequence[int] | None = None,
        repetitions: int = 1,
        asked: str | None = None,
    ) -> None:
        pools = {
            "labelled": split.labelled if labelled_pool is None else labelled_pool,
            "unlabelled": sorted(split.labelled + split.unlabelled) if unlabelled_pool is None else unlabelled_pool,
        }
        given = {"labelled": labelled, "unlabelled": unlabelled}
        sizes = {field: size for field, size in given.items() if size is not None}
        if not sizes:
            raise InputError("labelled_batch, unlabelled_batch: both are None; give the size of one at least")
        if repetitions < 1:
            raise InputError(f"repetitions = {repetitions}: must be positive")
        for field, size in sizes.items():
            _check_batch_size(asked or f"{field}_batch = {size}", field, size, len(pools[field]), world, repetitions)
        if not 0 <= rank < world:
            raise InputError(f"rank = {rank}: outside 0..{world - 1}")
        if workers < 0:
            raise InputError(f"workers = {workers}: must not be negative")
        for field in sizes:
            for index in (min(pools[field]), max(pools[field])):
                if not 0 <= index < len(part):
                    raise InputError(f"split: index {index} of {len(part)} training images")
        self._labelled, self._unlabelled = (
            _Draws(pools[field], (size or 0) // repetitions, rank, world, derive_seed(seed, field))
            for field, size in given.items()
        )
        self._views = (tuple(labelled_views) if labelled else (), tuple(unlabelled_views) if unlabelled else ())
        self._whole = holds_photographs(part.images)
        self._seed, self._rank, self._world = seed, rank, world
        self._workers, self._repetitions = workers, repetitions
        self._device = torch.device(device)
        self._images = part.images.to(self._device) if isinstance(part.images, InMemory) else part.images
        self._labels = part.labels.to(self._device)
        field = list(sizes)[-1]
        self.steps_per_epoch: int = len(pools[field]) // (sizes[field] // repetitions)
        self.images_per_step: int = sum(sizes.values())

    def drawing(self, part: Part, *, labelled_pool: Sequence[int]) -> "Stream":
        """The same stream over a part that has more images, of which `labelled_pool` are the labelled."""
        other = copy(self)
        draws = self._labelled
        other._labelled = _Draws(labelled_pool, draws.batch_size, self._rank, self._world, draws.seed)
        other._images = part.images.to(self._device) if isinstance(part.images, InMemory) else part.images
        other._labels = part.labels.to(self._device)
        return other

    def from_step(self, step: int) -> Iterator[Batch]:
        """Batches of the steps `step`, `step` + 1, … without end."""
        if step < 0:
            raise InputError(f"step = {step}: must not be negative")
        return self._batches(step)

    def indices(self, step: int) -> tuple[Int64[Tensor, " labelled"], Int64[Tensor, " unlabelled"]]:
        """Which labelled and unlabelled images of the part this process sees at `step`."""
        epoch, within = divmod(step, self.steps_per_epoch)
        start = epoch * len(self._unlabelled.pool) + within * self._unlabelled.batch_size
        labelled, unlabelled = self._labelled.at(step * self._labelled.batch_size), self._unlabelled.at(start)
        return labelled.repeat(self._repetitions), unlabelled.repeat(self._repetitions)

    def _batches(self, step: int) -> Iterator[Batch]:
        # Parts of photographs are each view's own; other pixels serve all views of an image.
        copies = [max(1, len(views)) if self._whole else 1 for views in self._views]
        for number, indices, pixels in _gathered(self._images, self._keys(step, copies), self._device, self._workers):
            generator = torch.Generator(self._device)
            generator.manual_seed(derive_seed(self._seed, "views", self._rank, number))
            shares = [draws.share * self._repetitions for draws in (self._labelled, self._unlabelled)]
            places = to_device(indices, self._device)
            labels = self._labels[places[: shares[0]]]
            images = _as_images(pixels).split([shares[0]] * copies[0] + [shares[1]] * copies[1])
            labelled, unlabelled = (
                tuple(view(group, generator) for view, group in zip(views, cycle(groups), strict=False))
                for views, groups in zip(self._views, (images[: copies[0]], images[copies[0] :]), strict=True)
            )
            yield Batch(labelled, labels, unlabelled, places[len(places) - shares[1] :])

    def _keys(self, step: int, copies: Sequence[int]) -> Iterator["_Key"]:
        for number in count(step):
            indices = [own.repeat(times) for own, times in zip(self.indices(number), copies, strict=True)]
            seed = derive_seed(self._seed, "crops", self._rank, number) if self._whole else None
            yield number, torch.cat(indices), seed


def batches(
    part: Part,
    indices: Int64[Tensor, " n"] | Sequence[int],
    batch_size: int,
    device: torch.device | str = "cpu",
    workers: int = 0,
) -> Iterator[tuple[Images, Labels]]:
    """Un-augmented images in [0, 1] and their labels in the order of `indices`; the last may be short.

    Of whole photographs it is the middle.
    """
    if batch_size <= 0:
        raise InputError(f"batch_size = {batch_size}: must be positive")
    device = torch.device(device)
    chunks = enumerate(torch.as_tensor(indices, dtype=torch.int64).cpu().split(batch_size))
    keys = ((number, chunk, None) for number, chunk in chunks if len(chunk))
    for _, chunk, pixels in _gathered(part.images, keys, device, workers):
        yield _as_images(pixels), to_device(part.labels[chunk], device)


def _check_batch_size(asked: str, field: str, size: int, available: int, world: int, repetitions: int) -> None:
    if size <= 0:
        raise InputError(f"{asked}: a batch needs at least one {field} image")
    if size % world:
        raise InputError(f"{asked}: the global batch does not divide among {world} processes")
    if size // world % repetitions:
        raise InputError(
            f"repetitions = {repetitions}: does not divide the {size // world} {field} images of a process's batch"
        )
    if size // repetitions > available:
        different = f"{size // repetitions} different ones are more" if repetitions > 1 else "larger"
        raise InputError(f"{asked}: {different} than the {available} {field} images that there are")


def _as_images(pixels: UInt8[Tensor, "b 3 h w"]) -> Images:
    return pixels.float().div_(255)


class _Draws:
    """A pool's permutations, one after the other without end, and a process's slices of global batches."""

    def __init__(self, pool: Sequence[int], batch_size: int, rank: int, world: int, seed: int) -> None:
        self.pool = torch.tensor(pool, dtype=torch.int64)
        self.batch_size = batch_size
        self.share = batch_size // world
        self._offset = rank * self.share
        self.seed = seed
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
            generator = torch.Generator().manual_seed(derive_seed(self.seed, epoch))
            order = self.pool[torch.randperm(len(self.pool), generator=generator)]
            self._known = {known: kept for known, kept in self._known.items() if known == epoch - 1}
            self._known[epoch] = order
        return self._known[epoch]


_Key = tuple[int, Tensor, int | None]
"""A step's number, the indices of its images, and the seed of what is random about their reading."""


def _gathered(
    images: ImageSource, keys: Iterable[_Key], device: torch.device, workers: int
) -> Iterator[tuple[int, Tensor, UInt8[Tensor, "b 3 h w"]]]:
    """(number, indices, pixels on the device) for each key, in order."""
    if isinstance(images, InMemory):
        for number, indices, _ in keys:
            yield number, indices, to_device(images.gather(indices), device)
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
        yield number, indices, to_device(pixels, device)


class _Decoding(Dataset):
    """A worker's part of `_gathered`. An error travels as a value: raised, it would arrive as a traceback."""

    def __init__(self, images: ImageSource) -> None:
        self.images = images

    def __getitem__(self, index: _Key) -> tuple[int, Tensor, Tensor | InputError]:
        number, indices, seed = index
        try:
            if seed is None:
                return number, indices, self.images.gather(indices)
            return number, indices, crops_where_whole(self.images, indices, torch.Generator().manual_seed(seed))
        except InputError as error:
            return number, indices, InputError(*error.args)
