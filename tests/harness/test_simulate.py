"""Planted worlds: their cells, and what is said of made-up records with a planted truth."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import ndtr

from harness import stats
from harness.compose import Budget, compose_cell
from harness.config import cell_key
from harness.data.demo import MODAL, agreement, ensure_world, preference, truth_of, world_of
from harness.data.files import MANIFEST
from harness.data.prepare import prepare
from harness.data.raw import Raw
from harness.data.synthetic import generate, kuaishou_world, rec_tmall_world
from harness.errors import InputError
from harness.execution.plan import Plan
from harness.experiments import common, figure3, simulate, table2
from harness.report.noise import Removed, feature, removed, same_feature
from harness.report.simulate import (
    Finding,
    Noise,
    Simulation,
    Verdict,
    build_simulation,
    lines,
    simulate_json,
)
from harness.report.simulate_figure import simulate_figure
from harness.report.simulate_page import csv_text, headlines, simulate_page
from harness.report.text import markdown
from harness.reproduce import main
from harness.run import Places
from harness.stats.contrast import Term, contrast, line_weights
from harness.store import Record, Store
from tests.harness.report_world import ranks, record, table_data

USERS = 400
FLAT = dict.fromkeys(("w/o CDMD-B", "w/o CDMD-M", "w/o MEIE", "w/o Shared Expert"), (0.0, 0.0))
"""Of a removal: how far it lies below the full model at 0, and at the sweep's top."""


