"""What AdaIN's networks learn: perceptual features, and then the decoder (Huang and Belongie 2017; thesis 2.2.2.1)."""

import torch
from torch import nn

from hybridgen.losses import style
from hybridgen.losses.classification import cross_entropy
from hybridgen.networks.adain import AdaINAutoencoder, VGGPerception, WideResNetPerception, adain, moments
from hybridgen.training.objective import Outcome
from hybridgen.training.schedules import Clock
from hybridgen.types import Batch


class Perception(nn.Module):
    """Features of a classifier: loss `supervised`, on the first view of the labelled images."""

    def __init__(self, classifier: WideResNetPerception | VGGPerception) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, batch: Batch, clock: Clock) -> Outcome:
        _, logits = self.classifier(batch.labelled[0])
        return Outcome({"supervised": cross_entropy(logits, batch.labels)})


class AdaINTransfer(nn.Module):
    """Losses `content` and `style`, on the first view of the unlabelled images.

    Every image is the content of one hybrid and the style of another. Gradient reaches the decoder alone; the features
    are of the classifier as it is, which learns no more.
    """

    def __init__(self, autoencoder: AdaINAutoencoder) -> None:
        super().__init__()
        self.autoencoder = autoencoder
        autoencoder.classifier.requires_grad_(False).eval()

    def forward(self, batch: Batch, clock: Clock) -> Outcome:
        images, features = batch.unlabelled[0], self.autoencoder.classifier.features
        partner = torch.randperm(len(images), device=images.device)
        with torch.no_grad():
            known = features(images)
            target = adain(known[-1], known[-1][partner])
        seen = features(self.autoencoder.decoder(target))
        return Outcome(
            {
                "content": style.content(seen[-1], target),
                "style": style.style([moments(maps) for maps in seen], [moments(maps)[partner] for maps in known]),
            }
        )
