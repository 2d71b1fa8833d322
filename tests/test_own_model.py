"""A reader's own network, with everything that networks and training loops have, scouted and guided."""

import copy
import math
from itertools import product

import pandas as pd
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Subset, TensorDataset, default_collate

from experiments.e05_own_model import figures
from experiments.e05_own_model import run as own_model
from experiments.e05_own_model.resnet import ResNet
from experiments.e05_own_model.run import OwnModelParameters
from experiments.parameters import ParameterError
from gtl_core import Guide, Guided, scout
from gtl_core.tasks import class_subsets, indices, rng
from gtl_core.training import fit

N_WAY = 3


def resnet(n_classes: int = N_WAY) -> ResNet:
    return ResNet(n_classes, (4, 4, 8), generator=rng(0))


class ViT(nn.Module):
    """The smallest thing with patches, attention and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, 8, 7, stride=7)
        self.position = nn.Parameter(torch.zeros(1, 16, 8))
        self.encoder = nn.TransformerEncoderLayer(8, nhead=2, dim_feedforward=16, dropout=0.2, batch_first=True)
        self.head = nn.Linear(8, N_WAY)

    def forward(self, x):
        return self.head(self.encoder(self.patches(x).flatten(2).mT + self.position).mean(1))


def labelled_dataset(n_classes: int = 6, n_each: int = 8) -> TensorDataset:
    """Every example is filled with its own number."""
    n = n_classes * n_each
    return TensorDataset(
        torch.arange(n).float()[:, None, None, None].expand(n, 1, 28, 28) / n, torch.arange(n) % n_classes
    )


def task(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.rand(6, 1, 28, 28, generator=rng(seed)), torch.arange(6) % N_WAY


def sgd(model: nn.Module, lr: float = 0.05) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)


def train_one(model, examples):
    fit(model, *examples, sgd(model), epochs=3)


def guide_of(model: nn.Module, low: float = 0.0) -> Guide:
    """Random values, and g = 0 and g = 1 among them."""
    values = {n: torch.rand(p.shape, generator=rng(1, n)).clamp(low, 1) for n, p in model.named_parameters()}
    for g in values.values():
        g.view(-1)[0], g.view(-1)[-1] = low, 1
    return Guide(values)


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: t.clone() for name, t in model.state_dict().items()}


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


# --- tasks for scouts, defined in three ways --------------------------------------------------------


def test_class_subsets_hold_the_examples_of_their_classes():
    dataset = labelled_dataset()
    tasks = class_subsets(dataset, n_way=N_WAY, n_tasks=5, generator=rng(0))
    for subset in tasks:
        pairs = {(new, int(dataset[i][1])) for new, i in zip(subset.labels, subset.indices, strict=True)}
        assert sorted(new for new, _ in pairs) == list(range(N_WAY))  # each label stands for one class ...
        assert len({old for _, old in pairs}) == N_WAY and len(subset) == N_WAY * 8  # ... and all of it
        assert len(set(subset.indices)) == len(subset)
    assert len({frozenset(subset.indices) for subset in tasks}) > 1


def test_class_subsets_depend_on_their_generator_only():
    draw = [class_subsets(labelled_dataset(), 2, 3, rng(seed), n_shot=4) for seed in (0, 0, 1)]
    assert [t.indices for t in draw[0]] == [t.indices for t in draw[1]] != [t.indices for t in draw[2]]
    assert all(len(t) == 2 * 4 and t.labels == [0] * 4 + [1] * 4 for t in draw[0])


def test_class_subsets_may_keep_the_labels_of_a_head_for_all_classes():
    dataset = labelled_dataset()
    for subset in class_subsets(dataset, 2, 4, rng(0), relabel=False):
        assert [label for _, label in subset] == [int(dataset[i][1]) for i in subset.indices]


def test_labels_may_be_given_so_that_the_dataset_is_not_read():
    class Unread(torch.utils.data.Dataset):
        def __len__(self):
            return 4

        def __getitem__(self, i):
            raise AssertionError("read")

    (subset,) = class_subsets(Unread(), 2, 1, rng(0), labels=[7, 9, 7, 9])
    assert sorted(subset.indices) == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="3 labels for 4 examples"):
        class_subsets(Unread(), 2, 1, rng(0), labels=[7, 9, 7])


NAMES = ("cat", "dog", "emu")
LABELS = {
    "numbers": [0, 1, 2, 0, 1, 2],
    "strings": [NAMES[i % 3] for i in range(6)],
    "tensors": [torch.tensor(i % 3) for i in range(6)],
    "one-hot": [torch.eye(3)[i % 3] for i in range(6)],
    "lists": torch.eye(3)[torch.arange(6) % 3].tolist(),
}


@pytest.mark.parametrize("labels", LABELS.values(), ids=LABELS)
@pytest.mark.parametrize("key", ["", "label", "target"])
def test_labels_of_any_kind_in_pairs_and_in_dictionaries(labels, key):
    """Example i is the number i; its class is i % 3."""
    examples = [{"x": i, key: label} if key else (i, label) for i, label in enumerate(labels)]
    (subset,) = class_subsets(examples, 2, 1, rng(0), **({"key": key} if key else {}))
    got = [(e["x"], e[key]) if key else e for e in subset]
    assert sorted({label for _, label in got}) == [0, 1] and len(got) == 4
    assert all(len({i % 3 for i, label in got if label == new}) == 1 for new in (0, 1))
    (kept,) = class_subsets(examples, 2, 1, rng(0), relabel=False, **({"key": key} if key else {}))
    first = kept[0][key] if key else kept[0][1]
    assert first == (NAMES[kept.indices[0] % 3] if isinstance(labels[0], str) else kept.indices[0] % 3)


def test_a_dictionary_without_the_label_is_refused_with_what_it_has():
    with pytest.raises(ValueError, match="key = 'label': an example has 'x', 'fine_label'"):
        class_subsets([{"x": 1, "fine_label": 0}], 1, 1, rng(0))


def test_a_data_loader_sees_the_task_s_own_labels():
    (subset,) = class_subsets(labelled_dataset(), N_WAY, 1, rng(0), n_shot=4)
    batches = list(DataLoader(subset, batch_size=5))
    inputs, labels = default_collate(list(subset))
    assert torch.equal(torch.cat([y for _, y in batches]), labels) and labels.tolist() == subset.labels
    assert torch.equal(torch.cat([x for x, _ in batches]), inputs)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_way": 7}, "n_way = 7: must be from 1 to 6, the number of classes"),
        ({"n_way": 0}, "n_way = 0"),
        ({"n_way": 2, "n_shot": 9}, "n_shot = 9: must be from 1 to 8, the size of the smallest class"),
    ],
)
def test_class_subsets_refuse_what_the_dataset_does_not_have(settings, message):
    with pytest.raises(ValueError, match=message):
        class_subsets(labelled_dataset(), n_tasks=1, generator=rng(0), **settings)


def test_indices_are_lists_with_ranges():
    assert indices("0-3,7, 10 - 11") == [0, 1, 2, 3, 7, 10, 11]
    assert indices("5") == [5]
    for wrong in ("", "a", "3-1", "1-2-3", "-3", "1,,2", "1.5", "٣", "²"):
        with pytest.raises(ValueError, match="must be like '7' or '0-99'"):
            indices(wrong)
    with pytest.raises(ValueError, match="twice"):
        indices("0-5,3")


def loss_one(model):
    return model(task()[0]).square().mean()


def loss_two(model):
    return -model(task(1)[0]).log_softmax(1)[:, 0].mean()


def minimise(model, loss):
    optimizer = sgd(model)
    for _ in range(2):
        optimizer.zero_grad()
        loss(model).backward()
        optimizer.step()


def train_on(model, dataset):
    train_one(model, default_collate(list(dataset)))


def with_three_classes() -> TensorDataset:
    return labelled_dataset(N_WAY, 12)


@pytest.mark.parametrize(
    ("tasks", "train"),
    [
        (lambda: class_subsets(labelled_dataset(), N_WAY, 3, rng(0)), train_on),
        (lambda: [Subset(with_three_classes(), indices(r)) for r in ("0-5,12-17", "6-11", "18-35")], train_on),
        (lambda: (task(seed) for seed in range(3)), train_one),
        (lambda: [loss_one, loss_two, loss_one], minimise),
    ],
    ids=["class subsets", "index lists", "datasets from a generator", "loss functions"],
)
def test_scouts_go_wherever_they_are_sent(tasks, train):
    model = resnet()
    before = state(model)
    displacement = scout(model, tasks(), train)
    assert displacement.count == 3 and same(before, state(model))
    assert displacement.mean_square["layer1.conv1.weight"].any() and displacement.mean_square["fc.weight"].any()
    assert "bn1.running_mean" not in displacement.guide()


# --- parts of a network without a guide: new heads, adapters, some layers ---------------------------


def test_a_new_head_of_another_shape_learns_freely():
    zero_point = resnet()
    guide = scout(zero_point, [task(1)], train_one).guide()
    model, plain = (copy.deepcopy(zero_point) for _ in range(2))
    model.fc = nn.Linear(8, 2 * N_WAY)
    plain.fc = copy.deepcopy(model.fc)
    misfit = r"guide has shape \(3, 8\) for 'fc.weight', the model \(6, 8\) \(guide.without"
    for unguided in ("error", "free", "frozen"):
        with pytest.raises(ValueError, match=misfit):
            Guided(sgd(model), model, guide, unguided=unguided)
    body = guide.without("fc")
    assert set(guide) - set(body) == {"fc.weight", "fc.bias"} and body.metadata == guide.metadata
    with pytest.raises(ValueError, match=r"guide has no entry for 'fc.weight' \(guide.without"):
        Guided(sgd(model), model, body)
    inputs, labels = task()
    before = state(model)
    fit(model, inputs, labels, Guided(sgd(model), model, body, unguided="free"), epochs=1)
    fit(plain, inputs, labels, sgd(plain), epochs=1)
    moved, expected = dict(model.named_parameters()), dict(plain.named_parameters())
    assert all(
        torch.equal(moved[n], expected[n]) and not torch.equal(moved[n], before[n]) for n in ("fc.weight", "fc.bias")
    )
    for name, g in body.items():
        torch.testing.assert_close(moved[name], torch.lerp(before[name], expected[name], g))


def test_adapters_alone_are_guided_and_the_rest_is_frozen():
    """LoRA: the layer stays, a product of two thin matrices is added to it."""

    class LoRA(nn.Module):
        def __init__(self, layer: nn.Linear, rank: int = 2) -> None:
            super().__init__()
            self.layer = layer
            self.lora_a = nn.Parameter(torch.ones(rank, layer.in_features))
            self.lora_b = nn.Parameter(torch.zeros(layer.out_features, rank))

        def forward(self, x):
            return self.layer(x) + x @ self.lora_a.T @ self.lora_b.T

    model = resnet()
    model.fc = LoRA(model.fc)
    adapters = {n: torch.full_like(p, 0.5) for n, p in model.named_parameters() if "lora" in n}
    assert set(adapters) == {"fc.lora_a", "fc.lora_b"}
    before = state(model)
    fit(model, *task(), Guided(sgd(model), model, Guide(adapters), unguided="frozen"), epochs=3)
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert moved == set(adapters)


def test_unguided_on_the_gradient():
    inputs, labels = task()
    for unguided, moves in (("free", True), ("frozen", False)):
        model = resnet()
        before = state(model)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        guide = guide_of(model).without("layer2")
        fit(model, inputs, labels, Guided(optimizer, model, guide, unguided=unguided, on="gradient"), epochs=2)
        assert torch.equal(model.layer2.conv1.weight, before["layer2.conv1.weight"]) is not moves
        assert not torch.equal(model.fc.weight, before["fc.weight"])


def test_names_are_checked():
    model = resnet()
    guide = guide_of(model)
    with pytest.raises(ValueError, match=r"guide has no entry for 'layer'$"):
        guide.without("layer")  # part of a name is not a name
    with pytest.raises(ValueError, match=r"guide has an entry for 'head\.weight', which the model does not have"):
        Guided(sgd(model), model, Guide({**guide, "head.weight": torch.ones(1)}), unguided="free")
    with pytest.raises(ValueError, match="unguided = 'fre': must be 'error', 'free' or 'frozen'"):
        Guided(sgd(model), model, guide, unguided="fre")
    assert set(guide.without("layer1", "layer1.conv1", "fc.bias")) == {
        n for n in guide if not n.startswith("layer1.") and n != "fc.bias"
    }


# --- what networks have ----------------------------------------------------------------------------


def test_batchnorm_follows_the_data_and_its_affine_parameters_the_guide():
    model, plain = resnet(), resnet()
    before = state(model)
    fit(model, *task(), Guided(sgd(model), model, guide_of(model)), epochs=1)
    fit(plain, *task(), sgd(plain), epochs=1)
    after, expected = state(model), state(plain)
    for name in ("bn1.running_mean", "bn1.running_var", "bn1.num_batches_tracked"):
        assert torch.equal(after[name], expected[name]) and not torch.equal(after[name], before[name])
    g = guide_of(model)["bn1.weight"]
    torch.testing.assert_close(after["bn1.weight"], torch.lerp(before["bn1.weight"], expected["bn1.weight"], g))


def test_dropout_draws_the_same_noise_with_a_guide_as_without():
    torch.manual_seed(0)
    plain = ViT()
    model = copy.deepcopy(plain)
    ones = Guide({n: torch.ones_like(p) for n, p in model.named_parameters()})
    for net, optimizer in ((plain, sgd(plain)), (model, Guided(sgd(model), model, ones))):
        torch.manual_seed(1)
        fit(net, *task(), optimizer, epochs=3)
    assert same(state(plain), state(model))


def test_a_vision_transformer_is_scouted_and_guided():
    torch.manual_seed(0)
    model = ViT()
    guide = scout(model, [task(seed) for seed in range(2)], train_one).guide()
    assert set(guide) == {name for name, _ in model.named_parameters()} and guide["position"].any()
    before = state(model)
    fit(model, *task(), Guided(torch.optim.AdamW(model.parameters(), lr=1e-2), model, guide), epochs=2)
    assert not same(before, state(model))


def test_tied_weights_have_one_guide_and_step_once():
    model = resnet()
    model.layer2 = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1))
    model.layer2[2].weight = model.layer2[0].weight
    guide = scout(model, [task(1)], train_one).guide()
    assert "layer2.0.weight" in guide and "layer2.2.weight" not in guide
    plain = copy.deepcopy(model)
    before = state(model)
    fit(model, *task(), Guided(sgd(model), model, guide), epochs=1)
    fit(plain, *task(), sgd(plain), epochs=1)
    assert model.layer2[2].weight is model.layer2[0].weight
    step = torch.lerp(before["layer2.0.weight"], plain.layer2[0].weight, guide["layer2.0.weight"])
    torch.testing.assert_close(model.layer2[2].weight, step)


def test_frozen_layers_stay_frozen_for_scouts_and_after():
    model = resnet()
    model.layer1.requires_grad_(False)
    guide = scout(model, [task(1)], train_one).guide()
    assert not any(g.any() for n, g in guide.items() if n.startswith("layer1."))
    assert guide["fc.weight"].any()
    before = state(model.layer1)
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-2)
    fit(model, *task(), Guided(optimizer, model, guide), epochs=2)
    assert all(torch.equal(before[n], p) for n, p in model.layer1.named_parameters())


# --- what training loops have ----------------------------------------------------------------------


def test_parameter_groups_keep_their_rates_and_decays():
    def groups(model):
        body = [p for n, p in model.named_parameters() if not n.startswith("fc.")]
        return torch.optim.AdamW(
            [{"params": body, "lr": 1e-3, "weight_decay": 0.1}, {"params": model.fc.parameters(), "lr": 1e-1}]
        )

    model, plain = resnet(), resnet()
    before, guide = state(model), guide_of(resnet())
    fit(model, *task(), Guided(groups(model), model, guide), epochs=1)
    fit(plain, *task(), groups(plain), epochs=1)
    for name, p in plain.named_parameters():
        torch.testing.assert_close(dict(model.named_parameters())[name], torch.lerp(before[name], p, guide[name]))


def test_mixed_precision_guides_the_full_precision_weights():
    model, plain = resnet(), resnet()
    before, guide = state(model), guide_of(resnet())
    for net, optimizer in ((plain, sgd(plain)), (model, Guided(sgd(model), model, guide))):
        inputs, labels = task()
        scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
        with torch.autocast("cpu", torch.bfloat16):
            logits = net(inputs)
        assert logits.dtype == torch.bfloat16
        scaler.scale(cross_entropy(logits.float(), labels)).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
    for name, p in plain.named_parameters():
        assert p.dtype == torch.float32 and not torch.equal(p, before[name])
        torch.testing.assert_close(dict(model.named_parameters())[name], torch.lerp(before[name], p, guide[name]))


def test_half_precision_weights_are_guided_in_their_own_precision():
    model = resnet().to(torch.bfloat16)
    guide = Guide(
        {n: torch.ones(p.shape) if n == "fc.weight" else torch.zeros(p.shape) for n, p in model.named_parameters()}
    )
    before = state(model)
    inputs, labels = task()
    fit(model, inputs.bfloat16(), labels, Guided(sgd(model), model, guide), epochs=2)
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert moved == {"fc.weight"} and model.fc.weight.dtype == torch.bfloat16


def test_accumulated_and_clipped_gradients_make_one_guided_step():
    """Two half batches, then one step: the step of the whole batch (without BatchNorm, whose statistics differ)."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(28 * 28, N_WAY))
    whole, guide = copy.deepcopy(model), guide_of(model)
    inputs, labels = task()
    optimizer = Guided(sgd(model), model, guide)
    for half in (slice(0, 3), slice(3, 6)):
        (cross_entropy(model(inputs[half]), labels[half]) / 2).backward()
    norm = nn.utils.clip_grad_norm_(model.parameters(), 0.01)
    assert norm > 0.01
    optimizer.step()
    other = Guided(sgd(whole), whole, guide)
    cross_entropy(whole(inputs), labels).backward()
    nn.utils.clip_grad_norm_(whole.parameters(), 0.01)
    other.step()
    for p, q in zip(model.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(p, q)


def test_a_schedule_is_followed_and_survives_a_checkpoint(tmp_path):
    def start():
        model = resnet()
        optimizer = Guided(torch.optim.AdamW(model.parameters(), lr=0.01), model, Guide.load(tmp_path / "guide", model))
        return model, optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=6)

    def train(model, optimizer, schedule, steps):
        for step in steps:
            fit(model, *task(step), optimizer, epochs=1)
            schedule.step()
        return state(model)

    guide_of(resnet()).save(tmp_path / "guide")
    parts = start()
    train(*parts, range(3))
    torch.save([part.state_dict() for part in parts], tmp_path / "checkpoint")
    expected = train(*parts, range(3, 6))
    assert parts[1].param_groups[0]["lr"] == pytest.approx(0.01 * (1 + math.cos(math.pi)) / 2)
    again = start()
    for part, saved in zip(again, torch.load(tmp_path / "checkpoint"), strict=True):
        part.load_state_dict(saved)
    assert same(expected, train(*again, range(3, 6)))