@pytest.fixture(scope="module", autouse=True)
def _composed_once():
    """Hydra takes most of the time of these tests."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (simulate, figure3, common):
            patch.setattr(module, "compose_cell", cache(compose_cell))
        yield


def request(data: Path, word: str | None = None, seeds: int = 3, budget: Budget = Budget.quick,
            overrides: tuple[str, ...] = (), names: tuple[str, ...] = ("tiny",)) -> common.Request:  # fmt: skip
    return common.Request(
        "simulate", ",".join(names), names, budget, seeds, simulate.choose_methods(word), overrides,
        Places(data, data.parent / "results"), "a command",
    )  # fmt: skip


def made(
    asked: common.Request, drops: dict[str, tuple[float, float]], run_sd: float = 0.02
) -> list[Record]:
    """Records of every cell: users and runs vary, a removal lies further below as its knob rises."""
    rows = simulate.rows(asked)
    place = {
        point.world: (point.value - sweep.points[0].value)
        / (sweep.points[-1].value - sweep.points[0].value)
        for sweep in simulate.sweeps(asked)
        for point in sweep.points
        if point.world != sweep.data
    }
    user = np.random.default_rng(9).standard_normal(USERS)
    records = []
    for number, cell in enumerate(simulate.cells(asked)):
        label = rows[cell_key(cell)].label
        random = np.random.default_rng(100 + number)
        low, high = drops.get(label, (0.0, 0.0))
        level = (
            0.6
            - (low + place.get(cell.data, 0.5) * (high - low))
            + run_sd * random.standard_normal()
        )
        score = level + user + 0.2 * random.standard_normal(USERS)
        records.append(record(cell, ranks(1 - ndtr(score))))
    return records


def judge(asked: common.Request, drops: dict[str, tuple[float, float]],
          records: list[Record] | None = None, noise: tuple[Noise, ...] = ()) -> Simulation:  # fmt: skip
    sweeps = simulate.sweeps(asked)
    worlds = list(dict.fromkeys(point.world for sweep in sweeps for point in sweep.points))
    return build_simulation(
        made(asked, drops) if records is None else records, simulate.cells(asked),
        [table_data(name, demo=True) for name in worlds], simulate.rows(asked), sweeps,
        people={name: np.arange(USERS) for name in worlds}, noise=noise, budget_name="quick",
    )  # fmt: skip


def of(simulation: Simulation, part: str) -> list[Verdict]:
    return [verdict for verdict in simulation.verdicts if verdict.part == f"w/o {part}"]


# --- worlds and cells ---


def test_the_data_sets_own_world_has_the_cells_of_table2_and_figure3(data):
    asked = request(data, seeds=2)
    ours = {cell_key(cell) for cell in simulate.cells(asked) if cell.data == "tiny"}
    full = {
        cell_key(cell)
        for cell in table2.cells(replace(asked, methods=common.choose_methods("m3bsr")))
        if cell.method == "m3bsr"
    }
    rows = figure3.choose_methods("cdmd-m,cdmd-b,meie,sharedexpert")
    assert full < ours
    assert ours == {cell_key(cell) for cell in figure3.cells(replace(asked, methods=rows))}


def test_a_sweep_turns_one_knob_and_the_cells_differ_in_their_data_alone(data):
    asked = request(data, seeds=1)
    base = world_of(data, "tiny")
    for sweep in simulate.sweeps(asked):
        assert [p.value for p in sweep.points] == sorted(
            {0.0, sweep.default, *simulate.VALUES[sweep.knob.name]}
        )
        for point in sweep.points:
            world = world_of(data, point.world)
            assert json.loads((data / point.world / MANIFEST).read_text())["demo"] is True
            changed = {k for k, v in asdict(world).items() if v != asdict(base)[k]}
            if point.value == sweep.default:
                assert point.world == "tiny"
            elif sweep.knob.name != "preference":
                assert point.world == f"tiny-{sweep.knob.name}-{point.value:g}"
                assert changed == {sweep.knob.name}
            else:
                assert changed <= {
                    "favor_bias",
                    *(k for pair in MODAL for k in pair if k),
                }
    rows = simulate.rows(asked)
    groups: dict[str, set[str]] = {}
    for cell in simulate.cells(asked):
        groups.setdefault(rows[cell_key(cell)].label, set()).add(cell_key(replace(cell, data="")))
    assert len(groups) == 5
    assert all(len(settings) == 1 for settings in groups.values())


def test_smoke_has_two_values_a_sweep(data):
    for sweep in simulate.sweeps(request(data, budget=Budget.smoke)):
        assert [point.value for point in sweep.points] == [0.0, sweep.default]


def test_a_world_is_generated_once_and_again_when_its_data_set_has_changed(tmp_path):
    small = replace(rec_tmall_world(), users=40)
    ensure_world(tmp_path, "w", small)
    first = (tmp_path / "w" / MANIFEST).stat().st_mtime_ns
    ensure_world(tmp_path, "w", small)
    assert (tmp_path / "w" / MANIFEST).stat().st_mtime_ns == first
    ensure_world(tmp_path, "w", replace(small, accident=0.35))
    assert world_of(tmp_path, "w").accident == 0.35
    stored = truth_of(tmp_path, "w")
    (tmp_path / "w.truth.npz").unlink()
    again = truth_of(tmp_path, "w")
    assert stored.keys() == again.keys()
    assert all(np.array_equal(stored[key], again[key]) for key in stored)


def test_a_worlds_people_are_the_same_numbers_in_all_its_worlds(data):
    asked = request(data, seeds=1)
    protocol = simulate.cells(asked)[0].protocol
    for name in ("tiny", "tiny-accident-0.35", "tiny-preference-0"):
        people = simulate._people(asked, name, protocol, 0)
        assert np.array_equal(simulate._people(asked, name, protocol, 50), people[:50])
        assert (np.diff(people) > 0).all()
        assert people.max() < 120


@pytest.mark.parametrize("make", [rec_tmall_world, kuaishou_world])
def test_preference_turns_what_moves_clicks_and_favors_and_keeps_the_rest(make):
    base = replace(make(), users=300)
    assert preference(base, 1.0) is base
    assert preference(base, 1.000001).favor_bias == base.favor_bias
    favors = generate(base).behaviour.sum()
    cosines = []
    for difference in (0.0, 0.5, 1.5):
        world = preference(base, difference)
        cosines.append(agreement(world))
        for side in zip(*MODAL, strict=True):
            length = [sum(getattr(w, k) ** 2 for k in side if k) for w in (base, world)]
            assert length[0] == pytest.approx(length[1], rel=1e-5)
        assert abs(generate(world).behaviour.sum() - favors) < 0.05 * favors
    assert cosines[0] == pytest.approx(1, abs=1e-6)
    assert cosines[0] > cosines[1] > agreement(base) > cosines[2]


def test_a_preference_that_does_not_differ_cannot_be_turned():
    same = replace(
        rec_tmall_world(), favor_image=1.4, favor_text=0.2, favor_bait=0.7, favor_substance=0.0
    )
    with pytest.raises(InputError, match="do not differ in what moves them"):
        preference(same, 0.0)


def test_data_that_were_not_generated_are_refused(data, tmp_path):
    user = np.repeat(np.arange(3), 6)
    raw = Raw(
        source="table", user=user, item=np.tile(np.arange(6), 3), behaviour=np.tile([1, 1, 1, 2, 1, 2], 3),
        timestamp=np.arange(18), user_ids=list("abc"), item_ids=[str(i) for i in range(300)], keep_items=True,
    )  # fmt: skip
    prepare(raw, tmp_path, "shop")
    with pytest.raises(
        InputError,
        match="'shop' is no generated world, so nothing in it can be planted; choose from: demo",
    ):
        simulate.cells(request(tmp_path, names=("shop",)))


def test_sweeps_are_chosen_by_name():
    labels = [row.label for row in simulate.choose_methods("nuisance, accident")]
    assert labels == ["accident", "nuisance"]
    with pytest.raises(InputError, match="no sweep 'acident'; did you mean 'accident'"):
        simulate.choose_methods("acident")
    with pytest.raises(
        InputError, match="names no sweep; choose from: accident, nuisance, preference"
    ):
        simulate.choose_methods(",")


def test_an_override_that_takes_the_part_out_already_is_refused(data):
    word = "model.parts.modality_denoiser=none"
    with pytest.raises(
        InputError, match="'w/o CDMD-M' takes out what the settings of M3BSR on tiny lack"
    ):
        simulate.cells(request(data, overrides=(word,)))
    assert simulate.cells(request(data, "accident", overrides=(word,)))


# --- the statistics ---


def scores(random: np.random.Generator, user: np.ndarray, runs: int = 3) -> stats.Moments:
    own = 0.1 * random.standard_normal((runs, 1)) + 0.3 * random.standard_normal((runs, len(user)))
    return stats.moments(user + own)


@pytest.mark.parametrize("runs", [1, 2, 4])
def test_a_contrast_of_two_methods_is_the_v_test(runs):
    random = np.random.default_rng(runs)
    user = random.standard_normal(60)
    a, b = scores(random, user, runs), scores(random, user + 0.1, runs)
    ours = contrast([Term(1.0, a, np.arange(60)), Term(-1.0, b, np.arange(60))])
    theirs = stats.compare(a, b)
    for name, value in asdict(theirs).items():
        assert getattr(ours, name) == (
            value if value is None or name == "power" else pytest.approx(value, rel=1e-9)
        )
    doubled = contrast([Term(2.0, a, np.arange(60)), Term(-2.0, b, np.arange(60))])
    assert doubled.difference == pytest.approx(2 * ours.difference)
    assert doubled.p == (ours.p if runs == 1 else pytest.approx(ours.p))


def test_users_of_several_worlds_count_once():
    random = np.random.default_rng(0)
    user = 3 * random.standard_normal(160)
    a = scores(random, user[:80])
    pairs = {
        start: contrast([
            Term(1.0, a, np.arange(80)),
            Term(-1.0, scores(random, user[start : start + 80]), np.arange(start, start + 80)),
        ])
        for start in (0, 40, 80)
    }  # fmt: skip
    assert 5 * pairs[0].A < pairs[40].A < 0.8 * pairs[80].A
    assert pytest.approx(2 * a.w / 80, rel=0.4) == pairs[80].A
    with pytest.raises(ValueError, match="40 users with scores of 80"):
        contrast([Term(1.0, a, np.arange(40))])


def test_the_weights_of_a_line_give_its_rise():
    x = [0.0, 0.1, 0.2, 0.35]
    weights = line_weights(x)
    assert weights @ (2.0 + 3.0 * np.array(x)) == pytest.approx(3.0 * 0.35)
    assert weights.sum() == pytest.approx(0, abs=1e-12)
    with pytest.raises(ValueError, match="two different points"):
        line_weights([1.0, 1.0])


@pytest.mark.slow
def test_a_rise_covers_the_truth_in_95_percent_of_worlds():
    """Four worlds of the same users, three runs of two methods each: their line's rise is 0."""
    covered, tables = 0, 400
    weights = line_weights([0.0, 1.0, 2.0, 3.5])
    for number in range(tables):
        random = np.random.default_rng(number)
        user = random.standard_normal(150)
        part = 0.5 * random.standard_normal(150)  # what the part is worth to a user, in every world
        terms = []
        for weight in weights:
            terms += [
                Term(float(weight), scores(random, user + part), np.arange(150)),
                Term(-float(weight), scores(random, user), np.arange(150)),
            ]
        rise = contrast(terms)
        covered += rise.low <= 0 <= rise.high
    assert 0.92 <= covered / tables <= 0.985


