"""Two small worlds with a planted truth: who likes what, which clicks are accidents, what is noise.

Every array has its own named random stream (`harness.seeding.stream`) and comes from one call, so a
knob that needs fewer or more draws moves nothing else: accident, nuisance, overlap, width and miss_*
change no genuine event, and half the users are the first half. Indices count from 0 here, float64
throughout; behaviour is 0 for a click and 1 for a favor, as in the published checkpoints.

Axes: user, item, event, leaf, step = places of a user's walk, im / te = image / text.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray

from harness.seeding import stream

PARENTS = 8
BRANDS_A_PARENT = 6
SELLERS = 80
TASTE = 4
CODE = 6
"""Signal directions of an item's place in the tree; with `TASTE` styles they make 10."""
NUISANCE = 12
SALE = 3
"""Last steps of a walk, in which cold items may be met."""
TRIES = 30
ACCIDENTS = 8
"""Most accidental clicks before one step."""
SPAN = 15_552_000
"""Seconds from the first possible event to the last: 180 days."""


@dataclass
class WorldConfig:
    """Every knob of a world; the defaults are those of the Rec-Tmall twin."""

    seed: int = 20250713
    users: int = 1600
    items: int = 400
    leaves: int = 24
    """Leaf categories, a multiple of the 8 parents."""
    width: int = 128
    """Width of the image and text vectors, at least 22."""
    zipf: float = 0.85
    """Exponent of the items' popularity."""
    stay: float = 0.5
    """Chance that a step stays in the leaf."""
    succ: float = 0.4
    """Chance that a step goes to the leaf's successor."""
    browse: float = 0.4
    """Share of a user's leaves that is everyone's."""
    delay: float = 0.5
    """Chance that a favor waits one more step."""
    direct: float = 0.06
    """Chance that a favor comes without its click."""
    accident: float = 0.10
    """Chance of an accidental click before a step, and of each further one."""
    nuisance: float = 0.8
    """Size of what is not signal in the vectors."""
    leafsig: float = 1.2
    """Size of the category's part of the signal."""
    overlap: float = 0.3
    """Share of the nuisance that lies inside the signal's space."""
    miss_im: float = 0.05
    miss_te: float = 0.10
    cold: float = 0.22
    """Share of the items that appear only in the sale."""
    boost: float = 2.0
    """Pull of the cold items in the sale."""
    length_median: float = 6.0
    length_sigma: float = 0.45
    length_min: int = 3
    length_max: int = 60
    click_image: float = 1.4
    click_text: float = 0.2
    click_id: float = 0.5
    click_bait: float = 0.7
    favor_image: float = 0.2
    favor_text: float = 1.2
    favor_id: float = 0.8
    favor_core: float = 1.5
    favor_substance: float = 2.2
    """Weight of the first text style."""
    favor_bait: float = -1.2
    """Weight of the first image style, which makes people click."""
    favor_seller: float = 1.0
    favor_bias: float = -0.3
    id_fields: bool = True
    """Brand, seller and category are told to the methods (Rec-Tmall's fields; Kuaishou has none)."""


def rec_tmall_world() -> WorldConfig:
    """The twin with short histories and few clicks a favor."""
    return WorldConfig()


def kuaishou_world() -> WorldConfig:
    """The twin with long histories and many clicks a favor."""
    return WorldConfig(
        seed=20250714, users=400, items=700, leaves=32, zipf=0.7, stay=0.45, succ=0.35, browse=0.5,
        accident=0.12, nuisance=1.0, leafsig=1.0, cold=0.12, boost=1.5,
        length_median=24.0, length_sigma=0.9, length_min=4, length_max=200,
        favor_bias=-2.6, id_fields=False,
    )  # fmt: skip


