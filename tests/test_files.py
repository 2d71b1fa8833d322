"""Files of guides and displacements: what was written comes back, and nothing else is taken for it."""

import json

import pytest
import safetensors
import torch
from safetensors.torch import load_file, save_file

from gtl_core import Displacement, Guide
from gtl_core.files import _seal, read_safetensors, write_safetensors

GUIDE = Guide(
    {
        "z": torch.tensor([[0.0, 0.25], [1.0, 0.0]]),
        "a": torch.tensor(0.5, dtype=torch.bfloat16),
        "none": torch.zeros(0, 3),
    },
    {"scouts": 2},
)


def displacement() -> Displacement:
    found = Displacement({"w": torch.zeros(2), "b": torch.zeros(())})
    found.add({"w": torch.tensor([1.0, 2.0]), "b": torch.tensor(3.0)})
    return found


@pytest.mark.parametrize("sparse", [False, True])
def test_a_guide_comes_back_in_the_order_of_its_names(tmp_path, sparse):
    GUIDE.save(tmp_path / "g", sparse)
    back = Guide.load(tmp_path / "g")
    assert list(back) == ["z", "a", "none"] and back.metadata["scouts"] == 2
    for name, g in GUIDE.items():
        assert torch.equal(back[name], g) and back[name].dtype == g.dtype and back[name].shape == g.shape


@pytest.mark.parametrize("sparse", [False, True])
def test_no_flipped_bit_goes_unnoticed(tmp_path, sparse):
    GUIDE.save(tmp_path / "g", sparse)
    whole = (tmp_path / "g").read_bytes()
    for i in range(len(whole)):
        flipped = bytearray(whole)
        flipped[i] ^= 1 << i % 8
        (tmp_path / "g").write_bytes(flipped)
        with pytest.raises(ValueError, match=r"/g (is damaged|was not written)"):
            Guide.load(tmp_path / "g")


@pytest.mark.parametrize("left", [0, 7, 60, -1])
def test_a_file_that_is_cut_off_is_named(tmp_path, left):
    displacement().save(tmp_path / "d")
    (tmp_path / "d").write_bytes((tmp_path / "d").read_bytes()[:left])
    with pytest.raises(ValueError, match=r"/d is damaged, or not a safetensors file \(.+\)$"):
        Displacement.load(tmp_path / "d")


def test_a_file_that_is_not_there_is_named(tmp_path):
    for path in (tmp_path, tmp_path / "none"):  # the first is a folder
        with pytest.raises(FileNotFoundError, match=f"there is no file {path}$"):
            Guide.load(path)


ONE = {"zero_point:w": torch.ones(2)} | {f"{kind}:w": torch.ones(2) for kind in ("signed", "abs", "square")}


@pytest.mark.parametrize(
    ("tensors", "metadata"),
    [
        ({"w": torch.ones(1)}, {}),
        ({"w": torch.ones(1)}, {"guide": 3}),
        ({"w": torch.ones(1, dtype=torch.complex64)}, {"guide": {}}),
        ({"w": torch.full((1,), 2.0)}, {"guide": {}}),
    ],
)
def test_what_is_not_a_guide_is_not_loaded_as_one(tmp_path, tensors, metadata):
    write_safetensors(tmp_path / "g", tensors, metadata)
    with pytest.raises((TypeError, ValueError), match=r"does not hold a guide|must lie in \[0, 1\]|real tensors"):
        Guide.load(tmp_path / "g")


@pytest.mark.parametrize(
    ("tensors", "metadata"),
    [
        (ONE, {"count": "1", "diverged": 0}),
        (ONE, {"count": -1, "diverged": 0}),
        (ONE, {"count": 1}),
        ({"w": torch.ones(1)}, {"count": 1, "diverged": 0}),
        ({"zero_point:w": torch.ones(2)}, {"count": 1, "diverged": 0}),
        (ONE | {"abs:w": torch.ones(3)}, {"count": 1, "diverged": 0}),
        (ONE | {"cube:w": torch.ones(2)}, {"count": 1, "diverged": 0}),
        (ONE | {"zero_point:w": torch.ones(2, dtype=torch.int64)}, {"count": 1, "diverged": 0}),
    ],
)
def test_what_is_not_a_displacement_is_not_loaded_as_one(tmp_path, tensors, metadata):
    write_safetensors(tmp_path / "d", tensors, metadata)
    with pytest.raises(ValueError, match="/d does not hold a displacement"):
        Displacement.load(tmp_path / "d")


@pytest.mark.parametrize(
    "changes",
    [
        {"shapes": [[10**12], [], [0, 3]]},  # nothing of the kind is allocated
        {"shapes": [[-4], [], [0, 3]]},
        {"shapes": [[2], [], [0, 3]]},  # positions are beyond it
        {"shapes": 5},
        {"shapes": [[2, 2]]},
        {"names": ["z", "a", "other"]},
        {"metadata": 7},
    ],
)
def test_a_file_forged_with_its_digest_ends_in_one_line(tmp_path, changes):
    GUIDE.save(tmp_path / "g", sparse=True)
    with safetensors.safe_open(tmp_path / "g", "pt") as file:
        about = json.loads(file.metadata()["gtl"].partition(" ")[2])
    stored, text = load_file(tmp_path / "g"), json.dumps(about | changes)
    save_file(stored, tmp_path / "g", {"gtl": f"{_seal(stored, text)} {text}"})
    with pytest.raises(ValueError, match=r"/g was not written by gtl_core \(\w+\)$"):
        read_safetensors(tmp_path / "g")
