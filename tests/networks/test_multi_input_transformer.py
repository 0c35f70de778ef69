"""Transformers of several inputs against the thesis's algorithms, written out source by source in float64."""

from itertools import product

import pytest
import torch
from torch import nn

from hybridgen.networks.classifiers import Classifier, load_classifier, save_classifier
from hybridgen.networks.flops import flops
from hybridgen.networks.members import ensembled
from hybridgen.networks.multi_input_transformer import MultiInputTransformer, SourceEmbedding, SourceEncoding
from hybridgen.networks.registry import make_network
from hybridgen.training.objective import adam
from hybridgen.types import InputError

COUNT, CLASSES, DIM, TOKENS = 2, 5, 12, 16
CLOSE = dict(rtol=1e-9, atol=1e-11)
NAME = "convit-12-3-1-patch4"


def varied(module: nn.Module) -> nn.Module:
    torch.manual_seed(3)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.4)
    return module


def network(inputs=3, source="encoding", place="late", encoders="one", inference="separate", ensemble="logits"):
    torch.manual_seed(0)
    plain = make_network(NAME, CLASSES, image_size=16)
    how = dict(source=source, place=place, encoders=encoders, inference=inference, ensemble=ensemble)
    return varied(MultiInputTransformer(plain, inputs=inputs, **how).double().eval())


def test_vectors_of_sources_do_not_decay():
    """As positions do not."""
    made = network(source="embedding")
    kept = adam(made, decay=0.05, decay_all=False).param_groups[1]
    assert kept["weight_decay"] == 0 and any(each is made.sources.vectors for each in kept["params"])


