"""Reference rows on the demo twins: the numbers measured when the twins were designed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from baselines.reference import LastClick, ReferenceConfig
from harness.config import Negatives, ProtocolConfig, SameItemHistory
from harness.data.dataset import Dataset
from harness.data.demo import DEMO, ensure_demo
from harness.evaluation.metrics import METRICS, hit_rate, ndcg
from harness.evaluation.ranks import final_ranks
from harness.stats import drawn
from harness.zoo import find
from models.interface import Recommender

DROP = ProtocolConfig()
KEEP = ProtocolConfig(same_item_history=SameItemHistory.keep)
MEASURED = {
    "demo_rec_tmall": {
        "Random": (0.1, 0.045),
        "MostPopular": (0.207, 0.108),
        "LastClick": (0.207, 0.108),
        "Markov": (0.378, 0.222),
        "ItemKNN": (0.389, 0.210),
    },
    "demo_kuaishou": {
        "Random": (0.1, 0.045),
        "MostPopular": (0.302, 0.149),
        "LastClick": (0.302, 0.149),
        "Markov": (0.441, 0.279),
        "ItemKNN": (0.318, 0.172),
    },
}
"""HR@10, NDCG@10 under `drop`, 1 + 99 uniform candidates."""
LAST_CLICK_KEPT = {"demo_rec_tmall": (0.972, 0.971), "demo_kuaishou": (0.968, 0.959)}
"""LastClick with the target's own events kept in the history, popularity counted without them."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    for name in DEMO:
        ensure_demo(root, name)
    return root


def metrics(model: Recommender, dataset: Dataset, protocol: ProtocolConfig) -> tuple[float, float]:
    ranks = final_ranks(model, dataset.split(protocol), protocol, 512)
    return (
        float(hit_rate(ranks.above, ranks.tied, 10).mean()),
        float(ndcg(ranks.above, ranks.tied, 10).mean()),
    )


def fitted(label: str, dataset: Dataset, protocol: ProtocolConfig) -> Recommender:
    model_class, config_class = find(label).load()
    model = model_class(config_class(), dataset.catalogue(protocol))
    model.prepare(dataset.split(protocol).train)
    return model


@pytest.mark.parametrize("name", MEASURED)
@pytest.mark.parametrize("label", MEASURED["demo_rec_tmall"])
def test_measured_values_under_drop(data: Path, name: str, label: str) -> None:
    dataset = Dataset.open(data, name)
    found = metrics(fitted(label, dataset, DROP), dataset, DROP)
    assert found == pytest.approx(MEASURED[name][label], abs=0.00051)


@pytest.mark.parametrize("name", MEASURED)
def test_random_prints_its_exact_expectation(data: Path, name: str) -> None:
    dataset = Dataset.open(data, name)
    found = metrics(fitted("Random", dataset, DROP), dataset, DROP)
    assert found[0] == pytest.approx(0.10, abs=1e-12)


@pytest.mark.parametrize("name", LAST_CLICK_KEPT)
def test_kept_own_events_let_last_click_find_nearly_every_target(data: Path, name: str) -> None:
    dataset = Dataset.open(data, name)
    model = LastClick(ReferenceConfig(), dataset.catalogue(KEEP))
    model.prepare(dataset.split(DROP).train)
    assert metrics(model, dataset, KEEP) == pytest.approx(LAST_CLICK_KEPT[name], abs=0.00051)
    # The row as a table prints it counts the own events too; they only reorder what was not opened.
    shown = metrics(fitted("LastClick", dataset, KEEP), dataset, KEEP)
    assert shown == pytest.approx(LAST_CLICK_KEPT[name], abs=0.005)


def test_redrawn_candidates_spread_as_the_formula_says(data: Path) -> None:
    """Two ways to the noise of candidates: ten redraws, and the exact law given the full ranks."""
    dataset = Dataset.open(data, "demo_rec_tmall")
    model = fitted("ItemKNN", dataset, DROP)
    ranks = final_ranks(model, dataset.split(DROP), DROP, 512)
    assert ranks.above_redrawn is not None
    assert ranks.tied_redrawn is not None
    above, tied = ranks.above_redrawn.astype(np.int64), ranks.tied_redrawn.astype(np.int64)
    means = hit_rate(above, tied, 10).mean(axis=1)
    law = drawn(METRICS["HR@10"], ranks.untouched, ranks.above_full, ranks.tied_full)
    sd = law.sd_of_mean(len(ranks.user))
    assert abs(means.mean() - law.mean.mean()) < 4 * sd / len(means) ** 0.5
    assert 0.4 * sd < means.std(ddof=1) < 1.8 * sd


def test_candidates_by_popularity_are_not_redrawn(data: Path) -> None:
    popularity = ProtocolConfig(negatives=Negatives.popularity)
    split = Dataset.open(data, "demo_kuaishou").split(popularity)
    assert split.redrawn() is None
