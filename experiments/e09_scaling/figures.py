"""Figures of `09_scaling`."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from experiments.e09_scaling.run import TRAININGS, ScalingParameters, errors, peaks
from experiments.experiment import Experiment
from experiments.style import drawing, headline

WORKERS = {1: "#D55E00", 2: "#0072B2", 4: "#009E73", 8: "#CC79A7"}
PARTS = {"weights": "#666666", "gradients": "#E69F00", "optimizer": "#D55E00", "displacement": "#0072B2"}
TIMES = {
    "compute": "training",
    "send_all": "sending every\nscout's parameters",
    "merge_sums": "merging sums",
}


def scaling(frame: pd.DataFrame) -> Figure:
    """Measured seconds, memory and bytes sent against the number of parameters, with the cost model's lines."""
    with drawing(1, 3, 3.4, legend=()) as (figure, axes):
        seconds, memory, sent = axes[0]
        base = _base(frame)
        for n_workers, rows in base[base["metric"] == "seconds"].groupby("n_workers"):
            color = WORKERS.get(n_workers, "black")
            label = f"{n_workers:g} worker{'s' * (n_workers > 1)}"
            for method, look in (
                ("measured", {"marker": "o", "linestyle": "none", "markersize": 5, "label": label}),
                ("fitted", {"linestyle": "-", "linewidth": 1.3}),
                ("held_out", {"linestyle": ":", "linewidth": 1.3}),
            ):
                curve = rows[rows["method"] == method].sort_values("n_parameters")
                seconds.plot(curve["n_parameters"], curve["value"], color=color, **look)
        seconds.plot([], [], "-", color="black", label="cost model")
        seconds.plot([], [], ":", color="black", label="without this size")
        for n_scouts, peak in frame[frame["metric"] == "peak_bytes"].groupby("n_scouts"):
            marker = "o" if n_scouts == frame["n_scouts"].dropna().min() else "x"
            label = f"{n_scouts:g} scouts"
            memory.plot(peak["n_parameters"], peak["value"] / 1e6, marker, color="black", label=label)
        size = np.array(sorted(set(base["n_parameters"])))
        copies = _assumed(frame, "copies")
        memory.plot(size, 4 * copies * size / 1e6, "--", color="#999999", label=f"{copies:g} copies of the parameters")
        travelled = frame[(frame["metric"] == "sent_bytes") & (frame["n_workers"] > 1)]
        travelled = travelled.drop_duplicates("n_parameters")
        per_scout = travelled["value"] / travelled["n_scouts"] / 1e6
        sent.plot(travelled["n_parameters"], per_scout, "o", color=WORKERS[2], label="to a worker and back")
        sent.plot(size, 4 * size / 1e6, "--", color="#999999", label="the parameters alone")
        n_scouts, steps, batch_size = (base[name].iloc[0] for name in ("n_scouts", "steps", "batch_size"))
        seconds.set(title=f"Time: {n_scouts:g} scouts, {steps:g} steps,\nbatches of {batch_size:g}", ylabel="seconds")
        memory.set(title="Peak memory,\none process", ylabel="MB above the imports")
        sent.set(title="Sent,\nthere and back", ylabel="MB per scout")
        for axis in axes[0]:
            axis.set(xscale="log", yscale="log", xlabel="parameters of the network")
        headline(figure, *_said(frame))
    return figure


def _said(frame: pd.DataFrame) -> tuple[str, str]:
    error, largest = errors(frame)["held_out"]["median"].median(), peaks(frame).iloc[-1]
    few, many = min(largest.index), max(largest.index)
    message = f"With {many} scouts memory peaks at {largest[many] / largest[few]:.2f} times that with {few}; the cost \
model is off by a factor of {error:.2f} on sizes not seen, in the median"
    return message, "Small perceptrons on one machine, one measurement a point; what is sent, is sent over sockets."


def scaling_cluster(frame: pd.DataFrame) -> Figure:
    """Memory and time of scouting with the target network, for all parameters and for LoRA's."""
    with drawing(1, 2, 3.2) as (figure, axes):
        memory, times = axes[0]
        need = frame[frame["method"].isin(list(TRAININGS))].pivot(index="method", columns="metric", values="value")
        need = need.loc[list(TRAININGS)]
        labels, left = [training.label for training in TRAININGS.values()], np.zeros(len(need))
        for part, color in PARTS.items():
            memory.barh(labels, need[part] / 1e9, left=left, color=color, height=0.5, label=part)
            left += need[part].to_numpy() / 1e9
        gpu = _assumed(frame, "gpu_memory") / 1e9
        memory.axvline(gpu, color="black", linewidth=1, linestyle="--")
        memory.text(gpu, 1.42, f"one GPU, {gpu:.0f} GB ", fontsize=8, va="bottom", ha="right")
        memory.set(title="Memory of one scout and the sums", xlabel="GB", ylim=(1.75, -0.6))
        memory.legend(loc="lower right", fontsize=8)
        place = np.arange(len(TIMES))
        for shift, (method, training) in zip((-0.2, 0.2), TRAININGS.items(), strict=True):
            values = need.loc[method, list(TIMES)]
            times.bar(place + shift, values, width=0.38, color=training.colour, label=training.label)
            for x, value in zip(place + shift, values, strict=True):
                times.text(x, value * 1.15, _short(value), ha="center", fontsize=8)
        times.set_xticks(place, list(TIMES.values()))
        times.set(title="Time of all scouts", ylabel="seconds", yscale="log")
        times.margins(y=0.15)
        times.legend(loc="upper right", fontsize=8)
        whole = need[list(PARTS)].sum(axis=1) / 1e9 / gpu
        bare = (need[list(PARTS)].sum(axis=1) - need["displacement"]).iloc[0] / 1e9 / gpu
        message = (
            f"Guiding all parameters takes the memory of {whole.iloc[0]:.1f} GPUs for a scout instead of {bare:.1f}; \
with LoRA, of {whole.iloc[1]:.2f}"
        )
        headline(
            figure, message, "Arithmetic from the assumptions in the notebook's first cell; activations are left out."
        )
    return figure


def _assumed(frame: pd.DataFrame, name: str) -> float:
    return frame.loc[frame["metric"] == name, "value"].iloc[0]


def _short(seconds: float) -> str:
    return f"{seconds:.0f}" if seconds >= 10 else f"{seconds:.2g}"


def _base(frame: pd.DataFrame) -> pd.DataFrame:
    """The measurements and predictions with the fewest scouts and steps and the smallest batches."""
    timed = frame[frame["method"].isin(["measured", "fitted", "held_out"])]
    for name in ("n_scouts", "batch_size", "steps"):
        timed = timed[timed[name] == timed[name].min()]
    return timed


EXPERIMENT = Experiment(
    "scaling", "09_scaling", ScalingParameters, {"scaling": scaling, "scaling_cluster": scaling_cluster}
)
