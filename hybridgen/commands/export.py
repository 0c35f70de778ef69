"""The command `export`: a finished run's classifier for deployment."""

from pathlib import Path

import tyro

from hybridgen.errors import InputError
from hybridgen.settings import settings

SUFFIXES = (".onnx", ".pt2")


@settings
class Export:
    """Write a finished run's classifier for deployment: as ONNX, or as a program of torch.export.

    MODEL is a run's folder (runs/scimix_fixmatch/scimix-seed0) or its network.safetensors. What is written takes
    `images`, float32 [n, 3, height, width] in [0, 1] and any number of them, standardises them itself and gives their
    `logits` [n, classes]. It has names of classes, size of images and split as metadata, and is compared with the
    classifier before it takes its name. For timm and torchvision, network.safetensors is the state dict of their own
    networks as it is.
    """

    model: tyro.conf.Positional[Path]
    """A finished run's folder, or its network.safetensors."""
    out: Path
    """File to write: .onnx (with the packages of hybridgen[onnx]) or .pt2 (torch.export)."""

    def run(self) -> None:
        if self.out.suffix.lower() not in SUFFIXES:
            raise InputError(f"--out {self.out}: a {' or '.join(SUFFIXES)} file is needed")
        if self.out.exists():
            raise InputError(f"--out {self.out}: is there already; give another name, or remove it")
        from hybridgen.evaluation.finished import deployed
        from hybridgen.networks.classifiers import about_classifier, load_classifier
        from hybridgen.networks.deployment import TOLERANCE, write_onnx, write_program

        path = deployed(self.model)
        about, (classifier, classes, side) = about_classifier(path), load_classifier(path)
        write = write_onnx if self.out.suffix.lower() == ".onnx" else write_program
        apart = write(classifier, about, self.out)
        print(
            f"{self.out}: {about.network}, of images [n, 3, {side}, {side}] in [0, 1], {len(classes)} classes; its "
            f"logits are within {apart:.1e} of the classifier's, as a part of the largest ({TOLERANCE:.0e} is allowed)"
        )
