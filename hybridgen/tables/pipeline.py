"""FixMatch, a SciMix hybridizer guided by it, and FixMatch with its hybrids, which may guide the next (thesis 2.6)."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from hybridgen.evaluation.grid import sample_grid
from hybridgen.evaluation.oracle import OracleSettings, judge_of
from hybridgen.hybridizer import Hybridizer
from hybridgen.methods import fixmatch, scimix
from hybridgen.methods.classifiers import finished_classifier
from hybridgen.methods.hybrids import Settings as HybridSettings
from hybridgen.methods.hybrids import with_hybrids
from hybridgen.networks.classifiers import Classifier
from hybridgen.settings import Few, changed, prefixed, settings
from hybridgen.tables.compare import CompareSettings, Comparison, mean_rates
from hybridgen.training.context import Context
from hybridgen.training.plan import Plan
from hybridgen.training.record import read_result
from hybridgen.training.setup import changed_fields
from hybridgen.training.train import Result, train
from hybridgen.types import InputError

Generator = prefixed(scimix.Settings)


@settings
class PipelineSettings(CompareSettings):
    """Abstract: how a classifier, its hybridizers, and classifiers with their hybrids train, and who judges."""

    rounds: Few = 1
    """Of a hybridizer that is trained and a classifier with its hybrids, which guides the hybridizer of the next."""
    method: fixmatch.Settings = fixmatch.Settings()
    generator: Generator = Generator()  # pyrefly: ignore[invalid-annotation]
    """Of a hybridizer that is trained, whose network is the classifier's, --network, unless --generator.network is
    given."""
    hybrids: HybridSettings = HybridSettings()
    oracle: OracleSettings = OracleSettings()


def check_unused(generator: scimix.Settings, presets: Mapping[str, Mapping[str, Any]]) -> None:
    """For where no hybridizer is trained: InputError for settings of one that are neither the defaults nor those of a
    preset, which would count for nothing."""
    usual = [Generator(), *(changed(Generator(), preset.get("generator", {})) for preset in presets.values())]
    if asked := min((changed_fields(generator, other) for other in usual), key=len):
        raise InputError(
            f"generator.{asked[0]}: of a hybridizer that is trained, and here none is; --hybridizer trained trains one"
        )


def train_in_turn(config: PipelineSettings, context: Context) -> Result:
    """Train all parts of all rounds from every seed, in one folder, each unless it is finished, and compare.

    The hybridizer's network is the classifier's, unless it has one of its config. InputError, before there is a folder,
    for anything that cannot be made.
    """
    seeds = range(config.seed, config.seed + config.seeds)
    judge, own = judge_of(config.oracle, context.dataset), config.generator.network
    network = config.method.network if own is None else own

    # What the parts train
    alone = lambda seed: fixmatch.plan(config.method, context, seed)
    together = lambda seed, hybridizer: with_hybrids(alone(seed), hybridizer, config.hybrids)

    def generating(seed: int, guide: Classifier) -> tuple[Plan, Hybridizer]:
        own = replace(context, group="generator")
        plan, hybridizer = scimix.plan(replace(config.generator, network=network), own, seed, classifier=guide)
        return replace(plan, pictures=lambda: {"grid": sample_grid(hybridizer, context.dataset.test, seed)}), hybridizer

    # All of them once, which refuses what cannot be made; and how long they take
    rounds = ["", *(f", round {number}" for number in range(2, config.rounds + 1))]
    makers, variants = [f"Hybridizer{each}" for each in rounds], [f"FixMatch + SciMix{each}" for each in rounds]
    first = alone(config.seed)
    assert isinstance(first.judged, Classifier)
    generator, untrained = generating(config.seed, first.judged)
    generator.pictures()
    parts = {"FixMatch": first} | dict.fromkeys(variants, together(config.seed, untrained))
    beside = dict.fromkeys(makers, generator)
    comparison = Comparison(config, context, {name: lambda _, plan=plan: plan for name, plan in parts.items()}, beside)
    comparison.tell_time(parts | beside, config.rounds, judge, like=untrained)

    # Classifier, hybridizer, classifier, ...
    def hybridizer_of(number: int, seed: int) -> Hybridizer:
        place = comparison.folder(makers[number], seed)
        if read_result(place) is None:
            here = replace(context, read={})  # its own runs, not what it was given
            guide = finished_classifier(comparison.folder(list(parts)[number], seed), here.network(network), here)
            train(generating(seed, guide)[0], config, place, seed)
        return Hybridizer.from_pretrained(place / "hybridizer").to(context.accelerator.device)

    for run in comparison.unfinished():
        of_round = run.variant in variants
        plan = together(run.seed, hybridizer_of(variants.index(run.variant), run.seed)) if of_round else alone(run.seed)
        comparison.add(run, train(plan, config, run.folder, run.seed))

    # What the hybrids of each round inherit
    judged = lambda number: mean_rates([comparison.judged(hybridizer_of(number, seed), judge) for seed in seeds])
    *earlier, rates = [judged(number) for number in range(config.rounds)]
    return comparison.conclude(transfer=rates, earlier=dict(zip(variants, earlier, strict=False)))
