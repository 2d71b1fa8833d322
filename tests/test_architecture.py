"""Architecture search: networks by arithmetic, searches by what they may and must do, and the experiment in small."""

import re
from itertools import count, repeat

import pytest
import torch

from benchmarks.account import counted
from experiments import records
from experiments.baselines import architecture as search
from experiments.baselines.architecture import DEPTHS, LARGEST, OPERATIONS, Architecture, Space, build, made_by_hand
from experiments.costs import multiplications
from experiments.e16_architecture import figures
from experiments.e16_architecture import run as experiment
from experiments.e16_architecture.run import ArchitectureParameters, ArchitectureVariant, carried
from experiments.models import conv4
from experiments.parameters import ParameterError
from experiments.preparations.steps import from_command
from experiments.style import save
from gtl_core import Guide
from gtl_core._engine.stacked import stack
from gtl_core.shaping import per_tensor
from gtl_core.tasks import Episode, rng

SMALL = dict(
    dataset="glyphs", seed=0, n_seeds=1, tasks=["3-way 1-shot"],
    searches=["random_search", "evolution", "differentiable"], search_budget=25.0, search_epochs=1, n_search_tasks=3,
    n_episodes=6, n_tuning_episodes=2, n_query=3, epochs=2, learning_rates=[0.03, 0.1], heads=["zero"], channels=8,
    pretraining_epochs=1, preparation_factors=[1.0], n_scouts=2, scout_n_shot=3, scout_epochs=2,
    scout_learning_rate=0.1, results="x", prepared="", workers=1,
)  # fmt: skip
P = ArchitectureParameters.parse(SMALL)
HAND = made_by_hand(8)
SPACE = Space(HAND, 5)


def test_made_by_hand_is_conv4():
    ours, theirs = build(HAND, 3, generator=rng(0)), conv4(3, 8, generator=rng(0))
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(p, q)
    images = torch.rand(2, 1, 28, 28)
    assert torch.equal(ours(images), theirs(images))


def test_multiplications_by_hand():
    """A 5x5 convolution of stride 2, then a 1x1 one before pooling: 28 pixels along a side become 14, then 7."""
    model = build(Architecture(("5x5", "1x1 pooled"), 8, "none"), 3, generator=rng(0))
    assert multiplications(model) == [14 * 14 * 8 * 25, 14 * 14 * 8 * 8, 7 * 7 * 8 * 3]
    assert [p.numel() for p in model.parameters()] == [8 * 25, 8, 8 * 8, 8, 7 * 7 * 8 * 3, 3]


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("norm", search.NORMS)
def test_every_block_halves_an_image_and_is_trained_side_by_side(operation, norm):
    model = build(Architecture((operation,) * 3, 8, norm), 3, generator=rng(0))
    assert model.head.in_features == 8 * 4 * 4
    images = torch.rand(5, 2, 1, 28, 28)
    alone = torch.stack([model(images[:, i]) for i in range(2)], 1)
    torch.testing.assert_close(stack([model] * 2)(images), alone, rtol=1e-4, atol=1e-5)


def differences(a: Architecture, b: Architecture) -> int:
    """How many things are changed: a block inserted or left out is one."""
    if len(a.blocks) == len(b.blocks):
        blocks = sum(x != y for x, y in zip(a.blocks, b.blocks, strict=True))
    else:
        short, long = sorted((a.blocks, b.blocks), key=len)
        blocks = 1 if short in [long[:i] + long[i + 1 :] for i in range(len(long))] else 99
    return blocks + (a.channels != b.channels) + (a.norm != b.norm)


def test_a_mutation_changes_one_thing_and_nothing_is_too_large():
    generator, one = rng(0), SPACE.draw(rng(0))
    for _ in range(30):
        other = SPACE.mutate(one, generator)
        assert differences(one, other) == 1 and len(other.blocks) in DEPTHS
        assert search.size(other, *SPACE)[0] <= LARGEST
        one = other


def test_a_head_for_many_classes_counts():
    """After two blocks 7x7 pixels are left: with 500 classes, such a head is larger than all else."""
    shallow = Architecture(("3x3", "3x3"), 16, "group")
    assert SPACE.allows(shallow) and not Space(HAND, 500).allows(shallow)


def depth(architecture: Architecture) -> float:
    return float(len(architecture.blocks))


@pytest.mark.parametrize("way", [search.random_search, search.evolution])
def test_a_search_spends_its_budget_and_no_more(way):
    assert len(way(depth, lambda a: 1.0, 12.0, SPACE, rng(0))) == 12
    spent = [search.size(one.architecture, *SPACE)[0] for one in way(depth, sized, 40.0, SPACE, rng(0))]
    assert 40 - LARGEST < sum(spent) <= 40


def sized(architecture: Architecture) -> float:
    return search.size(architecture, *SPACE)[0]


def test_evolution_goes_on_from_the_best_of_those_alive():
    """Of a sample as large as this the deepest of all eight is always the parent."""
    tried = search.evolution(depth, lambda a: 1.0, 20.0, SPACE, rng(1), population=8, sample=200)
    for i in range(8, 20):
        alive = tried[i - 8 : i]
        best = max(one.score for one in alive)
        assert any(one.score == best and differences(one.architecture, tried[i].architecture) == 1 for one in alive)
    assert sum(one.score for one in tried[-8:]) > sum(one.score for one in tried[:8])


def test_what_a_score_costs_is_what_it_computes():
    """In the operations of one image that goes through the network made by hand, head for all classes included."""
    step = P.search(0, "random_search")
    space = step.space()
    for architecture in (space.by_hand, Architecture(("5x5", "3x3 pooled"), 16, "none")):
        with counted() as operations:
            step.score(architecture)
        one = 2 * sum(multiplications(build(space.by_hand, space.n_classes, generator=rng(0))))
        assert operations.total / one == pytest.approx(step._cost_of(architecture), rel=0.15)


