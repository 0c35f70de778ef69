"""What a batch transform is called with and gives back, as in torchvision's `transforms.v2` (MixUp, CutMix)."""

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from jaxtyping import Bool
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten
from torch.utils.data import get_worker_info

from hybridgen.mixing.masks import Generator
from hybridgen.mixing.mixing import Targets, as_targets
from hybridgen.types import InputError

LabelsGetter = Literal["default"] | Callable[[Any], Tensor] | None
"""A function of the sample; or what stands second in it, or there or in the sample itself under `labels`, or under the
first name that has `label` in it."""

Change = Callable[[list[Tensor], Targets], tuple[list[Tensor], Targets]]


def check_transform(probability: float, labels_getter: LabelsGetter) -> None:
    """InputError for a probability outside [0, 1], and what is no labels getter."""
    if not 0 <= probability <= 1:
        raise InputError(f"probability: {probability} is outside [0, 1]")
    if not (labels_getter is None or labels_getter == "default" or callable(labels_getter)):
        raise InputError(f"labels_getter: {labels_getter!r} is neither 'default' nor a function of the sample")


def part_workers(generator: Generator, begun: int | None) -> int | None:
    """In a data loader's worker, let draws differ from the other workers' and from those of its next epoch: all have
    the generator as it was when they began. It is seeded anew, once, by its own seed and the worker's, which is given
    back to be given as `begun` at the next call."""
    worker = None if generator is None else get_worker_info()
    if generator is None or worker is None or worker.seed == begun:
        return begun
    generator.manual_seed((generator.initial_seed() + worker.seed) % 2**63)
    return worker.seed


def toss(probability: float, generator: Generator, device: torch.device) -> bool | Bool[Tensor, ""]:
    """Whether to change a batch that lies on `device`. Drawn on a device, or while a graph is compiled, it stays a
    tensor, so that nothing waits and no graph breaks; without a generator it is drawn on a CPU."""
    if probability in (0, 1):
        return bool(probability)
    compiling = torch.compiler.is_compiling()
    if generator is not None:
        device = generator.device
    elif not compiling:
        device = torch.device("cpu")
    coin = torch.rand((), generator=generator, device=device) < probability
    return bool(coin) if coin.device.type == "cpu" and not compiling else coin


def change_sample(
    inputs: tuple[Any, ...],
    labels_getter: LabelsGetter,
    num_classes: int | None,
    change: Change,
    *,
    unknown: bool = False,
) -> Any:
    """The sample, `inputs` or the only one of them, with changed images and labels and all else as it is.

    Images are all `tv_tensors.Image` `[b c h w]` and `Video` `[b t c h w]` in it, or without these the first plain
    tensor that is not the labels. `change` gets them as plain tensors of floats, those of uint8 as multiples of 1/255,
    and class probabilities (`as_targets`). What it gives takes the images' kind, dtype (levels are rounded to the
    nearest) and memory format; gradient passes.

    InputError for a sample without labels or images, of which they are not entries of their own, or that has PIL
    images, boxes, key points or masks; for images that are neither uint8 nor floats, of another rank, or not as many as
    labels.
    """
    from PIL.Image import Image as PILImage
    from torchvision import tv_tensors  # which takes its time

    sample = inputs if len(inputs) > 1 else inputs[0]
    entries, structure = tree_flatten(sample)
    refused = (PILImage, tv_tensors.BoundingBoxes, tv_tensors.KeyPoints, tv_tensors.Mask)
    if others := [type(entry).__name__ for entry in entries if isinstance(entry, refused)]:
        raise InputError(f"sample: {others[0]}; PIL images, bounding boxes, key points and masks cannot be mixed")
    labels = _labels(sample) if labels_getter == "default" else labels_getter and labels_getter(sample)
    if not isinstance(labels, Tensor):
        raise InputError(f"labels: {type(labels).__name__}; a tensor is needed")
    targets = as_targets(labels, num_classes, unknown=unknown)

    # Places of labels and images
    label = next((place for place, entry in enumerate(entries) if entry is labels), None)
    if label is None:
        raise InputError("labels: what labels_getter gives is no entry of the sample")
    kinds = (tv_tensors.Image, tv_tensors.Video)
    places = [place for place, entry in enumerate(entries) if isinstance(entry, kinds)] or [
        place
        for place, entry in enumerate(entries)
        if isinstance(entry, Tensor) and not isinstance(entry, tv_tensors.TVTensor) and place != label
    ][:1]
    if not places:
        raise InputError("images: none in the sample")
    images = [_plain(entries[place]) for place in places]
    for place, each in zip(places, images, strict=True):
        _check(each, 5 if isinstance(entries[place], tv_tensors.Video) else 4, len(targets))

    changed, entries[label] = change([_floats(each) for each in images], targets)
    for place, new, old in zip(places, changed, images, strict=True):
        kind, new = type(entries[place]), _like(new, old)
        entries[place] = new.as_subclass(kind) if kind in kinds else new
    return tree_unflatten(entries, structure)


def _labels(sample: Any) -> Any:
    if isinstance(sample, tuple | list) and len(sample) > 1:
        sample = sample[1]
    if isinstance(sample, Tensor):
        return sample
    names = [name for name in sample if "label" in str(name).lower()] if isinstance(sample, Mapping) else []
    if not names:
        raise InputError(
            "labels: neither the second entry of the sample nor under a name like 'labels'; give a labels_getter"
        )
    return sample[next((name for name in names if str(name).lower() == "labels"), names[0])]


def _check(images: Tensor, rank: int, count: int) -> None:
    if images.ndim != rank:
        shape = "[batch, channels, height, width]" if rank == 4 else "[batch, frames, channels, height, width]"
        raise InputError(f"images: of shape {tuple(images.shape)}; {shape} is needed")
    if images.dtype != torch.uint8 and not images.is_floating_point():
        raise InputError(f"images: {images.dtype}; uint8 or floating point is needed")
    if len(images) != count:
        raise InputError(f"labels: {count} for {len(images)} images")


def _plain(images: Tensor) -> Tensor:
    """Of no subclass, whose attributes compiled graphs cannot ask for."""
    if type(images) is Tensor:
        return images
    with torch._C.DisableTorchFunctionSubclass():
        return images.view_as(images)


def _floats(images: Tensor) -> Tensor:
    return images.float() / 255 if images.dtype == torch.uint8 else images


def _like(images: Tensor, old: Tensor) -> Tensor:
    """Of the same dtype and memory format."""
    if old.dtype == torch.uint8:
        images = (images * 255).round_().clamp_(0, 255)
    images = images.to(old.dtype)
    if images.stride() == old.stride():
        return images
    last = old.ndim == 4 and old.is_contiguous(memory_format=torch.channels_last)
    return images.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
