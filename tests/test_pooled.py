"""The C code for blocks with pooling does what torch's layers do, or leaves the work to them."""

import re

import pytest
import torch
from test_blocks import gradients, needs_c, other_width  # noqa: F401
from torch import nn

from experiments.models import cnn
from gtl_core._engine import PooledBlocks, blocks, stack
from gtl_core.tasks import rng


def body(channels: int, n_blocks: int = 2, seed: int = 0) -> PooledBlocks:
    """With biases that differ, as after training; a layer that is not a block at its end."""
    generator, layers = rng(seed), []
    for n_in, out in zip((1, channels, 2 * channels), (channels, 2 * channels, channels)[:n_blocks], strict=False):
        layers += [nn.Conv2d(n_in, out, 3), nn.MaxPool2d(2), nn.ReLU()]
    made = PooledBlocks(*layers, nn.Flatten(), nn.Softplus())
    with torch.no_grad():
        for p in made.parameters():
            p.normal_(std=(9 * p.shape[1]) ** -0.5 if p.dim() == 4 else 0.3, generator=generator)
    return made


@needs_c
@pytest.mark.parametrize("channels", [8, 16, 32])
@pytest.mark.parametrize("n, side, n_blocks", [(1, 28, 2), (5, 28, 2), (30, 28, 1), (6, 21, 2), (9, 32, 3), (3, 13, 2)])
def test_features_and_gradients_are_those_of_the_layers(channels, n, side, n_blocks):
    """In double precision, they are: what is left is the rounding of single precision. Odd sides lose a row."""
    if channels % blocks.compiled().width():
        pytest.skip("does not fill this machine's vectors")
    one, images = body(channels, n_blocks), torch.rand(n, 1, side, side, generator=rng(1))
    assert one.n_blocks == n_blocks and one.takes(images)
    weights = torch.randn(one(images).shape, generator=rng(2))
    found = gradients(one, images, weights)
    exact = gradients(nn.Sequential(*one).double(), images.double(), weights.double())
    for mine, expected in zip(found, exact, strict=True):
        torch.testing.assert_close(mine.double(), expected, rtol=1e-5, atol=2e-5 * expected.abs().max().item())


@needs_c
def test_a_training_ends_where_that_of_the_layers_does():
    ends = []
    for in_one_pass in (True, False):
        model = cnn(5, 16, generator=rng(0))
        assert model.body.takes(torch.rand(15, 1, 28, 28))
        if not in_one_pass:
            model.body = nn.Sequential(*model.body)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        images, labels = torch.rand(15, 1, 28, 28, generator=rng(1)), torch.arange(15) % 5
        for _ in range(10):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()
        ends.append(dict(model.named_parameters()))
    assert ends[0].keys() == ends[1].keys()
    for name, p in ends[0].items():
        torch.testing.assert_close(p, ends[1][name], rtol=1e-4, atol=1e-5)


@needs_c
def test_the_first_of_equals_is_chosen():
    """The first convolution puts out the pixel in the middle: the four of a window are equal, those around are not."""
    one = body(16)
    with torch.no_grad():
        one[0].weight.zero_()[:, :, 1, 1] = 1
    squares = torch.rand(2, 1, 13, 13, generator=rng(1)).repeat_interleave(2, 2).repeat_interleave(2, 3)
    images = nn.functional.pad(squares, (1, 1, 1, 1))
    assert one.takes(images)
    weights = torch.randn(one(images).shape, generator=rng(2))
    for mine, expected in zip(
        gradients(one, images, weights), gradients(nn.Sequential(*one), images, weights), strict=True
    ):
        torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


@needs_c
def test_what_is_not_a_number_does_not_become_one():
    """In an image, of which one window has it in its last pixel alone; and in a weight."""
    one, images = body(16), torch.rand(2, 1, 28, 28, generator=rng(1))
    images[0, 0, 13, 13] = float("nan")
    assert one.takes(images)
    with torch.no_grad():
        for _ in range(2):
            found, expected = one(images), nn.Sequential(*one)(images)
            assert torch.equal(found.isnan(), expected.isnan()) and found.isnan().any()
            images, one[3].weight[0, 0, 0, 0] = torch.rand(2, 1, 28, 28), float("nan")


