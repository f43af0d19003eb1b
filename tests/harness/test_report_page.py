"""The HTML report: what stands in it, what must not, and how it behaves in a browser.

The tests marked `browser` drive the system's Chromium (nox -s browser); screenshots go to
REPORT_SCREENSHOTS, or to build/report.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path

import pytest

from harness import reproduce
from harness.report.__main__ import main
from harness.report.audited import audit_page
from harness.report.document import (
    Band,
    Document,
    Grid,
    Line,
    Notes,
    Picture,
    Span,
    entry,
    to_json,
)
from harness.report.drawings import inline
from harness.report.figures import canvas, write_figure
from harness.report.files import write_table
from harness.report.html import said, value
from harness.report.layout import document
from harness.report.pages import ARTEFACTS, GAPS, read_pages
from harness.store import Store
from tests.harness.report_world import World

ROOT = Path(__file__).parents[2]
COMMAND = "python -m harness.reproduce table2 --budget smoke --data-dir /some/data"
CURVE = [
    {"epoch": epoch, "loss": 1.0, "NDCG@10": score, "seconds": 0.1}
    for epoch, score in enumerate((0.11111111, 0.3, 0.2), 1)
]
VOID = {"meta", "link", "br", "img", "input", "hr"}


class Reader(HTMLParser):
    """What is checked of a page: elements with attributes, their text, and that they are closed."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.elements, self.open, self.texts = [], [], {}
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append((tag, len(self.elements) - 1))

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open[-1][0] == tag, (tag, self.open[-3:])
        self.open.pop()

    def handle_data(self, data):
        for tag, number in self.open:
            if tag not in {"html", "body"}:
                self.texts[number] = self.texts.get(number, "") + data

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]

    def text(self, tag):
        return [self.texts.get(at, "") for at, (name, _) in enumerate(self.elements) if name == tag]


def publish(results, page, target="table2", folder="demo", names=("demo_rec_tmall",), data=(),
            command=COMMAND, figures=None):  # fmt: skip
    """A page as `common.publish_page` writes it."""
    place = results / "tables" / target / folder
    for name, figure in (figures or {}).items():
        write_figure(place, name, figure)
    write_table(place, "", "", "", {"target": target, "data": list(data)}, {
        "target": target, "data": list(names), "budget": "smoke", "command": command,
        "document": to_json(page),
    })  # fmt: skip


def figure(number):
    """Figures that share every name inside: a clip, a marker, a picture."""
    with canvas(4.0, 3.0) as made:
        axes = made.subplots(1, 2)
        axes[0].plot([1, 2, 3], [3, number, 2], "o-", label="a <b> & c")
        axes[0].set_xlim(1.5, 3)
        axes[1].imshow([[1, 2], [3, number]])
    return made


@pytest.fixture(scope="module")
def world():
    made = World(data=("demo_rec_tmall", "demo_kuaishou"), seeds=3, levels={"m3bsr": 0.4})
    made.records = [
        replace(record, host={"name": "node7", "processor": "x86_64", "threads": 2},
                epochs=3, best_epoch=2, curve=CURVE, finished="2026-01-02T03:04:05+00:00",
                parameters=12345)
        for record in made.records
    ]  # fmt: skip
    return made


