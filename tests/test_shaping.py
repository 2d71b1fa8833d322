"""Laws of guides made from guides, and of displacement in bins."""

import itertools
from functools import reduce
from operator import add

import pytest
import torch
from torch import nn

from gtl_core import Displacement, Guide
from gtl_core.normalization import normalize
from gtl_core.shaping import (
    TEMPERATURES,
    Binned,
    combine,
    density,
    distance,
    free,
    histogram,
    linear,
    per_tensor,
    power,
    shuffled,
    sparse,
    temperature,
    uniform,
)

G = torch.tensor([0.0, 0.1, 0.5, 0.75, 0.995, 1.0])
GUIDE = Guide({"body.w": G, "head.w": G.flip(0).view(2, 3)}, {"scouts": 3})
MAPS = {
    **{name: lambda g, name=name: temperature(g, name) for name in TEMPERATURES},
    "steep": lambda g: linear(g, 30, -4),
    "flat": lambda g: linear(g, 0.2, 0.3),
    "root": lambda g: power(g, 0.5),
    "square": lambda g: power(g, 2),
    "sparse": lambda g: sparse(g, 0.4),
}


@pytest.mark.parametrize("shape", MAPS.values(), ids=MAPS)
def test_maps_keep_range_order_and_shape_and_leave_their_guide_alone(shape):
    before = {name: g.clone() for name, g in GUIDE.items()}
    shaped = shape(GUIDE)
    for name, g in shaped.items():
        assert g.shape == GUIDE[name].shape and g.min() >= 0 and g.max() <= 1
    assert (shaped["body.w"].diff() >= 0).all() and shaped["body.w"][-1] > shaped["body.w"][0]
    assert all(torch.equal(before[name], g) for name, g in GUIDE.items())
    assert shaped.metadata["scouts"] == 3 and len(shaped.metadata["shaping"]) == 1


def test_temperatures_by_hand():
    """Lines through (1, 1), cut off at 0."""
    expected = {
        "freezing": [0, 0, 0, 0, 0.5, 1],
        "icy": [0, 0, 0, 0, 0.98, 1],
        "chilly": [0, 0, 0, 0.5, 0.99, 1],
        "room": [0, 0.1, 0.5, 0.75, 0.995, 1],
        "warm": [0.5, 0.55, 0.75, 0.875, 0.9975, 1],
        "evaporating": [0.9, 0.91, 0.95, 0.975, 0.9995, 1],
    }
    for name in TEMPERATURES:
        assert temperature(GUIDE, name)["body.w"].tolist() == pytest.approx(expected[name], abs=1e-5)


def test_warmer_is_never_stricter():
    for colder, warmer in itertools.pairwise(TEMPERATURES):
        assert (temperature(GUIDE, colder)["body.w"] <= temperature(GUIDE, warmer)["body.w"] + 1e-6).all()


def test_maps_compose():
    twice = temperature(temperature(GUIDE, "chilly"), "chilly")
    torch.testing.assert_close(twice["body.w"], temperature(GUIDE, "icy")["body.w"])
    assert twice.metadata["shaping"] == ["temperature chilly", "temperature chilly"]
    torch.testing.assert_close(power(power(GUIDE, 2), 0.5)["head.w"], GUIDE["head.w"])
    assert torch.equal(sparse(sparse(GUIDE, 0.6), 0.3)["body.w"], sparse(GUIDE, 0.6)["body.w"])
    assert torch.equal(temperature(GUIDE, "room")["body.w"], linear(GUIDE)["body.w"])


def test_free_and_per_tensor_by_hand():
    loose = free(GUIDE, "head")
    assert loose["head.w"].tolist() == [[1, 1, 1]] * 2 and torch.equal(loose["body.w"], G)
    blocks = free(Guide({f"blocks.{i}.w": G for i in (1, 10)}), "blocks.1")
    assert blocks["blocks.1.w"].min() == 1 and torch.equal(blocks["blocks.10.w"], G)
    assert per_tensor(GUIDE)["body.w"].tolist() == pytest.approx([3.345 / 6] * 6)


