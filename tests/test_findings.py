"""What the notebooks' text says of the paper profile is so in its tables. Not asserted there: a finding that turns out
otherwise must not cost the table that shows it."""

import pandas as pd

from experiments import records, stream_methods
from experiments.e01_one_shot import run as one_shot
from experiments.e02_xor import run as xor
from experiments.e03_forgetting import run as forgetting
from experiments.e05_own_model import run as own_model
from experiments.e06_few_shot_neighbours import run as few_shot
from experiments.e08_domain_shift import run as domain_shift
from experiments.images import of_base_optimizers

PAPER = "results/paper"


def test_01_one_shot():
    frame = records.read(PAPER, "one_shot")
    table = of_base_optimizers(one_shot.verdicts(frame))
    ours = table.set_index(["zero_point", "tuned_on", "head", "comparison"]).sort_index()
    pretrained = ours.loc["pretrained"]
    for one in ("guided", "guided_tensor"):
        probe = pretrained.xs(f"{one} - frozen", level="comparison")
        assert (probe["low"] <= 0).all() and (probe.loc["first"]["high"] < 0).all()
    assert (pretrained.loc["same"].xs("guided - plain", level="comparison")["mean"] < 0).all()
    assert (pretrained.loc["first"].xs("guided - plain", level="comparison")["low"] <= 0).all()
    assert (ours.loc["random"].xs("guided - scratch", level="comparison")["high"] < 0).all()
    every = one_shot.verdicts(frame).set_index(["optimizer", "scouts", "tuned_on", "head", "comparison"]).sort_index()
    for scouts in ("sgd", "adam"):
        by_adam = every.loc[("adam", scouts, "first", "random")]
        assert by_adam.loc["guided - plain", "low"] > 0 and by_adam.loc["guided - frozen", "high"] < 0
    mixed = every.loc[("sgd", "adam", "first")]
    assert mixed.loc[("random", "guided - plain"), "low"] > 0 > mixed.loc[("random", "guided - frozen"), "high"]
    assert (mixed.loc["zero"].loc[["guided - plain", "guided - frozen"], "low"] < 0).all()
    assert (mixed.loc["zero"].loc[["guided - plain", "guided - frozen"], "high"] > 0).all()
    fewer = one_shot.saturation(frame).set_index(["tuned_on", "what", "number"]).loc["first"]
    assert fewer.loc[("n_scouts", 16), "low"] < 0 < fewer.loc[("n_scouts", 16), "high"]
    assert fewer.loc[("scout_n_shot", 1), "mean"] > -0.04


def test_06_to_08_the_guide_of_adams_scouts():
    """With it, descent is the best guided method, and level with plain fine-tuning."""
    few = few_shot.ranking(records.read(PAPER, "few_shot_neighbours")).query("task == '5-way 1-shot'")
    streams = stream_methods.ranking(records.read(PAPER, "forgetting_neighbours"))
    shifted = domain_shift.ranking(records.read(PAPER, "domain_shift")).query("target == 'as_is'")
    assert set(few["guided"]) == set(streams["guided"]) == {"guided_adam_scouts"}
    assert set(shifted["guided"]) == {"guided_adam_scouts, target scouts"}
    for table in (few, streams, shifted.query("alignment == 'none'")):
        assert set(table[table["method"] == "plain"]["side"]) == {"undecided"}


def test_02_xor():
    frame = records.read(PAPER, "xor")
    by = xor.headline_table(frame).set_index(["network", "method"])
    for name in by.index.unique("network"):
        plain, guided, again, guided_again = (by.loc[(name, method)] for method in xor.HEADLINES)
        assert guided.high < 0.95, "no guided descent ends stagnation"
        assert again.low > 0.95 and again.low > guided.high, "starting again is the better use of the compute"
        assert guided_again.low <= again.high, "guided restarts do not beat plain ones"
        helped = name == "2-2-1 tanh"
        assert guided.low > plain.high if helped else guided.low <= plain.high, "guidance helps one network"
        if helped:
            found = xor.search_table(frame)[name]
            assert found["guided"].max() > found["control"].max() + 0.05, "what scouts found counts"


def test_03_forgetting():
    every = forgetting.verdicts(records.read(PAPER, "forgetting"))
    table = of_base_optimizers(every)
    by_condition = table.set_index(["zero_point", "stream", "epochs", "tuned_on", "head", "comparison"]).sort_index()

    def of(comparison: str, tuned_on: str, zero_point="pretrained", stream="single", head="random") -> pd.Series:
        return by_condition.loc[(zero_point, stream, 5, tuned_on, head, comparison)]

    assert of("guided - plain", "same").low > 0
    assert of("guided_network: last - first", "same").low > 0 and of("plain: last - first", "same").high < 0
    assert of("guided - frozen", "first").high < 0
    for head in ("random", "zero"):
        assert all(of(f"guided - {rival}", "last", head=head).low <= 0 for rival in ("plain", "frozen"))
    assert of("guided - scratch", "same", "random").low > 0
    for tuned_on in ("first", "careful"):
        scratch = of("guided - scratch", tuned_on, "random")
        assert scratch.low < 0 < scratch.high and of("guided - plain", tuned_on, head="zero").high < 0
    assert of("guided - frozen", "same", "random").low > 0 >= of("guided - frozen", "careful", "random").low
    assert of("guided - plain", "careful", head="zero").low <= 0
    assert of("guided - scratch", "last", "random").high < 0
    assert of("guided - plain", "same", stream="shuffled").low > 0
    assert of("guided_network: last - first", "same", stream="class_ordered").high < 0
    key = ["zero_point", "stream", "epochs", "head", "optimizer", "scouts", "comparison", "tuned_on"]
    by_adam = every.set_index(key).sort_index().loc[("pretrained", "single", 5, "random", "adam", "sgd")]
    assert (by_adam.loc["guided - plain", "low"] > 0).all() and (by_adam.loc["guided - frozen", "low"] <= 0).all()


def test_05_your_own_model():
    table = own_model.verdicts(records.read(PAPER, "own_model")).set_index("comparison")
    assert (table[table.index.str.match(r"guided.* - frozen")]["low"] <= 0).all()
    assert table.loc["guided_classes - plain", "mean"] > 0
