"""Cells and genes: the data, who serves which purpose, what is learned, and a tiny run of the experiment."""

import copy
import http.server
import threading
from functools import partial

import h5py
import numpy as np
import pandas as pd
import pytest
import torch

from experiments import data
from experiments.data import DataError, archives, genes
from experiments.data.genes import Cells, load_cells, simulated
from experiments.e14_genes import figures, verdicts
from experiments.e14_genes.methods import METHODS
from experiments.e14_genes.preparations import GenePretraining, GeneScouting, gene_network, split_types
from experiments.e14_genes.run import (
    GeneSetting,
    GenesParameters,
    GeneStart,
    GeneVariant,
    draws_of,
    run,
    tell_apart,
)
from experiments.parameters import ParameterError
from experiments.protocol import Job
from gtl_core import Guide, Guided
from gtl_core.training import fit

TINY = {
    "seed": 0, "results": "x", "prepared": "", "workers": 1, "cells": "simulated", "n_seeds": 2, "n_draws": 5,
    "n_tuning_draws": 2, "n_query": 40, "zero_points": ["types", "masked", "random"], "scouts": ["pairs", "clusters"],
    "optimizers": ["adam", "sgd"], "n_shots": [1, 5], "pretraining_steps": 5, "n_scouts": 2, "scout_n_shot": 4,
    "scout_epochs": 2, "epochs": 3, "adam_rates": [0.001, 0.01], "sgd_rates": [0.01, 0.1],
}  # fmt: skip
P = GenesParameters.parse(TINY)
STEP = GenePretraining(cells="simulated", seed=3, n_enough=20, zero_point="types", n_steps=2)


# --- data -----------------------------------------------------------------------------------------


def test_simulated_cells_are_always_the_same():
    one, other = simulated(), simulated()
    assert one.digest == other.digest != simulated(seed=1).digest
    assert one.expression.shape == (480, 300) and one.of_type(7).shape == (60, 300)
    depth = one.expression.expm1().sum(1)
    assert torch.allclose(depth, torch.tensor(1e4), rtol=1e-3)  # counts per 10,000 of the cell


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"expression": np.array([[0, 1], [np.nan, 0]])}, r"^x: the expression of gene 0 in cell 1 is nan$"),
        ({"expression": np.zeros((3, 2))}, r"^x: 2 types for expression of shape \(3, 2\)$"),
        ({"types": np.array([0, 5])}, "^x: a cell is of none of the 2 types$"),
    ],
)
def test_a_table_that_is_wrong_is_refused_in_one_line(change, said):
    whole = {"expression": np.zeros((2, 2)), "types": np.array([0, 1])}
    with pytest.raises(DataError, match=said):
        Cells.of("x", **whole | change, type_names=["a", "b"])


@pytest.fixture
def h5ad(tmp_path):
    """A small file of scanpy's form: two cells, three genes."""
    path = tmp_path / "served" / genes.FILE
    path.parent.mkdir()
    with h5py.File(path, "w") as file:
        file["X"] = np.ones((2, 3), np.float32)
        file["raw.X/data"], file["raw.X/indices"] = np.array([1.5, 2.5, 0.5], np.float32), np.array([0, 2, 1])
        file["raw.X/indptr"] = np.array([0, 2, 3])
        file["obs"] = np.array([(1,), (0,)], [("bulk_labels", "i1")])
        file["uns/bulk_labels_categories"] = np.array([b"B", b"T"])
    return path


def test_the_normalised_counts_of_a_file_are_read(h5ad):
    cells = genes.read_h5ad(h5ad)
    assert cells.expression.tolist() == [[1.5, 0, 2.5], [0, 0.5, 0]]
    assert cells.types.tolist() == [1, 0] and cells.type_names == ("B", "T")


def test_a_damaged_file_is_named(h5ad):
    h5ad.write_bytes(h5ad.read_bytes()[:700])
    with pytest.raises(DataError, match=r"is not scanpy's .*remove it and get it again"):
        genes.read_h5ad(h5ad)


