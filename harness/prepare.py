"""`python -m harness.prepare SOURCE`: raw files in, a prepared set out (data/NAME).

`python -m harness.prepare features` is a command of its own: harness/features/.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import InputError, OneLineParser, unknown

if TYPE_CHECKING:  # they bring numpy and pyarrow; --help answers at once
    from harness.data.choice import LogOptions
    from harness.data.raw import Raw


@dataclass(frozen=True)
class Source:
    """A row of SOURCES: what can be prepared, from what, and who reads it."""

    name: str
    help: str
    options: tuple[str, ...] = ()
    """Options (as attributes) that mean something for it, beside --name and --data-dir."""
    needs: Mapping[str, str] = field(default_factory=dict)
    """Options it cannot do without, and what each is, for the message."""
    read: Callable[[argparse.Namespace], AbstractContextManager[Raw]] | None = None
    """Opens the source; what it holds on disk may go when the block ends. None: `demo`."""
    survey: Callable[[argparse.Namespace], str] | None = None
    """The text that --survey prints."""


def _deskdrop(options: argparse.Namespace) -> AbstractContextManager[Raw]:
    from harness.data.deskdrop import read_deskdrop

    return nullcontext(read_deskdrop(options.raw))


def _movielens(options: argparse.Namespace) -> AbstractContextManager[Raw]:
    from harness.data.movielens import read_movielens

    return nullcontext(read_movielens(options.raw))


def _table(options: argparse.Namespace) -> AbstractContextManager[Raw]:
    from harness.data.item_tables import vectors_of
    from harness.data.table import TableOptions, read_table

    given = {key.removesuffix("_column"): value for key, value in vars(options).items()
             if key.endswith("_column") or key in ("click", "favor", "ignore", "fields")}  # fmt: skip
    given["click"] = ("click", *(options.click or ()))
    given["favor"] = ("favor", *(options.favor or ()))
    chosen = TableOptions(**{key: value for key, value in given.items() if value is not None})
    if options.features is not None and (options.image or options.text):
        raise InputError("--features has the vectors that --image and --text would give; name one")
    raw = read_table(options.interactions, options.items, options.image, options.text, chosen)
    vectors, facts = vectors_of(options.features, raw.item_ids)
    return nullcontext(replace(raw, **vectors, facts={**raw.facts, **facts}))


def _log_options(options: argparse.Namespace) -> LogOptions:
    """The options that sources with long logs share."""
    from harness.data.choice import LogOptions

    given = {key: getattr(options, key) for key in LOG if key not in ("raw", "survey")}
    return LogOptions(**{key: value for key, value in given.items() if value is not None})


def _rec_tmall(options: argparse.Namespace) -> AbstractContextManager[Raw]:
    from harness.data.rec_tmall import open_rec_tmall

    return open_rec_tmall(options.raw, options.data_dir, _log_options(options))


def _rec_tmall_survey(options: argparse.Namespace) -> str:
    from harness.data.rec_tmall import survey_rec_tmall

    return survey_rec_tmall(options.raw, options.data_dir, _log_options(options))


def _taobao(options: argparse.Namespace) -> AbstractContextManager[Raw]:
    from harness.data.taobao import open_taobao

    return open_taobao(options.raw, options.data_dir, _log_options(options))


def _kuaishou(options: argparse.Namespace) -> AbstractContextManager[Raw]:
    from harness.data.kuaishou import open_kuaishou

    return open_kuaishou(options.raw, options.data_dir, _log_options(options), options.fields or ())


def _kuaishou_survey(options: argparse.Namespace) -> str:
    from harness.data.kuaishou import survey_kuaishou

    return survey_kuaishou(options.raw, options.data_dir, _log_options(options))


def _kuairand(options: argparse.Namespace) -> AbstractContextManager[Raw]:
    from harness.data.kuairand import open_kuairand

    return open_kuairand(options.raw, options.data_dir, _log_options(options))


def _kuairec(options: argparse.Namespace) -> AbstractContextManager[Raw]:
    from harness.data.kuairec import open_kuairec

    return open_kuairec(options.raw, options.data_dir, _log_options(options))


def _retailrocket(options: argparse.Namespace) -> AbstractContextManager[Raw]:
    from harness.data.retailrocket import open_retailrocket

    return open_retailrocket(options.raw, options.data_dir, _log_options(options))


TABLE = (
    "interactions", "items", "image", "text", "features", "click", "favor", "ignore", "fields", "user_column",
    "item_column", "behavior_column", "timestamp_column", "title_column", "picture_column",
    "category_column",
)  # fmt: skip
RAW = {"raw": "DIR, the folder of its files"}
LOG = (
    "raw", "months", "begin", "end", "minimum_events", "favor_share", "favor_rule", "features",
    "survey", "keep_staging",
)  # fmt: skip
"""Options of sources with long logs; a source names those it takes."""

ROWS = (
    Source(
        "demo", "two generated worlds with a planted truth; knobs as world.KNOB=VALUE", ("knobs",)
    ),
    Source(
        "deskdrop", "CI&T Deskdrop: users_interactions.csv or interactions.parquet in --raw DIR",
        ("raw",), RAW, _deskdrop,
    ),
    Source(
        "kuairand", "KuaiRand: log_standard_*.csv of one version (pure, 1k, 27k) in --raw DIR",
        tuple(name for name in LOG if name != "survey"), RAW, _kuairand,
    ),
    Source(
        "kuairec", "KuaiRec: big_matrix.csv or small_matrix.csv, and captions, in --raw DIR",
        tuple(name for name in LOG if name != "survey"), RAW, _kuairec,
    ),
    Source(
        "kuaishou", "Kuaishou UIMC 2018: train_interaction.txt, final_visual_train.zip, ... in --raw DIR",
        ("raw", "minimum_events", "favor_share", "favor_rule", "features", "survey", "keep_staging",
         "fields"), RAW, _kuaishou, _kuaishou_survey,
    ),
    Source(
        "movielens",
        "ml-100k: u.data and u.item, or RecBole's .inter and .item, in --raw DIR",
        ("raw",), RAW, _movielens,
    ),
    Source(
        "rec_tmall",
        "Tianchi 140281: product and log files (.txt, .zip, sample .csv) in --raw DIR",
        tuple(name for name in LOG if name != "favor_rule"), RAW, _rec_tmall, _rec_tmall_survey,
    ),
    Source(
        "retailrocket", "Retailrocket: events.csv, item_properties_part*.csv in --raw DIR",
        tuple(name for name in LOG if name not in ("features", "survey")), RAW, _retailrocket,
    ),
    Source(
        "table", "your own data: --interactions F [--items F --image F.npy --text F.npy]", TABLE,
        {"interactions": "F, a parquet or csv file"}, _table,
    ),
    Source(
        "taobao", "Taobao UserBehavior.csv (plain or zipped) in --raw DIR",
        tuple(name for name in LOG if name not in ("favor_rule", "features", "survey")), RAW, _taobao,
    ),
)  # fmt: skip
SOURCES = {row.name: row for row in ROWS}
EPILOG = """examples:
  python -m harness.prepare demo
  python -m harness.prepare demo --name demo_noisy world.accident=0.35 world.nuisance=3 world.seed=7
  python -m harness.prepare deskdrop --raw downloads/deskdrop
  python -m harness.prepare rec_tmall --raw downloads/rec_tmall --survey
  python -m harness.prepare rec_tmall --raw downloads/rec_tmall --months 2014-09
  python -m harness.prepare kuaishou --raw downloads/uimc --favor-rule finished_play --fields faces
  python -m harness.prepare table --name shop --interactions log.parquet --items items.csv \\
      --image clip_image.npy --text clip_text.npy --click view --favor like,save --ignore cart

