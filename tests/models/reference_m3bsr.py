"""M3BSR once more, slowly: NumPy, one user at a time, no padding, no masks, no folding.

Weights are the arrays of a parity pair (`w/` names without the prefix), readings the options' names.
Every formula is written as it is printed, or as the reading that repairs it; nothing is shared with
models/.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

Array = np.ndarray
MODALITIES = ("im", "te", "id")
BEHAVIOURS = ("cl", "fa")


@dataclass
class User:
    number: int
    events: dict[str, list[int]]
    """Item ids of "cl" and "fa", oldest first."""
    target: int
    noise: dict[tuple[str, str, str], Array] = field(default_factory=dict)
    """(stage, behaviour, modality) to [draw, slot, d]; one slot for an empty history."""
    step: dict[str, int] = field(default_factory=dict)
    """Stage to the sampled t."""


@dataclass
class Items:
    fields: list[Array]
    """Id fields beside the item, each [items + 1]."""
    vectors: dict[str, Array]
    present: dict[str, Array]


@dataclass
class Reference:
    """The model; `options` holds the readings, `parts` what an ablation left."""

    w: dict[str, Array]
    options: dict[str, Any]
    items: Items
    field_names: list[str]

    # ------------------------------------------------------------------------------- pieces

    def linear(self, name: str, x: Array, index: int | None = None) -> Array:
        weight, bias = self.w[f"{name}/w"], self.w[f"{name}/b"]
        if index is not None:
            weight, bias = weight[index], bias[index]
        return x @ weight.T + bias

    def norm(self, name: str, x: Array, index: int) -> Array:
        centred = x - x.mean(1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(1, keepdims=True) + 1e-5)
        return scaled * self.w[f"{name}/g"][index] + self.w[f"{name}/b"][index]

    def attend(self, name: str, u: Array, c: Array, index: int | None = None) -> Array:
        """Four Linear layers, heads one by one."""
        query, key, value = (
            self.linear(f"{name}/{letter}", x, index)
            for letter, x in zip("qkv", (u, c, c), strict=True)
        )
        heads = self.options["heads"]
        width = u.shape[1] // heads
        mixed = []
        for head in range(heads):
            part = slice(head * width, (head + 1) * width)
            scores = query[:, part] @ key[:, part].T / np.sqrt(width)
            mixed.append(softmax(scores) @ value[:, part])
        return self.linear(f"{name}/o", np.concatenate(mixed, 1), index)

    # -------------------------------------------------------------------------- input layer

    def features(self, user: User) -> dict[tuple[str, str], Array]:
        found = {}
        for b, behaviour in enumerate(BEHAVIOURS):
            events = user.events[behaviour]
            for m, modality in enumerate(MODALITIES):
                if not events:
                    found[behaviour, modality] = self.w["empty"][b, m][None]
                    continue
                rows = [self.raw(item, modality, user.number) for item in events]
                x = np.stack(rows)
                if self.options["input.norm"] == "layernorm":
                    x = self.norm("in_ln", x, m)
                found[behaviour, modality] = x
        return found

    def raw(self, item: int, modality: str, user: int) -> Array:
        if modality != "id":
            if not self.items.present[modality][item]:
                return self.w["missing"][MODALITIES.index(modality)]
            return self.linear(f"proj/{modality}", self.items.vectors[modality][item])
        ids = [item, *(values[item] for values in self.items.fields), user]
        tables = [self.w[f"emb/{name}"] for name in self.field_names]
        x = self.linear("id1", np.concatenate([t[i] for t, i in zip(tables, ids, strict=True)]))
        if self.options["input.id_mlp"] == "two_layer":
            x = self.linear("id2", np.maximum(x, 0))
        return x

    # ------------------------------------------------------------------------------ diffusion

    def schedule(self, steps: int) -> dict[str, Array]:
        """Arrays in which index t is step t; index 0 is the clean state."""
        ramp = [
            0.001 + (t - 1) / (steps - 1) * 0.099 if steps > 1 else 0.001
            for t in range(1, steps + 1)
        ]
        if self.options["schedule.noise"] == "alpha":
            alpha = [0.1 - (r - 0.001) for r in ramp]
        else:
            alpha = [1 - r for r in ramp]
        a = np.array([1.0, *alpha])
        carry = np.sqrt(a) if self.options["schedule.mean"] == "sqrt_alpha" else a
        mean, spread = [1.0], [0.0]
        for t in range(1, steps + 1):
            mean.append(carry[t] * mean[-1])
            spread.append(np.sqrt(carry[t] ** 2 * spread[-1] ** 2 + 1 - a[t]))
        return {
            "a": a, "A": np.cumprod(a), "carry": carry, "m": np.array(mean), "s": np.array(spread)
        }  # fmt: skip

    def forward(self, x0: Array, noise: Array, s: dict[str, Array]) -> list[Array]:
        """x_0 .. x_T."""
        states = [x0]
        for t in range(1, len(s["a"])):
            if self.options["forward.noise"] == "closed":
                states.append(s["m"][t] * x0 + s["s"][t] * noise[0])
            else:
                states.append(s["carry"][t] * states[-1] + np.sqrt(1 - s["a"][t]) * noise[t - 1])
        return states

    def predict(self, name: str, x: Array, c: Array, t: int, index: int) -> Array:
        u = x
        if self.options["denoiser.time_embedding"]:
            half = x.shape[1] // 2
            rate = [10000 ** (-2 * k / x.shape[1]) for k in range(half)]
            wave = [np.sin(t * r) for r in rate] + [np.cos(t * r) for r in rate]
            u = x + self.linear(f"{name}/time", np.array(wave), index)
        if self.options["denoiser.block"] == "attention":
            return self.attend(name, u, c, index)
        n = self.norm(f"{name}/ln1", u, index)
        a = self.norm(f"{name}/ln2", n + self.attend(name, n, c, index), index)
        return self.linear(f"{name}/f2", np.maximum(self.linear(f"{name}/f1", a, index), 0), index)

    def back(
        self, name: str, states: list[Array], c: Array, s: dict[str, Array], index: int
    ) -> list[Array]:
        """xbar_0 .. xbar_T from x_0 .. x_T."""
        steps = len(s["a"]) - 1
        ends = [states[-1]]
        for t in range(steps, 0, -1):
            source = ends[0] if self.options["reverse.input"] == "chained" else states[t]
            noise = self.predict(name, source, c, t, index)
            factor = (1 - s["a"][t]) / np.sqrt(1 - s["A"][t])
            ends.insert(0, (source - factor * noise) / np.sqrt(s["a"][t]))
        return ends

    def stage(
        self, letter: str, jobs: list[tuple[str, str, Array, Array]], user: User, start: str
    ) -> tuple[list[Array], list[Array]]:
        """Denoised features of one stage, and each job's squares [slot, d] that its loss averages."""
        steps = self.options[f"diffusion.steps_{letter}"] or self.options["diffusion.steps"]
        s = self.schedule(steps)
        done, squares = [], []
        for number, (behaviour, modality, x0, c) in enumerate(jobs):
            sharing = self.options["denoiser.sharing"]
            own = MODALITIES.index(modality)
            index = {"per_stage": 0, "per_modality": own, "per_feature": number}[sharing]
            if start == "clean":
                states = [x0] * (steps + 1)
            else:
                states = self.forward(x0, user.noise[letter, behaviour, modality], s)
            ends = self.back(f"d{letter}", states, c, s, index)
            done.append(ends[0])
            kind = self.options["diffusion.loss"]
            if kind == "printed":
                gap = sum(((states[t] - ends[t]) ** 2 for t in range(1, steps)), 0 * x0)
            elif kind == "reconstruction":
                gap = (x0 - ends[0]) ** 2
            else:
                t = user.step.get(letter, 1)
                drawn = (states[t] - s["m"][t] * x0) / s["s"][t]
                gap = (drawn - self.predict(f"d{letter}", states[t], c, t, index)) ** 2
            squares.append(gap)
        return done, squares

    # -------------------------------------------------------------------------------- experts

    def encoder(self, name: str, x: Array, index: int, rows: list[int]) -> Array:
        if self.options["expert.positions"] == "learned":
            x = x + self.w[f"{name}/pos"][index][rows]
        pre = self.options["expert.norm"] == "pre"
        for layer in range(self.options["expert.layers"]):
            at = f"{name}/{layer}"

            def feed(x: Array, at: str = at) -> Array:
                return self.linear(
                    f"{at}/f2", np.maximum(self.linear(f"{at}/f1", x, index), 0), index
                )

            if pre:
                n = self.norm(f"{at}/ln1", x, index)
                x = x + self.attend(at, n, n, index)
                x = x + feed(self.norm(f"{at}/ln2", x, index))
            else:
                x = self.norm(f"{at}/ln1", x + self.attend(at, x, x, index), index)
                x = self.norm(f"{at}/ln2", x + feed(x), index)
        if pre:
            x = self.norm(f"{name}/final", x, index)
        return x[-1] if self.options["pooling"] == "last" else x.mean(0)

    def shared(self, h: dict[tuple[str, str], Array], length: int) -> Array:
        sides = []
        for behaviour in BEHAVIOURS:
            blocks = [h[behaviour, modality] for modality in MODALITIES]
            if self.options["concat"] == "positions":
                sides.append(np.concatenate(blocks))
            else:
                sides.append(self.linear("concat", np.concatenate(blocks, 1)))
        mixed = self.attend("ca", sides[0], sides[1])
        slots = len(h["cl", "id"])
        blocks = 3 if self.options["concat"] == "positions" else 1
        rows = [
            block * length + slots - 1 - slot for block in range(blocks) for slot in range(slots)
        ]
        return self.encoder("sh", mixed, 0, rows)

    def disentangle(self, vectors: list[Array]) -> float:
        unit = [v / max(np.sqrt((v**2).sum()), 1e-8) for v in vectors]
        n, tau, kind = len(unit), self.options["loss.tau"], self.options["disent.loss"]
        total = 0.0
        for i in range(n):
            others = [k for k in range(n) if k != i]
            sims = {k: float(unit[i] @ unit[k]) for k in others}
            log_sum = np.log(sum(np.exp(sims[k] / tau) for k in others))
            if kind == "printed":
                total += sum(-(sims[j] / tau - log_sum) for j in others)
            elif kind == "separate":
                total += tau * log_sum / n
            else:
                total += sum(sims[j] ** 2 for j in others) / (n * (n - 1))
        return total

    def route(self, common: Array, z: list[Array]) -> tuple[Array, Array]:
        flat = np.concatenate(z)
        g = 1 / (1 + np.exp(-self.linear("gate", np.concatenate([common, flat]))))
        kind = self.options["routing.gate"]
        if kind in ("vector", "scalar"):
            return g * common + (1 - g) * self.linear("spec", flat), g
        if kind == "tile":
            return self.linear("spec", g * np.tile(common, 6) + (1 - g) * flat), g
        return np.mean([g[e] * common + (1 - g[e]) * z[e] for e in range(6)], 0), g

    # ---------------------------------------------------------------------------------- users

    def user(self, user: User, length: int, mode: str) -> dict[str, Any]:
        """`mode`: train, clean, noised or bypass."""
        h = self.features(user)
        bypass = mode == "bypass"
        squares: dict[tuple[str, str, str], Array] = {}
        modality = self.options["parts.modality_denoiser"]
        names = [(b, m) for b in BEHAVIOURS for m in ("im", "te")]
        if modality == "diffusion" and not bypass:
            jobs = [(b, m, h[b, m], h[b, "id"]) for b, m in names]
            done, gaps = self.stage("m", jobs, user, mode)
            for (b, m), x, gap in zip(names, done, gaps, strict=True):
                h[b, m] = x
                squares["m", b, m] = gap
        if modality == "mlp":
            for number, (b, m) in enumerate(names):
                own = MODALITIES.index(m)
                sharing = self.options["denoiser.sharing"]
                index = {"per_stage": 0, "per_modality": own, "per_feature": number}[sharing]
                inner = np.maximum(self.linear("dm/f1", h[b, m], index), 0)
                h[b, m] = self.linear("dm/f2", inner, index)
        if self.options["parts.behavior_denoiser"] == "diffusion" and not bypass:
            image = self.options["behavior.condition"] == "image"
            jobs = [("cl", m, h["cl", m], h["fa", "im" if image else m]) for m in MODALITIES]
            done, gaps = self.stage("b", jobs, user, mode)
            for m, x, gap in zip(MODALITIES, done, gaps, strict=True):
                h["cl", m] = x
                squares["b", "cl", m] = gap
        order = [(b, m) for b in BEHAVIOURS for m in MODALITIES]
        if not self.options["parts.experts"]:
            y = self.linear("spec", np.concatenate([h[key].mean(0) for key in order]))
            return {"y": y, "squares": squares, "denoised": h, "contrast": None}
        z = [
            self.encoder("ex", h[key], e, list(range(len(h[key]) - 1, -1, -1)))
            for e, key in enumerate(order)
        ]
        if not self.options["parts.shared_expert"]:
            y, gate, vectors = self.linear("spec", np.concatenate(z)), None, z
        else:
            common = self.shared(h, length)
            y, gate = self.route(common, z)
            vectors = [*z, common]
        contrast = self.disentangle(vectors)
        return {"y": y, "gate": gate, "squares": squares, "denoised": h, "contrast": contrast}

    def logits(self, y: Array) -> Array:
        """Of items 1..N."""
        weight = self.w.get("out/w")
        if weight is None:
            weight = self.w["emb/item"][1:] @ self.w["out/u"].T
        return weight @ y + self.w["out/b"]

    def batch(self, users: list[User], length: int, mode: str = "train") -> dict[str, Any]:
        """y, logits and the unweighted losses of a batch."""
        each = [self.user(user, length, mode) for user in users]
        logits = np.stack([self.logits(one["y"]) for one in each])
        losses = {"m": 0.0, "b": 0.0}
        for key in each[0]["squares"]:
            stage, behaviour, _ = key
            real = [i for i, user in enumerate(users) if user.events[behaviour]]
            slots = sum(len(users[i].events[behaviour]) for i in real)
            total = sum(float(each[i]["squares"][key].sum()) for i in real)
            width = each[0]["squares"][key].shape[1]
            unit = width if self.options["diffusion.reduction"] == "mean" else 1
            losses[stage] += total / (unit * slots) if slots else 0.0
        main = np.mean(
            [-log_softmax(row)[user.target - 1] for row, user in zip(logits, users, strict=True)]
        )
        contrasts = [one["contrast"] for one in each]
        contrast = 0.0 if contrasts[0] is None else float(np.mean(contrasts))
        weights = {name: self.options[f"loss.lambda_{name}"] for name in "cmb"}
        total = (
            main + weights["c"] * contrast + weights["m"] * losses["m"] + weights["b"] * losses["b"]
        )
        return {
            "y": np.stack([one["y"] for one in each]), "logits": logits, "main": main,
            "modality": losses["m"], "behavior": losses["b"], "contrast": contrast, "total": total,
            "users": each,
        }  # fmt: skip


def softmax(x: Array) -> Array:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def log_softmax(x: Array) -> Array:
    return x - x.max() - np.log(np.exp(x - x.max()).sum())