def pictures(seed: int = 1) -> torch.Tensor:
    return torch.randn(COUNT, 3, 16, 16, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def owned(inputs: int) -> torch.Tensor:
    """Owners [batch, tokens]."""
    return torch.randint(inputs, (COUNT, TOKENS), generator=torch.Generator().manual_seed(2))


def one_hot(owners: torch.Tensor, inputs: int) -> torch.Tensor:
    return nn.functional.one_hot(owners, inputs).permute(2, 0, 1).double()


def told(made: MultiInputTransformer, tokens: torch.Tensor, owners: torch.Tensor) -> torch.Tensor:
    """Equations 4.5 and 4.6, token by token; owners [batch, tokens]."""
    sourced = tokens.clone()
    for image, token in product(range(len(tokens)), range(tokens.shape[1])):
        owner, t = owners[image, token], tokens[image, token]
        if isinstance(made.sources, SourceEmbedding):
            sourced[image, token] += made.sources.vectors[owner]
        elif isinstance(made.sources, SourceEncoding):
            layer = made.sources.layers[owner]
            sourced[image, token] += layer.weight @ t + layer.bias
    return sourced


def passed(made: MultiInputTransformer, tokens: torch.Tensor, owners: torch.Tensor) -> torch.Tensor:
    """The class token's feature after a full forward of these tokens."""
    if made.place == "early":
        tokens = told(made, tokens, owners)
    tokens = tokens + made.core.pos_embed.repeat(1, tokens.shape[1] // TOKENS, 1)
    for block in made.core.blocks:
        tokens = block(tokens)
    if made.place == "late":
        tokens = told(made, tokens, owners)
    token = made.core.cls_token.expand(len(tokens), 1, DIM)
    for block in made.core.blocks_token_only:
        token = block(tokens, token)
    return made.core.norm(token)[:, 0]


HOW = [
    *product(("embedding", "encoding", "none"), ("late", "early"), ("one",)),
    ("none", "late", "each"),
    ("encoding", "late", "each"),
]


@pytest.mark.parametrize(("source", "place", "encoders"), HOW)
@torch.no_grad()
def test_training_and_separate_inference_are_the_algorithms(source, place, encoders):
    """A.8: mixed tokens, one forward, an answer of every last layer. A.9: M of them, each of one source alone."""
    made = network(source=source, place=place, encoders=encoders)
    own = [made.encoders[i if encoders == "each" else 0](pictures()) for i in range(3)]
    for one, other in zip(made.encode([pictures()] * 3), own, strict=True):
        assert torch.equal(one, other)
    owners = owned(3)
    mixed = torch.stack([torch.stack([own[owners[b, n]][b, n] for n in range(TOKENS)]) for b in range(COUNT)])
    feature = passed(made, mixed, owners)
    expected = torch.stack([head(feature) for head in made.heads])
    torch.testing.assert_close(made.decode(mixed, one_hot(owners, 3)), expected, **CLOSE)

    alone = [torch.full((COUNT, TOKENS), i) for i in range(3)]
    scale = 3 if encoders == "each" else 1
    expected = torch.stack([made.heads[i](passed(made, scale * own[i], alone[i])) for i in range(3)])
    torch.testing.assert_close(made.members(pictures()), expected, **CLOSE)
    torch.testing.assert_close(made(pictures()), expected.mean(dim=0), **CLOSE)


@pytest.mark.parametrize(("source", "inputs"), [("embedding", 3), ("encoding", 2)])
@torch.no_grad()
def test_other_inferences_of_table_4_6(source, inputs):
    made = {how: network(inputs, source, inference=how) for how in ("sum", "alternating", "single", "together")}
    one = made["sum"]
    tokens = one.core.attend(one.encode_mixed(pictures()))
    versions = [told(one, tokens, torch.full((COUNT, TOKENS), i)) for i in range(inputs)]
    answers = lambda sourced: torch.stack([head(one.core.summarise(sourced)) for head in one.heads])
    torch.testing.assert_close(one.members(pictures()), answers(sum(versions)), **CLOSE)

    drawn = made["alternating"].versions[0, :, 0].argmax(dim=0)
    assert sorted(drawn.bincount().tolist()) == {3: [5, 5, 6], 2: [8, 8]}[inputs] and drawn.tolist() != sorted(
        drawn.tolist()
    )
    alternating = answers(told(one, tokens, drawn.expand(COUNT, -1)))
    torch.testing.assert_close(made["alternating"].members(pictures()), alternating, **CLOSE)

    single = made["single"].members(pictures())
    torch.testing.assert_close(single, one.heads[0](one.core.summarise(versions[0]))[None], **CLOSE)

    every = one.encode_mixed(pictures()).repeat(1, inputs, 1)
    feature = passed(one, every, torch.arange(inputs).repeat_interleave(TOKENS).expand(COUNT, -1))
    together = torch.stack([head(feature) for head in one.heads])
    torch.testing.assert_close(made["together"].members(pictures()), together, **CLOSE)


@torch.no_grad()
def test_inferences_with_encoders_of_their_own():
    """MixMo's sum of encodings, and tokens of each input with the factor that they are mixed with."""
    made = {how: network(2, "none", encoders="each", inference=how) for how in ("sum", "alternating", "together")}
    first, second = made["sum"].encode([pictures()] * 2)
    nobody = torch.zeros(COUNT, 2 * TOKENS)
    expect = lambda tokens: torch.stack([head(passed(made["sum"], tokens, nobody)) for head in made["sum"].heads])
    torch.testing.assert_close(made["sum"].members(pictures()), expect(first + second), **CLOSE)
    drawn = made["alternating"].versions[0, 1, 0].bool()[None, :, None]
    torch.testing.assert_close(
        made["alternating"].members(pictures()), expect(2 * first.where(~drawn, second)), **CLOSE
    )
    together = expect(2 * torch.cat([first, second], dim=1))
    torch.testing.assert_close(made["together"].members(pictures()), together, **CLOSE)


@torch.no_grad()
def test_embeddings_are_encodings_of_zero_weight():
    embedding, encoding = network(source="embedding"), network(source="encoding")
    for vector, layer in zip(embedding.sources.vectors, encoding.sources.layers, strict=True):
        layer.weight.zero_()
        layer.bias.copy_(vector)
    others = {name: value for name, value in embedding.state_dict().items() if not name.startswith("sources")}
    encoding.load_state_dict(others, strict=False)
    torch.testing.assert_close(encoding.members(pictures()), embedding.members(pictures()), **CLOSE)


@pytest.mark.parametrize("encoders", ["one", "each", "equal"])
@torch.no_grad()
def test_what_is_drawn_for_one_input_is_the_plain_networks(encoders):
    torch.manual_seed(0)
    plain = make_network(NAME, CLASSES, image_size=16).double().eval()
    torch.manual_seed(0)
    more = dict(place="late", inference="separate", ensemble="logits")
    make = lambda inputs: MultiInputTransformer(
        make_network(NAME, CLASSES, image_size=16), inputs=inputs, source="none", encoders=encoders, **more
    )
    made = make(2).double().eval()
    logits = plain(pictures())
    whole = made.decode(made.encode([pictures(), pictures(4)])[0], one_hot(torch.zeros(COUNT, TOKENS).long(), 2))
    torch.testing.assert_close(whole[0], logits, **CLOSE)
    torch.manual_seed(0)
    torch.testing.assert_close(make(1).double().eval()(pictures()), logits, **CLOSE)
    first, second = made.heads
    assert not torch.equal(first.weight, second.weight) and second.weight.std() > 0 and not second.bias.any()
    if encoders != "one":
        one, other = (encoder.proj.weight for encoder in made.encoders)
        assert torch.equal(one, other) == (encoders == "equal") and one is not other


@torch.no_grad()
def test_ensembles_of_probabilities():
    made = network(2, ensemble="probabilities")
    probabilities = made.members(pictures()).softmax(dim=2).mean(dim=0)
    torch.testing.assert_close(made(pictures()).exp(), probabilities, **CLOSE)
    assert not torch.allclose(made(pictures()), ensembled(made.members(pictures()), "logits"))


@pytest.mark.parametrize("source", ["embedding", "encoding"])
def test_every_answer_teaches_its_own_last_layer_and_all_shared_blocks(source):
    made = network(2, source)
    owners = owned(2)
    for answer in range(2):
        made.zero_grad()
        images = pictures().requires_grad_()
        logits = made.decode(made.encode_mixed(images), one_hot(owners, 2))
        logits[answer].square().sum().backward()
        assert made.heads[answer].weight.grad.abs().min() > 0 and not made.heads[1 - answer].weight.grad.any()
        shared = [*made.core.parameters(), *made.encoders.parameters(), *made.sources.parameters(), images]
        assert all(parameter.grad is not None and parameter.grad.any() for parameter in shared)


def operations(d, n, heads, depth, m, classes, source, inference, encoders) -> tuple[int, int]:
    """Multiplications and additions, two of which are one here, of the plain network's inference and of several
    inputs', by the terms of A.7.3 and the small ones that it leaves out; patches of 4×4."""
    patches = n * 48 * d
    feature = depth * (4 * n * d * d + 2 * n * n * d + n * n * d + 8 * n * d * d)  # contents, then positions
    positions = depth * 3 * n * n * heads  # the same for all images
    # The class token is normalised with the others, asked alone, and goes alone through its multi-layer perceptron
    classing = 2 * (2 * (n + 1) * d * d + d * d + 2 * (n + 1) * d + d * d + 8 * d * d)
    one = patches + feature + positions + classing + d * classes
    passes, answers = m if inference == "separate" else 1, 1 if inference == "single" else m
    sources = {"encoding": m * n * d * d, "embedding": passes * m * n * d, "none": 0}[source]
    whole = m if encoders == "each" else 1
    combined = m * m * n * d if encoders == "each" else 0
    several = whole * (patches + feature) + positions + passes * classing + answers * d * classes + sources + combined
    return one, several


@pytest.mark.parametrize(
    "how",
    [
        ("embedding", "separate", "one"), ("encoding", "separate", "one"), ("embedding", "sum", "one"),
        ("embedding", "single", "one"), ("none", "separate", "each"),
    ],
)  # fmt: skip
def test_inference_costs_what_the_thesis_says(how):
    """Measured: exactly what is written out. Of the thesis's ConViT: within the bounds of 4.3.3.2 and A.7.3."""
    source, inference, encoders = how
    name, m = "convit-12-3-2", 2
    one, several = operations(12, 64, 3, 2, m, 7, *how)
    made = MultiInputTransformer(
        make_network(name, 7, image_size=32), inputs=m, source=source, place="late", encoders=encoders,
        inference=inference, ensemble="logits",
    )  # fmt: skip
    assert flops(make_network(name, 7, image_size=32), 32) == 2 * one
    assert flops(made, 32) == 2 * several
    if encoders == "one":
        one, several = operations(384, 64, 12, 5, m, 100, *how)
        assert several / one < (5 + 2 * m) / (5 + 2)
        assert several / one < {"embedding": (5 + 0.5 * m) / (5 + 0.5), "encoding": 1.15}[source]


@pytest.mark.parametrize("inference", ["separate", "alternating"])
@torch.no_grad()
def test_what_is_deployed_computes_the_same_from_its_file_and_exported(inference, tmp_path):
    made = network(2, "encoding", inference=inference, ensemble="probabilities").float()
    classifier = Classifier(made, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25)).eval()
    path, names = tmp_path / "network.safetensors", [str(place) for place in range(CLASSES)]
    save_classifier(classifier, path, name=NAME, classes=names, image_size=16)
    loaded, classes, side = load_classifier(path)
    images = torch.rand(3, 3, 16, 16)
    assert torch.equal(loaded(images), classifier(images)) and (list(classes), side) == (names, 16)
    assert loaded.network.options == made.options
    if inference == "separate":
        batch = torch.export.Dim("batch", min=2, max=64)
        exported = torch.export.export(loaded, (images[:2],), dynamic_shapes={"images": {0: batch}}).module()
        torch.testing.assert_close(exported(images), classifier(images), rtol=1e-5, atol=1e-6)


def test_what_does_not_fit_is_one_error():
    with pytest.raises(InputError, match="inputs: 0; one or more are needed"):
        network(0)
    with pytest.raises(InputError, match="inputs: 2 batches of images; the network has 3"):
        network().encode([pictures()] * 2)
    with pytest.raises(InputError, match="images: of 16×8 pixels"):
        network().encode([pictures()[..., :8]] * 3)
    with pytest.raises(InputError, match="encoders: each input has its own"):
        network(encoders="each").encode_mixed(pictures())
