"""Every preset by value: fields, schedules and the mixings' options, as the papers have them.

The tables below are the papers', written down from their text and not from the package. Abbreviations of sources:
"A.1.1", "2.4.2", "table A.9": Sun's thesis; "RM": RecursiveMix (Yang et al. 2022), "RM C.2" its supplement; "AM":
AutoMix's appendix (Liu et al. 2022); "code": what the authors' code has; "ours": the papers give no value.
"""

import importlib
import importlib.util
import inspect
import math
import pkgutil
import sys
from dataclasses import fields, is_dataclass, replace
from functools import partial
from pathlib import Path
from pkgutil import resolve_name

import pytest
import torch

import hybridgen
from hybridgen.configuration import parse
from hybridgen.data import augment
from hybridgen.data.datasets import Dataset, Part
from hybridgen.data.sources import InMemory
from hybridgen.data.splits import make_split
from hybridgen.evaluation import oracle
from hybridgen.methods import (
    adain,
    fixmatch,
    hybrids,
    labelled,
    mean_teacher,
    mixing,
    mixmatch,
    mixmo,
    mixshare,
    mixvit,
    recursivemix,
    samosa,
    scimix,
    supervised,
)
from hybridgen.methods import augmix as augmix_method
from hybridgen.methods.labelled import chosen_network, rate_of
from hybridgen.mixing import masks
from hybridgen.mixing import methods as draws
from hybridgen.settings import changed
from hybridgen.tables.compare import CompareSettings
from hybridgen.training import context as context_module
from hybridgen.training.context import Context, RunSettings
from hybridgen.training.engine import make_accelerator
from hybridgen.training.schedules import Clock, value

RECIPES = Path(__file__).parents[1] / "recipes"

BOOKKEEPING = {
    "data_root", "download", "split_seed", "out", "resume", "seed", "seeds", "threads", "workers", "channels_last",
    "compiled", "record_every", "evaluate_every", "save_every", "log_with", "baseline", "method.snapshot_every",
    "samosa.snapshot_every", "oracle.oracle", "oracle.steps", "oracle.network", "hybrids.baseline",
    "hybrids.allow_other_split", "generator.snapshot_every",
}  # fmt: skip
"""Fields that change no training: where files lie, how often something is looked at, and what else is run."""


# --- What the papers say ------------------------------------------------------------------------------------------

RUN = {
    "image_size": None,  # 32 pixels as the sets have them
    "whole": False,
    "flip": "auto",  # A.1.2.1: flips, which digits have none of
    "split": None,
    "validation": 0,  # A.1.1, A.1.2.1: "no holdout validation set is kept"; RM 4.1 the same
    "sync_batchnorm": False,  # ours: each GPU's own
    "precision": "fp32",  # no paper speaks of another
}

SSL_CLASSIFIER = {
    "method.network": "leaky-wrn-28-2",  # A.1.2.4: WideResNet-28-2; LeakyReLU of table A.8
    "method.momentum": 0.1,  # A.1.1: "standard pytorch configuration (momentum = 0.1)"
    "method.weight_decay": 5e-4,  # A.1.2.3
    "method.clip": None,  # A.1.2: not clipped
    "method.ema_decay": 0.999,  # A.1.2.3: average "following (Berthelot et al. 2019)", whose decay it is
    "method.weight_supervised": 1.0,  # 2.2.1, equations 2.1 to 2.3
}

MEAN_TEACHER = SSL_CLASSIFIER | {
    "method.epochs": 300,  # A.1.2.3
    "method.rate_epochs": 350,  # A.1.2.3: "fully decrease over 350"
    "method.labelled_batch": 60,  # A.1.2.3
    "method.unlabelled_batch": 196,  # A.1.2.3
    "method.teacher_decay": 0.97,  # A.1.2.3
    "method.weight_consistency": 300,  # A.1.2.3, λ_cons
    "method.reduction": "mean",  # code of Mean Teacher and HybridNet
    "method.weight_logit_distance": 0.01,  # A.1.2.3, λ_logitdist
}

FIXMATCH = SSL_CLASSIFIER | {
    "method.momentum": 0.001,  # code of FixMatch
    "method.epochs": 1000,  # A.1.2.3
    "method.rate_epochs": 1050,  # A.1.2.3
    "method.labelled_batch": 32,  # A.1.2.3
    "method.unlabelled_batch": 224,  # A.1.2.3
    "method.threshold": 0.95,  # τ of Sohn et al. 2020
    "method.strong_labelled": False,  # Sohn et al. 2020, equation 3: α(x_b)
    "method.cutout": None,  # half the side, 16 pixels: code of FixMatch
    "method.weight_unsupervised": 1.0,  # A.1.2.3, λ_u
    "method.unsupervised_from": 0.0,  # Sohn et al. 2020: from the start, whole
    "method.unsupervised_ramp": 0.0,
    "method.targets": "joint",  # code of FixMatch: one forward, predictions of the network itself
    "method.weighting": "fixmatch",
    "method.alignment": "none",  # thesis 2.2.1.2 has none
    "method.interpolate_logits": False,
    # Of no effect here
    "method.alignment_window": 128,  # code of ReMixMatch and AdaMatch
    "method.statistics_decay": 0.999,  # code of FreeMatch, SoftMatch and AdaMatch
    "method.weight_fairness": 0.01,  # code of FreeMatch, CIFAR-10
    "method.gaussian_sigmas": 1.0,  # SoftMatch's equation
}

MIXMATCH = SSL_CLASSIFIER | {
    "data": "cifar10",
    "method.network": "leaky-wrn-28-2-normalized",  # A.1.1, table A.5: batch-norm of resampling, "only for MixMatch"
    "method.clip": 1.0,  # A.1.1: "gradients are clipped to unit norm"
    "method.epochs": 900,  # A.1.1
    "method.rate": 0.002,  # A.1.1
    "method.rate_epochs": None,  # A.1.1: "constant learning rate"
    "method.weight_decay": 0.02,  # A.1.1
    "method.labelled_batch": 256,  # A.1.1
    "method.unlabelled_batch": 256,
    "method.guesses": 2,  # K of Berthelot et al. 2019
    "method.temperature": 0.5,  # T of Berthelot et al. 2019
    "method.alpha": 0.75,  # α of Berthelot et al. 2019
    "method.weight_unsupervised": 37.5,  # A.1.1, λ_u
    "method.ramp_steps": 16_384,  # A.1.1
}

SUPERVISED = SSL_CLASSIFIER | {
    # 2.5.4 gives sizes of images alone; all else ours: Mean Teacher's with SciMix, A.1.2.3
    "labels": 3000,  # all training images of CUB-200 (2010)
    "data": "folder:data/CUB_200",
    "method.epochs": 300,
    "method.rate": 0.1,
    "method.rate_epochs": 350,
    "method.labelled_batch": 60,
    "method.unlabelled_batch": 196,
}

TEACHING = {
    "hybrids.use": "contradict",  # (2.13)
    "hybrids.alpha": 0.9,  # ours: (2.13) says α > 0.5
    "hybrids.copies": 3,  # A.1.2.3: "across three batches of hybrids"
    "hybrids.reduction": "mean",  # l_MSE of (2.13)
    "hybrids.keep_consistent": True,  # 2.4.2: "only keep the generated hybrid if"
    "hybrids.threshold": 0.95,  # of table A.15's pseudo-labels: FixMatch's τ
    "hybrids.weight": 1.0,  # A.1.2.3: "coefficient ... = 1"
}

HYBRIDS = TEACHING | {
    "hybrids.hybridizer": "none",  # the user's own
    "hybrids.from_hybridizer": False,  # 2.4.2: "from scratch"
}

SAMOSA = {
    "samosa.rate": 0.2,  # A.1.1, of both settings
    "samosa.weight_decay": 5e-4,  # A.1.1
    "samosa.clip": 1.0,  # A.1.1: "clipped to unit norm"
    "samosa.reduction": "mean",  # code of HybridNet, whose weights these are
    "samosa.weight_reconstruction": 0.25,  # A.1.1, λ_recons
    "samosa.weight_regularizer": 0.5,  # A.1.1, λ_SAMOSA 0.5/0.1/0.1
    "samosa.hybrids_per_image": 10,  # 2.5.1.1 and algorithm A.1
}

SCIMIX = RUN | {
    "classifier": None,  # A.1.2.2: E_c and C are trained with the generator
    "method.classifier_rate": None,  # by the same rate
    "method.network": "leaky-wrn-28-2",  # tables A.8, A.9
    "method.guide": "mean-teacher",  # A.1.2.2
    "method.epochs": 300,  # A.1.2.2
    "method.rate_epochs": 350,
    "method.optimizer": "sgd",
    "method.weight_decay": 5e-4,
    "method.clip": None,  # A.1.2: not clipped
    "method.labelled_batch": 60,
    "method.unlabelled_batch": 196,
    "method.ema_decay": 0.999,  # ours; A.1.2.3 has it of classifiers
    "method.nonsemantic_channels": 8,  # table A.9
    "method.generator_channels": (32, 64, 128, 64, 32),  # table A.10
    "method.upsampling": "bilinear",  # table A.10
    "method.discriminator_width": 1.0,  # table A.11
    "method.style": "semantic",  # table A.10: "style weights z_c"
    "method.backend": "hybridgen",  # ours: the same numbers
    "method.teacher_decay": 0.97,  # A.1.2.2
    "method.reduction": "mean",  # code of Mean Teacher and HybridNet
    "method.threshold": 0.95,  # τ of Sohn et al. 2020, for --guide fixmatch
    "method.semantic_distance": "norm",  # (2.11)
    "method.nonsemantic_distance": "norm",  # (2.12)
    "method.reconstruction_distance": "norm",  # (2.8)
    "method.freeze_criteria": True,  # 2.4.1: "we do not optimize the classifier's prediction"
    "method.criterion_shift": 0,  # ours, and off
    "method.criterion_noise": 0.0,  # ours, and off
    "method.criterion_views": 0,  # ours, and off
    "method.weight_reconstruction": 1.0,  # A.1.2.2, λ_recons
    "method.weight_adversarial_reconstruction": 0.5,  # λ_adv,r
    "method.weight_adversarial_hybrid": 0.5,  # λ_adv,h
    "method.weight_adversarial_features": 0.0,  # ours, and off
    "method.weight_semantic_attraction": 0.5,  # λ+_hyb,class
    "method.weight_semantic_repulsion": 0.05,  # λ-_hyb,class
    "method.weight_nonsemantic_attraction": 0.5,  # λ+_hyb,cont
    "method.weight_nonsemantic_repulsion": 0.05,  # λ-_hyb,cont
    "method.weight_supervised": 1.0,  # λ_S
    "method.weight_consistency": 300,  # λ_cons
    "method.weight_logit_distance": 0.01,  # λ_logitdist
    "method.weight_pseudo_label": 1.0,  # λ_u of Sohn et al. 2020, for --guide fixmatch
    "method.weight_gradient_penalty": 0.0,  # none in 2.4.1
    "method.penalty_every": 1,  # of no effect without it
    "method.half_size": 0.0,  # A.1.2.2: 32 pixels throughout
    "method.semantic_from": 0,  # A.1.2.2: from the start
    "method.semantic_ramp": 0,
    "method.nonsemantic_from": 50,  # A.1.2.2: "after epoch 50"
}

TRAINING = RUN | {
    "labels": None,  # all
    "training.optimizer": "sgd",
    "training.clip": None,
    "training.label_smoothing": 0.0,
    "training.ema_decay": 0.0,  # none
    "training.width": 1.0,
    "training.crop": None,
    "training.shift": None,  # RM 4.1: by 4 of 32 pixels
    "training.views": 1,
    "training.autoaugment": "none",
    "training.color_jitter": False,
    "training.erasing": 0.0,
    "training.rate_batch": None,  # the rate is of the batch as it is
    "training.stochastic_depth": 0.0,
}

RM_200 = TRAINING | {  # RM 4.1, 200 epochs
    "training.epochs": 200,
    "training.batch": 128,  # "2 GPUs with a mini-batch size of 64 on each"
    "training.nesterov": False,  # "SGD with a momentum of 0.9"
    "training.rate": 0.1,
    "training.warmup": 5,
    "training.decay_at": (),  # a cosine
    "training.weight_decay": 5e-4,
    "training.padding": "zeros",  # code: torchvision's RandomCrop
}

RM_300 = TRAINING | {  # RM 4.1: "all the hyperparameters with the official CutMix"; all of CutMix's code
    "training.network": "pyramidnet200-240",
    "training.epochs": 300,
    "training.batch": 64,
    "training.nesterov": True,
    "training.rate": 0.25,
    "training.warmup": 0,
    "training.decay_at": (150, 225),
    "training.weight_decay": 1e-4,
    "training.padding": "zeros",
}

RM_IMAGENET = TRAINING | {  # RM 4.2
    "data": "folder:data/imagenet",
    "image_size": 224,
    "whole": True,  # random crops of the whole photograph
    "training.epochs": 300,
    "training.batch": 512,  # "8 GPUs with a mini-batch size of 64 on each"
    "training.nesterov": False,
    "training.warmup": 5,
    "training.decay_at": (),  # a cosine
    "training.padding": "reflection",  # of no effect: nothing is shifted
}

IMAGENET_OF = {
    "paper-imagenet-resnet50": RM_IMAGENET | {
        "training.network": "resnet50",
        "training.rate": 0.2,  # RM 4.2
        "training.weight_decay": 1e-4,
        "training.color_jitter": True,  # RM 4.2: "augmentations described in CutMix"; its code
    },
    "paper-imagenet-pvtv2": RM_IMAGENET | {
        "training.network": "pvt_v2_b1_li",  # RM C.1: average pooling in the attention
        "training.optimizer": "adamw",
        "training.rate": 5e-4,
        "training.weight_decay": 0.05,
        "training.label_smoothing": 0.1,  # Szegedy et al. 2016
        "training.erasing": 0.25,  # code of PVT
    },
}  # fmt: skip

RM_OF = {
    f"paper-{data}-{network}": RM_200 | {"data": data, "training.network": f"cifar-{network}"}  # RM table 3
    for data in ("cifar10", "cifar100")
    for network in ("resnet18", "resnet34", "densenet121", "densenet161")
} | {
    "paper-cifar100-pyramidnet164": RM_200 | {"data": "cifar100", "training.network": "pyramidnet164-270"},  # table 3
    "paper-cifar10-pyramidnet200": RM_300 | {"data": "cifar10"},  # table 1
    "paper-cifar100-pyramidnet200": RM_300 | {"data": "cifar100"},
    **IMAGENET_OF,
}

RM = {  # RM 3
    "method.alpha": 0.5,  # "α defaults to 0.5"
    "method.resize": True,  # (1)
    "method.history": True,  # (1)
    "method.weight_consistency": 0.1,  # ω
    "method.shared_head": False,  # table 4a
    "method.interpolation": "nearest",  # table 4b
    "method.divergence": "kl",  # (5)
    "method.reset_each_epoch": False,  # (1) has no epochs; the code does
}

