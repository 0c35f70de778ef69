"""What an ensemble is judged by (thesis 3.3.4 and A.1.3.2)."""

from statistics import fmean

from hybridgen.evaluation import calibration, classification, diversity
from hybridgen.evaluation.classification import Classes, Predicted
from hybridgen.evaluation.diversity import Members
from hybridgen.networks.members import Ensemble, ensembled
from hybridgen.training.scores import Measure

TOP = 5


def shares(members: Members, logits: Predicted, labels: Classes) -> dict[str, float]:
    """Those of its figures that are shares of images: `accuracy`, `top5`, `member_accuracy_0`, …, in [0, 1]."""
    return {
        "accuracy": classification.top_accuracy(logits, labels),
        "top5": classification.top_accuracy(logits, labels, TOP),
        **{f"member_accuracy_{i}": classification.top_accuracy(member, labels) for i, member in enumerate(members)},
    }


def judged_by(of: Ensemble) -> Measure:
    """The measure of ensembles of the members' logits or probabilities.

    Of the ensemble: `accuracy`, `top5`, `nll`, `nll_calibrated` (of two images or more), `ece`, `brier`. Of members:
    `member_accuracy_0`, …, and their mean, `member_accuracy`; of two or more, `disagreement`, `ratio_error` and
    `error_correlation`.
    """

    def measure(members: Members, labels: Classes) -> dict[str, float]:
        logits = ensembled(members, of)
        figures = shares(members, logits, labels) | {
            "nll": classification.nll(logits, labels),
            "ece": calibration.calibration_error(logits, labels),
            "brier": classification.brier(logits, labels),
            "member_accuracy": fmean(classification.top_accuracy(member, labels) for member in members),
        }
        if len(labels) > 1:
            figures["nll_calibrated"] = calibration.calibrated_nll(logits, labels)
        if len(members) > 1:
            figures["disagreement"] = diversity.disagreement(members)
            figures["ratio_error"] = diversity.ratio_error(members, labels)
            figures["error_correlation"] = diversity.error_correlation(members, labels)
        return figures

    return measure
