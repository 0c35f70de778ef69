"""Mean Teacher (Tarvainen and Valpola 2017; thesis 2.2.1.1) with two heads, with or without hybrids."""

import torch
from torch import nn

from hybridgen.losses.consistency import Reduction, mean_teacher
from hybridgen.semi.hybrids import HybridSource, HybridUse, with_hybrids
from hybridgen.training.ema import EMA
from hybridgen.training.objective import Outcome
from hybridgen.training.schedules import Clock
from hybridgen.types import Batch


class MeanTeacher(nn.Module):
    """Losses `supervised`, `consistency` and `logit_distance`, and with a hybridizer `hybrids`.

    `classifier(images)` gives the logits of two heads, predictions and consistency. The student sees the first weak
    views of the labelled and unlabelled images in one forward, the teacher the second ones; hybrids, in their window,
    have a forward of their own, and their targets are the student's predictions on the first views, without gradient.
    Batches carry two views of the labelled and of the unlabelled images.

    The teacher runs in training mode with batch-norm statistics of its own and never receives gradient. After each
    step of the optimizer it is to follow the student: `objective.teacher.update(objective.classifier)`. Raises
    InputError for a decay outside [0, 1).
    """

    def __init__(
        self,
        classifier: nn.Module,
        *,
        teacher_decay: float = 0.97,
        reduction: Reduction = "mean",
        hybridizer: HybridSource | None = None,
        how: HybridUse | None = None,
    ) -> None:
        super().__init__()
        self.classifier, self.reduction = classifier, reduction
        self.teacher = EMA(classifier, teacher_decay, buffers="own")
        self._hybridizer = (hybridizer,)  # in a tuple: not a part of what is trained, averaged and saved
        self.how = how or HybridUse()

    def forward(self, batch: Batch, clock: Clock) -> Outcome:
        (labelled, labelled_again), (unlabelled, unlabelled_again) = batch.labelled, batch.unlabelled
        images = torch.cat([labelled, unlabelled])
        predictions, consistency = self.classifier(images)
        with torch.no_grad():
            taught, _ = self.teacher(torch.cat([labelled_again, unlabelled_again]))
        outcome = Outcome(mean_teacher(predictions, consistency, taught, batch.labels, reduction=self.reduction))
        return with_hybrids(
            outcome,
            lambda hybrids: self.classifier(hybrids)[0],
            *self._hybridizer,
            images,
            predictions.detach().softmax(dim=1),
            batch.labels,
            self.how,
            clock,
        )
