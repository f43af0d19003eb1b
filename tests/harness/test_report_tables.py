"""From records to a table: numbers, marks, gaps, refusals. Records are made up in the test."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from statsmodels.stats.multitest import multipletests

from harness import stats
from harness.config import Cell, ProtocolConfig, SameItemHistory, cell_key, plain
from harness.errors import InputError
from harness.evaluation.metrics import METRICS
from harness.ledger import Trial
from harness.report.beside import UNDECIDED, Published
from harness.report.content import columns_in_words
from harness.report.layout import document, headline
from harness.report.tables import build_table
from harness.stats import Power
from harness.store import Fingerprints
from harness.zoo import METHODS, PAPER_ROWS, Group
from tests.harness.report_world import World, ranks, record, table_data

AHEAD = {"m3bsr": 0.5}


def cell(table, label, metric="HR@10", dataset=None):
    rows = {row.label: row for row in (*table.rows, *table.references)}
    return next(c for c in rows[label].cells if c.metric == metric and dataset in (None, c.dataset))


def below(table):
    return "\n".join(document(table).parts[0].below)


def test_cells_are_means_over_runs_of_the_metrics_of_the_ranks():
    world = World(data=("demo_rec_tmall", "demo_kuaishou"))
    table = world.table()
    for name in world.data:
        mine = [r for r in world.records if r.data == name and r.label == "SASRec"]
        for metric, function in METRICS.items():
            means = [function(r.ranks.above, r.ranks.tied).mean() for r in mine]
            got = cell(table, "SASRec", metric, name)
            assert got.mean == pytest.approx(np.mean(means), abs=1e-12)
            assert got.sd == pytest.approx(np.std(means, ddof=1), abs=1e-12)
            assert (got.seeds, got.low < got.mean < got.high) == (3, True)


def test_columns_are_the_four_metrics_of_each_data_set():
    table = World(data=("demo_rec_tmall", "demo_kuaishou")).table()
    expected = [(name, m) for name in ("demo_rec_tmall", "demo_kuaishou") for m in METRICS]
    assert [(c.dataset, c.metric) for c in table.columns] == expected
    assert all([(c.dataset, c.metric) for c in row.cells] == expected for row in table.rows)


def test_comparisons_are_those_of_the_statistics():
    world = World()
    table = world.table()
    scores = {
        label: np.stack(
            [
                METRICS["NDCG@20"](r.ranks.above, r.ranks.tied)
                for r in world.records
                if r.label == label
            ]
        )
        for label in ("GRU4Rec", "SASRec", "MB-STR", "M3BSR")
    }
    column = stats.column({label: stats.moments(y) for label, y in scores.items()})
    for label, against in stats.family(column).against.items():
        got = cell(table, label, "NDCG@20").comparison
        assert (got.difference, got.p, got.p_holm) == pytest.approx(
            (against.comparison.difference, against.comparison.p, against.p_holm), rel=1e-9
        )
        assert (got.p_users, got.p_seeds) == pytest.approx(
            (against.comparison.p_users, against.comparison.p_seeds), rel=1e-9
        )
    assert cell(table, "M3BSR").comparison is None


def test_holm_is_that_of_statsmodels():
    random = np.random.default_rng(3)
    for size in (1, 2, 16):  # statsmodels takes half a second a call
        p = random.random(size) ** 3
        p[random.random(size) < 0.2] = 0.01
        assert stats.holm(list(p)) == pytest.approx(
            list(multipletests(p, method="holm")[1]), rel=1e-12
        )


def test_holm_counts_the_methods_that_are_there():
    assert World().table().comparisons == 3
    assert World(methods=("sasrec", "m3bsr")).table().comparisons == 1
    assert "against 1 other method in each" in "\n".join(
        World(methods=("sasrec", "m3bsr")).table().notes
    )


def test_without_the_champion_nothing_is_compared_and_the_table_says_so():
    table = World(methods=("gru4rec", "sasrec")).table()
    assert table.comparisons == 0
    assert all(c.comparison is None for row in table.rows for c in row.cells)
    assert "M3BSR has no runs beside other methods here" in headline(table)[0]


# What the number of runs allows


def test_a_planted_winner_gets_the_dagger():
    table = World(seeds=5, levels=AHEAD).table()
    winner = cell(table, "M3BSR")
    assert winner.dagger
    assert (winner.mark, winner.place, winner.in_best_set) == ("dagger", "best", True)
    assert all(c.dagger and c.best_set == ("M3BSR",) for c in table.columns)
    assert headline(table)[0].startswith("M3BSR wins")


def test_a_planted_tie_gets_no_dagger():
    world = World(seeds=5, run_sd=0.05, levels={"sasrec": 0.0, "m3bsr": 0.0, "gru4rec": -1.0})
    table = world.table()
    assert not any(c.dagger for c in table.columns)
    assert headline(table)[0].startswith("M3BSR does not win: ")
    assert {cell(table, "M3BSR").mark, cell(table, "SASRec").mark} & {"best", "second"}


def test_a_loser_is_called_one():
    table = World(seeds=5, levels={"m3bsr": -0.5, "sasrec": 0.6}).table()
    sentence = headline(table)[0]
    assert "M3BSR does not win: its mean is the highest in 0 of 4 columns" in sentence
    assert "out of the best set in all 4 columns, where SASRec leads" in sentence
    assert cell(table, "M3BSR").in_best_set is False


def test_a_win_says_how_many_rows_of_the_paper_are_missing():
    table = World(seeds=5, levels=AHEAD).table()
    win, missing = headline(table)[:2]
    assert win.startswith("M3BSR wins among the methods with runs")
    assert missing.startswith("13 of the paper's 17 rows have no runs")


def test_one_run_claims_nothing_and_says_why():
    table = World(seeds=1, levels=AHEAD).table()
    for row in table.rows:
        for c in row.cells:
            if c.mean is None:
                continue
            assert (c.sd, c.mark, c.in_best_set, c.dagger) == (None, None, None, False)
            assert c.low < c.mean < c.high
            if c.comparison:
                assert c.comparison.p is c.comparison.p_holm is c.comparison.p_users is None
                assert c.comparison.low < c.comparison.difference < c.comparison.high
    assert table.comparisons == 0
    text = below(table)
    assert "One run a method: no standard deviation, no p" in text
    assert "cannot be said from one run a method" in text
    assert "†" not in "".join(
        s.text for line in document(table).parts[0].lines for e in line.entries for s in e
    )


def test_two_runs_have_p_but_no_mark():
    table = World(seeds=2, levels=AHEAD).table()
    winner, other = cell(table, "M3BSR"), cell(table, "SASRec")
    assert (winner.mark, winner.in_best_set, winner.dagger) == (None, None, False)
    assert other.comparison.p is not None
    assert not other.comparison.marked
    assert "Two runs a method: p values but no dagger" in below(table)


@pytest.mark.parametrize(("seeds", "low"), [(3, True), (4, True), (5, False)])
def test_low_power_is_said_of_three_and_four_runs(seeds, low):
    assert ("Low power" in below(World(seeds=seeds).table())) is low


def test_the_method_with_the_fewest_runs_decides_for_its_column():
    world = World(seeds=3, levels=AHEAD)
    table = world.table(world.without(("gru4rec", 3)))
    assert table.columns[0].power is Power.TWO
    assert not table.columns[0].dagger
    assert cell(table, "GRU4Rec").seeds == 2


def test_equal_means_share_a_place():
    world = World(seeds=3, levels={"sasrec": -1.0, "gru4rec": -2.0})
    twin = {r.seed: r.ranks for r in world.records if r.label == "M3BSR"}
    records = [replace(r, ranks=twin[r.seed]) if r.label == "MB-STR" else r for r in world.records]
    table = world.table(records)
    assert (cell(table, "M3BSR").place, cell(table, "MB-STR").place) == ("best", "best")
    assert cell(table, "SASRec").place is None
    assert not table.columns[0].dagger


def test_reference_rows_enter_no_test_but_are_reported_when_ahead():
    world = World(levels={"mostpopular": 2.0}, methods=("sasrec", "m3bsr"))
    table = world.table()
    assert [row.label for row in table.references] == ["Random", "MostPopular"]
    popular = cell(table, "MostPopular")
    assert (popular.place, popular.comparison, popular.in_best_set) == (None, None, None)
    assert cell(table, "Random").mean == pytest.approx(0.1)
    assert "Reference rows at or above the best method: MostPopular" in " ".join(headline(table))


# Gaps


def test_rows_are_the_papers_in_its_order_with_every_gap_named():
    built = tuple(method.key for method in METHODS)
    world = World(methods=built)
    failed = {cell_key(c): "loss is NaN\nin epoch 3" for c in world.cells if c.method == "mbstr"}
    table = world.table(
        world.without(*(("mbstr", s) for s in (1, 2, 3)), *(("sasrec", s) for s in (1, 2, 3))),
        failed=failed,
    )
    assert [row.label for row in table.rows] == [row.label for row in PAPER_ROWS]
    lines = {line.name: line.entries for line in document(table).parts[0].lines}
    assert lines["SASRec"][0][0].text == "not run"
    assert lines["MB-STR"][0][0].text.startswith("failed [")
    assert "MB-STR on demo_rec_tmall: seeds 1, 2, 3: failed: loss is NaN in epoch 3." in below(
        table
    )
    for row in PAPER_ROWS:
        if not row.built:
            assert lines[row.label][0][0].text == "not built"
    assert table.comparisons == len(built) - 3


def test_a_row_with_some_runs_says_how_many_and_why():
    world = World(seeds=3)
    table = world.table(world.without(("sasrec", 2)))
    assert "SASRec on demo_rec_tmall: 2 runs only; seed 2: not run." in below(table)
    assert any(line.name == "SASRec [1]" for line in document(table).parts[0].lines)


def test_a_choice_of_methods_lists_what_was_left_out():
    table = World(methods=("sasrec", "m3bsr")).table()
    assert [row.label for row in table.rows] == ["SASRec", "M3BSR"]
    assert "GRU4Rec" in table.left_out
    assert "not asked for: GRU4Rec" in below(table)


def test_a_table_without_any_record_is_printed_as_gaps():
    table = World().table([])
    assert all(c.mean is None for row in (*table.rows, *table.references) for c in row.cells)
    assert document(table).opening.startswith("DEMO DATA")


def test_degenerate_scores_are_named():
    world = World(methods=("sasrec", "m3bsr"))
    flat = ranks(np.zeros(world.users), constant=True)
    records = [
        replace(r, ranks=flat) if (r.label, r.seed) == ("SASRec", 2) else r for r in world.records
    ]
    table = world.table(records)
    assert "SASRec: degenerate scores in demo_rec_tmall seed 2." in below(table)
    notes = "\n".join(table.notes)
    assert "HR@10 of a run by at most 1.0000 (SASRec, seed 2)" in notes
    assert "degenerate scores (wider than 0.01): SASRec demo_rec_tmall seed 2" in notes


# What may not stand in one table


def test_two_records_of_one_run_are_refused():
    world = World()
    with pytest.raises(InputError, match=r"two records of one run: record .*GRU4Rec.*seed 1"):
        world.table([*world.records, replace(world.records[0])])


def test_other_test_users_are_refused_and_both_records_named():
    world = World()
    odd = world.records[4]
    shifted = replace(odd.ranks, user=odd.ranks.user + 1)
    records = [replace(r, ranks=shifted) if r is odd else r for r in world.records]
    with pytest.raises(
        InputError,
        match=r"GRU4Rec.*seed 1\) and record .*SASRec.*seed 2\) differ in their test users",
    ):
        world.table(records)


def test_fewer_test_users_are_refused():
    world = World(methods=("sasrec", "m3bsr"))
    short = World(methods=("m3bsr",), references=(), users=150)
    records = world.without(("m3bsr", 1)) + [r for r in short.records if r.seed == 1]
    with pytest.raises(InputError, match="differ in their test users"):
        world.table(records)


@pytest.mark.parametrize("which", ["data", "candidates"])
def test_other_data_or_candidates_are_refused(which):
    world = World()
    made = {
        "code": "c",
        "data": "demo_rec_tmall-data-sha",
        "candidates": "demo_rec_tmall-candidates-sha",
    }
    odd = replace(world.records[2], fingerprints=Fingerprints(**{**made, which: "other"}))
    with pytest.raises(
        InputError, match=r"GRU4Rec on demo_rec_tmall, seed 3\) was made from other data"
    ):
        world.table([*world.records[:2], odd])


def test_runs_of_one_method_by_different_code_are_refused():
    world = World()
    odd = world.records[1]
    made = replace(odd.fingerprints, code="other")
    records = [replace(r, fingerprints=made) if r is odd else r for r in world.records]
    with pytest.raises(InputError, match="differ in their code"):
        world.table(records)


def test_runs_of_one_method_with_different_settings_are_refused():
    world = World()
    other = Cell(method="sasrec", data="demo_rec_tmall", seed=9)
    other.train.epochs = 7
    extra = record(other, world.records[0].ranks)
    with pytest.raises(InputError, match="differ in their settings beside the seed"):
        build_table([*world.records, extra], [*world.cells, other], world.datasets)


def test_records_under_different_readings_are_refused():
    world = World(methods=("sasrec",), references=())
    keep = World(methods=("m3bsr",), references=(),
                 protocol=ProtocolConfig(same_item_history=SameItemHistory.keep))  # fmt: skip
    with pytest.raises(InputError, match="differ in their readings of the protocol"):
        build_table(world.records + keep.records, world.cells + keep.cells, world.datasets)


def test_a_record_that_nobody_asked_for_is_refused():
    world = World()
    with pytest.raises(InputError, match="belongs to no cell of this table"):
        build_table(world.records, world.cells[1:], world.datasets)


# Beside the paper


def test_demo_data_have_published_numbers_of_their_twin_but_no_verdict():
    table = World().table()
    m3bsr = cell(table, "M3BSR", "HR@10")
    assert str(m3bsr.beside.published) == "0.3207"
    assert not m3bsr.beside.possible
    assert m3bsr.beside.verdict is None
    assert all(c.order is None and c.against is None for c in table.columns)


def test_the_papers_data_get_verdicts_order_and_ratio():
    table = World(data=("kuaishou",), seeds=5, levels={"m3bsr": 0.3, "mbstr": 0.1}).table()
    verdicts = {c.beside.verdict for row in table.rows for c in row.cells if c.mean is not None}
    assert verdicts <= {"inside", "inside only as best of 10", "outside"}
    m3bsr = cell(table, "M3BSR")
    assert m3bsr.beside.low < m3bsr.mean < m3bsr.beside.high
    column = table.column("kuaishou", "HR@10")
    assert column.order.pairs == 6
    assert (column.against.other, column.against.published_gain) == (
        "MB-STR",
        pytest.approx(0.0313),
    )
    grid = next(p for p in document(table).parts if p.title == "Beside the paper")
    assert any("Kendall's tau with the published order" in line for line in grid.below)


def test_the_published_users_have_narrower_bands():
    world = World(data=("kuaishou",), seeds=5)
    same = [replace(table_data("kuaishou"), published_users=True)]
    other, own = world.table(), build_table(world.records, world.cells, same)
    one, two = cell(other, "SASRec").beside, cell(own, "SASRec").beside
    assert one.high - one.low > two.high - two.low


def test_one_run_leaves_the_published_numbers_undecided():
    table = World(data=("kuaishou",), seeds=1).table()
    assert cell(table, "SASRec").beside.verdict == UNDECIDED


def test_two_runs_have_a_band_from_variances_shrunk_over_methods():
    table = World(data=("kuaishou",), seeds=2).table()
    assert cell(table, "SASRec").beside.low is not None


def test_other_data_sets_have_nothing_beside_them():
    table = World(data=("deskdrop",)).table()
    assert all(c.beside is None for row in table.rows for c in row.cells)
    assert document(table).opening == "Data: deskdrop. The paper has no numbers for deskdrop."


def test_impossible_published_numbers_are_those_of_the_audit():
    published = Published.read()
    assert published.impossible_rows() == (33, 34)
    cells = {
        label: possible
        for label, _, _, possible in published.cells(table_data("demo_rec_tmall"), "HR@10")
    }
    assert cells["BERT4Rec"]
    assert not cells["M3BSR"]


# Footers


def test_footers_name_data_protocol_budget_ties_ranks_and_noise():
    table = World(data=("demo_rec_tmall", "demo_kuaishou")).table(
        budget_name="quick", overrides=("train.epochs=3",)
    )
    notes = "\n".join(table.notes)
    for words in (
        "Data demo_kuaishou: 200 test users, sha256 demo_kuaisho",
        "all readings at their defaults; overrides: train.epochs=3",
        "M3BSR against 3 other methods in each of 8 columns, corrected by Holm within a column (3 comparisons)",
        "Tuning budget (quick): stored settings of every method, 0 trials",
        "GRU4Rec 60",
        "reference rows that tie by design: Random",
        "Sampled against full ranks on demo_rec_tmall: Kendall's tau",
        "comes from users",
        "drawing other candidates moves one run of M3BSR",
        "Made with python 3.11, torch 2.13",
        "Code fingerprints: code-of-gru4 (GRU4Rec); code-of-sasr (SASRec)",
    ):
        assert words in notes


def test_methods_of_one_code_share_a_fingerprint_of_twelve_digits():
    world = World()
    made = replace(world.records[0].fingerprints, code="0123456789abcdef")
    table = world.table([replace(r, fingerprints=made) for r in world.records])
    assert table.notes[-1].endswith(
        "Code fingerprints: 0123456789ab (GRU4Rec, SASRec, MB-STR, M3BSR)."
    )


def test_other_data_beside_demo_data_are_not_called_made_up():
    opening = document(World(data=("demo_rec_tmall", "shop")).table()).opening
    assert "of these, demo_rec_tmall are small made-up worlds" in opening


def test_readings_that_are_not_the_default_are_printed():
    table = World(protocol=ProtocolConfig(same_item_history=SameItemHistory.keep)).table()
    assert "not the default: same_item_history=keep" in "\n".join(table.notes)
    assert table.protocol == plain(ProtocolConfig(same_item_history=SameItemHistory.keep))


def test_tuning_trials_are_printed():
    world = World(methods=("sasrec", "m3bsr"))
    trials = [Trial("", number, False, {}, 0.1, 1, 1, 100.0, 1, "", "") for number in range(1, 13)]
    searches = {(key, data): trials for key in ("sasrec", "m3bsr") for data in world.data}
    table = world.table(searches=searches)
    assert any("12 trials for every method and data set" in note for note in table.notes)
    untuned = {(row.method, row.dataset): row.seconds for row in world.table().budgets}
    for row in table.budgets:
        assert row.trials == 12
        assert row.seconds == untuned[row.method, row.dataset] + 1200


def test_unequal_trials_are_named():
    trial = Trial("", 1, False, {}, 0.1, 1, 1, 100.0, 1, "", "")
    world = World(methods=("sasrec", "m3bsr"))
    name = world.data[0]
    table = world.table(searches={("sasrec", name): [trial], ("m3bsr", name): [trial, trial]})
    assert any(f"SASRec on {name} 1, " in note for note in table.notes)


def test_orders_that_flip_between_sampled_and_full_ranks_are_named():
    world = World(methods=("sasrec", "m3bsr"), levels=AHEAD)
    worst = [
        replace(r, ranks=replace(r.ranks, above_full=r.ranks.above_full * 0 + 300))
        if r.label == "M3BSR" else r
        for r in world.records
    ]  # fmt: skip
    note = next(n for n in world.table(worst).notes if n.startswith("Sampled against full"))
    assert "HR@10 -1.00" in note
    assert "M3BSR/SASRec (HR@10)" in note


def test_groups_are_the_papers():
    table = World().table()
    assert {c.group for row in table.rows for c in row.cells} <= {group.value for group in Group}


def test_the_best_set_is_one_sentence():
    [line] = [
        line
        for part in document(World(levels={"m3bsr": 3.0}).table()).parts
        for line in getattr(part, "below", ())
        if line.startswith("Best set")
    ]
    assert line.endswith("in 95 % of tables), in all 4 columns: M3BSR.")


def test_columns_of_two_data_sets_are_joined_by_and():
    columns = World(data=("demo_rec_tmall", "shop")).table().columns
    assert columns_in_words(columns[3:], len(columns)) == (
        "demo_rec_tmall NDCG@20 and shop (all columns)"
    )


def test_a_footer_says_what_other_candidates_would_have_changed():
    world = World(methods=("sasrec", "m3bsr"), seeds=2, levels={"m3bsr": 0.5}, users=60)
    random = np.random.default_rng(0)
    redrawn = []
    for run in world.records:
        above = np.clip(run.ranks.above + random.integers(-3, 4, (5, 60)), 0, 99)
        ranks = replace(
            run.ranks,
            above_redrawn=above.astype(np.uint8),
            tied_redrawn=np.zeros((5, 60), dtype=np.uint8),
        )
        redrawn.append(replace(run, ranks=ranks))
    notes = world.table(redrawn).notes
    line = next(note for note in notes if note.startswith("Other candidates on"))
    assert "5 redraws" in line
    assert "the best is M3BSR in 5 of 5" in line
    assert "M3BSR minus SASRec lies between +" in line
    assert not [n for n in world.table().notes if n.startswith("Other candidates")]
