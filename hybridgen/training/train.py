"""One training run, from its plan to its result."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from jaxtyping import Int64
from torch import Tensor, nn

from hybridgen.data.datasets import Part
from hybridgen.training.context import Context, RunSettings
from hybridgen.training.engine import LossScale, agree
from hybridgen.training.fit import fit
from hybridgen.training.plan import Plan
from hybridgen.training.record import Run, claim, write_result
from hybridgen.training.scores import PREDICTIONS, Scored, save_predictions
from hybridgen.training.selection import Selected
from hybridgen.training.setup import write_setup

Result = dict[str, Any]
"""What a run writes into `result.json`."""


def train(
    plan: Plan, settings: RunSettings, folder: Path, seed: int, *, claimed: bool = False, seconds: float = 0.0
) -> Result:
    """Carry out a plan in a folder of its own: what it is made of, checkpoints, records, pictures, the artefact, of a
    classifier what the selected (else the last) network predicts of the test images, and last the result.

    Continues what is there if the settings say so. The result has every score of the last network and, where one is
    selected, of that one on the test images: `test_accuracy_last`, `test_accuracy_selected`.
    `claimed`: the folder is this run's already. `seconds`: what a training before this one took, of which it is a part.
    """
    context, clock, judged = plan.context, plan.clock, plan.judged
    accelerator, dataset = context.accelerator, context.dataset
    if not claimed:
        part = folder != settings.out
        claim(folder, settings, accelerator, resume=settings.resume, fresh_ok=part, chosen=context.chosen)
    write_setup(folder, settings, context, steps=clock.steps)

    # What trains, and what checkpoints hold
    tasks = {}
    for name, task in plan.tasks.items():
        objective, optimizer = accelerator.prepare(task.objective, task.optimizer)
        tasks[name] = replace(task, objective=objective, optimizer=optimizer)
    selected = Selected(judged) if plan.select else None
    modules = {name: task.objective for name, task in plan.tasks.items()} | plan.modules
    modules |= {"average": plan.average} if plan.average else {}
    modules |= {"selected": selected} if selected else {}
    modules |= {"loss_scale": LossScale(accelerator)} if accelerator.scaler else {}

    with Run(
        folder,
        settings,
        accelerator,
        clock,
        modules=modules,
        local=plan.local,
        optimizers={name: task.optimizer for name, task in tasks.items()},
        split_hash=context.split.hash,
        record_every=settings.record_every,
        save_every=settings.save_every,
        images_per_step=plan.stream.images_per_step,
        log_with=settings.log_with,
        resume=settings.resume,
        among=context.expected,
        read=context.read,
    ) as run:
        context.say()
        batches = plan.stream.from_step(clock.step)
        for scalars in fit(tasks, batches, clock, accelerator, seed=seed, hidden=hidden_labels(context)):
            if plan.average:
                plan.average.update(plan.network)
            if noted := plan.after_step(folder):
                run.log(**noted)
            if clock.every(settings.evaluate_every):
                with run.aside():
                    agree(judged, accelerator)
                    reached = scored(plan, judged, dataset.train, context.split.validation).figures
                    if selected and plan.select:
                        selected.offer(judged, reached[plan.select], clock.step)
                    run.log(**{f"validation/{name}": value for name, value in reached.items()})
                    for name, picture in plan.pictures().items():
                        run.picture(name, picture)
            run.step(scalars)

        # The artefact and the result
        agree(judged, accelerator)
        chosen = {"last": judged} | ({"selected": selected.network} if selected else {})
        figures, logits = {}, None
        for which, network in chosen.items():  # the last of them is the one that is deployed
            found, logits = scored(plan, network, dataset.test, range(len(dataset.test)))
            figures |= {f"test_{name}_{which}": value for name, value in found.items()}
        if plan.classify is not None and logits is not None:
            save_predictions(folder / PREDICTIONS, logits, context)
        plan.finish(folder, network)
        result = write_result(
            folder,
            accelerator,
            **figures,
            **({"selected_step": int(selected.step)} if selected else {}),
            seed=seed,
            steps=clock.steps,
            seconds=seconds + run.seconds,
            split_hash=context.split.hash,
        )
    accelerator.wait_for_everyone()  # before another process looks for what the first one has written
    accelerator.free_memory()  # of all that it has prepared, which it would keep
    return result


def hidden_labels(context: Context) -> Int64[Tensor, " images"]:
    """The classes of the training part's images that the split hides, on the device; of the others -1."""
    labels = context.dataset.train.labels.clone()
    labels[list(context.split.labelled)] = -1
    return labels.to(context.accelerator.device)


def scored(plan: Plan, network: nn.Module, part: Part, indices: Sequence[int]) -> Scored:
    """The plan's score of a network in evaluation mode, which it leaves in the mode that it was in."""
    with evaluated(network):
        return plan.score(network, part, indices)


@contextmanager
def evaluated(network: nn.Module) -> Iterator[None]:
    """In this block a network is in evaluation mode."""
    training = network.training
    try:
        network.eval()
        yield
    finally:
        network.train(training)