@pytest.fixture(scope="module")
def results(world, tmp_path_factory):
    """Table 2 with its runs but one, a figure page, and a hand-made table."""
    folder = tmp_path_factory.mktemp("report") / "results"
    store = Store(folder)
    lost = next(r for r in world.records if r.label == "GRU4Rec")
    for record in world.records:
        if record is not lost:
            store.save(record)
    page = document(world.table())
    data = [
        {"name": name, "demo": True, "data_sha256": f"{name}-data-sha",
         "candidates_sha256": f"{name}-candidates-sha"}
        for name in world.data
    ]  # fmt: skip
    publish(folder, page, names=world.data, data=data)
    bars = Document(
        page.opening,
        "Figure 4. Two figures",
        (
            Picture("First", "first", 'Bars with "quotes".'),
            Picture("Second", "second", "Others."),
            Picture("Third", "third", "Never drawn."),
            Notes(GAPS, ("2 runs: M3BSR on tiny.", f"To fill the gaps: {COMMAND}")),
        ),
    )
    publish(folder, bars, "figure4", names=world.data, data=data,
            figures={"first": figure(1), "second": figure(2)})  # fmt: skip
    numbers = ("0.5", "-0.25", "+1,234.5", "<.001", "failed [1]", "")
    lines = tuple(
        Line(f"row {10 - at}", ((Span(text, runs=(world.records[at].key,)),), entry(text)))
        for at, text in enumerate(numbers)
    )
    grid = Grid(
        "Numbers",
        "Row",
        (Band("", "", ("first", "second")),),
        (*lines[:3], Line("More"), *lines[3:]),
    )
    plain = Document("Data: shop.", "Somebody's table", (grid,), (replace(grid, title="Longer"),))
    publish(folder, plain, "homemade", "shop", ("shop",))
    return folder


@pytest.fixture(scope="module")
def html(results):
    assert main(["--results", str(results)]) == 0
    return (results / "report.html").read_text(encoding="utf8")


@pytest.fixture(scope="module")
def page(html):
    return Reader(html)


@pytest.fixture(scope="module")
def content(page):
    at = next(i for i, (_, a) in enumerate(page.elements) if a.get("id") == "runs-data")
    return json.loads(page.texts[at])


# --- what stands in it ---------------------------------------------------------------------------


def test_the_first_line_says_demo_data(html, page):
    body = re.sub(r"<(script|style).*?</\1>", "", html.split("<body>")[1], flags=re.DOTALL)
    words = re.sub(r"<[^>]+>|Skip to the content", " ", body).split()
    assert words[:2] == ["DEMO", "DATA"]
    assert page.text("title")[0].startswith("DEMO DATA")
    assert "whose numbers are not the paper's" in unescape(" ".join(words[:60]))


def test_without_demo_data_nothing_says_demo(tmp_path):
    shop = Document("Data: shop.", "A table", (Notes("Notes", ("one",)),))
    publish(tmp_path, shop, folder="shop", names=("shop",))
    assert main(["--results", str(tmp_path)]) == 0
    assert "DEMO" not in (tmp_path / "report.html").read_text("utf8")


def test_every_table_has_caption_and_scopes(page):
    tables = page.all("table")
    assert len(tables) >= 8
    assert page.elements.count(("table", {})) + page.elements.count(("table", {"class": "plain"})) \
        == len(page.all("caption")) == len(tables)  # fmt: skip
    assert all(
        head.get("scope") in {"col", "row", "colgroup", "rowgroup"} for head in page.all("th")
    )
    captions = [caption.split("sort")[0] for caption in page.text("caption")]
    for title in ("Means", "Beside the paper", "Table 2 of the paper", "Longer"):
        assert title in captions


def test_landmarks_language_and_names(page):
    assert page.all("html")[0]["lang"] == "en"
    for tag in ("header", "nav", "main", "footer", "h1"):
        assert len(page.all(tag)) == 1
    names = Counter(attributes["id"] for _, attributes in page.elements if "id" in attributes)
    assert max(names.values()) == 1
    for _, attributes in page.elements:
        for key in ("aria-labelledby", "aria-controls"):
            assert set((attributes.get(key) or "").split()) <= set(names)
        if (attributes.get("href") or "").startswith("#"):
            assert attributes["href"][1:] in names


def test_marks_of_the_entries_are_kept(world, html):
    text = document(world.table())
    bold = sum(
        span.bold
        for part in (*text.parts, *text.appendix)
        if isinstance(part, Grid)
        for line in part.lines
        for item in line.entries
        for span in item
    )
    section = html.split('id="table2-demo"')[1].split("</section>")[0]
    assert section.count("<b>") == bold
    assert section.count("<s>") > 30
    assert section.count("<u>") == 8


