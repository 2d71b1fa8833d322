import pickle

import pytest
import torch
from torch import nn

from gtl_core import Displacement, Guide
from gtl_core.files import digest, replacing

ZERO = {"a": torch.tensor([0.0, 1.0]), "b": torch.tensor([[2.0]])}


def displaced(*moves: dict[str, list]) -> Displacement:
    """Scouts that moved from ZERO by the given amounts."""
    displacement = Displacement(ZERO)
    for move in moves:
        displacement.add({name: ZERO[name] + torch.tensor(d) for name, d in move.items()})
    return displacement


# Two scouts: a[0] moves by 1 and 3, a[1] by 0 and -2, b by -1 and 1.
TWO = ({"a": [1.0, 0.0], "b": [[-1.0]]}, {"a": [3.0, -2.0], "b": [[1.0]]})


def test_means_by_hand():
    d = displaced(*TWO)
    assert d.count == 2
    assert d.mean_square["a"].tolist() == [(1 + 9) / 2, (0 + 4) / 2]
    assert d.mean_abs["a"].tolist() == [2, 1]
    assert d.mean["a"].tolist() == [2, -1]
    assert d.mean_square["b"].tolist() == [[1]]
    assert d.mean["b"].tolist() == [[0]]  # they disagree


def test_guides_by_hand():
    d = displaced(*TWO)  # mean squares: a = 5, 2; b = 1
    assert d.guide("network", "max")["a"].tolist() == pytest.approx([1, 2 / 5])
    assert d.guide("network", "max")["b"].tolist() == [[pytest.approx(1 / 5)]]
    assert d.guide("network", "minmax")["a"].tolist() == [1, (2 - 1) / (5 - 1)]
    assert d.guide("network", "minmax")["b"].tolist() == [[0]]
    assert d.guide("tensor", "max")["a"].tolist() == pytest.approx([1, 2 / 5])
    assert d.guide("tensor", "minmax")["a"].tolist() == [1, 0]
    assert d.guide("network", "max", "abs")["a"].tolist() == [1, 1 / 2]


@pytest.mark.parametrize("normalization", ["max", "minmax"])
def test_a_lone_value_is_one_if_it_moved_and_zero_if_not(normalization):
    moved = displaced({"a": [1.0, 2.0], "b": [[3.0]]})
    assert moved.guide("tensor", normalization)["b"].tolist() == [[1]]
    unmoved = displaced({"a": [1.0, 2.0], "b": [[0.0]]})
    assert unmoved.guide("tensor", normalization)["b"].tolist() == [[0]]
    assert unmoved.guide("network", normalization)["b"].tolist() == [[0]]


@pytest.mark.parametrize("scope", ["network", "tensor"])
@pytest.mark.parametrize("normalization", ["max", "minmax"])
@pytest.mark.parametrize("statistic", ["square", "abs"])
def test_every_guide_lies_in_the_unit_interval_and_reaches_one(scope, normalization, statistic):
    generator = torch.Generator().manual_seed(0)
    model = nn.Linear(7, 5)
    d = Displacement(model)
    for _ in range(3):
        d.add({n: p + torch.randn(p.shape, generator=generator) for n, p in model.named_parameters()})
    guide = d.guide(scope, normalization, statistic)
    values = torch.cat([g.flatten() for g in guide.values()])
    assert values.min() >= 0 and values.max() == 1


def test_order_of_parameters_follows_size_of_displacement():
    g = displaced({"a": [0.1, -0.3], "b": [[0.2]]}).guide()
    assert g["a"][0] < g["b"][0, 0] < g["a"][1] == 1


def test_merging_equals_scouting_together():
    one, other = displaced(TWO[0]), displaced(TWO[1])
    together = displaced(*TWO)
    merged = one + other
    assert merged.count == 2
    assert all(torch.equal(merged.mean_square[n], together.mean_square[n]) for n in ZERO)
    assert one.count == 1 and one.mean["a"].tolist() == [1, 0]  # the parts stay as they were


def test_merging_different_zero_points_is_refused():
    with pytest.raises(ValueError, match="two different zero points"):
        displaced(TWO[0]) + Displacement({"a": torch.tensor([0.0, 9.0]), "b": ZERO["b"]})


def test_the_zero_point_is_a_copy():
    model = nn.Linear(2, 1)
    d = Displacement(model)
    with torch.no_grad():
        model.weight += 1  # aliasing would make every displacement zero
    d.add(model)
    assert torch.allclose(d.mean["weight"], torch.ones(1, 2))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e30])
def test_diverged_scouts_are_left_out(bad):
    d = displaced(TWO[0])
    assert not d.add({"a": torch.tensor([bad, 0.0]), "b": ZERO["b"]})
    assert (d.count, d.diverged) == (1, 1)
    assert d.mean["a"].tolist() == [1, 0]


