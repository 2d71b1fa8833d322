"""Laws that hold for whatever comes, tried on random input: ``make test`` tries a few, ``make test-fuzz`` thousands."""

import copy
import itertools
import json
import os
import string
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from torch import nn

from experiments import records
from experiments.catalogue import EXPERIMENTS
from experiments.parameters import ParameterError
from gtl_core import Displacement, Guide, Guided
from gtl_core.files import read_safetensors, write_safetensors
from gtl_core.shaping import combine, density, free, linear, per_tensor, power, shuffled, sparse, temperature, uniform

sys.path.insert(0, str(records.ROOT / "workflow"))
import common

# In the usual tests the same examples each time: they must not fail by chance.
N = int(os.environ.get("FUZZ", "10"))
settings.register_profile(
    "here",
    max_examples=N,
    derandomize=N < 100,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.load_profile("here")

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
SHAPES = arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)
NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)
SHARES = st.floats(0, 1)
POSITIVE = st.floats(0, exclude_min=True, allow_nan=False)


@st.composite
def tensors(draw) -> torch.Tensor:
    array = draw(arrays.arrays(np.float64, draw(SHAPES), elements=SHARES))
    return torch.from_numpy(np.asarray(array)).to(draw(st.sampled_from(DTYPES)))


@st.composite
def guides(draw) -> Guide:
    return Guide(draw(st.dictionaries(NAMES, tensors(), max_size=4)), {"scouts": draw(st.integers(0, 99))})


SHAPED = st.one_of(
    st.builds(lambda e: lambda g: power(g, e), POSITIVE),
    st.builds(lambda s, i: lambda g: linear(g, s, i), st.floats(0, 3e38), st.floats(-3e38, 3e38)),
    st.builds(lambda t: lambda g: sparse(g, t), SHARES),
    st.builds(lambda n: lambda g: temperature(g, n), st.sampled_from(["freezing", "icy", "warm", "evaporating"])),
    st.builds(
        lambda w: lambda g: combine([g] * len(w), w),
        st.lists(st.floats(0, 1e300), min_size=1, max_size=3).filter(lambda w: sum(w) > 0),
    ),
    st.builds(lambda s: lambda g: shuffled(g, torch.Generator().manual_seed(s)), st.integers(0, 9)),
    st.sampled_from([uniform, per_tensor, free]),
)


@given(guides(), st.lists(SHAPED, max_size=3))
def test_shaping_keeps_range_names_order_shapes_and_types(guide, shapes):
    shaped = guide
    for shape in shapes:
        shaped = shape(shaped)
    assert list(shaped) == list(guide) and 0 <= density(shaped) <= 1
    for name, g in shaped.items():
        assert g.shape == guide[name].shape and g.dtype == guide[name].dtype
        assert ((g >= 0) & (g <= 1)).all()


@given(guides(), st.booleans())
def test_a_guide_survives_its_file(tmp_path, guide, in_positions):
    guide.save(tmp_path / "g", sparse=in_positions)
    back = Guide.load(tmp_path / "g")
    assert list(back) == list(guide) and back.metadata["scouts"] == guide.metadata["scouts"]
    for name, g in back.items():
        assert torch.equal(g, guide[name]) and g.dtype == guide[name].dtype and g.shape == guide[name].shape


@given(guides(), st.data())
def test_a_damaged_file_is_refused(tmp_path, guide, data):
    guide.save(tmp_path / "g")
    whole = (tmp_path / "g").read_bytes()
    start, end = sorted(data.draw(st.tuples(st.integers(0, len(whole)), st.integers(0, len(whole)))))
    damaged = whole[:start] + data.draw(st.binary(max_size=9)) + whole[end:]
    (tmp_path / "g").write_bytes(damaged)
    if damaged != whole:
        with pytest.raises(ValueError, match=r"/g (is damaged|was not written)"):
            Guide.load(tmp_path / "g")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 10**12) | st.floats(allow_nan=False) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
)


@given(
    st.dictionaries(NAMES, tensors(), max_size=3),
    st.dictionaries(st.sampled_from(["guide", "count", "diverged"]), JSON),
)
def test_what_another_program_sealed_is_refused_in_one_line_or_loaded_whole(tmp_path, values, metadata):
    write_safetensors(tmp_path / "f", values, metadata)
    assert read_safetensors(tmp_path / "f")[1] == metadata
    for kind in (Guide, Displacement):
        try:
            kind.load(tmp_path / "f")
        except ValueError as error:
            assert len(str(error).splitlines()) <= 1 + sum(name.count("\n") for name in values)


