"""Vision transformers of several inputs and several answers: MixViT's (thesis 4.3), and MIMO's and MixMo's (4.3.1)."""

from collections.abc import Sequence
from copy import deepcopy
from functools import partial, reduce
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from hybridgen.networks.members import Encoders, Ensemble, Inference, MemberLogits, Place, Source, ensembled
from hybridgen.networks.vision_transformers import ClassAttentionTransformer, Tokens, draw_linear, trunc_normal_
from hybridgen.types import Images, InputError

Shares = Float[Tensor, "inputs #batch tokens"]
"""Of each input in each token, in [0, 1]; their sum is 1."""

Shown = Float[Tensor, "shown inputs #batch tokens"]
"""Shares in each of the versions of the same tokens that are shown; of a sum of versions each input's is 1."""


class MultiInputTransformer(nn.Module):
    """M patch embeddings or one, one transformer that tells sources apart late, M last layers: standardised images to
    the logits of an ensemble.

    The network, freshly made, gives the first patch embedding and the first last layer: for whoever knows its seed the
    core is the plain network, and with one input and no source it computes what the plain network does. Others are
    drawn after it as its own were, sources too: vectors as positions, layers as linear ones are. Patch
    embeddings of all inputs are summed with a factor of M on their shares, MixMo's.

    In timm's convention: `forward_features` gives the class token's feature in each version of the tokens that is
    shown, `forward_head` the ensemble's logits. Gradient reaches the images and all parameters. InputError for no
    input.
    """

    def __init__(
        self,
        network: ClassAttentionTransformer,
        *,
        inputs: int,
        source: Source,
        place: Place,
        encoders: Encoders,
        inference: Inference,
        ensemble: Ensemble,
    ) -> None:
        super().__init__()
        if inputs < 1:
            raise InputError(f"inputs: {inputs}; one or more are needed")
        self.inputs, self.source, self.place, self.encoding = inputs, source, place, encoders
        self.inference, self.ensemble = inference, ensemble
        dim = network.num_features
        self.encoders = nn.ModuleList(
            deepcopy(network.patch_embed) if other else network.patch_embed
            for other in range(1 if encoders == "one" else inputs)
        )
        self.heads = nn.ModuleList(deepcopy(network.head) if other else network.head for other in range(inputs))
        network.patch_embed, network.head = nn.Identity(), nn.Identity()
        self.core = network
        for part in self.encoders[1:].modules() if encoders == "each" else ():
            if isinstance(part, nn.Conv2d):
                part.reset_parameters()
        for head in self.heads[1:]:
            draw_linear(head, dim)
        self.sources: nn.Module | None = None
        if source == "embedding":
            self.sources = SourceEmbedding(inputs, dim)
        elif source == "encoding":
            self.sources = SourceEncoding(inputs, dim)
        self.num_classes = network.num_classes
        self.register_buffer("versions", self._versions(network.pos_embed.shape[1]), persistent=False)

    @property
    def num_features(self) -> int:
        """Of the class token in all versions that are shown."""
        return self.core.num_features * len(self.versions)

    @property
    def options(self) -> dict[str, Any]:
        """What this was made with, beside the network."""
        own = dict(inputs=self.inputs, source=self.source, place=self.place, encoders=self.encoding)
        return own | dict(inference=self.inference, ensemble=self.ensemble)

    @property
    def image_size(self) -> int:
        return self.core.image_size

    @property
    def patch(self) -> int:
        """Side of the patches in pixels."""
        return self.core.patch

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return self.core.grid

    def inferring(self, how: Inference) -> "MultiInputTransformer":
        """This network, of the same parameters, by another inference."""
        other = deepcopy(self, {id(parameter): parameter for parameter in self.parameters()})
        other.inference = how
        other.versions = other._versions(self.core.pos_embed.shape[1]).to(self.versions)
        return other

    def of_one_input(self) -> ClassAttentionTransformer:
        """The plain network that the first input's parts and the core make, of the same parameters."""
        plain = deepcopy(self.core, {id(parameter): parameter for parameter in self.parameters()})
        plain.patch_embed, plain.head = self.encoders[0], self.heads[0]
        return plain

    def encode(self, inputs: Sequence[Images]) -> tuple[Tokens, ...]:
        """e_0(x_0), e_1(x_1), …: a batch for each input, by its patch embedding. InputError for another number of
        them, and for images of another size than the network's."""
        if len(inputs) != self.inputs:
            raise InputError(f"inputs: {len(inputs)} batches of images; the network has {self.inputs}")
        encoders = self.encoders if len(self.encoders) > 1 else [self.encoders[0]] * self.inputs
        return tuple(self._encoded(encoder, images) for encoder, images in zip(encoders, inputs, strict=True))

    def encode_mixed(self, images: Images) -> Tokens:
        """e(x) of images whose patches are of several inputs already, by the one patch embedding that all share.
        InputError where each input has its own."""
        if len(self.encoders) > 1:
            raise InputError("encoders: each input has its own; images cannot be mixed before they are encoded")
        return self._encoded(self.encoders[0], images)

    def decode(self, tokens: Tokens, shares: Shares) -> MemberLogits:
        """Each last layer's logits of mixed tokens (algorithm A.8)."""
        (feature,) = self._features(tokens.unsqueeze(0), shares.unsqueeze(0))
        return torch.stack([head(feature) for head in self.heads])

    def forward_features(self, images: Images) -> Float[Tensor, "batch shown dim"]:
        if len(self.encoders) > 1:
            encodings = torch.stack(self.encode([images] * self.inputs))
            if self.inference == "together":
                tokens = self.inputs * encodings.transpose(0, 1).flatten(1, 2).unsqueeze(0)
            else:
                weights = self.inputs * self.versions / self.versions.sum(dim=1, keepdim=True)
                tokens = torch.einsum("simn,ibnd->sbnd", weights, encodings)
        else:
            tokens = self.encode_mixed(images).unsqueeze(0)
            if self.inference == "together":
                tokens = tokens.repeat(1, 1, self.inputs, 1)
        return self._features(tokens, self.versions).transpose(0, 1)

    def forward_head(
        self, features: Float[Tensor, "batch shown dim"], pre_logits: bool = False
    ) -> Float[Tensor, "batch out"]:
        return features.flatten(1) if pre_logits else ensembled(self._answers(features), self.ensemble)

    def members(self, images: Images) -> MemberLogits:
        """Of the same images at every input, by the network's inference (algorithm A.9)."""
        return self._answers(self.forward_features(images))

    def forward(self, images: Images) -> Float[Tensor, "batch classes"]:
        return self.forward_head(self.forward_features(images))

    def _versions(self, tokens: int) -> Shown:
        """What is shown of one image of so many tokens: in each version the inputs' shares in each token."""
        every = torch.eye(self.inputs)[:, :, None, None].repeat(1, 1, 1, tokens)
        match self.inference:
            case "separate":
                alike = self.source == "none" and len(self.encoders) == 1
                return every[:1] if alike else every
            case "sum":
                return every.sum(dim=0, keepdim=True)
            case "alternating":
                drawn = torch.randperm(tokens, generator=torch.Generator().manual_seed(0)) % self.inputs
                return F.one_hot(drawn, self.inputs).T.float()[None, :, None]
            case "single":
                return every[:1]
            case "together":
                return torch.eye(self.inputs).repeat_interleave(tokens, dim=1)[None, :, None]
        raise InputError(f"inference: {self.inference!r} is unknown")

    def _encoded(self, encoder: nn.Module, images: Images) -> Tokens:
        self.core.check_size(images)
        return encoder(images)

    def sourced(
        self, tokens: Float[Tensor, "#shown batch tokens dim"], shown: Shown
    ) -> Float[Tensor, "versions batch tokens dim"]:
        """What the classifier blocks see of encoded tokens in each version: the feature blocks' output, computed once
        for all versions where they are told apart late."""
        if self.place == "early":
            tokens = self._attributed(tokens, shown)
        tokens = self.core.attend(tokens.flatten(0, 1)).unflatten(0, tokens.shape[:2])
        return self._attributed(tokens, shown) if self.place == "late" else tokens

    def _features(
        self, tokens: Float[Tensor, "#shown batch tokens dim"], shown: Shown
    ) -> Float[Tensor, "versions batch dim"]:
        tokens = self.sourced(tokens, shown)
        return self.core.summarise(tokens.flatten(0, 1)).unflatten(0, tokens.shape[:2])

    def _attributed(
        self, tokens: Float[Tensor, "#shown batch tokens dim"], shown: Shown
    ) -> Float[Tensor, "versions batch tokens dim"]:
        """t* = Σ M_i ⊙ (t + s_i(t)) in each version (equations 4.5 and 4.6, whose masks M_i sum to one)."""
        if self.sources is None:
            return tokens
        shown = shown.to(tokens.dtype)
        return shown.sum(dim=1).unsqueeze(3) * tokens + self.sources(tokens, shown)

    def _answers(self, features: Float[Tensor, "batch shown dim"]) -> MemberLogits:
        heads = self.heads[:1] if self.inference == "single" else self.heads
        seen = features.unbind(1) if features.shape[1] > 1 else [features[:, 0]] * len(heads)
        return torch.stack([head(feature) for head, feature in zip(heads, seen, strict=True)])