# --- what is said ---


def test_a_gain_that_grows_with_its_knob_is_found(data):
    asked = request(data)
    simulation = judge(asked, {**FLAT, "w/o CDMD-B": (0.0, 0.8), "w/o CDMD-M": (0.0, 0.8)})
    for part in ("CDMD-B", "CDMD-M"):
        for verdict in of(simulation, part):
            assert verdict.finding is Finding.EARNS
            assert verdict.zero.comparison.low <= 0 <= verdict.zero.comparison.high
            assert verdict.rise.low > 0
    assert {verdict.finding for verdict in of(simulation, "MEIE")} == {Finding.NOT_FOUND}
    assert simulation.comparisons == 2 * 4 * 2
    page = markdown(simulate_page(simulation))
    assert "- CDMD-B (accidental clicks): earns its keep where it should in every column." in page
    assert "- MEIE (how clicks and favors differ): not found in every column." in page
    assert "At 0, where no click is an accident, it is " in page
    assert "no gain or loss is seen, and one above 0.0" in page


@pytest.mark.parametrize(
    ("drop", "finding"),
    [
        ((0.0, -0.8), Finding.HARMS),  # the removal is better, ever more
        ((0.9, 0.5), Finding.FALLS),  # worth something everywhere, less where it should be more
        ((0.4, 0.4), Finding.NOT_FOUND),  # worth the same everywhere
        ((0.0, 0.0), Finding.NOT_FOUND),
    ],
)
def test_the_judgement_turns_with_the_numbers(data, drop, finding):
    simulation = judge(request(data, "nuisance"), {"w/o CDMD-M": drop})
    assert [verdict.finding for verdict in simulation.verdicts] == [finding] * 2
    assert (
        f"**{finding.value}**" in markdown(simulate_page(simulation))
        or finding is Finding.NOT_FOUND
    )


