"""What class tokens look at, against attention written out and networks whose attention is known."""

import json
from math import isnan

import numpy as np
import pytest
import torch
from torch import nn

from hybridgen.evaluation.attention import attention_of, class_attention, study
from hybridgen.mixing.inputs import mix_patches
from hybridgen.networks.classifiers import Classifier
from hybridgen.networks.multi_input import MultiInputClassifier
from hybridgen.networks.multi_input_transformer import MultiInputTransformer
from hybridgen.networks.registry import make_network
from hybridgen.types import InputError

NAME = "convit-12-3-1-patch4"


def classifier(inputs: int = 2, source: str = "embedding", encoders: str = "one", drawn: float = 0.4) -> Classifier:
    torch.manual_seed(0)
    plain = make_network(NAME, 5, image_size=16)
    how = dict(source=source, place="late", encoders=encoders, inference="separate", ensemble="logits")
    made = MultiInputTransformer(plain, inputs=inputs, **how)
    for parameter in made.parameters() if drawn else ():
        nn.init.normal_(parameter, std=drawn)
    return Classifier(made, mean=(0.5,) * 3, std=(0.25,) * 3).double().eval()


def pictures(count: int = 6) -> torch.Tensor:
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def draws() -> torch.Generator:
    return torch.Generator().manual_seed(3)


