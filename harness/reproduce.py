"""`python -m harness.reproduce TARGET`: plan an artefact, run what is missing, print it.

Nothing heavy is imported before the command line is understood, so that --help answers at once.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from harness.errors import InputError, OneLineParser, unknown, warnings_in_one_line

if TYPE_CHECKING:
    from harness.execution.plan import Plan
    from harness.experiments.common import Request

TARGETS = {
    "table1": "our data sets' statistics beside the paper's Table 1",
    "table2": "the main comparison, significance-tested, beside the paper's Table 2",
    "table3": "Table 2's runs among users with at most 10 interactions, and by length of history",
    "table4": "seconds of a training epoch and of a prediction, alone on this machine",
    "figure3": "M3BSR against itself without each of five parts, significance-tested",
    "figure4": "HR@10 over steps and weights of M3BSR's losses: which differences are more than chance",
    "figure5": "item embeddings raw, after CDMD and after an MLP: t-SNE maps, and numbers for the eye",
    "claims": "the paper's sentences, judged by the runs of table2 and figure3",
    "multiverse": "M3BSR against its strongest rival under every reading that the text leaves open",
    "simulate": "planted worlds: does each part of M3BSR earn its keep exactly where it should?",
    "tuning": "the same number of trials for every method, chosen on validation; feeds the tables",
    "all": "table1 to claims, planned together: what two of them need is run once",
}

EPILOG = """\
targets:
{targets}

examples:
  python -m harness.reproduce table2
  python -m harness.reproduce table2 --methods m3bsr,sasrec --seeds 5 --plan
  python -m harness.reproduce table2 --data deskdrop --budget quick protocol.same_item_history=keep
  python -m harness.reproduce table2 model.diffusion.steps=15
  python -m harness.reproduce tuning --data deskdrop --budget quick --trials 4