def test_a_gain_at_zero_is_said(data):
    page = markdown(simulate_page(judge(request(data, "accident"), {"w/o CDMD-B": (0.5, 0.9)})))
    assert "At 0, where no click is an accident, it gains all the same: +0." in page


@pytest.mark.parametrize(("seeds", "few"), [(1, "one run a row"), (2, "two runs a row")])
def test_few_runs_are_said_to_test_nothing(data, seeds, few):
    simulation = judge(request(data, seeds=seeds), {"w/o CDMD-B": (0.0, 0.9)})
    assert {verdict.finding for verdict in simulation.verdicts} == {Finding.UNTESTED}
    page = markdown(simulate_page(simulation))
    assert f"not testable here in every column ({few}; three are needed)" in page
    assert "**" not in page.split("## Accidental clicks")[1].split("## Sentence")[0]
    if seeds == 1:
        assert all(verdict.rise.p is None for verdict in simulation.verdicts)
        assert simulation.comparisons == 0


def test_missing_runs_are_gaps(data):
    asked = request(data, "accident,preference", seeds=3)
    rows = simulate.rows(asked)
    records = [
        r for r in made(asked, {"w/o CDMD-B": (0.0, 0.8)})
        if not (rows[r.key].label == "w/o CDMD-B" and r.data in {"tiny-accident-0", "tiny-accident-0.2"})
        and r.data != "tiny-preference-1.5"
    ]  # fmt: skip
    simulation = judge(asked, {}, records)
    found = {verdict.part: verdict for verdict in simulation.verdicts}
    assert found["w/o CDMD-B"].zero is None
    assert found["w/o CDMD-B"].rise is not None  # two points are left
    assert found["w/o MEIE"].finding is Finding.UNTESTED
    page = markdown(simulate_page(simulation))
    assert "| not run" in page
    assert "(runs at the greatest value and at one other are needed)" in page
    for left in (records[:1], []):
        bare = judge(asked, {}, left)
        assert markdown(simulate_page(bare))
        simulate_figure(bare)
        json.dumps(simulate_json(bare), allow_nan=False)


