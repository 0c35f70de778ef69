"""Variants of a training over seeds, set side by side in one folder and one table."""

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

from hybridgen.evaluation import oracle
from hybridgen.evaluation.grid import sample_grid
from hybridgen.evaluation.transfer import transfer_rates
from hybridgen.files import save_picture
from hybridgen.hybridizer import Hybridizer
from hybridgen.settings import Few, settings
from hybridgen.training.context import Context, RunSettings
from hybridgen.training.plan import Plan
from hybridgen.training.record import claim, read_result, write_result
from hybridgen.training.train import Result

FIGURES = ("test_accuracy_last", "test_accuracy_selected", "seconds", "steps")
"""Of a run, without which it has no place in the table."""

PICTURE = "grid.png"
"""Of hybrids, in the folder of a comparison."""

Variants = Mapping[str, Callable[[int], Plan]]
"""Plans from a seed, by their names in the table."""


@settings
class CompareSettings(RunSettings):
    """Abstract: what every recipe has that compares trainings over seeds."""

    seeds: Few = 1
    """Number of seeds, from --seed on."""


class Todo(NamedTuple):
    """A run that is not finished yet."""

    variant: str
    seed: int
    folder: Path


class Comparison:
    """Every variant from every seed, each run in a folder of its own below `settings.out`.

    Each variant's plan is made once, from the first seed, before the folder is: InputError for anything that cannot be
    made. Runs that are finished are read and not repeated when the comparison is resumed.
    """

    def __init__(self, settings: CompareSettings, context: Context, variants: Variants) -> None:
        for make in variants.values():
            make(settings.seed)
        claim(settings.out, settings, context.accelerator, resume=settings.resume)
        self.settings, self.context = settings, context
        self.results: dict[str, list[Result]] = {name: [] for name in variants}

    def unfinished(self) -> Iterator[Todo]:
        """The runs that are to be trained, whose results go to `add`."""
        for seed in range(self.settings.seed, self.settings.seed + self.settings.seeds):
            for variant in self.results:
                folder = self.folder(variant, seed)
                done = read_result(folder, FIGURES) if self.settings.resume else None
                if done is None:
                    yield Todo(variant, seed, folder)
                else:
                    self.results[variant].append(done)

    def folder(self, variant: str, seed: int) -> Path:
        """Of a run: `fixmatch-seed0`, and of "FixMatch + SciMix" `scimix-seed0`."""
        return self.settings.out / f"{slug(variant.rpartition(' + ')[2])}-seed{seed}"

    def add(self, run: Todo, result: Result) -> None:
        """The result of an unfinished run."""
        self.results[run.variant].append(result)

    def conclude(self, *, transfer: dict[str, Any] | None = None, **more: Any) -> Result:
        """Print the table of all variants, and the transfer rates of hybrids if there are any; write `result.json`,
        with `more` in it."""
        summary = {
            name: {key: summarize([result[key] for result in done]) for key in FIGURES[:3]}
            for name, done in self.results.items()
        }
        accelerator, split, settings = self.context.accelerator, self.context.split, self.settings
        width = max(18, *map(len, summary))
        lines = [
            f"\n{self.context.dataset.name}, {len(split.labelled)} labels, "
            f"{self._steps} steps, {settings.seeds} seed(s)",
            f"{'test accuracy, %':{width}}{'last':>16}{'selected':>16}{'seconds':>10}",
        ]
        for name, row in summary.items():
            last, chosen = (shown(row[key]) for key in ("test_accuracy_last", "test_accuracy_selected"))
            lines.append(f"{name:{width}}{last:>16}{chosen:>16}{row['seconds']['mean']:>10.0f}")
        if transfer is not None:
            lines.append(
                f"hybrids: semantic transfer {transfer['semantic_transfer']:.3f}, non-semantic preservation "
                f"{transfer['nonsemantic_preservation']:.3f} (oracle's own accuracy {transfer['oracle_accuracy']:.3f})"
                f"; {settings.out / PICTURE}"
            )
        accelerator.print("\n".join(lines))
        best = list(summary.values())[-1]
        return write_result(
            settings.out,
            accelerator,
            test_accuracy_last=best["test_accuracy_last"]["mean"],
            test_accuracy_selected=best["test_accuracy_selected"]["mean"],
            seed=settings.seed,
            seeds=settings.seeds,
            steps=self._steps,
            seconds=sum(row["seconds"]["mean"] for row in summary.values()) * settings.seeds,
            split_hash=split.hash,
            classifiers=summary,
            transfer=transfer,
            **more,
        )

    @property
    def _steps(self) -> int:
        return next(iter(self.results.values()))[0]["steps"]


def judged(
    hybridizer: Hybridizer, settings: CompareSettings, context: Context, judge: oracle.Training
) -> dict[str, Any]:
    """What the hybrids inherit, by an oracle; leaves a picture of them in the comparison's folder."""
    accelerator, dataset = context.accelerator, context.dataset
    trained, _ = oracle.load_or_train_oracle(dataset, accelerator, judge)
    rates = transfer_rates(hybridizer, dataset, trained, accelerator).to_dict()
    if accelerator.is_main_process:
        save_picture(settings.out / PICTURE, sample_grid(hybridizer, dataset.test, settings.seed))
    return rates


def slug(name: str) -> str:
    """A folder's name."""
    return re.sub(r"\W+", "-", name.lower())


def summarize(values: list[float]) -> dict[str, float]:
    """Mean and, of several values, sample standard deviation."""
    return {"mean": mean(values)} | ({"std": stdev(values)} if len(values) > 1 else {})


def shown(value: dict[str, float]) -> str:
    """Percent, with the deviation where there is one."""
    return f"{100 * value['mean']:.1f}" + (f" ± {100 * value['std']:.1f}" if "std" in value else "")
