"""A classifier without and with hybrids, from the same seeds, split and steps, set side by side."""

import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from accelerate import Accelerator
from jaxtyping import Float
from torch import Tensor, nn

from hybridgen.data.datasets import Dataset, Part
from hybridgen.data.splits import Split
from hybridgen.evaluation.classification import accuracy
from hybridgen.evaluation.grid import sample_grid
from hybridgen.evaluation.oracle import Settings, load_or_train_oracle
from hybridgen.evaluation.transfer import transfer_rates
from hybridgen.experiments.backbones import Backbone
from hybridgen.experiments.settings import (
    ClassifierSettings,
    TrainingSettings,
    check_counts,
    check_window,
    how_to_use,
    load_data,
    load_hybridizer,
    make_stream,
    oracle_settings,
)
from hybridgen.files import save_picture
from hybridgen.hybridizer import Hybridizer
from hybridgen.networks.wide_resnet import TwoHeadClassifier
from hybridgen.semi.hybrids import HybridSource, Mixer
from hybridgen.training.ema import EMA
from hybridgen.training.engine import laid_out, make_accelerator
from hybridgen.training.fit import fit
from hybridgen.training.objective import Task
from hybridgen.training.record import Run, claim, read_result, write_result
from hybridgen.training.schedules import Clock, cycled
from hybridgen.training.selection import Selected
from hybridgen.types import Batch, Images, InputError

TITLES = {"scimix": "SciMix", "samosa": "SAMOSA", "adain": "AdaIN", "mixup": "MixUp", "cutmix": "CutMix"}
"""Of the methods that hybrids come from."""

Result = dict[str, Any]
"""What a run writes into `result.json`."""


def train(
    config: TrainingSettings,
    accelerator: Accelerator,
    dataset: Dataset,
    split: Split,
    seed: int,
    folder: Path,
    *,
    tasks: dict[str, Task],
    batches: Callable[[int], Iterator[Batch]],
    clock: Clock,
    network: nn.Module,
    average: EMA | None,
    classify: Callable[[nn.Module, Images], Float[Tensor, "batch classes"]],
    modules: dict[str, nn.Module],
    local: dict[str, nn.Module] | None = None,
    after_step: Callable[[], dict[str, float]] = dict,
    finish: Callable[[], None] = lambda: None,
) -> Result:
    """One run to its end: the steps of `tasks` on `batches` (from a step on). What is evaluated is `average` of
    `network`, or without one the network itself.

    `modules` are all that checkpoints hold beside the average, `local` what of it is each process's own. `after_step`
    follows the update of the average and gives what is to be recorded; `finish` comes before the result is written.
    """
    judged = network if average is None else average.network
    selected = Selected(judged)

    def score(candidate: nn.Module, part: Part, indices: Sequence[int]) -> float:
        training = candidate.training
        value = accuracy(partial(classify, candidate.eval()), part, indices, accelerator)
        candidate.train(training)
        return value

    with Run(
        folder,
        config,
        accelerator,
        clock,
        modules=modules | ({} if average is None else {"average": average}) | {"selected": selected},
        local=local,
        optimizers={name: task.optimizer for name, task in tasks.items()},
        split_hash=split.hash,
        record_every=config.record_every,
        save_every=config.save_every,
        resume=config.resume,
    ) as run:
        for scalars in fit(tasks, batches(clock.step), clock, accelerator, seed=seed):
            if average is not None:
                average.update(network)
            if noted := after_step():
                run.log(**noted)
            if clock.every(config.evaluate_every):
                reached = score(judged, dataset.train, split.validation)
                selected.offer(judged, reached, clock.step)
                run.log(**{"validation/accuracy": reached})
            run.step(scalars)

        # Result
        last, chosen = (score(each, dataset.test, range(len(dataset.test))) for each in (judged, selected.network))
        finish()
        return write_result(
            folder,
            accelerator,
            test_accuracy_last=last,
            test_accuracy_selected=chosen,
            selected_step=int(selected.step),
            seed=seed,
            steps=clock.steps,
            seconds=run.seconds,
            split_hash=split.hash,
        )