def test_a_row_with_fewer_runs_says_so(data):
    asked = request(data, "accident")
    records = [r for r in made(asked, {}) if not (r.seed == 3 and r.data == "tiny")]
    assert "(2 runs) |" in markdown(simulate_page(judge(asked, {}, records)))


def test_runs_that_the_limit_of_epochs_ended_are_counted(data):
    asked = request(data, "accident")
    records = made(asked, {})
    limit = records[0].config["train"]["epochs"]
    ends = [(limit, limit), (limit, limit - 9), (limit - 1, limit - 1)]
    changed = [replace(r, epochs=e, best_epoch=b) for r, (e, b) in zip(records, ends, strict=False)]
    simulation = judge(asked, {}, [*changed, *records[3:]])
    assert (simulation.trained, simulation.cut_off) == (24, 1)
    assert any(
        "1 of 24 runs were ended by the limit of epochs" in line for line in headlines(simulation)
    )
    assert not any("limit of epochs" in line for line in headlines(judge(asked, {}, records)))


def test_headroom_is_the_full_model_at_zero_minus_it_here(data):
    asked = request(data, "accident")
    simulation = judge(asked, {"M3BSR": (0.0, 0.5)})
    sweep = simulation.sweeps[0]
    for point in sweep.points[1:]:
        gain = simulation.gain(sweep, point, "oracle", "HR@10")
        ends = [
            simulation.level(sweep, p, "M3BSR", "HR@10").mean.mean for p in (sweep.points[0], point)
        ]
        assert gain.comparison.difference == pytest.approx(ends[0] - ends[1])
    assert simulation.gain(sweep, sweep.points[0], "oracle", "HR@10") is None
    assert "the oracle (accidental clicks taken out (fit and test)) is +0." in markdown(
        simulate_page(simulation)
    )


def test_json_and_csv_have_every_number(data):
    asked = request(data, seeds=3)
    noise = Noise("tiny", simulate.sweeps(asked)[1].points[1], "image", known(0.4), "a" * 64)
    simulation = judge(asked, {"w/o CDMD-B": (0.0, 0.8)}, noise=(noise,))
    content = simulate_json(simulation)
    json.dumps(content, allow_nan=False)
    assert content["target"] == "simulate"
    assert content["data"] == [{"name": "tiny", "demo": True, "data_sha256": "tiny-data-sha",
                                "candidates_sha256": "tiny-candidates-sha"}]  # fmt: skip
    assert len(content["worlds"]) == 9
    kinds = {line["kind"] for line in content["lines"]}
    assert kinds == {"mean", "gain", "headroom", "rise", "noise"}
    rows = list(csv.DictReader(io.StringIO(csv_text(simulation))))
    assert len(rows) == len(lines(simulation))
    rise = next(
        row
        for row in rows
        if (row["kind"], row["row"], row["metric"]) == ("rise", "CDMD-B", "HR@10")
    )
    assert rise["finding"] == "earns its keep where it should"
    assert float(rise["p_for"]) < 0.05
    assert rise["demo"] == "true"


# --- noise taken out ---


def known(share: float, *, factor: float = 1.0, turn: bool = False, items: int = 400) -> Removed:
    random = np.random.default_rng(3)
    clean, noise = random.standard_normal((items, 8)), random.standard_normal((items, 8))
    denoised = factor * (clean + np.sqrt(1 - share) * noise)
    if turn:
        denoised = denoised @ np.linalg.qr(random.standard_normal((8, 8)))[0] + 1.0
    return removed(clean + noise, denoised, clean)