def test_commands_of_pages_and_of_the_missing(page, results):
    codes = page.text("code")
    assert COMMAND in codes
    missing = read_pages(results).missing
    assert {(one.artefact.target, one.folder) for one in missing} >= {
        ("claims", "demo"),
        ("table2", "shop"),
    }
    for one in missing:
        assert one.command in codes
        words = shlex.split(one.command)[3:]
        options = reproduce.parser().parse_intermixed_args(words)
        assert options.target == one.artefact.target
        assert (options.budget, str(options.data_dir)) == ("smoke", "/some/data")
        assert options.data == one.folder


def test_the_report_knows_every_target():
    known = {artefact.target for artefact in ARTEFACTS}
    assert set(reproduce.TARGETS) - {"all"} == known


def test_gaps_and_lost_figures_are_collected(html):
    missing = html.split('<section id="missing"')[1].split("</section>")[0]
    assert "2 runs: M3BSR on tiny." in missing
    assert "figure third.svg cannot be read" in missing
    assert "1 run behind numbers" in missing
    assert "The figure third.svg is not among the results." in html


def test_the_audit_is_there():
    audit = audit_page()
    grid = next(p for p in audit.parts if isinstance(p, Grid) and p.title.startswith("Table 2"))
    rows = [line for line in grid.lines if line.entries]
    assert len(rows) == 34
    assert sum(line.entries[-1][0].text == "impossible" for line in rows) == 33
    assert [line.name for line in grid.lines if not line.entries] == ["Rec-Tmal", "Kuaishou"]
    assert all(any(i[0].struck for i in line.entries) for line in rows
               if line.entries[-1][0].text == "impossible")  # fmt: skip


# --- the runs behind a number --------------------------------------------------------------------


def test_each_run_is_embedded_once_and_shares_what_is_shared(content, world):
    keys = [run["key"] for run in content["runs"]]
    assert sorted(keys) == sorted(record.key for record in world.records)
    configs = {(r.config["method"], r.data) for r in world.records}
    assert len(content["configs"]) <= len(configs)
    assert len(content["nodes"]) == 1
    assert not any(line.startswith("seed=") for line in content["configs"][0])
    found = [run for run in content["runs"] if "config" in run]
    assert len(found) == len(keys) - 1
    assert all(run["curve"] == [0.1111, 0.3, 0.2] for run in found)
    record = next(r for r in world.records if r.key == found[0]["key"])
    assert found[0]["seed"] == record.seed
    assert content["makings"][found[0]["made"]]["code"] == record.fingerprints.code


def test_the_means_of_the_embedded_runs_are_the_tables_numbers(content, page, html):
    section = html.split('id="table2-demo"')[1].split("</table>")[0]
    checked = 0
    for numbers, text in re.findall(r'data-r="([\d ]+)">([\d.]+)</button>', section):
        runs = [content["runs"][int(number)] for number in numbers.split()]
        if all("config" in run for run in runs):
            means = [sum(run["scores"][m] for run in runs) / len(runs) for m in runs[0]["scores"]]
            assert any(abs(mean - float(text)) < 1e-4 for mean in means)
            checked += 1
    assert checked > 30


def test_a_lone_run_is_repeated_by_its_method(content, world):
    narrow = content["commands"]["table2-demo"]["narrow"]
    assert content["commands"]["figure4-demo"]["narrow"] is None
    words = shlex.split(f"{narrow} --methods m3bsr")[3:]
    options = reproduce.parser().parse_intermixed_args(words)
    assert options.methods == "m3bsr"
    assert "m3bsr" in content["methods"]
    assert "random" not in content["methods"]


