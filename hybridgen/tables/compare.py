"""Variants of a training over seeds, set side by side in one folder and one table."""

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from types import MappingProxyType
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import AfterValidator

from hybridgen.evaluation.grid import sample_grid
from hybridgen.evaluation.oracle import Judge, Training, oracle_of, oracle_seconds
from hybridgen.evaluation.paired import gain_of_runs
from hybridgen.evaluation.transfer import judging_seconds, spoken_rates, transfer_rates, verdict, wilson
from hybridgen.files import save_picture
from hybridgen.hybridizer import Hybridizer
from hybridgen.methods.hybrids import HybridSource
from hybridgen.networks.classifiers import FILE, Classifier
from hybridgen.settings import Few, Section, changed, settings
from hybridgen.tables.ending import end, save_transfer
from hybridgen.tables.left import slug
from hybridgen.tables.pictures import PICTURE
from hybridgen.training.context import Context, RunSettings
from hybridgen.training.estimate import spoken, whole_time
from hybridgen.training.plan import Plan
from hybridgen.training.record import claim, read_result, write_result
from hybridgen.training.setup import changed_fields, write_setup
from hybridgen.training.train import Result
from hybridgen.types import InputError

FIGURES = ("test_accuracy_last", "test_accuracy_selected", "seconds", "steps")
"""Of a run, without which it has no place in the table."""

LONG = 500
"""Steps of all trainings together from which on it is said beforehand how long they take."""

GAINS = {
    "gain": "   gain of the last, 95 % by Student's t",
    "gain_by_image": "   gain of the selected, 95 % paired by image, of one training each",
}
"""Over the first variant: what stands above them."""


def some_of(titles: Mapping[str, str]) -> Any:
    """The type of the field `methods` of a recipe that compares methods of these names: one or more, each once. Its
    help lists them."""

    def each_once(names: tuple[str, ...]) -> tuple[str, ...]:
        if not names or len(set(names)) < len(names):
            raise ValueError("should be one or more, each once")
        return names

    return Annotated[tuple[Literal[tuple(titles)], ...], AfterValidator(each_once)]  # pyrefly: ignore[invalid-literal]


def check_taken(config: Any, presets: Mapping[str, Mapping[str, Any]], methods: Collection[Any]) -> None:
    """InputError for a field of `config.method` whose value is neither the default nor a preset's, and is that of none
    of these methods' settings: it would count for nothing."""
    default = type(config)().method
    usual = [default, *(changed(default, preset.get("method", {})) for preset in presets.values())]
    for field in min((changed_fields(config.method, other) for other in usual), key=len):
        value = getattr(config.method, field)
        if all(getattr(method, field, None) != value for method in methods):
            raise InputError(f"method.{field}: {value}, but every method that is trained has its own; leave it out")


Variants = Mapping[str, Callable[[int], Plan]]
"""Plans from a seed, by their names in the table."""


@settings
class CompareSettings(RunSettings):
    """Abstract: what every recipe has that compares trainings over seeds."""

    seeds: Annotated[Few, Section("what is compared")] = 1
    """Number of seeds, from --seed on."""


class Todo(NamedTuple):
    """A run that is not finished yet."""

    variant: str
    seed: int
    folder: Path


class FigureColumn(NamedTuple):
    """A further column of the table, of what results of runs have beside accuracy and time."""

    title: str
    figure: str
    """Its name in the results; a variant whose results do not have it has a dash."""
    percent: bool = False

    def text(self, row: Mapping[str, Any]) -> str:
        """What stands in a variant's row."""
        value = row.get(self.figure)
        return "–" if value is None else shown(value) if self.percent else shown(value, scale=1, digits=3)


OF_ENSEMBLES = (
    FigureColumn("members", "test_member_accuracy_last", percent=True),
    FigureColumn("NLL_c", "test_nll_calibrated_last"),
    FigureColumn("ECE, %", "test_ece_last", percent=True),
    FigureColumn("disagree, %", "test_disagreement_last", percent=True),
    FigureColumn("ratio-error", "test_ratio_error_last"),
)
"""Of `evaluation.ensembles.judged_by`."""


