"""The C code for convolutional blocks does what torch's layers do, or leaves the work to them."""

import ctypes
import pickle
import shutil
import subprocess
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from torch import nn
from torch.func import functional_call

from experiments.models import conv4
from gtl_core._engine import Blocks, blocks, engine, stack
from gtl_core.tasks import rng

SOURCES = sorted(Path(blocks.__file__).parent.glob("*.c"))
needs_c = pytest.mark.skipif(engine() == "torch", reason="no compiler was there at installation")


def body(channels: int, n_blocks: int = 4, seed: int = 0) -> Blocks:
    """With gains and shifts that differ, as after training."""
    generator, layers = rng(seed), []
    for width in (1, *[channels] * (n_blocks - 1)):
        layers += [nn.Conv2d(width, channels, 3, stride=2, padding=1), nn.GroupNorm(4, channels), nn.ReLU()]
    made = Blocks(*layers, nn.Flatten())
    with torch.no_grad():
        for name, p in made.named_parameters():
            p.normal_(std=(9 * p.shape[1]) ** -0.5 if p.dim() == 4 else 0.3, generator=generator)
            if name.endswith("weight") and p.dim() == 1:
                p.add_(1)
    return made


def gradients(network: nn.Module, images: torch.Tensor, weights: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Of the features times these weights; the features first."""
    features = network(images)
    found = torch.autograd.grad((features * weights).sum(), list(network.parameters()))
    return (features.detach(), *found)


@needs_c
@pytest.mark.parametrize("channels", [8, 16, 24, 32, 64])
@pytest.mark.parametrize("copies, n, side, n_blocks", [(1, 1, 28, 4), (3, 5, 28, 4), (2, 25, 28, 3), (2, 6, 21, 2)])
def test_features_and_gradients_are_those_of_the_layers(channels, copies, n, side, n_blocks):
    """In double precision, they are: what is left is the rounding of single precision."""
    if channels % blocks.compiled().width():
        pytest.skip("does not fill this machine's vectors")
    bodies = [body(channels, n_blocks, seed) for seed in range(copies)]
    images = torch.rand(n, copies, 1, side, side, generator=rng(1))
    stacked = stack([nn.Sequential(b) for b in bodies])[0]
    assert stacked.settings is not None
    weights = torch.randn(stacked(images).shape, generator=rng(2))
    found = gradients(stacked, images, weights)
    for s, one in enumerate(bodies):
        alone = gradients(one, images[:, s], weights[:, s])
        exact = gradients(nn.Sequential(*one).double(), images[:, s].double(), weights[:, s].double())
        one.float()
        for together, by_itself, expected in zip(found, alone, exact, strict=True):
            together = together[:, s] if together.dim() == 3 and together.shape[0] == n else together[s]
            scale = expected.abs().max().item()
            torch.testing.assert_close(together.double(), expected, rtol=1e-5, atol=1e-5 * scale)
            torch.testing.assert_close(by_itself.double(), expected, rtol=1e-5, atol=1e-5 * scale)


@needs_c
def test_what_cannot_be_passed_through_goes_by_layers():
    """Double precision, and gradients with respect to images."""
    one = body(16)
    assert one.settings is not None
    images = torch.rand(2, 1, 28, 28, requires_grad=True)
    assert torch.autograd.grad(one(images).sum(), images)[0].abs().sum() > 0
    assert one.takes(images.detach())
    assert not one.double().takes(images.detach().double())
    with pytest.raises(RuntimeError, match="same"):
        one(images.detach())


@pytest.mark.parametrize(
    "change",
    [
        lambda layers: layers.__setitem__(2, nn.Tanh()),
        lambda layers: layers.__setitem__(0, nn.Conv2d(1, 16, 3, stride=1, padding=1)),
        lambda layers: layers.__setitem__(0, nn.Conv2d(1, 16, 3, stride=2, padding=1, bias=False)),
        lambda layers: layers.__setitem__(1, nn.GroupNorm(4, 16, affine=False)),
        lambda layers: layers.__setitem__(3, nn.Conv2d(16, 16, 3, stride=2, padding=1, groups=2)),
        lambda layers: layers.__setitem__(-1, nn.Flatten(2)),
        lambda layers: layers.pop(),
        lambda layers: layers.clear(),
    ],
)
def test_other_layers_are_computed_as_they_are(change):
    layers = list(body(16, 2))
    change(layers)
    images = torch.rand(3, 1, 8, 8)
    assert Blocks(*layers).settings is None
    assert torch.equal(Blocks(*layers)(images), nn.Sequential(*layers)(images))


@needs_c
def test_layers_may_change_after_a_pass():
    one, images = body(16, 2), torch.rand(3, 1, 8, 8)
    one(images)
    one[2] = nn.Tanh()
    assert torch.equal(one(images), nn.Sequential(*one)(images))
    one[2], one[3] = nn.ReLU(), nn.Conv2d(8, 16, 3, stride=2, padding=1)
    with pytest.raises(RuntimeError, match="channels"):
        one(images)


@needs_c
def test_hooks_on_a_layer_are_called():
    one, heard = body(16), []
    images = torch.rand(2, 1, 28, 28)
    in_one_pass = one(images)
    handle = one[3].register_forward_hook(lambda *_: heard.append(1))
    torch.testing.assert_close(one(images), in_one_pass)
    handle.remove()
    one(images)
    assert heard == [1]


@needs_c
def test_what_is_not_a_number_does_not_become_one():
    """A training that diverged is to be seen."""
    one = body(16)
    with torch.no_grad():
        one[3].weight[0, 0, 0, 0] = float("nan")
    images, weights = torch.rand(2, 1, 28, 28), torch.ones(2, 64)
    for found, expected in zip(
        gradients(one, images, weights), gradients(nn.Sequential(*one), images, weights), strict=True
    ):
        assert torch.equal(found.isnan(), expected.isnan())
    assert one(images).isnan().all()


@needs_c
def test_gradients_can_be_differentiated():
    """The derivative of a squared gradient, which goes through torch's layers."""
    one, images = body(8, 2), torch.rand(3, 1, 8, 8, generator=rng(1))

    def twice(network: nn.Module) -> list[torch.Tensor]:
        parameters = dict(network.named_parameters())
        value = functional_call(network, parameters, (images,)).pow(2).sum()
        first = torch.autograd.grad(value, list(parameters.values()), create_graph=True)
        return torch.autograd.grad(sum(g.pow(2).sum() for g in first), list(parameters.values()))

    for found, expected in zip(twice(one), twice(nn.Sequential(*one)), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


@needs_c
def test_nothing_of_this_machine_is_pickled():
    model = conv4(5, 16, generator=rng(0))
    assert model.body.settings is not None
    assert "_known" in model.body.__dict__ and "_known" not in pickle.loads(pickle.dumps(model)).body.__dict__


@needs_c
def test_the_engine_can_be_chosen(monkeypatch):
    assert engine() == "compiled"
    blocks.compiled.cache_clear()
    monkeypatch.setenv("GTL_ENGINE", "torch")
    assert engine() == "torch" and conv4(5, 16, generator=rng(0)).body.settings is None
    blocks.compiled.cache_clear()


@needs_c
def test_code_compiled_from_another_source_is_refused(monkeypatch):
    blocks.compiled.cache_clear()
    monkeypatch.setattr(blocks.zlib, "crc32", lambda data: 1)
    with pytest.raises(RuntimeError, match="compiled from other source code: pip install"):
        blocks.compiled()


@cache
def of_width(width: int) -> ctypes.CDLL:
    """The same source for vectors of so many numbers, which the compiler puts together from what there is here."""
    if (compiler := shutil.which("cc")) is None:
        pytest.skip("no compiler")
    options = ["-O2", "-shared", "-fPIC", f"-DWIDTH={width}", "-DSOURCE=1u", "-Wall", "-Wextra", "-Werror"]
    with TemporaryDirectory() as folder:
        subprocess.run([compiler, *options, *SOURCES, "-o", f"{folder}/blocks.so", "-lm"], check=True)
        return ctypes.CDLL(f"{folder}/blocks.so")


@pytest.fixture(params=[8, 16])
def other_width(request, monkeypatch):
    library = of_width(request.param)
    monkeypatch.setattr(blocks, "compiled", lambda: library)
    return request.param


def test_machines_with_other_vectors(other_width):
    for channels in (other_width, 2 * other_width):
        one, images = body(channels), torch.rand(7, 1, 28, 28, generator=rng(1))
        assert one.settings is not None and body(12).settings is None
        weights = torch.randn(7, 4 * channels, generator=rng(2))
        for found, expected in zip(
            gradients(one, images, weights), gradients(nn.Sequential(*one), images, weights), strict=True
        ):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())