def test_a_mixture_of_one_strong_operation_is_that_operation():
    block = search.Mixture(1, HAND, rng(0))
    images = torch.rand(2, 1, 28, 28)
    equal = sum(operation(images) for operation in block.operations) / len(OPERATIONS)
    torch.testing.assert_close(block(images), equal)
    with torch.no_grad():
        block.strengths[2] = 100.0
    torch.testing.assert_close(block(images), block.operations[2](images))


def test_weights_learn_from_batches_and_strengths_from_episodes():
    def after(n_steps: int, batch: float, episode: float) -> dict[str, torch.Tensor]:
        model = search.mixture(2, HAND, rng(0))
        images, drawn = torch.rand(4, 1, 28, 28, generator=rng(1)), torch.rand(3, 2, 1, 28, 28, generator=rng(2))
        batches = repeat((batch * images, torch.tensor([0, 1, 0, 1])))
        episodes = repeat(Episode(torch.arange(3), episode * drawn, episode * drawn.flip(1)))
        search.differentiable(model, batches, episodes, HAND, n_steps=n_steps, learning_rate=0.01)
        return {name: p.detach() for name, p in model.named_parameters()}

    none, one, other_batch, other_episode = after(0, 1, 1), after(1, 1, 1), after(1, 0.5, 1), after(1, 1, 0.5)
    strengths = {name for name in none if name.endswith("strengths")}
    assert any(not torch.equal(none[name], one[name]) for name in strengths)
    assert any(not torch.equal(other_episode[name], one[name]) for name in strengths)
    for name in {*none} - strengths:
        assert torch.equal(other_episode[name], one[name])
    assert any(not torch.equal(other_batch[name], one[name]) for name in none if "conv" in name)


def test_the_strongest_operation_of_every_block_stays():
    model = search.mixture(2, HAND, rng(0))
    chosen = ["5x5", "3x3", "1x1 pooled", "3x3 pooled"]
    for block, name in zip(model.body, chosen, strict=False):
        block.strengths.data[list(OPERATIONS).index(name)] = 1.0
    found = search.differentiable(model, iter([]), iter([]), HAND, n_steps=0, learning_rate=0.1)
    assert found == HAND._replace(blocks=tuple(chosen))


def test_a_guide_is_carried_to_the_block_as_far_from_the_input():
    conv = build(HAND, 3, generator=rng(0))
    numbers = map(float, count(1))
    guide = Guide({name: torch.full_like(p, next(numbers) / 100) for name, p in conv.named_parameters()})
    same = carried(guide, conv)
    assert all(torch.allclose(same[name], g) for name, g in per_tensor(guide).items())
    two = build(Architecture(("5x5", "3x3"), 16, "none"), 3, generator=rng(0))
    there = carried(guide, two)
    means = {name: g.mean().item() for name, g in there.items()}
    assert means["body.conv0.weight"] == pytest.approx(guide["body.conv0.weight"].mean().item())
    assert means["body.conv1.weight"] == pytest.approx(guide["body.conv3.weight"].mean().item())  # the last of both
    assert {name: p.shape for name, p in two.named_parameters()} == {name: g.shape for name, g in there.items()}


@pytest.fixture(scope="module")
def frame():
    return experiment.run(P)


def test_the_experiment_is_complete_and_paired(frame):
    variants = [*ArchitectureVariant._fields]
    tested = frame[frame["metric"] == "accuracy"]
    assert (tested.groupby(variants).size() == 6).all() and tested.groupby(variants).ngroups == len(P.variants()) == 35
    found = frame[frame["metric"] == "found_parameters"].set_index("found_by")["architecture"]
    assert found["by_hand"] == str(HAND) and len(found) == 6
    tried = frame[frame["metric"] == "tried_score"]
    for by in ("random_search", "evolution"):  # the best of those tried is what was found
        mine = tried[tried["found_by"] == by]
        assert len(mine) > 8
        assert found[by] in set(mine.loc[mine["value"] == mine["value"].max(), "architecture"])
    words = experiment.verdict(frame)
    assert words.count("plain fine-tuning, minus made by hand") == 5 and "Guided minus carried" in words


def test_steps_are_read_back_from_their_json():
    for step in P.preparations():
        assert from_command(step.command()) == step


def test_the_figures_name_every_search_and_method(frame, tmp_path):
    records.write(str(tmp_path), "table", frame, {})
    table = records.read(tmp_path, "table")
    for name, draw in figures.EXPERIMENT.figures.items():
        figure = draw(table)
        save(figure, tmp_path / f"{name}.png")
        (legend,) = figure.legends
        said = {text.get_text() for text in legend.get_texts()}
        names = (label for label, _, _ in figures.FOUND_BY.values())
        assert said == {*names} if name == "architectures" else len(said) == len(figures.MINUS_PLAIN)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"searches": ["darts"]}, "searches.0 = 'darts'"),
        ({"search_budget": 0}, "search_budget = 0"),
        ({"searches": []}, "searches = []"),
        ({"heads": ["zero", "random"]}, "heads"),
    ],
)
def test_a_wrong_parameter_is_named(wrong, message):
    with pytest.raises(ParameterError, match=re.escape(message)):
        ArchitectureParameters.parse(SMALL | wrong)


def test_a_budget_for_less_than_one_network_is_named(tmp_path):
    step = P.search(0, "evolution").model_copy(update={"budget": 0.5})
    with pytest.raises(ParameterError, match=r"search_budget = 0.5: at least \d+\.\d"):
        step.make(tmp_path)