AUTOMIX = TRAINING | {
    "alphas": "automix",
    "training.network": None,  # R-18 of tables 13 and 14
    "training.epochs": 200,  # AM tables 13 and 14
    "training.batch": 100,  # code
    "training.nesterov": False,  # code
    "training.rate": 0.1,  # code
    "training.warmup": 0,  # code
    "training.decay_at": (),  # AM A.1: "Cosine Scheduler"
    "training.weight_decay": 1e-4,  # code
    "training.padding": "reflection",  # code
}

MIXMO = TRAINING | {  # MixMo's thesis chapter, 3.3.4.1 and A.1.3.1
    "training.nesterov": True,  # code of MIMO, whose hyper-parameters A.1.3.1 re-uses, and of Puzzle-Mix
    "training.padding": "zeros",  # A.1.3.1: "4 pixels padding"; code: torchvision's RandomCrop
    "methods": ("plain", "mimo", "linear-mixmo", "cut-mixmo"),  # table 3.1
    "method.inputs": 2,  # "mostly study ... M = 2"
    "method.mask": "cutmix",  # 3.3.5.2
    "method.patch_probability": 0.5,  # p
    "method.alpha": 2.0,  # α
    "method.root": 3.0,  # r
    "method.repetitions": 4,  # b of table 3.1's lower half
    "method.input_repetition": 0.0,  # 3.3.5.5: of MIMO alone, and not here
    "method.ensemble": "logits",  # code
    "method.encoders": "each",  # table 3.4
    "method.classifiers": "own",  # table 3.4
    "method.attribution": "none",  # beyond chapter 3: 5.2
    "method.augmix": False,  # a column of table 3.2 of its own
    "method.cutmix": 0.0,  # "+ CutMix" in rows of their own
}

NO_HYBRIDS = {  # 3.3.7: "we did not combine MixMo with the in-class MSDA scheme"
    "hybrids.hybridizer": "none",
    "hybrids.share": 0.5,  # of what is not there
    "hybrids.keep_consistent": True,
}

MIXMO_CIFAR = MIXMO | {
    "training.network": "wrn-28-10",  # 3.3.4.2
    "training.width": None,
    "training.epochs": 300,
    "training.batch": 64,
    "training.rate": 0.1 * 64 / 128,  # of which the plan takes a b-th
    "training.warmup": 1,
    "training.decay_at": (100, 200, 225),
    "training.weight_decay": 2 * 3e-4,  # the slope of 3e-4 Σ w²
}

MIXSHARE = MIXMO_CIFAR | {  # A.1.4: "similar experimental settings on CIFAR 100"
    "data": "cifar100",
    "training.decay_at": (75, 150, 225),  # A.1.4
    "methods": ("plain", "cut-mixmo", "mixshare-partial", "mixshare"),  # of table 3.6
    "method.repetitions": 2,  # "batch repetition 2"
    "method.patch_probability": 1.0,  # A.6.1: "We cannot afford to use summing half the time"
    "method.input_repetition": 0.1,  # A.6.1: "10% of inputs of our batches"
    "method.root": 1.0,  # A.6.1: "keep the original mixing ratios"
    "method.kernels": "equal",  # A.6.2: "MixShare uses the exact same initialization"
    "method.unmixing": "fade-out",  # 3.4.2.3
    "method.fade": 100.0,  # 3.4.2.3: r = min(1, epoch / 100)
    "method.part": 0.25,  # 3.4.2.3
}

MIXVIT = TRAINING | {  # thesis A.1.5
    "methods": ("single", "mixvit-embedding", "mixvit-encoding"),
    "table": None,  # table 4.2
    "training.optimizer": "adamw",
    "training.nesterov": True,  # of SGD, which is not used
    "training.width": None,
    "training.epochs": 150,
    "training.batch": 128,  # B, of one GPU
    "training.rate": 0.001,
    "training.rate_batch": 128,  # "a base batch size B of 128 on CIFAR and TinyImageNet and 1048 on ImageNet"
    "training.warmup": 0.1 * 150,  # "linear warmup over 10% of training"
    "training.decay_at": (125, 140),
    "training.weight_decay": 0.05,
    "training.stochastic_depth": 0.0,  # "for CaiT models"
    "training.label_smoothing": 0.1,
    "training.erasing": 0.25,  # "RandErase"; DeiT's probability
    "training.autoaugment": "cifar10",  # "the CIFAR configuration of AutoAugment for CIFAR and TinyImageNet"
    "training.views": 3,  # "3 Batch augmentations"
    "training.padding": "zeros",  # code of MixMo, which it builds upon
    "method.inputs": 2,
    "method.source": "embedding",
    "method.place": "late",
    "method.mixing": "patches",
    "method.alpha": 0.5,
    "method.patch_probability": 0.5,
    "method.encoders": "one",
    "method.inference": "separate",
    "method.msda": True,  # table 4.2 has it with batch augmentation
    "method.ensemble": "logits",
}

MIXVIT_CIFAR = MIXVIT | {"training.network": "convit-384-12-5"}

MIXVIT_TINY = MIXVIT | {
    "data": "folder:data/tiny-imagenet-200",
    "image_size": 64,
    "training.shift": 4,  # as MixMo
    "training.weight_decay": 2 * 0.05,  # "We did double weight decay and stochastic depth"
}

MIXVIT_IMAGENET = MIXVIT | {
    "data": "imagenet-100:data/imagenet",
    "image_size": 224,
    "whole": True,
    "training.batch": 1048,
    "training.rate_batch": 1048,
    "training.autoaugment": "imagenet",  # "and the ImageNet configuration for ImageNet-100"
    "training.weight_decay": 2 * 0.05,
    "training.padding": "reflection",  # of no effect: nothing is shifted
}

MIXVIT_NETWORKS = {
    "convit": {"training.network": "convit-384-12-5"},
    "cait-xxs": {"training.network": "cait-xxs-24", "training.stochastic_depth": 2 * 0.05},
    "cait-xs": {"training.network": "cait-xs-24", "training.stochastic_depth": 2 * 0.05},
}

MIXMO_TINY = MIXMO | {
    "data": "folder:data/tiny-imagenet-200",
    "image_size": 64,
    "training.network": "preact-resnet18",  # table 3.5
    "training.shift": 4,  # A.1.3.1
    "training.epochs": 1200,
    "training.batch": 100,
    "training.rate": 0.2,
    "training.warmup": 0,
    "training.decay_at": (600, 900),
    "training.weight_decay": 1e-4,
}

EVERY_METHOD = (
    "none", "mixup", "cutmix", "cutmix-resized", "manifold-mixup", "resizemix", "saliencymix", "fmix", "cowmix",
    "horizontal-concat", "vertical-concat", "patchup-hard", "patchup-soft", "augmix", "augmix-jsd", "recursivemix",
    "recursivemix-no-consistency",
)  # fmt: skip

THE_THESIS = {"cifar10": (100, 250, 500), "svhn": (60, 100)}
"""Labels of A.1.2."""

RATES = {"cifar10": 0.1, "svhn": 0.2}
"""A.1.2.2 and A.1.2.3: 0.1/0.1/0.1/0.2/0.2."""

FIXMATCH_RATES = {"cifar10": 0.015, "svhn": 0.03}
"""A.1.2.3: 0.015/0.015/0.015/0.03/0.03."""


def of_the_thesis(*parts, rates):
    """Its five settings."""
    common = {name: each for part in parts for name, each in part.items()}
    return {
        f"paper-{data}-{labels}": common | {"data": data, "labels": labels, "method.rate": rates[data]}
        for data, several in THE_THESIS.items()
        for labels in several
    }


def window(start, stop, of="hybrids"):
    return {f"{of}.start": start, f"{of}.stop": stop}


def of_mixmatch(*parts):
    """A.1.1: "in the CIFAR10 250 label case the batch sizes are instead 250 and 250"."""
    common = {name: each for part in parts for name, each in part.items()}
    batches = {250: 250, 500: 256, 1000: 256}
    return {
        f"paper-cifar10-{labels}": common
        | {"labels": labels, "method.labelled_batch": size, "method.unlabelled_batch": size}
        for labels, size in batches.items()
    }


def of_scimix():
    made = {
        name: SCIMIX | given | {"method.discriminator_rate": given["method.rate"]}  # A.1.2.2: of D too
        for name, given in of_the_thesis(rates=RATES).items()
    }
    svhn_60 = made["paper-svhn-60"]  # table A.14
    off = ("semantic_attraction", "semantic_repulsion", "nonsemantic_attraction", "nonsemantic_repulsion")
    return made | {
        "variant-structural": svhn_60 | {"method.style": "nonsemantic"},
        "variant-no-hybridization": svhn_60
        | {f"method.weight_{name}": 0.0 for name in (*off, "adversarial_hybrid")},  # (2.10) has five losses
        "variant-basic": svhn_60
        | {"method.weight_semantic_repulsion": 0.0, "method.weight_nonsemantic_repulsion": 0.0},
        "variant-not-frozen": svhn_60 | {"method.freeze_criteria": False},
    }


def of_scimix_fixmatch():
    """A.1.2.3; and where a hybridizer is trained, ours: A.1.2.2's, guided by it; 2.6 of the thesis asks for such."""
    fixmatchs = of_the_thesis(RUN, FIXMATCH, HYBRIDS, window(100, 200), {"rounds": 1}, rates=FIXMATCH_RATES)
    scimixs = of_scimix()
    return {
        name: given | {
            name.replace("method.", "generator."): each
            for name, each in scimixs[name].items() if name.startswith("method.")
        }
        for name, given in fixmatchs.items()
    }  # fmt: skip


def of_samosa_mean_teacher():
    shared = RUN | MEAN_TEACHER | SAMOSA | {
        "method.rate": 0.2,  # A.1.1
        "method.clip": 1.0,  # A.1.1: "gradients are clipped to unit norm"
        "samosa.cycles": 3,  # A.1.1: 900 epochs overall
    }  # fmt: skip
    # A.1.1: epochs 300/150/300, rates over 350/200/350, windows 150 to 250, 50 to 100, 150 to 250,
    # batches 124/30/30 and 388/500/500, λ_SAMOSA 0.5/0.1/0.1
    of = {
        "cifar10": (300, 350, 124, 388, 0.5, 150, 250),
        "svhn": (150, 200, 30, 500, 0.1, 50, 100),
        "mnist-m": (300, 350, 30, 500, 0.1, 150, 250),
    }
    made = {}
    for data, labels in (
        [("cifar10", n) for n in (250, 500, 1000)] + [("svhn", n) for n in (100, 250)] + [("mnist-m", 100)]
    ):  # table 2.1, 2.5.1.1; MNIST-M's ours
        epochs, falling, labelled, unlabelled, regularizer, start, stop = of[data]
        made[f"paper-{data}-{labels}"] = shared | window(start, stop, "samosa") | {
            "data": data, "labels": labels, "method.epochs": epochs, "method.rate_epochs": falling,
            "method.labelled_batch": labelled, "method.unlabelled_batch": unlabelled, "samosa.rate_epochs": falling,
            "samosa.weight_regularizer": regularizer,
        }  # fmt: skip
    made["paper-mnist-m-100"] |= {
        "data": "mnist-m:data/photographs",  # A.3: MNIST's digits on crops of photographs
        "validation": 10_000,  # A.3: "all 50000 labeled training samples", of MNIST's 60,000
    }
    return made


EXPECTED = {
    "scimix": of_scimix(),
    "adain": {
        "paper": {  # Huang and Belongie 2017 where nothing else is said; the thesis gives nothing for table 2.5
            "data": "digits-m", "image_size": None, "whole": False, "flip": "auto", "split": None,
            "sync_batchnorm": False,  # ours
            "precision": "fp32",  # the paper speaks of no other
            "labels": "auto", "validation": "auto",  # ours: 100 each
            "method.perceptual": "vgg",
            "method.network": "leaky-wrn-10-2",  # of no effect with VGG
            "method.perception_steps": 600, "method.perception_batch": 64, "method.perception_rate": 4e-3,  # ours
            "method.epochs": 20,  # ours
            "method.batch": 8,
            "method.rate": 1e-4,  # code
            "method.weight_decay": 0.0,
            "method.ema_decay": 0.995,  # ours
            "method.weight_content": 1.0,
            "method.weight_style": 10.0,  # λ of its form in PyTorch
        }
    },
    "mean_teacher": of_the_thesis(RUN, MEAN_TEACHER, HYBRIDS, window(50, 150), rates=RATES),  # A.1.2.3
    "scimix_mean_teacher": of_the_thesis(RUN, MEAN_TEACHER, HYBRIDS, window(50, 150), rates=RATES),
    "fixmatch": of_the_thesis(RUN, FIXMATCH, HYBRIDS, window(100, 200), rates=FIXMATCH_RATES),  # A.1.2.3
    "scimix_fixmatch": of_scimix_fixmatch(),
    "mixmatch": of_mixmatch(RUN, MIXMATCH, HYBRIDS, window(150, 450)),  # window ours: Mean Teacher's part of 900
    "scimix_mixmatch": of_mixmatch(  # ours: A.1.1's training of A.1.2.4's network
        RUN, MIXMATCH, HYBRIDS, window(150, 450), {"method.network": "leaky-wrn-28-2"}
    ),
    "scimix_supervised": {
        f"paper-cub-{size}": RUN | SUPERVISED | HYBRIDS | window(50, 150) | {"image_size": size}  # 2.5.4, table 2.7
        for size in (64, 96)
    },
    "samosa_mean_teacher": of_samosa_mean_teacher(),
    "samosa_fixmatch": {  # ours: A.1.2.3's FixMatch with A.1.1's weights, and half of each cycle with hybrids
        name: given | {"samosa.weight_regularizer": 0.5 if given["data"] == "cifar10" else 0.1}  # A.1.1
        for name, given in of_the_thesis(
            RUN, FIXMATCH, SAMOSA, window(500, 800, "samosa"),
            {"method.clip": 1.0, "samosa.cycles": 3, "samosa.rate_epochs": 1050}, rates=FIXMATCH_RATES,
        ).items()
    },
    "samosa_mixmatch": of_mixmatch(
        RUN, MIXMATCH, SAMOSA, window(100, 800, "samosa"),  # A.1.1
        {
            "samosa.cycles": 1,  # algorithm A.2
            "samosa.rate_epochs": 950,  # A.1.1
            "probability": 0.2,  # 2.5.1.1; algorithm A.2: 1/5
        },
    ),
    "recursivemix": {
        name: given | RM | ({"method.weight_consistency": 0.5} if name in IMAGENET_OF else {})  # RM 4.2
        for name, given in RM_OF.items()
    },
    "mixing_baselines": {
        **{
            name: given | {"alphas": "own", "methods": EVERY_METHOD}
            for name, given in {
                "paper-cifar10": RM_200 | {"data": "cifar10", "training.network": None},  # RM table 3's ResNet-18
                "paper-cifar100": RM_200 | {"data": "cifar100", "training.network": None},
                **RM_OF,
            }.items()
        },
        **{
            name: given | {"alphas": "own", "methods": ("none", "mixup", "cutmix")}  # RM table 5
            for name, given in IMAGENET_OF.items()
        },
        **{f"automix-{data}": AUTOMIX | {"data": data, "methods": EVERY_METHOD} for data in ("cifar10", "cifar100")},
    },
    "mixmo": {
        **{f"paper-{data}": MIXMO_CIFAR | NO_HYBRIDS | {"data": data} for data in ("cifar10", "cifar100")},
        **{
            f"paper-tiny-imagenet-w{width}": MIXMO_TINY | NO_HYBRIDS | {"training.width": float(width)}
            for width in (1, 2, 3)
        },
    },
    "mixshare": {  # table 3.6
        f"paper-cifar100-w{width}": MIXSHARE | {"training.network": f"wrn-28-{width}"} for width in (2, 5)
    },
    "mixvit": {
        **{f"paper-{data}": MIXVIT_CIFAR | {"data": data} for data in ("cifar10", "cifar100")},
        "paper-cifar100-long": MIXVIT_CIFAR | {  # table A.19
            "data": "cifar100", "training.epochs": 300, "training.warmup": 30, "training.decay_at": (250, 280),
            "training.rate": 5e-4,  # "reduce the learning rate", by how much it does not say
            "training.views": 4,  # "4 batch augmentations"
        },
        **{f"paper-tiny-imagenet-{name}": MIXVIT_TINY | of for name, of in MIXVIT_NETWORKS.items()},
        **{f"paper-imagenet-100-{name}": MIXVIT_IMAGENET | of for name, of in MIXVIT_NETWORKS.items()},
    },
}  # fmt: skip