def test_half_precision_is_summed_in_single():
    d = Displacement({"a": torch.zeros(1, dtype=torch.bfloat16)})
    for _ in range(1000):  # a bfloat16 sum of ones stops at 256
        d.add({"a": torch.ones(1, dtype=torch.bfloat16)})
    assert d.mean["a"].item() == 1


def test_unmoved_and_empty_displacements_are_refused():
    with pytest.raises(ValueError, match="no parameter moved"):
        displaced({"a": [0.0, 0.0], "b": [[0.0]]}).guide()
    with pytest.raises(ValueError, match="zero scouts"):
        Displacement(ZERO).guide()


@pytest.mark.parametrize("choice", ["scope", "normalization", "statistic"])
def test_wrong_choices_are_named(choice):
    with pytest.raises(ValueError, match=f"{choice} = 'median': must be one of"):
        displaced(*TWO).guide(**{choice: "median"})


def test_buffers_have_no_guide():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    assert set(Displacement(model).zero_point) == {"0.weight", "0.bias", "1.weight", "1.bias"}


def test_displacement_round_trip(tmp_path):
    d = displaced(*TWO)
    d.diverged = 3
    d.save(tmp_path / "d.safetensors")
    back = Displacement.load(tmp_path / "d.safetensors")
    assert (back.count, back.diverged) == (2, 3)
    for scope in ("network", "tensor"):
        assert all(torch.equal(back.guide(scope)[n], d.guide(scope)[n]) for n in ZERO)
    assert (back + d).count == 4