@torch.no_grad()
def test_class_attention_is_what_the_blocks_compute_with():
    """Head by head and token by token, in both blocks; what they pay, with that to the token itself, is one."""
    core = classifier().network.core
    tokens = torch.randn(2, 16, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    token, looks = core.cls_token.expand(2, 1, 12), class_attention(core, tokens)
    for block, look in zip(core.blocks_token_only, looks, strict=True):
        seen = block.norm1(torch.cat([token, tokens], dim=1))
        query, keys = block.attn.q(seen[:, 0]).numpy(), block.attn.k(seen).numpy()
        for image in range(2):
            for head in range(3):
                part = slice(4 * head, 4 * head + 4)
                scores = np.array([query[image, part] @ key[part] for key in keys[image]]) / 2
                weights = np.exp(scores - scores.max())
                np.testing.assert_allclose(look[image, head].numpy(), (weights / weights.sum())[1:], rtol=1e-9)
        token = block(tokens, token)


@torch.no_grad()
def test_where_all_tokens_are_looked_at_alike_inputs_get_what_they_have():
    made = classifier()
    for block in made.network.core.blocks_token_only:
        nn.init.zeros_(block.attn.q.weight)
    found = attention_of(made, pictures(), draws())
    mixing = mix_patches(6, (16, 16), patch=4, inputs=2, alpha=1.0, generator=draws())
    assert found.share == pytest.approx(mixing.ratios.mean(dim=1).tolist()) and found.mixed == pytest.approx(
        found.share
    )
    assert found.slope == pytest.approx(1) and found.overlap == pytest.approx(1)
    torch.testing.assert_close(found.pictures[:, 0], mixing.mix([pictures()[each] for each in mixing.partners])[:4])
    torch.testing.assert_close(found.pictures[:, 1], torch.ones(4, 3, 16, 16, dtype=torch.float64))


@torch.no_grad()
def test_figures_are_sums_over_tokens():
    """Token by token: what each input's tokens get of mixed images, and what images get as different inputs'."""
    made = classifier(3, "encoding")
    network = made.network
    mixing = mix_patches(6, (16, 16), patch=4, inputs=3, alpha=1.0, generator=draws())
    mixed = mixing.mix([pictures()[each] for each in mixing.partners])
    own = torch.zeros(3, 6, dtype=torch.float64)
    tokens = network.core.attend(network.encode_mixed(made.normalize(mixed)))
    told = torch.stack([layer(tokens) for layer in network.sources.layers])
    owners = mixing.owners.flatten(1)
    for image in range(6):
        sourced = tokens[image] + torch.stack([told[owners[image, place], image, place] for place in range(16)])
        looks = class_attention(network.core, sourced[None])[:, 0]
        for place in range(16):
            own[owners[image, place], image] += (looks[..., place] / looks.sum(dim=2)).mean()
    found = attention_of(made, pictures(), draws())
    assert found.mixed == pytest.approx(own.mean(dim=1).tolist())
    line = np.polynomial.Polynomial.fit(mixing.ratios.flatten().numpy(), own.flatten().numpy(), 1).convert()
    assert found.slope == pytest.approx(line.coef[1])

    plain = network.core.attend(network.encode_mixed(made.normalize(pictures())))
    looks = [class_attention(network.core, plain + layer(plain)) for layer in network.sources.layers]
    parts = [each / each.sum(dim=3, keepdim=True) for each in looks]
    overlaps = [torch.minimum(parts[i], parts[j]).sum(dim=3).mean() for i, j in ((0, 1), (0, 2), (1, 2))]
    assert found.overlap == pytest.approx(sum(overlaps).item() / 3) and found.pictures.shape == (4, 6, 3, 16, 16)
    torch.testing.assert_close(found.pictures[:, 2], pictures()[:4])
    for source, each in enumerate(looks):  # 4 × 4 tokens, each as bright as the last block's heads look at it
        heads = each[-1, :4].mean(dim=1)
        bright = (heads / heads.amax(dim=1, keepdim=True)).view(4, 1, 4, 1, 4, 1).expand(-1, 3, -1, 4, -1, 4)
        torch.testing.assert_close(found.pictures[:, 3 + source], bright.reshape(4, 3, 16, 16))


def test_of_one_input_there_is_nothing_to_compare():
    found = attention_of(classifier(1, "none"), pictures(), draws())
    assert found.share == found.mixed == (1.0,) and isnan(found.slope) and isnan(found.overlap)
    finding = study({"one": found, "two": attention_of(classifier(source="encoding"), pictures(), draws())})
    values = json.loads(json.dumps(finding.values, allow_nan=False))["networks"]
    assert values["one"]["slope"] is None and 0 < values["two"]["overlap"] < 1
    first, second = (line.split() for line in finding.table.splitlines()[1:3])
    assert first == ["one", "100.0", "%", "100.0", "%", "–", "–"] and second[-1] == f"{values['two']['overlap']:.3f}"
    two = attention_of(classifier(source="encoding"), pictures(), draws())
    assert values["two"] == {
        "share": list(two.share), "attention": list(two.mixed), "slope": two.slope, "overlap": two.overlap
    }  # fmt: skip
    parts = [[f"{100 * share:.1f}" for share in each] for each in (two.share, two.mixed)]
    assert parts[0] != parts[1] and second == [
        *("two", parts[0][0], "%", parts[0][1], "%", parts[1][0], "%", parts[1][1], "%"),
        *(f"{two.slope:.3f}", f"{two.overlap:.3f}"),
    ]
    axes = finding.figure.axes
    assert len(axes) == 8 * 5
    titles = ["one\nmixed", "attention", "one image", "as of input 0", "", "mixed", *["attention", "one image"]]
    assert [axis.get_title() for axis in axes[:8]] == titles
    assert [axis.get_title() for axis in axes[20:25]] == ["two\nmixed", *titles[1:4], "as of input 1"]
    for row, images in zip(range(4, 8), two.pictures, strict=True):
        for axis, image in zip(axes[5 * row : 5 * row + 5], images, strict=True):
            assert axis.images[0].get_array().tolist() == image.permute(1, 2, 0).clamp(0, 1).tolist()


def test_other_networks_are_one_error():
    statistics = dict(mean=(0.5,) * 3, std=(0.25,) * 3)
    convolutions = [make_network("wrn-10-1", 5) for _ in range(2)]
    for made, missing in (
        (classifier(source="none", encoders="each"), "inputs that share their patch embedding"),
        (Classifier(make_network(NAME, 5, image_size=16), **statistics), "several inputs"),
        (MultiInputClassifier(convolutions, **statistics, ensemble="logits"), "several inputs"),
    ):
        with pytest.raises(InputError, match=f"network: no transformer of {missing}"):
            attention_of(made, pictures(), draws())