SMOKE = {
    "scimix": {
        "precision": "fp32", "evaluate_every": 40, "method.epochs": 0.6, "method.semantic_from": 0.1,
        "method.semantic_ramp": 0.1, "method.nonsemantic_from": 0.2, "oracle.steps": 20,
    },
    "scimix_fixmatch": {
        "precision": "fp32", "evaluate_every": 20, "method.epochs": 1, "oracle.steps": 20, **window(0.2, 0.8),
        "generator.epochs": 0.6, "generator.semantic_from": 0.1, "generator.semantic_ramp": 0.1,
        "generator.nonsemantic_from": 0.2,
    },
    "adain": {
        "precision": "fp32", "evaluate_every": 40, "method.perception_steps": 30, "method.epochs": 0.3,
        "oracle.steps": 20,
    },
    "recursivemix": {"precision": "fp32", "evaluate_every": 20, "training.epochs": 0.5},
    "mixing_baselines": {"precision": "fp32", "evaluate_every": 20, "training.epochs": 0.5},
    "mixmo": {"precision": "fp32", "evaluate_every": 20, "training.epochs": 1.5},
    "mixshare": {"precision": "fp32", "evaluate_every": 20, "training.epochs": 1.5, "method.fade": 0.5},
    "mixvit": {"precision": "fp32", "evaluate_every": 20, "training.epochs": 0.3, "training.warmup": 0.1},
    **{
        recipe: {
            "precision": "fp32", "evaluate_every": 20, "method.epochs": 1, "oracle.steps": 20, **window(0.2, 0.8)
        }
        for recipe in ("mean_teacher", "scimix_mean_teacher", "fixmatch", "mixmatch",
                       "scimix_mixmatch", "scimix_supervised")
    },
    **{
        recipe: {
            "precision": "fp32", "evaluate_every": 20, "method.epochs": 0.5, "oracle.steps": 20,
            **window(0.1, 0.4, "samosa"),
        }
        for recipe in ("samosa_mean_teacher", "samosa_fixmatch", "samosa_mixmatch")
    },
}  # fmt: skip
"""What `smoke` changes of the defaults, ours: seconds on digits-m."""

DEFAULTS = {
    "scimix": {"evaluate_every": 500, "save_every": 500, "classifier": None},
    "scimix_fixmatch": {"rounds": 1},
    "adain": {"evaluate_every": 500, "save_every": 500},
    "recursivemix": {"labels": None, "evaluate_every": 200, "baseline": True},
    "mixing_baselines": {"labels": None, "evaluate_every": 200, "methods": tuple(mixing.TITLES), "alphas": "own"},
    "mixmo": {
        "labels": None, "evaluate_every": 200, "methods": tuple(mixmo.TITLES), "training.network": "wrn-10-2",
        "training.epochs": 6.0,
    },
    "mixshare": {
        "labels": None, "evaluate_every": 200, "methods": ("plain", "cut-mixmo", "mixshare-partial", "mixshare"),
        "training.network": "wrn-10-2", "training.epochs": 6.0, "method.fade": 2.0,
    },
    "mixvit": {
        "labels": None, "evaluate_every": 400, "methods": ("single", "mixvit-embedding", "mixvit-encoding"),
        "table": None, "training.network": "convit-64-4-2-patch4", "training.optimizer": "adamw",
        "training.rate": 2e-3, "training.warmup": 2, "training.decay_at": (17, 19), "training.weight_decay": 0.05,
    },
    **{recipe: {"hybrids.hybridizer": "none"} for recipe in ("mean_teacher", "fixmatch", "mixmatch")},
    **{recipe: {} for recipe in ("scimix_mean_teacher", "scimix_mixmatch", "scimix_supervised")},
    **{recipe: {"method.clip": 1.0} for recipe in ("samosa_mean_teacher", "samosa_fixmatch")},
    "samosa_mixmatch": {"method.clip": 1.0, "probability": 0.2, "samosa.cycles": 1, **window(1.0, 7.0, "samosa")},
}  # fmt: skip
"""What a recipe without arguments has beside the defaults of all runs, and of the methods' files; ours."""

OF_THE_THESES_TABLES = {
    "table": "A.14", "data": "digits-m", "labels": 100, "backbone": "mean-teacher", "hybridizer": None, "common": "",
    "generator": "", "classifier": "", "out": Path("runs/ablation"), "resume": False, "seed": 0, "seeds": 3,
}  # fmt: skip
OF_RECURSIVEMIXS_TABLES = {
    "table": "2", "arguments": "", "out": Path("runs/recursivemix_ablation"), "resume": False, "seed": 0, "seeds": 3,
}  # fmt: skip
handed_on = lambda preset: {"generator": f"--preset {preset}", "classifier": f"--preset {preset}"}
ABLATIONS = {
    "ablation": {
        "": OF_THE_THESES_TABLES,
        "smoke": OF_THE_THESES_TABLES | {"seeds": 1, **handed_on("smoke")},
        "paper-svhn-60": OF_THE_THESES_TABLES | {"data": "svhn", "labels": 60, **handed_on("paper-svhn-60")},
        "paper-cifar10-250": OF_THE_THESES_TABLES
        | {"data": "cifar10", "labels": 250, **handed_on("paper-cifar10-250")},
    },
    "recursivemix_ablation": {
        "": OF_RECURSIVEMIXS_TABLES,
        "smoke": OF_RECURSIVEMIXS_TABLES | {"seeds": 1, "arguments": "--preset smoke"},
    },
}
"""All fields of the recipes that train a table's rows: without a preset, and with each."""

EACH = [(recipe, preset) for recipe, presets in EXPECTED.items() for preset in presets]


# --- Fields ---------------------------------------------------------------------------------------------------------


def recipe_of(name):
    known = f"recipe_of_presets_{name}"
    if known not in sys.modules:
        spec = importlib.util.spec_from_file_location(known, RECIPES / f"{name}.py")
        sys.modules[known] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules[known]


def presets_of(name):
    """Those that the recipe's command line offers."""
    return recipe_of(name).PRESETS


def loaded(recipe, preset):
    return parse(recipe_of(recipe).Config, presets_of(recipe), ["--preset", preset])


def values(config, prefix=""):
    """All fields by their dotted names."""
    found = {}
    for field in fields(config):
        each = getattr(config, field.name)
        if is_dataclass(each):
            found |= values(each, f"{prefix}{field.name}.")
        else:
            found[prefix + field.name] = each
    return found


def compare(found, expected):
    """Names and values that differ, for a message that can be read."""
    assert {n: (found[n], expected[n]) for n in expected.keys() & found.keys() if found[n] != expected[n]} == {}
    assert expected.keys() - found.keys() == set(), "fields that are gone"
    assert found.keys() - expected.keys() == set(), "fields that neither the tables nor BOOKKEEPING know"


@pytest.mark.parametrize("recipe", EXPECTED)
def test_every_preset_of_a_recipe_is_in_the_tables(recipe):
    assert set(presets_of(recipe)) == {"smoke", *EXPECTED[recipe]}


def test_every_recipe_with_presets_of_trainings_is_in_the_tables():
    of_runs = {path.stem for path in RECIPES.glob("*.py")} - set(ABLATIONS)
    assert of_runs == set(EXPECTED) == set(SMOKE) == set(DEFAULTS)


@pytest.mark.parametrize(("recipe", "preset"), EACH)
def test_fields_of_a_preset_are_its_papers(recipe, preset):
    found = values(loaded(recipe, preset))
    assert not EXPECTED[recipe][preset].keys() & BOOKKEEPING
    compare({name: each for name, each in found.items() if name not in BOOKKEEPING}, EXPECTED[recipe][preset])


@pytest.mark.parametrize(("recipe", "preset"), EACH)
def test_bookkeeping_of_a_preset_asks_for_one_whole_run(recipe, preset):
    found = values(loaded(recipe, preset))
    expected = {
        "resume": False, "seed": 0, "split_seed": 0, "download": False, "compiled": False, "seeds": 1,
        "baseline": True, "hybrids.baseline": True, "hybrids.allow_other_split": False, "out": Path(f"runs/{recipe}"),
        "oracle.oracle": "trained", "oracle.steps": None, "oracle.network": None, "method.snapshot_every": None,
        "samosa.snapshot_every": None, "generator.snapshot_every": None,
    }  # fmt: skip
    compare(
        {name: each for name, each in found.items() if name in expected},
        {name: each for name, each in expected.items() if name in found},
    )


@pytest.mark.parametrize("recipe", SMOKE)
def test_smoke_is_the_defaults_for_seconds(recipe):
    default, found = values(recipe_of(recipe).Config()), values(loaded(recipe, "smoke"))
    compare({name: each for name, each in found.items() if each != default[name]}, SMOKE[recipe])


@pytest.mark.parametrize("recipe", DEFAULTS)
def test_a_recipe_without_arguments_has_the_defaults_of_its_parts(recipe):
    config = recipe_of(recipe).Config()
    of_all_runs = next(kind for kind in type(config).__mro__ if kind in (CompareSettings, context_module.RunSettings))
    usual = values(of_all_runs())
    for field in fields(config):
        if is_dataclass(group := getattr(config, field.name)):
            usual |= values(type(group)(), f"{field.name}.")
    own = {name: each for name, each in values(config).items() if name not in usual or each != usual[name]}
    compare(own, DEFAULTS[recipe] | {"out": Path(f"runs/{recipe}")})


@pytest.mark.parametrize(("recipe", "preset"), [(name, each) for name, of in ABLATIONS.items() for each in of])
def test_what_recipes_of_tables_have(recipe, preset):
    module = recipe_of(recipe)
    assert {"", *module.PRESETS} == set(ABLATIONS[recipe])
    given = parse(module.Config, module.PRESETS, ["--preset", preset] if preset else [])
    compare(values(given), ABLATIONS[recipe][preset])


def test_networks_without_a_name_are_resnet18_of_full_width():
    for preset in ("paper-cifar10", "paper-cifar100", "automix-cifar10", "automix-cifar100"):
        training = loaded("mixing_baselines", preset).training
        assert chosen_network(training.network, training.width, 32) == ("cifar-resnet18", 1.0)


# --- Defaults ---------------------------------------------------------------------------------------------------------

OF_RUNS = {
    "data": "digits-m", "image_size": None, "whole": False, "flip": "auto", "data_root": "data", "download": False,
    "labels": "auto",
    "split": None, "split_seed": 0, "validation": "auto", "out": Path("runs"), "resume": False, "seed": 0,
    "threads": None, "workers": 2, "precision": "auto", "channels_last": True, "compiled": False,
    "sync_batchnorm": False, "record_every": 50, "evaluate_every": 100, "save_every": 200,
    "log_with": ("tensorboard",),
}  # fmt: skip
OF_CLASSIFIERS = {
    "network": None, "momentum": 0.05, "epochs": None, "rate_epochs": None, "weight_decay": 5e-4, "clip": None,
    "labelled_batch": None, "unlabelled_batch": None, "ema_decay": 0.99, "weight_supervised": 1.0,
}  # fmt: skip
OF_HYBRIDS = {
    "use": "contradict", "alpha": None, "copies": None, "start": None, "stop": None, "reduction": "sum",
    "keep_consistent": True, "threshold": 0.9, "weight": 1.0,
}  # fmt: skip
OF_SETTINGS = {
    context_module.RunSettings: OF_RUNS,
    CompareSettings: OF_RUNS | {"seeds": 1},
    fixmatch.Settings: OF_CLASSIFIERS | {
        "rate": None, "ema_decay": None, "threshold": 0.9, "strong_labelled": False, "cutout": None,
        "weight_unsupervised": 1.0, "unsupervised_from": 0.0, "unsupervised_ramp": 0.0, "targets": "joint",
        "weighting": None, "alignment": "own", "alignment_window": 128, "statistics_decay": 0.999,
        "weight_fairness": 0.01, "gaussian_sigmas": 1.0, "interpolate_logits": False,
    },
    mean_teacher.Settings: OF_CLASSIFIERS | {
        "rate": 0.2, "weight_supervised": 4.0, "teacher_decay": 0.97, "weight_consistency": 100.0, "reduction": "mean",
        "weight_logit_distance": 0.01,
    },
    mixmatch.Settings: OF_CLASSIFIERS | {
        "rate": 0.01, "weight_decay": 0.02, "guesses": 2, "temperature": 0.5,
        "alpha": 0.75, "weight_unsupervised": 75.0, "ramp_steps": 1300,
    },
    supervised.Settings: OF_CLASSIFIERS | {"rate": 0.06},
    hybrids.Teaching: OF_HYBRIDS,
    hybrids.Settings: OF_HYBRIDS | {
        "hybridizer": None, "baseline": True, "from_hybridizer": False, "allow_other_split": False,
    },
    hybrids.InClass: {"hybridizer": "none", "allow_other_split": False, "share": 0.5, "keep_consistent": True},
    samosa.Settings: {
        "rate": 0.6, "rate_epochs": None, "weight_decay": 5e-4, "clip": 1.0, "reduction": "mean",
        "weight_reconstruction": 0.25, "weight_regularizer": 0.5, "cycles": 2, "hybrids_per_image": 10, "start": 1.5,
        "stop": 12, "snapshot_every": None,
    },
    scimix.Settings: {
        "network": None, "guide": "fixmatch", "epochs": None, "rate_epochs": None, "rate": 4e-3,
        "discriminator_rate": 1e-3, "classifier_rate": None, "optimizer": "adam", "weight_decay": 0.01, "clip": None,
        "labelled_batch": None, "unlabelled_batch": None, "ema_decay": 0.995, "nonsemantic_channels": 4,
        "generator_channels": (48, 96, 48, 24), "upsampling": None, "discriminator_width": 0.5, "style": "semantic",
        "backend": "hybridgen", "teacher_decay": 0.97, "reduction": "mean", "threshold": 0.9,
        "semantic_distance": "cross-entropy", "nonsemantic_distance": "norm", "reconstruction_distance": "norm",
        "freeze_criteria": True,
        "criterion_shift": 1, "criterion_noise": 0.05, "criterion_views": 0, "weight_reconstruction": 1.0,
        "weight_adversarial_reconstruction": 1.0, "weight_adversarial_hybrid": 1.0, "weight_adversarial_features": None,
        "weight_semantic_attraction": None,
        "weight_semantic_repulsion": 0.2, "weight_nonsemantic_attraction": None,
        "weight_nonsemantic_repulsion": 0.002,
        "weight_supervised": 10.0, "weight_consistency": 300.0, "weight_logit_distance": 0.01,
        "weight_pseudo_label": 10.0, "weight_gradient_penalty": 0.03, "penalty_every": None, "half_size": 0.0,
        "semantic_from": None, "semantic_ramp": None, "nonsemantic_from": None, "snapshot_every": None,
    },
    adain.Settings: {
        "perceptual": "labelled", "network": "leaky-wrn-10-2", "perception_steps": 600, "perception_batch": 64,
        "perception_rate": 4e-3, "epochs": 20, "batch": 32, "rate": 2e-3, "weight_decay": 0.0, "ema_decay": 0.995,
        "weight_content": 1.0, "weight_style": 10.0,
    },
    labelled.TrainingSettings: {
        "network": None, "width": None, "epochs": 20, "batch": 64, "views": 1, "optimizer": "sgd", "nesterov": True,
        "rate": 0.1, "rate_batch": None, "warmup": 1, "decay_at": (), "weight_decay": 5e-4, "stochastic_depth": 0.0,
        "clip": None, "label_smoothing": 0.0, "ema_decay": 0.0, "crop": None, "shift": None, "padding": "reflection",
        "color_jitter": False, "autoaugment": "none", "erasing": 0.0,
    },
    recursivemix.Settings: {name.removeprefix("method."): each for name, each in RM.items()},
    mixmo.Settings: {name.removeprefix("method."): each for name, each in MIXMO.items() if name.startswith("method.")}
    | {"repetitions": 1},
    mixvit.Settings: {name.removeprefix("method."): each for name, each in MIXVIT.items() if name.startswith("method.")}
    | {"msda": False},
}  # fmt: skip
"""Where nothing is said: values for digits-m, and of the methods that mix the papers' but for what takes longer. Those
of MixShare are tested below."""