@dataclass(frozen=True)
class Items:
    """What is true of the items, and their vectors."""

    leaf: Int[ndarray, " item"]
    parent: Int[ndarray, " item"]
    brand: Int[ndarray, " item"]
    seller: Int[ndarray, " item"]
    log_weight: Float[ndarray, " item"]
    cold: Bool[ndarray, " item"]
    style_im: Float[ndarray, "item taste"]
    style_te: Float[ndarray, "item taste"]
    q: Float[ndarray, "item taste"]
    """The taste dimension that no vector shows."""
    kappa: Float[ndarray, " seller"]
    lam: Float[ndarray, " leaf"]
    successor: Int[ndarray, " leaf"]


@dataclass(frozen=True)
class Vectors:
    """One modality: what is stored (unit length, float32), what is true (unit length), what is missing."""

    stored: Float[ndarray, "item width"]
    clean: Float[ndarray, "item width"]
    missing: Bool[ndarray, " item"]


@dataclass(frozen=True)
class Users:
    """What is true of the users."""

    a: Float[ndarray, "user taste"]
    b: Float[ndarray, "user taste"]
    c: Float[ndarray, "user taste"]
    length: Int[ndarray, " user"]
    core: Int[ndarray, "user two"]
    start: Float[ndarray, " user"]
    pi: Float[ndarray, "user leaf"]
    click_utility: Float[ndarray, "user item"]
    favor_utility: Float[ndarray, "user item"]


@dataclass(frozen=True)
class World:
    """The raw log, users ascending and in time order inside a user, with the truth behind it."""

    config: WorldConfig
    items: Items
    image: Vectors
    text: Vectors
    users: Users
    user: Int[ndarray, " event"]
    item: Int[ndarray, " event"]
    behaviour: Int[ndarray, " event"]
    """0 click, 1 favor."""
    timestamp: Int[ndarray, " event"]
    leaf: Int[ndarray, " event"]
    """State of the walk at the event's step."""
    accident: Bool[ndarray, " event"]
    redraws: int
    """Tries beyond each user's first."""

    def truth(self) -> dict[str, ndarray]:
        """What no loader knows: the arrays of the truth file."""
        return {
            "a": self.users.a,
            "b": self.users.b,
            "c": self.users.c,
            "core": self.users.core,
            "click_utility": self.users.click_utility,
            "favor_utility": self.users.favor_utility,
            "pi": self.users.pi,
            "user": self.user,
            "item": self.item,
            "behaviour": self.behaviour,
            "timestamp": self.timestamp,
            "leaf": self.leaf,
            "accident": self.accident,
            "clean_image": self.image.clean,
            "clean_text": self.text.clean,
            "cold": self.items.cold,
            "kappa": self.items.kappa,
            "q": self.items.q,
            "item_leaf": self.items.leaf,
            "successor": self.items.successor,
        }

    def titles(self) -> list[str]:
        """A title an item, of words for leaf, brand and the signs of the text style (reports only)."""
        words = (
            ("plain", "patterned"),
            ("light", "heavy"),
            ("classic", "modern"),
            ("small", "large"),
        )
        signs = (self.items.style_te > 0).astype(int)
        return [
            " ".join(
                [f"brand-{brand:02d}", *(pair[sign] for pair, sign in zip(words, row, strict=True)),
                 f"leaf-{leaf:02d}"]
            )
            for brand, leaf, row in zip(self.items.brand, self.items.leaf, signs, strict=True)
        ]  # fmt: skip


