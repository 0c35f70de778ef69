"""What an ensemble is judged by (thesis 3.3.4 and A.1.3.2)."""

from statistics import fmean

from hybridgen.evaluation import calibration, classification, diversity
from hybridgen.evaluation.classification import Classes
from hybridgen.evaluation.diversity import Members
from hybridgen.networks.members import Ensemble, ensembled
from hybridgen.training.scores import Measure

TOP = 5


def judged_by(of: Ensemble) -> Measure:
    """The measure of ensembles of the members' logits or probabilities.

    Of the ensemble: `accuracy`, `top5`, `nll`, `nll_calibrated` (of two images or more), `ece`, `brier`. Of members:
    `member_accuracy_0`, …, and their mean, `member_accuracy`; of two or more, `disagreement`, `ratio_error` and
    `error_correlation`.
    """

    def measure(members: Members, labels: Classes) -> dict[str, float]:
        logits = ensembled(members, of)
        alone = [classification.top_accuracy(member, labels) for member in members]
        figures = {
            "accuracy": classification.top_accuracy(logits, labels),
            "top5": classification.top_accuracy(logits, labels, TOP),
            "nll": classification.nll(logits, labels),
            "ece": calibration.calibration_error(logits, labels),
            "brier": classification.brier(logits, labels),
            "member_accuracy": fmean(alone),
            **{f"member_accuracy_{place}": accuracy for place, accuracy in enumerate(alone)},
        }
        if len(labels) > 1:
            figures["nll_calibrated"] = calibration.calibrated_nll(logits, labels)
        if len(members) > 1:
            figures["disagreement"] = diversity.disagreement(members)
            figures["ratio_error"] = diversity.ratio_error(members, labels)
            figures["error_correlation"] = diversity.error_correlation(members, labels)
        return figures

    return measure
