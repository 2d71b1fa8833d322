import pytest
import torch

from experiments.data import Dataset
from experiments.data.augmentation import random_affine
from experiments.data.splits import split_classes
from gtl_core.tasks import labelled, rng, sample_episode, to_float


def toy(n_alphabets: int = 12, n_characters: int = 5, n_drawers: int = 20) -> Dataset:
    """Every image is filled with its class number; its first pixel is its drawer. The last quarter: evaluation."""
    n = n_alphabets * n_characters
    examples = torch.arange(n, dtype=torch.uint8)[:, None, None, None].repeat(1, n_drawers, 28, 28)
    examples[:, :, 0, 0] = torch.arange(n_drawers, dtype=torch.uint8)
    classes = [(f"alphabet{c // n_characters}", str(c)) for c in range(n)]
    return Dataset.of("toy", examples.flatten(0, 1), [n_drawers] * n, classes, [c >= n * 3 // 4 for c in range(n)])


def test_rng_depends_on_seed_and_purpose_only():
    draws = [
        torch.rand(3, generator=rng(*key)).tolist() for key in ((0, "a"), (0, "a"), (1, "a"), (0, "b"), (0, "a", 1))
    ]
    assert draws[0] == draws[1]
    assert len({tuple(d) for d in draws}) == 4


def test_split_is_a_partition_by_whole_alphabets():
    dataset = toy()
    split = split_classes(dataset, seed=3)
    everything = torch.cat(list(split.values()))
    assert sorted(everything.tolist()) == list(range(60))
    alphabets = [{dataset.alphabets[c] for c in classes} for classes in split.values()]
    assert sum(map(len, alphabets)) == len(set.union(*alphabets)) == 12
    assert torch.equal(split["test"], dataset.evaluation.nonzero().flatten())
    assert len(split["pretraining"]) > len(split["scouting"]) > 0 and len(split["validation"]) > 0


def test_split_differs_between_seeds_but_the_test_classes_do_not():
    one, other = split_classes(toy(), 0), split_classes(toy(), 1)
    assert not torch.equal(one["pretraining"], other["pretraining"])
    assert torch.equal(one["test"], other["test"])


def test_an_episode_has_distinct_classes_and_no_drawer_in_both_parts():
    dataset = toy()
    classes = split_classes(dataset, 0)["test"]
    for i in range(20):
        episode = sample_episode(dataset.examples, classes, 5, 3, 10, rng(0, i))
        assert episode.support.shape == (5, 3, 1, 28, 28) and episode.query.shape == (5, 10, 1, 28, 28)
        assert len(set(episode.classes.tolist())) == 5 and set(episode.classes.tolist()) <= set(classes.tolist())
        shown = (torch.cat([episode.support, episode.query], 1) * 255).round()
        assert (shown[..., 1, 1].squeeze(-1) == episode.classes[:, None]).all()  # row k holds class k only
        drawers = shown[..., 0, 0].squeeze(-1)
        assert all(len(set(row.tolist())) == 13 for row in drawers)


def test_impossible_episodes_are_refused():
    dataset = toy()
    classes = split_classes(dataset, 0)["test"]
    with pytest.raises(ValueError, match="n_way = 16: at most 15"):
        sample_episode(dataset.examples, classes, 16, 1, 1, rng(0))
    with pytest.raises(ValueError, match=r"n_shot \+ n_query = 21: at most 20"):
        sample_episode(dataset.examples, classes, 5, 1, 20, rng(0))


def test_labels_follow_rows():
    inputs, labels = labelled(torch.tensor([[[1.0], [2.0]], [[3.0], [4.0]], [[5.0], [6.0]]]))
    assert inputs.flatten().tolist() == [1, 2, 3, 4, 5, 6] and labels.tolist() == [0, 0, 1, 1, 2, 2]


def test_images_are_scaled_to_one():
    image = to_float(torch.tensor([[0, 255]], dtype=torch.uint8))
    assert image.shape == (1, 1, 2) and image.flatten().tolist() == [0, 1]


def test_augmentation_keeps_shape_and_is_nothing_at_strength_zero():
    images = torch.rand(4, 1, 28, 28, generator=rng(0))
    torch.testing.assert_close(random_affine(images, 0.0, rng(0)), images, atol=1e-5, rtol=0)
    changed = random_affine(images, 0.1, rng(0))
    assert changed.shape == images.shape and (changed - images).abs().mean() > 0.05
    assert torch.equal(changed, random_affine(images, 0.1, rng(0)))
