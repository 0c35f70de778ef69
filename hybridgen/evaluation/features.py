"""What a linear classifier can read from the codes of a hybridizer (thesis A.3.3)."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from hybridgen.data.datasets import Part
from hybridgen.data.streams import batches
from hybridgen.evaluation.transfer import Rate, wilson
from hybridgen.types import Images, InputError


@torch.no_grad()
def encoded(
    encoder: Callable[[Images], Float[Tensor, "batch *code"]],
    part: Part,
    indices: Int64[Tensor, " n"],
    device: torch.device | str = "cpu",
    *,
    batch_size: int = 512,
) -> Float[Tensor, "n *code"]:
    """The codes of these images, on the CPU."""
    return torch.cat([encoder(images).cpu() for images, _ in batches(part, indices, batch_size, device)])


def linear_probe(
    train: Float[Tensor, "train *code"],
    train_labels: Int64[Tensor, " train"],
    test: Float[Tensor, "test *code"],
    test_labels: Int64[Tensor, " test"],
) -> Rate:
    """Accuracy on `test` of a linear classifier that was fitted to `train`, and its 95 % Wilson interval.

    Logistic regression on flattened codes, each feature brought to mean 0 and deviation 1 over `train`; it minimises
    Σ cross-entropy + ½‖W‖². InputError where `train` holds fewer than two classes.
    """
    # Whoever reads a run that is finished would wait for seconds
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if len(train_labels.unique()) < 2:
        raise InputError("probe: a classifier needs training images of two classes at least")
    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    classifier.fit(train.flatten(1).double().numpy(), train_labels.numpy())
    accuracy = classifier.score(test.flatten(1).double().numpy(), test_labels.numpy())
    return wilson(float(accuracy), len(test_labels))
