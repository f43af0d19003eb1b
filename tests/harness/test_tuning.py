"""The search: equal trials, rounds, the ledger, what it chooses and where that goes."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import pytest

from harness import ledger
from harness.compose import Budget, compose_cell
from harness.errors import InputError
from harness.experiments.tuning import SPACES, TUNED, with_settings
from harness.ledger import Trial
from harness.report.tuning import edges, expected_best
from harness.reproduce import main
from harness.store import Store
from harness.zoo import find
from tests.harness.test_reproduce import refused

SASREC = ["--methods", "sasrec", "--budget", "smoke"]


def trial(number: int, ndcg: float, method: str = "sasrec", **settings: object) -> Trial:
    made = {f"model.{key}": value for key, value in settings.items()}
    return Trial(method, number, False, made, ndcg, 1, 2, 3.0, 4, f"key{number}", "code")


def test_the_papers_grid_is_searched_at_budget_paper() -> None:
    space = SPACES[Budget.paper]
    assert space.rates == (1e-5, 1e-4, 1e-3)
    assert space.hidden == (64, 128, 256, 512)
    assert space.trials == 2 * len(space.rates) * len(space.hidden)


@pytest.mark.parametrize("method", TUNED, ids=lambda method: method.key)
def test_every_methods_own_grid_has_at_most_the_shared_ones_size_and_real_options(method) -> None:
    grid = method.load()[1].GRID
    assert 1 < math.prod(map(len, grid.values())) <= 12
    cell = compose_cell(method, "any", Budget.paper, tuned=())
    for option, values in grid.items():
        for value in values:
            changed = with_settings(cell, {f"model.{option}": value})
            assert changed is not cell
        assert len(set(map(str, values))) == len(values)


def test_a_grid_with_an_unknown_option_is_an_error_of_ours() -> None:
    with pytest.raises(AttributeError, match="hiden"):
        with_settings(compose_cell(find("sasrec"), "any", Budget.paper), {"model.hiden": 3})


def test_the_search_in_two_rounds(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    assert main(["tuning", *words, *SASREC, "--plan"]) == 0
    out = capsys.readouterr().out
    assert "2 cells wanted" in out
    assert "up to 1 trials of the methods' own grids" in out
    assert main(["tuning", *words, *SASREC]) == 0
    out = capsys.readouterr().out
    assert "Every method had 3 trials." in out

    path = tmp_path / "results/tuned/smoke/tiny.csv"
    trials = ledger.read(path)
    assert path.read_text().startswith("# python -m harness.reproduce tuning")
    assert [t.own for t in trials] == [False, False, True]
    best_shared = max(trials[:2], key=lambda t: t.ndcg)
    assert best_shared.settings.items() <= trials[2].settings.items()
    store = Store(tmp_path / "results")
    for t in trials:
        record = store.load(t.key)
        assert record is not None
        assert record.seed == 0
        assert t.ndcg == pytest.approx(max(row["NDCG@10"] for row in record.curve), abs=1e-6)
        assert t.seconds == pytest.approx(record.seconds["total"], abs=0.06)
    page = json.loads((tmp_path / "results/tables/tuning/tiny/table.json").read_text())
    (search,) = page["searches"]
    assert search["method"] == "SASRec"
    assert len(search["trials"]) == len(search["best_of_n"]) == 3
    assert search["best_of_n"][-1] == pytest.approx(search["ndcg"])
    assert 0 < page["data"][0]["most_popular"] < 1


def test_a_method_tuned_alone_leaves_the_others_in_the_ledger(
    words: list[str], tmp_path: Path
) -> None:  # fmt: skip
    assert main(["tuning", *words, *SASREC]) == 0
    assert main(["tuning", *words, "--methods", "gru4rec", "--budget", "smoke"]) == 0
    trials = ledger.read(tmp_path / "results/tuned/smoke/tiny.csv")
    assert Counter(t.method for t in trials) == {"gru4rec": 3, "sasrec": 3}
    made_by = ledger.commands(tmp_path / "results/tuned/smoke/tiny.csv")
    assert ["sasrec" in made_by[0], "gru4rec" in made_by[1], len(made_by)] == [True, True, 2]


def test_fewer_trials_and_fixed_settings(
    words: list[str], tmp_path: Path
) -> None:  # fmt: skip
    assert main(["tuning", *words, *SASREC, "--trials", "4", "model.hidden=8"]) == 0
    trials = ledger.read(tmp_path / "results/tuned/smoke/tiny.csv")
    assert len(trials) == 4
    assert not any("model.hidden" in t.settings for t in trials)
    record = Store(tmp_path / "results").load(trials[-1].key)
    assert record is not None
    assert record.config["model"]["hidden"] == 8


def test_the_choice_feeds_cells_of_the_same_budget_and_data(tmp_path: Path) -> None:
    method = find("sasrec")
    path = ledger.path_of(tmp_path, "paper", "shop")
    trials = [
        trial(1, 0.1, hidden=128), trial(2, 0.3, hidden=256, loss="ce"), trial(3, math.nan, hidden=8),
        trial(4, 0.3, hidden=512), trial(1, 0.9, method="gru4rec", hidden=16),
    ]  # fmt: skip
    ledger.write(path, trials, ["a command"])
    folders = (tmp_path / "none", tmp_path)
    cell = compose_cell(method, "shop", Budget.paper, (), folders)
    assert cell.model.hidden == 256  # the best, of equals the first
    assert cell.model.loss.name == "ce"  # type: ignore[attr-defined]
    chosen_anyway = compose_cell(method, "shop", Budget.paper, ["model.hidden=32"], folders)
    assert chosen_anyway.model.hidden == 32
    for data, budget in (("other", Budget.paper), ("shop", Budget.quick)):
        assert compose_cell(method, data, budget, (), folders).model.hidden == 64


def test_the_ledger_reads_what_it_wrote_and_refuses_another_file(tmp_path: Path) -> None:
    path = tmp_path / "ledger.csv"
    assert ledger.read(path) == []
    trials = [
        trial(1, 0.25, dropout=0.5, on=True, name='a,b "c"'), replace(trial(2, 0.5), own=True)
    ]  # fmt: skip
    ledger.write(path, trials, ["python -m harness.reproduce tuning"])
    assert ledger.read(path) == trials
    path.write_text("method,number\nsasrec,one\n")
    with pytest.raises(InputError, match="is no ledger of tuning"):
        ledger.read(path)


def test_a_failed_trial_is_kept_and_never_chosen(tmp_path: Path) -> None:
    path = tmp_path / "ledger.csv"
    ledger.write(path, [trial(1, math.nan), trial(2, 0.1)], ["a command"])
    trials = ledger.read(path)
    assert [t.failed for t in trials] == [True, False]
    assert ledger.chosen(trials, "sasrec") == trials[1]
    assert ledger.chosen(trials[:1], "sasrec") is None


def test_the_best_of_n_is_the_mean_over_all_choices() -> None:
    values = [0.3, 0.1, 0.1, 0.7, 0.4]
    for n in range(1, 6):
        every = [max(some) for some in combinations(values, n)]
        assert expected_best(values, n) == pytest.approx(sum(every) / len(every))
    with pytest.raises(ValueError, match="6 draws from 5 values"):
        expected_best(values, 6)


def test_an_optimum_at_an_edge_is_named_where_there_are_three_values() -> None:
    trials = [
        trial(n, 0.1, learning_rate=rate, hidden=width, loss=loss)
        for n, (rate, width, loss) in enumerate(
            [(0.1, 32, "a"), (0.2, 64, "b"), (0.3, 64, "c"), (0.3, 32, "a")]
        )
    ]
    assert edges(trials, trials[0]) == ["learning_rate=0.1 (lowest)"]
    assert edges(trials, trials[1]) == []
    assert edges(trials, trials[2]) == ["learning_rate=0.3 (highest)"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["tuning", "--methods", "markov"], "'markov' has nothing to tune; choose from: gru4rec"),
        (["tuning", "--methods", "m3bsr", "--trials", "0"], "--trials 0: at least 1 is needed"),
        (["table2", "--trials", "3"], "--trials 3 is for the target tuning, not table2"),
        (["tuning", "model.hiddn=3"], "no setting 'model.hiddn'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_gets_one_line(
    arguments: list[str], says: str, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    assert says in refused([arguments[0], *words, *arguments[1:]], capsys)
