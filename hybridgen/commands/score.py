"""The command `score`: how well finished classifiers and their ensembles predict."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from pydantic import Field

from hybridgen.commands.options import Batch, Side, Threads
from hybridgen.errors import InputError
from hybridgen.settings import NUMBER, Seed, settings

if TYPE_CHECKING:
    import accelerate
    from torch import Tensor

    from hybridgen.data.datasets import Dataset, Part
    from hybridgen.evaluation.finished import Left
    from hybridgen.evaluation.predictions import Predictions
    from hybridgen.evaluation.scoring import Corrupted, Robustness

Severity = Annotated[int, Field(ge=1, le=5), NUMBER]


@settings
class ScoreRuns:
    """Score finished classifiers and their ensemble: accuracy, likelihood, calibration, diversity, corruptions.

    Of each, and of several together: top-1 and top-5, NLL, NLL_c (each half of the images at the temperature that is
    best for the other), ECE in 15 bins, Brier's score, area under the risk-coverage curve (AURC); of members their mean
    accuracy, disagreement, ratio-error and correlation of errors; with 95 % intervals.

    A run's folder (runs/fixmatch/fixmatch-seed0) stands for the network that it deployed, with several inputs for its
    members; a checkpoint for the network, or average, that was evaluated at that step. All are looked at on the runs'
    own test images. A file of predictions (.npz) has logits or probabilities [images, classes] or [members, images,
    classes], and labels [images]; it may have classes, indices, fingerprint, part, split_hash and ensemble.
    """

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Run folders, files network.safetensors, checkpoints, or npz files of predictions."""
    part: Literal["test", "validation", "train"] = "test"
    """Whose images: those of the test, those that the runs' split set aside, or the labelled ones that they trained on,
    as they are."""
    ensemble: Literal["logits", "probabilities"] = "logits"
    """What of several classifiers is averaged."""
    data: str | None = None
    """Data set, of the same classes; the runs' own unless given."""
    allow_other_data: bool = False
    """Take --data that are not those of the runs: nothing checks that these did not train on its test images."""
    image_size: Side | None = None
    """Side to which images are brought; the runs' own unless given."""
    data_root: str | None = None
    """Where data sets lie or are downloaded to; the runs' own unless given."""
    download: bool = False
    """Download the data set if it is missing."""
    corruptions: tuple[str, ...] = ()
    """Also on test images with gaussian-noise, defocus-blur, fog, jpeg, ...; all: the fifteen kinds of Hendrycks and
    Dietterich 2019, computed here, which are not the files of CIFAR-10-C."""
    cifar_c: Path | None = None
    """Also on the images of a folder of CIFAR-10-C or CIFAR-100-C: fifteen <name>.npy and labels.npy."""
    severities: tuple[Severity, ...] = (1, 2, 3, 4, 5)
    """Of corruptions."""
    predictions: Path | None = None
    """Write the predictions, of several classifiers as members of their ensemble, to this npz file."""
    picture: Path | None = None
    """Draw reliability diagrams, risk-coverage curves and the confusion of classes into this .png file."""
    per_class: bool = False
    """Print the accuracy of every class too, with Wilson's intervals, and the confusion of the ensemble, or of the only
    classifier; JSON has them in any case."""
    json: bool = False
    """Print JSON instead of tables."""
    batch: Batch = 512
    """Images that are classified at once."""
    seed: Seed = 0
    """Of the bootstrap's draws and of corruptions."""
    threads: Threads | None = None
    """CPU threads a process; all cores divided among the processes unless given."""

    def run(self) -> None:
        self._check()
        from hybridgen.evaluation.predictions import together, write_predictions
        from hybridgen.evaluation.scoring import ByClass, class_tables, picture, plain, save_figure, scores_of, table
        from hybridgen.training.engine import make_accelerator

        accelerator = make_accelerator(precision="fp32", threads=self.threads)
        each, robustness = self._looked_at(accelerator)
        if len(each) > 1:
            each = [*each, together(each, self.ensemble)]
        if not accelerator.is_main_process:
            return
        if self.predictions is not None:
            write_predictions(self.predictions, each[-1])
        scores = {one.name: scores_of(one, seed=self.seed) for one in each}
        by_class, classes = {one.name: ByClass.of(one) for one in each}, each[-1].titles
        if self.picture is not None:
            save_figure(self.picture, picture(each, scores))
        if self.json:
            found: dict[str, Any] = {"part": each[-1].part, "fingerprint": each[-1].fingerprint}
            found |= {"images": len(each[0].labels), "ensemble": self.ensemble, "seed": self.seed}
            found["classes"] = list(classes)
            found["classifiers"] = {name: plain(own) | by_class[name].to_dict() for name, own in scores.items()}
            if robustness is not None:
                found["corruptions"] = {"of": self._corrupted_by} | robustness.to_dict()
            print(json.dumps(found, indent=2, allow_nan=False))
            return
        print(f"{table(scores)}\n\n{self._note(each)}")
        if self.per_class:
            print(f"\n{class_tables(by_class, classes)}")
        if robustness is not None:
            severities = ", ".join(map(str, robustness.severities))
            print(f"\nCorrupted by {self._corrupted_by}; means over severities {severities}\n{robustness.table()}")

    def _check(self) -> None:
        if not self.runs or len({path.resolve() for path in self.runs}) < len(self.runs):
            raise InputError(f"RUNS: {' '.join(map(str, self.runs)) or 'none'}; one or more are needed, each once")
        for flag, path, suffix in (("predictions", self.predictions, ".npz"), ("picture", self.picture, ".png")):
            if path is not None and path.suffix.lower() != suffix:
                raise InputError(f"--{flag} {path}: a {suffix} file is needed")
        if not self.severities or len(set(self.severities)) < len(self.severities):
            raise InputError(f"--severities: {' '.join(map(str, self.severities)) or 'none'}; each once")
        if self.corruptions and self.cifar_c is not None:
            raise InputError("--corruptions and --cifar-c: give one or the other")
        corrupted = "--corruptions" if self.corruptions else "--cifar-c" if self.cifar_c is not None else None
        if corrupted and self.part != "test":
            raise InputError(f"{corrupted}: is of test images; leave out --part {self.part}")
        if self.allow_other_data and self.data is None:
            raise InputError("--allow-other-data: is of --data, which is missing")
        if self.allow_other_data and self.part != "test":
            raise InputError(f"--part {self.part}: other data have none that the runs trained on or set aside")
        if any(files := [_is_predictions(path) for path in self.runs]):
            given = {"--data": self.data, "--image-size": self.image_size, corrupted: corrupted}
            if all(files):
                batch = None if self.batch == ScoreRuns.batch else self.batch
                given |= {"--data-root": self.data_root, "--download": self.download or None, "--batch": batch}
            if used := [flag for flag, value in given.items() if value is not None]:
                raise InputError(f"{used[0]}: files of predictions are of images that are not there; leave it out")

    def _looked_at(self, accelerator: "accelerate.Accelerator") -> "tuple[list[Predictions], Robustness | None]":
        """What every classifier predicts, in the order of RUNS, and what they do on corrupted images."""
        from hybridgen.evaluation.finished import check_data, dataset_of, find, load, names_of
        from hybridgen.evaluation.predictions import Predictions, check_alike, read_predictions
        from hybridgen.evaluation.scoring import robustness
        from hybridgen.training.estimate import spoken
        from hybridgen.training.scores import logits_of

        names = names_of(self.runs)
        read = {
            path: read_predictions(path, name=names[path], ensemble=self.ensemble)
            for path in self.runs
            if _is_predictions(path)
        }
        for path, one in read.items():
            if self.part not in ("test", one.part):
                of = "tells no part" if one.part is None else f"is of {one.part} images"
                raise InputError(f"--part {self.part}: {path} {of}; leave it out")
        left = {path: find(path) for path in self.runs if path not in read}
        if not left:
            return list(read.values()), None
        dataset = dataset_of(
            list(left.values()),
            self.data,
            image_size=self.image_size,
            data_root=self.data_root,
            download=self.download,
        )
        check_data(list(left.values()), dataset, others=self.allow_other_data)
        part, indices = self._images(list(left.values()), dataset)
        corrupted = self._corrupted(dataset, accelerator)

        # Images as they are
        trained, began = {}, perf_counter()
        for path, one in left.items():
            trained[names[path]] = classifier = load(one, dataset, accelerator)
            members, labels = logits_of(classifier.members, part, indices.tolist(), accelerator, batch_size=self.batch)
            read[path] = Predictions(
                names[path],
                members,
                labels,
                classifier.ensemble,
                dataset.classes,
                indices,
                dataset.fingerprint,
                self.part,
                one.split_hash,
            )
        each = [read[path] for path in self.runs]
        if corrupted is None:
            return each, None

        # And corrupted
        check_alike(each)
        times = len(corrupted.names) * len(self.severities)
        if accelerator.is_main_process:
            took = spoken(times * (perf_counter() - began))
            print(f"corruptions: {times} times all images, about {took} and their own time", file=sys.stderr)
        return each, robustness(
            trained, self.ensemble, indices, accelerator, corrupted, self.severities, batch_size=self.batch
        )

    def _images(self, left: "Sequence[Left]", dataset: "Dataset") -> "tuple[Part, Tensor]":
        """The part and the places of its images of known class."""
        import torch

        from hybridgen.training.context import split_of
        from hybridgen.training.scores import known

        if self.part == "test":
            part, chosen = dataset.test, range(len(dataset.test))
        else:
            own = next((own for one in left if (own := one.settings) is not None), None)
            if own is None:
                raise InputError(f"--part {self.part}: no run's folder tells which images these are; leave it out")
            split = split_of(own, dataset)
            part, chosen = dataset.train, split.validation if self.part == "validation" else split.labelled
        indices = torch.tensor(known(part, chosen), dtype=torch.int64)
        if not len(indices):
            raise InputError(f"--part {self.part}: {dataset.name} has no image of known class there")
        return part, indices

    def _corrupted(self, dataset: "Dataset", accelerator: "accelerate.Accelerator") -> "Corrupted | None":
        from hybridgen.data.cifar_c import CifarC
        from hybridgen.evaluation.scoring import benchmark_files, own_corruptions

        if self.cifar_c is not None:
            return benchmark_files(CifarC(self.cifar_c, dataset.test))
        if self.corruptions:
            return own_corruptions(dataset.test, self.corruptions, accelerator, seed=self.seed)
        return None

    @property
    def _corrupted_by(self) -> str:
        return "hybridgen's own corruptions" if self.cifar_c is None else str(self.cifar_c)

    def _note(self, each: "Sequence[Predictions]") -> str:
        """What a reader of the table has to know."""
        from hybridgen.evaluation.intervals import RESAMPLES

        last = each[-1]
        several = f"ensembles average {self.ensemble}; " if len(each) > 1 else ""
        return (
            f"{len(last.labels)} {f'{last.part} ' if last.part else ''}images; {several}95 % intervals: "
            f"Wilson's of top-1 and top-5, else the bootstrap's of {RESAMPLES} draws of images"
        )


def _is_predictions(path: Path) -> bool:
    return path.suffix.lower() == ".npz" and not path.is_dir()