MOVED = st.integers(-9, 9).map(float)  # of which sums are exact


@given(arrays.arrays(np.float64, (4, 3), elements=MOVED), st.permutations(range(4)), st.integers(0, 4))
def test_displacements_add_in_any_order_and_grouping(moved, order, cut):
    def displaced(rows) -> Displacement:
        found = Displacement({"w": torch.zeros(3)})
        for row in rows:
            found.add({"w": torch.from_numpy(moved[row]).float()})
        return found

    whole, parts = displaced(range(4)), displaced(order[:cut]) + displaced(order[cut:])
    assert parts.count == whole.count
    for statistic in ("mean", "mean_abs", "mean_square"):
        assert torch.equal(getattr(parts, statistic)["w"], getattr(whole, statistic)["w"])


OPTIMIZERS = {
    "SGD": {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1},
    "Adam": {},
    "AdamW": {"weight_decay": 0.1},
    "RMSprop": {"momentum": 0.5},
    "Adagrad": {},
    "Adadelta": {},
    "NAdam": {},
    "RAdam": {},
}


@given(
    st.lists(st.integers(1, 5), min_size=2, max_size=4),
    st.sampled_from(sorted(OPTIMIZERS)),
    st.floats(1e-4, 1),
    st.integers(0, 10**6),
    st.sampled_from(["error", "free", "frozen"]),
)
def test_guided_goes_its_share_of_whatever_the_optimizer_does(sizes, name, rate, seed, unguided):
    random = torch.Generator().manual_seed(seed)
    model = nn.Sequential(*itertools.starmap(nn.Linear, itertools.pairwise(sizes)))
    shares = {n: torch.rand(p.shape, generator=random) for n, p in model.named_parameters()}
    shares = {n: torch.where(torch.rand(g.shape, generator=random) < 0.3, g.round(), g) for n, g in shares.items()}
    missing = {n for n in shares if unguided != "error" and torch.rand((), generator=random) < 0.3}
    guide = Guide({n: g for n, g in shares.items() if n not in missing})
    shares |= {n: torch.full_like(shares[n], float(unguided == "free")) for n in missing}
    optimizer = getattr(torch.optim, name)(model.parameters(), lr=rate, **OPTIMIZERS[name])
    guided = Guided(optimizer, model, guide, unguided=unguided)
    for _ in range(3):
        gradients = [torch.randn(p.shape, generator=random) for p in model.parameters()]
        for p, gradient in zip(model.parameters(), gradients, strict=True):
            p.grad = gradient.clone()
        before = {n: p.detach().clone() for n, p in model.named_parameters()}
        plain, unbound = copy.deepcopy((model, optimizer))
        for p, gradient in zip(plain.parameters(), gradients, strict=True):
            p.grad = gradient.clone()
        unbound.step()
        after = {n: p.detach() for n, p in plain.named_parameters()}
        guided.step()
        for n, p in model.named_parameters():
            assert torch.equal(p, torch.lerp(before[n], after[n], shares[n])), n


@given(st.sampled_from(sorted(EXPERIMENTS)), JSON, st.data())
def test_parameters_take_a_value_as_it_is_or_name_it(notebook, value, data):
    """What is accepted is what was given: no 3.7 becomes 3, no "yes" becomes true, no list loses an element."""
    kind = EXPERIMENTS[notebook].parameters
    name = data.draw(st.sampled_from(sorted(kind.model_fields)))
    try:
        parsed = kind.parse(common.defaults(notebook) | {name: value})
    except ParameterError as error:
        assert name in str(error)
        return
    found = json.loads(parsed.canonical())[name]
    assert found == value or str(found) == str(value) or float(found) == float(value)
    assert kind.parse(json.loads(parsed.canonical())) == parsed


NAMED = st.text(f"{string.ascii_letters}{string.digits} ,;'\"()-\n", min_size=1)
ROWS = st.lists(st.tuples(st.integers(0, 9), NAMED, st.floats(-1e9, 1e9)), min_size=1)


@given(ROWS)
def test_a_table_survives_its_file(tmp_path, rows):
    frame = pd.DataFrame(rows, columns=["seed", "method", "value"]).assign(metric="accuracy")
    records.write(str(tmp_path), "t", frame, {"parameters": {"seed": 0}})
    back = records.read(tmp_path, "t")
    assert back["seed"].tolist() == frame["seed"].tolist() and back["method"].tolist() == frame["method"].tolist()
    assert back["value"].tolist() == [float(f"{value:.6g}") for value in frame["value"]]
