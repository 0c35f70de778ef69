"""Train AdaIN, a hybridizer by style transfer, to compare others with (thesis 2.2.2.1 and table 2.5).

accelerate launch recipes/adain.py --data svhn --labels 250 --download
"""

from dataclasses import replace
from pathlib import Path

from hybridgen.configuration import launch
from hybridgen.evaluation.grid import sample_grid
from hybridgen.evaluation.oracle import OracleSettings, judge_of
from hybridgen.methods import adain
from hybridgen.settings import settings
from hybridgen.tables.ending import conclude_hybridizer
from hybridgen.training.context import Context, RunSettings
from hybridgen.training.record import claim
from hybridgen.training.train import Result, train


@settings
class Config(RunSettings):
    """Train AdaIN: a classifier for its perceptual features, then the decoder that makes images of them."""

    out = Path("runs/adain")
    evaluate_every = 500
    save_every = 500
    method: adain.Settings = adain.Settings()
    oracle: OracleSettings = OracleSettings()


PRESETS = adain.PRESETS


def main(config: Config) -> Result:
    context = Context.of(config)
    judge = judge_of(config.oracle, context.dataset)
    if config.method.perceptual == "all":
        context = adain.with_all_labels(context)
    autoencoder = adain.network(config.method, context, config.seed)
    perception = adain.perception_plan(config.method, context, autoencoder, config.seed)
    adain.transfer_stream(config.method, context, config.seed)  # refuses what cannot be drawn before a folder is made
    claim(config.out, config, context.accelerator, resume=config.resume)

    # Perceptual features
    first = train(perception, config, config.out / "perception", config.seed)

    # The decoder
    plan, hybridizer = adain.plan(config.method, context, autoencoder, config.seed)
    plan = replace(plan, pictures=lambda: {"grid": sample_grid(hybridizer, context.dataset.test, config.seed)})
    result = train(plan, config, config.out, config.seed, claimed=True, seconds=first["seconds"])
    teaches = config.method.perceptual != "all"  # a classifier of fewer labels would refuse it
    return conclude_hybridizer(config, plan, hybridizer, judge, result, teaches=teaches)


if __name__ == "__main__":
    launch(main, Config, PRESETS)