def test_cells_are_downloaded_and_verified(h5ad, tmp_path, monkeypatch):
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=h5ad.parent)
    monkeypatch.setattr(http.server.SimpleHTTPRequestHandler, "log_message", lambda *arguments: None)
    monkeypatch.setattr(data, "FOLDER", tmp_path / "data")
    monkeypatch.setattr(archives, "RETRIES", 0)
    monkeypatch.delenv("GTL_DATA_DIR", raising=False)
    load_cells.cache_clear()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        monkeypatch.setattr(genes, "URL", f"http://127.0.0.1:{server.server_port}/")
        try:
            with pytest.raises(DataError, match=r"cannot download .*h5ad \(ValueError\)"):
                load_cells("pbmc")  # this is not the file that it should be
            monkeypatch.setattr(genes, "MD5", data.hashlib.md5(h5ad.read_bytes()).hexdigest())
            assert load_cells("pbmc").expression.shape == (2, 3)
        finally:
            server.shutdown()
            thread.join()
    load_cells.cache_clear()


# --- who serves which purpose ---------------------------------------------------------------------


def test_every_type_serves_one_purpose():
    cells = simulated()
    seen = set()
    for seed in range(20):
        split = split_types(cells, seed, 30)
        assert sorted([*split.pretraining, *split.validation, *split.test]) == list(range(8))
        seen |= set(split.test)
    assert len(seen) == 8


def test_types_with_too_few_cells_are_for_pretraining_alone():
    types = np.array([0] * 30 + [1] * 30 + [2] * 30 + [3] * 30 + [4] * 5 + [5] * 5 + [6])
    cells = Cells.of("x", np.zeros((len(types), 2)), types, "abcdefg")
    split = split_types(cells, 0, 30)
    assert split.pretraining == [4, 5]  # a type of a single cell can be told apart from nothing
    with pytest.raises(ParameterError, match=r"^x has 0 types with 31 cells or more and 2 others; needed are 4 and 2"):
        split_types(cells, 0, 31)


def test_genes_are_scaled_by_the_cells_for_pretraining():
    inputs, labels = STEP.examples()
    assert inputs.mean(0).abs().max() < 0.05 and labels.unique().tolist() == list(range(4))
    cells, split = STEP.scaled()
    assert cells.of_type(split.test[0]).mean(0).abs().max() > 0.5  # they are not at the mean of the others


@pytest.mark.parametrize("by", ["pairs", "clusters"])
def test_scouts_see_no_cell_of_a_type_that_is_kept_for_later(by):
    scouting = GeneScouting(pretraining=STEP, by=by, n_scouts=9, n_shot=5, epochs=1, optimizer="sgd")
    theirs = {tuple(cell.tolist()) for cell in STEP.examples()[0]}
    tasks = list(scouting.tasks())
    assert len(tasks) == 9
    for inputs, labels in tasks:
        assert {tuple(cell.tolist()) for cell in inputs} <= theirs
        assert labels.unique().tolist() == [0, 1] and len(inputs) == len(labels) <= 10


def test_scouts_without_labels_do_not_look_at_them():
    """Cells of a type that are two clusters are told apart, which no pair of types could ask for."""
    scouting = GeneScouting(pretraining=STEP, by="clusters", n_scouts=1, n_shot=5, epochs=1, optimizer="sgd")
    sides, types = scouting.sides(), STEP.examples()[1]
    assert len(sides.unique()) == 10 and any(len(sides[types == t].unique()) > 1 for t in types.unique())


# --- learning -------------------------------------------------------------------------------------


def job(method: str, setting: tuple[float, float], **variant) -> Job:
    base = {"zero_point": "types", "scouts": "none", "optimizer": "sgd", "n_shot": 5, "method": method}
    return Job(P, 3, GeneVariant(**base | variant), GeneSetting(*setting), "test")


def start(guide: Guide | None = None) -> GeneStart:
    return GeneStart(STEP, gene_network(300, 2, seed=1), guide, 0.05)


def test_draws_are_of_the_test_types_and_none_is_scored_that_was_learned():
    draws = draws_of(job("plain", (0.1, 0.1)), STEP)
    assert draws.support.shape == (10, 5, 300) and draws.query.shape == (110, 5, 300)
    assert draws.labels[:, 0].tolist() == [0] * 5 + [1] * 5 and draws.answers.sum() == 55
    for support, query in zip(draws.support.unbind(1), draws.query.unbind(1), strict=True):
        assert (torch.cdist(support, query) > 1e-3).all()


