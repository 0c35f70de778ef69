"""MixViT against losses written out in float64 on the same draws, and the rows of the thesis's tables."""

from dataclasses import replace
from math import inf

import numpy as np
import pytest
import torch
from torch import nn

from hybridgen.methods import mixvit
from hybridgen.methods.labelled import TrainingSettings
from hybridgen.methods.mixvit import TABLES, TITLES, MixViT, Settings, variant, whole_probability
from hybridgen.mixing.inputs import cut_and_mixed, mix_inputs, mix_patches
from hybridgen.networks.classifiers import Classifier
from hybridgen.networks.multi_input_transformer import MultiInputTransformer
from hybridgen.networks.registry import make_network
from hybridgen.tables.compare import slug
from hybridgen.training.schedules import Clock
from hybridgen.types import Batch, InputError

CLASSES, COUNT, SIDE = 4, 6, 16
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)
START, LAST = Clock(240, 10), Clock(240, 10, 239)


def classifier(inputs: int = 2, **how) -> Classifier:
    torch.manual_seed(0)
    plain = make_network("convit-12-3-1-patch4", CLASSES, image_size=SIDE)
    options = dict(source="encoding", place="late", encoders="one", inference="separate", ensemble="logits") | how
    made = MultiInputTransformer(plain, inputs=inputs, **options)
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.3)
    return Classifier(made, mean=MEAN, std=STD).double()


def objective(inputs: int = 2, mixing: str = "patches", how=(), **changes) -> MixViT:
    options = dict(alpha=0.5, patch_probability=0.5, msda=False, smoothing=0.1) | changes
    return MixViT(classifier(inputs, **dict(how)), CLASSES, mixing=mixing, **options)