class Comparison:
    """Every variant from every seed, each run in a folder of its own below `settings.out`.

    Each variant's plan is made once, from the first seed, before the folder is: InputError for anything that cannot be
    made. Runs that are finished are read and not repeated when the comparison is resumed. `beside` are parts that have
    no accuracies to compare: what hybrids come from.
    """

    def __init__(
        self,
        settings: CompareSettings,
        context: Context,
        variants: Variants,
        beside: Mapping[str, Plan] = MappingProxyType({}),
    ) -> None:
        plans = {name: make(settings.seed) for name, make in variants.items()}
        trained = {**plans, **beside}
        self.drawn = settings.seeds * sum(plan.clock.steps * plan.stream.images_per_step for plan in trained.values())
        self.settings, self.context = settings, context
        if settings.resume:
            self._check_split(trained)
        claim(settings.out, settings, context.accelerator, resume=settings.resume, chosen=context.chosen)
        write_setup(settings.out, settings, context)
        self.results: dict[str, list[Result]] = {name: [] for name in variants}
        self.beside = tuple(beside)
        self._expect({name: plan.clock.steps for name, plan in trained.items()})
        long = settings.seeds * sum(plan.clock.steps for plan in plans.values()) >= LONG
        self._untold = plans if long else {}
        self._oracle: Classifier | None = None
        self._unjudged = False

    def unfinished(self) -> Iterator[Todo]:
        """The runs that are to be trained, whose results go to `add`. Says before long work how long it takes."""
        if self._untold:
            self.tell_time(self._untold)
        for seed in self._seeds:
            for variant in self.results:
                folder = self.folder(variant, seed)
                done = read_result(folder, FIGURES) if self.settings.resume else None
                if done is None:
                    yield Todo(variant, seed, folder)
                else:
                    self.results[variant].append(done)

    def _check_split(self, names: Iterable[str]) -> None:
        """InputError for runs that were finished on another split: its results are no rows of the same table, and what
        it trained knows other labels."""
        for folder in (self.folder(name, seed) for name in names for seed in self._seeds):
            then, now = (read_result(folder) or {}).get("split_hash"), self.context.split.hash
            if then not in (None, now):
                raise InputError(f"resume: {folder} was trained on the split {then}, this is {now}; give another --out")

    def _expect(self, steps: Mapping[str, int]) -> None:
        of_runs = {self.folder(name, seed): own for seed in self._seeds for name, own in steps.items()}
        self.context.expected.update(of_runs)
        listed = ", ".join(f"{name} ({own:,} steps)" for name, own in steps.items())
        seeds = f", each from {self.settings.seeds} seeds" if self.settings.seeds > 1 else ""
        self.context.tell(f"in {self.settings.out} are trained: {listed}{seeds}")

    def folder(self, variant: str, seed: int) -> Path:
        """Of a run: `fixmatch-seed0`, and of "FixMatch + SciMix" `scimix-seed0`."""
        return self.settings.out / f"{slug(variant)}-seed{seed}"

    def add(self, run: Todo, result: Result) -> None:
        """The result of an unfinished run."""
        self.results[run.variant].append(result)

    def tell_time(
        self, plans: Mapping[str, Plan], hybridizers: int = 0, judge: Judge = None, *, like: Hybridizer | None = None
    ) -> None:
        """Say how long it takes to train what is left of all these parts from every seed, variants and others, and to
        judge so many hybridizers of each seed, like this one. The plans are used up."""
        dataset, accelerator, settings = self.context.dataset, self.context.accelerator, self.settings
        self._untold = {}
        self.context.say()
        seconds = whole_time({self.folder(name, seed): plan for name, plan in plans.items() for seed in self._seeds})
        if judge is not None and like is not None:
            seconds += oracle_seconds(self._sized(judge), dataset, accelerator)
            seconds += hybridizers * settings.seeds * judging_seconds(like, dataset, accelerator)
        judging = "" if judge is None else " and of judging"
        count = len(plans) * settings.seeds
        trainings = "the training" if count == 1 else f"{count} trainings"
        if seconds:
            accelerator.print(f"what is left of {trainings}{judging} takes about {spoken(seconds)}")

    def judged(self, hybridizer: HybridSource | None, judge: Judge) -> dict[str, Any] | None:
        """What the hybrids of a hybridizer inherit, by an oracle that is there or trains for a twentieth of the
        comparison at most; None where there is no judge or no hybridizer. Leaves a picture of the hybrids."""
        if not isinstance(hybridizer, Hybridizer):
            return None
        accelerator, dataset = self.context.accelerator, self.context.dataset
        if accelerator.is_main_process:
            save_picture(self.settings.out / PICTURE, sample_grid(hybridizer, dataset.test, self.settings.seed))
        if judge is None:
            self._unjudged = True
            return None
        if self._oracle is None:
            self._oracle = oracle_of(self._sized(judge), dataset, accelerator)
        rates = transfer_rates(hybridizer, dataset, self._oracle, accelerator)
        save_transfer(self.settings.out, rates, self.context)
        return rates.to_dict()

    def _sized(self, judge: Training | Classifier) -> Training | Classifier:
        return judge.within(self.drawn) if isinstance(judge, Training) else judge

    def conclude(
        self,
        *,
        columns: Sequence[FigureColumn] = (),
        transfer: Mapping[str, Any] | None = None,
        earlier: Mapping[str, Mapping[str, Any] | None] | None = None,
        **more: Any,
    ) -> Result:
        """Print the table of all variants, with further columns between accuracies and seconds, the gains over the
        first, and the transfer rates of hybrids if there are any, after those of `earlier` variants; write
        `result.json`, with `more` in it, and the report; tell what has been written and what may follow."""
        summary = {
            name: {key: summarize([result[key] for result in done]) for key in FIGURES[:3]}
            | {
                figure: summarize([result[figure] for result in done])
                for _, figure, _ in columns
                if all(figure in result for result in done)
            }
            | self._gain(name)
            for name, done in self.results.items()
        }
        accelerator, split, settings = self.context.accelerator, self.context.split, self.settings
        beside = {
            name: {"seconds": summarize([done["seconds"] for done in self._finished(name)])} for name in self.beside
        }
        width, wide = max(18, *map(len, summary)), 20 + 8 * (settings.seeds > 1)
        images = len(self.context.dataset.test.known)
        steps = [done[0]["steps"] for done in self.results.values()]
        told = f"{steps[0]}" if len(set(steps)) == 1 else f"{min(steps)} to {max(steps)}"
        gained = "".join(title for key, title in GAINS.items() if any(key in row for row in summary.values()))
        lines = [
            f"\n{self.context.dataset.name}, {len(split.labelled)} labels, "
            f"{told} steps, {settings.seeds} seed(s); 95 % intervals by {images} test images",
            f"{'test accuracy, %':{width}}{'last':>{wide}}{'selected':>{wide}}"
            + "".join(f"{column.title:>16}" for column in columns)
            + f"{'seconds':>10}{gained}",
        ]
        for name, row in summary.items():
            last, chosen = (spoken_accuracy(row[key], images) for key in FIGURES[:2])
            more_of_it = "".join(f"   {spoken_gain(row[key])}" for key in GAINS if key in row)
            further = "".join(f"{column.text(row):>16}" for column in columns)
            seconds = f"{row['seconds']['mean']:>10.0f}"
            lines.append(f"{name:{width}}{last:>{wide}}{chosen:>{wide}}{further}{seconds}{more_of_it}")
        before = width + 2 * wide + 16 * len(columns)
        lines += [f"{name:{before}}{row['seconds']['mean']:>10.0f}" for name, row in beside.items()]
        lines += [f"hybrids of {name}: {spoken_rates(rates)}" for name, rates in (earlier or {}).items() if rates]
        if transfer is not None:
            lines += [f"hybrids: {spoken_rates(transfer)}; {settings.out / PICTURE}", f"hybrids: {verdict(transfer)}"]
        elif self._unjudged:
            lines.append(f"hybrids: not judged (--oracle none); {settings.out / PICTURE}")
        accelerator.print("\n".join(lines))
        best = list(summary.values())[-1]
        result = write_result(
            settings.out,
            accelerator,
            test_accuracy_last=best["test_accuracy_last"]["mean"],
            test_accuracy_selected=best["test_accuracy_selected"]["mean"],
            seed=settings.seed,
            seeds=settings.seeds,
            steps=steps[-1],
            seconds=sum(row["seconds"]["mean"] for row in (summary | beside).values()) * settings.seeds,
            split_hash=split.hash,
            test_images=images,
            classifiers=summary,
            transfer=transfer,
            **{name: of for name, of in (("beside", beside), ("earlier", earlier)) if of},
            **more,
        )
        end(settings.out, accelerator, self._next)
        return result

    def _gain(self, name: str) -> dict[str, dict[str, float]]:
        """Of a variant over the first: of several seeds by Student's t, of one by image."""
        first, done = next(iter(self.results)), self.results[name]
        if name == first:
            return {}
        if len(done) > 1:
            return {"gain": gain(self.results[first], done)}
        paired = gain_of_runs(*(self.folder(variant, self.settings.seed) for variant in (first, name)))
        return {} if paired is None else {"gain_by_image": paired}

    def _finished(self, name: str) -> Iterator[Result]:
        """Of every seed that has been trained, from its folder."""
        return filter(None, (read_result(self.folder(name, seed)) for seed in self._seeds))

    @property
    def _next(self) -> list[str]:
        """Arguments of the command that says more about the classifiers that are there; none where there are none."""
        runs = [self.folder(variant, self.settings.seed) for variant in self.results]
        there = [str(run) for run in runs if (run / FILE).is_file()]
        return ["score", *there] if there else []

    @property
    def _seeds(self) -> range:
        return range(self.settings.seed, self.settings.seed + self.settings.seeds)