def test_the_share_of_noise_taken_out_is_the_planted_one():
    half = known(0.5)
    assert half.distance.mean == pytest.approx(0.5)
    assert half.distance.sd == pytest.approx(0, abs=1e-9)
    assert known(0.0).distance.mean == pytest.approx(0, abs=1e-9)
    assert known(0.0).direction.mean == pytest.approx(0, abs=1e-9)
    assert known(0.0).moved == pytest.approx(0, abs=1e-12)
    assert known(1.0).distance.mean == known(1.0).direction.mean == pytest.approx(1)
    assert known(-1.0).distance.mean == pytest.approx(-1)


def test_a_scale_and_a_turn_are_seen_through_where_it_is_said():
    plain, large, turned = known(0.5), known(0.5, factor=3.0), known(0.5, turn=True)
    assert large.direction.mean == pytest.approx(plain.direction.mean)
    assert large.distance.mean < 0 < plain.distance.mean
    assert turned.direction.mean < 0
    assert turned.affine.mean == pytest.approx(plain.affine.mean, abs=1e-9)
    assert plain.affine.low < plain.affine.mean < plain.affine.high
    assert plain.affine.low > 0
    assert known(0.5, items=20).affine is None  # too few for the map


def test_without_noise_there_is_no_share_but_the_movement():
    clean = np.random.default_rng(0).standard_normal((50, 4))
    found = removed(clean, 1.1 * clean, clean)
    assert (found.distance, found.direction, found.affine) == (None, None, None)
    assert found.moved == pytest.approx(0.01)
    with pytest.raises(ValueError, match="1 items"):
        removed(clean[:1], clean[:1], clean[:1])


def test_a_feature_is_projected_and_normed_as_the_model_does():
    torch.manual_seed(0)
    project, norm = torch.nn.Linear(5, 4), torch.nn.LayerNorm(4)
    vectors = torch.randn(7, 5)
    with torch.no_grad():
        norm.weight.uniform_(0.5, 2)
        expected = norm(project(vectors)).numpy()
    arrays = {
        "image_project_weight": project.weight.detach().numpy(),
        "image_project_bias": project.bias.detach().numpy(),
        "image_norm_weight": norm.weight.detach().numpy(),
        "image_norm_bias": norm.bias.detach().numpy(),
    }
    assert same_feature(feature(vectors.numpy(), arrays, "image"), expected)
    assert not same_feature(feature(vectors.numpy()[::-1], arrays, "image"), expected)


def test_what_was_taken_out_is_on_the_page(data):
    point = simulate.sweeps(request(data))[1].points[-1]
    noise = (
        Noise("tiny", point, "image", known(0.4), "a" * 64),
        Noise("tiny", point, "text", None, why="no features of the model of seed 1 are stored"),
    )
    simulation = judge(request(data, "nuisance"), {}, noise=noise)
    line = headlines(simulation)[1]
    assert line.startswith(
        "Of the planted noise in tiny's worlds CDMD-M takes out: by distance 40 %, by direction "
    )
    page = markdown(simulate_page(simulation))
    assert "+0.400±.000" in page
    assert "tiny-nuisance-3: no features of the model of seed 1 are stored." in page
    assert len(simulate_figure(simulation).axes) == 4


def views(data: Path, world: str) -> dict[str, np.ndarray]:
    """What a model that takes out three quarters of the noise would leave."""
    random = np.random.default_rng(1)
    arrays: dict[str, np.ndarray] = {"item": np.arange(1, 401)}
    truth = truth_of(data, world)
    for mode in ("image", "text"):
        stored = np.load(data / world / f"{mode}.npy")[1:]
        arrays[f"{mode}_project_weight"] = random.standard_normal((6, stored.shape[1]))
        arrays[f"{mode}_project_bias"] = random.standard_normal(6)
        arrays[f"{mode}_norm_weight"] = random.uniform(0.5, 2, 6)
        arrays[f"{mode}_norm_bias"] = random.standard_normal(6)
        raw, clean = (feature(v, arrays, mode) for v in (stored, truth[f"clean_{mode}"]))
        arrays[f"{mode}_raw"], arrays[f"{mode}_denoised"] = raw, (raw + clean) / 2
    return arrays