def train_classifier(
    config: ClassifierSettings,
    backbone: Backbone,
    accelerator: Accelerator,
    dataset: Dataset,
    split: Split,
    hybridizer: HybridSource | None,
    seed: int,
    folder: Path,
    *,
    cycles: int = 1,
) -> Result:
    """One classifier, in a folder of its own. Each of `cycles` has all epochs, and rates that start anew."""
    claim(folder, config, accelerator, resume=config.resume and folder.exists())
    torch.manual_seed(seed)
    stream = make_stream(config, accelerator, dataset, split, backbone.views(config, dataset), seed)
    classifier = laid_out(
        backbone.network(config, dataset),
        accelerator,
        channels_last=config.channels_last,
        compiled=config.compiled,
        synchronized=config.sync_batchnorm,
    )
    if hybridizer is not None and config.from_hybridizer:
        start_from(classifier, hybridizer)
    method = backbone.method(config, classifier, hybridizer)
    prepared, optimizer = accelerator.prepare(method.objective, method.optimizer)
    return train(
        config,
        accelerator,
        dataset,
        split,
        seed,
        folder,
        tasks={"classifier": Task(prepared, method.weights, optimizer, cycled(method.rate, cycles), clip=config.clip)},
        batches=stream.from_step,
        clock=Clock(cycles * round(config.epochs * stream.steps_per_epoch), stream.steps_per_epoch),
        network=classifier,
        average=EMA(classifier, config.ema_decay, linear_start=False, buffers="copy").eval(),
        classify=backbone.classify,
        modules={"objective": method.objective},
        after_step=method.after_step,
    )


def start_from(network: nn.Module, hybridizer: HybridSource) -> None:
    """Give the network the weights of the classifier that guided the hybridizer's training, of both its heads or, where
    the network has one, of the first. InputError where they do not fit."""
    if isinstance(hybridizer, Mixer):
        raise InputError(f"from_hybridizer: {hybridizer.kind} has no classifier to start from")
    weights = hybridizer.autoencoder.classifier.state_dict()
    if not isinstance(network, TwoHeadClassifier):
        first, second = "heads.predictions.", "heads.consistency."
        weights = {name.replace(first, "head."): w for name, w in weights.items() if not name.startswith(second)}
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise InputError(
            "from_hybridizer: the hybridizer's classifier is another network than this one; take its --depth, --width "
            "and normalisation"
        ) from error


def compare(config: ClassifierSettings, backbone: Backbone, *, hybrids_of: str | None = None) -> Result:
    """Train with and without the hybridizer's hybrids over all seeds; print and keep both accuracies, what the hybrids
    inherit, and a picture of them. What MixUp and CutMix mix in their place has neither rates nor picture.

    `config` is a `HybridSettings` too. `hybrids_of` is the only method whose hybridizers are taken ("scimix"). Seeds
    that are finished are not trained again when the comparison is resumed. InputError for anything that cannot be
    made, before a folder is.
    """
    check_counts(config, "oracle_steps")
    accelerator = make_accelerator(threads=config.threads)
    dataset, split = load_data(config)
    hybridizer = load_hybridizer(config, accelerator, dataset, split)
    if hybridizer is not None and hybrids_of is not None:
        hybridizer.check_method(hybrids_of)

    # A folder, once everything that the configuration asks for has shown that it can be made
    make_stream(config, accelerator, dataset, split, backbone.views(config, dataset), config.seed)
    network = backbone.network(config, dataset)
    backbone.method(config, network, hybridizer)
    how_to_use(config)
    if hybridizer is not None:
        check_window(config)
    if config.from_hybridizer and hybridizer is not None:
        start_from(network, hybridizer)
    if hybridizer is None and (config.from_hybridizer or not config.baseline):
        raise InputError("hybridizer: none, but --no-baseline and --from-hybridizer need one")
    judge = oracle_settings(config, dataset)
    claim(config.out, config, accelerator, resume=config.resume)

    # Classifiers without and with hybrids
    trained = partial(train_classifier, config, backbone, accelerator, dataset, split)
    variants = {backbone.name: (slug(backbone.name), partial(trained, None))} if config.baseline else {}
    if hybridizer is not None:
        method = hybridizer.kind if isinstance(hybridizer, Mixer) else hybridizer.origin.method
        variants[f"{backbone.name} + {TITLES[method]}"] = (method, partial(trained, hybridizer))
    results = over_seeds(config, variants)
    allowed = config.allow_other_split
    judged = hybridizer if isinstance(hybridizer, Hybridizer) else None
    return conclude(config, accelerator, dataset, split, results, judged, judge, allow_other_split=allowed)


