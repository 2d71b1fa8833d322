"""The law around every optimizer of torch, under the settings that torch's own tests give them (`optim_db`)."""

import copy
import re
import warnings

import pytest
import torch
from torch import nn

from experiments.records import ROOT
from gtl_core import Guide, Guided
from gtl_core.tasks import rng

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of what its test utilities import
    from torch.testing._internal.common_optimizers import optim_db

N_STEPS = 4
INFOS = {info.optim_cls.__name__: info for info in optim_db}
CASES = [
    pytest.param(info, given.kwargs, id=f"{name}-{given.desc}")
    for name, info in INFOS.items()
    if name != "LBFGS"
    for given in info.optim_inputs_func(device="cpu")
]


class TwoTables(nn.Module):
    """Two matrices, the only shape that every optimizer takes."""

    def __init__(self) -> None:
        super().__init__()
        for i, name in enumerate(("one", "other")):
            setattr(self, name, nn.Parameter(torch.randn(4, 3, generator=rng(i))))


def set_gradients(model: nn.Module, step: int, sparse: bool) -> None:
    """Random ones; sparse: of half of the rows."""
    for i, p in enumerate(model.parameters()):
        gradient = torch.randn(p.shape, generator=rng(step, "gradient", i))
        p.grad = (gradient * (torch.arange(len(p)) % 2)[:, None]).to_sparse(1) if sparse else gradient


def ends(info, kwargs, g=None, steps=N_STEPS) -> list[torch.Tensor]:
    """The parameters after some steps, plain or guided by g [4, 3]."""
    model = TwoTables()
    optimizer = info.optim_cls(model.parameters(), **copy.deepcopy(kwargs))
    if g is not None:
        optimizer = Guided(optimizer, model, Guide({name: g for name, _ in model.named_parameters()}))
    for step in range(steps):
        set_gradients(model, step, info.only_supports_sparse_grads)
        optimizer.step()
    return [p.detach() for p in model.parameters()]


@pytest.mark.parametrize(("info", "kwargs"), CASES)
def test_the_law(info, kwargs):
    start, plain = ends(info, kwargs, steps=0), ends(info, kwargs)
    ones, zeros = (ends(info, kwargs, torch.full((4, 3), g)) for g in (1.0, 0.0))
    assert all(torch.equal(p, q) for p, q in zip(ones, plain, strict=True))
    assert all(torch.equal(p, q) for p, q in zip(zeros, start, strict=True))
    some = torch.tensor([0.0, 0.25, 1.0]).repeat(4, 1)
    once, guided = ends(info, kwargs, steps=1), ends(info, kwargs, some, steps=1)
    for before, after, p in zip(start, once, guided, strict=True):
        torch.testing.assert_close(p, before.lerp(after, some), rtol=0, atol=1e-7)
        assert torch.equal(p[:, 0], before[:, 0]) and torch.equal(p[:, 2], after[:, 2])


def test_the_page_lists_them_all():
    rows = re.findall(r"^\| (\w+) \| (\d+) \|", (ROOT / "docs/frameworks.md").read_text(), re.MULTILINE)
    assert {name: int(n) for name, n in rows} == {
        name: len(info.optim_inputs_func(device="cpu")) for name, info in INFOS.items()
    }


def test_all_that_torch_has_are_tried_and_lbfgs_is_refused():
    here = {name for name, kind in vars(torch.optim).items() if isinstance(kind, type)} - {"Optimizer"}
    assert here == set(INFOS)
    model = TwoTables()
    with pytest.raises(ValueError, match="Guided cannot wrap LBFGS"):
        Guided(torch.optim.LBFGS(model.parameters()), model, Guide({n: p * 0 for n, p in model.named_parameters()}))