@pytest.mark.parametrize("kind", OF_SETTINGS, ids=lambda kind: f"{kind.__module__}.{kind.__name__}")
def test_defaults_of_settings(kind):
    compare(values(kind()), OF_SETTINGS[kind])


CIFAR10_STATISTICS = {"mean": (0.4914, 0.4822, 0.4465), "std": (0.247, 0.2435, 0.2616)}
LEAKY = {"slope": 0.1, "momentum": 0.1, "normalized_resampling": False}  # tables A.5 and A.8
WIDE = {"depth": 28, "width": 2, "stem": 16, **LEAKY}  # A.1.2.4: WideResNet-28-2
PLANS = {"classifier": None}
OF_FUNCTIONS = {
    "methods.fixmatch.plan": PLANS, "methods.mean_teacher.plan": PLANS, "methods.supervised.plan": PLANS,
    "methods.scimix.plan": PLANS, "methods.mixmatch.plan": PLANS | {"replacement": None},
    "methods.scimix.weights_of": {"guided": True},
    "methods.samosa.with_samosa": {"clean_only": False, "drawn": True},
    "methods.samosa.samosa_hybrids": {"labels": None},
    "methods.hybrids.hybrid_loss": {"share": None}, "methods.hybrids.load_hybridizer": {"method": None},
    "methods.hybrids.start_of": {"heads": 1}, "methods.hybrids.presets": {"source": {"hybridizer": "none"}},
    "methods.labelled.rate_of": {"repetitions": 1},
    "methods.mixing.plan": {"alphas": "own"},
    "methods.mixing.How": {"draw": None, "probability": 1.0, "maps": False, "draw_images": None, "terms": 1},
    "tables.compare.FigureColumn": {"percent": False},
    "tables.compare.Comparison.conclude": {"columns": (), "transfer": None, "earlier": None},
    "tables.compare.shown": {"scale": 100, "digits": 1},
    "tables.cost.cost": {"classes": 10, "image_size": 32, "rounds": 5, "steps": 3},
    "tables.cost.noise": {"labelled": None}, "tables.cost.Trainee": {"seed": 0},
    "tables.jobs.run_table": {
        "measures": {"test_accuracy_last": "last", "test_accuracy_selected": "selected"}, "note": "",
    },
    "tables.over.over": {"figures": ("accuracy",), "epoch": "last"},
    "training.checkpoint.Checkpoints": {"local": None, "process": 0, "keep": 3},
    "training.context.Context.weak": {"shift": None},
    "training.context.Context.stream": {
        "labelled": None, "labelled_views": (), "unlabelled": None, "unlabelled_views": (), "unlabelled_pool": None,
        "repetitions": 1, "asked": None,
    },
    "training.context.Context.classifier": {"width": 1, "image_size": None, "heads": 1, "momentum": None},
    "training.context.Context.network": {"small": "leaky-wrn-10-1"},
    "training.context.Context.laid_out": {"compiled": None},
    "training.ema.EMA": {"linear_start": True, "buffers": "copy"},
    "training.engine.make_accelerator": {"precision": "auto", "threads": None, "keep_memory": True},
    "training.engine.laid_out": {"channels_last": False, "compiled": False, "synchronized": False},
    "training.fit.fit": {"check_every": 50, "hidden": None},
    "training.objective.sgd": {"momentum": 0.9, "decay": 5e-4, "decay_all": True, "nesterov": True},  # A.1.2
    "training.objective.adam": {"betas": (0.0, 0.99), "decay": 0.0, "decay_all": True},  # StyleGAN2
    "training.record.claim": {"fresh_ok": False, "chosen": {}}, "training.record.read_result": {"needed": ()},
    "training.record.Run": {
        "log_with": ("tensorboard",), "local": None, "resume": False, "keep": 3, "among": {}, "read": {},
    },
    "training.schedules.Clock": {"step": 0}, "training.schedules.stepped": {"factor": 0.1},
    "training.schedules.window": {"start": 0.0, "stop": math.inf, "ramp": 0.0},
    "training.scores.logits_of": {"batch_size": 512}, "training.scores.accuracy": {"batch_size": 512},
    "training.train.train": {"claimed": False, "seconds": 0.0},
    "networks.adain.moments": {"eps": 1e-5}, "networks.adain.restyled": {"eps": 1e-5},  # code of AdaIN
    "networks.adain.adain": {"eps": 1e-5}, "networks.adain.load_vgg": {"download": False},
    "networks.adain.AdaINArchitecture": {
        "image_size": 32, "classes": 10, **CIFAR10_STATISTICS, "perceptual": "wide-resnet", "depth": 10, "width": 2,
        "stem": 16,
    },
    "networks.autoencoder.Architecture": {  # A.1.2.4, tables A.8 to A.10
        "image_size": 32, "classes": 10, **CIFAR10_STATISTICS, "network": "leaky-wrn-28-2", "nonsemantic_channels": 8,
        "generator_channels": (32, 64, 128, 64, 32), "upsampling": "bilinear", "style": "semantic",
    },
    "networks.autoencoder.SamosaArchitecture": {
        "image_size": 32, "classes": 10, **CIFAR10_STATISTICS, "network": "leaky-wrn-28-2", "momentum": 0.1,
    },
    "networks.autoencoder.SemanticAutoencoder": {"backend": "hybridgen"},
    "networks.cifar.cifar_resnet": {"width": 1}, "networks.cifar.cifar_densenet": {"width": 1},
    "networks.classifiers.Classifier": {"heads": 1},
    "networks.classifiers.save_classifier": {"width": 1, "crop_of": None, "whole": False, "split_hash": None},
    "networks.decoder.DeconvBlock": {"stride": 1, "normalized": False, "slope": 0.1, "momentum": 0.1},
    "networks.decoder.SamosaDecoder": {"channels": 128, **LEAKY},  # tables A.5 to A.7
    "networks.discriminator.Discriminator": {"channels": (32, 64, 128, 256), "width": 1.0},  # table A.11
    "networks.discriminator.DownResBlock.forward": {"halve": True},
    **{
        f"networks.fast.Fast{part}": {"widths": (32, 64, 128), "convolutions": 2}
        for part in ("Trunk", "Encoder", "Classifier")
    },
    "networks.multi_input.MultiInputClassifier": {"one_encoder": False, "one_head": False, "attribution": "none"},
    "networks.multi_input.MultiInputClassifier.decode": {"shown": None, "part": 1.0, "masks": None},
    "networks.preact_resnet.PreActResNet18": {"width": 1, "stem_stride": 2, "final_norm": False},
    "networks.registry.default_network": {"small": "leaky-wrn-10-1"},
    "networks.registry.make_network": {"width": 1, "image_size": None, "pretrained": True},
    "networks.registry.make_encoder": {"quarter": False},
    "networks.resnet.resnet": {"width": 1, "kernel": 7, "stride": 2, "zero_init_last": True},  # torchvision's form
    "networks.stylegan2.ModulatedConv2d": {"demodulate": True},
    "networks.stylegan2.StyleResBlock": {"upsample": False, "between": False, "backend": "hybridgen"},
    "networks.stylegan2.StyleGAN2Generator": {  # table A.10
        "structure_channels": 8, "style_features": 128, "channels": (32, 64, 128, 64, 32),
        "upsample": (False, False, False, True, True), "between": False, "backend": "hybridgen",
    },
    "networks.wide_resnet.WideResNet": WIDE, "networks.wide_resnet.SemanticEncoder": WIDE,
    "networks.wide_resnet.NonSemanticEncoder": {"channels": 8},  # table A.9
    "losses.classification.cross_entropy": {"over": None},
    "losses.classification.pseudo_label": {"threshold": 0.95},  # τ of Sohn et al. 2020
    "losses.consistency.mean_squared": {"reduction": "mean"},
    "losses.consistency.teacher_consistency": {"reduction": "mean"},
    "losses.consistency.mean_teacher": {"reduction": "mean"},
    "losses.consistency.historical_consistency": {"divergence": "kl"},  # RM (5)
    **{
        f"losses.hybridization.{what}": {"kind": "norm"}  # (2.11), (2.12)
        for what in ("semantic_attraction", "semantic_repulsion", "nonsemantic_attraction", "nonsemantic_repulsion")
    },
    "losses.reconstruction.distance": {"kind": "norm"}, "losses.reconstruction.reconstruction": {"kind": "norm"},  # 2.8
    "losses.reconstruction.squared_error": {"reduction": "mean"},
}  # fmt: skip


def test_defaults_of_functions():
    """A preset or a recipe need not say them, and nobody sees them change."""
    assert {name: defaults_of(resolve_name(f"hybridgen.{name}")) for name in OF_FUNCTIONS} == OF_FUNCTIONS


OF_CONSTANTS = {
    "training.context.WHITENED": 2**20, "training.context.FEWEST": 64,  # 1,024 images of 32×32 pixels, and no fewer
    "training.context.LABELS": 100, "training.context.LABELS_PER_CLASS": 4, "training.context.VALIDATION": 100,
    "methods.classifiers.USUAL": (32, 96),
    "training.estimate.PLACES": 4, "training.estimate.STEPS": 2, "training.estimate.SHORT": 100,
    "training.estimate.SLOW": 1.0,
    "training.estimate.SAMPLE": 256,
    "training.engine.ACCELERATES": {"fp32": "no", "bf16": "bf16", "fp16": "fp16"},  # accelerate's words
    "training.checkpoint.FORMAT": 1,
    "networks.fast.EPSILON": 5e-4, "networks.fast.SIDE": 2,  # Jordan 2024, airbench
    "networks.adain.EPSILON": 1e-5, "networks.stylegan2.EPSILON": 1e-8,  # their authors' code
    "networks.registry.SIDE": 32, "networks.registry.SMALL": 16,
    "networks.registry.LIMITS": {
        "depth": 1000, "width": 100, "alpha": 1000, "filters": 10_000, "blocks": 12, "convolutions": 100,
        "dimension": 4096, "heads": 256, "patch": 1024,
    },
    "networks.autoencoder.LARGEST": {
        "image_size": 4096, "classes": 100_000, "depth": 1000, "width": 100, "stem": 10_000,
        "nonsemantic_channels": 10_000, "generator_channels": 10_000,
    },
    "networks.vision_transformers.CLASS_BLOCKS": 2, "networks.vision_transformers.PLAIN_SCALE": 1.0,
    "networks.vision_transformers.CAITS": {"xxs": (192, 4), "xs": (288, 6), "s": (384, 8)},  # Touvron et al. 2021b
    "networks.classifiers.FILE": "network.safetensors",
    "tables.compare.FIGURES": ("test_accuracy_last", "test_accuracy_selected", "seconds", "steps"),
    "tables.compare.PICTURE": "grid.png",
    "tables.cost.RATE": 1e-3, "tables.cost.WARMING": 2,
}  # fmt: skip


def test_constants():
    assert {name: resolve_name(f"hybridgen.{name}") for name in OF_CONSTANTS} == OF_CONSTANTS


EVERY = {
    # Steps between records, evaluations and checkpoints: epochs of the paper's batches, rounded
    "scimix": (50, 2550, 2550), # 10 of 255 and of 223 on CIFAR-10
    "adain": (50, 500, 500),
    "mean_teacher": (100, 2550, 2550), "scimix_mean_teacher": (100, 2550, 2550),
    "fixmatch": (100, 2230, 2230), "scimix_fixmatch": (100, 2230, 2230), "samosa_fixmatch": (100, 2230, 2230),
    "mixmatch": (100, 1950, 1950), "scimix_mixmatch": (100, 1950, 1950), "samosa_mixmatch": (100, 1950, 1950),
    "scimix_supervised": (15, 150, 150), "samosa_mean_teacher": (100, 1280, 1280),
    "recursivemix": (100, 390, 390), "mixing_baselines": (100, 390, 390),  # one
    "mixmo": (100, 3125, 3125), "mixshare": (100, 3125, 3125), "mixvit": (100, 390, 390),
}  # fmt: skip
OTHERWISE = {
    "automix": (100, 500, 500), "recursivemix paper-imagenet": (100, 2502, 2502),
    "mixing_baselines paper-imagenet": (100, 2502, 2502), "mixmo paper-tiny": (100, 4000, 4000),
    "mixvit paper-tiny": (100, 781, 781), "mixvit paper-imagenet": (100, 121, 121),
}  # fmt: skip


@pytest.mark.parametrize(("recipe", "preset"), EACH)
def test_how_often_a_preset_records_evaluates_and_saves(recipe, preset):
    config = loaded(recipe, preset)
    other = [often for part, often in OTHERWISE.items() if part in f"{recipe} {preset}"]
    assert (config.record_every, config.evaluate_every, config.save_every) == (other or [EVERY[recipe]])[0]
    assert config.workers == (8 if config.whole else 2) and config.threads is None and config.channels_last


# --- Schedules, optimizers and weights of the plans -----------------------------------------------------------------


