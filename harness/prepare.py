"""`python -m harness.prepare SOURCE`: raw files in, a prepared set out (data/NAME)."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from harness.errors import InputError, OneLineParser, unknown

SOURCES = {
    "demo": "two generated worlds with a planted truth; knobs as world.KNOB=VALUE",
    "deskdrop": "CI&T Deskdrop: users_interactions.csv or interactions.parquet in --raw DIR",
    "movielens": "ml-100k: u.data and u.item, or RecBole's .inter and .item, in --raw DIR",
    "table": "your own data: --interactions F [--items F --image F.npy --text F.npy]",
}
LATER = ("rec_tmall", "kuaishou")
"""The paper's own sources, whose readers are still to come."""

EPILOG = """examples:
  python -m harness.prepare demo
  python -m harness.prepare demo --name demo_noisy world.accident=0.35 world.nuisance=3 world.seed=7
  python -m harness.prepare deskdrop --raw downloads/deskdrop
  python -m harness.prepare table --name shop --interactions log.parquet --items items.csv \\
      --image clip_image.npy --text clip_text.npy --click view --favor like,save --ignore cart

sources:
""" + "\n".join(f"  {source:<10} {text}" for source, text in SOURCES.items())


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = OneLineParser(
        prog="python -m harness.prepare",
        description="Turn raw files into a prepared set: filtered, ordered, with 99 negatives a user, "
        "memory-mapped, with checksums. Written whole or not at all.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    names = ("user", "item", "behavior", "timestamp", "title", "picture", "category")
    result.add_argument("source", nargs="?", metavar="SOURCE", help=", ".join(SOURCES))
    result.add_argument("--raw", type=Path, metavar="DIR", help="folder of the raw files")
    result.add_argument("--name", help="what the set will be called (default: the source's name)")
    result.add_argument("--data-dir", type=Path, default=Path("data"), metavar="DIR",
                        help="where prepared sets live (default: data)")  # fmt: skip
    table = result.add_argument_group("table")
    for name in ("interactions", "items", "image", "text"):
        table.add_argument(f"--{name}", type=Path, metavar="F")
    table.add_argument(
        "--click", type=_words, metavar="A,B", help="behaviors read as click, beside click itself"
    )
    table.add_argument(
        "--favor", type=_words, metavar="A,B", help="behaviors read as favor, beside favor itself"
    )
    table.add_argument(
        "--ignore", type=_words, metavar="A,B", help="behaviors left out, and counted"
    )
    table.add_argument(
        "--fields", type=_words, metavar="A,B", help="columns of --items read as id fields"
    )
    for name in names:
        table.add_argument(f"--{name}-column", dest=f"{name}_column", metavar="NAME",
                           help=f"column of the {name} (default: {name})")  # fmt: skip
    result.add_argument(
        "knobs", nargs="*", metavar="world.KNOB=VALUE", help="knobs of the demo worlds"
    )
    return result


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


TABLE_ONLY = ("interactions", "items", "image", "text", "click", "favor", "ignore", "fields")


def run(arguments: list[str]) -> list[dict[str, Any]]:
    """Prepare what the command line asks for.

    Returns:
        The manifests written.

    Raises:
        InputError: something that was typed, or that a file holds, cannot be used.
    """
    options, strange = parser().parse_known_intermixed_args(arguments)
    source = options.source
    if source is None:
        raise InputError(
            f"name a source: {', '.join(SOURCES)}; as in `python -m harness.prepare demo`"
        )
    if source in LATER:
        raise InputError(
            f"source '{source}' cannot be prepared yet; convert its log and use `prepare table`. "
            f"Ready: {', '.join(SOURCES)}"
        )
    if source not in SOURCES:
        raise unknown("source", source, SOURCES)
    if strange:
        known = [text for action in parser()._actions for text in action.option_strings]  # noqa: SLF001 -- argparse has no public list
        raise unknown("option", strange[0].partition("=")[0], known)
    _refuse_foreign_options(options)
    root = options.data_dir
    if options.name is not None:
        _refuse_taken_name(options.name, source)
    if source == "demo":
        from harness.data.demo import prepare_demo, worlds

        name = options.name or "demo"
        configs = worlds(options.knobs)
        if options.knobs and name == "demo":
            raise InputError(
                f"'{options.knobs[0]}' makes another world than the standard twins; "
                "give it a name of its own, such as --name demo_other"
            )
        return [prepare_demo(root, f"{name}_{twin}", config) for twin, config in configs.items()]
    from harness.data.prepare import prepare

    return [prepare(_read(options), root, options.name or source)]


def _refuse_taken_name(name: str, source: str) -> None:
    """InputError for a name that stands for other data, before anything is read."""
    from harness.data.files import DEMO, check_name

    check_name(name)
    if source != "demo" and name in ("demo", "paper", *DEMO):
        raise InputError(
            f"'{name}' stands for other data on every command line; choose another --name, as in "
            f"'my_{source}'"
        )


def _refuse_foreign_options(options: argparse.Namespace) -> None:
    """InputError for an option that means nothing for this source."""
    source = options.source
    for name in (*TABLE_ONLY, *(key for key in vars(options) if key.endswith("_column"))):
        if source != "table" and getattr(options, name) is not None:
            raise InputError(
                f"--{name.replace('_', '-')} belongs to source 'table', not to '{source}'"
            )
    if source != "demo" and options.knobs:
        raise InputError(f"'{options.knobs[0]}' is a knob of source 'demo'; '{source}' has none")
    if source in ("demo", "table") and options.raw is not None:
        raise InputError(f"--raw belongs to sources deskdrop and movielens, not to '{source}'")
    if source in ("deskdrop", "movielens") and options.raw is None:
        raise InputError(f"source '{source}' needs --raw DIR, the folder of its files")
    if source == "table" and options.interactions is None:
        raise InputError("source 'table' needs --interactions F, a parquet or csv file")


def _read(options: argparse.Namespace) -> Any:
    """The raw log of a source that has files."""
    if options.source == "deskdrop":
        from harness.data.deskdrop import read_deskdrop

        return read_deskdrop(options.raw)
    if options.source == "movielens":
        from harness.data.movielens import read_movielens

        return read_movielens(options.raw)
    from harness.data.table import TableOptions, read_table

    given = {key.removesuffix("_column"): value for key, value in vars(options).items()
             if key.endswith("_column") or key in ("click", "favor", "ignore", "fields")}  # fmt: skip
    given["click"] = ("click", *(options.click or ()))
    given["favor"] = ("favor", *(options.favor or ()))
    chosen = TableOptions(**{key: value for key, value in given.items() if value is not None})
    return read_table(options.interactions, options.items, options.image, options.text, chosen)


def describe(manifest: dict[str, Any], root: Path) -> str:
    """What was written, in a few lines."""
    counts, table1 = manifest["counts"], manifest["table1"]
    modes = ", ".join(
        f"{mode} {facts['width']}-d ({facts['present']} items)"
        for mode, facts in manifest["vectors"].items() if facts["present"]
    )  # fmt: skip
    ignored = ", ".join(f"{rows:,} {kind}" for kind, rows in counts["rows_ignored"].items())
    lines = [
        (
            f"{root / manifest['name']}: {counts['users']:,} users, {counts['items']:,} items, "
            f"{counts['interactions']:,} interactions ({table1['clicks_per_user']:.2f} clicks and "
            f"{table1['favors_per_user']:.2f} favors a user)"
        ),
        (
            f"  of {counts['raw_users']:,} users and {counts['raw_events']:,} clicks and favors in "
            f"the source; {counts['users_with_two_favors']:,} users have two favors or more"
        ),
        f"  vectors: {modes or 'none'}; id fields: {', '.join(manifest['fields']) or 'none'}",
    ]
    if ignored:
        lines.append(f"  left out: {ignored}")
    if manifest["demo"]:
        lines.append("  generated data: its numbers are not the paper's")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """The command line's exit code: 0, or 2 for the user's input."""
    given = sys.argv[1:] if arguments is None else arguments
    try:
        manifests = run(given)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; nothing half-written is left", file=sys.stderr)
        return 130
    options, _ = parser().parse_known_intermixed_args(given)
    for manifest in manifests:
        print(describe(manifest, options.data_dir))
    return 0


if __name__ == "__main__":
    sys.exit(main())