exit codes: 0 done, 1 some runs failed (the table names them), 2 something typed or supplied cannot be
used, 130 interrupted (the same command goes on)."""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    listed = "\n".join(f"  {name:10} {what}" for name, what in TARGETS.items())
    words = OneLineParser(
        prog="python -m harness.reproduce",
        description="Plan an artefact of the paper, run the cells that are missing, print it.",
        epilog=EPILOG.format(targets=listed),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    words.add_argument("target", metavar="TARGET", help=", ".join(TARGETS))
    words.add_argument("overrides", nargs="*", metavar="key=value",
                       help="settings of a cell: train.epochs=3 model.hidden=128 protocol.scope=behavior")  # fmt: skip
    words.add_argument("--data", default="demo", metavar="NAME[,NAME]",
                       help="prepared data sets; demo (default) and paper stand for two each")  # fmt: skip
    words.add_argument("--on", default="here", metavar="here|slurm[:PROFILE]",
                       help="where to run (default: here); PROFILE: a file in slurm/")  # fmt: skip
    words.add_argument("--wait", action="store_true",
                       help="on slurm: stay until the jobs are over, then print")  # fmt: skip
    words.add_argument("--cancel", action="store_true",
                       help="on slurm: cancel the artefact's jobs; nothing stored is lost")  # fmt: skip
    words.add_argument("--budget", metavar="smoke|quick|paper",
                       help="default: quick on demo data, paper elsewhere")  # fmt: skip
    words.add_argument(
        "--seeds", type=int, metavar="N", help="runs of each method (default: 1, 3, 5 by budget)"
    )
    words.add_argument(
        "--methods", metavar="a,b,c", help="a choice of rows (default: all that are built)"
    )
    words.add_argument("--trials", type=int, metavar="N",
                       help="tuning: settings tried of each method (default: 3, 10, 24 by budget)")  # fmt: skip
    words.add_argument("--plan", action="store_true", help="print what would run, and run nothing")
    words.add_argument(
        "--workers", type=int, metavar="N", help="worker processes (default: one a core)"
    )
    words.add_argument("--results", type=Path, default=Path("results"), metavar="DIR",
                       help="where records and tables are kept (default: results)")  # fmt: skip
    words.add_argument("--data-dir", type=Path, default=Path("data"), metavar="DIR",
                       help="where prepared data sets are kept (default: data)")  # fmt: skip
    return words


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    words = sys.argv[1:] if arguments is None else arguments
    command = shlex.join(["python", "-m", "harness.reproduce", *words])
    try:
        options = parser().parse_intermixed_args(words)
        if options.target not in TARGETS:
            raise unknown("target", options.target, TARGETS)
        if options.cancel:
            from harness.execution.remote import cancel
            from harness.run import Places

            print(cancel(options.target, Places(options.data_dir, options.results)))
            return 0
        return reproduce(
            understand(options, command), plan_only=options.plan, workers=options.workers
        )
    except SystemExit as end:  # argparse has printed its help
        return int(end.code or 0)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"interrupted; what is finished is stored. To go on: {command}", file=sys.stderr)
        return 130


def understand(options: argparse.Namespace, command: str) -> Request:
    """A command line as a Request. Raises InputError for anything that cannot be used."""
    from harness.compose import Budget
    from harness.execution.slurm import read_profile
    from harness.experiments import artefact, common
    from harness.run import Places

    where, _, profile = options.on.partition(":")
    if where not in ("here", "slurm") or (where == "here" and ":" in options.on):
        raise InputError(f"no place '{options.on}' to run; choose from: here, slurm, slurm:PROFILE")
    asked = tuple(word for word in options.overrides if word.startswith("slurm."))
    overrides = tuple(word for word in options.overrides if word not in asked)
    if where == "here" and (asked or options.wait):
        raise InputError(f"'{asked[0] if asked else '--wait'}' is for --on slurm")
    if where == "slurm":
        read_profile(profile, asked)  # a mistake in it is said before anything else is done
    if options.trials is not None and options.target != "tuning":
        raise InputError(
            f"--trials {options.trials} is for the target tuning, not {options.target}"
        )
    for name in ("seeds", "workers", "trials"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise InputError(f"--{name} {value}: at least 1 is needed")
    budgets = [budget.name for budget in Budget]
    if options.budget is not None and options.budget not in budgets:
        raise unknown("budget", options.budget, budgets)
    for word in overrides:
        if "=" not in word:
            raise InputError(f"'{word}' is not key=value; an example: train.epochs=3")
    places = Places(options.data_dir, options.results)
    choose = getattr(artefact(options.target), "choose_methods", common.choose_methods)
    methods = choose(options.methods)
    names = common.data_names(options.data)
    demo = common.open_all(names, places)
    budget = Budget[options.budget] if options.budget else common.default_budget(demo=demo)
    seeds = options.seeds or common.default_seeds(budget)
    return common.Request(options.target, options.data, names, budget, seeds, methods,
                          overrides, places, command, options.trials,
                          (profile, asked) if where == "slurm" else None, wait=options.wait,
                          seeds_typed=options.seeds is not None)  # fmt: skip


def reproduce(request: Request, *, plan_only: bool, workers: int | None) -> int:
    """Plan, run, print. Returns 1 when some runs failed, else 0."""
    from harness.config import cell_key
    from harness.execution.here import run_here, slots
    from harness.execution.live import Board
    from harness.execution.plan import plan
    from harness.execution.progress import Display
    from harness.execution.remote import run_on_cluster
    from harness.experiments import artefact
    from harness.store import Store, disk_full_is_said

    made = artefact(request.target)
    code = 0
    for earlier in getattr(made, "before", lambda _: ())(request):
        code |= reproduce(earlier, plan_only=plan_only, workers=workers)
    elsewhere = request.slurm is not None  # its nodes are other machines than this one
    planned = plan(made.cells(request), request.places, any_machine=elsewhere)
    count = workers or slots()
    if plan_only:
        show_plan(request, planned, count)
        if more := getattr(made, "later", lambda _: "")(request):
            print(more)
        if request.slurm is not None:
            from harness.experiments.price import lines

            print("\n".join(lines(request, planned)))
        return code
    failed: dict[str, str] = {}
    Store(request.places.results).ensure_writable()
    board = Board(request.places.results)
    ran: set[str] = set()
    while missing := [
        cell
        for cell in planned.missing
        if cell_key(cell) not in failed and cell_key(cell) not in ran
    ]:
        if request.slurm is not None:
            failed |= run_on_cluster(missing, request.places, *request.slurm, request.target,
                                     request.command, wait=request.wait)  # fmt: skip
        else:
            print(f"{len(planned.stored)} of {len(planned.wanted)} cells are stored, {len(missing)} to "
                  f"run on {min(count, len(missing))} workers", file=sys.stderr)  # fmt: skip
            display = Display(len(missing), board, count)
            failed |= run_here(missing, request.places, display, workers)
            ran |= {cell_key(cell) for cell in missing}
        # what is done may name further cells
        planned = plan(made.cells(request), request.places, any_machine=elsewhere)
        if request.slurm is not None and not request.wait:
            break
    if changed := ran.intersection(map(cell_key, planned.missing)).difference(failed):
        print(f"code or data changed while {len(changed)} cells were running; the same command "
              "runs them again", file=sys.stderr)  # fmt: skip
        code = 1
    with disk_full_is_said(request.places.results):
        shown = made.publish(request, planned, failed)
    print(shown)
    return 1 if failed else code


def show_plan(request: Request, planned: Plan, workers: int) -> None:
    """Print the cells wanted, stored and to run, with the hours expected from stored timings."""
    from tabulate import tabulate

    from harness.execution.estimate import estimate

    rows, total = estimate(planned, request.places)
    print(f"{request.target} on {request.data}, budget {request.budget.name}, {request.seeds} seeds: "
          f"{len(planned.wanted)} cells wanted, {len(planned.stored)} stored, "
          f"{len(planned.missing)} to run"
          + (f" ({len(planned.stale)} of them were made by other code or data, or timed elsewhere)"
             if planned.stale else ""))  # fmt: skip
    print(tabulate(rows, headers="keys", tablefmt="github", floatfmt=".1f"))
    print(total.say(workers))


if __name__ == "__main__":
    warnings_in_one_line()
    try:
        sys.exit(main())
    except BrokenPipeError:  # `reproduce ... | head`: the reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