def test_uniform_by_hand():
    """The mean of all six values, whatever tensor they are in."""
    guide = uniform(Guide({"one": torch.tensor([0.0, 1.0]), "other": torch.tensor([[0.2, 0.4, 0.9, 0.5]])}))
    assert guide["one"].tolist() == pytest.approx([0.5] * 2) and guide["other"][0].tolist() == pytest.approx([0.5] * 4)


def test_shuffling_keeps_the_values_of_each_tensor():
    mixed = shuffled(GUIDE, torch.Generator().manual_seed(0))
    assert all(torch.equal(mixed[name].flatten().sort()[0], g.flatten().sort()[0]) for name, g in GUIDE.items())
    assert not torch.equal(mixed["body.w"], G)


def test_a_combination_is_the_weighted_mean():
    both = combine([GUIDE, power(GUIDE, 2)], [1, 3])
    torch.testing.assert_close(both["body.w"], (G + 3 * G**2) / 4)
    assert torch.equal(combine([GUIDE, power(GUIDE, 2)], [2, 0])["body.w"], G)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: temperature(GUIDE, "tepid"),
        lambda: linear(GUIDE, -1),
        lambda: power(GUIDE, 0),
        lambda: sparse(GUIDE, 1.5),
        lambda: free(GUIDE, "tail"),
        lambda: combine([GUIDE, GUIDE], [1, -1]),
        lambda: combine([GUIDE], [0]),
        lambda: combine([GUIDE.without("head"), GUIDE], [1, 1]),
        lambda: Binned({"w": G}, [1.0, 1.0]),
        lambda: -1 * Displacement({"w": G}),
        lambda: linear(GUIDE, float("inf")),
        lambda: linear(GUIDE, float("nan")),
        lambda: linear(GUIDE, 1, float("nan")),
        lambda: combine([GUIDE, GUIDE], [1, float("inf")]),
        lambda: combine([GUIDE, GUIDE], [1, float("nan")]),
        lambda: combine([GUIDE, GUIDE], [1]),
        lambda: combine([], []),
        lambda: histogram(GUIDE, [1, 0]),
    ],
)
def test_what_makes_no_sense_is_refused(wrong):
    with pytest.raises(ValueError, match=r"must|no entry for 'tail'|one guide has an entry for 'head\.w'"):
        wrong()


def test_a_sparse_guide_survives_its_file_and_saves_space(tmp_path):
    guide = sparse(
        Guide(
            {
                "w": torch.rand(100, 50, generator=torch.Generator().manual_seed(0)),
                "gone": torch.zeros(30),
                "one": torch.tensor(1.0),
            }
        ),
        0.9,
    )
    guide.save(tmp_path / "dense")
    guide.save(tmp_path / "sparse", sparse=True)
    dense, thin = (Guide.load(tmp_path / name) for name in ("dense", "sparse"))
    assert all(torch.equal(thin[name], g) and thin[name].shape == g.shape for name, g in guide.items())
    assert dense.metadata == thin.metadata and set(thin) == set(guide)
    values = (tmp_path / "dense").stat().st_size, (tmp_path / "sparse").stat().st_size
    # 4 bytes a value, against 8 for each that is left; a few hundred bytes name the tensors.
    assert abs(values[0] - 4 * 5031) < 1000 and abs(values[1] - 8 * 5031 * density(guide)) < 1000


def test_histograms_count_everything():
    shares = histogram(GUIDE, [0, 0.2, 0.9, 1.0])
    assert shares["body.w"].tolist() == pytest.approx([2 / 6, 2 / 6, 2 / 6])  # the last bin holds its upper edge


@pytest.mark.parametrize(
    ("normalization", "expected"),
    [("max", [1 / 4, 1 / 2, 1]), ("minmax", [0, 1 / 3, 1]), ("zero", [0, 0.2, 0.6]), ("raw", [0.2, 0.4, 0.8])],
)
def test_normalizations_by_hand(normalization, expected):
    values = {"w": torch.tensor([0.2, 0.4, 0.8])}
    assert normalize(values, "tensor", normalization)["w"].tolist() == pytest.approx(expected)


def test_raw_values_above_one_are_cut_off():
    assert normalize({"w": torch.tensor([0.5, 7.0])}, "network", "raw")["w"].tolist() == [0.5, 1]


