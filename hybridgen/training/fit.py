"""The training loop."""

from collections.abc import Iterator, Mapping

import torch
from accelerate import Accelerator
from jaxtyping import Int64
from torch import Tensor

from hybridgen.data.streams import derive_seed
from hybridgen.training.objective import Task, right, weighted
from hybridgen.training.schedules import Clock
from hybridgen.types import Batch


class Diverged(FloatingPointError):
    """A loss is not finite any more."""

    def __init__(self, term: str, step: int) -> None:
        super().__init__(f"loss '{term}' is not finite at step {step}")
        self.term, self.step = term, step


def fit(
    tasks: Mapping[str, Task],
    batches: Iterator[Batch],
    clock: Clock,
    accelerator: Accelerator,
    *,
    seed: int,
    check_every: int = 50,
    hidden: Int64[Tensor, " images"] | None = None,
) -> Iterator[dict[str, Tensor]]:
    """Train to the clock's last step and yield after every step its scalars, still on the device.

    Every task of a step sees the same batch, and what the task before it handed on. Averages, records, evaluation and
    saving stand in the body of the caller's `for` loop. All draws inside objectives come from torch's global
    generator, which each step seeds from (seed, rank, step): a resumed run draws what an uninterrupted one would.

    Raises Diverged, naming term and step, for a loss that is not finite: at once on a CPU; on an accelerator, where
    looking costs a synchronisation, within `check_every` steps. Raises InputError for a loss without a weight.

    `hidden`: the classes of the training part's images, on the device, -1 where they are not known or not hidden; what
    objectives guess is compared with them (`right`), and no objective sees them.
    """
    first_bad: Tensor | None = None
    check_every = 1 if accelerator.device.type == "cpu" else check_every

    while not clock.done:
        torch.manual_seed(derive_seed(seed, "step", accelerator.process_index, clock.step))
        batch = next(batches)
        scalars: dict[str, Tensor] = {}
        terms: dict[str, Tensor] = {}
        handed: tuple[Tensor, ...] = ()

        for name, task in tasks.items():
            # Losses
            losses, rates, handed, _, guessed = task.objective(batch, clock, *handed)
            parts = weighted(losses, task.weights, clock)
            total = torch.stack(list(parts.values())).sum()

            # Gradients
            task.optimizer.zero_grad(set_to_none=True)
            accelerator.backward(total)
            accelerator.unscale_gradients(task.optimizer)  # of fp16's, before anyone looks at them
            norm = torch.nn.utils.get_total_norm([p.grad for p in task.parameters if p.grad is not None])
            if task.clip is not None:
                torch.nn.utils.clip_grads_with_norm_(task.parameters, task.clip, norm)

            # Step
            rate = task.rate(clock)
            for group in task.optimizer.param_groups:
                group["lr"] = rate * group.get("factor", 1.0)
            task.optimizer.step()

            # What happened
            terms |= {f"{name}/{term}": loss.detach() for term, loss in losses.items()}
            scalars |= {f"{name}/weighted/{term}": part.detach() for term, part in parts.items()}
            scalars |= {f"{name}/{term}": rate for term, rate in rates.items()}
            if guessed is not None and hidden is not None and batch.indices is not None:
                compared = right(guessed, hidden[batch.indices])
                scalars |= {f"{name}/{term}": count for term, count in compared.items()}
            scalars |= {f"{name}/total": total.detach(), f"{name}/gradient_norm": norm}

        clock.step += 1
        finite = torch.isfinite(torch.stack(list(terms.values())))
        bad = torch.where(finite, clock.steps + 1, clock.step)
        first_bad = bad if first_bad is None else torch.minimum(first_bad, bad)
        if clock.every(check_every):
            step, term = min(zip(first_bad.tolist(), terms, strict=True))
            if step <= clock.steps:
                raise Diverged(term, step)
        yield terms | scalars