def slug(name: str) -> str:
    """A folder's name."""
    return re.sub(r"\W+", "-", name.lower())


def over_seeds(
    config: TrainingSettings, variants: dict[str, tuple[str, Callable[[int, Path], Result]]]
) -> dict[str, list[Result]]:
    """Train every variant, (name of its folders, function of seed and folder), from every seed. Runs that are finished
    are read, not repeated, when the comparison is resumed."""
    results: dict[str, list[Result]] = {name: [] for name in variants}
    for seed in range(config.seed, config.seed + config.seeds):
        for name, (prefix, train_variant) in variants.items():
            folder = config.out / f"{prefix}-seed{seed}"
            finished = read_result(folder) if config.resume else None
            results[name].append(finished or train_variant(seed, folder))
    return results


def conclude(
    config: TrainingSettings,
    accelerator: Accelerator,
    dataset: Dataset,
    split: Split,
    results: dict[str, list[Result]],
    hybridizer: Hybridizer | None,
    judge: Settings | None,
    **more: Any,
) -> Result:
    """The table of all variants, the hybridizer's transfer rates and grid, and `result.json`, with `more` in it."""
    summary = {
        name: {
            key: summarize([result[key] for result in done])
            for key in ("test_accuracy_last", "test_accuracy_selected", "seconds")
        }
        for name, done in results.items()
    }
    rates = None
    if hybridizer is not None:
        oracle, _ = load_or_train_oracle(dataset, accelerator, settings=judge)
        rates = transfer_rates(hybridizer, dataset, oracle, accelerator).to_dict()
        if accelerator.is_main_process:
            save_picture(config.out / "grid.png", sample_grid(hybridizer, dataset.test, config.seed))

    accelerator.print(
        f"\n{dataset.name}, {len(split.labelled)} labels, {config.epochs:g} epochs, {config.seeds} seed(s)"
    )
    width = max(18, *map(len, summary))
    accelerator.print(f"{'test accuracy, %':{width}}{'last':>16}{'selected':>16}{'seconds':>10}")
    for name, row in summary.items():
        last, chosen = (shown(row[key]) for key in ("test_accuracy_last", "test_accuracy_selected"))
        accelerator.print(f"{name:{width}}{last:>16}{chosen:>16}{row['seconds']['mean']:>10.0f}")
    if rates is not None:
        accelerator.print(
            f"hybrids: semantic transfer {rates['semantic_transfer']:.3f}, non-semantic preservation "
            f"{rates['nonsemantic_preservation']:.3f} (oracle's own accuracy {rates['oracle_accuracy']:.3f}); "
            f"{config.out / 'grid.png'}"
        )
    best = list(summary.values())[-1]
    return write_result(
        config.out,
        accelerator,
        test_accuracy_last=best["test_accuracy_last"]["mean"],
        test_accuracy_selected=best["test_accuracy_selected"]["mean"],
        seed=config.seed,
        seeds=config.seeds,
        steps=next(iter(results.values()))[0]["steps"],
        seconds=sum(row["seconds"]["mean"] for row in summary.values()) * config.seeds,
        split_hash=split.hash,
        classifiers=summary,
        transfer=rates,
        **more,
    )


def summarize(values: list[float]) -> dict[str, float]:
    """Mean and, of several values, sample standard deviation."""
    return {"mean": mean(values)} | ({"std": stdev(values)} if len(values) > 1 else {})


def shown(value: dict[str, float]) -> str:
    """Percent, with the deviation where there is one."""
    return f"{100 * value['mean']:.1f}" + (f" ± {100 * value['std']:.1f}" if "std" in value else "")