def batch() -> Batch:
    images = torch.rand(COUNT, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return Batch((images,), torch.tensor([0, 1, 2, 3, 1, 2]), ())


def run(made: MixViT, clock: Clock = START, seed: int = 7):
    torch.manual_seed(seed)
    return made(batch(), clock)


def cross_entropy(logits: np.ndarray, target: np.ndarray) -> float:
    shifted = logits - logits.max()
    return float((target * (np.log(np.exp(shifted).sum()) - shifted)).sum())


def tokens_of(made: Classifier, encoder: int, images: torch.Tensor) -> torch.Tensor:
    standardised = (images - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    kernel = made.network.encoders[encoder].proj
    cut = standardised.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 1, 4, 5).reshape(COUNT, 16, 48)
    return cut @ kernel.weight.flatten(1).T + kernel.bias


CASES = [
    ("patches", dict(), START), ("patches", dict(), Clock(240, 10, 225)), ("patches", dict(encoders="each"), START),
    ("mixmo", dict(encoders="each", source="none"), START), ("mixmo", dict(encoders="each"), LAST),
    ("sum", dict(encoders="each", source="none"), START), ("all", dict(), START), ("all", dict(encoders="each"), START),
]  # fmt: skip


@pytest.mark.parametrize("inputs", [1, 2, 3])
@pytest.mark.parametrize(("mixing", "how", "clock"), CASES)
@torch.no_grad()
def test_loss_of_a_step_is_equation_4_4(mixing, how, clock, inputs):
    """Σ λ_i l_CE(y_i, p_i), image by image; tokens by the patches' pixels."""
    made = objective(inputs, mixing, how)
    outcome = run(made, clock)

    torch.manual_seed(7)
    rows, places = 4, 16
    if mixing == "patches":
        chance = whole_probability(clock)
        drawn = mix_patches(COUNT, (SIDE, SIDE), patch=4, inputs=inputs, alpha=0.5, whole=chance)
        shares = drawn.masks.flatten(2)
        scale = inputs if how.get("encoders") == "each" else 1
    else:
        boxes = None
        if mixing == "mixmo" and torch.rand(()).item() < (0.5 if clock is START else 0.0) and inputs > 1:
            boxes = "cutmix"
        drawn = mix_inputs(COUNT, (rows, rows), inputs=inputs, patches=boxes, alpha=0.5 if mixing == "mixmo" else inf)
        shares = drawn.masks.expand(-1, -1, -1, rows, rows).flatten(2)
        scale = inputs if how.get("encoders") == "each" else 1
    (images,), labels = batch()[:2]
    own = [tokens_of(made.classifier, i if how.get("encoders") == "each" else 0, images[drawn.partners[i]])
           for i in range(inputs)]  # fmt: skip
    if mixing == "all":
        tokens, ratios = scale * torch.cat(own, dim=1), torch.full((inputs, COUNT), 1 / inputs)
        shares = torch.eye(inputs).repeat_interleave(places, dim=1).unsqueeze(1).expand(-1, COUNT, -1)
    else:
        tokens = scale * sum(share.unsqueeze(2) * each for share, each in zip(shares.double(), own, strict=True))
        ratios = shares.mean(dim=2)
    logits = made.classifier.network.decode(tokens, shares.double()).numpy()
    expected = 0.0
    for i in range(inputs):
        for image in range(COUNT):
            target = np.full(CLASSES, 0.1 / CLASSES)
            target[labels[drawn.partners[i, image]]] += 0.9
            expected += float(ratios[i, image]) * cross_entropy(logits[i, image], target) / COUNT
    assert outcome.losses["supervised"].item() == pytest.approx(expected, rel=1e-6)
    for i in range(inputs):
        assert outcome.rates[f"share_{i}"].item() == pytest.approx(ratios[i].mean().item(), rel=1e-5)
    whole = sum(1 for image in range(COUNT) if ratios[:, image].max() == 1) / COUNT
    assert outcome.rates["whole"].item() == pytest.approx(whole)


def test_answers_in_half_precision_are_compared_in_single():
    made, answers = objective(), torch.randn(2, COUNT, CLASSES, generator=torch.Generator().manual_seed(3)).bfloat16()
    losses = []
    for given in (answers, answers.float()):
        made.classifier.run = lambda *_, given=given: given
        losses.append(run(made).losses["supervised"])
    assert losses[0].dtype == torch.float32 and torch.equal(*losses)


def test_some_steps_of_mixmo_have_boxes_and_some_none():
    made = objective(2, "mixmo", dict(encoders="each"))
    kinds = [len(made.draw(COUNT, (SIDE, SIDE), START, torch.device("cpu")).masks.unique()) == 2 for _ in range(40)]
    assert 8 < sum(kinds) < 32
    assert all(made.draw(COUNT, (SIDE, SIDE), LAST, torch.device("cpu")).masks.shape[3:] == (1, 1) for _ in range(8))


@torch.no_grad()
def test_msda_mixes_the_images_before_they_become_inputs():
    mixed, plain = objective(msda=True), objective(smoothing=0.0)
    (images,), labels = batch()[:2]
    targets = torch.full((COUNT, CLASSES), 0.1 / CLASSES).scatter_(1, labels[:, None], 0.9 + 0.1 / CLASSES)
    torch.manual_seed(7)
    drawn = cut_and_mixed(COUNT, (SIDE, SIDE))
    expected = plain(Batch((drawn.mix(images),), drawn.mix_targets(targets), ()), START)
    assert run(mixed).losses["supervised"].item() == pytest.approx(expected.losses["supervised"].item())


@pytest.mark.parametrize(("step", "chance"), [(0, 0), (219, 0), (220, 0.5), (229, 0.5), (230, 1), (239, 1)])
def test_whole_images_come_in_the_last_twelfth(step, chance):
    """Of 24 epochs of ten steps: the last two, linearly with each."""
    assert whole_probability(Clock(240, 10, step)) == pytest.approx(chance)
    shares = objective().draw(COUNT, (SIDE, SIDE), Clock(240, 10, step), torch.device("cpu")).ratios
    if chance == 1:
        assert set(shares.unique().tolist()) == {0.0, 1.0}


@torch.no_grad()
def test_of_one_input_it_is_the_plain_network_with_label_smoothing():
    made = objective(1, how=dict(source="none"))
    (images,), labels = batch()[:2]
    logits = made.classifier(images)
    expected = nn.functional.cross_entropy(logits, labels, label_smoothing=0.1)
    assert run(made, LAST).losses["supervised"].item() == pytest.approx(expected.item(), rel=1e-6)
    torch.testing.assert_close(made.classifier.members(images)[0], logits)


def test_every_parameter_learns_from_a_step():
    for mixing, how in (("patches", dict(source="embedding")), ("patches", {}), ("mixmo", dict(encoders="each"))):
        made = objective(2, mixing, how)
        run(made).losses["supervised"].backward()
        assert all(parameter.grad is not None and parameter.grad.any() for parameter in made.parameters())


ROWS = {  # inputs, source, place, mixing, encoders, inference
    "single": (1, "none", "late", "patches", "one", "separate"),
    "mixvit-embedding": (3, "embedding", "late", "patches", "one", "separate"),
    "mixvit-encoding": (3, "encoding", "late", "patches", "one", "separate"),
    # Table 4.6
    "no-attribution": (3, "none", "late", "patches", "one", "separate"),
    "early-embedding": (3, "embedding", "early", "patches", "one", "separate"),
    "early-encoding": (3, "encoding", "early", "patches", "one", "separate"),
    "sum": (3, "encoding", "late", "patches", "one", "sum"),
    "alternating": (3, "encoding", "late", "patches", "one", "alternating"),
    "single-subnetwork": (3, "encoding", "late", "patches", "one", "single"),
    "all-tokens": (3, "encoding", "late", "all", "one", "together"),
    # Tables 4.1 and A.18
    "mimo": (3, "none", "late", "sum", "each", "sum"),
    "mixmo": (3, "none", "late", "mixmo", "each", "sum"),
    "mixmo-separate": (3, "none", "late", "mixmo", "each", "separate"),
    "mixmo-equal": (3, "none", "late", "mixmo", "equal", "sum"),
    "cutmix-mixmo": (3, "none", "late", "patches", "each", "separate"),
}


@pytest.mark.parametrize("given", ["plain", "odd"])
def test_rows_of_the_tables(given):
    of = Settings(inputs=3, source="encoding", alpha=0.7, patch_probability=0.3, msda=True, ensemble="probabilities")
    odd = replace(of, place="early", mixing="sum", encoders="equal", inference="sum")
    assert ROWS.keys() == TITLES.keys()
    for name, expected in ROWS.items():
        own = variant(name, of if given == "plain" else odd)
        fields = ("inputs", "source", "place", "mixing", "encoders", "inference")
        assert tuple(getattr(own, field) for field in fields) == expected, name
        assert (own.alpha, own.patch_probability, own.msda, own.ensemble) == (0.7, 0.3, True, "probabilities")
    with pytest.raises(InputError, match="methods: 'plain' is unknown; there are single, mixvit-embedding"):
        variant("plain", of)


def test_tables_are_the_theses():
    """Row by row as tables 4.1, 4.4, 4.6 and A.18 have them: what differs from MixViT-embedding with MSDA and BA."""
    alone, encoding = {"inputs": 1, "source": "none"}, {"source": "encoding"}
    mixmo = {"source": "none", "mixing": "mixmo", "encoders": "each", "inference": "sum"}
    separate, bare = mixmo | {"inference": "separate"}, {"msda": False, "views": 1}
    expected = {
        "4.1": [alone, mixmo | {"mixing": "sum"}, mixmo, separate, separate | {"mixing": "patches"}],
        "4.4": [
            model | given
            for model in (alone, {}, encoding)
            for given in (bare, {"views": 1}, {"msda": False}, {})  # neither, MSDA, BA, both
        ],
        "figure-4.4": [model | {"views": views} for views in (1, 2, 3) for model in (alone, {}, encoding)],
        "4.6": [
            {}, encoding, {"source": "none"}, {"place": "early"}, encoding | {"place": "early"},
            {"inference": "sum"}, {"inference": "alternating"}, {"inference": "single"},
            {"mixing": "all", "inference": "together"},
        ],
        "A.18": [alone, mixmo, separate, mixmo | {"encoders": "equal"}],
    }  # fmt: skip
    preset = mixvit.PRESETS["paper-cifar100"]
    training, of = TrainingSettings(**preset["training"]), Settings(**preset["method"])
    assert TABLES.keys() == expected.keys() and (of.msda, training.views) == (True, 3)
    for table, rows in expected.items():
        for (title, row), changes in zip(TABLES[table].items(), rows, strict=True):
            own = {name: value for name, value in changes.items() if name != "views"}
            views = changes.get("views", 3)
            assert row.of(of, training) == (replace(of, **own), replace(training, views=views)), (table, title)
    titles = list(TABLES["4.4"])
    assert titles[:4] == ["ConViT", "ConViT, MSDA", "ConViT, BA", "ConViT, MSDA, BA"] and len(titles) == 12
    for rows in TABLES.values():
        assert len({slug(title) for title in rows}) == len(rows)


@pytest.mark.parametrize("field", ["patch_probability", "smoothing"])
def test_shares_outside_their_range_are_one_error(field):
    with pytest.raises(InputError, match=rf"{field}: 1.5 is outside \[0, 1\]"):
        objective(**{field: 1.5})


def test_defaults_are_the_theses():
    """A.1.5; table 4.2."""
    assert mixvit.Settings() == Settings(
        inputs=2, source="embedding", place="late", mixing="patches", alpha=0.5, patch_probability=0.5, encoders="one",
        inference="separate", msda=False, ensemble="logits",
    )  # fmt: skip
