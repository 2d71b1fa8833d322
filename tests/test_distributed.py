"""Guided training by two processes ends with the same weights in both, and with those of a single process."""

from functools import partial

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from gtl_core import Guide, Guided
from gtl_core.tasks import rng

pytestmark = pytest.mark.skipif(not dist.is_gloo_available(), reason="torch was built without gloo")
N_PROCESSES = 2
OPTIMIZERS = {
    "sgd": partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=0.01),
    "adamw": partial(torch.optim.AdamW, lr=0.01),
}
CASES = [(k, *c) for k in ("ddp", "fsdp") for c in (("sgd", "step"), ("adamw", "step"), ("sgd", "gradient"))]


def network() -> nn.Sequential:
    """Odd sizes, which two processes cannot share equally, and one bias with fewer entries than processes."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 7), nn.Tanh(), nn.Linear(7, 1), nn.Linear(1, 5))


def guide() -> Guide:
    """0, 1/2, 1 and more in one tensor; one tensor all 0, one all 1; none for the head."""
    values = {name: torch.rand(p.shape, generator=rng(0, name)) for name, p in network().named_parameters()}
    values["0.weight"].view(-1)[:6] = torch.tensor([0, 0.5, 1, 0, 0.5, 1])
    values["0.bias"].zero_()
    values["2.weight"].fill_(1)
    return Guide(values).without("3")


def train(model: nn.Module, optimizer: torch.optim.Optimizer, rank: int = 0, size: int = 1) -> None:
    """Each process sees its own part of every batch."""
    for step in range(4):
        inputs, labels = torch.randn(8, 6, generator=rng(1, step)), torch.arange(8) % 5
        optimizer.zero_grad()
        cross_entropy(model(inputs[rank::size]), labels[rank::size]).backward()
        optimizer.step()


def one_of_two(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=N_PROCESSES)
    ends = {}
    for kind, name, on in CASES:
        model = network()
        if kind == "ddp":
            trained = DistributedDataParallel(model)
        else:
            fully_shard(model[0])
            trained = fully_shard(model)
        optimizer = Guided(OPTIMIZERS[name](model.parameters()), model, guide(), unguided="free", on=on)
        train(trained, optimizer, rank, N_PROCESSES)
        whole = {n: p.full_tensor() if kind == "fsdp" else p for n, p in model.named_parameters()}
        ends[kind, name, on] = {n: p.detach() for n, p in whole.items()}
    torch.save(ends, f"{folder}/{rank}")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ends(tmp_path_factory) -> list[dict]:
    """What each process ends with. One start of two processes for all cases, since it takes most of the time."""
    folder = tmp_path_factory.mktemp("processes")
    mp.spawn(one_of_two, (str(folder),), nprocs=N_PROCESSES)
    return [torch.load(folder / str(rank)) for rank in range(N_PROCESSES)]


@pytest.mark.parametrize("case", CASES, ids=" ".join)
def test_two_processes_end_where_one_does(ends, case):
    _, name, on = case
    first, second = (of_process[case] for of_process in ends)
    alone, before = network(), dict(network().named_parameters())
    train(alone, Guided(OPTIMIZERS[name](alone.parameters()), alone, guide(), unguided="free", on=on))
    for n, p in alone.named_parameters():
        assert torch.equal(first[n], second[n])
        torch.testing.assert_close(first[n], p.detach(), rtol=1e-4, atol=1e-6)
    if on == "step":  # g = 0, to the last bit
        assert torch.equal(first["0.bias"], before["0.bias"])
        assert torch.equal(first["0.weight"][0, 0], before["0.weight"][0, 0])
    assert not any(torch.equal(first[n], before[n]) for n in ("0.weight", "2.weight", "3.weight"))
