"""The end of a recipe: what its hybrids inherit, the report, and what is said of what there is now."""

import json
import math
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from accelerate import Accelerator

from hybridgen.evaluation.oracle import Judge, Training, oracle_of
from hybridgen.evaluation.transfer import Rates, spoken_rates, transfer_rates, verdict, wilson
from hybridgen.files import write_text
from hybridgen.hybridizer import Hybridizer
from hybridgen.tables.left import TRANSFER
from hybridgen.tables.pictures import PICTURE
from hybridgen.tables.report import REPORT, write_report
from hybridgen.training.context import Context, RunSettings
from hybridgen.training.plan import Plan
from hybridgen.training.record import finished_inside
from hybridgen.training.train import Result
from hybridgen.types import InputError


def save_transfer(folder: Path, rates: Rates, context: Context) -> None:
    """Write the rates with the confusion of classes, null for classes without a semantic parent."""
    if context.accelerator.is_main_process:
        confusion = [[share if math.isfinite(share) else None for share in row] for row in rates.confusion.tolist()]
        found = rates.to_dict() | {"classes": list(context.dataset.classes), "confusion": confusion}
        write_text(folder / TRANSFER, json.dumps(found) + "\n")


def end(out: Path, accelerator: Accelerator, following: Sequence[str] = ()) -> None:
    """Write the report of a folder, and tell what lies there and which command may follow, by its arguments. A report
    that cannot be written is told of and fails nothing."""
    if not accelerator.is_main_process:
        return
    try:
        write_report([out], out / REPORT)
    except InputError as error:
        print(f"report: not written: {error}", file=sys.stderr)
    runs = [out, *finished_inside(out)]
    print("\n".join(["written:", *(f"  {run}: {', '.join(_left(run))}" for run in runs if run.is_dir())]))
    if following:
        print(f"next: hybridgen {shlex.join(following)}")


def _left(folder: Path) -> list[str]:
    """Names of what a folder holds, the report first; of runs inside it nothing."""
    there = [path for path in folder.iterdir() if not path.name.startswith(".") and not (path / "config.yaml").exists()]
    names = [f"{path.name}/" if path.is_dir() else path.name for path in there]
    return sorted(names, key=lambda name: (name != REPORT, name))


def conclude_hybridizer(
    settings: RunSettings, plan: Plan, hybridizer: Hybridizer, judge: Judge, result: Result, *, teaches: bool = True
) -> Result:
    """Of one that has been trained: have its hybrids judged, by an oracle that is there or trains for a twentieth of
    the run at most; print the accuracy of its classifier, rates and verdict; write transfer.json and the report; tell
    how to train a classifier of its split with its hybrids, if it `teaches` one."""
    context = plan.context
    accelerator, dataset, out = context.accelerator, context.dataset, settings.out
    images, steps = len(dataset.test.known), result["steps"]
    own = "no test image of known class"
    if images:
        share, low, high = (100 * share for share in wilson(result["test_accuracy_last"], images))
        own = f"test accuracy {share:.1f} % [{low:.1f}, {high:.1f}], 95 % by {images} test images"
    lines = [
        f"\n{dataset.name}, {len(context.split.labelled)} labels, {steps} steps, {result['seconds']:.0f} seconds",
        f"its own classifier: {own}",
    ]
    if judge is None:
        lines.append(f"hybrids: not judged (--oracle none); {out / PICTURE}")
    else:
        if isinstance(judge, Training):
            judge = judge.within(steps * plan.stream.images_per_step)
        rates = transfer_rates(hybridizer, dataset, oracle_of(judge, dataset, accelerator), accelerator)
        save_transfer(out, rates, context)
        told = rates.to_dict()
        lines += [f"hybrids: {spoken_rates(told)}; {out / PICTURE}", f"hybrids: {verdict(told)}"]
    accelerator.print("\n".join(lines))
    end(out, accelerator, _teaching(settings, hybridizer.origin.method) if teaches else ())
    return result


def _teaching(settings: RunSettings, method: str) -> list[str]:
    """Arguments that train a classifier with these hybrids, on the same split."""
    recipe = "scimix-fixmatch" if method == "scimix" else "fixmatch"
    words = ["train", recipe, "--hybridizer", str(settings.out / "hybridizer")]
    default = RunSettings()
    for name in ("data", "image_size", "whole", "flip", "data_root", "labels", "split", "split_seed", "validation"):
        if (value := getattr(settings, name)) != getattr(default, name):
            words += [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]
    return words
