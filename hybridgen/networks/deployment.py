"""Classifiers written for deployment, as ONNX or as a program of torch.export, with what they tell of themselves.

Both take `images` in [0, 1], `[n, 3, height, width]` of any number n, and give `logits` `[n, classes]`.
"""

import json
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram

from hybridgen.networks.classifiers import About, Classifier
from hybridgen.types import InputError

TOLERANCE = 1e-4
"""By which logits of what is written may differ from the classifier's, as a part of the largest of these."""

BATCHES = (1, 3)
"""Images on which they are compared: other numbers than the program is traced with."""

ONNX = ("onnx", "onnxscript", "onnxruntime")
"""Packages without which there is no ONNX."""


def write_program(classifier: Classifier, about: About, path: Path) -> float:
    """Write a .pt2 file that `torch.export.load` reads, whole or not at all; its extra files are `metadata`. Gives the
    largest difference of its logits, as a part of the largest logit. InputError where it is above `TOLERANCE`."""
    from hybridgen.files import written_aside  # with torchvision, which takes its time

    program = _program(classifier, about)
    with written_aside(path) as aside:
        with aside.open("wb") as file:
            torch.export.save(program, file, extra_files=metadata(about))
        with aside.open("rb") as file:
            loaded = torch.export.load(file).module()
        return _compared(loaded, classifier, about, path)


def write_onnx(classifier: Classifier, about: About, path: Path) -> float:
    """The same as an .onnx file, with `metadata` as its metadata_props. InputError also where packages are missing."""
    if missing := [name for name in ONNX if find_spec(name) is None]:
        raise InputError(f"{path}: ONNX needs {', '.join(missing)}; pip install 'hybridgen[onnx]'")
    import onnxruntime

    from hybridgen.files import written_aside  # with torchvision, which takes its time

    names = dict(input_names=["images"], output_names=["logits"], dynamic_shapes=({0: "n"},))
    with _quiet():
        made = torch.onnx.export(_program(classifier, about), dynamo=True, verbose=False, **names)
    assert made is not None
    made.model.metadata_props.update(metadata(about))
    with written_aside(path) as aside:
        made.save(aside)
        session = onnxruntime.InferenceSession(aside.read_bytes(), providers=["CPUExecutionProvider"])
        run = lambda images: torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])
        return _compared(run, classifier, about, path)


def metadata(about: About) -> dict[str, str]:
    """What a file tells of itself: lists in JSON, and no `split_hash` where that is not known."""
    told = {
        "network": about.network,
        "classes": json.dumps(list(about.classes)),
        "image_size": str(about.image_size),
        "seen": about.seen,
        "mean": json.dumps(list(about.mean)),
        "std": json.dumps(list(about.std)),
    }
    return told | ({} if about.split_hash is None else {"split_hash": about.split_hash})


def _program(classifier: Classifier, about: About) -> ExportedProgram:
    images = torch.rand(2, 3, about.image_size, about.image_size, generator=torch.Generator().manual_seed(0))
    with _quiet(), torch.no_grad():
        return torch.export.export(classifier, (images,), dynamic_shapes=({0: Dim("n")},))


@torch.no_grad()
def _compared(run: Callable[[Tensor], Tensor], classifier: Classifier, about: About, path: Path) -> float:
    generator, apart = torch.Generator().manual_seed(1), 0.0
    for count in BATCHES:
        images = torch.rand(count, 3, about.image_size, about.image_size, generator=generator)
        expected, found = classifier(images), run(images)
        if found.shape != expected.shape or not found.isfinite().all():
            raise InputError(f"{path}: not written, since it gives other than finite logits {list(expected.shape)}")
        apart = max(apart, ((found - expected).abs().max() / expected.abs().max()).item())
    if not apart <= TOLERANCE:
        raise InputError(
            f"{path}: not written, since its logits differ by {apart:.1e} of the largest from the classifier's, more "
            f"than {TOLERANCE:.0e}"
        )
    return apart


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what exporters say of themselves."""
    level = logging.root.manager.disable
    with warnings.catch_warnings(action="ignore"):
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(level)
