from concurrent.futures import ThreadPoolExecutor

import pandas as pd
import pytest

from experiments.e09_scaling import figures
from experiments.e09_scaling import run as scaling
from experiments.e09_scaling.run import Workload

VALUES = {
    "seed": 0,
    "sizes": [100, 400, 1600],
    "batch_sizes": [2, 8],
    "n_scouts": [2, 4],
    "n_workers": [1, 2],
    "steps": [1, 3],
    "repeats": 1,
    "target_size": 7e9,
    "target_scouts": 1000,
    "tokens_per_scout": 1e6,
    "pretraining_tokens": 2e12,
    "lora_share": 0.01,
    "gpus": 64,
    "gpus_per_scout": 2,
    "gpu_flops": 1e15,
    "utilisation": 0.5,
    "gpu_memory": 80e9,
    "bandwidth": 50e9,
    "weight_bytes": 2,
    "gradient_bytes": 2,
    "optimizer_bytes": 12,
    "results": "results/manual",
    "prepared": "",
    "workers": 1,
}
PARAMETERS = scaling.ScalingParameters.parse(VALUES)


def test_the_model_finds_the_coefficients_that_made_the_times():
    every = scaling.workloads(PARAMETERS)
    true = dict(zip(scaling.terms(every[0]), (1e-4, 1e-9, 2e-9, 1e-9, 1e-4, 3e-9, 0.0, 1e-9), strict=True))
    seconds = [scaling.predict(true, workload) for workload in every]
    assert scaling.fit_model(every, seconds) == pytest.approx(true, rel=1e-6, abs=1e-14)


def test_twice_and_half_are_equally_wrong():
    """One workload that once took 1 s and once 4: the model says 2, whose ratios to both are equal."""
    workload = scaling.workloads(PARAMETERS)[0]
    model = scaling.fit_model([workload, workload], [1.0, 4.0])
    assert scaling.predict(model, workload) == pytest.approx(2, rel=1e-3)


def test_no_coefficient_is_negative():
    every = scaling.workloads(PARAMETERS)
    falling = [1 / workload.n_parameters for workload in every]  # as no cost can do
    assert min(scaling.fit_model(every, falling).values()) >= 0


def test_the_work_of_a_scouting_by_hand():
    work = scaling.terms(Workload(n_parameters=100, batch_size=8, steps=4, n_scouts=5, n_workers=2))
    assert list(work.values()) == [12, 9600, 1200, 1200, 5, 500, 5, 500]  # three scouts in a row of four steps each
    alone = scaling.terms(Workload(n_parameters=100, batch_size=8, steps=4, n_scouts=5, n_workers=1))
    assert list(alone.values()) == [20, 16000, 2000, 0, 5, 500, 0, 0]  # nobody beside it, and nothing is sent


def test_a_network_is_of_the_size_that_was_asked_for():
    for size in (10_000, 1_000_000):
        assert sum(p.numel() for p in scaling.perceptron(size).parameters()) == pytest.approx(size, rel=0.03)


def test_needs_by_hand():
    full, lora = (scaling.needs(PARAMETERS, method) for method in ("full", "lora"))
    assert full["weights"] == lora["weights"] == 14e9
    assert (full["optimizer"], lora["optimizer"]) == (84e9, pytest.approx(0.84e9))
    assert full["displacement"] == 98e9  # 2 bytes of the zero point and three sums of 4 bytes
    assert full["compute"] == pytest.approx(6 * 7e9 * 1e9 / 3.2e16)
    assert lora["compute"] == pytest.approx(full["compute"] * 4 / 6)
    assert full["send_all"] == pytest.approx(1000 * 28e9 / 50e9)
    assert full["merge_sums"] == pytest.approx(2 * 3 * 28e9 / 50e9)


def test_limits_compare_needs_with_what_there_is():
    rows = [
        {"metric": metric, "method": method, "value": value}
        for method in ("full", "lora")
        for metric, value in scaling.needs(PARAMETERS, method).items()
    ]
    limits = scaling.limits(pd.DataFrame(rows), PARAMETERS)
    assert limits.loc["memory", "full"] == pytest.approx((14 + 14 + 84 + 98) / 160)
    assert limits.loc["send_all", "full"] == pytest.approx(560 / (6 * 7e9 * 1e9 / 3.2e16))


def test_every_scout_is_sent_there_and_back():
    with ThreadPoolExecutor(1) as pool:
        counting = scaling._Counting(pool)
        scaling.carry_out(Workload(40_000, 2, 1, 3, 2), PARAMETERS, counting)
    n = sum(p.numel() for p in scaling.perceptron(40_000).parameters())
    assert 1 < counting.sent / (3 * 2 * 4 * n) < 1.2


def tiny() -> pd.DataFrame:
    """A table without measuring: the times of a known model, eight copies of memory, four bytes sent each way."""
    every = scaling.workloads(PARAMETERS)
    model = dict(zip(scaling.terms(every[0]), (1e-4, 1e-9, 2e-9, 0.0, 0.0, 3e-9, 0.0, 1e-9), strict=True))
    rows = []
    for w in every:
        sent, seconds = (w.n_workers > 1) * 8 * w.n_parameters * w.n_scouts, scaling.predict(model, w)
        rows += [("measured", *w, "seconds", seconds), ("measured", *w, "sent_bytes", sent)]
        rows += [
            (method, *w, "seconds", factor * seconds) for method, factor in (("fitted", 1.1), ("held_out", 1 / 1.5))
        ]
        if w.n_workers == 1 and w.batch_size == 2 and w.steps == 1:
            rows.append(("measured", *w, "peak_bytes", 8 * 4 * w.n_parameters))
    empty = [None] * 5
    rows += [("assumed", *empty, "copies", 8), ("assumed", *empty, "gpu_memory", 80e9)]
    for method in scaling.TRAININGS:
        rows += [(method, *empty, metric, value) for metric, value in scaling.needs(PARAMETERS, method).items()]
    return pd.DataFrame(rows, columns=["method", *Workload._fields, "metric", "value"]).assign(seed=0)


def test_errors_are_factors_either_way_and_peaks_are_relative_to_what_was_measured():
    errors = scaling.errors(tiny())
    assert errors["fitted"].to_numpy() == pytest.approx(1.1) and errors["held_out"].to_numpy() == pytest.approx(1.5)
    assert scaling.peaks(tiny()).to_numpy() == pytest.approx(8)


def test_the_figures_show_what_the_table_has():
    seconds, memory, sent = figures.scaling(tiny()).axes
    assert len(seconds.lines) == 2 * 3 + 2  # measured, fitted, held out by each number of workers; two for the legend
    points, copies = memory.lines[0].get_xydata(), memory.lines[-1].get_xydata()
    assert points == pytest.approx(copies)  # eight copies, as the dashed line says
    assert sent.lines[0].get_ydata() == pytest.approx(2 * sent.lines[1].get_ydata())
    memory, times = figures.scaling_cluster(tiny()).axes
    full, lora = (sum(part[i].get_width() for part in memory.containers) for i in (0, 1))
    assert (full, lora) == pytest.approx((14 + 196, 14 + 1.96))  # GB; LoRA trains a hundredth
    assert [bars.get_label() for bars in times.containers] == ["all parameters", "LoRA"]
