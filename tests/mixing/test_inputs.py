"""The mixing of several inputs against sums written out in float64 and against the laws of its draws."""

from math import inf

import pytest
import torch
from torch import Tensor

from hybridgen.mixing import masks
from hybridgen.mixing.inputs import InputMixing, Patches, cut_others_in, loss_weights, mix_inputs, patch_masks
from hybridgen.types import InputError

PATCHES = Patches.__args__
SIZE = (9, 14)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def drawn(inputs: int = 2, patches: str | None = "cutmix", seed: int = 0, count: int = 6, size=SIZE, **more):
    options = dict(alpha=2.0) | more
    return mix_inputs(count, size, inputs=inputs, patches=patches, generator=generator(seed), **options)


def encodings(inputs: int, count: int = 6) -> tuple[Tensor, ...]:
    return torch.randn(inputs, count, 5, *SIZE, generator=generator(9), dtype=torch.float64).unbind()


def intended(inputs: int, seed: int, count: int = 6, alpha: float = 2.0) -> Tensor:
    """κ as they are drawn: after the partners, a Dirichlet's."""
    own = generator(seed)
    for _ in range(inputs):
        torch.randperm(count, generator=own)
    return masks.log_gammas(inputs, count, alpha, own).double().softmax(dim=0)


# --- equations ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("inputs", [2, 3, 4])
@pytest.mark.parametrize("seed", range(4))
def test_linear_mixing_is_equation_a3(inputs, seed):
    mixing, maps = drawn(inputs, None, seed), encodings(inputs)
    kappa = intended(inputs, seed)
    torch.testing.assert_close(mixing.ratios.double(), kappa, atol=1e-6, rtol=1e-5)
    expected = inputs * sum(share[:, None, None, None] * map_ for share, map_ in zip(kappa, maps, strict=True))
    torch.testing.assert_close(mixing.mix(maps), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("patches", PATCHES)
@pytest.mark.parametrize("inputs", [2, 3, 4])
@pytest.mark.parametrize("seed", range(4))
def test_patches_are_equation_a4_with_realised_shares(inputs, patches, seed):
    """Of two inputs it is equation 3.2: M [1 ⊙ l_k + (1 - 1) ⊙ Σ κ_i / (1 - κ_k) l_i]."""
    mixing, maps = drawn(inputs, patches, seed), encodings(inputs)
    kappa, k = intended(inputs, seed), mixing.order[-1]
    patch = 1 - mixing.mixings[-1].mask.double()  # 1 where input k shows
    assert patch.shape == (6, 1, *SIZE) and set(patch.unique().tolist()) <= {0.0, 1.0}
    others = [i for i in range(inputs) if i != k]
    parts = {i: (kappa[i] / (1 - kappa[k]))[:, None, None, None] for i in others}
    rest = sum(parts[i] * maps[i] for i in others)
    torch.testing.assert_close(mixing.mix(maps), inputs * (patch * maps[k] + (1 - patch) * rest), atol=1e-5, rtol=1e-5)
    realised = patch.mean(dim=(1, 2, 3))
    expected = {k: realised} | {i: (1 - realised) * parts[i].flatten() for i in others}
    together = torch.stack([expected[i] for i in range(inputs)])
    torch.testing.assert_close(mixing.ratios.double(), together, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(mixing.ratios.sum(dim=0), torch.ones(6))


@pytest.mark.parametrize("patches", PATCHES)
def test_patches_have_about_the_share_that_is_drawn(patches):
    """On average and one by one; boxes lose what borders cut off."""
    mixing = drawn(2, patches, count=2000, size=(32, 32))
    k = mixing.order[-1]
    aimed, realised = intended(2, 0, 2000)[k], mixing.ratios[k].double()
    assert torch.corrcoef(torch.stack([aimed, realised]))[0, 1] > 0.75
    if patches == "cutmix":
        assert (realised <= aimed + 1e-6).all()
        assert realised.mean() == pytest.approx(0.31, abs=0.01)  # of Beta(2, 2): MixMo's code
    elif patches == "patchup":
        assert realised.mean() == pytest.approx(0.5, abs=0.01)
    else:
        torch.testing.assert_close(realised, aimed, atol=0.5 / 32 + 2e-3, rtol=0)


@pytest.mark.parametrize(("height", "width"), [(8, 8), (16, 16), (16, 32), (5, 40)])
@pytest.mark.parametrize("ratio", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_squares_leave_the_share_that_is_drawn_on_maps_of_any_size(height, width, ratio):
    """Thesis A.5.1: masks of the share that is drawn. On average over many, exactly."""
    mask = patch_masks("patchup", torch.full((8000,), ratio), height, width, torch.Generator().manual_seed(0))
    assert mask.shape == (8000, 1, height, width)
    assert mask.mean() == pytest.approx(ratio, abs=0.015)


def test_horizontal_concatenation_has_a_vertical_line_and_vertical_a_horizontal_one():
    """The base to the left, or above."""
    across, down = (drawn(2, f"{word}-concat").mixings[0].mask[:, 0] for word in ("horizontal", "vertical"))
    assert (across == across[:, :1]).all() and (across.diff(dim=2) <= 0).all()
    assert (down == down[:, :, :1]).all() and (down.diff(dim=1) <= 0).all()
    assert 0 < across.mean() < 1 and 0 < down.mean() < 1


@pytest.mark.parametrize("inputs", [2, 3, 4])
@pytest.mark.parametrize("alpha", [inf, 1e12])
def test_endless_alpha_and_linear_mixing_is_mimo_the_plain_sum(inputs, alpha):
    mixing, maps = drawn(inputs, None, alpha=alpha), encodings(inputs)
    torch.testing.assert_close(mixing.ratios, torch.full((inputs, 6), 1 / inputs))
    torch.testing.assert_close(mixing.mix(maps), sum(maps), atol=1e-5, rtol=1e-5)


def test_two_inputs_of_a_half_are_the_plain_sum_bit_for_bit():
    first, second = (map_.float() for map_ in encodings(2))
    mixing = drawn(2, None, alpha=inf)
    assert torch.equal(mixing.ratios, torch.full((2, 6), 0.5))
    assert torch.equal(mixing.mix([first, second]), first + second)


@pytest.mark.parametrize("patches", [None, "cutmix"])
def test_one_input_is_left_alone(patches):
    (map_,), mixing = encodings(1), drawn(1, patches, size=(1, 1))
    assert mixing.mix([map_]) is map_ and torch.equal(mixing.ratios, torch.ones(1, 6))
    assert torch.equal(mixing.partners, torch.arange(6)[None])


@pytest.mark.parametrize("patches", [None, *PATCHES])
def test_gradient_reaches_every_input_by_its_share(patches):
    maps = [map_.requires_grad_() for map_ in encodings(3)]
    mixing = drawn(3, patches)
    mixing.mix(maps).sum().backward()
    for map_, share in zip(maps, mixing.ratios, strict=True):
        torch.testing.assert_close(map_.grad.mean(dim=(1, 2, 3)), 3 * share.double(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("patches", [None, "cutmix", "fmix"])
@pytest.mark.parametrize("inputs", [1, 2, 3, 4])
def test_masks_are_what_each_input_has_of_every_place(patches, inputs):
    """Of all places together its share; what is mixed is the sum of what all have."""
    mixing, maps = drawn(inputs, patches), encodings(inputs)
    places = (1, 1) if patches is None or inputs == 1 else SIZE
    assert mixing.masks.shape == (inputs, 6, 1, *places)
    torch.testing.assert_close(mixing.masks.sum(dim=0), torch.ones(6, 1, *places))
    torch.testing.assert_close(mixing.masks.mean(dim=(2, 3, 4)), mixing.ratios)
    together = inputs * sum(mask * map_ for mask, map_ in zip(mixing.masks, maps, strict=True))
    torch.testing.assert_close(mixing.mix(maps), together, atol=1e-5, rtol=1e-5)
    if patches and inputs == 2:
        assert set(mixing.masks.unique().tolist()) == {0.0, 1.0}


# --- draws ---------------------------------------------------------------------------------------------------


def test_images_and_shares_are_the_same_with_and_without_patches():
    plain = drawn(3, None)
    for patches in PATCHES:
        other = drawn(3, patches)
        assert torch.equal(plain.partners, other.partners) and plain.order == other.order
        assert torch.equal(plain.mixings[0].mask, other.mixings[0].mask)


@pytest.mark.parametrize("inputs", [2, 3, 4])
def test_every_input_is_the_patched_one_as_often(inputs):
    patched = torch.tensor([drawn(inputs, "cutmix", seed).order[-1] for seed in range(600)])
    counts = patched.bincount(minlength=inputs)
    assert (counts - 600 / inputs).abs().max() < 4 * (600 / inputs) ** 0.5


@pytest.mark.parametrize("patches", [None, "cutmix", "cowmix"])
def test_over_many_steps_all_inputs_have_the_same_share(patches):
    """Boxes are smaller than they are drawn; were the roles not exchanged, one head would starve."""
    shares = torch.stack([drawn(2, patches, seed, count=64).ratios.mean(dim=1) for seed in range(200)]).mean(dim=0)
    torch.testing.assert_close(shares, torch.full((2,), 0.5), atol=0.03, rtol=0)


@pytest.mark.parametrize(("inputs", "alpha"), [(2, 2.0), (3, 2.0), (4, 0.5)])
def test_shares_are_dirichlets(inputs, alpha):
    ratios = drawn(inputs, None, alpha=alpha, count=20_000, size=(1, 1)).ratios.double()
    variance = (inputs - 1) / (inputs**2 * (inputs * alpha + 1))
    torch.testing.assert_close(ratios.mean(dim=1), torch.full((inputs,), 1 / inputs).double(), atol=0.01, rtol=0)
    torch.testing.assert_close(ratios.var(dim=1), torch.full((inputs,), variance).double(), atol=0.005, rtol=0)


def test_each_image_has_shares_and_a_mask_of_its_own():
    mixing = drawn(2, "cutmix", count=20, size=(32, 32))
    assert len(mixing.ratios[0].unique()) > 15 and len({tuple(m.flatten().tolist()) for m in mixing.mixings[0].mask})
    assert len(drawn(2, None, count=20).ratios[0].unique()) == 20


def test_partners_are_permutations_each_of_its_own():
    mixing = drawn(4, count=50)
    assert torch.equal(mixing.partners[0], torch.arange(50))
    assert all(sorted(row.tolist()) == list(range(50)) for row in mixing.partners)
    assert len({tuple(row.tolist()) for row in mixing.partners}) == 4
    assert not torch.equal(mixing.partners, drawn(4, count=50, seed=1).partners)


@pytest.mark.parametrize("repeated", [0.1, 0.5, 1.0])
def test_input_repetition_shows_a_part_of_the_images_to_all_inputs(repeated):
    kept = []
    for seed in range(20):
        partners = drawn(3, count=40, repeated=repeated, seed=seed).partners
        assert all(sorted(row.tolist()) == list(range(40)) for row in partners)
        same = (partners == torch.arange(40)).all(dim=0)
        assert same.sum() >= round(repeated * 40)
        kept.append(same.sum().item() - round(repeated * 40))
    assert sum(kept) <= 3  # beyond those only by chance
    places = torch.stack([drawn(2, count=40, repeated=0.1, seed=seed).partners[1] for seed in range(40)])
    assert ((places == torch.arange(40)).sum(dim=0) > 0).sum() > 30  # not always the same ones


def test_an_alpha_near_nothing_leaves_one_input_and_stays_a_number():
    for patches in (None, "cutmix"):
        mixing = drawn(3, patches, alpha=1e-4)
        assert mixing.ratios.isfinite().all()
        assert loss_weights(mixing.ratios, 3.0).isfinite().all()
    assert (drawn(3, None, alpha=1e-4).ratios.max(dim=0).values > 0.999).all()


# --- others within the images -------------------------------------------------------------------------------------


@pytest.mark.parametrize("places", [(12, 20), (6, 10), (1, 1)])
@pytest.mark.parametrize("chance", [0.0, 0.4, 1.0])
def test_the_image_that_shows_more_is_the_batchs_own(chance, places):
    """A.1.3.1, place by place on the same draws: λ′ = Σ 1_m 1_M / Σ 1_M, roles exchanged below ½; of encodings that are
    half as large, of their places."""
    visible = drawn(2, "cutmix", count=40, size=places).masks[0] if places != (1, 1) else torch.full((40, 1, 1, 1), 0.3)
    visible[7] = 0
    mixing, parts = cut_others_in(visible, (12, 20), chance, generator(3))
    own = generator(3)
    boxes = masks.cutmix_boxes(masks.beta(40, 1.0, own), 12, 20, own).tolist()
    cut = (torch.rand(40, 1, 1, 1, generator=own) < chance).flatten().tolist()
    assert torch.equal(mixing.partner, torch.randperm(40, generator=own))
    rows, columns = 12 // places[0], 20 // places[1]
    for n, (top, left, height, width) in enumerate(boxes):
        mask = torch.ones(12, 20, dtype=torch.float64)
        if cut[n]:
            mask[top : top + height, left : left + width] = 0
        seen = mask.reshape(places[0], rows, places[1], columns).mean(dim=(1, 3))
        shown = visible[n, 0].double()
        part = ((seen * shown).sum() / shown.sum() if shown.sum() else mask.mean()).item()
        mask, part = (1 - mask, 1 - part) if part < 0.5 - 1e-7 else (mask, part)
        torch.testing.assert_close(mixing.mask[n, 0].double(), mask)
        assert parts[n].item() == pytest.approx(part, abs=1e-5) and part >= 0.5 - 1e-6
    assert (parts == 1).all() if chance == 0 else (parts < 1).any()


# --- weights ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("root", [1e-3, 0.5, 1.0, 2.0, 3.0, 10.0, 1e6, inf])
@pytest.mark.parametrize("inputs", [1, 2, 3, 4])
def test_weights_sum_to_the_number_of_inputs(inputs, root):
    ratios = drawn(inputs, "cutmix", count=40).ratios
    weights = loss_weights(ratios, root)
    torch.testing.assert_close(weights.sum(dim=0), torch.full((40,), float(inputs)))
    if root >= 0.5 and inputs > 1:
        powers = ratios.double() ** (1 / root)
        torch.testing.assert_close(weights.double(), inputs * powers / powers.sum(dim=0), atol=1e-5, rtol=1e-5)


def test_weights_by_hand():
    """Equation 3.3, and A.2 for three."""
    ratios = torch.tensor([[0.2], [0.8]])
    third = 0.2 ** (1 / 3), 0.8 ** (1 / 3)
    assert loss_weights(ratios, 3.0)[0].item() == pytest.approx(2 * third[0] / sum(third), abs=1e-6)
    assert loss_weights(ratios, 3.0)[0].item() == pytest.approx(0.77299, abs=1e-4)
    torch.testing.assert_close(loss_weights(ratios, 1.0), 2 * ratios)
    assert torch.equal(loss_weights(ratios, inf), torch.ones(2, 1))
    three = torch.tensor([[0.125], [0.216], [0.659]])
    roots = (0.5, 0.6, 0.659 ** (1 / 3))
    expected = torch.tensor([[3 * each / sum(roots)] for each in roots])
    torch.testing.assert_close(loss_weights(three, 3.0), expected)


def test_an_input_that_is_hidden_weighs_nothing_unless_all_weigh_the_same():
    hidden = torch.tensor([[0.0], [1.0]])
    assert loss_weights(hidden, 3.0).flatten().tolist() == [0.0, 2.0]
    assert loss_weights(hidden, inf).flatten().tolist() == [1.0, 1.0]


# --- bad input -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(inputs=7), "inputs: 7 of a batch of 6"),
        (dict(inputs=0), "inputs: 0"),
        (dict(alpha=0.0), "alpha: 0.0"),
        (dict(alpha=-1.0), "alpha: -1.0"),
        (dict(alpha=float("nan")), "alpha: nan"),
        (dict(repeated=1.5), "input_repetition: 1.5"),
        (dict(repeated=-0.1), "input_repetition: -0.1"),
        (dict(size=(2, 8)), "mask: cutmix on encodings of 2×8"),
        (dict(size=(8, 1), patches="fmix"), "mask: fmix on encodings of 8×1"),
    ],
)
def test_what_cannot_be_drawn_is_refused(changes, words):
    with pytest.raises(InputError, match=f"^{words}"):
        drawn(**changes)


@pytest.mark.parametrize("root", [0.0, -1.0, float("nan")])
def test_roots_that_are_not_above_0_are_refused(root):
    with pytest.raises(InputError, match=r"^root: "):
        loss_weights(torch.tensor([[0.5], [0.5]]), root)


def test_on_three_places_a_side_no_box_is_too_small():
    assert any(0 < drawn(size=(3, 8), seed=seed).ratios[0].min() < 1 for seed in range(3))


def test_what_does_not_fit_together_is_refused():
    whole = drawn(3)
    for order, mixings in (((0, 1), whole.mixings[:1]), ((0, 1, 1), whole.mixings), ((0, 1, 2), whole.mixings[:1])):
        with pytest.raises(InputError, match=r"^inputs: .* mixings in the order"):
            InputMixing(whole.partners, order, mixings)
    with pytest.raises(InputError, match=r"^inputs: encodings of 2; 3"):
        whole.mix(encodings(2))
