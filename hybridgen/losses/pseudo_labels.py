"""What predictions for weak views teach, and how much: distribution alignment, thresholds and weights."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

Classes = Float[Tensor, " classes"]
"""A figure of each class."""

Scalar = Float[Tensor, ""]


def aligned(
    probabilities: Float[Tensor, "batch classes"], towards: Classes, average: Classes
) -> Float[Tensor, "batch classes"]:
    """Distribution alignment (ReMixMatch, Berthelot et al. 2020, section 3.1): class probabilities times the ratio of
    the distribution that they are to have to the one that they have on `average`, made to sum to one again.

    To both distributions 10⁻⁶ is added, as in the code of ReMixMatch and AdaMatch. No gradient.
    """
    ratio = (towards + 1e-6) / (average + 1e-6)
    weighted = probabilities.detach() * ratio
    return weighted / weighted.sum(dim=1, keepdim=True)


def flexible_thresholds(learnt: Classes, unused: Scalar, threshold: float) -> Classes:
    """FlexMatch's thresholds by curriculum pseudo labelling (Zhang et al. 2021, section 3), in [0, threshold].

    `learnt` counts the unlabelled images whose last confident pseudo-label is of this class, σ; `unused` those that
    have had none yet. A class's learning effect β is its count over the largest one, or over `unused` as long as that
    is larger (threshold warm-up); its threshold is the part β / (2 - β) of `threshold` (the convex mapping).
    """
    most = torch.maximum(learnt.max(), unused).clamp(min=1)
    effect = learnt / most
    return threshold * effect / (2 - effect)


def adaptive_thresholds(confidence: Scalar, expectation: Classes) -> Classes:
    """FreeMatch's self-adaptive thresholds (Wang et al. 2023, section 4), in [0, 1]: the mean confidence, τ_t, for the
    class of the largest mean probability, p̃_t, and less for others in proportion to theirs."""
    return confidence * expectation / expectation.max()


def fairness(predicted: Classes, counts: Classes, expectation: Classes, histogram: Classes) -> Scalar:
    """FreeMatch's self-adaptive fairness (Wang et al. 2023, equation 11): the negative cross-entropy of two
    distributions over classes, which, minimised, spreads predictions. Gradient to `predicted` only.

    `predicted` are class probabilities of the counted images' strong views, summed or averaged, p̄; `counts` tells how
    many of these views are of which class, h̄. `expectation` and `histogram` are the same of weak views, over time. Each
    pair's ratio is normalised over classes. Classes that no counted view is of are left out (the authors' code adds a
    constant for them); 0 if no image counts.
    """
    target = _sum_normalised(expectation * _inverse(histogram)).detach()
    shown = counts > 0
    share = _sum_normalised(predicted * _inverse(counts).detach())
    return (target * torch.where(shown, share, 1.0).log()).sum()


def _inverse(values: Classes) -> Classes:
    """Zero for what is zero, or too near it for an inverse."""
    there = values > torch.finfo(values.dtype).tiny
    return torch.where(there, 1 / torch.where(there, values, 1.0), 0.0)


def _sum_normalised(values: Classes) -> Classes:
    return values / values.sum().clamp(min=torch.finfo(values.dtype).tiny)


def truncated_gaussian(
    confidence: Float[Tensor, " batch"], mean: Scalar, variance: Scalar, *, sigmas: float
) -> Float[Tensor, " batch"]:
    """SoftMatch's weights (Chen et al. 2023, section 3), in (0, 1]: 1 from the mean confidence on, and below it a
    Gaussian of the distance to it, whose deviation is that of confidence divided by `sigmas` (1 in the paper's
    equation, 2 in the authors' code)."""
    below = (confidence - mean).clamp(max=0)
    return torch.exp(-(sigmas**2) * below.square() / (2 * variance))


def effective_classes(labels: Int64[Tensor, " batch"], weights: Float[Tensor, " batch"], classes: int) -> Scalar:
    """Among how many classes the weights of pseudo-labels are spread: the exponential of their distribution's entropy.

    From 1, of one class alone, to all `classes` alike; 0 where nothing has a weight.
    """
    total = weights.new_zeros(classes).index_add(0, labels, weights)
    return torch.special.entr(_sum_normalised(total)).sum().exp() * (weights.sum() > 0)