class SourceEmbedding(nn.Module):
    """A vector for each input, the same for all tokens: Σ M_i ⊙ b_i (equation 4.6)."""

    def __init__(self, inputs: int, dim: int) -> None:
        super().__init__()
        self.vectors = nn.Parameter(torch.empty(inputs, dim))
        trunc_normal_(self.vectors, std=0.02)

    def no_weight_decay(self) -> set[str]:
        """Vectors act as positions do, which do not decay."""
        return {"vectors"}

    def forward(self, tokens: Tensor, shown: Shown) -> Float[Tensor, "versions #batch tokens dim"]:
        return torch.einsum("sibn,id->sbnd", shown, self.vectors.to(shown.dtype))


class SourceEncoding(nn.Module):
    """A linear layer for each input, of every token: Σ M_i ⊙ (t W_i + b_i) (equation 4.5)."""

    def __init__(self, inputs: int, dim: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(dim, dim) for _ in range(inputs))
        self.layers.apply(partial(draw_linear, dim=dim))

    def forward(
        self, tokens: Float[Tensor, "#shown batch tokens dim"], shown: Shown
    ) -> Float[Tensor, "versions batch tokens dim"]:
        parts = shown.unsqueeze(4).unbind(1)
        return reduce(torch.add, (part * layer(tokens) for part, layer in zip(parts, self.layers, strict=True)))