def dataset_of(count, flip=True):
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (count, 3, 16, 16), generator=generator, dtype=torch.uint8)
    part = Part(InMemory(pixels), torch.arange(count) % 10)
    classes = tuple(str(number) for number in range(10))
    return Dataset("noise", classes, 16, part, part, "f", flip, (0.5,) * 3, (0.25,) * 3)


def context_of(config):
    """Of a set as small as the preset's batches allow; its networks are small, all else is the preset's."""
    count = 3000 if config.labels == 3000 else 1500
    dataset = dataset_of(count)
    split = make_split(dataset, labels=config.labels if isinstance(config.labels, int) else count, seed=0, validation=0)
    return Context(config, make_accelerator(precision="fp32", threads=1), dataset, split)


def small(recipe, preset):
    """The preset's configuration with a network that is made in no time."""
    config = loaded(recipe, preset)
    if hasattr(config, "training"):
        if recipe == "mixvit":
            return changed(config, dict(training=dict(network="vit-8-2-1")))
        return changed(config, dict(training=dict(network="cifar-resnet18", width=1 / 8)))
    if recipe == "adain":
        return changed(config, dict(method=dict(perceptual="labelled", network="leaky-wrn-10-1")))
    normalized = "-normalized" if config.method.network.endswith("-normalized") else ""
    more = dict(generator_channels=(4, 4, 4, 4), discriminator_width=0.1) if recipe == "scimix" else {}
    return changed(config, dict(method=dict(network=f"leaky-wrn-10-1{normalized}", **more)))


METHOD_OF = {
    "mean_teacher": mean_teacher, "scimix_mean_teacher": mean_teacher, "fixmatch": fixmatch, "mixmatch": mixmatch,
    "scimix_fixmatch": fixmatch, "scimix_mixmatch": mixmatch, "scimix_supervised": supervised,
}  # fmt: skip


def plan_of(recipe, preset):
    config = small(recipe, preset)
    context = context_of(config)
    match recipe:
        case "scimix":
            return scimix.plan(config.method, context, 0)[0]
        case "samosa_mean_teacher":
            made = samosa.networks(config.method, context, 0, heads=2)
            base = mean_teacher.plan(config.method, context, 0, classifier=made.watched)
            return samosa.with_samosa(base, made, config.samosa, 0)
        case "samosa_fixmatch":
            made = samosa.networks(config.method, context, 0, heads=1)
            base = fixmatch.plan(config.method, context, 0, classifier=made.watched)
            return samosa.with_samosa(base, made, config.samosa, 0, clean_only=True)
        case "samosa_mixmatch":
            made = samosa.networks(config.method, context, 0, heads=1)
            instead = mixmatch.Replacement(made.hybridize, config.probability, config.samosa.window)
            base = mixmatch.plan(config.method, context, 0, classifier=made.watched, replacement=instead)
            return samosa.with_samosa(base, made, config.samosa, 0, drawn=False)
        case "recursivemix":
            return recursivemix.plan(config.method, config.training, context, 0)
        case "mixing_baselines":
            return mixing.plan("cutmix", config.training, context, 0, alphas=config.alphas)
        case "mixmo" | "mixshare" | "mixvit":
            module = {"mixmo": mixmo, "mixshare": mixshare, "mixvit": mixvit}[recipe]
            return module.plan(config.method, config.training, context, 0, measure=lambda *given: {"accuracy": 0.0})
    base = METHOD_OF[recipe].plan(config.method, context, 0)
    return hybrids.with_hybrids(base, hybrids.Mixer("mixup"), config.hybrids)


def cosine(rate, epochs):
    """rate/2 · (1 + cos π epoch/epochs)."""
    return lambda epoch: rate / 2 * (1 + math.cos(math.pi * epoch / epochs))


def steps_down(rate, *at):
    return lambda epoch: rate / 10 ** len([each for each in at if epoch >= each])


def constant(rate):
    return lambda epoch: rate


def rates_of(recipe, preset):
    """Of each task: epochs of a cycle, cycles, and the paper's rate after so many epochs of the cycle."""
    data = "svhn" if "svhn" in preset else "cifar10"
    slow, quick = cosine({"cifar10": 0.1, "svhn": 0.2}[data], 350), cosine({"cifar10": 0.015, "svhn": 0.03}[data], 1050)
    match recipe:
        case "scimix":  # A.1.2.2
            return 300, 1, {"generator": cosine(0.2, 350) if "variant" in preset else slow, "discriminator":
                            cosine(0.2, 350) if "variant" in preset else slow}  # fmt: skip
        case "mean_teacher" | "scimix_mean_teacher":  # A.1.2.3
            return 300, 1, {"classifier": slow}
        case "scimix_supervised":  # ours
            return 300, 1, {"classifier": cosine(0.1, 350)}
        case "fixmatch" | "scimix_fixmatch":  # A.1.2.3
            return 1000, 1, {"classifier": quick}
        case "mixmatch" | "scimix_mixmatch":  # A.1.1
            return 900, 1, {"classifier": constant(0.002)}
        case "samosa_mean_teacher":  # A.1.1
            epochs, over = (150, 200) if data == "svhn" else (300, 350)
            return epochs, 3, dict.fromkeys(("classifier", "reconstruction"), cosine(0.2, over))
        case "samosa_fixmatch":  # ours
            return 1000, 3, {"classifier": quick, "reconstruction": cosine(0.2, 1050)}
        case "samosa_mixmatch":  # A.1.1
            return 900, 1, {"classifier": constant(0.002), "reconstruction": cosine(0.2, 950)}


