"""Class activation maps of classifiers: where networks see a class."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import fill

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from hybridgen.evaluation.figures import Cell, image_table
from hybridgen.evaluation.mixing_studies import Inputs
from hybridgen.evaluation.studies import Finding, apart
from hybridgen.evaluation.transfer import aligned
from hybridgen.networks.classifiers import Classifier, load_classifier
from hybridgen.types import Images, InputError

ROWS = 6
"""Images in a picture of maps."""


def class_activation(
    classifier: Classifier, images: Images, classes: Int64[Tensor, "batch chosen"]
) -> tuple[Float[Tensor, "batch chosen rows columns"], Float[Tensor, "batch chosen"]]:
    """Maps of some classes of each image, and their probabilities, without gradient, by a `Classifier` in evaluation
    mode.

    Zhou et al. 2016, equation 2: the last feature map, weighted by the class's weights in the linear layer after its
    mean. They are taken as the logit's gradient, summed over the map's places, which is these very weights. Where the
    head is another, this is Grad-CAM (Selvaraju et al. 2017) before its ReLU, times the number of places.
    """
    with torch.no_grad():
        features = classifier.features(images)
    with torch.enable_grad():
        logits = classifier.classify(features.requires_grad_())
        assert isinstance(logits, Tensor)  # of one head
        maps = []
        for chosen in classes.unbind(1):
            (gradient,) = torch.autograd.grad(logits.gather(1, chosen[:, None]).sum(), features, retain_graph=True)
            maps.append((gradient.sum(dim=(2, 3), keepdim=True) * features.detach()).sum(dim=1))
    return torch.stack(maps, dim=1), logits.detach().softmax(dim=1).gather(1, classes)


def share_inside(
    maps: Float[Tensor, "batch chosen rows columns"], regions: Float[Tensor, "batch chosen height width"]
) -> Float[Tensor, "batch chosen"]:
    """Part of each map inside its region, in [0, 1]: of what is above zero, brought to the region's size bilinearly.

    0 for a map that is nowhere above zero. A map that is the same everywhere has the region's share of the area.
    """
    large = F.interpolate(maps.clamp(min=0), size=regions.shape[2:], mode="bilinear")
    return (large * regions).sum(dim=(2, 3)) / large.sum(dim=(2, 3)).clamp(min=torch.finfo(large.dtype).tiny)


def present_classes(inputs: Inputs, most: int = 3) -> Int64[Tensor, "batch chosen"]:
    """The classes in each image's target, at most so many, by their share; -1 where an image has fewer than others."""
    shares, classes = inputs.targets.sort(dim=1, descending=True, stable=True)
    return classes.masked_fill(shares <= 0, -1)[:, : min(most, int((shares > 0).sum(dim=1).max()))]


def cam(
    networks: Mapping[str, Classifier],
    inputs: Inputs,
    chosen: Int64[Tensor, "batch chosen"],
    classes: Sequence[str],
    names: Sequence[str],
) -> Finding:
    """Maps of the chosen classes of each image (-1 for none) by each network (RecursiveMix, figures 6 and S2).

    `classes` are the names of all classes, `names` those of the images. Rows of the picture are the first images,
    columns the networks, each with the classes. Where it is known what shows where, also the part of each map inside
    its class's region, and inside the object there, beside their part of the area, which is what a map has that
    locates nothing. InputError for two images of one name.
    """
    if len(set(names)) < len(names):
        raise InputError(f"names: {', '.join(names)}; each image needs one of its own")
    there, slots = chosen >= 0, chosen.clamp(min=0)
    regions = {}
    if inputs.places is not None:
        region = (inputs.places.unsqueeze(1) == chosen[:, :, None, None]).float()
        if (inputs.places != inputs.places[:, :1, :1]).any():
            regions["region"] = region
        if inputs.objects is not None:
            regions["object"] = region * inputs.objects.unsqueeze(1)
    keys = ["probability", *(f"{key}{name}" for name in regions for key in ("inside_", "area_"))]

    values = [
        {"image": name, "classes": [{"class": classes[c], "networks": {}} for c in row if c >= 0]}
        for name, row in zip(names, chosen.tolist(), strict=True)
    ]
    means: dict[str, dict[str, float]] = {}
    cells: dict[str, list[Cell | None]] = {
        name: [Cell(image)] for name, image in zip(names[:ROWS], inputs.images, strict=False)
    }
    for network, classifier in networks.items():
        maps, probabilities = class_activation(classifier, inputs.images, slots)
        figures = {"probability": probabilities}
        for name, region in regions.items():
            figures |= {f"inside_{name}": share_inside(maps, region), f"area_{name}": region.mean(dim=(2, 3))}
        means[network] = {key: each[there].mean().item() for key, each in figures.items()}
        for i, image in enumerate(values):
            for j, of_class in enumerate(image["classes"]):
                of_class["networks"][network] = {key: each[i, j].item() for key, each in figures.items()}
        for i, row in enumerate(cells.values()):
            for j, c in enumerate(chosen[i].tolist()):
                row.append(Cell(inputs.images[i], _caption(classes[c], figures, i, j), maps[i, j]) if c >= 0 else None)

    titles = [title for network in networks for title in (fill(network, 18), *[""] * (chosen.shape[1] - 1))]
    rows = [("", *(key.replace("_", " ") for key in keys))]
    rows += [(network, *(f"{of[key]:.3f}" for key in keys)) for network, of in means.items()]
    said = f"Means over {int(there.sum())} maps of {len(names)} images."
    if regions:
        said += " inside: the part of a map in its class's region; area: the region's part of the image."
    return Finding(
        {"networks": means, "images": values},
        f"{aligned(rows)}\n\n{said}\n",
        image_table(cells, ["image", *titles]),
    )


def _caption(name: str, figures: Mapping[str, Tensor], i: int, j: int) -> str:
    inside = [f"inside {figures[key][i, j]:.2f}" for key in ("inside_region", "inside_object") if key in figures]
    return "\n".join([f"{name}: p = {figures['probability'][i, j]:.2f}", *inside[:1]])


def load_networks(paths: Sequence[Path]) -> tuple[dict[str, Classifier], tuple[str, ...], int]:
    """Classifiers by what tells their files apart, their classes and the side of their images.

    InputError for none, one given twice, networks of different classes or sizes, and what `load_classifier` refuses.
    """
    if not paths or len(set(paths)) < len(paths):
        raise InputError(f"--networks: {' '.join(map(str, paths)) or 'none'}; one or more are needed, each once")
    loaded = [load_classifier(path) for path in paths]
    for path, (_, classes, image_size) in zip(paths, loaded, strict=True):
        if classes != loaded[0][1]:
            raise InputError(f"--networks: {path} knows the classes {', '.join(classes)}; the first one does not")
        if image_size != loaded[0][2]:
            raise InputError(f"--networks: {path} is for images of {image_size}; the first one for {loaded[0][2]}")
    names = apart([path.parts for path in paths]) if len(paths) > 1 else [paths[0].parent.name or paths[0].stem]
    return dict(zip(names, [each for each, *_ in loaded], strict=True)), *loaded[0][1:]