def test_methods_are_taken_out_of_a_command(tmp_path):
    page = Document("Data: a.", "T", (Notes("N", ("x",)),))
    publish(tmp_path, page, command="python -m harness.reproduce table2 --methods a,b x.y=1")
    assert main(["--results", str(tmp_path)]) == 0
    text = (tmp_path / "report.html").read_text("utf8")
    assert '"narrow":"python -m harness.reproduce table2 x.y=1"' in text


# --- safety --------------------------------------------------------------------------------------


def test_nothing_is_fetched(html, page):
    for tag, attributes in page.elements:
        assert tag not in {"link", "img", "iframe", "object", "embed", "base", "form", "a" * 9}
        for name in ("src", "srcset", "action", "data", "poster", "background"):
            assert name not in attributes, (tag, attributes)
        reference = attributes.get("href") or attributes.get("xlink:href") or "#"
        assert reference.startswith(("#", "data:image/png;base64,"))
    style = page.text("style")[0]
    assert "url(" not in style
    assert "@import" not in style


def test_the_policy_allows_this_pages_script_alone(page):
    policy = next(m["content"] for m in page.all("meta") if "http-equiv" in m)
    assert policy.startswith("default-src 'none'; ")
    scripts = page.text("script")
    assert len(scripts) == 2
    digest = base64.b64encode(hashlib.sha256(scripts[1].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}';" in policy


EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'`&</style></title><!--"


def evil_page():
    grid = Grid(
        EVIL,
        EVIL,
        (Band(EVIL, EVIL, (EVIL,)), Band("b", "b", ("c",))),
        (Line(EVIL), Line(EVIL, ((Span(EVIL, bold=True, runs=(EVIL,)),), entry(EVIL)))),
        (EVIL, f"x: python -m harness.reproduce {EVIL}"),
    )
    return Document(
        EVIL, EVIL, (grid, Notes(EVIL, (EVIL,)), Notes(GAPS, (EVIL,)), Picture(EVIL, "a", EVIL)),
        (grid,),
    )  # fmt: skip


@pytest.fixture
def evil(tmp_path):
    """A page that has a hostile text wherever there is a text, and such runs."""
    world = World(seeds=1, methods=("m3bsr",), references=())
    store = Store(tmp_path)
    record = world.records[0]
    for key in (record.key, "f" * 64):
        store.save(replace(record, key=key, label=EVIL, host={"name": EVIL}, versions={EVIL: EVIL},
                           config=record.config | {"data": EVIL, EVIL: EVIL}, finished=EVIL,
                           curve=CURVE))  # fmt: skip
    data = [{"name": EVIL, "demo": True, "data_sha256": EVIL, "candidates_sha256": EVIL}]
    page = evil_page()
    grid = page.parts[0]
    last = Line("row", ((Span("0.5", runs=(record.key,)),), entry("0.5")))
    page = replace(page, parts=(replace(grid, lines=(*grid.lines, last)), *page.parts[1:]))
    publish(tmp_path, page, names=(EVIL,), data=data, command=f"python -m x {EVIL!r}",
            figures={"a": figure(1)})  # fmt: skip
    return tmp_path


def test_texts_stay_texts(evil):
    assert main(["--results", str(evil)]) == 0
    page = Reader((evil / "report.html").read_text("utf8"))
    assert len(page.all("script")) == 2
    assert not page.all("img")
    assert not any(name.startswith("on") for _, a in page.elements for name in a)
    assert f"{EVIL} demo" in page.text("h2")
    assert EVIL in page.text("b")


def test_figures_lose_everything_but_their_shapes():
    drawing = """<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"
      width="72pt" viewBox="0 0 1 1" onload="alert(1)"><script>alert(1)</script>
      <style>*{fill:red}</style><metadata>x</metadata><foreignObject><b/></foreignObject>
      <a xlink:href="javascript:alert(1)"><rect/></a>
      <defs><clipPath id="c"><rect width="1"/></clipPath></defs>
      <g clip-path="url(#c)" onclick="alert(1)" style="fill:url(http://x/y)"><use xlink:href="#c"/>
      <use xlink:href="http://x/y"/><image xlink:href="data:image/png;base64,AAAA"/>
      <text>a &lt;b&gt;</text></g></svg>"""
    made = inline(drawing, "fig", "T <t>", 'C "c"')
    for gone in ("script", "style>", "alert", "metadata", "foreignObject", "http:", "<a"):
        assert gone not in made, gone
    for kept in ('id="fig--c"', "url(#fig--c)", 'href="#fig--c"', "data:image/png;base64,AAAA",
                 "a &lt;b&gt;", "T &lt;t&gt;", 'role="img"', "--width:96px"):  # fmt: skip
        assert kept in made, kept
    for wrong in ("no xml <", "<html xmlns='http://www.w3.org/1999/xhtml'/>"):
        with pytest.raises(ValueError, match=r"."):
            inline(wrong, "a", "b", "c")


def test_two_figures_share_no_name(page):
    drawings = [a for a in page.all("svg") if a.get("role") == "img"]
    assert len(drawings) == 2
    clips = [a["id"] for a in page.all("clippath")]
    assert len(clips) == len(set(clips)) > 2
    named = {a["id"] for _, a in page.elements if "id" in a}
    for _, attributes in page.elements:
        for used in re.findall(r"url\(#([^)]+)\)", " ".join(v or "" for v in attributes.values())):
            assert used in named


# --- small parts ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("0.5923±.0071†", 0.5923), ("+0.0312 ±.0210 p .012", 0.0312), ("-0.25", -0.25),
        ("−0.25", -0.25), ("<.001", 0.001), ("1,234", 1234.0), ("[-0.1, +0.2]", -0.1),
        ("12.5 %", 12.5), ("1e-3", 0.001), ("p .012", 0.012), ("failed [1]", None), ("", None),
        ("MB-STR", None), ("3rd", None), ("2026-01-02", 2026.0), ("10 of 20", 10.0),
    ],
)  # fmt: skip
def test_what_an_entry_is_sorted_by(text, number):
    assert value((Span(text[:2]), Span(text[2:]))) == number