class Draws:
    """The two primitives: one array a name, in one call, in C order."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def uniform(self, name: str, *shape: int) -> Float[ndarray, "*shape"]:
        """U(name, shape)."""
        return stream(self.seed, name).random(shape)

    def normal(self, name: str, *shape: int) -> Float[ndarray, "*shape"]:
        """Z(name, shape)."""
        return stream(self.seed, name).standard_normal(shape)


def generate(config: WorldConfig, seed: int | None = None) -> World:
    """The world of these knobs.

    Args:
        config: The knobs.
        seed: Replaces `config.seed` when given.
    """
    if seed is not None:
        config = replace(config, seed=seed)
    draws = Draws(config.seed)
    items = _items(config, draws)
    image = _vectors(config, draws, "im", items, items.style_im)
    text = _vectors(config, draws, "te", items, items.style_te)
    users = _users(config, draws, items)
    genuine, redraws = _walks(config, draws, items, users)
    accidents = _accidents(config, draws, items, users, genuine.leaf_at)
    columns = [np.concatenate(pair) for pair in zip(genuine.columns, accidents, strict=True)]
    user, step, rank, first, second, item, behaviour, leaf = columns
    accident = np.arange(len(user)) >= len(genuine.columns[0])
    order = np.lexsort((second, first, rank, step, user))
    seconds = np.floor(SPAN * genuine.time[user, step]).astype(np.int64)
    return World(
        config, items, image, text, users,
        user[order], item[order], behaviour[order], seconds[order], leaf[order], accident[order],
        redraws,
    )  # fmt: skip


def pick(
    weights: Float[ndarray, "*rows choice"], x: Float[ndarray, "*rows"]
) -> Int[ndarray, "*rows"]:
    """How many entries of cumsum(weights) are at most x times the last one; never past the end."""
    heights = np.cumsum(weights, axis=-1)
    below = (heights <= x[..., None] * heights[..., -1:]).sum(-1)
    return np.asarray(np.minimum(below, heights.shape[-1] - 1))


def _pick_shared(
    weights: Float[ndarray, " choice"], x: Float[ndarray, "*shape"]
) -> Int[ndarray, "*shape"]:
    """`pick` with the same weights for every x."""
    heights = np.cumsum(weights)
    below = np.searchsorted(heights, x * heights[-1], side="right")
    return np.asarray(np.minimum(below, len(heights) - 1))


def _items(config: WorldConfig, draws: Draws) -> Items:
    """The tree of categories, the items in it, and what they are like."""
    count, leaves = config.items, config.leaves
    a_parent = leaves // PARENTS
    parent_of = np.arange(leaves) // a_parent
    ring = np.argsort(draws.uniform("ring", PARENTS))
    after = np.empty(PARENTS, dtype=np.int64)
    after[ring] = np.roll(ring, -1)
    successor = np.arange(1, leaves + 1)
    last = successor % a_parent == 0
    successor[last] = after[parent_of[last]] * a_parent
    lam = (1.0 + np.argsort(draws.uniform("leaf_rank", leaves))) ** -0.5
    lam /= lam.sum()
    leaf = _pick_shared(0.5 * lam + 0.5 / leaves, draws.uniform("leaf", count))
    leaf[:leaves] = np.arange(leaves)[:count]
    parent = parent_of[leaf]
    log_weight = -config.zipf * np.log(1.0 + np.argsort(draws.uniform("item_rank", count)))
    cold = draws.uniform("cold", count) < config.cold

    x = draws.uniform("brand", count, 3)
    home = np.where(x[:, 0] < 0.7, parent, np.floor(PARENTS * x[:, 1]).astype(np.int64))
    shares = (1.0 + np.arange(BRANDS_A_PARENT)) ** -0.8
    brand = BRANDS_A_PARENT * home + _pick_shared(shares, x[:, 2])

    base = parent_of[np.floor(leaves * draws.uniform("seller_home", SELLERS)).astype(np.int64)]
    x = draws.uniform("seller", count, 2)
    by_parent = np.argsort(base, kind="stable")
    size = np.bincount(base, minlength=PARENTS)
    first = np.cumsum(size) - size
    near = (x[:, 0] < 0.6) & (size[parent] > 0)
    place = np.floor(np.where(near, size[parent], SELLERS) * x[:, 1]).astype(np.int64)
    seller = np.where(near, by_parent[np.where(near, first[parent] + place, 0)], place)

    latent = draws.normal("brand_latent", PARENTS * BRANDS_A_PARENT, TASTE)
    return Items(
        leaf=leaf,
        parent=parent,
        brand=brand,
        seller=seller,
        log_weight=log_weight,
        cold=cold,
        style_im=draws.normal("style_im", count, TASTE),
        style_te=draws.normal("style_te", count, TASTE),
        q=0.8 * latent[brand] + 0.6 * draws.normal("id_latent", count, TASTE),
        kappa=draws.normal("seller_quality", SELLERS),
        lam=lam,
        successor=successor,
    )


def _orthonormal(matrix: Float[ndarray, "row column"]) -> Float[ndarray, "row column"]:
    """Q of the QR decomposition whose R has a positive diagonal (so that it is unique)."""
    q, r = np.linalg.qr(matrix)
    return np.asarray(q * np.sign(np.diag(r)))


def _unit(rows: Float[ndarray, "item width"]) -> Float[ndarray, "item width"]:
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))


def _vectors(
    config: WorldConfig,
    draws: Draws,
    mode: str,
    items: Items,
    style: Float[ndarray, "item taste"],
) -> Vectors:
    """One modality: signal (category and style) plus nuisance, part of it in the signal's own space."""
    count, width, signal = config.items, config.width, CODE + TASTE
    code = (
        0.6 * draws.normal(f"code_parent_{mode}", PARENTS, CODE)[items.parent]
        + 0.8 * draws.normal(f"code_leaf_{mode}", config.leaves, CODE)[items.leaf]
    )
    z = np.concatenate([config.leafsig * code, style], axis=1)
    basis = _orthonormal(draws.normal(f"basis_{mode}", width, signal + NUISANCE))
    A, outside = basis[:, :signal], basis[:, signal:]
    turn = _orthonormal(draws.normal(f"turn_{mode}", signal, signal))
    inside = A @ np.concatenate([turn, turn], axis=1)[:, :NUISANCE]
    B = np.sqrt(1.0 - config.overlap) * outside + np.sqrt(config.overlap) * inside
    template = np.floor(8 * draws.uniform(f"template_of_{mode}", count)).astype(np.int64)
    n = 0.8 * draws.normal(f"template_{mode}", 8, NUISANCE)[template] + 0.6 * draws.normal(
        f"nuisance_{mode}", count, NUISANCE
    )
    e = draws.normal(f"noise_{mode}", count, width)
    clean = z @ A.T / np.sqrt(signal)
    noise = n @ B.T / np.sqrt(NUISANCE) + 0.7 * e / np.sqrt(width)
    share_missing = {"im": config.miss_im, "te": config.miss_te}[mode]
    return Vectors(
        stored=_unit(clean + config.nuisance * noise).astype(np.float32),
        clean=_unit(clean),
        missing=draws.uniform(f"missing_{mode}", count) < share_missing,
    )