RATES = (
    "semantic_transfer", "own_semantic_transfer", "nonsemantic_preservation", "background_inheritance",
    "oracle_accuracy",
)  # fmt: skip
"""Of hybrids, as an oracle sees them."""


def mean_rates(rates: Sequence[Mapping[str, Any] | None]) -> dict[str, Any] | None:
    """Transfer rates of several hybridizers: their means, and deviations under `<name>_std`; of one its own, with their
    intervals. None where they are not known."""
    known = [each for each in rates if each is not None]
    if len(known) < 2:
        return dict(known[0]) if known else None
    of: dict[str, list[Any]] = {name: [each.get(name) for each in known] for name in RATES}
    means = {name: None if None in values else summarize(values) for name, values in of.items()}
    return {name: value and value["mean"] for name, value in means.items()} | {
        f"{name}_std": value["std"] for name, value in means.items() if value
    }


def gain(first: Sequence[Result], others: Sequence[Result]) -> dict[str, float]:
    """Of the test accuracy of the last epoch, seed by seed, of two seeds or more: mean, and bounds of the 95 % interval
    of Student's t."""
    from scipy.stats import t  # which takes its time

    of = "test_accuracy_last"
    differences = [each[of] - before[of] for before, each in zip(first, others, strict=True)]
    count, middle = len(differences), mean(differences)
    spread = float(t.ppf(0.975, count - 1)) * stdev(differences) / math.sqrt(count)
    return {"mean": middle, "low": middle - spread, "high": middle + spread}


