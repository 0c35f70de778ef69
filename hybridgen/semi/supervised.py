"""Training on labelled images alone (thesis 2.5.4, where L_S is a cross-entropy), with or without hybrids."""

import torch
from torch import nn

from hybridgen.losses.classification import cross_entropy
from hybridgen.semi.hybrids import HybridSource, HybridUse, with_hybrids
from hybridgen.training.objective import Outcome
from hybridgen.training.schedules import Clock
from hybridgen.types import Batch


class Supervised(nn.Module):
    """Loss `supervised`, and with a hybridizer `hybrids`.

    Without hybrids, and outside their window, only labelled images go through the classifier. In the window labelled
    and unlabelled images do in one forward, whose batch-norm statistics are those of all of them together, and hybrids
    of both in one of their own; the targets of hybrids come from the first, without gradient. Batches carry one view
    of the labelled and of the unlabelled images, which of a fully labelled set are its images again.
    """

    def __init__(
        self, classifier: nn.Module, *, hybridizer: HybridSource | None = None, how: HybridUse | None = None
    ) -> None:
        super().__init__()
        self.classifier = classifier
        self._hybridizer = (hybridizer,)  # in a tuple: not a part of what is trained, averaged and saved
        self.how = how or HybridUse()

    def forward(self, batch: Batch, clock: Clock) -> Outcome:
        (images,), (unlabelled,) = batch.labelled, batch.unlabelled
        (hybridizer,) = self._hybridizer
        if hybridizer is not None and self.how.active(clock):
            images = torch.cat([images, unlabelled])
        logits = self.classifier(images)
        return with_hybrids(
            Outcome({"supervised": cross_entropy(logits[: len(batch.labels)], batch.labels)}),
            self.classifier,
            hybridizer,
            images,
            logits.detach().softmax(dim=1),
            batch.labels,
            self.how,
            clock,
        )
