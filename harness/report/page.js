"use strict";
(() => {
  const data = JSON.parse(document.getElementById("runs-data").textContent);
  const panel = document.getElementById("panel");
  const SVG = "http://www.w3.org/2000/svg";

  /* An element; texts are only ever set as text. */
  const make = (tag, attributes = {}, ...children) => {
    const drawn = ["svg", "polyline", "circle", "line", "text", "title"].includes(tag);
    const made = drawn ? document.createElementNS(SVG, tag) : document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    made.append(...children.filter((child) => child !== null && child !== undefined));
    return made;
  };

  /* --- commands to copy --- */
  const copyable = (box) => {
    const code = box.querySelector("code");
    const button = make("button", { type: "button", class: "copy", "aria-label": "Copy the command" }, "Copy");
    button.addEventListener("click", async () => {
      let done = false;
      try {
        await navigator.clipboard.writeText(code.textContent);
        done = true;
      } catch {
        getSelection().selectAllChildren(code);
        done = document.execCommand("copy");
      }
      button.textContent = done ? "Copied" : "Press Ctrl-C";
      setTimeout(() => { button.textContent = "Copy"; }, 1500);
    });
    box.append(button);
    return box;
  };
  document.querySelectorAll(".command").forEach(copyable);
  const command = (text) => copyable(make("div", { class: "command" }, make("code", {}, text)));

  /* --- sorting --- */
  const collator = new Intl.Collator("en", { numeric: true });
  const sortable = (table) => {
    const heads = [...table.tHead.rows[table.tHead.rows.length - 1].cells];
    const bodies = [...table.tBodies];
    const heading = (row) => row.classList.contains("heading");
    const groups = bodies.map((body) => [...body.rows].filter((row) => !heading(row)));
    if (groups.flat().length < 2) return;
    const everything = document.createElement("tbody");
    const headed = bodies.some((body) => [...body.rows].some(heading));
    let across = false, at = -1, falling = true;

    const compare = (a, b) => {
      const [one, other] = [a.cells[at], b.cells[at]];
      const [v, w] = [one.dataset.v, other.dataset.v];
      if (v !== undefined && w !== undefined) return (falling ? -1 : 1) * (v - w);
      if (v !== undefined || w !== undefined) return v !== undefined ? -1 : 1;
      const [s, t] = [one.textContent.trim(), other.textContent.trim()];
      if (!s || !t) return s ? -1 : t ? 1 : 0;
      return (falling ? -1 : 1) * collator.compare(s, t);
    };
    const show = () => {
      const together = across && at >= 0;
      const ordered = (rows) => (at < 0 ? rows : [...rows].sort(compare));
      if (together) everything.append(...ordered(groups.flat()));
      else bodies.forEach((body, number) => body.append(...ordered(groups[number])));
      bodies.forEach((body) => { body.hidden = together; });
      if (together) table.append(everything); else everything.remove();
      heads.forEach((head, number) =>
        head.setAttribute("aria-sort", number !== at ? "none" : falling ? "descending" : "ascending"));
    };
    heads.forEach((head, number) => {
      const button = make("button", { type: "button", class: "sort" }, ...head.childNodes);
      head.replaceChildren(button);
      head.setAttribute("aria-sort", "none");
      const numbers = groups.flat().some((row) => row.cells[number]?.dataset.v !== undefined);
      button.addEventListener("click", () => {
        if (at !== number) { at = number; falling = numbers; }
        else if (falling === numbers) falling = !numbers;
        else at = -1;
        show();
      });
    });
    if (headed && bodies.length > 1) {
      const box = make("input", { type: "checkbox" });
      box.addEventListener("change", () => { across = box.checked; show(); });
      table.caption.append(make("label", {}, box, "sort across the groups"));
    }
  };
  document.querySelectorAll("main table:not(.plain)").forEach(sortable);

  /* --- the runs behind a number --- */
  const short = (key) => key.slice(0, 12);
  const several = (count, word) => `${count} ${word}${count === 1 ? "" : "s"}`;

  const curves = (runs) => {
    const having = runs.filter((run) => run.curve && run.curve.length > 1);
    if (!having.length) return null;
    const [width, height, left, right, top, bottom] = [480, 120, 40, 46, 16, 16];
    const values = having.flatMap((run) => run.curve.filter((value) => value !== null));
    const [low, high] = [Math.min(...values), Math.max(...values)];
    const longest = Math.max(...having.map((run) => run.curve.length));
    const x = (epoch) => left + ((width - left - right) * (epoch - 1)) / Math.max(1, longest - 1);
    const y = (value) => top + (height - top - bottom) * (high > low ? (high - value) / (high - low) : 0.5);
    const text = (px, py, anchor, words) => make("text", { x: px, y: py, "text-anchor": anchor }, words);
    const drawn = make("svg", { viewBox: `0 0 ${width} ${height}`, role: "img" },
      make("title", {}, `Validation NDCG@10 by epoch, from ${low} to ${high}; a dot marks the epoch whose weights were kept`),
      make("line", { class: "axis", x1: left, x2: width - right, y1: height - bottom, y2: height - bottom }),
      text(left, 10, "start", "validation NDCG@10 by epoch; dot: weights kept"),
      text(left - 4, y(high) + 4, "end", high.toFixed(3)),
      high > low ? text(left - 4, y(low) + 1, "end", low.toFixed(3)) : null,
      text(left, height - 4, "start", "1"), text(width - right, height - 4, "end", String(longest)));
    for (const run of having) {
      const points = run.curve.map((value, place) => [place + 1, value]).filter(([, value]) => value !== null);
      drawn.append(make("polyline", { points: points.map(([e, v]) => `${x(e).toFixed(1)},${y(v).toFixed(1)}`).join(" ") }));
      const kept = points.find(([epoch]) => epoch === run.best);
      if (kept) drawn.append(make("circle", { cx: x(kept[0]).toFixed(1), cy: y(kept[1]).toFixed(1), r: 2.8 }));
    }
    return drawn;
  };

  const facts = (runs) => {
    const seconds = (run) => run.seconds.total === undefined ? "" : run.seconds.total.toFixed(1);
    const made = (name) => (run) => data.makings[run.made][name];
    const rows = [
      ["run", (run) => run.key.slice(0, runs.length > 1 ? 8 : 12)],
      ["seed", (run) => String(run.seed)],
      ...["HR@10", "NDCG@10", "HR@20", "NDCG@20"].map((name) =>
        [name, (run) => run.scores?.[name]?.toFixed(4) ?? ""]),
      ["epochs", (run) => String(run.epochs)],
      ["best epoch", (run) => String(run.best)],
      ["seconds", seconds],
      ["memory, MiB", (run) => String(run.memory)],
      ["resumed", (run) => (run.resumed ? several(run.resumed, "time") : "")],
      ["finished", (run) => run.finished.slice(0, 16).replace("T", " ")],
      ["node", (run) => data.nodes[run.node]],
      ["method", (run) => run.method],
      ["data", (run) => run.data],
      ["test users", (run) => (run.users === undefined ? "" : run.users.toLocaleString("en"))],
      ["parameters", (run) => run.parameters.toLocaleString("en")],
      ["samples an epoch", (run) => run.samples.toLocaleString("en")],
      ["code", (run) => short(made("code")(run))],
      ["data, SHA-256", (run) => short(made("data")(run))],
      ["candidates", (run) => short(made("candidates")(run))],
      ["libraries", made("versions")],
      ...[...new Set(runs.flatMap((run) => Object.keys(run.measured ?? {})))].map((name) =>
        [name, (run) => (run.measured?.[name] ?? []).map((value) => String(Number(value.toPrecision(4)))).join(", ")]),
    ].map(([name, read]) => [name, runs.map(read)]).filter(([, texts]) => texts.some(Boolean));
    const differ = ([, texts]) => texts.some((text) => text !== texts[0]);
    const own = runs.length > 1 ? rows.filter(differ) : [];
    const shared = rows.filter((row) => !own.includes(row));
    const boxes = [];
    if (own.length) {
      const body = own.map(([name, texts]) => make("tr", {},
        make("th", { scope: "row" }, name), ...texts.map((text) => make("td", {}, text))));
      boxes.push(make("div", { class: "scroll", tabindex: "0" }, make("table", {}, make("tbody", {}, ...body))));
    }
    if (shared.length) {
      boxes.push(make("dl", {}, ...shared.flatMap(([name, texts]) =>
        [make("dt", {}, name), make("dd", {}, texts[0])])));
    }
    return boxes;
  };

  const inFull = (runs) => {
    const made = data.makings[runs[0].made];
    const lines = [
      ...runs.map((run) => `run, seed ${run.seed}: ${run.key}`),
      `code: ${made.code}`, `data: ${made.data}`, `candidates: ${made.candidates}`,
    ];
    return [
      make("details", {}, make("summary", {}, "Full config"),
        make("pre", { tabindex: "0" }, data.configs[runs[0].config].join("\n"))),
      make("details", {}, make("summary", {}, "Keys and checksums in full"),
        make("pre", { tabindex: "0" }, lines.join("\n"))),
    ];
  };

  /* Runs that differ in their seed alone stand together. */
  const grouped = (runs) => {
    const found = new Map();
    for (const run of runs) {
      const name = `${run.config}-${run.made}`;
      found.set(name, [...(found.get(name) ?? []), run]);
    }
    return [...found.values()];
  };

  const again = (button, runs) => {
    const page = button.closest("section");
    const known = data.commands[page.id];
    if (!known) return [];
    const methods = [...new Set(runs.map((run) => run.method))];
    const lone = methods.length === 1 && known.narrow && data.methods.includes(methods[0]);
    return [make("h3", {}, "To compute it again"),
      command(lone ? `${known.narrow} --methods ${methods[0]}` : known.all)];
  };

  const heading = (button) => {
    const cell = button.closest("td");
    const row = cell.parentElement;
    const table = cell.closest("table");
    const heads = table.tHead.rows[table.tHead.rows.length - 1].cells;
    let band = "";
    if (table.tHead.rows.length > 1) {
      let passed = 0;
      for (const one of table.tHead.rows[0].cells) {
        passed += one.colSpan;
        if (cell.cellIndex < passed) { band = one.textContent; break; }
      }
    }
    const words = [row.cells[0].textContent, band, heads[cell.cellIndex].textContent];
    return `${words.map((word) => word.trim()).filter(Boolean).join(" · ")}: ${cell.textContent.trim()}`;
  };

  const fill = (button) => {
    const all = button.dataset.r.split(" ").map((number) => data.runs[number]);
    const runs = all.filter((run) => run.config !== undefined);
    const lost = all.filter((run) => run.config === undefined);
    const close = make("button", { type: "button", class: "close", "aria-label": "Close" }, "\u00d7");
    close.addEventListener("click", () => hide(true));
    const title = make("h2", { id: "panel-title" }, heading(button));
    const parts = [close, title, make("p", {}, `Rests on ${several(all.length, "run")}.`)];
    const sets = grouped(runs);
    for (const group of sets) {
      const name = `${group[0].label} on ${group[0].data}, ${several(group.length, "run")}`;
      const content = () => [...[curves(group)].filter(Boolean), ...facts(group), ...inFull(group)];
      if (sets.length === 1) parts.push(...content());
      else if (sets.length === 2) parts.push(make("h3", {}, name), ...content());
      else {
        const box = make("details", {}, make("summary", {}, name));
        box.addEventListener("toggle", () => box.append(...content()), { once: true });
        parts.push(box);
      }
    }
    for (const run of lost) parts.push(make("p", {}, `Run ${short(run.key)}: record not in this folder.`));
    panel.setAttribute("aria-labelledby", "panel-title");
    panel.replaceChildren(...parts, ...again(button, runs));
    panel.scrollTop = 0;
  };

  let shown = null, pinned = false, timer = 0;
  const place = (button) => {
    const at = button.getBoundingClientRect();
    const size = panel.getBoundingClientRect();
    const room = document.documentElement.clientWidth - size.width - 8;
    panel.style.left = `${Math.max(8, Math.min(at.left - 12, room)) + scrollX}px`;
    const under = at.bottom + 6;
    const above = at.top - 6 - size.height;
    panel.style.top = `${(under + size.height > innerHeight && above > 0 ? above : under) + scrollY}px`;
  };
  const show = (button, pin) => {
    clearTimeout(timer);
    if (shown !== button) {
      shown?.setAttribute("aria-expanded", "false");
      shown = button;
      button.setAttribute("aria-expanded", "true");
      fill(button);
      panel.hidden = false;
      place(button);
    }
    pinned = pin;
    if (pin) panel.focus({ preventScroll: true });
  };
  const hide = (back) => {
    clearTimeout(timer);
    if (!shown) return;
    const button = shown;
    button.setAttribute("aria-expanded", "false");
    shown = null;
    pinned = false;
    if (back && panel.contains(document.activeElement)) {
      quiet = true;
      button.focus({ preventScroll: true });
      quiet = false;
    }
    panel.hidden = true;
  };
  let quiet = false;
  const later = (wait, act) => { clearTimeout(timer); timer = setTimeout(act, wait); };
  const run = (event) => event.target.closest?.("button.run");

  document.querySelectorAll("button.run").forEach((button) => {
    button.setAttribute("aria-haspopup", "dialog");
    button.setAttribute("aria-expanded", "false");
  });
  document.addEventListener("pointerover", (event) => {
    if (event.pointerType !== "mouse" || pinned) return;
    const button = run(event);
    if (button) later(shown ? 120 : 300, () => show(button, false));
    else if (panel.contains(event.target)) clearTimeout(timer);
    else if (shown) later(250, () => hide(false));
    else clearTimeout(timer);
  });
  document.addEventListener("click", (event) => {
    const button = run(event);
    if (button) {
      if (shown === button && pinned) hide(true); else show(button, true);
    } else if (shown && event.target.isConnected && !panel.contains(event.target)) hide(false);
  });
  document.addEventListener("focusin", (event) => {
    const button = run(event);
    if (button) {
      reach(button);
      if (!quiet && !pinned && button.matches(":focus-visible")) show(button, false);
    } else if (shown && !pinned && !panel.contains(event.target)) hide(false);
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && shown) { hide(true); return; }
    const button = run(event);
    if (button && event.key.startsWith("Arrow")) {
      const next = neighbour(button, event.key);
      if (next) { event.preventDefault(); pinned = false; next.focus(); }
    }
  });

  /* Tab reaches one number of a table; arrows move among them. */
  const reach = (button) => {
    button.closest("table").querySelectorAll("button.run").forEach((other) => { other.tabIndex = -1; });
    button.tabIndex = 0;
  };
  document.querySelectorAll("main table").forEach((table) => {
    const first = table.querySelector("button.run");
    if (first) reach(first);
  });
  const neighbour = (button, key) => {
    const cell = button.closest("td");
    const rows = [...cell.closest("table").querySelectorAll("tbody:not([hidden]) tr")];
    const inside = (one) => one?.querySelector("button.run");
    if (key === "ArrowLeft" || key === "ArrowRight") {
      const step = key === "ArrowLeft" ? "previousElementSibling" : "nextElementSibling";
      for (let one = cell[step]; one; one = one[step]) if (inside(one)) return inside(one);
      return null;
    }
    const step = key === "ArrowUp" ? -1 : 1;
    for (let at = rows.indexOf(cell.parentElement) + step; rows[at]; at += step) {
      const found = inside(rows[at].cells[cell.cellIndex]);
      if (found) return found;
    }
    return null;
  };

  /* --- print: everything open, then as it was --- */
  let opened = [];
  const open = () => {
    hide(false);
    opened.push(...document.querySelectorAll("main details:not([open])"));
    opened.forEach((box) => { box.open = true; });
  };
  const restore = () => { opened.forEach((box) => { box.open = false; }); opened = []; };
  addEventListener("beforeprint", open);
  addEventListener("afterprint", restore);
  matchMedia("print").addEventListener("change", (event) => (event.matches ? open() : restore()));
})();