@needs_c
def test_what_is_frozen_has_no_gradient():
    one, images = body(16), torch.rand(2, 1, 28, 28, generator=rng(1))
    one[0].weight.requires_grad_(False)
    assert one.takes(images)
    one(images).sum().backward()
    expected = torch.autograd.grad(nn.Sequential(*one)(images).sum(), one[0].bias)[0]
    torch.testing.assert_close(one[0].bias.grad, expected, rtol=1e-4, atol=1e-4)
    assert one[0].weight.grad is None


@needs_c
def test_gradients_can_be_differentiated():
    one, images = body(16, 1), torch.rand(3, 1, 8, 8, generator=rng(1))
    assert one.takes(images)

    def twice(network: nn.Module) -> tuple[torch.Tensor, ...]:
        first = torch.autograd.grad(network(images).pow(2).sum(), list(network.parameters()), create_graph=True)
        return torch.autograd.grad(sum(g.pow(2).sum() for g in first), list(network.parameters()))

    for found, expected in zip(twice(one), twice(nn.Sequential(*one)), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


@needs_c
@pytest.mark.parametrize(
    "change",
    [
        lambda layers: layers.__setitem__(2, nn.Tanh()),
        lambda layers: layers.__setitem__(1, nn.MaxPool2d(2, ceil_mode=True)),
        lambda layers: layers.__setitem__(1, nn.MaxPool2d(2, stride=1)),
        lambda layers: layers.__setitem__(0, nn.Conv2d(1, 16, 3, padding=1)),
        lambda layers: layers.__setitem__(0, nn.Conv2d(1, 16, 3, bias=False)),
        lambda layers: layers.__setitem__(0, nn.Conv2d(1, 16, 5)),
        lambda layers: layers.pop(6),
        lambda layers: layers.__setitem__(6, nn.Flatten(2)),
        lambda layers: layers.insert(0, layers.pop(6)),
        lambda layers: layers.clear(),
    ],
)
def test_other_layers_are_computed_as_they_are(change):
    layers, images = list(body(16)), torch.rand(3, 1, 20, 20)
    assert PooledBlocks(*layers).takes(images)
    change(layers)
    changed, plain = PooledBlocks(*layers), nn.Sequential(*layers)
    assert not changed.takes(images)
    try:
        expected = plain(images)
    except RuntimeError as error:
        with pytest.raises(RuntimeError, match=re.escape(str(error))):
            changed(images)
    else:
        assert torch.equal(changed(images), expected)


@needs_c
def test_what_a_body_is_may_change():
    """Its layers after a pass, its type; and channels that do not follow on each other are an error, as in torch."""
    one, images = body(16), torch.rand(3, 1, 20, 20)
    one(images)
    one[2] = nn.Tanh()
    assert torch.equal(one(images), nn.Sequential(*one)(images))
    half = body(16)
    half[3].double()
    with pytest.raises(RuntimeError, match="same"):
        half(images)
    other = body(16)
    other[3] = nn.Conv2d(8, 16, 3)
    with pytest.raises(RuntimeError, match="channels"):
        other(images)
    assert body(16)(images[:0]).shape == (0, 32 * 9)


@needs_c
def test_what_cannot_be_passed_through_goes_by_layers():
    """Gradients with respect to images, double precision, images too small, hooks; stacked networks."""
    one, heard = body(16), []
    images = torch.rand(2, 1, 28, 28, requires_grad=True)
    assert torch.autograd.grad(one(images).sum(), images)[0].abs().sum() > 0
    with pytest.raises(RuntimeError, match="too small"):
        one(torch.rand(2, 1, 3, 3))
    handle = one[3].register_forward_hook(lambda *_: heard.append(1))
    assert not one.takes(images.detach())
    one(images.detach())
    handle.remove()
    assert one.takes(images.detach())
    assert heard == [1]
    model = cnn(3, 16, generator=rng(0))
    assert model.body.takes(images.detach())
    together = stack([model, model])(torch.stack([images.detach()] * 2, 1))
    torch.testing.assert_close(together[:, 0], model(images.detach()), rtol=1e-4, atol=1e-5)
    assert not one.double().takes(images.detach().double())


def test_machines_with_other_vectors(other_width):  # noqa: F811
    one, images = body(other_width), torch.rand(7, 1, 28, 28, generator=rng(1))
    assert one.takes(images)
    weights = torch.randn(one(images).shape, generator=rng(2))
    for found, expected in zip(
        gradients(one, images, weights), gradients(nn.Sequential(*one), images, weights), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())