def _users(config: WorldConfig, draws: Draws, items: Items) -> Users:
    """Tastes, lengths, and what each user thinks of each item before and after opening it."""
    count = config.users
    Y = draws.normal("users", count, 3 * TASTE + 1)
    a, b, c = Y[:, :4], Y[:, 4:8], Y[:, 8:12]
    length = np.rint(config.length_median * np.exp(config.length_sigma * Y[:, 12]))
    core = np.argsort(draws.uniform("core", count, PARENTS), axis=1)[:, :2]
    parent_of = np.arange(config.leaves) // (config.leaves // PARENTS)
    in_core = (parent_of[:, None] == core[:, None, :]).any(2)
    own = items.lam * in_core
    pi = (1 - config.browse) * own / own.sum(1, keepdims=True) + config.browse * items.lam
    image, text, hidden = a @ items.style_im.T, b @ items.style_te.T, c @ items.q.T
    bait, substance = items.style_im[:, 0], items.style_te[:, 0]
    click = (
        config.click_image * image + config.click_text * text + config.click_id * hidden
    ) / 2 + config.click_bait * bait
    favor = (
        (config.favor_image * image + config.favor_text * text + config.favor_id * hidden) / 2
        + config.favor_core * np.where(in_core[:, items.leaf], 1.0, -1.0)
        + config.favor_substance * substance
        + config.favor_bait * bait
        + config.favor_seller * items.kappa[items.seller]
        + config.favor_bias
    )
    return Users(
        a, b, c,
        length=np.clip(length, config.length_min, config.length_max).astype(np.int64),
        core=core,
        start=0.7 * draws.uniform("start", count),
        pi=pi,
        click_utility=click,
        favor_utility=favor,
    )  # fmt: skip