def test_the_noise_is_measured_from_stored_features_and_the_truth(data, tmp_path):
    asked = replace(request(data, "nuisance", seeds=1), places=Places(data, tmp_path))
    cells = simulate.cells(asked)
    rows = simulate.rows(asked)
    records = {r.key: r for r in made(asked, {})}
    full = {c.data: cell_key(c) for c in cells if rows[cell_key(c)].label == "M3BSR"}
    store = Store(tmp_path)
    store.save(records[full["tiny"]], views(data, "tiny"))
    shifted = views(data, "tiny-nuisance-2")
    store.save(records[full["tiny-nuisance-2"]], shifted | {"item": np.roll(shifted["item"], 1)})
    store.save(records[full["tiny-nuisance-0"]], views(data, "tiny-nuisance-0"))
    found = simulate._noise(asked, Plan(tuple(cells), records, ()), simulate.sweeps(asked))
    by_world = {(noise.point.world, noise.mode): noise for noise in found}
    assert len(by_world) == 4 * 2
    for mode in ("image", "text"):
        own = by_world["tiny", mode]
        assert own.removed.distance.mean == pytest.approx(0.75, abs=1e-6)
        assert own.removed.items == np.load(data / "tiny" / f"{mode}_present.npy").sum() < 400
        assert own.run == full["tiny"]
        assert by_world["tiny-nuisance-0", mode].removed.distance is None
        assert "are of other items" in by_world["tiny-nuisance-2", mode].why
        assert "no features of the model of seed 1" in by_world["tiny-nuisance-3", mode].why


# --- end to end ---


def test_a_page_without_runs_has_gaps(data, tmp_path):
    asked = replace(request(data), places=Places(data, tmp_path))
    shown = simulate.publish(asked, Plan(tuple(simulate.cells(asked)), {}, ()), {})
    assert "not run" in shown
    assert "## What is missing" in shown
    page = (tmp_path / "tables" / "simulate" / "tiny" / "table.md").read_text(encoding="utf8")
    assert page.startswith("DEMO DATA: tiny")
    assert "| tiny-accident-0 " in page  # the worlds are there


@pytest.mark.slow
def test_a_smoke_run_leaves_the_whole_page(data, words, tmp_path, capsys):
    assert main(["simulate", *words, "--budget", "smoke", "--methods", "accident,nuisance"]) == 0
    out = capsys.readouterr().out
    folder = tmp_path / "results" / "tables" / "simulate" / "tiny"
    page = (folder / "table.md").read_text(encoding="utf8")
    assert page.startswith("DEMO DATA: tiny")
    assert "Only the first 200 users" in page.splitlines()[0]
    for name in ("table.csv", "table.tex", "table.json", "simulate.svg", "simulate.png"):
        assert (folder / name).stat().st_size > 0
    assert "Planted worlds" in out
    content = json.loads((folder / "table.json").read_text(encoding="utf8"))
    means = [line for line in content["lines"] if line["kind"] == "mean"]
    assert len(means) == 2 * 2 * 2 * 2
    assert all(line["runs"] == 1 for line in means)
    shares = {
        (line["world"], line["row"]): line["estimate"]
        for line in content["lines"]
        if line["metric"] == "share removed"
    }
    assert all(shares["tiny", mode] is not None for mode in ("image", "text"))
    assert all(shares["tiny-nuisance-0", mode] is None for mode in ("image", "text"))  # no noise
    assert {world["name"] for world in content["worlds"]} == {
        "tiny",
        "tiny-accident-0",
        "tiny-nuisance-0",
    }
    written = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert main(["simulate", *words, "--budget", "smoke", "--methods", "accident,nuisance"]) == 0
    assert written == {path.name: path.read_bytes() for path in folder.iterdir()}


assert {part for knob in simulate.KNOBS.values() for part in knob.parts} < set(figure3.REMOVALS)
