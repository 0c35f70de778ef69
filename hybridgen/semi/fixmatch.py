"""FixMatch (Sohn et al. 2020; thesis 2.2.1.2), with or without hybrids."""

import torch
from torch import nn

from hybridgen.losses.classification import confident, cross_entropy, pseudo_label
from hybridgen.semi.hybrids import HybridSource, HybridUse, with_hybrids
from hybridgen.training.objective import Outcome
from hybridgen.training.schedules import Clock
from hybridgen.types import Batch


class FixMatch(nn.Module):
    """Losses `supervised` and `unsupervised`, and with a hybridizer `hybrids`.

    Labelled, weak and strong images go through the classifier in one forward, whose batch-norm statistics are those
    of all of them together; hybrids, in their window, in one of their own. Pseudo-labels and the targets of hybrids
    come from the weak views of that same forward, without gradient. Batches carry one view of the labelled images and
    two, weak and strong, of the unlabelled.
    """

    def __init__(
        self,
        classifier: nn.Module,
        *,
        threshold: float = 0.95,
        hybridizer: HybridSource | None = None,
        how: HybridUse | None = None,
    ) -> None:
        super().__init__()
        self.classifier, self.threshold = classifier, threshold
        self._hybridizer = (hybridizer,)  # in a tuple: not a part of what is trained, averaged and saved
        self.how = how or HybridUse()

    def forward(self, batch: Batch, clock: Clock) -> Outcome:
        (labelled,), (weak, strong) = batch.labelled, batch.unlabelled
        logits = self.classifier(torch.cat([labelled, weak, strong]))
        of_labelled, of_weak, of_strong = logits.split([len(labelled), len(weak), len(strong)])
        losses = {
            "supervised": cross_entropy(of_labelled, batch.labels),
            "unsupervised": pseudo_label(of_weak, of_strong, threshold=self.threshold),
        }
        _, mask = confident(of_weak, self.threshold)
        rates = {"confident": mask.float().mean()}
        images = torch.cat([labelled, weak])
        return with_hybrids(
            Outcome(losses, rates),
            self.classifier,
            *self._hybridizer,
            images,
            logits[: len(images)].detach().softmax(dim=1),
            batch.labels,
            self.how,
            clock,
        )
