"""Stage 1 of SciMix: the objectives of the hybridizing auto-encoder and of its discriminator (thesis 2.4.1)."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hybridgen.losses import adversarial, classification, consistency, hybridization
from hybridgen.losses.reconstruction import Distance, reconstruction
from hybridgen.networks.autoencoder import Codes, SemanticAutoencoder
from hybridgen.networks.discriminator import Discriminator
from hybridgen.networks.frozen import frozen
from hybridgen.networks.wide_resnet import Normalize
from hybridgen.training.ema import EMA
from hybridgen.training.objective import Outcome
from hybridgen.training.schedules import Clock
from hybridgen.types import Batch, Images, Losses

Guide = Literal["mean-teacher", "fixmatch", "supervised"]
"""What makes z_c semantic: L_S on E_c and C (footnote 1 of 2.4.1; A.4.1)."""


class SciMixGenerator(nn.Module):
    """L_gen = L_AE + L_S + L_hyb (equation 2.9), for E_c, C, E_r and G.

    Losses: `reconstruction`, `adversarial_reconstruction`, `adversarial_hybrid`, `semantic_attraction`,
    `semantic_repulsion`, `nonsemantic_attraction`, `nonsemantic_repulsion`, and those of the guide: `supervised`;
    `consistency` and `logit_distance` (Mean Teacher); `pseudo_label` (FixMatch). Every image of the batch is the
    semantic parent of one hybrid and the non-semantic parent of another.

    Gradient of the hybridization losses reaches the codes and G through the hybrid's pixels; what judges a hybrid
    (E_c, C, E_r, the discriminator) is frozen unless `freeze_criteria` is off (table A.14). Batches carry two views:
    weak and weak for Mean Teacher, weak and strong of the unlabelled images for FixMatch.
    """

    def __init__(
        self,
        autoencoder: SemanticAutoencoder,
        discriminator: Discriminator,
        *,
        guide: Guide = "mean-teacher",
        teacher_decay: float = 0.97,
        threshold: float = 0.95,
        semantic_distance: hybridization.SemanticDistance = "norm",
        nonsemantic_distance: Distance = "norm",
        reconstruction_distance: Distance = "norm",
        consistency_reduction: consistency.Reduction = "mean",
        freeze_criteria: bool = True,
        criterion_shift: int = 0,
        criterion_noise: float = 0.0,
    ) -> None:
        super().__init__()
        self.autoencoder = autoencoder
        self.guide, self.threshold = guide, threshold
        self.semantic_distance, self.nonsemantic_distance = semantic_distance, nonsemantic_distance
        self.reconstruction_distance, self.consistency_reduction = (
            reconstruction_distance,
            consistency_reduction,
        )
        self.criterion_shift, self.criterion_noise = criterion_shift, criterion_noise
        self.normalize = Normalize(autoencoder.architecture.mean, autoencoder.architecture.std)
        self.judge = frozen(discriminator)
        self.freeze_criteria = freeze_criteria
        if guide == "mean-teacher":
            self.teacher = EMA(autoencoder.classifier, teacher_decay, buffers="own")
        else:
            autoencoder.classifier.heads.consistency.requires_grad_(False)

    def forward(self, batch: Batch, clock: Clock) -> Outcome:
        images = torch.cat([batch.labelled[0], batch.unlabelled[0]])
        codes, strong = self._encode(images, batch)

        # Reconstructions, and hybrids with another image's non-semantic content
        partner = torch.randperm(len(images), device=images.device)
        decoded = self.autoencoder.decode(
            torch.cat([codes.semantic, codes.semantic]),
            torch.cat([codes.nonsemantic, codes.nonsemantic[partner]]),
        )
        reconstructions, hybrids = decoded.chunk(2)
        judged_reconstructions, judged_hybrids = self.judge(decoded).chunk(2)

        # What the criteria see in the hybrids
        criterion = frozen(self.autoencoder) if self.freeze_criteria else self.autoencoder
        seen: Codes = criterion(self._disturbed(hybrids))

        losses = {
            "reconstruction": reconstruction(
                self.normalize(reconstructions), self.normalize(images), kind=self.reconstruction_distance
            ),
            "adversarial_reconstruction": adversarial.fool(judged_reconstructions),
            "adversarial_hybrid": adversarial.fool(judged_hybrids),
            "semantic_attraction": hybridization.semantic_attraction(
                seen.predictions, codes.predictions, kind=self.semantic_distance
            ),
            "semantic_repulsion": hybridization.semantic_repulsion(
                seen.predictions, codes.predictions[partner], kind=self.semantic_distance
            ),
            "nonsemantic_attraction": hybridization.nonsemantic_attraction(
                seen.nonsemantic, codes.nonsemantic[partner], kind=self.nonsemantic_distance
            ),
            "nonsemantic_repulsion": hybridization.nonsemantic_repulsion(
                seen.nonsemantic, codes.nonsemantic, kind=self.nonsemantic_distance
            ),
        } | self._guided(batch, codes, strong)
        transferred = seen.predictions.argmax(dim=1) == codes.predictions.argmax(dim=1)
        return Outcome(
            losses,
            rates={"own_semantic_transfer": transferred.float().mean()},
            handed=(images, reconstructions.detach(), hybrids.detach()),
        )

    def _encode(self, images: Images, batch: Batch) -> tuple[Codes, Float[Tensor, "unlabelled classes"] | None]:
        """The codes of the images; and for FixMatch the logits of the batch's strong views.

        E_c sees both in one batch: in FixMatch batch-norm's statistics are over all views.
        """
        if self.guide != "fixmatch":
            return self.autoencoder(images), None
        strong = batch.unlabelled[1]
        encoded = self.autoencoder.classifier(torch.cat([images, strong]))
        (semantic, _), (predictions, of_strong), (consistent, _) = (
            part.split([len(images), len(strong)]) for part in encoded
        )
        return Codes(semantic, self.autoencoder.nonsemantic_encoder(images), predictions, consistent), of_strong

    def _guided(self, batch: Batch, codes: Codes, strong: Float[Tensor, "unlabelled classes"] | None) -> Losses:
        """L_S: the losses that make z_c semantic."""
        count = len(batch.labels)
        labelled, unlabelled = codes.predictions[:count], codes.predictions[count:]
        if self.guide == "supervised":
            return {"supervised": classification.cross_entropy(labelled, batch.labels)}
        if strong is not None:
            return {
                "supervised": classification.cross_entropy(labelled, batch.labels),
                "pseudo_label": classification.pseudo_label(unlabelled, strong, threshold=self.threshold),
            }
        with torch.no_grad():
            _, target, _ = self.teacher(torch.cat([batch.labelled[1], batch.unlabelled[1]]))
        return consistency.mean_teacher(
            codes.predictions, codes.consistency, target, batch.labels, reduction=self.consistency_reduction
        )

    def _disturbed(self, hybrids: Images) -> Images:
        """Hybrids shifted by a few pixels, all by the same, with a little noise: so criteria are harder to fool."""
        if self.criterion_shift:
            shift = self.criterion_shift
            row, column = torch.randint(0, 2 * shift + 1, (2,)).tolist()
            padded = nn.functional.pad(hybrids, (shift,) * 4, mode="reflect")
            hybrids = padded[:, :, row : row + hybrids.shape[2], column : column + hybrids.shape[3]]
        if self.criterion_noise:
            hybrids = hybrids + self.criterion_noise * torch.randn_like(hybrids)
        return hybrids


class SciMixDiscriminator(nn.Module):
    """The critic's side of L_adv,r and L_adv,h: real images against reconstructions and against hybrids.

    Losses: `real`, `reconstruction`, `hybrid`, and with `penalize` R1's `gradient_penalty` (ours: the thesis's
    discriminator is unregularised). Gradient reaches the discriminator only.
    """

    def __init__(self, discriminator: Discriminator, *, penalize: bool = False) -> None:
        super().__init__()
        self.discriminator = discriminator
        self.penalize = penalize

    def forward(
        self,
        batch: Batch,
        clock: Clock,
        images: Float[Tensor, "batch 3 height width"],
        reconstructions: Float[Tensor, "batch 3 height width"],
        hybrids: Float[Tensor, "batch 3 height width"],
    ) -> Outcome:
        images = images.detach().requires_grad_(self.penalize)
        real, *fakes = self.discriminator(torch.cat([images, reconstructions, hybrids])).chunk(3)
        losses = {
            "real": adversarial.detect_real(real),
            "reconstruction": adversarial.detect_fake(fakes[0]),
            "hybrid": adversarial.detect_fake(fakes[1]),
        }
        if self.penalize:
            losses["gradient_penalty"] = adversarial.gradient_penalty(real, images)
        rates = {
            "accuracy_real": (real > 0).float().mean(),
            "accuracy_reconstruction": (fakes[0] < 0).float().mean(),
            "accuracy_hybrid": (fakes[1] < 0).float().mean(),
        }
        return Outcome(losses, rates={name: rate.detach() for name, rate in rates.items()})
