/* Mean scores by dimension and strategy, and their differences from Base, as a table of squares. */
"use strict";
(() => {
  const { make, number, visible } = window.hialignExplorer.text;
  const LEAST = 0.1; // where the colours end at least, so that noise does not look like an effect
  const ANCHOR = 3; // the judge's score of the baseline response

  /** A strategy's mean in a dimension, and its difference from Base on the prompts of both. */
  function measure(store, model, strategy, dimension) {
    let sum = 0;
    let n = 0;
    let difference = 0;
    let pairs = 0;
    const own = store.scores(model, strategy);
    const base = store.base < 0 ? [] : store.scores(model, store.base);
    for (let i = dimension; i < own.length; i += store.index.dimensions.length) {
      if (!own[i]) continue;
      sum += own[i] / store.scale;
      n += 1;
      if (!base[i]) continue;
      difference += (own[i] - base[i]) / store.scale;
      pairs += 1;
    }
    return { n, mean: n ? sum / n : NaN, pairs, difference: pairs ? difference / pairs : NaN };
  }

  /** `+0.12`, or, where three decimals are needed, `+.012`. */
  function signed(value, digits) {
    const size = Math.abs(value).toFixed(digits);
    return (value < 0 ? "−" : "+") + (digits > 2 ? size.replace(/^0/, "") : size);
  }

  /** A name in one word, such as GrammarFluency, with places to break it. */
  function breakable(name) {
    const parts = visible(name).split(/(?=[A-Z])/).filter((part) => part);
    return parts.flatMap((part, i) => (i ? [document.createElement("wbr"), part] : [part]));
  }

  /** The squares' table; `choose(dimension, strategy)` is called for the one that is pressed. */
  function draw(store, model, choose) {
    const { dimensions, strategies } = store.index;
    const rows = dimensions.map((_, d) => strategies.map((_, s) => measure(store, model, s, d)));
    const of = (square, s) => {
      if (store.base < 0) return square.mean - ANCHOR;
      return s === store.base ? NaN : square.difference;
    };
    const sizes = rows.flatMap((row) => row.map((square, s) => Math.abs(of(square, s))));
    const end = Math.max(LEAST, ...sizes.filter((size) => !Number.isNaN(size)));
    const digits = end < 0.2 ? 3 : 2;
    const buttons = [];
    const square = (d, s) => {
      const found = rows[d][s];
      const name = `${visible(dimensions[d])}, ${visible(strategies[s])}`;
      if (!found.n) {
        return make("td", { class: "hx-none", "aria-label": `${name}: no score` }, "–");
      }
      const value = of(found, s);
      const compared = store.base >= 0 && s !== store.base && found.pairs > 0;
      const words = compared ? `, ${signed(found.difference, digits)} against Base` : "";
      const count = `${number(found.n)} prompt${found.n === 1 ? "" : "s"}`;
      const label = `${name}: mean ${found.mean.toFixed(2)}${words}; ${count}`;
      const button = make(
        "button",
        { type: "button", "aria-label": label, title: label, tabindex: -1 },
        make("span", {}, found.mean.toFixed(2)),
        compared ? " " : null,
        compared ? make("small", {}, signed(found.difference, digits)) : null
      );
      button.dataset.side = Number.isNaN(value) ? "none" : value < 0 ? "low" : "high";
      const share = Number.isNaN(value) ? 0 : Math.abs(value) / end;
      button.style.setProperty("--hx-share", `${Math.round(100 * share)}%`);
      button.addEventListener("click", () => choose(d, s));
      Object.assign(button.dataset, { dimension: d, strategy: s });
      buttons.push(button);
      return make("td", {}, button);
    };
    const head = strategies.map((name) => make("th", { scope: "col" }, visible(name)));
    const body = dimensions.map((name, d) =>
      make(
        "tr",
        {},
        make("th", { scope: "row" }, ...breakable(name)),
        ...strategies.map((_, s) => square(d, s))
      )
    );
    const reference =
      store.base < 0
        ? `colours part at ${ANCHOR}, the judge's anchor, and end at ${ANCHOR} ± ${end.toFixed(2)}`
        : `beside it the difference from Base over the prompts that both have a score for; ` +
          `colours end at ± ${end.toFixed(2)}`;
    const table = make(
      "table",
      { class: "hx-map" },
      make("caption", {}, `Mean score of each strategy; ${reference}.`),
      make("thead", {}, make("tr", {}, make("th", { scope: "col" }, "Dimension"), ...head)),
      make("tbody", {}, ...body)
    );
    if (buttons.length) buttons[0].tabIndex = 0;
    table.addEventListener("keydown", (event) => move(event, table, buttons));
    return table;
  }

  /** Arrow keys go from square to square, so that Tab passes the table in one step. */
  function move(event, table, buttons) {
    const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
    const here = event.target.closest("button");
    if (!here || !(event.key in step)) return;
    event.preventDefault();
    const [down, right] = step[event.key];
    let [d, s] = [Number(here.dataset.dimension), Number(here.dataset.strategy)];
    const last = Math.max(...buttons.map((b) => Math.max(b.dataset.dimension, b.dataset.strategy)));
    for (let i = 0; i <= last; i++) {
      d += down;
      s += right;
      const next = table.querySelector(`button[data-dimension="${d}"][data-strategy="${s}"]`);
      if (next) {
        buttons.forEach((button) => (button.tabIndex = -1));
        next.tabIndex = 0;
        next.focus();
        return;
      }
    }
  }

  /** Show which square the list is sorted by, if any. */
  function press(table, dimension, strategy) {
    for (const button of table.querySelectorAll("button")) {
      const chosen = Number(button.dataset.dimension) === dimension;
      button.closest("tr").classList.toggle("hx-chosen", chosen);
      button.setAttribute("aria-pressed", chosen && Number(button.dataset.strategy) === strategy);
    }
  }

  Object.assign(window.hialignExplorer, { heatmap: { draw, measure, press } });
})();
