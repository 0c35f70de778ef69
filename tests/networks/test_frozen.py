"""frozen: the same computation, gradients to the inputs and to nothing else."""

import copy

import pytest
import torch
from torch import nn

from hybridgen.networks.frozen import frozen
from hybridgen.networks.wide_resnet import WideResNetClassifier


@pytest.fixture
def classifier():
    torch.manual_seed(0)
    network = WideResNetClassifier(10, 1, 4, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25), stem=4).double()
    network(torch.rand(4, 3, 8, 8, dtype=torch.float64))  # statistics other than the initial ones
    return network


@pytest.fixture
def images():
    return torch.rand(4, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("training", [True, False])
def test_same_output_gradient_to_the_inputs_alone_and_buffers_untouched(classifier, images, training):
    classifier.train(training)
    buffers = {name: buffer.clone() for name, buffer in classifier.named_buffers()}
    images.requires_grad_()

    output = frozen(classifier)(images)
    output.square().sum().backward()
    for name, buffer in classifier.named_buffers():
        assert torch.equal(buffer, buffers[name]), name
    assert all(parameter.grad is None for parameter in classifier.parameters())
    assert all(parameter.requires_grad for parameter in classifier.parameters())

    gradient, images.grad = images.grad, None
    expected = classifier(images)
    expected.square().sum().backward()
    assert torch.equal(output, expected)
    assert torch.equal(gradient, images.grad) and gradient.any()
    if training:
        assert not torch.equal(classifier.encoder.norm.running_mean, buffers["encoder.norm.running_mean"])


def test_a_part_in_training_mode_keeps_its_statistics(classifier, images):
    classifier.eval()
    classifier.encoder.norm.train()
    before = classifier.encoder.norm.running_mean.clone()
    frozen(classifier)(images)
    assert torch.equal(classifier.encoder.norm.running_mean, before)


def test_live_and_frozen_in_one_step(classifier, images):
    """The classifier learns from its own loss only, the images from the frozen one only."""
    classifier.eval()
    expected = torch.autograd.grad(classifier(images).square().sum(), list(classifier.parameters()))
    images.requires_grad_()
    (classifier(images.detach()).square().sum() + frozen(classifier)(images).sum()).backward()
    for parameter, gradient in zip(classifier.parameters(), expected, strict=True):
        assert torch.equal(parameter.grad, gradient)
    assert images.grad.any()


def test_follows_updates_moves_and_modes(classifier, images):
    criterion = frozen(classifier)
    classifier.eval()
    first = criterion(images)
    with torch.no_grad():
        for parameter in classifier.parameters():
            parameter += 0.1
    assert not torch.equal(criterion(images), first)
    assert torch.equal(criterion(images), classifier(images))
    classifier.float()
    assert criterion(images.float()).dtype == torch.float32
    classifier.to("meta")
    assert criterion(images.float().to("meta")).device.type == "meta"


def test_holder_does_not_register_it_and_a_copy_follows_its_own(classifier, images):
    class Holder(nn.Module):
        def __init__(self):
            super().__init__()
            self.critic = frozen(classifier)

    assert not list(Holder().parameters()) and not list(Holder().children()) and not Holder().state_dict()

    pair = copy.deepcopy((classifier.eval(), frozen(classifier)))
    with torch.no_grad():
        pair[0].head.bias += 1
    assert torch.equal(pair[1](images), pair[0](images))
    assert not torch.equal(pair[1](images), classifier(images))


def test_keyword_arguments_pass():
    bilinear = nn.Bilinear(2, 2, 1)
    a, b = torch.rand(3, 2), torch.rand(3, 2)
    assert torch.equal(frozen(bilinear)(a, input2=b), bilinear(a, b))