def test_copies_side_by_side_learn_as_one_alone():
    guide = Guide({name: torch.rand_like(p) for name, p in start().model.body.named_parameters(prefix="body")})
    at = job("guided_network", (0.3, 0.1), scouts="pairs")
    together, draws = tell_apart(at, start(guide)), draws_of(at, STEP)
    for i, score in enumerate(together):
        model = copy.deepcopy(start().model)
        groups = [{"params": model.body.parameters(), "lr": 0.3}, {"params": model.head.parameters(), "lr": 0.1}]
        guided = Guided(torch.optim.SGD(groups), model, guide, unguided="free")
        fit(model, draws.support[:, i], draws.labels[:, 0], guided, epochs=P.epochs)
        right = model(draws.query[:, i]).argmax(-1) == draws.answers[:, 0]
        assert score == pytest.approx((right[:55].float().mean() + right[55:].float().mean()).item() / 2, abs=0.01)


def test_a_body_at_rate_0_is_the_linear_probe():
    probe = tell_apart(job("frozen", (0.0, 0.05)), start())
    for method in ("plain", "l2_sp"):
        assert tell_apart(job(method, (0.0, 0.05)), start()) == pytest.approx(probe)
    assert tell_apart(job("plain", (0.3, 0.05)), start()) != pytest.approx(probe)


def test_whoever_names_one_type_only_is_right_by_half():
    """However many cells of it there are: the accuracy is balanced."""
    constant = start()
    torch.nn.init.zeros_(constant.model.head.weight)
    with torch.no_grad():
        constant.model.head.bias.copy_(torch.tensor([1e6, 0]))
    assert tell_apart(job("frozen", (0.0, 1e-9)), constant) == pytest.approx(0.5)


def test_a_stronger_penalty_or_threshold_changes_what_is_fitted():
    for name in ("logistic", "shrunken"):
        tries = METHODS[name].tries
        ends = [tell_apart(job(name, (value, 0.0)), start()) for value in (tries[0], tries[-1])]
        assert min(map(np.min, ends)) >= 0 and (ends[0] != ends[1]).any()


# --- the whole ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    return run(P)


def test_the_experiment_is_complete_and_paired(frame):
    test = frame[frame["metric"] == "accuracy"]
    variants = set(map(tuple, test[verdicts.KEY].drop_duplicates().to_numpy().tolist()))
    assert variants == set(map(tuple, P.variants()))
    assert (test.groupby(verdicts.KEY).size() == 10).all()  # two splits of five draws
    assert not test["value"].isna().any() and test["value"].between(0, 1).all()
    tuning = frame[frame["metric"] == "validation"].groupby(verdicts.KEY)[["learning_rate", "head_rate"]]
    tried = tuning.apply(lambda rows: len(rows.drop_duplicates()))
    assert set(tried) == {1, 2, 7}  # nothing to choose, two rates, seven values of what is on the genes
    assert "shrunken" not in set(test.loc[test["n_shot"] == 1, "method"])  # one cell has no deviation


def test_every_guide_is_compared_with_every_rival(frame):
    table = verdicts.guided_minus_rivals(frame)
    conditions = (3 * 2 + 1) * 2  # zero points, scouts, once more by descent; cells
    with_one_cell = conditions // 2
    assert len(table) == conditions * (len(METHODS) - 1) - with_one_cell
    mine = table[(table["rival"] == "plain") & (table["n_shot"] == 5)].iloc[0]
    where = {column: mine[column] for column in ("zero_point", "optimizer", "n_shot")}
    test = frame[(frame["metric"] == "accuracy") & (frame[list(where)] == pd.Series(where)).all(axis=1)]
    guided = test[(test["method"] == "guided_network") & (test["scouts"] == mine["scouts"])]["value"].mean()
    plain = test[test["method"] == "plain"]["value"].mean()
    assert mine["mean"] == pytest.approx(guided - plain, abs=1e-6)


def test_a_setting_at_an_edge_is_marked(frame):
    table = verdicts.settings(frame).set_index("method")
    assert not table.loc["centroid", "edge"].any() and table.loc["plain", "edge"].all()  # of two, each is one


def test_every_figure_shows_every_method_it_is_about(frame):
    figure = figures.genes(frame)
    assert {label.get_text() for label in figure.axes[0].get_yticklabels()} == {m.label for m in METHODS.values()}
    left, right = figures.genes_differences(frame).axes
    assert len(left.get_yticklabels()) == 14 and "one g" in right.get_title()
    assert len(figures.genes_rates(frame).axes) == 3


def test_a_wrong_parameter_is_named():
    with pytest.raises(ParameterError, match="scout_n_shot = 1: a scout needs at least 2 cells"):
        GenesParameters.parse(TINY | {"scout_n_shot": 1})
    with pytest.raises(ParameterError, match="cells = 'pbmcs'"):
        GenesParameters.parse(TINY | {"cells": "pbmcs"})
