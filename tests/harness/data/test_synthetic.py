"""The worlds against their published checkpoints: every hash, every count, every promise of a knob."""

import hashlib
from dataclasses import asdict, replace
from functools import cache

import numpy as np
import pytest

from harness.data.synthetic import World, generate, kuaishou_world, rec_tmall_world

MAKERS = {"rec_tmall": rec_tmall_world, "kuaishou": kuaishou_world}
both = pytest.mark.parametrize("twin", MAKERS)


@cache
def world(twin: str) -> World:
    return generate(MAKERS[twin]())


def short(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def event_lines(world: World) -> bytes:
    first = np.searchsorted(world.user, np.arange(world.config.users))
    order = np.arange(len(world.user)) - first[world.user]
    rows = zip(world.user, world.item, world.behaviour, order, strict=True)
    return "".join(f"{u},{i},{b},{o}\n" for u, i, b, o in rows).encode()


def genuine(world: World) -> list[np.ndarray]:
    keep = ~world.accident
    return [world.user[keep], world.item[keep], world.behaviour[keep], world.timestamp[keep]]


CHECKPOINTS = {
    "rec_tmall": {
        "counts": (15_864, 1_126, 93, 489),
        "events": "1b9661dc3a18f4ee",
        "image": "cef65ebfd27a2cf1",
        "text": "7a7fce87bf80b6ba",
        "times": "96323156133a9bd6",
        "first": ([218, 329, 348, 348, 348], [0, 0, 0, 0, 1]),
    },
    "kuaishou": {
        "counts": (18_746, 1_843, 97, 66),
        "events": "753e81edd1eb7f49",
        "image": "5a0c38b0f6e93520",
        "text": "eda3d53cbc7b4da6",
        "times": "c4f27a06c2566963",
        "first": ([78, 575, 316, 575, 78], [0, 0, 0, 1, 0]),
    },
}


@both
def test_events_have_the_published_counts_and_hashes(twin: str) -> None:
    made, wanted = world(twin), CHECKPOINTS[twin]
    counts = (len(made.user), made.accident.sum(), made.items.cold.sum(), made.redraws)
    assert counts == wanted["counts"]
    assert short(event_lines(made)) == wanted["events"]
    assert short("".join(f"{t}\n" for t in made.timestamp).encode()) == wanted["times"]
    assert (made.item[:5].tolist(), made.behaviour[:5].tolist()) == wanted["first"]


@both
@pytest.mark.parametrize("mode", ["image", "text"])
def test_vectors_have_the_published_hashes(twin: str, mode: str) -> None:
    stored = getattr(world(twin), mode).stored
    assert stored.dtype == np.float32
    assert short(stored.tobytes()) == CHECKPOINTS[twin][mode]


@both
@pytest.mark.parametrize(
    "change",
    [
        {"accident": 0.0},
        {"accident": 0.35},
        {"nuisance": 3.0},
        {"overlap": 0.8},
        {"width": 64},
        {"miss_im": 0.4},
        {"miss_te": 0.0},
        {"leafsig": 0.2},
    ],
    ids=str,
)
def test_noise_knobs_change_no_genuine_event_and_no_taste(
    twin: str, change: dict[str, float]
) -> None:
    base = world(twin)
    other = generate(replace(base.config, **change))
    for one, two in zip(genuine(base), genuine(other), strict=True):
        np.testing.assert_array_equal(one, two)
    for key in ("a", "b", "c", "core", "click_utility", "favor_utility", "pi"):
        np.testing.assert_array_equal(getattr(base.users, key), getattr(other.users, key))


@both
def test_more_accidents_keep_the_fewer_ones(twin: str) -> None:
    base = world(twin)
    more = generate(replace(base.config, accident=0.35))
    none = generate(replace(base.config, accident=0.0))

    def clicks(made: World) -> set[tuple[int, int, int]]:
        keep = made.accident
        rows = zip(made.user[keep], made.item[keep], made.timestamp[keep], strict=True)
        return {(int(u), int(i), int(t)) for u, i, t in rows}

    assert clicks(none) == set()
    assert clicks(base) < clicks(more)
    for one, two in zip(genuine(base), genuine(none), strict=True):
        np.testing.assert_array_equal(one, two)


@both
def test_half_the_users_are_the_first_half(twin: str) -> None:
    base = world(twin)
    count = base.config.users // 2
    half = generate(replace(base.config, users=count))
    first = base.user < count
    for key in ("user", "item", "behaviour", "timestamp", "leaf", "accident"):
        np.testing.assert_array_equal(getattr(base, key)[first], getattr(half, key))


@both
def test_no_nuisance_stores_the_clean_vectors(twin: str) -> None:
    made = generate(replace(MAKERS[twin](), nuisance=0.0))
    for vectors in (made.image, made.text):
        np.testing.assert_array_equal(vectors.stored, vectors.clean.astype(np.float32))


@both
def test_clean_vectors_lie_in_ten_directions_and_noisy_ones_do_not(twin: str) -> None:
    made = world(twin)
    for vectors in (made.image, made.text):
        assert np.linalg.matrix_rank(vectors.clean, tol=1e-8) == 10
        assert np.linalg.matrix_rank(vectors.stored) > 22
        np.testing.assert_allclose(np.linalg.norm(vectors.stored, axis=1), 1, atol=1e-6)


@both
def test_a_share_of_the_nuisance_lies_inside_the_signals_space(twin: str) -> None:
    made = world(twin)
    _, _, directions = np.linalg.svd(made.image.clean, full_matrices=False)
    signal = directions[:10]
    inside = [
        np.linalg.norm((noisy.image.stored @ signal.T), axis=1).mean()
        for noisy in (generate(replace(made.config, nuisance=30.0, overlap=o)) for o in (0.0, 0.3))
    ]
    assert inside[0] < 0.35 < inside[1]


@both
def test_cold_items_appear_only_in_the_sale(twin: str) -> None:
    made = world(twin)
    sale = np.floor(15_552_000 * 0.95)
    assert (made.timestamp[made.items.cold[made.item]] >= sale).all()
    assert made.items.cold[made.item].any()


@both
def test_accidents_are_clicks_and_nobody_favors_twice(twin: str) -> None:
    made = world(twin)
    favor = made.behaviour == 1
    assert not (favor & made.accident).any()
    pairs = made.user[favor] * made.config.items + made.item[favor]
    assert len(np.unique(pairs)) == len(pairs)
    assert (np.diff(made.timestamp)[np.diff(made.user) == 0] >= 0).all()
    assert (np.diff(made.user) >= 0).all()


@both
def test_delay_zero_favors_at_once_and_the_successors_form_one_ring(twin: str) -> None:
    made = generate(replace(MAKERS[twin](), delay=0.0, direct=0.0, accident=0.0))
    favor = np.nonzero(made.behaviour == 1)[0]
    np.testing.assert_array_equal(made.item[favor], made.item[favor - 1])
    leaf, seen = 0, set()
    for _ in range(made.config.leaves):
        seen.add(leaf)
        leaf = int(made.items.successor[leaf])
    assert leaf == 0
    assert len(seen) == made.config.leaves


def test_a_seed_gives_the_world_of_its_config() -> None:
    config = rec_tmall_world()
    seven = generate(config, seed=7)
    assert asdict(seven.config) == asdict(replace(config, seed=7))
    np.testing.assert_array_equal(seven.item, generate(replace(config, seed=7)).item)
    assert event_lines(seven) != event_lines(world("rec_tmall"))


def test_titles_name_leaf_brand_and_style() -> None:
    made = world("rec_tmall")
    titles = made.titles()
    assert len(titles) == 400
    assert titles[5].startswith(f"brand-{made.items.brand[5]:02d} ")
    assert titles[5].endswith(f"leaf-{made.items.leaf[5]:02d}")
    assert ("patterned" in titles[5]) == (made.items.style_te[5, 0] > 0)
