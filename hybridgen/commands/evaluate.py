"""The command `evaluate`: transfer rates of a hybridizer; and with --model, `score`."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from hybridgen.commands.options import FdaBeta, Judged, load, tell_of_others
from hybridgen.commands.score import ScoreRuns
from hybridgen.errors import InputError
from hybridgen.settings import flags, settings


@settings
class Evaluate(Judged):
    """Measure what hybrids take from their parents, class and context; or (with --model) how well classifiers predict.

    The class of one parent and the context of the other; the class is judged by an oracle. Over pairs of test images,
    beside MixUp, FDA and unrelated images; with 95 % intervals.

    With --model RUN [RUN ...] it scores finished classifiers instead, as `hybridgen score` does, class by class:
    `hybridgen evaluate --model --help` lists the options that it then has.
    """

    hybridizer: str | None = None
    """Folder or hub id (owner/name, owner/name@revision) of a hybridizer; the repository's own unless given."""
    json: bool = False
    """Print JSON instead of a table."""
    fda_beta: FdaBeta = 0.1
    """Part of the spectrum that FDA takes from the non-semantic parent."""

    def run(self) -> None:
        from hybridgen.evaluation.transfer import note, shown, transfer_rates
        from hybridgen.training.engine import make_accelerator

        self._check_oracle()
        accelerator = make_accelerator(threads=self.threads)
        hybridizer = load(self.hybridizer, accelerator)
        dataset = self._dataset(hybridizer)
        oracle = self._oracle(dataset, accelerator)
        rates = transfer_rates(
            hybridizer,
            dataset,
            oracle,
            accelerator,
            repeats=self.repeats,
            seed=self.seed,
            fda_beta=self.fda_beta,
        )
        if not accelerator.is_main_process:
            return
        tell_of_others(hybridizer, dataset)
        if self.json:
            print(json.dumps({"data": self.data} | rates.to_dict(), indent=2))
            return
        print(f"{rates.table()}\n\n{note(self.data, rates.oracle_accuracy, rates.semantic_parents, rates.repeats)}")
        if rates.own_semantic_transfer is not None:
            print(f"semantic transfer by the hybridizer's own classifier: {shown(rates.own_semantic_transfer).strip()}")


@settings
class EvaluateModels(ScoreRuns):
    """Evaluate finished classifiers and their ensemble: what `hybridgen score` prints, with the accuracy of each class.

    A run's folder (runs/fixmatch/fixmatch-seed0) stands for the network that it deployed, with several inputs for its
    members; all are looked at on the runs' own test images. `hybridgen score --help` tells more. Without --model,
    `hybridgen evaluate` measures the transfer rates of a hybridizer.
    """

    runs: Annotated[tuple[Path, ...], arg(name="model", metavar="RUN [RUN ...]")]
    """Run folders, files network.safetensors, checkpoints, or npz files of predictions."""
    per_class = True


def evaluated(arguments: Sequence[str]) -> type[Evaluate | EvaluateModels]:
    """What these arguments evaluate: models, or without any a hybridizer. InputError for an option of the other."""
    given = [word.partition("=")[0].replace("_", "-") for word in arguments if word.startswith("--")]
    of_hybridizers, of_models = (set(flags(kind).values()) for kind in (Evaluate, EvaluateModels))
    models = "--model" in given
    for flag in given:
        flag = flag.replace("--no-", "--")
        if models and flag in of_hybridizers - of_models:
            raise InputError(f"{flag}: is of a hybridizer's transfer rates; leave it out, or --model")
        if not models and flag in of_models - of_hybridizers:
            raise InputError(f"{flag}: is of classifiers, which --model RUN names; give that, or leave it out")
    return EvaluateModels if models else Evaluate