Columns = list[ndarray]
"""user, step, rank in the step (accidents 0, click 1, delayed favor 2), two tie-breakers, item,
behaviour, leaf: an entry an event."""


@dataclass(frozen=True)
class Genuine:
    """The accepted walks."""

    columns: Columns
    time: Float[ndarray, "user step"]
    leaf_at: Int[ndarray, "user step"]


def _walks(config: WorldConfig, draws: Draws, items: Items, users: Users) -> tuple[Genuine, int]:
    """Walks of all users, redrawn until each has enough events and favors (or 30 tries are over)."""
    count, steps = config.users, config.length_max
    time = np.zeros((count, steps))
    leaf_at = np.zeros((count, steps), dtype=np.int64)
    parts: list[Columns] = []
    waiting = np.arange(count)
    redraws = 0
    members = _leaf_members(items, config.leaves)
    for attempt in range(TRIES):
        redraws += len(waiting) if attempt else 0
        X = draws.uniform(f"events{attempt}", int(waiting[-1]) + 1, steps, 7)[waiting]
        leaf = _leaves(config, items, users.pi[waiting], X)
        columns = _steps(config, items, users, waiting, leaf, X, members)
        events = np.bincount(columns[0], minlength=len(waiting))
        favors = np.bincount(columns[0], weights=columns[6], minlength=len(waiting))
        accepted = (events >= 5) & (favors >= (2 if attempt else 1))
        if attempt == TRIES - 1:
            accepted[:] = True
        kept = accepted[columns[0]]
        parts.append([waiting[columns[0][kept]], *(column[kept] for column in columns[1:])])
        chosen = waiting[accepted]
        time[chosen] = _times(users.start[chosen], users.length[chosen], X[accepted, :, 0])
        leaf_at[chosen] = leaf[accepted]
        waiting = waiting[~accepted]
        if not len(waiting):
            break
    columns = [np.concatenate(pieces) for pieces in zip(*parts, strict=True)]
    return Genuine(columns, time, leaf_at), redraws


def _times(
    start: Float[ndarray, " user"], length: Int[ndarray, " user"], x: Float[ndarray, "user step"]
) -> Float[ndarray, "user step"]:
    """Sorted times in [0, 1): the walk until 0.95, then the sale."""
    step = np.arange(x.shape[1])
    before, walked = step < length[:, None] - SALE, step < length[:, None]
    early = np.sort(np.where(before, x, 2.0), axis=1)  # what does not belong sorts to the end
    late = np.sort(np.where(walked & ~before, x, 2.0), axis=1)[:, :SALE]
    place = np.clip(step - (length[:, None] - SALE), 0, SALE - 1)
    sale = 0.95 + 0.05 * np.take_along_axis(late, place, axis=1)
    return np.where(before, start[:, None] + (0.95 - start[:, None]) * early, sale)


def _leaves(
    config: WorldConfig,
    items: Items,
    pi: Float[ndarray, "user leaf"],
    X: Float[ndarray, "user step draw"],
) -> Int[ndarray, "user step"]:
    """The walk over leaves; it does not depend on which items are met."""
    heights = np.cumsum(pi, axis=1)
    jump = np.empty(X.shape[:2], dtype=np.int64)
    for row, height in enumerate(heights):  # a search a user beats a comparison with every leaf
        jump[row] = np.searchsorted(height, X[row, :, 2] * height[-1], side="right")
    jump = np.minimum(jump, pi.shape[1] - 1)
    leaf: ndarray = np.empty_like(jump)
    leaf[:, 0] = jump[:, 0]
    for step in range(1, X.shape[1]):
        x, previous = X[:, step, 1], leaf[:, step - 1]
        moved = np.where(x < config.stay + config.succ, items.successor[previous], jump[:, step])
        leaf[:, step] = np.where(x < config.stay, previous, moved)
    return leaf


