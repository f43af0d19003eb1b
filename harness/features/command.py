"""`python -m harness.prepare features`: pictures and titles in, a features folder out.

Fetching and encoding are stages of their own (`--stage`), for clusters whose nodes have no way out; both
are shared out by chunks (`--shard`, `--on slurm`). The same command, typed again, goes on where it was.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import InputError, OneLineParser, warnings_in_one_line

if TYPE_CHECKING:
    from numpy import ndarray

    from harness.data.clip import Source
    from harness.data.extraction import Items
    from harness.features.work import Request

EXTRA = "python -m pip install -c constraints.txt -e '.[features]'"
NO_ADDRESS = "no address"
MOSTLY = 0.5
"""Share of titles with Chinese characters from which on OpenAI's text model is remarked upon."""

EPILOG = """what is fetched is kept in --pictures and never fetched twice; dead links are written down with
their reason and left alone (--retry-dead asks again). Where the nodes of a cluster have no way out,
fetch on a machine that has one (--stage fetch), then encode there (--stage encode).

examples:
  python -m harness.prepare features --data rec_tmall --out features/rec_tmall
  python -m harness.prepare features --items products.parquet --out features/shop --image-model chinese-clip
  python -m harness.prepare features --data rec_tmall --out features/rec_tmall --stage fetch --rate 2
  python -m harness.prepare features --data rec_tmall --out features/rec_tmall --stage encode --on slurm:gpu
  python -m harness.prepare features --ids photos.txt --image visual.npy --out features/kuaishou
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = OneLineParser(
        prog="python -m harness.prepare features",
        description="Make CLIP vectors of items' pictures and titles, or take ready-made ones: a features "
        "folder that `prepare SOURCE --features DIR` reads.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    what = result.add_argument_group("items")
    what.add_argument("--items", type=Path, metavar="F",
                      help="parquet, csv or tsv with the columns item, title, picture (an http address)")  # fmt: skip
    what.add_argument(
        "--data", metavar="NAME", help="the items of a prepared set, in place of --items"
    )
    what.add_argument("--data-dir", type=Path, default=Path("data"), metavar="DIR",
                      help="where prepared sets live (default: data)")  # fmt: skip
    what.add_argument("--ids", type=Path, metavar="F",
                      help="ids of ready-made vectors' rows: a text file, one a line (default: the items)")  # fmt: skip
    for name in ("item", "title", "picture"):
        what.add_argument(f"--{name}-column", default=name, metavar="NAME",
                          help=f"column of the {name} (default: {name})")  # fmt: skip
    result.add_argument("--out", type=Path, metavar="DIR", help="the features folder to make")
    vectors = result.add_argument_group("vectors")
    vectors.add_argument("--image-model", metavar="MODEL", help="clip (OpenAI's ViT-B/32, the default), "
                         "chinese-clip, a name of the hub (NAME@REVISION), a folder, or none")  # fmt: skip
    vectors.add_argument(
        "--text-model", metavar="MODEL", help="the same for titles (default: the image model)"
    )
    for mode in ("image", "text"):
        vectors.add_argument(f"--{mode}", type=Path, metavar="F.npy",
                             help=f"ready-made {mode} vectors, a row an item; all-zero rows are missing")  # fmt: skip
    vectors.add_argument(
        "--unit-length", action="store_true", help="scale every vector to length 1"
    )
    vectors.add_argument(
        "--device", default="auto", help="cpu, cuda, cuda:1 (default: a GPU if there is one)"
    )
    vectors.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    vectors.add_argument(
        "--batch", type=int, default=64, metavar="N", help="pictures at once (default: 64)"
    )
    fetching = result.add_argument_group("fetching")
    fetching.add_argument("--pictures", type=Path, metavar="DIR",
                          help="where pictures are kept (default: pictures, beside --out)")  # fmt: skip
    fetching.add_argument("--rate", type=float, default=5.0, metavar="N",
                          help="requests a second to one host, over all shards (default: 5)")  # fmt: skip
    fetching.add_argument("--timeout", type=float, default=20.0, metavar="SECONDS",
                          help="for one request as a whole (default: 20)")  # fmt: skip
    fetching.add_argument("--most-bytes", type=_bytes, default=10_000_000, metavar="N",
                          help="of a picture; larger ones are left (default: 10MB)")  # fmt: skip
    fetching.add_argument(
        "--tries", type=int, default=4, metavar="N", help="for one link (default: 4)"
    )
    fetching.add_argument("--retry-dead", action="store_true", help="ask for dead links again")
    fetching.add_argument(
        "--proxy", metavar="URL", help="http proxy; environment variables are not read"
    )
    fetching.add_argument("--contact", default="", metavar="MAIL",
                          help="told to the hosts in the User-Agent: where they reach you")  # fmt: skip
    fetching.add_argument("--private-hosts", action="store_true",
                          help="also fetch from addresses inside private networks")  # fmt: skip
    work = result.add_argument_group("sharing the work")
    work.add_argument(
        "--stage", default="all", choices=("all", "fetch", "encode"), help="(default: all)"
    )
    work.add_argument("--shard", type=_shard, metavar="I/N",
                      help="do the I-th of N shares and leave it at that")  # fmt: skip
    work.add_argument(
        "--merge", action="store_true", help="put finished shards together, and do nothing else"
    )
    work.add_argument("--on", default="here", metavar="WHERE",
                      help="here, or slurm[:PROFILE] with slurm.key=value words")  # fmt: skip
    work.add_argument(
        "--shards", type=int, metavar="N", help="jobs of --on slurm (default: at most 16)"
    )
    result.add_argument("words", nargs="*", metavar="slurm.KEY=VALUE", help="on top of the profile")
    return result


def _bytes(text: str) -> int:
    """10MB, 500KB or a number of bytes."""
    digits = text.strip().upper().removesuffix("B")
    units = {"K": 10**3, "M": 10**6, "G": 10**9}
    size = units.get(digits[-1:], 1)
    try:
        return round(float(digits.rstrip("KMG")) * size)
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is no size such as 10MB") from None


def _shard(text: str) -> tuple[int, int]:
    """3/16."""
    share, _, count = text.partition("/")
    if share.isdecimal() and count.isdecimal() and 1 <= int(share) <= int(count):
        return int(share), int(count)
    raise argparse.ArgumentTypeError(f"'{text}' is no share such as 3/16 (the first is 1/16)")


def note(text: str) -> None:
    """A remark on the error stream."""
    print(f"note: {text}", file=sys.stderr)


def main(arguments: Sequence[str]) -> int:
    """The command line's exit code: 0, or 2 for the user's input, or 130 when stopped."""
    warnings_in_one_line()
    try:
        print(run(arguments))
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(
            "stopped; what is fetched and encoded is kept, and the same command goes on",
            file=sys.stderr,
        )
        return 130
    return 0


def run(arguments: Sequence[str]) -> str:
    """Do what the command line asks for; what was done, in a few lines.

    Raises:
        InputError: something that was typed, or that a file holds, cannot be used.
    """
    options = parser().parse_intermixed_args(list(arguments))
    _check(options)
    _need_the_extra()
    from harness.data.extraction import Parts, merge, whole_plan
    from harness.features.inputs import read_input, read_items
    from harness.features.work import fetch_share, said_of, work

    if options.stage == "fetch":
        items = read_items(options, None)
        if not any(items.urls):
            raise InputError("the items have no picture addresses to fetch; see --picture-column")
        request = _base(options)
        entries = fetch_share(request, Parts(request.parts, items, {}))
        return f"{said_of(request, entries)}; they are in {request.pictures}"
    items, ready = read_input(options)
    request = _request(options, items, ready)
    plan = whole_plan(items, request.plan())
    again = request.parts.is_dir() or request.fetch.retry_dead
    if _made_already(request.out, plan) and not again:
        return f"{request.out} is there already, made from the same; nothing to do"
    if not (request.image or request.text):
        parts = Parts(request.parts, items, plan)
        return describe(request.out, merge(request.out, parts, ready, request.facts))
    parts = Parts.begin(request.parts, items, plan)
    if options.on != "here" and not options.merge:
        from harness.features.jobs import on_slurm

        said = on_slurm(options.on, options.words, options.shards, request, parts)
        if said is not None:
            return said
    elif not options.merge:
        said = work(request, parts)
        if options.shard is not None:
            return said
    manifest = merge(request.out, parts, ready, request.facts)
    if not manifest["pictures"]["status"].get("failed"):
        shutil.rmtree(request.parts)
    return describe(request.out, manifest)


def _check(options: argparse.Namespace) -> None:
    """InputError for options that contradict each other, or what is lacking."""
    if options.out is None:
        raise InputError("say where to: --out DIR, as in --out features/rec_tmall")
    sources = [f"--{name}" for name in ("items", "data") if getattr(options, name) is not None]
    if len(sources) == 2:
        raise InputError("--items and --data are two sources of items; name one")
    if not sources and options.ids is None:
        raise InputError("say which items: --items F, --data NAME, or --ids F with --image F.npy")
    if options.ids is not None and options.image is None and options.text is None:
        raise InputError(
            "--ids says whose the rows of --image F.npy or --text F.npy are; name one of them"
        )
    for mode in ("image", "text"):
        if getattr(options, mode) is not None and getattr(options, f"{mode}_model") is not None:
            raise InputError(
                f"--{mode} has ready-made vectors, so --{mode}-model is not needed; name one"
            )
    for name in ("rate", "timeout", "most_bytes", "tries", "batch", "shards"):
        value = getattr(options, name)
        if value is not None and not value > 0:
            raise InputError(f"--{name.replace('_', '-')} {value}: more than 0 is needed")
    if options.words and options.on == "here":
        raise InputError(f"'{options.words[0]}' belongs to --on slurm")
    if options.stage == "fetch":
        if options.on != "here":
            raise InputError("--stage fetch runs here: hosts set its pace, not the number of jobs")
        if not sources or options.image is not None or options.image_model == "none":
            raise InputError(
                "--stage fetch needs items with picture addresses: --items F or --data NAME"
            )
    if options.shard is not None and (options.merge or options.on != "here"):
        raise InputError("--shard does one share here; leave it out with --merge and --on slurm")


def _need_the_extra() -> None:
    """InputError where the libraries of the extra are not installed."""
    from importlib.util import find_spec

    lacking = [name for name in ("aiohttp", "PIL", "transformers") if find_spec(name) is None]
    if lacking:
        raise InputError(f"features need {', '.join(lacking)}, which {EXTRA} installs")


def _request(options: argparse.Namespace, items: Items, ready: Mapping[str, ndarray]) -> Request:
    """Everything that the work needs, models found."""
    from harness.data.clip import find_model, is_chinese
    from harness.data.raw import sha256_file

    has = {"image": any(items.urls), "text": any(title.strip() for title in items.titles)}
    found: dict[str, Source] = {}
    sources: dict[str, Source | None] = {}
    facts: dict[str, Any] = {}
    column = {"image": "picture addresses", "text": "titles"}
    shared = options.image_model if options.image_model != "none" else None
    for mode, fallback in (("image", None), ("text", shared)):
        asked = getattr(options, f"{mode}_model")
        sources[mode] = None
        if mode in ready:
            path = getattr(options, mode)
            facts[mode] = {"source": "ready-made", "file": path.name, "sha256": sha256_file(path)}
        elif has[mode] and asked != "none":
            name = asked or fallback or "clip"
            found[name] = found.get(name) or find_model(name)
            sources[mode] = found[name]
            facts[mode] = {"source": "model", **found[name].facts()}
        elif asked not in (None, "none"):
            raise InputError(f"--{mode}-model {asked}: the items have no {column[mode]}")
    if not facts:
        raise InputError(
            "nothing to make: the items have neither picture addresses nor titles that a model is to read; "
            "see --picture-column and --title-column"
        )
    text = sources["text"]
    if text is not None and text.kind == "clip" and not options.merge:
        told = [title for title in items.titles if title.strip()]
        share = sum(map(is_chinese, told)) / len(told)
        if share > MOSTLY:
            note(
                f"{share:.0%} of the titles hold Chinese characters, of which OpenAI's CLIP has seen few; "
                "--image-model chinese-clip reads both pictures and titles with Chinese-CLIP "
                "(the paper does not say which it used)"
            )
    models = {(one["model"], one["revision"]) for one in facts.values() if one["source"] == "model"}
    if len(models) > 1 or (
        len(facts) == 2 and any(one["source"] != "model" for one in facts.values())
    ):
        note("image and text vectors come from different models and share no space; "
              "MMSBR compares the two")  # fmt: skip
    return replace(_base(options), image=sources["image"], text=sources["text"], facts=facts)


def _base(options: argparse.Namespace) -> Request:
    """What a request takes from the command line as it is."""
    from harness.data.pictures import FetchOptions
    from harness.features.work import Request

    count = options.shard[1] if options.shard else 1
    return Request(
        out=options.out,
        pictures=options.pictures or options.out.parent / "pictures",
        fetch=FetchOptions(
            rate=options.rate / count, timeout=options.timeout, most_bytes=options.most_bytes,
            tries=options.tries, retry_dead=options.retry_dead, proxy=options.proxy,
            contact=options.contact, private=options.private_hosts,
        ),
        stage=options.stage,
        shard=options.shard or (1, 1),
        batch=options.batch,
        device=options.device,
        dtype=options.dtype,
        unit_length=options.unit_length,
    )  # fmt: skip


def _made_already(out: Path, plan: Mapping[str, Any]) -> bool:
    """Whether the features are there, made from the same.

    Raises:
        InputError: others are there.
    """
    from harness.data.extraction import differing
    from harness.data.features import read_manifest

    if not out.exists():
        return False
    if difference := differing(read_manifest(out)["plan"], plan):
        raise InputError(
            f"'{out}' holds other features ({difference}); choose another --out, or remove it"
        )
    return True


def describe(out: Path, manifest: Mapping[str, Any]) -> str:
    """What was made, in a few lines."""
    lines = [f"{out}: features of {manifest['items']:,} items"]
    for mode in ("image", "text"):
        if mode in manifest:
            facts = manifest[mode]
            origin = facts["file"] if facts["source"] == "ready-made" else facts["model"]
            cut = (
                f", {facts['truncated']:,} titles cut to what the model reads"
                if facts.get("truncated")
                else ""
            )
            lines.append(
                f"  {mode}: {facts['width']}-d of {facts['present']:,} items, by {origin}{cut}"
            )
    pictures = manifest["pictures"]
    states = pictures["status"]
    if any(name in states for name in ("ok", "dead", "failed")):
        called = {"none": "without an address"}
        said = (f"{count:,} {called.get(name, name)}" for name, count in states.items())
        lines.append(f"  pictures: {', '.join(said)}")
        why = [
            f"{count:,} {reason}"
            for reason, count in pictures["reasons"].items()
            if reason != NO_ADDRESS
        ]
        if why:
            lines.append(f"  why not: {', '.join(why[:6])}")
    if shared := pictures["shared_by_addresses"]:
        sha256, count = next(iter(shared.items()))
        lines.append(f"  {count:,} addresses gave one and the same picture ({sha256[:12]}...): "
                     "look whether it stands for lost ones")  # fmt: skip
    if pictures["status"].get("failed"):
        lines.append("  what failed may pass: the same command fetches it again")
    return "\n".join(lines)
