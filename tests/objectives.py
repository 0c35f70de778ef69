"""Objectives as tests make them: of the papers' values unless told otherwise, with hybrids if there is a hybridizer."""

from functools import partial
from math import inf

import torch
from torch import nn

from hybridgen.methods import (
    adain,
    augmix,
    fixmatch,
    hybrids,
    mean_teacher,
    mixing,
    mixmatch,
    mixmo,
    mixshare,
    recursivemix,
    samosa,
    scimix,
    supervised,
)
from hybridgen.methods.pseudo_labels import FixedThreshold, PseudoLabelling

HybridUse = partial(hybrids.Settings, start=0.0, stop=inf, threshold=0.95)
AdaINTransfer, Perception = adain.AdaINTransfer, adain.Perception


def with_hybrids(base, classify, hybridizer, how) -> nn.Module:
    how = how or HybridUse()
    how = how.chosen(16, 14)
    return base if hybridizer is None else hybrids.WithHybrids(base, classify, hybridizer, how)


def FixMatch(classifier, *, threshold=0.95, labelling=None, hybridizer=None, how=None, **changes) -> nn.Module:
    labelling = labelling or PseudoLabelling(FixedThreshold(threshold=threshold), None, label_aligned=True)
    base = fixmatch.FixMatch(classifier, labelling, **dict(targets="joint", average=None, interpolated=False) | changes)
    return with_hybrids(base, classifier, hybridizer, how)


def MeanTeacher(classifier, *, teacher_decay=0.97, reduction="mean", hybridizer=None, how=None) -> nn.Module:
    base = mean_teacher.MeanTeacher(classifier, teacher_decay=teacher_decay, reduction=reduction)
    return with_hybrids(base, lambda images: classifier(images)[0], hybridizer, how)


def MixMatch(classifier, *, temperature=0.5, alpha=0.75, replacement=None, hybridizer=None, how=None) -> nn.Module:
    base = mixmatch.MixMatch(classifier, temperature=temperature, alpha=alpha, replacement=replacement)
    return with_hybrids(base, classifier, hybridizer, how)


def Supervised(classifier, *, hybridizer=None, how=None) -> nn.Module:
    return with_hybrids(supervised.Supervised(classifier), classifier, hybridizer, how)


def SciMixGenerator(autoencoder, discriminator, **changes) -> scimix.SciMixGenerator:
    options = dict(
        guide="mean-teacher", teacher_decay=0.97, threshold=0.95, semantic_distance="norm", nonsemantic_distance="norm",
        reconstruction_distance="norm", consistency_reduction="mean", freeze_criteria=True, criterion_shift=0,
        criterion_noise=0.0, criterion_views=0, half_size=0.0,
    )  # fmt: skip
    return scimix.SciMixGenerator(autoencoder, discriminator, **(options | changes))


def SciMixDiscriminator(discriminator, *, penalize=False, penalty_every=1, features=None) -> scimix.SciMixDiscriminator:
    penalty_every = penalty_every if penalize else None
    return scimix.SciMixDiscriminator(discriminator, penalty_every=penalty_every, features=features)


def Samosa(base, watched, decoder, *, clean_only=False, reduction="mean") -> samosa.Samosa:
    return samosa.Samosa(base, watched, decoder, clean_only=clean_only, reduction=reduction)


def SamosaReconstruction(encoder, decoder, normalize, *, reduction="mean") -> samosa.SamosaReconstruction:
    return samosa.SamosaReconstruction(encoder, decoder, normalize, reduction=reduction)


def Mixed(classifier, classes, **changes) -> mixing.Mixed:
    options = dict(draw=None, probability=1.0, stages=(), draw_images=None, smoothing=0.0, terms=1)
    return mixing.Mixed(classifier, classes, **(options | changes))


def AugMix(classifier, *, consistent=False, smoothing=0.0) -> augmix.AugMix:
    return augmix.AugMix(classifier, consistent=consistent, smoothing=smoothing)


def RecursiveMix(classifier, classes, **changes) -> recursivemix.RecursiveMix:
    options = dict(
        alpha=0.5, interpolation="nearest", resize=True, history=True, consistent=True, shared_head=False,
        divergence="kl", reset_each_epoch=False, smoothing=0.0,
    )  # fmt: skip
    return recursivemix.RecursiveMix(classifier, classes, **(options | changes))


def MixMo(classifier, classes, **changes) -> mixmo.MixMo:
    options = dict(mask="cutmix", patch_probability=0.5, alpha=2.0, root=3.0, input_repetition=0.0, classifiers="own",
                   cutmix=0.0, labels=torch.zeros(0, dtype=torch.int64), smoothing=0.0)  # fmt: skip
    return mixmo.MixMo(classifier, classes, **(options | changes))


def MixShare(classifier, classes, **changes) -> mixshare.MixShare:
    options = dict(
        mask="cutmix", patch_probability=1.0, alpha=2.0, root=1.0, input_repetition=0.1, classifiers="own", part=1.0,
        fade=100.0, cutmix=0.0, labels=torch.zeros(0, dtype=torch.int64), smoothing=0.0,
    )  # fmt: skip
    return mixshare.MixShare(classifier, classes, **(options | changes))
