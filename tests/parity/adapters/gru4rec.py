"""GRU4Rec against the authors' PyTorch code: states, scores, losses, optimiser.

Each embedding mode is run as fused and as stepped layers, and with gradients through one step.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from baselines.gru4rec import (
    Adagrad,
    Batching,
    Bptt,
    Embedding,
    GRU4Rec,
    GRU4RecConfig,
    Loss,
    Reset,
    SteppedLayer,
    step_scores,
)
from models.interface import Catalogue
from tests.parity.pairs import Pair

MODEL = "GRU4Rec"

MODES = {
    "shared_emb": (Embedding.shared, Reset.after),
    "separate_emb": (Embedding.separate, Reset.after),
    "one_hot": (Embedding.one_hot, Reset.before),
}


def loss_options(key: str) -> dict[str, Loss | float]:
    """`xe`, `xe_logq1`, `bprmax_elu0.5_reg1`, `bprmax_linear_reg1.95` as config fields."""
    name, *settings = key.split("_")
    if name == "xe":
        return {
            "loss": Loss.cross_entropy,
            "logq": float(settings[0].removeprefix("logq")) if settings else 0.0,
        }
    assert name == "bprmax", f"no reading of the loss {key!r}"
    elu, bpreg = settings
    return {
        "loss": Loss.bpr_max,
        "elu": 0.0 if elu == "linear" else float(elu.removeprefix("elu")),
        "bpreg": float(bpreg.removeprefix("reg")),
    }


def build(pair: Pair, mode: str, **options: object) -> GRU4Rec:
    config = pair.sidecar["config"]
    items, (embedding, reset) = config["items"], MODES[mode]
    nothing = torch.zeros(items + 1, 1)
    flags = torch.zeros(items + 1, dtype=torch.bool)
    catalogue = Catalogue(
        users=config["batch"], items=items, length=config["steps"],
        image=nothing, image_present=flags, text=nothing, text_present=flags, fields={},
        drops_own_events=False,
    )  # fmt: skip
    given = pair.below(f"{mode}.w.")
    separate = given["E.weight"].shape[1] if "E.weight" in given else 0
    model = GRU4Rec(
        GRU4RecConfig(
            hidden=config["layers"][-1],
            layers=config["layers"],
            lanes=config["batch"],
            negatives=config["extra_negatives"],
            sample_alpha=config["sample_alpha"],
            embedding=embedding,
            embedding_width=separate,
            reset=reset,
            **options,
        ),
        catalogue,
    ).double()
    model.load_state_dict(weights(given))
    counts = pair.tensor("in.item_counts")
    model.log_counts[1:] = counts.log()
    return model.train()


def weights(given: dict[str, Tensor]) -> dict[str, Tensor]:
    """The fixture's weights under our names; our ids start at 1, row 0 is zero."""

    def table(rows: Tensor) -> Tensor:
        return torch.cat([torch.zeros_like(rows[:1]), rows])

    state = {
        "output_table": table(given["Wy.weight"]),
        "output_bias": table(given["By.weight"]).squeeze(1),
    }
    if "E.weight" in given:
        state["input.table"] = table(given["E.weight"])
    for name, value in given.items():
        if name.startswith("G."):
            _, layer, kind = name.split(".")
            what, side = kind.split("_")
            part = {"ih": "product", "hh": "recurrent"}[side]
            state[f"layers.{layer}.cell.{part}.{what}"] = value
    if "GE.Wx0.weight" in given:
        state["input.table"] = table(given["GE.Wx0.weight"])
        state["layers.0.cell.product.bias"] = given["GE.Bh0"]
        state["layers.0.cell.recurrent_gates.weight"] = given["GE.Wrz0"].T
        state["layers.0.cell.recurrent_new.weight"] = given["GE.Wh0"].T
    return state


def run(pair: Pair, mode: str, model: GRU4Rec, loss: str) -> None:
    """All steps, lanes reset where the fixture says so."""
    items, targets, extra = (1 + pair.tensor(f"in.{name}") for name in ("x", "y", "neg"))
    resets = pair.tensor("in.reset_before_step")
    steps, lanes = items.shape
    lane, zero = torch.arange(lanes), torch.zeros(lanes, dtype=torch.int64)
    states = model.start(lanes)
    hidden, scores, losses = [], [], []
    for step in range(steps):
        states = [state * ~resets[step].unsqueeze(1) for state in states]
        after = model.advance(items[step].unsqueeze(1), states)
        states = [state.squeeze(1) for state in after]
        hidden.append(states[-1])
        columns = targets[step : step + 1]
        scores.append(
            step_scores(
                states[-1], zero, lane,
                model.output_table[columns], model.output_bias[columns],
                model.output_table[extra[step]], model.output_bias[extra[step]],
            )
        )  # fmt: skip
        weights = torch.full((lanes,), 1 / pair.sidecar["config"]["batch"], dtype=torch.float64)
        losses.append(model.cost(states[-1], zero, lane, weights, columns, extra[step]))
    pair.compare(f"{mode}.hidden", torch.stack(hidden))
    pair.compare(f"{mode}.scores", torch.stack(scores))
    pair.compare(f"{mode}.loss.{loss}", torch.stack(losses))
    pair.compare(f"{mode}.full_scores_last", model.score_all(states[-1])[:, 1:])
    everything = torch.arange(1, model.catalogue.items + 1).expand(lanes, -1)
    pair.compare(f"{mode}.full_scores_last", model.score(states[-1], everything))


def check_optimiser(pair: Pair, *, sparse: bool) -> None:
    """Steps of a dense matrix and of a table whose gradient is a sum of rows."""
    options = pair.sidecar["config"]["opt"]
    dense, table = pair.tensor("opt.dense_before"), pair.tensor("opt.table_before")
    dense.requires_grad_()
    table.requires_grad_()
    optimiser = Adagrad([{"params": [dense]}, {"params": [table], "table": True}], **options)
    for gradient, index, factor in zip(
        *(pair.tensor(f"opt.{name}") for name in ("dense_grad", "index", "table_factor")),
        strict=True,
    ):
        dense.grad = gradient.clone()
        rows = torch.sparse_coo_tensor(
            index.unsqueeze(0), factor, table.shape, check_invariants=True
        )
        table.grad = rows if sparse else rows.to_dense()
        optimiser.step()
    pair.compare("opt.dense_after", dense)
    pair.compare("opt.table_after", table)


def check(pair: Pair) -> None:
    given = ("in.", "opt.dense_before", "opt.table_before", "opt.index", "opt.table_factor")
    given = (*given, "opt.dense_grad", *(f"{mode}.w." for mode in MODES))
    results = [name for name in pair.arrays if not name.startswith(given)]
    losses = [name.split(".loss.") for name in results if ".loss." in name]
    settings = [(Batching.padded, Bptt.full), (Batching.parallel, Bptt.one)]
    for (mode, loss), (batching, bptt) in itertools.product(losses, settings):
        model = build(pair, mode, batching=batching, bptt=bptt, **loss_options(loss))
        run(pair, mode, model, loss)
        for number, part in enumerate(model.layers):
            model.layers[number] = SteppedLayer(part.cell, 0.0, Tensor.detach)
        run(pair, mode, model, loss)
    if "opt" in pair.sidecar["config"]:
        check_optimiser(pair, sparse=True)
        check_optimiser(pair, sparse=False)
    pair.assert_all_compared(*results)