def _leaf_members(items: Items, leaves: int) -> Int[ndarray, "leaf most"]:
    """The items of each leaf, ascending; -1 fills."""
    size = np.bincount(items.leaf, minlength=leaves)
    order = np.argsort(items.leaf, kind="stable")
    members = np.full((leaves, max(int(size.max()), 1)), -1)
    place = np.arange(len(order)) - np.repeat(np.cumsum(size) - size, size)
    members[items.leaf[order], place] = order
    return members


def _steps(
    config: WorldConfig,
    items: Items,
    users: Users,
    who: Int[ndarray, " user"],
    leaf: Int[ndarray, "user step"],
    X: Float[ndarray, "user step draw"],
    members: Int[ndarray, "leaf most"],
) -> Columns:
    """Clicks and favors of these users' walks; `user` counts within `who`."""
    length = users.length[who]
    row, step = np.nonzero(np.arange(leaf.shape[1]) < length[:, None])
    candidates = members[leaf[row, step]]
    sale = step >= length[row] - SALE
    allowed = (candidates >= 0) & (sale[:, None] | ~items.cold[candidates])
    log_weight = items.log_weight + config.boost * items.cold
    weight = np.exp(log_weight[candidates] + users.click_utility[who[row, None], candidates])
    weight = np.where(allowed, weight, 0.0)
    place = pick(weight, X[row, step, 3])
    met = allowed.any(1)
    row, step, item = row[met], step[met], candidates[np.arange(len(place)), place][met]

    x = X[row, step]
    tempted = x[:, 4] < 1.0 / (1.0 + np.exp(-users.favor_utility[who[row], item]))
    favored = np.zeros_like(tempted)
    first = np.unique((row * config.items + item)[tempted], return_index=True)[1]
    favored[np.nonzero(tempted)[0][first]] = True  # nobody favors an item twice
    direct = favored & (x[:, 5] < config.direct)
    later = favored & ~direct
    at = step[later] + _delays(config.delay, x[later, 6])

    state = leaf[row, step]
    zero = np.zeros_like(row)
    opened = [row, step, zero + 1, zero, zero, item, direct.astype(np.int64), state]
    stands = np.minimum(at, length[row[later]] - 1)
    liked = [
        row[later], stands, zero[later] + 2, at, step[later], item[later], zero[later] + 1,
        leaf[row[later], stands],
    ]  # fmt: skip
    return [np.concatenate(pair) for pair in zip(opened, liked, strict=True)]


def _delays(delay: float, x: Float[ndarray, " event"]) -> Int[ndarray, " event"]:
    """How many steps a favor waits: geometric."""
    if delay == 0:
        return np.zeros(len(x), dtype=np.int64)
    return np.asarray(np.floor(np.log1p(-x) / np.log(delay)), dtype=np.int64)


def _accidents(
    config: WorldConfig,
    draws: Draws,
    items: Items,
    users: Users,
    leaf_at: Int[ndarray, "user step"],
) -> Columns:
    """Clicks that mean nothing, before the steps of the walk; no state moves."""
    Y = draws.uniform("accidents", config.users, config.length_max, ACCIDENTS, 2)
    walked = np.arange(config.length_max) < users.length[:, None]
    leading = np.logical_and.accumulate(Y[..., 0] < config.accident, axis=2)
    user, step, number = np.nonzero(leading & walked[:, :, None])
    weight = np.exp(items.log_weight) ** 0.5
    x = Y[user, step, number, 1]
    sale = step >= users.length[user] - SALE
    item = np.where(
        sale, _pick_shared(weight, x), _pick_shared(np.where(items.cold, 0.0, weight), x)
    )
    zero = np.zeros_like(user)
    return [user, step, zero, number, zero, item, zero, leaf_at[user, step]]


def knobs() -> list[str]:
    """Names of every knob."""
    return [field.name for field in fields(WorldConfig)]