def test_a_command_at_the_end_of_a_sentence_is_a_command():
    assert said("To fill the gaps: python -m harness.x y") == [
        ("To fill the gaps: ", False),
        ("python -m harness.x y", True),
    ]
    assert said("python -m harness.audit gives the bound.") == [
        ("python -m harness.audit gives the bound.", False)
    ]


def contrast(one, other):
    def light(colour):
        parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((light(one), light(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_colours_can_be_told_apart(scheme):
    style = files("harness.report").joinpath("page.css").read_text("utf8")
    block = re.findall(r":root \{(.*?)\}", style, re.DOTALL)[scheme]
    colour = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", block))
    pairs = [(text, ground) for text in ("ink", "muted", "accent")
             for ground in ("paper", "raised", "ours", "faint")]  # fmt: skip
    for text, ground in (*pairs, ("demo-ink", "demo"), ("demo-ink", "paper"), ("paper", "accent")):
        assert contrast(colour[text], colour[ground]) >= 4.5, (text, ground)


# --- the command line ----------------------------------------------------------------------------


def test_the_same_results_give_the_same_bytes(results, html, tmp_path):
    copy = tmp_path / "elsewhere"
    shutil.copytree(results, copy)
    (copy / "report.html").unlink()
    output = tmp_path / "out" / "page.html"
    command = [
        sys.executable,
        "-m",
        "harness.report",
        "--results",
        str(copy),
        "--output",
        str(output),
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True,
                          env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "7"})  # fmt: skip
    assert "3 pages, " in done.stdout
    assert not done.stderr
    assert output.read_text("utf8") == html


def test_help_answers_without_heavy_imports():
    code = (
        "import sys; from harness.report.__main__ import main; code = main(['--help']); "
        "assert not {'torch', 'numpy', 'jinja2'} & set(sys.modules); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                          cwd=ROOT)  # fmt: skip
    assert "examples:" in done.stdout


def test_mistakes_are_said_in_one_line(results, tmp_path, capsys):
    file = tmp_path / "file"
    file.touch()
    for words, parts in (
        (["--results", str(tmp_path / "none")], ("no results folder", "reproduce table2")),
        (["--results", str(results), "--data", "shap"], ("did you mean 'shop'", "demo_kuaishou")),
        (["--results", str(tmp_path), "--data", "demo"], ("nothing is published",)),
        (["--results", str(results), "--data", ","], ("names no data set",)),
        (["--results", str(results), "--output", str(file / "x.html")], ("cannot be written",)),
        (["--nonsense"], ("--nonsense", "--help")),
    ):
        assert main(words) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        for part in parts:
            assert part in error


def test_data_narrow_the_page(results, tmp_path, capsys):
    output = tmp_path / "x.html"
    assert main(["--results", str(results), "--data", "shop", "--output", str(output)]) == 0
    assert capsys.readouterr().out.startswith("1 pages, 5 runs, 1 runs that pages name are not")
    text = output.read_text("utf8")
    assert "Somebody" in text
    assert "table2-demo" not in text


def test_nothing_published_is_a_page_of_what_is_missing(tmp_path):
    assert main(["--results", str(tmp_path)]) == 0
    page = Reader((tmp_path / "report.html").read_text("utf8"))
    assert "python -m harness.reproduce claims" in page.text("code")
    assert any("No run is stored" in text for text in page.text("p"))


@pytest.mark.filterwarnings("ignore:record:RuntimeWarning")
def test_damaged_files_are_named_and_left_out(results, tmp_path):
    copy = tmp_path / "results"
    shutil.copytree(results, copy)
    (copy / "tables/homemade/shop/page.json").write_text("{")
    (copy / "tables/figure4/demo/second.svg").write_text("<svg")
    first = next((copy / "cells").iterdir())
    (first / "record.json").write_text("{}")
    assert main(["--results", str(copy)]) == 0
    html = (copy / "report.html").read_text("utf8")
    Reader(html)
    assert "tables/homemade/shop/page.json cannot be read" in html
    assert "figure second.svg cannot be read" in html
    assert "2 runs behind numbers" in html


@pytest.mark.slow
def test_from_a_command_to_the_page(words, tmp_path, capsys):
    command = ["table2", *words, "--budget", "smoke", "--methods", "sasrec,m3bsr"]
    assert reproduce.main(command) == 0
    assert main(["--results", str(tmp_path / "results")]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("1 pages, 8 runs; ")
    page = Reader((tmp_path / "results/report.html").read_text("utf8"))
    assert shlex.join(["python", "-m", "harness.reproduce", *command]) in page.text("code")


# --- in a browser --------------------------------------------------------------------------------

PHONE = {"viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True}
DESKTOP = {"viewport": {"width": 1280, "height": 900}}
OFFLINE = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update",
)  # fmt: skip
"""Chromium as root, without connections of its own."""


@pytest.fixture(scope="module")
def chromium():
    """Chromium; without it the tests skip, but not where REPORT_BROWSER says that it is there."""
    path = os.environ.get("REPORT_BROWSER") or next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
    )
    if not os.environ.get("REPORT_BROWSER"):
        pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
        if path is None:
            pytest.skip("no Chromium on this machine; nox -s browser installs it")
    from playwright.sync_api import sync_playwright  # noqa: PLC0415 - optional

    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=path, args=list(OFFLINE))
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium, results, html):
    """Open the report; at the end nothing was fetched and nothing was complained of."""
    contexts, wrong, fetched = [], [], []

    def opened(path=results / "report.html", **options):
        context = chromium.new_context(**(options or DESKTOP))
        contexts.append(context)
        tab = context.new_page()
        tab.on("console", lambda message: wrong.append(message.text))
        tab.on("pageerror", lambda error: wrong.append(str(error)))
        tab.on("dialog", lambda dialog: (wrong.append("a dialog"), dialog.dismiss()))
        context.on("request", lambda request: fetched.append(request.url))
        tab.goto(path.as_uri())
        tab.wait_for_load_state("networkidle")
        return tab

    yield opened
    for context in contexts:
        context.close()
    assert not wrong
    assert len(fetched) == len(contexts)
    assert all(url.startswith("file:") for url in fetched)


@pytest.fixture(scope="module")
def screenshots():
    folder = Path(os.environ.get("REPORT_SCREENSHOTS", ROOT / "build" / "report"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def column(table, number):
    """The texts of a column, from top to bottom."""
    return table.locator(
        f"tbody:not([hidden]) tr:not(.heading) > :nth-child({number})"
    ).all_inner_texts()


@pytest.mark.browser
def test_columns_sort_both_ways(visit):
    tab = visit()
    table = tab.locator("#homemade-shop table").first
    head = table.locator("thead th").nth(1)
    before = column(table, 2)
    head.locator("button").click()
    assert head.get_attribute("aria-sort") == "descending"
    assert column(table, 2) == ["+1,234.5", "0.5", "-0.25", "<.001", "failed [1]", ""]
    head.locator("button").press("Enter")
    assert head.get_attribute("aria-sort") == "ascending"
    assert column(table, 2) == ["-0.25", "0.5", "+1,234.5", "<.001", "failed [1]", ""]
    headings = table.locator("tr.heading")
    assert headings.count() == 1
    table.locator("label input").check()
    assert column(table, 2) == ["-0.25", "<.001", "0.5", "+1,234.5", "failed [1]", ""]
    assert not headings.is_visible()
    head.locator("button").press(" ")
    assert head.get_attribute("aria-sort") == "none"
    assert column(table, 2) == before
    assert headings.is_visible()
    table.locator("thead button").first.click()
    assert column(table, 1) == ["row 5", "row 6", "row 7", "row 8", "row 9", "row 10"]


@pytest.mark.browser
def test_means_sort_by_the_mean(visit):
    table = visit().locator("#table2-demo table").first
    table.locator("label input").check()
    table.locator("thead tr").last.locator("th").nth(3).locator("button").click()
    means = [float(re.match(r"[\d.]+", text)[0]) for text in column(table, 4)]
    assert means == sorted(means, reverse=True)
    assert len(set(means)) > 4


@pytest.mark.browser
def test_a_tap_shows_the_runs_and_escape_closes(visit, world):
    tab = visit(**PHONE)
    panel = tab.locator("#panel")
    number = tab.locator("#table2-demo tr.ours button.run").first
    assert not panel.is_visible()
    number.tap()
    assert panel.is_visible()
    text = panel.inner_text()
    runs = [r for r in world.records if (r.label, r.data) == ("M3BSR", "demo_rec_tmall")]
    for record in runs:
        assert record.key[:8] in text
    assert re.search(r"seed\s+1\s+2\s+3", text)
    for part in ("code-of-m3bs", "node7 (x86_64, 2 threads)", "12,345", "torch 2.13",
                 f"{COMMAND} --methods m3bsr", "M3BSR · demo_rec_tmall · HR@10"):  # fmt: skip
        assert part in text, part
    assert panel.locator("svg polyline").count() == 3
    panel.locator("summary").first.tap()
    assert "train.epochs=" in panel.inner_text()
    assert number.get_attribute("aria-expanded") == "true"
    tab.keyboard.press("Escape")
    assert not panel.is_visible()
    assert number.get_attribute("aria-expanded") == "false"
    assert number.evaluate("button => button === document.activeElement")


@pytest.mark.browser
def test_a_pointer_and_the_keyboard_show_the_runs_too(visit):
    tab = visit()
    panel = tab.locator("#panel")
    numbers = tab.locator("#table2-demo tr.ours button.run")
    numbers.first.hover()
    panel.wait_for(state="visible")
    panel.hover()
    tab.mouse.move(5, 5)
    panel.wait_for(state="hidden")
    numbers.first.focus()
    tab.keyboard.press("ArrowRight")
    assert numbers.nth(1).evaluate("button => button === document.activeElement")
    assert "NDCG@10" in panel.locator("h2").inner_text()
    tab.keyboard.press("ArrowUp")
    assert "MB-STR" in panel.locator("h2").inner_text()
    tab.keyboard.press("Enter")
    assert panel.evaluate("box => box.contains(document.activeElement)")
    tab.keyboard.press("Escape")
    assert not panel.is_visible()
    stops = tab.locator("#table2-demo table").first.locator("button.run[tabindex='0']")
    assert stops.count() == 1


@pytest.mark.browser
def test_a_lost_record_is_said(visit):
    tab = visit()
    tab.locator("#table2-demo tr", has_text="GRU4Rec").first.locator("button.run").first.click()
    assert "record not in this folder" in tab.locator("#panel").inner_text()


@pytest.mark.browser
def test_commands_are_copied(visit):
    tab = visit()
    tab.context.grant_permissions(["clipboard-read", "clipboard-write"])
    box = tab.locator("#table2-demo .again .command")
    box.locator("button").click()
    box.get_by_text("Copied").wait_for()
    assert tab.evaluate("navigator.clipboard.readText()") == COMMAND


@pytest.mark.browser
def test_a_phone_scrolls_tables_not_the_page(visit, screenshots):
    tab = visit(**PHONE)
    width = tab.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    assert width == [360, 360]
    table = tab.locator("#table2-demo .scroll").first
    assert table.evaluate("box => box.scrollWidth > box.clientWidth")
    first = table.locator("tr.ours th")
    left = first.bounding_box()["x"]
    table.evaluate("box => { box.scrollLeft = 150; }")
    assert abs(first.bounding_box()["x"] - left) < 1
    tab.screenshot(path=screenshots / "phone.png", full_page=True)
    tab.locator("#table2-demo tr.ours button.run").first.tap()
    tab.screenshot(path=screenshots / "phone-runs.png")


@pytest.mark.browser
def test_dark_and_light(visit, screenshots):
    seen = {}
    for scheme in ("light", "dark"):
        tab = visit(**DESKTOP, color_scheme=scheme)
        seen[scheme] = tab.evaluate("getComputedStyle(document.body).backgroundColor")
        card = tab.locator(".drawing").first
        assert card.evaluate("box => getComputedStyle(box).backgroundColor") == "rgb(255, 255, 255)"
        tab.screenshot(path=screenshots / f"{scheme}.png", full_page=True)
    assert seen["light"] != seen["dark"]


@pytest.mark.browser
def test_paper_shows_everything_and_no_controls(visit):
    tab = visit()
    closed = tab.locator("#table2-demo details table")
    assert not closed.is_visible()
    tab.emulate_media(media="print")
    closed.wait_for(state="visible")
    for hidden in ("nav", ".copy", "#panel"):
        assert not tab.locator(hidden).first.is_visible()
    tab.emulate_media(media="screen")
    closed.wait_for(state="hidden")


@pytest.mark.browser
def test_hostile_texts_do_nothing(visit, evil):
    assert main(["--results", str(evil)]) == 0
    tab = visit(evil / "report.html")
    tab.locator("main summary").evaluate_all("all => all.forEach(one => one.click())")
    for number in tab.locator("main section:first-of-type button.run").all():
        number.click()
        assert tab.locator("#panel").is_visible()
        tab.keyboard.press("Escape")
    assert tab.evaluate("document.images.length") == 0