def test_weighted_displacements_average_as_they_should():
    """Scouts moved by 1 and by 3; the second counts a third: (1 + 9 / 3) / (1 + 1 / 3) = 3."""
    one, three = Displacement({"w": torch.zeros(1)}), Displacement({"w": torch.zeros(1)})
    one.add({"w": torch.tensor([1.0])})
    three.add({"w": torch.tensor([3.0])})
    together = one + (1 / 3) * three
    assert together.count == pytest.approx(4 / 3) and together.mean_square["w"].item() == pytest.approx(3)
    assert (2 * one).mean_abs["w"].item() == 1


def line(*weights):
    model = nn.Linear(2, 1, bias=False)
    model.weight.data = torch.tensor([list(map(float, weights))])
    return model


def test_bins_by_hand():
    binned = Binned(line(0, 0), [2.0])
    for weights in ((1, 0), (3, 0), (3, 4)):  # at distances 1, 3 and 5
        assert binned.add(line(*weights))
    near, far = binned.bins
    assert (near.count, far.count) == (1, 2)
    assert far.mean_square["weight"].tolist() == [[9, 8]]
    # Guides [1, 0] and [1, 8/9], weighing 1 and 2; and what weighs nothing does not count.
    assert binned.guide()["weight"].tolist() == [pytest.approx([1, 16 / 27])]
    assert binned.guide([1, 0])["weight"].tolist() == [[1, 0]]
    assert binned.guide().metadata["scouts"] == 3
    assert distance(line(3, 4), near.zero_point).item() == 5


def test_bins_add_up_to_the_whole_displacement():
    points = [line(*xy) for xy in torch.randn(20, 2, generator=torch.Generator().manual_seed(0)).tolist()]
    whole, halves = Displacement(line(0, 0)), [Binned(line(0, 0), [0.5, 1.0, 1.5]) for _ in range(2)]
    for i, point in enumerate(points):
        whole.add(point)
        halves[i % 2].add(point)
    binned = halves[0] + halves[1]
    together = reduce(add, binned.bins)
    assert all(b.count for b in binned.bins) and together.count == 20
    for statistic in ("mean", "mean_abs", "mean_square"):
        torch.testing.assert_close(getattr(together, statistic), getattr(whole, statistic))
    with pytest.raises(ValueError, match="different bins"):
        binned + Binned(line(0, 0), [0.5])


def test_points_that_are_not_finite_are_left_out():
    binned = Binned(line(0, 0), [1.0])
    assert not binned.add(line(float("nan"), 0))
    with pytest.raises(ValueError, match="no parameter moved"):
        binned.guide()


# --- extremes -------------------------------------------------------------------------------------

EXTREMES = {
    "the softest": (lambda g: power(g, 1e-300), [0, 1, 1, 1]),
    "the strictest": (lambda g: power(g, 1e300), [0, 0, 0, 1]),
    "stricter still": (lambda g: power(g, float("inf")), [0, 0, 0, 1]),
    "steep": (lambda g: linear(g, 1e38), [0, 1, 1, 1]),
    "steep and low": (lambda g: linear(g, 1e38, -1e37), [0, 0, 1, 1]),
    "high": (lambda g: linear(g, 1, 1e38), [1, 1, 1, 1]),
    "one of two": (lambda g: combine([g, g], [1e-300, 1e300]), [0, 2**-10, 0.5, 1]),
}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize(("shape", "expected"), EXTREMES.values(), ids=EXTREMES)
def test_extremes_are_limits_in_every_precision(shape, expected, dtype):
    shaped = shape(Guide({"w": torch.tensor([0, 2**-10, 0.5, 1], dtype=dtype)}))
    assert shaped["w"].dtype == dtype and shaped["w"].tolist() == expected


@pytest.mark.parametrize("guide", [Guide({}), Guide({"w": torch.zeros(0, 3)})], ids=["no tensors", "no elements"])
def test_a_guide_of_nothing_stays_one(guide):
    shapes = [*MAPS.values(), uniform, per_tensor, free, lambda g: shuffled(g, torch.Generator())]
    for shape in shapes:
        assert [g.shape for g in shape(guide).values()] == [g.shape for g in guide.values()]
    assert density(guide) == 0 and all(not shares.any() for shares in histogram(guide, [0, 1]).values())