@pytest.mark.parametrize(("recipe", "preset"), [each for each in EACH if rates_of(*each)])
def test_rates_and_length_of_the_thesis(recipe, preset):
    plan = plan_of(recipe, preset)
    epochs, cycles, rates = rates_of(recipe, preset)
    per_epoch = plan.clock.steps_per_epoch
    steps = epochs * per_epoch
    assert plan.clock.steps == cycles * steps
    assert plan.tasks.keys() == rates.keys()
    for name, rate in rates.items():
        for cycle in range(cycles):
            for step in (0, 1, steps // 2, steps - 1):
                clock = Clock(plan.clock.steps, per_epoch, cycle * steps + step)
                assert plan.tasks[name].rate(clock) == pytest.approx(rate(step / per_epoch), rel=1e-9), (name, step)


LABELLED_RATES = {
    # Of each: epochs, epochs of warm-up, the rate over time after it, epochs to look at
    **{
        name: (200, 5, cosine(0.1, 200), ())  # RM 4.1
        for name in RM_OF
        if "pyramidnet200" not in name and "imagenet" not in name
    },
    **dict.fromkeys(("paper-cifar10", "paper-cifar100"), (200, 5, cosine(0.1, 200), ())),  # RM 4.1
    **{
        f"paper-{data}-pyramidnet200": (300, 0, steps_down(0.25, 150, 225), (150, 225))  # code of CutMix
        for data in ("cifar10", "cifar100")
    },
    "paper-imagenet-resnet50": (300, 5, cosine(0.2, 300), ()),  # RM 4.2
    "paper-imagenet-pvtv2": (300, 5, cosine(5e-4, 300), ()),  # RM 4.2
    **dict.fromkeys(("automix-cifar10", "automix-cifar100"), (200, 0, cosine(0.1, 200), ())),  # AM A.1, code
}

MIXMO_RATES = {  # A.1.3.1, with b = 4
    "cifar": (300, 1, steps_down(0.1 / 4 * 64 / 128, 100, 200, 225), (100, 200, 225)),
    "tiny": (1200, 0, steps_down(0.2 / 4, 600, 900), (600, 900)),
}


ON_LABELS = [each for each in EACH if each[0] in ("recursivemix", "mixing_baselines")]


@pytest.mark.parametrize(("recipe", "preset"), ON_LABELS)
def test_rates_of_training_on_labels(recipe, preset):
    compare_rates(rate_of(loaded(recipe, preset).training), *LABELLED_RATES[preset])


@pytest.mark.parametrize("preset", EXPECTED["mixmo"])
def test_rates_of_mixmo(preset):
    plan = plan_of("mixmo", preset)
    expected = MIXMO_RATES["tiny" if "tiny" in preset else "cifar"]
    compare_rates(plan.tasks["classifier"].rate, *expected)
    batch = 100 if "tiny" in preset else 64
    assert plan.clock.steps == expected[0] * plan.clock.steps_per_epoch
    assert plan.clock.steps_per_epoch == 1500 // (batch // 4) and plan.stream.images_per_step == batch
    decay = 1e-4 if "tiny" in preset else 6e-4
    assert optimizer_of(plan.tasks["classifier"]) == an_sgd(decay, decay)
    assert plan.tasks["classifier"].clip is None and plan.average is None


def test_mixshare_is_the_theses_unless_told_otherwise():
    """But for batch repetition, which takes twice the time. The recipe's shorter training unmixes for as large a part,
    100 epochs of 300."""
    expected = {name.removeprefix("method."): value for name, value in MIXSHARE.items() if name.startswith("method.")}
    compare(values(mixshare.Settings()), expected | {"repetitions": 1})
    config = recipe_of("mixshare").Config()
    assert config.method == replace(mixshare.Settings(), fade=config.training.epochs / 3)


@pytest.mark.parametrize("preset", EXPECTED["mixshare"])
def test_mixshare_trains_and_unmixes_as_the_thesis(preset):
    """A.1.4: rate 0.1 / b · 64 / 128 with b = 2, and A.6.1."""
    plan = plan_of("mixshare", preset)
    compare_rates(plan.tasks["classifier"].rate, 300, 1, steps_down(0.1 / 2 * 64 / 128, 75, 150, 225), (75, 150, 225))
    assert plan.clock.steps_per_epoch == 1500 // (64 // 2) and plan.stream.images_per_step == 64
    assert optimizer_of(plan.tasks["classifier"]) == an_sgd(6e-4, 6e-4) and plan.average is None
    objective = plan.tasks["classifier"].objective
    expected = {"mask": "cutmix", "patch_probability": 1.0, "alpha": 2.0, "root": 1.0, "input_repetition": 0.1,
                "classifiers": "own", "part": 1.0, "fade": 100.0, "cutmix": 0.0, "smoothing": 0.0}  # fmt: skip
    assert attributes(objective, *expected) == expected
    first, second = (encoder.weight for encoder in objective.classifier.encoders)
    assert torch.equal(first, second) and first is not second


@pytest.mark.parametrize("preset", EXPECTED["mixvit"])
def test_mixvit_trains_as_the_thesis(preset):
    plan = plan_of("mixvit", preset)
    task, epochs = plan.tasks["classifier"], 300 if "long" in preset else 150
    first, second = (250, 280) if "long" in preset else (125, 140)
    rate = 5e-4 if "long" in preset else 1e-3
    compare_rates(task.rate, epochs, epochs // 10, steps_down(rate, first, second), (first, second))
    decay = 0.05 if "cifar" in preset else 0.1
    found = optimizer_of(task)  # kernels but not positions, class token and source vectors, as in DeiT's code
    assert found | {"decay": 0} == an_adamw(0) | {"decay": 0}
    assert found["decay"] == {"kernels": {decay, 0.0}, "others": {0.0}}
    views = 4 if "long" in preset else 3
    assert plan.stream.images_per_step == views * (1048 if "imagenet-100" in preset else 128)
    assert len(plan.stream.indices(0)[0].unique()) * views == plan.stream.images_per_step
    expected = {"mixing": "patches", "alpha": 0.5, "msda": True, "smoothing": 0.1}
    assert attributes(task.objective, *expected) == expected
    depths = {part.drop_prob for part in plan.network.modules() if type(part).__name__ == "DropPath"}
    assert depths == ({0.1} if "cait" in preset else set())
    assert plan.network.network.options == dict(
        inputs=2, source="embedding", place="late", encoders="one", inference="separate", ensemble="logits"
    )


def test_mixmo_mixes_as_the_thesis():
    objective = plan_of("mixmo", "paper-cifar100").tasks["classifier"].objective
    expected = {"mask": "cutmix", "patch_probability": 0.5, "alpha": 2.0, "root": 3.0, "input_repetition": 0.0,
                "classifiers": "own", "cutmix": 0.0, "smoothing": 0.0}  # fmt: skip
    assert attributes(objective, *expected) == expected
    assert (objective.classifier.inputs, objective.classifier.ensemble) == (2, "logits")


def compare_rates(scheduled, epochs, warmup, rate, edges, per_epoch=390):
    for step in (
        0, 1, warmup * per_epoch // 2, max(0, warmup * per_epoch - 2), max(0, warmup * per_epoch - 1),
        warmup * per_epoch, epochs * per_epoch // 2, *(e * per_epoch + s for e in edges for s in (-1, 0, 1)),
        epochs * per_epoch - 1,
    ):  # fmt: skip
        part = min(1, (step + 1) / (warmup * per_epoch)) if warmup else 1
        clock = Clock(epochs * per_epoch, per_epoch, step)
        assert scheduled(clock) == pytest.approx(part * rate(step / per_epoch), rel=1e-9), step


def optimizer_of(task):
    """Its kind and options, and the decay of kernels and of all else."""
    optimizer = task.optimizer
    options = {"decay": {}}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            kind = "kernels" if parameter.ndim > 1 else "others"
            options["decay"].setdefault(kind, set()).add(group["weight_decay"])
        names = ("momentum", "nesterov", "dampening") if isinstance(optimizer, torch.optim.SGD) else ("betas", "eps")
        options |= {name: group[name] for name in names}
    return {"kind": type(optimizer).__name__, **options}


def an_sgd(kernels, others, nesterov=True):
    return {
        "kind": "SGD", "momentum": 0.9, "nesterov": nesterov, "dampening": 0,
        "decay": {"kernels": {kernels}, "others": {others}},
    }  # fmt: skip


def an_adamw(kernels):
    return {
        "kind": "AdamW", "betas": (0.9, 0.999), "eps": 1e-8, "decay": {"kernels": {kernels}, "others": {0.0}},
    }  # fmt: skip


OPTIMIZERS = {
    "scimix": dict.fromkeys(("generator", "discriminator"), (an_sgd(5e-4, 5e-4), None)),  # A.1.2.2
    "mean_teacher": {"classifier": (an_sgd(5e-4, 5e-4), None)},  # A.1.2.3
    "fixmatch": {"classifier": (an_sgd(5e-4, 0.0), None)},  # A.1.2.3; kernels alone: code of FixMatch
    "mixmatch": {"classifier": (an_adamw(0.02), 1.0)},  # A.1.1; kernels alone: code of MixMatch
    "scimix_mixmatch": {"classifier": (an_adamw(0.02), 1.0)},
    "scimix_supervised": {"classifier": (an_sgd(5e-4, 5e-4), None)},  # ours
    "samosa_mean_teacher": dict.fromkeys(("classifier", "reconstruction"), (an_sgd(5e-4, 5e-4), 1.0)),  # A.1.1
    "samosa_fixmatch": {"classifier": (an_sgd(5e-4, 0.0), 1.0), "reconstruction": (an_sgd(5e-4, 5e-4), 1.0)},
    "samosa_mixmatch": {"classifier": (an_adamw(0.02), 1.0), "reconstruction": (an_sgd(5e-4, 5e-4), 1.0)},  # A.1.1
}
"""Of each task the optimizer, and the norm that gradients are clipped to."""


@pytest.mark.parametrize("recipe", OPTIMIZERS)
def test_optimizers_of_the_thesis(recipe):
    tasks = plan_of(recipe, next(iter(EXPECTED[recipe]))).tasks
    assert {name: (optimizer_of(task), task.clip) for name, task in tasks.items()} == OPTIMIZERS[recipe]


@pytest.mark.parametrize(
    ("recipe", "preset", "expected"),
    [
        ("recursivemix", "paper-cifar10-resnet18", an_sgd(5e-4, 5e-4, nesterov=False)),  # RM 4.1
        ("recursivemix", "paper-cifar10-pyramidnet200", an_sgd(1e-4, 1e-4)),  # code of CutMix
        ("recursivemix", "paper-imagenet-resnet50", an_sgd(1e-4, 1e-4, nesterov=False)),  # RM 4.2
        ("recursivemix", "paper-imagenet-pvtv2", an_adamw(0.05)),  # RM 4.2; kernels alone: code of PVT
        ("mixing_baselines", "paper-cifar100", an_sgd(5e-4, 5e-4, nesterov=False)),  # RM 4.1
        ("mixing_baselines", "automix-cifar100", an_sgd(1e-4, 1e-4, nesterov=False)),  # code of AutoMix
    ],
)  # fmt: skip
def test_optimizers_of_training_on_labels(recipe, preset, expected):
    plan = plan_of(recipe, preset)
    assert optimizer_of(plan.tasks["classifier"]) == expected
    assert plan.tasks["classifier"].clip is None
    assert plan.average is None


def over_time(weights, epoch, per_epoch=100, epochs=1000):
    """Every weight after so many epochs."""
    clock = Clock(epochs * per_epoch, per_epoch, round(epoch * per_epoch))
    return {name: value(weight, clock) for name, weight in weights.items()}


SCIMIX_WEIGHTS = {  # A.1.2.2
    "reconstruction": 1.0, "adversarial_reconstruction": 0.5, "adversarial_hybrid": 0.5, "semantic_attraction": 0.5,
    "semantic_repulsion": 0.05, "nonsemantic_attraction": 0.5, "nonsemantic_repulsion": 0.05, "supervised": 1.0,
    "consistency": 300.0, "logit_distance": 0.01,
}  # fmt: skip
SCIMIX_CRITIC = {"real": 1.0, "reconstruction": 0.5, "hybrid": 0.5}
"""Of the same game: λ_adv,r and λ_adv,h; no penalty (2.4.1)."""
SCIMIX_LATE = {"nonsemantic_attraction": 0.0, "nonsemantic_repulsion": 0.0}
"""Until epoch 50 (A.1.2.2)."""
SCIMIX_LESS = {
    "variant-no-hybridization": (
        dict.fromkeys(
            ("semantic_attraction", "semantic_repulsion", "nonsemantic_attraction", "nonsemantic_repulsion",
             "adversarial_hybrid"), 0.0,
        ),
        {"hybrid": 0.0},
    ),
    "variant-basic": (dict.fromkeys(("semantic_repulsion", "nonsemantic_repulsion"), 0.0), {}),
}  # fmt: skip
"""Table A.14."""


@pytest.mark.parametrize("preset", EXPECTED["scimix"])
@pytest.mark.parametrize("epoch", [0, 0.01, 25, 49.99, 50, 50.01, 150, 299.99])
def test_weights_of_scimix_over_time(preset, epoch):
    generator, critic = scimix.weights_of(loaded("scimix", preset).method)
    off, critic_off = SCIMIX_LESS.get(preset, ({}, {}))
    late = SCIMIX_LATE if epoch < 50 else {}
    assert over_time(generator, epoch) == SCIMIX_WEIGHTS | late | off
    assert over_time(critic, epoch) == SCIMIX_CRITIC | critic_off


@pytest.mark.parametrize("recipe", ["scimix"])
def test_scimix_trains_by_these_weights(recipe):
    tasks = plan_of(recipe, "paper-cifar10-250").tasks
    assert over_time(tasks["generator"].weights, 50) == SCIMIX_WEIGHTS
    assert over_time(tasks["discriminator"].weights, 50) == SCIMIX_CRITIC


MEAN_TEACHER_WEIGHTS = {"supervised": 1.0, "consistency": 300.0, "logit_distance": 0.01}  # A.1.1, A.1.2.3
FIXMATCH_WEIGHTS = {"supervised": 1.0, "unsupervised": 1.0}  # A.1.2.3
HYBRID_WEIGHT = {"hybrids": 1.0}  # A.1.2.3

CLASSIFIER_WEIGHTS = [
    ("mean_teacher", "paper-cifar10-100", MEAN_TEACHER_WEIGHTS | HYBRID_WEIGHT, None),
    ("scimix_mean_teacher", "paper-svhn-60", MEAN_TEACHER_WEIGHTS | HYBRID_WEIGHT, None),
    ("fixmatch", "paper-cifar10-100", FIXMATCH_WEIGHTS | HYBRID_WEIGHT, None),
    ("scimix_fixmatch", "paper-svhn-60", FIXMATCH_WEIGHTS | HYBRID_WEIGHT, None),
    ("scimix_supervised", "paper-cub-64", {"supervised": 1.0} | HYBRID_WEIGHT, None),
    ("samosa_mean_teacher", "paper-cifar10-250", MEAN_TEACHER_WEIGHTS | {"regularizer": 0.5}, 0.25),  # A.1.1
    ("samosa_mean_teacher", "paper-svhn-100", MEAN_TEACHER_WEIGHTS | {"regularizer": 0.1}, 0.25),
    ("samosa_fixmatch", "paper-cifar10-100", FIXMATCH_WEIGHTS | {"regularizer": 0.5}, 0.25),
    ("samosa_fixmatch", "paper-svhn-60", FIXMATCH_WEIGHTS | {"regularizer": 0.1}, 0.25),
]


@pytest.mark.parametrize(("recipe", "preset", "expected", "reconstruction"), CLASSIFIER_WEIGHTS)
def test_weights_of_classifiers_are_constant(recipe, preset, expected, reconstruction):
    tasks = plan_of(recipe, preset).tasks
    for epoch in (0, 0.01, 1, 50, 299.99, 900):
        assert over_time(tasks["classifier"].weights, epoch) == expected
        if reconstruction is not None:
            assert over_time(tasks["reconstruction"].weights, epoch) == {"reconstruction": reconstruction}


@pytest.mark.parametrize(
    ("recipe", "more"),
    [("mixmatch", HYBRID_WEIGHT), ("scimix_mixmatch", HYBRID_WEIGHT), ("samosa_mixmatch", {"regularizer": 0.5})],
)
def test_mixmatchs_weight_grows_over_16384_steps(recipe, more):
    tasks = plan_of(recipe, "paper-cifar10-500").tasks
    for step, part in {0: 0, 1: 1 / 16384, 8192: 1 / 2, 16383: 16383 / 16384, 16384: 1, 16385: 1, 100_000: 1}.items():
        clock = Clock(175_500, 195, step)
        found = {name: value(weight, clock) for name, weight in tasks["classifier"].weights.items()}
        assert found == pytest.approx({"supervised": 1.0, "unsupervised": 37.5 * part} | more, rel=1e-12)
    if recipe == "samosa_mixmatch":
        assert over_time(tasks["reconstruction"].weights, 0) == {"reconstruction": 0.25}


WINDOWS = {
    "mean_teacher": (50, 150), "scimix_mean_teacher": (50, 150),  # A.1.2.3
    "fixmatch": (100, 200), "scimix_fixmatch": (100, 200),  # A.1.2.3
    "mixmatch": (150, 450), "scimix_mixmatch": (150, 450),  # ours
    "scimix_supervised": (50, 150),  # ours
}  # fmt: skip


@pytest.mark.parametrize(("recipe", "preset"), [each for each in EACH if each[0] in WINDOWS])
def test_windows_of_hybrids(recipe, preset):
    start, stop = WINDOWS[recipe]
    active = loaded(recipe, preset).hybrids.active
    for epoch, expected in {
        0: False, start - 0.01: False, start: True, start + 0.01: True, stop - 0.01: True, stop: False, stop + 1: False,
    }.items():  # fmt: skip
        assert active(Clock(100_000, 100, round(100 * epoch))) is expected, epoch


SAMOSA_WINDOWS = {
    ("samosa_mean_teacher", "paper-cifar10"): (300, 3, 150, 250),  # A.1.1
    ("samosa_mean_teacher", "paper-svhn"): (150, 3, 50, 100),
    ("samosa_mean_teacher", "paper-mnist-m"): (300, 3, 150, 250),
    ("samosa_fixmatch", "paper-cifar10"): (1000, 3, 500, 800),  # ours
    ("samosa_fixmatch", "paper-svhn"): (1000, 3, 500, 800),
    ("samosa_mixmatch", "paper-cifar10"): (900, 1, 100, 800),  # A.1.1
}


@pytest.mark.parametrize(("recipe", "preset"), [each for each in EACH if each[0].startswith("samosa_")])
def test_windows_of_samosa_in_every_cycle(recipe, preset):
    epochs, cycles, start, stop = SAMOSA_WINDOWS[recipe, preset.rpartition("-")[0]]
    settings = loaded(recipe, preset).samosa
    plan = plan_of(recipe, preset)
    per_epoch = plan.clock.steps_per_epoch
    for cycle in range(cycles):
        begin = cycle * epochs * per_epoch
        for step, expected in {
            0: False, start * per_epoch - 1: False, start * per_epoch: True, stop * per_epoch - 1: True,
            stop * per_epoch: False, epochs * per_epoch - 1: False,
        }.items():  # fmt: skip
            assert settings.window(Clock(plan.clock.steps, per_epoch, begin + step)) is expected, (cycle, step)
            if recipe != "samosa_mixmatch":  # "in the second and third training passes" (A.1.1)
                drawn, _ = samosa.stretch(settings, begin + step, per_epoch, plan.stream.cycle_steps)
                assert drawn is (expected and cycle > 0), (cycle, step)


def test_samosa_makes_ten_hybrids_of_each_labelled_image():
    assert len(plan_of("samosa_mean_teacher", "paper-cifar10-250").modules["hybrids"].images) == 2500  # algorithm A.1


@pytest.mark.parametrize(
    ("recipe", "decay"),
    [(recipe, 0.999) for recipe in OPTIMIZERS],  # A.1.2.3 "following (Berthelot et al. 2019)"
)
def test_averages_that_are_evaluated(recipe, decay):
    assert plan_of(recipe, next(iter(EXPECTED[recipe]))).average.decay == decay


@pytest.mark.parametrize("recipe", ["scimix", "mean_teacher", "samosa_mean_teacher"])
def test_teachers_have_a_linear_start_and_decay_097(recipe):
    objective = next(iter(plan_of(recipe, next(iter(EXPECTED[recipe]))).tasks.values())).objective
    (teacher,) = (module for module in objective.modules() if type(module).__name__ == "EMA")
    assert (teacher.decay, teacher.linear_start, teacher.buffers_mode) == (0.97, True, "own")  # A.1.2.2


def attributes(thing, *names):
    return {name: getattr(thing, name) for name in names}


def test_objectives_have_the_presets_options():
    generating = plan_of("scimix", "paper-svhn-60").tasks["generator"].objective
    assert attributes(
        generating, "guide", "semantic_distance", "nonsemantic_distance", "reconstruction_distance",
        "consistency_reduction", "freeze_criteria", "criterion_shift", "criterion_noise",
    ) == {
        "guide": "mean-teacher", "semantic_distance": "norm", "nonsemantic_distance": "norm",
        "reconstruction_distance": "norm", "consistency_reduction": "mean", "freeze_criteria": True,
        "criterion_shift": 0, "criterion_noise": 0.0,
    }  # fmt: skip
    taught = plan_of("fixmatch", "paper-svhn-60").tasks["classifier"].objective.base
    assert taught.labelling.weighting.threshold == 0.95
    assert attributes(taught, "targets", "average", "interpolated") == {
        "targets": "joint", "average": None, "interpolated": False,
    }  # fmt: skip
    assert taught.labelling.alignment is None and type(taught.labelling.weighting).__name__ == "FixedThreshold"
    guessing = plan_of("samosa_mixmatch", "paper-cifar10-250").tasks["classifier"].objective.base
    assert attributes(guessing, "temperature", "alpha") == {"temperature": 0.5, "alpha": 0.75}
    assert guessing.replacement.probability == 0.2


RECURSIVE = {
    "alpha": 0.5, "resize": True, "recursive": True, "interpolation": "nearest", "divergence": "kl",
    "reset_each_epoch": False, "smoothing": 0.0,
}  # fmt: skip


@pytest.mark.parametrize("preset", EXPECTED["recursivemix"])
def test_recursivemix_trains_as_its_paper(preset):
    task = plan_of("recursivemix", preset).tasks["classifier"]
    omega = 0.5 if "imagenet" in preset else 0.1  # RM 3 and 4.2
    smoothing = 0.1 if preset == "paper-imagenet-pvtv2" else 0.0  # RM 4.2
    assert over_time(task.weights, 3) == {"supervised": 1.0, "consistency": omega}
    assert attributes(task.objective, *RECURSIVE) == RECURSIVE | {"smoothing": smoothing}
    assert task.objective.region_head is not None  # table 4a


def test_recursivemix_among_the_baselines():
    config = small("mixing_baselines", "paper-cifar100")
    tasks = {
        name: mixing.plan(name, config.training, context_of(config), 0).tasks["classifier"]
        for name in ("recursivemix", "recursivemix-no-consistency")
    }
    assert {name: dict(task.weights) for name, task in tasks.items()} == {
        "recursivemix": {"supervised": 1.0, "consistency": 0.1},  # RM 3
        "recursivemix-no-consistency": {"supervised": 1.0},  # RM table 2
    }
    for task in tasks.values():
        assert attributes(task.objective, *RECURSIVE) == RECURSIVE


def test_adain_trains_by_its_weights_and_rates():
    config = small("adain", "paper")
    context = context_of(config)
    network = adain.network(config.method, context, 0)
    first = adain.perception_plan(config.method, context, network, 0)
    made, _ = adain.plan(config.method, context, network, 0)
    per_epoch = made.clock.steps_per_epoch
    assert (first.clock.steps, made.clock.steps, made.average.decay) == (600, 20 * per_epoch, 0.995)  # ours
    assert first.tasks["perception"].weights == {"supervised": 1.0}
    assert made.tasks["transfer"].weights == {"content": 1.0, "style": 10.0}  # λ
    for step in (0, 300, 599):
        rate = first.tasks["perception"].rate(Clock(first.clock.steps, first.clock.steps_per_epoch, step))
        assert rate == pytest.approx(cosine(4e-3, 600)(step))  # ours
    for epoch in (0, 10, 19):
        clock = Clock(made.clock.steps, per_epoch, epoch * per_epoch)
        assert made.tasks["transfer"].rate(clock) == pytest.approx(cosine(1e-4, 20)(epoch))  # code; the fall ours


# --- Mixings --------------------------------------------------------------------------------------------------------


def options_of(draw):
    """Its function's name and all options that count, by its defaults and what a partial fixes."""
    if draw is None:
        return None
    given = {}
    while isinstance(draw, partial):
        assert not draw.args
        given = draw.keywords | given
        draw = draw.func
    defaults = {
        name: each.default
        for name, each in inspect.signature(draw).parameters.items()
        if name not in ("images", "maps", "generator")
    }
    assert given.keys() <= defaults.keys()
    return draw.__name__, defaults | given


OF_BATCH = {"per_sample": False}
MIXUP = ("mixup", {"alpha": 1.0, **OF_BATCH})  # Zhang et al. 2018; its code draws one λ a batch
CUTMIX = ("cutmix", {"alpha": 1.0, "resize": False, "interpolation": "nearest", **OF_BATCH})  # Yun et al. 2019
MANIFOLD = ("mixup", {"alpha": 2.0, **OF_BATCH})  # Verma et al. 2019
RESIZEMIX = ("resizemix", {"scope": (0.1, 0.8), "border": "inside", "interpolation": "nearest", **OF_BATCH})  # Qin 2020
SALIENCYMIX = ("saliencymix", {"alpha": 1.0, **OF_BATCH})  # Uddin et al. 2021
FMIX = ("fmix", {"alpha": 1.0, "decay": 3.0, **OF_BATCH})  # Harris et al. 2020
COWMIX = (  # French et al. 2020
    "cowmix", {"alpha": None, "shares": (0.2, 0.8), "sigmas": (4.0, 16.0), "per_sample": True},
)  # fmt: skip
HORIZONTAL = ("horizontal_concat", {"alpha": 1.0, "per_sample": True})  # Summers and Dinneen 2019
VERTICAL = ("vertical_concat", {"alpha": 1.0, "per_sample": True})
PATCHUP = {"gamma": None, "side": 7, "alpha": 2.0, "channelwise": True, **OF_BATCH}  # Faramarzi et al. 2020, its code
PATCHUP_HARD, PATCHUP_SOFT = (("patchup", {"kind": kind, **PATCHUP}) for kind in ("hard", "soft"))


def with_(option, **changes):
    return option[0], option[1] | changes


def how_of(draw=None, probability=1.0, maps=False, draw_images=None, terms=1):
    return {"draw": draw, "probability": probability, "maps": maps, "draw_images": draw_images, "terms": terms}


OWN = {
    "none": how_of(),
    "mixup": how_of(MIXUP),
    "cutmix": how_of(CUTMIX, 0.5),  # code: cutmix_prob 0.5 on CIFAR
    "cutmix-resized": how_of(with_(CUTMIX, resize=True), 0.5),  # RM table 2
    "manifold-mixup": how_of(MANIFOLD, maps=True),
    "resizemix": how_of(RESIZEMIX),
    "saliencymix": how_of(SALIENCYMIX, 0.5),  # code: as CutMix's
    "fmix": how_of(FMIX),
    "cowmix": how_of(COWMIX),
    "horizontal-concat": how_of(HORIZONTAL),
    "vertical-concat": how_of(VERTICAL),
    "patchup-hard": how_of(PATCHUP_HARD, 0.7, maps=True, draw_images=CUTMIX, terms=2),  # code: patchup_prob 0.7
    "patchup-soft": how_of(PATCHUP_SOFT, 1.0, maps=True, draw_images=CUTMIX, terms=2),  # code: patchup_prob 1.0
}
"""As each one's own paper."""

AS_AUTOMIX = OWN | {
    # AM A.1: "Mixup and ResizeMix use α = 1, and CutMix, FMix and SaliencyMix use α = 0.2, and ManifoldMix uses α = 2";
    # in every step, ResizeMix's box cut off at the border: code
    "cutmix": how_of(with_(CUTMIX, alpha=0.2)),
    "cutmix-resized": how_of(with_(CUTMIX, alpha=0.2, resize=True)),
    "resizemix": how_of(with_(RESIZEMIX, border="cut")),
    "saliencymix": how_of(with_(SALIENCYMIX, alpha=0.2)),
    "fmix": how_of(with_(FMIX, alpha=0.2)),
}

TRAINED_OTHERWISE = {"augmix", "augmix-jsd", "recursivemix", "recursivemix-no-consistency"}


def test_titles_are_of_these_methods():
    """Each its own: a table has a row, and a comparison a folder, for each."""
    assert tuple(mixing.TITLES) == EVERY_METHOD
    assert set(mixing.TITLES) == OWN.keys() | TRAINED_OTHERWISE
    assert tuple(mixing.TITLES.values()) == (
        "No mixing", "Mixup", "CutMix", "CutMix, resized", "Manifold Mixup", "ResizeMix", "SaliencyMix", "FMix",
        "CowMix", "Horizontal concat", "Vertical concat", "PatchUp, hard", "PatchUp, soft", "AugMix", "AugMix with JSD",
        "RecursiveMix", "RecursiveMix, no CL",
    )  # fmt: skip
    assert mixmo.TITLES == {
        "plain": "Plain network", "mimo": "MIMO", "linear-mixmo": "Linear-MixMo", "cut-mixmo": "Cut-MixMo",
    }  # fmt: skip
    assert mixshare.TITLES == {
        "plain": "Plain network", "cut-mixmo": "Cut-MixMo", "unmixing": "Unmixing",
        "unmixing-aligned": "Unmixing, kernels aligned", "mixshare-partial": "MixShare, partial",
        "mixshare": "MixShare, fade-out",
    }  # fmt: skip
    assert mixvit.TITLES == {
        "single": "One input", "mixvit-embedding": "MixViT-embedding", "mixvit-encoding": "MixViT-encoding",
        "no-attribution": "No source attribution", "early-embedding": "Early source embedding",
        "early-encoding": "Early source encoding", "sum": "Sum inference", "alternating": "Alternating inference",
        "single-subnetwork": "Single subnetwork inference", "all-tokens": "All tokens", "mimo": "MIMO",
        "mixmo": "MixMo", "mixmo-separate": "MixMo, separate inference", "mixmo-equal": "MixMo, same initialization",
        "cutmix-mixmo": "CutMix-only MixMo",
    }  # fmt: skip
    assert hybrids.TITLES == {
        "scimix": "SciMix", "samosa": "SAMOSA", "adain": "AdaIN", "mixup": "MixUp", "cutmix": "CutMix",
    }  # fmt: skip


@pytest.mark.parametrize("name", OWN)
@pytest.mark.parametrize(("alphas", "expected"), [("own", OWN), ("automix", AS_AUTOMIX)])
def test_how_methods_mix(name, alphas, expected):
    how = mixing.how(name, alphas)
    found = how._asdict() | {field: options_of(getattr(how, field)) for field in ("draw", "draw_images")}
    compare(found, expected[name])


def test_methods_by_their_names_mix_as_their_papers():
    assert {name: options_of(draw) for name, draw in draws.METHODS.items()} == {
        "mixup": MIXUP, "manifold-mixup": MANIFOLD, "cutmix": CUTMIX, "resizemix": RESIZEMIX,
        "saliencymix": SALIENCYMIX, "fmix": FMIX, "cowmix": COWMIX, "horizontal-concat": HORIZONTAL,
        "vertical-concat": VERTICAL, "patchup-hard": PATCHUP_HARD, "patchup-soft": PATCHUP_SOFT,
    }  # fmt: skip


@pytest.mark.parametrize(("kind", "gamma"), [("hard", 0.5), ("soft", 0.75)])  # code: --gamma
def test_patchups_gamma(monkeypatch, kind, gamma):
    seen, blocks = [], masks.blocks

    def noted(rate, *size, **options):
        seen.append(rate)
        return blocks(rate, *size, **options)

    monkeypatch.setattr(masks, "blocks", noted)
    draws.METHODS[f"patchup-{kind}"](torch.zeros(2, 4, 32, 32))
    assert seen[0].tolist() == pytest.approx([gamma * 32**2 / (7**2 * 26**2)])


def defaults_of(function):
    return {
        name: each.default
        for name, each in inspect.signature(function).parameters.items()
        if each.default is not inspect.Parameter.empty and name != "generator"
    }


AUGMIX = ("autocontrast", "equalize", "posterize", "solarize", "rotate", "shear_x", "shear_y", "translate_x",
          "translate_y")  # fmt: skip
CIFAR_C = ("gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "glass_blur", "motion_blur", "zoom_blur",
           "snow", "frost", "fog", "brightness", "contrast", "elastic_transform", "pixelate",
           "jpeg_compression")  # fmt: skip
LEFT_OUT = ("device", "training")
ARGUMENTS = {
    # Szegedy et al. 2015, and Zhong et al. 2020 as timm has it; code of CutMix and RecursiveMix
    "data.augment.weak": {"padding": "reflection"},  # A.1.2.1
    "data.augment.resized_crop": {"scale": (0.08, 1.0), "aspect": (3 / 4, 4 / 3)},
    "data.augment.erase": {"scale": (0.02, 1 / 3), "aspect": (0.3, 10 / 3)},
    "data.augment.color_jitter": {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "clip": True},
    "data.augment.lighting": {"std": 0.1, "clip": True},
    "data.sources.Photographs": {"scale": (0.08, 1.0), "aspect": (3 / 4, 4 / 3)},
    # Hendrycks et al. 2020: width 3, depth 1 to 3 at random, severity 3, α 1
    "data.augmix.augmix": {"width": 3, "severity": 3, "alpha": 1.0, "operations": AUGMIX},
    "data.augmix.draw_chains": {"operations": AUGMIX},
    # FixMatch's code: two operations, each half of the time, and CutOut of half the side of CIFAR's
    "data.randaugment.strong": {"operations": 2, "probability": 0.5, "cutout": 16},
    "data.pillow_policy.pillow_strong": {"operations": 2, "probability": 0.5, "cutout": 16},
    "data.cifar_c.CifarC": {"names": CIFAR_C},
    "data.corruptions.check_corruptions": {"flag": "corruptions"},
    "data.datasets.Dataset": {"told": (), "asked_flip": "auto"},
    "data.datasets.described": {"told": ()},
    "data.datasets.load_dataset": {"data_root": "data", "download": False, "memory_limit": 2**31, "whole": False},
    "data.datasets.from_arrays": {"masks": (None, None)},
    "data.levels.to_images": {"dtype": torch.float32},
    "data.readers.folder.of_groups": {"told": ()},
    "data.splits.make_split": {"seed": 0, "validation": 0},
    "data.streams.Stream": {
        "labelled_views": (), "unlabelled_views": (), "rank": 0, "world": 1, "workers": 0, "repetitions": 1,
    },
    "data.streams.batches": {"workers": 0},
    "evaluation.calibration.binned": {"bins": 15},  # Guo et al. 2017
    "evaluation.calibration.calibration_error": {"bins": 15},
    "evaluation.cam.present_classes": {"most": 3},
    "evaluation.classification.top_accuracy": {"count": 1},
    "evaluation.explore.Explorer": {"part": "test", "seed": 0},
    "evaluation.features.encoded": {"batch_size": 512},
    "evaluation.figures.Cell": {"caption": ""},
    "evaluation.figures.image_table": {"columns": (), "side": 1.35},
    "evaluation.finished.check_data": {"others": False},
    "evaluation.finished.dataset_of": {"download": False},
    "evaluation.grid.sample_grid": {"side": 8},
    "evaluation.mixing_studies.mixed_inputs": {"alpha": 0.5},  # RecursiveMix's
    "evaluation.mixing_studies.check_mixers": {"flag": "--methods"},
    "evaluation.mixing_studies.sequence": {"steps": 8, "places": 4, "alpha": 0.5, "seed": 0},
    "evaluation.mixing_studies.targets": {"steps": 100, "batch": 64, "runs": 3, "seed": 0},
    "evaluation.mixing_studies.mixing": {"columns": 8, "seed": 0},
    "evaluation.oracle.Training": {
        "steps": 1500, "batch_size": 64, "network": "leaky-wrn-10-2", "optimizer": "adamw", "seed": 0, "rate": 0.004,
        "weight_decay": 0.02, "label_smoothing": 0.05, "ema_decay": 0.0, "shrinks": False,
    },
    "evaluation.oracle_settings.OracleSettings": {"oracle": "trained"},
    "evaluation.predictions.Predictions": {"ensemble": "logits"},
    "evaluation.predictions.read_predictions": {"ensemble": "logits"},
    "evaluation.scoring.Shown": {"percent": False},
    "evaluation.scoring.robustness": {"batch_size": 512},
    "evaluation.sharing.active_filters": {"thresholds": (0.2, 0.3, 0.4, 0.5)},  # table A.16
    "evaluation.sharing.influence": {"batch": 256},
    "evaluation.studies.Conditions": {"repeats": 4, "seed": 0, "probe_images": 5000, "fda_beta": 0.1},
    "evaluation.transfer.transfer_rates": {"repeats": 4, "seed": 0, "batch_size": 512, "fda_beta": 0.1},
    "evaluation.transfer.observe": {"repeats": 4, "seed": 0, "batch_size": 512},
    "evaluation.transfer.wilson": {"z": 1.959964},  # 97.5 % of a normal distribution lie below
    "hybridizer.Origin": {"method": "scimix"},
    "hybridizer.Hybridizer.train": {"mode": True},
    "hybridizer.Hybridizer.check_split": {"allow_other_split": False},
    "hybridizer.Hybridizer.from_pretrained": {"backend": "hybridgen"},
    "hybridizer.Hybridizer.push_to_hub": {"private": False},
    "hybridizer.Hybridizer.card": {"trained": "", "figures": ()},
    "hybridizer.Hybridize": {
        "alpha": 0.9, "probability": 1.0, "keep_consistent": False, "labels_getter": "default",  # torchvision's
    },
    "mixing.inputs.mix_inputs": {"repeated": 0.0},
    "mixing.inputs.mix_patches": {"whole": 0.0},
    "mixing.inputs.cut_and_mixed": {"cutmix": 1.0, "mixup": 0.8},  # CaiT's
    "mixing.masks.beta": {"dtype": torch.float32},
    "mixing.masks.beta_log_odds": {"dtype": torch.float32},
    "mixing.masks.log_gammas": {"dtype": torch.float32},
    "mixing.masks.fourier": {"decay": 3.0},  # Harris et al. 2020
    "mixing.masks.cow": {"sigmas": (4.0, 16.0)},  # French et al. 2020
    "mixing.masks.blocks": {"channels": 1},
    "mixing.methods.mixup": {"alpha": 1.0, "per_sample": False},
    "mixing.methods.cutmix": {"alpha": 1.0, "resize": False, "interpolation": "nearest", "per_sample": False},
    "mixing.methods.resizemix": {  # Qin et al. 2020: τ from U(0.1, 0.8)
        "scope": (0.1, 0.8), "border": "inside", "interpolation": "nearest", "per_sample": False,
    },
    "mixing.methods.saliencymix": {"alpha": 1.0, "per_sample": False},
    "mixing.methods.fmix": {"alpha": 1.0, "decay": 3.0, "per_sample": False},
    "mixing.methods.cowmix": {"shares": (0.2, 0.8), "sigmas": (4.0, 16.0), "per_sample": True},
    "mixing.methods.horizontal_concat": {"alpha": 1.0, "per_sample": True},
    "mixing.methods.vertical_concat": {"alpha": 1.0, "per_sample": True},
    "mixing.methods.patchup": {  # code of its authors
        "kind": "hard", "side": 7, "alpha": 2.0, "channelwise": True, "per_sample": False,
    },
    "mixing.mixing.Mixing": {"interpolation": "nearest"},
    "mixing.mixing.as_targets": {"unknown": False},
    "mixing.recursive.draw_box": {"alpha": 0.5},  # RecursiveMix, 4.1
    "mixing.recursive.recursive": {"resize": True, "interpolation": "nearest"},
    "mixing.recursive.recursivemix": {"alpha": 0.5, "resize": True, "interpolation": "nearest"},
    "mixing.samples.change_sample": {"unknown": False},
    "mixing.transform.Mix": {"probability": 1.0, "labels_getter": "default"},
}  # fmt: skip
"""Of the public functions that data, mixing and evaluation consist of: what is neither None nor left out. Ours
unless said."""


def test_arguments_of_functions_that_are_not_given():
    found = {}
    for module in pkgutil.walk_packages(hybridgen.__path__, "hybridgen."):
        place = module.name.removeprefix("hybridgen.")
        if place.split(".")[0] not in ("data", "mixing", "evaluation", "hybridizer"):
            continue
        for name, each in vars(importlib.import_module(module.name)).items():
            if name.startswith("_") or getattr(each, "__module__", None) != module.name or not callable(each):
                continue
            methods = vars(each) if inspect.isclass(each) else ()
            for what in (name, *(f"{name}.{method}" for method in methods if not method.startswith("_"))):
                function = getattr(each, what.partition(".")[2]) if "." in what else each
                own = defaults_of(function) if callable(function) else {}
                own = {key: value for key, value in own.items() if value is not None and key not in LEFT_OUT}
                if own:
                    found[f"{place}.{what}"] = own
    assert found == ARGUMENTS


CONSTANTS = {
    "assets": {"HYBRIDIZER": "digits-m-scimix"},
    "commands.split": {"SIDE": 8},
    "data.augment": {"LUMINANCE": (0.299, 0.587, 0.114)},  # ITU-R BT.601
    "data.autoaugment": {"MAGNITUDES": 10, "TRANSLATION": 150 / 331},  # torchvision's
    "data.corruptions": {"SEVERITIES": 5},
    "data.cifar_c": {"LABELS": "labels.npy", "SEVERITIES": 5},
    "data.datasets": {"STATISTICS_SAMPLE": 2000},
    "data.levels": {"FILL_LEVEL": 127, "MAGNITUDES": 10},
    "data.randaugment": {"GREY": 0.5},
    "data.pillow_policy": {"FILL": (127, 127, 127)},
    "data.readers.folder": {
        "CONTENT_HASH_LIMIT": 2**28, "TEST_SHARE": 5, "PARTS": ("train", "test"),
        "UNLABELED": ("unlabeled", "unlabelled"),
    },
    "data.readers.tables": {
        "TESTS": ("test", "validation", "valid", "val", "dev"), "OPTIONS": ("config", "image", "label"),
        "UNSUPERVISED": ("unlabeled", "unlabelled", "unsupervised"),
    },
    "data.sources": {
        "CROP_ATTEMPTS": 10,  # torchvision's
        "IMAGE_SUFFIXES": (
            ".avif", ".bmp", ".gif", ".jp2", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff",
            ".webp",
        ),
    },
    "errors": {"PATIENCE": 10.0},
    "evaluation.attention": {"SHOWN": 4},
    "evaluation.calibration": {"BINS": 15, "TEMPERATURES": (1e-3, 1e3)},
    "evaluation.cam": {"ROWS": 6},
    "evaluation.ensembles": {"TOP": 5},
    "evaluation.export": {"MANIFEST": "hybrids.json", "TABLE": "metadata.csv", "BLOCK": 64},
    "evaluation.explore": {"HANDFUL": 24, "TOP": 3, "CELLS": 64, "MOST_BYTES": 3 * 2**24, "MOST_PIXELS": 2**26},
    "evaluation.finished": {"SUFFIX": ".pt"},
    "evaluation.grid": {"LEGIBLE": 64},
    "evaluation.intervals": {"BIASED": ("ece",), "RESAMPLES": 1000},
    "evaluation.mixing_studies": {"SMOOTHED": 1e-4},  # RecursiveMix, 4.4
    "evaluation.oracle": {
        "PASSES": (2, 75), "PIXELS": 409_600_000, "BATCH_PIXELS": 524_288, "PART": 20, "DEARER": 5, "TOLD": 100,
        "FORMAT": "hybridgen-oracle", "CONFIG": "oracle.json", "WEIGHTS": "oracle.safetensors",
    },
    "evaluation.predictions": {"TOLERANCE": 1e-3},
    "evaluation.studies": {"ROWS": 6, "TITLES": {"scimix": "SciMix", "samosa": "SAMOSA", "adain": "AdaIN"}},
    "evaluation.transfer": {
        "SAMPLE": 64, "HYBRIDIZER": "hybridizer", "CHANCE": "unrelated image", "MIXUP": "MixUp, dominant label",
        "FDA": "FDA",
    },
    "mixing.inputs": {"PATCH": 7, "SMALLEST": 3},
}  # fmt: skip
"""Numbers and words that stand by themselves; ours unless said."""


def test_numbers_that_stand_by_themselves():
    for place, expected in CONSTANTS.items():
        module = importlib.import_module(f"hybridgen.{place}")
        assert {name: getattr(module, name) for name in expected} == expected


@pytest.mark.parametrize(("name", "weights"), [
    ("augmix", {"supervised": 1.0}),
    ("augmix-jsd", {"supervised": 1.0, "jensen_shannon": 12.0}),  # Hendrycks et al. 2020, λ
])  # fmt: skip
def test_augmix_trains_by_these_weights(name, weights):
    assert augmix_method.WEIGHT == 12.0
    config = small("mixing_baselines", "paper-cifar10")
    assert mixing.plan(name, config.training, context_of(config), 0).tasks["classifier"].weights == weights


@pytest.mark.parametrize("name", OWN)
@pytest.mark.parametrize("alphas", ["own", "automix"])
def test_plans_mix_where_and_as_often_as_is_told(name, alphas):
    """Manifold Mixup: what the first and the second stage have made, code of its authors."""
    config = small("mixing_baselines", "paper-imagenet-pvtv2")  # with label smoothing
    expected = (AS_AUTOMIX if alphas == "automix" else OWN)[name]
    plan = mixing.plan(name, config.training, context_of(config), 0, alphas=alphas)
    task = plan.tasks["classifier"]
    mixed, classifier = task.objective, plan.network
    assert mixed._stages == (tuple(classifier.stages[1:3]) if expected["maps"] else ())
    assert len(mixed._stages) == (2 if expected["maps"] else 0)
    assert options_of(mixed.draw) == expected["draw"]
    assert options_of(mixed.draw_images) == (expected["draw_images"] or expected["draw"])
    assert attributes(mixed, "probability", "terms", "smoothing") == {
        "probability": expected["probability"], "terms": expected["terms"], "smoothing": 0.1,
    }  # fmt: skip
    assert task.weights == {"supervised": 1.0}


def test_mixup_and_cutmix_in_the_place_of_a_hybridizer_draw_uniform_ratios():
    torch.manual_seed(0)
    images = torch.rand(2000, 3, 4, 4)
    ratio = hybrids.Mixer("mixup").draw(images, torch.randperm(2000)).ratio
    # Beta(1, 1): Zhang et al. 2018, Yun et al. 2019
    assert ratio.mean().item() == pytest.approx(0.5, abs=0.03)
    assert ratio.var().item() == pytest.approx(1 / 12, abs=0.01)


# --- Augmentations of the presets -----------------------------------------------------------------------------------


def views_of(monkeypatch, recipe, preset):
    """What the plan asks its stream for: views of labelled and unlabelled images, and batches."""
    asked = {}
    stream = Context.stream

    def noted(self, seed, **options):
        asked.update(options)
        return stream(self, seed, **options)

    monkeypatch.setattr(Context, "stream", noted)
    plan_of(recipe, preset)
    return asked


def told(view):
    """A view's function and options."""
    return view.func.__name__, dict(view.keywords)


WEAK = ("weak", {"flip": True, "shift": 2})
"""A.1.2.1: flips and shifts "by up to 4 pixels" of 32, with reflection; here 2 of 16."""
STRONG = ("strong", {"flip": True, "shift": 2, "cutout": 8})
"""Code of FixMatch: a cutout of half the side."""


@pytest.mark.parametrize("asked", ["auto", "always", "never"])
@pytest.mark.parametrize("sets", [True, False])
def test_images_are_mirrored_where_their_set_or_the_settings_say_so(monkeypatch, asked, sets):
    """In every view that mirrors, of training on labels and of the run's oracle too."""
    expected = {"auto": sets, "always": True, "never": False}[asked]

    def context(config):
        made = context_of(replace(config, flip=asked))
        return replace(made, dataset=replace(made.dataset, flip=sets))

    for recipe in ("scimix", "fixmatch"):
        seen = {}
        monkeypatch.setattr(Context, "stream", lambda self, seed, seen=seen, **options: seen.update(options) or 1 / 0)
        config = small(recipe, "paper-cifar10-250")
        method = replace(config.method, **({"guide": "fixmatch"} if recipe == "scimix" else {}))  # strong views, too
        with pytest.raises(ZeroDivisionError):
            {"scimix": scimix, "fixmatch": fixmatch}[recipe].plan(method, context(config), 0)
        views = [*seen["labelled_views"], *seen["unlabelled_views"]]
        assert len(views) >= 3 and {view.keywords["flip"] for view in views} == {expected}
    seen = []
    for name in ("weak", "resized_crop"):
        monkeypatch.setattr(augment, name, lambda images, generator, flip, **options: seen.append(flip) or images)
    monkeypatch.setattr(context_module, "weak", augment.weak)
    config = loaded("mixing_baselines", "paper-cifar100")
    for whole, crop in ((False, None), (False, 8), (True, None)):
        monkeypatch.setattr(labelled, "holds_photographs", lambda images, whole=whole: whole)
        augmented = labelled.augmentation(replace(config.training, crop=crop), context(config))
        augmented(torch.zeros(1, 3, 16, 16), torch.Generator())
    assert seen == [expected] * 3
    monkeypatch.undo()
    monkeypatch.setattr(context_module, "load_dataset", lambda name, **how: dataset_of(300, flip=sets))
    made = Context.of(RunSettings(flip=asked, threads=1, precision="fp32"))
    judge = oracle.plan(oracle.Training(), made.dataset, made.accelerator)
    ((view,),) = judge.stream._views[:1]
    assert view.keywords["flip"] is expected is made.flip


@pytest.mark.parametrize(("recipe", "preset", "expected"), [
    ("scimix", "paper-cifar10-250", (60, [WEAK] * 2, 196, [WEAK] * 2)),  # A.1.2.2
    ("mean_teacher", "paper-cifar10-250", (60, [WEAK] * 2, 196, [WEAK] * 2)),  # A.1.2.3
    ("fixmatch", "paper-cifar10-250", (32, [WEAK], 224, [WEAK, STRONG])),  # A.1.2.3
    ("mixmatch", "paper-cifar10-500", (256, [WEAK], 256, [WEAK] * 2)),  # A.1.1, K = 2
    ("mixmatch", "paper-cifar10-250", (250, [WEAK], 250, [WEAK] * 2)),
    ("samosa_mean_teacher", "paper-cifar10-250", (124, [WEAK] * 2, 388, [WEAK] * 2)),  # A.1.1
    ("samosa_mean_teacher", "paper-svhn-250", (30, [WEAK] * 2, 500, [WEAK] * 2)),
    ("scimix_supervised", "paper-cub-64", (60, [WEAK], 196, [WEAK])),  # ours
])  # fmt: skip
def test_views_and_batches_of_the_thesis(monkeypatch, recipe, preset, expected):
    asked = views_of(monkeypatch, recipe, preset)
    assert (
        asked["labelled"], [told(view) for view in asked["labelled_views"]],
        asked["unlabelled"], [told(view) for view in asked["unlabelled_views"]],
    ) == expected  # fmt: skip


def test_shifts_reflect_unless_told_otherwise():
    assert defaults_of(augment.weak) == {"padding": "reflection"}  # A.1.2.1
    config = loaded("mean_teacher", "paper-cifar10-250")
    context = replace(context_of(config), dataset=replace(dataset_of(1500), image_size=32))
    assert told(context.weak()) == ("weak", {"flip": True, "shift": 4})


SHIFTED_ON_BLACK = [("weak", {"flip": True, "shift": 2, "padding": "zeros"})]  # code: RandomCrop(32, padding=4)
OF_PHOTOGRAPHS = ("weak", {"flip": True, "shift": 0})


@pytest.mark.parametrize(("recipe", "preset", "expected"), [
    ("recursivemix", "paper-cifar10-resnet18", SHIFTED_ON_BLACK),
    ("recursivemix", "paper-cifar100-pyramidnet200", SHIFTED_ON_BLACK),
    ("mixing_baselines", "paper-cifar100", SHIFTED_ON_BLACK),
    ("mixing_baselines", "automix-cifar100", [("weak", {"flip": True, "shift": 2, "padding": "reflection"})]),  # code
    ("mixmo", "paper-cifar100", SHIFTED_ON_BLACK),  # A.1.3.1
    ("mixshare", "paper-cifar100-w2", SHIFTED_ON_BLACK),  # A.1.4
    ("mixmo", "paper-tiny-imagenet-w1", [("weak", {"flip": True, "shift": 4, "padding": "zeros"})]),  # A.1.3.1
    ("mixvit", "paper-cifar100", [*SHIFTED_ON_BLACK, ("erase", {"probability": 0.25})]),  # A.1.5
    ("mixvit", "paper-imagenet-100-convit", [OF_PHOTOGRAPHS, ("erase", {"probability": 0.25})]),
    # RM 4.2; CutMix's code lets values leave [0, 1]
    ("recursivemix", "paper-imagenet-resnet50",
     [OF_PHOTOGRAPHS, ("color_jitter", {"clip": False}), ("lighting", {"clip": False})]),
    ("recursivemix", "paper-imagenet-pvtv2", [OF_PHOTOGRAPHS, ("erase", {"probability": 0.25})]),
])  # fmt: skip
def test_augmentations_of_training_on_labels(monkeypatch, recipe, preset, expected):
    seen = []

    def noting(name):
        return lambda images, generator, **options: (seen.append((name, options)), images)[1]

    for name in ("weak", "color_jitter", "lighting", "erase", "resized_crop"):
        monkeypatch.setattr(augment, name, noting(name))
    monkeypatch.setattr(context_module, "weak", augment.weak)
    config = loaded(recipe, preset)
    monkeypatch.setattr(labelled, "holds_photographs", lambda images: config.whole)
    augmented = labelled.augmentation(config.training, context_of(config))
    augmented(torch.zeros(1, 3, 16, 16), torch.Generator())
    assert seen == expected