def spoken_accuracy(value: Mapping[str, float], images: int) -> str:
    """In percent, with the deviation of several seeds, and Wilson's interval of the mean by the number of test images,
    all of which the seeds share."""
    if not images:
        return shown(value)
    _, low, high = wilson(value["mean"], images)
    return f"{shown(value)} [{100 * low:.1f}, {100 * high:.1f}]"


def spoken_gain(of: Mapping[str, float]) -> str:
    """In points, with its interval; within chance where that holds 0."""
    told = f"{100 * of['mean']:+.1f} [{100 * of['low']:+.1f}, {100 * of['high']:+.1f}]"
    return told + (", within chance" if of["low"] <= 0 <= of["high"] else "")


def summarize(values: list[float]) -> dict[str, float]:
    """Mean and, of several values, sample standard deviation, nan where one is infinite or nan."""
    spread = stdev(values) if all(map(math.isfinite, values)) and len(values) > 1 else math.nan
    return {"mean": mean(values)} | ({"std": spread} if len(values) > 1 else {})


def shown(value: Mapping[str, float], *, scale: float = 100, digits: int = 1) -> str:
    """Percent, or on another scale, with the deviation where there is one."""
    more = f" ± {scale * value['std']:.{digits}f}" if "std" in value else ""
    return f"{scale * value['mean']:.{digits}f}{more}"
