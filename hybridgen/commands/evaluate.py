"""The command `evaluate`: transfer rates of a hybridizer."""

import json

from hybridgen.commands.options import FdaBeta, Judged, load, tell_of_others
from hybridgen.settings import settings


@settings
class Evaluate(Judged):
    """Measure what hybrids take from their parents: the class of one, the context of the other.

    The class is judged by an oracle. Over pairs of test images, beside MixUp, FDA and unrelated images; with 95 %
    intervals.
    """

    hybridizer: str | None = None
    """Folder or hub id of a hybridizer; the one that comes with the repository unless given."""
    json: bool = False
    """Print JSON instead of a table."""
    fda_beta: FdaBeta = 0.1
    """Part of the spectrum that FDA takes from the non-semantic parent."""

    def run(self) -> None:
        from hybridgen.evaluation.transfer import note, transfer_rates
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