image and text vectors of items, from their pictures and titles: a command of its own
  python -m harness.prepare features --help

favor rules (--favor-rule), the default first:
  kuairand     like, like_or_follow, any_act, long_view
  kuairec      watched_twice, watched_once
  kuaishou     like, like_or_follow, finished_play
  retailrocket cart, purchase, cart_or_purchase

sources:
""" + "\n".join(f"  {row.name:<12} {row.help}" for row in ROWS)


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
    log = result.add_argument_group(
        "long logs", "which events and users are taken; see each source"
    )
    log.add_argument(
        "--months", type=_words, metavar="YYYY-MM,..", help="events of these months alone"
    )
    log.add_argument(
        "--from", dest="begin", metavar="DATE", help="events from this day on (YYYY-MM-DD)"
    )
    log.add_argument(
        "--to", dest="end", metavar="DATE", help="events up to this day, itself included"
    )
    log.add_argument("--minimum-events", type=int, metavar="N",
                     help="events that a user needs (default: 5)")  # fmt: skip
    log.add_argument("--favor-share", type=_range, metavar="LOW,HIGH",
                     help="share of favors among a user's events, as in 0.1,1")  # fmt: skip
    log.add_argument(
        "--favor-rule", metavar="RULE", help="what is a favor, where a source has a choice"
    )
    log.add_argument("--features", type=Path, metavar="DIR",
                     help="folder of image and text vectors; items without a picture are left out")  # fmt: skip
    log.add_argument("--survey", action="store_true", default=None,
                     help="print Table 1 of the plausible selections beside the paper's; prepare nothing")  # fmt: skip
    log.add_argument("--keep-staging", action="store_true", default=None,
                     help="keep what was read, so that another selection need not read again")  # fmt: skip
    result.add_argument(
        "knobs", nargs="*", metavar="world.KNOB=VALUE", help="knobs of the demo worlds"
    )
    return result


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def _range(text: str) -> tuple[float, float]:
    low, high = (float(part) for part in text.split(","))
    return low, high


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
    row = SOURCES[source]
    if options.survey and row.survey is not None:
        print(row.survey(options))
        return []
    if row.read is None:
        raise AssertionError(source)
    from harness.data.prepare import prepare

    with row.read(options) as raw:
        return [prepare(raw, root, options.name or source)]


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
    """InputError for an option that means nothing for this source, or one that it lacks."""
    row = SOURCES[options.source]
    common = ("source", "name", "data_dir")
    for name, value in vars(options).items():
        if name in common or name in row.options or value in (None, []):
            continue
        if name == "knobs":
            raise InputError(f"'{value[0]}' is a knob of source 'demo'; '{row.name}' has none")
        takers = [f"'{other.name}'" for other in ROWS if name in other.options]
        raise InputError(
            f"{_typed(name)} belongs to source{'s' if len(takers) > 1 else ''} {', '.join(takers)}, "
            f"not to '{row.name}'"
        )
    for name, what in row.needs.items():
        if getattr(options, name) is None:
            raise InputError(f"source '{row.name}' needs {_typed(name)} {what}")


def _typed(name: str) -> str:
    """An option as it is typed."""
    known = parser()._actions  # noqa: SLF001 -- argparse has no public list
    return next(action.option_strings[0] for action in known if action.dest == name)


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
    if given[:1] == ["features"]:
        from harness.features.command import main as features

        return features(given[1:])
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