def test_guide_round_trip_and_equal_bytes(tmp_path):
    guide = displaced(*TWO).guide(scope="tensor")
    for name in ("one", "two"):
        guide.save(tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    back = Guide.load(tmp_path / "one")
    assert all(torch.equal(back[n], guide[n]) for n in guide)
    assert back.metadata["scope"] == "tensor" and back.metadata["scouts"] == 2
    assert back.metadata["zero_point"] == digest(ZERO)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["one", "two"]  # no temporary file is left


def test_loading_for_another_network_names_the_parameter(tmp_path):
    model = nn.Linear(3, 2)
    Guide({n: torch.ones_like(p) for n, p in model.named_parameters()}).save(tmp_path / "g")
    assert len(Guide.load(tmp_path / "g", model)) == 2
    with pytest.raises(ValueError, match=r"guide has shape \(2, 3\) for 'weight', the model \(4, 3\)"):
        Guide.load(tmp_path / "g", nn.Linear(3, 4))
    with pytest.raises(ValueError, match=r"guide has no entry for '0.weight'"):
        Guide.load(tmp_path / "g", nn.Sequential(model))
    with pytest.raises(ValueError, match="guide has an entry for 'bias', which the model does not have"):
        Guide.load(tmp_path / "g", nn.Linear(3, 2, bias=False))


def test_foreign_files_are_refused(tmp_path):
    from safetensors.torch import save_file

    save_file({"weight": torch.ones(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="was not written by gtl_core"):
        Guide.load(tmp_path / "other.safetensors")


@pytest.mark.parametrize("bad", [-0.1, 1.1, float("nan")])
def test_values_outside_the_unit_interval_are_refused(bad):
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\]: 'w'"):
        Guide({"w": torch.tensor([0.5, bad])})


def test_a_guide_does_not_alias_what_it_was_made_from():
    values = {"w": torch.ones(2)}
    guide = Guide(values)
    values["w"][0] = 0
    assert guide["w"].tolist() == [1, 1]
    with pytest.raises(TypeError):
        guide["w"] = torch.zeros(2)


def test_guides_and_displacements_pickle():
    d = displaced(*TWO)
    assert pickle.loads(pickle.dumps(d)).guide()["a"].tolist() == d.guide()["a"].tolist()
    assert pickle.loads(pickle.dumps(d.guide()))["b"].tolist() == d.guide()["b"].tolist()


def test_digest_sees_names_shapes_types_and_values():
    variants = [
        {"a": torch.zeros(4)},
        {"b": torch.zeros(4)},
        {"a": torch.zeros(2, 2)},
        {"a": torch.zeros(4, dtype=torch.int32)},
        {"a": torch.tensor([0.0, 0, 0, 1])},
    ]
    assert len({digest(v) for v in variants}) == len(variants)
    assert digest({"a": torch.zeros(4)}) == digest(variants[0])


def test_saved_files_can_be_read_by_whom_the_umask_allows(tmp_path):
    displaced(*TWO).guide().save(tmp_path / "g")
    (tmp_path / "ordinary").touch()
    assert (tmp_path / "g").stat().st_mode == (tmp_path / "ordinary").stat().st_mode


def test_displacements_too_small_to_square_are_refused():
    d = Displacement({"w": torch.zeros(2)})
    d.add({"w": torch.full((2,), 1e-30)})
    assert d.moved and d.guide(statistic="abs")["w"].tolist() == [1, 1]
    with pytest.raises(ValueError, match="no parameter moved"):
        d.guide(statistic="square")


def test_a_displacement_is_not_loaded_as_a_guide_nor_a_guide_as_a_displacement(tmp_path):
    displaced(*TWO).guide().save(tmp_path / "g")
    with pytest.raises(ValueError, match=r"does not hold a displacement .*; if a guide: Guide.load\(path\)$"):
        Displacement.load(tmp_path / "g")
    displaced(*TWO).save(tmp_path / "d")
    with pytest.raises(ValueError, match=r"does not hold a guide; if a displacement: Displacement.load\(path\)"):
        Guide.load(tmp_path / "d")


def test_a_file_is_replaced_in_one_go_or_not_at_all(tmp_path):
    path = tmp_path / "table.csv"
    for text in ("old", "new"):
        with replacing(path) as temporary:
            temporary.write_text(text)
            assert not path.exists() or path.read_text() == "old"
    assert path.read_text() == "new"
    with pytest.raises(KeyboardInterrupt), replacing(path) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


def test_a_digest_is_that_of_the_values_however_they_lie_in_memory():
    table = torch.arange(6.0).view(3, 2)
    for view in (table[:1, 1], table[:, 1], table.T, torch.tensor(1.0)):
        dense = torch.tensor(view.tolist())
        assert digest({"w": view}) == digest({"w": dense})
    assert digest({"w": table[:1, 1]}) != digest({"w": table[:1, 0]})


def test_displacements_sum_and_weigh_from_either_side():
    one, other = displaced(TWO[0]), displaced(TWO[1])
    assert sum([one, other]).mean["a"].tolist() == displaced(*TWO).mean["a"].tolist()
    assert (one * 0.5).count == (0.5 * one).count == 0.5
    with pytest.raises(TypeError, match="unsupported operand"):
        one + 3


def test_parts_of_a_guide_are_named_by_parameter_module_or_pattern():
    guide = Guide({name: torch.ones(1) for name in ("body.lora_A.w", "body.w", "body2.w", "head.lora_B.w")})
    assert set(guide.only("body")) == {"body.lora_A.w", "body.w"}
    assert set(guide.only("*lora_*")) == {"body.lora_A.w", "head.lora_B.w"}
    assert set(guide.without("*lora_*", "body2.w")) == {"body.w"}
    with pytest.raises(ValueError, match="guide has no entry for 'lora'"):
        guide.only("lora")


def test_a_guide_for_another_head_is_loaded_in_part(tmp_path):
    model = nn.ModuleDict({"body": nn.Linear(3, 2), "head": nn.Linear(2, 4)})
    Guide({n: torch.full_like(p, 0.5) for n, p in model.named_parameters()}).save(tmp_path / "g")
    model["head"] = nn.Linear(2, 7)
    with pytest.raises(ValueError, match="guide has shape"):
        Guide.load(tmp_path / "g", model)
    part = Guide.load(tmp_path / "g", model, partial=True)
    assert set(part) == {"body.weight", "body.bias"}
    assert part.metadata["left_out"] == ["head.bias", "head.weight"]


@pytest.mark.parametrize("key", ["count", "shapes", "guide", "w"])
@pytest.mark.parametrize("sparse", [False, True])
def test_metadata_may_have_any_name(key, sparse, tmp_path):
    guide = Guide({"w": torch.tensor([0.0, 0.5])}, {key: 3})
    guide.save(tmp_path / "g", sparse=sparse)
    back = Guide.load(tmp_path / "g")
    assert back.metadata[key] == 3 and torch.equal(back["w"], guide["w"])


def test_a_missing_folder_is_named_and_a_link_stays_one(tmp_path):
    guide = Guide({"w": torch.ones(1)})
    with pytest.raises(FileNotFoundError, match=r"cannot write g: there is no folder .*nowhere$"):
        guide.save(tmp_path / "nowhere" / "g")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    guide.save(tmp_path / "link")
    assert (tmp_path / "link").is_symlink() and Guide.load(tmp_path / "target")["w"].item() == 1


@pytest.mark.parametrize("values", [[torch.ones(1)], {"w": [1.0]}, torch.ones(1), "guide.safetensors"])
def test_what_is_no_mapping_to_tensors_is_refused(values):
    with pytest.raises(TypeError, match="values: must be a mapping from names to real tensors, and is a"):
        Guide(values)