def test_a_compiled_network_is_guided_through_the_plain_one():
    model = resnet()
    compiled = torch.compile(model, backend="eager")
    before = state(model)
    fit(compiled, *task(), Guided(sgd(model), model, guide_of(model)), epochs=1)
    plain = resnet()
    fit(plain, *task(), sgd(plain), epochs=1)
    for name, p in plain.named_parameters():
        expected = torch.lerp(before[name], p, guide_of(model)[name])
        torch.testing.assert_close(dict(model.named_parameters())[name], expected)


# --- devices ---------------------------------------------------------------------------------------


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_scouts_guide_and_training_stay_on_the_gpu_and_guides_travel(tmp_path):
    model = resnet().cuda()
    tasks = [tuple(t.cuda() for t in task(seed)) for seed in range(2)]
    guide = scout(model, tasks, train_one).guide()
    assert {g.device.type for g in guide.values()} == {"cuda"}
    guide.save(tmp_path / "guide")
    on_cpu = resnet()
    Guided(sgd(on_cpu), on_cpu, Guide.load(tmp_path / "guide", on_cpu))
    loaded = Guide.load(tmp_path / "guide", model)
    assert all(torch.equal(loaded[n], g) and loaded[n].device == g.device for n, g in guide.items())
    before = state(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    fit(model, *tasks[0], Guided(optimizer, model, loaded.without("fc"), unguided="free"), epochs=2)
    assert not same(before, state(model))


# --- the experiment --------------------------------------------------------------------------------

SMALL = {
    "seed": 0,
    "results": "unused",
    "prepared": "",
    "workers": 1,
    "dataset": "glyphs",
    "n_seeds": 1,
    "n_episodes": 2,
    "n_tuning_episodes": 1,
    "n_way": 2,
    "n_shot": 1,
    "n_query": 2,
    "epochs": 2,
    "learning_rates": [0.01, 0.1],
    "pretraining_epochs": 0,
    "n_scouts": 2,
    "scout_n_shot": 2,
    "scout_epochs": 1,
    "scout_learning_rate": 0.1,
}


def test_index_lists_are_neighbours_with_labels_of_their_own():
    p = OwnModelParameters.parse(SMALL | {"n_way": 3})
    images, labels = torch.arange(9 * 20), torch.arange(9).repeat_interleave(20)
    first, second = own_model.scouts_on_indices(p, images, labels, seed=0)
    assert first.indices == [0, 1, 20, 21, 40, 41] and second.indices == [60, 61, 80, 81, 100, 101]
    assert default_collate(list(second))[1].tolist() == [0, 0, 1, 1, 2, 2]


def test_a_network_that_sees_which_way_up_has_no_turning_loss():
    image = torch.tensor([[[[1.0, 0], [0, 0]]]])  # ink in one corner, which travels counterclockwise

    def corner(images):
        return 100 * images.flatten(1)[:, [0, 2, 3, 1]]

    assert own_model.turning_loss(corner, image, turns=4).item() == pytest.approx(0, abs=1e-6)
    undecided = own_model.turning_loss(lambda images: torch.zeros(len(images), 3), image, turns=3)
    assert undecided.item() == pytest.approx(math.log(3))


def test_frozen_trains_the_head_alone_and_nothing_changes_the_zero_point():
    model = resnet()
    still = Guide({n: torch.zeros_like(p) for n, p in model.named_parameters()})
    scouted = own_model.ScoutedResNet(model, {"guided_classes": still})
    before, examples = state(model), task()
    for method in ("frozen", "plain", "guided_classes"):
        own_model.fine_tune(scouted, method, 0.1, examples, examples, epochs=2)
    assert same(before, state(model))


def test_the_experiment_is_complete_and_repeatable():
    p = OwnModelParameters.parse(SMALL)
    frame = own_model.run(p)
    assert frame.equals(own_model.run(p))
    sizes = frame.groupby(["method", "metric"]).size()
    for method in own_model.METHODS:
        assert sizes[method, "validation_first"] == len(p.learning_rates) and sizes[method, "accuracy"] == p.n_episodes
    assert frame[frame["metric"] == "accuracy"]["value"].between(0, 1).all()
    assert {m for m, metric in sizes.index if metric == "guide_fc"} == {m.name for m in own_model.BY_SCOUTS}


def tiny() -> pd.DataFrame:
    """Two networks, three episodes, three rates; accuracy rises by 0.1 from method to method, on every episode."""
    rows = []
    for (i, method), seed in product(enumerate(own_model.METHODS), (0, 1)):
        best = (0.01, 0.1, 0.1, 0.1, 0.1)[i]
        rows += [(seed, method, r, None, "validation_first", 0.9 * (r == best)) for r in (0.01, 0.1, 1.0)]
        rows += [(seed, method, best, k, "accuracy", 0.1 * i + 0.2 * seed + 0.3 * k) for k in (0, 1, 2)]
        if method.startswith("guided"):
            rows += [(seed, method, best, None, f"guide_{part}", 0.01 * i) for part in ("conv1", "fc")]
    return pd.DataFrame(rows, columns=["seed", "method", "learning_rate", "task", "metric", "value"])


def test_verdicts_are_differences_on_the_same_episodes_and_name_rates_at_the_edge():
    table = own_model.verdicts(tiny()).set_index("comparison")
    assert len(table) == 7
    for column in ("low", "mean", "high"):  # seeds and episodes differ, their differences do not
        assert table.loc["guided_losses - frozen", column] == pytest.approx(0.4)
        assert table.loc["plain - frozen", column] == pytest.approx(0.1)
    assert table.loc["guided_classes - plain", "n"] == "2 networks x 3 episodes"
    at_the_edge = {name for name, edge in table["at_the_edge"].items() if edge}
    assert at_the_edge == {name for name in table.index if name.endswith("frozen")}  # 0.01 of 0.01, 0.1 and 1
    assert set(table["at_the_edge"]) == {"frozen", ""}


def test_the_figure_shows_every_method():
    (legend,) = (figure := figures.own_model(tiny())).legends
    assert [text.get_text() for text in legend.get_texts()] == [m.label for m in own_model.METHODS.values()]
    accuracies, rates, guides = figure.axes
    assert [line.get_xdata()[0] for line in accuracies.lines] == pytest.approx([40, 50, 60, 70, 80])
    assert len(rates.lines) == 5 and [line.get_ydata()[1] for line in guides.lines] == pytest.approx([0.02, 0.03, 0.04])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_shot": 15, "n_query": 6}, "n_shot [+] n_query = 21: at most 20"),
        ({"n_way": 5000}, "n_way = 5000: at most"),
        ({"n_scouts": 5000}, "n_scouts = 5000: at most"),
    ],
)
def test_impossible_parameters_are_named(changes, message):
    with pytest.raises(ParameterError, match=message):
        own_model.run(OwnModelParameters.parse(SMALL | changes))
