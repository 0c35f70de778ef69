"""SAMOSA: a classifier, and the auto-encoder that learns beside it and regularizes it (thesis 2.3.3)."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from hybridgen.losses.reconstruction import Reduction, squared_error
from hybridgen.networks.autoencoder import SamosaAutoencoder, SamosaClassifier, SamosaFeatures
from hybridgen.networks.decoder import SamosaDecoder
from hybridgen.networks.frozen import frozen
from hybridgen.networks.wide_resnet import Normalize
from hybridgen.training.objective import Outcome
from hybridgen.training.schedules import Clock
from hybridgen.types import Batch, Images, InputError, Labels


class Seen(NamedTuple):
    """Images that a watched classifier saw, and what it made of them."""

    images: Images
    semantic: Float[Tensor, "batch channels rows columns"]
    """z_c."""
    before: Float[Tensor, "batch channels rows columns"]
    """The output of E_c's last convolution but one."""


class _Memory(list[Seen]):
    """Not copied with its owner: what a step saw belongs to that step's graph."""

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Memory":
        return _Memory()


class Watched(nn.Module):
    """SAMOSA's classifier as the base method X knows one: images to the logits of one head or of both.

    Keeps what the forwards that carry gradient saw until it is `taken`. The memory is no part of the state, copies
    (a teacher) start with an empty one, and `torch.func.functional_call` fills it too. With one head the second does
    not learn.
    """

    def __init__(self, classifier: SamosaClassifier, *, heads: Literal[1, 2]) -> None:
        super().__init__()
        self.classifier, self.heads = classifier, heads
        self._memory = _Memory()
        if heads == 1:
            classifier.heads.consistency.requires_grad_(False)

    def forward(
        self, images: Images
    ) -> Float[Tensor, "batch classes"] | tuple[Float[Tensor, "batch classes"], Float[Tensor, "batch classes"]]:
        """Predictions; or predictions and consistency."""
        features: SamosaFeatures = self.classifier(images)
        if features.before.requires_grad:
            self._memory.append(Seen(images, features.semantic, features.before))
        return features.predictions if self.heads == 1 else (features.predictions, features.consistency)

    def taken(self) -> Seen:
        """What was seen since the last time, in order. InputError if that is nothing."""
        if not self._memory:
            raise InputError("watched: the classifier saw no images with gradient; is it the base objective's?")
        seen = Seen(*(torch.cat(parts) for parts in zip(*self._memory, strict=True)))
        self.forget()
        return seen

    def forget(self) -> None:
        """Empty the memory."""
        self._memory.clear()


class Samosa(nn.Module):
    """L_0,X and Ω_rec (equations 2.6 and 2.7), for E_c and C.

    `base` is the objective of method X on the `watched` classifier. Losses: X's, and `regularizer`, which ties E_c's
    last convolution but one to D^(0)(z_c). Its gradient reaches the layers up to that convolution, not E_c's last one,
    nor C; D^(0) is frozen and z_c detached. Hands on the images that X's forwards with gradient saw, and their z_c,
    for `SamosaReconstruction`.

    With `clean_only` both losses take only the first of these: the labelled and one view of the unlabelled images of
    the batch, which FixMatch shows before the strong views (strong augmentations "interfere with the generative
    process", 2.3.5). InputError for a base objective that does not contain `watched`, hands something on, or showed
    it too little.
    """

    def __init__(
        self,
        base: nn.Module,
        watched: Watched,
        decoder: SamosaDecoder,
        *,
        clean_only: bool = False,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__()
        if not any(module is watched for module in base.modules()):
            raise InputError("watched: is no part of the base objective, and would see nothing")
        self.base = base
        self._watched = (watched,)  # in a tuple: a part of `base` already
        self.first = frozen(decoder.first)
        self.clean_only, self.reduction = clean_only, reduction

    def forward(self, batch: Batch, clock: Clock) -> Outcome:
        (watched,) = self._watched
        watched.forget()
        losses, rates, handed = self.base(batch, clock)
        if handed:
            raise InputError("base: hands on tensors, but the reconstruction's objective comes next")
        seen = watched.taken()
        if self.clean_only:
            clean = len(batch.labels) + len(batch.unlabelled[0])
            if len(seen.images) < clean:
                raise InputError(
                    f"base: showed the classifier {len(seen.images)} images, fewer than {clean} clean ones"
                )
            seen = Seen(*(part[:clean] for part in seen))
        semantic = seen.semantic.detach()
        regularizer = squared_error(seen.before, self.first(semantic), reduction=self.reduction)
        return Outcome(losses | {"regularizer": regularizer}, rates, handed=(seen.images.detach(), semantic))


class SamosaReconstruction(nn.Module):
    """L_rec (equation 2.7), for E_r and D: how far D(z_c, E_r(x)) is from the standardised image x.

    Loss: `reconstruction`. Gradient reaches E_r and D and never E_c: trained for reconstruction, it would let D ignore
    z_r (thesis 2.3.3).
    """

    def __init__(
        self,
        nonsemantic_encoder: nn.Module,
        decoder: SamosaDecoder,
        normalize: Normalize,
        *,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__()
        self.nonsemantic_encoder, self.decoder, self.normalize = nonsemantic_encoder, decoder, normalize
        self.reduction = reduction

    def forward(
        self, batch: Batch, clock: Clock, images: Images, semantic: Float[Tensor, "batch channels rows columns"]
    ) -> Outcome:
        output = self.decoder(semantic.detach(), self.nonsemantic_encoder(images))
        return Outcome({"reconstruction": squared_error(output, self.normalize(images), reduction=self.reduction)})


@torch.no_grad()
def samosa_hybrids(
    autoencoder: SamosaAutoencoder, semantic: Images, nonsemantic: Images, labels: Labels | None = None
) -> tuple[Images, Bool[Tensor, " batch"]]:
    """Algorithm A.3: hybrids of pairs of images in [0, 1], and which of them were kept; never with gradient.

    A hybrid is kept if C(E_c(x_h)) gives it the label of its semantic parent, who else takes its place (thesis 2.3.4;
    the algorithm's own test is the wrong way round). Without `labels` it is the class that C gives this parent.
    Networks run in evaluation mode, and are left in the mode they were in.
    """
    with _evaluation(autoencoder):
        parents: SamosaFeatures = autoencoder.classifier(semantic)
        hybrids = autoencoder.decode(parents.semantic, autoencoder.nonsemantic_encoder(nonsemantic))
        expected = parents.predictions.argmax(dim=1) if labels is None else labels
        kept = autoencoder.classifier(hybrids).predictions.argmax(dim=1) == expected
    return torch.where(kept[:, None, None, None], hybrids, semantic), kept


@contextmanager
def _evaluation(network: nn.Module) -> Iterator[None]:
    """Evaluation mode, and afterwards every module's own mode again."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
