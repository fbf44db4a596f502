/* What the reader asked for: the state, its form in the page's address, and which prompts it picks. */
"use strict";
(() => {
  const SORTS = ["prompt", "lowest", "highest", "pair", "all"];
  const FILTERS = ["all", "missing", "cut", "same", "different"];
  const PAGE = 10; // prompts

  /** The state that a page without anything in its address has. */
  function initial(store) {
    const { blocks, dimensions } = store.index;
    const overall = dimensions.indexOf("Overall");
    const base = Math.max(store.base, 0);
    return {
      model: 0,
      shown: blocks.map((_, s) => s),
      dimension: Math.max(overall, 0),
      sort: "prompt",
      a: base === 0 ? Math.min(1, blocks.length - 1) : 0,
      b: base,
      filter: "all",
      words: "",
      texts: false, // search in all texts, not only in the beginnings of prompts
      page: 0,
    };
  }

  /** The state in an address's hash; what it does not say, or says wrongly, is as at first. */
  function read(store, hash) {
    const state = initial(store);
    const { blocks, dimensions, models } = store.index;
    const given = new URLSearchParams(hash.replace(/^#/, ""));
    const place = (name, list, otherwise) => {
      const found = list.indexOf(given.get(name));
      return found < 0 ? otherwise : found;
    };
    const shown = blocks.map((_, s) => s).filter((s) => given.getAll("show").includes(blocks[s]));
    const sort = SORTS[place("sort", SORTS, 0)];
    return {
      model: place("model", models, state.model),
      shown: shown.length ? shown : state.shown,
      dimension: place("dimension", dimensions, state.dimension),
      sort: dimensions.length ? sort : "prompt",
      a: place("a", blocks, state.a),
      b: place("b", blocks, state.b),
      filter: FILTERS[place("filter", FILTERS, 0)],
      words: (given.get("words") || "").slice(0, 200),
      texts: given.get("texts") === "1",
      page: Math.max(0, (parseInt(given.get("page"), 10) || 1) - 1),
    };
  }

  /** The hash for `state`, with nothing in it that is as at first. */
  function write(store, state) {
    const start = initial(store);
    const { blocks, dimensions, models } = store.index;
    const given = new URLSearchParams();
    const put = (name, value, list) => {
      if (value !== start[name]) given.set(name, list ? list[value] : String(value));
    };
    put("model", state.model, models);
    if (state.shown.length < blocks.length) {
      state.shown.forEach((s) => given.append("show", blocks[s]));
    }
    put("dimension", state.dimension, dimensions);
    put("sort", state.sort);
    put("a", state.a, blocks);
    put("b", state.b, blocks);
    put("filter", state.filter);
    put("words", state.words);
    if (state.texts) given.set("texts", "1");
    if (state.page) given.set("page", String(state.page + 1));
    return given.toString();
  }

  /** What prompts are sorted by, in the chosen dimension; NaN where a score is missing. */
  function keyOf(store, state) {
    const score = (s, p) => store.score(state.model, s, p, state.dimension);
    const all = store.index.blocks.map((_, s) => s);
    return {
      prompt: (p) => p,
      lowest: (p) => score(state.a, p),
      highest: (p) => -score(state.a, p),
      pair: (p) => -Math.abs(score(state.a, p) - score(state.b, p)),
      all: (p) => {
        const scores = all.map((s) => score(s, p)).filter((x) => !Number.isNaN(x));
        return scores.length > 1 ? -(Math.max(...scores) - Math.min(...scores)) : NaN;
      },
    }[state.sort];
  }

  function filterOf(store, state) {
    const { model, shown } = state;
    const has = (s, p, flag) => store.has(model, s, p, flag);
    const judged = store.index.judge !== null;
    const lacks = (s, p) => !has(s, p, "answered") || (judged && !has(s, p, "valid"));
    const twins = (p) =>
      shown.some((s) => store.twins(model, s, p).some((other) => shown.includes(other)));
    return {
      all: () => true,
      missing: (p) => shown.some((s) => lacks(s, p)),
      cut: (p) => shown.some((s) => has(s, p, "cut")),
      same: twins,
      different: (p) => shown.some((s) => has(s, p, "answered")) && !twins(p),
    }[state.filter];
  }

  /** Whether a prompt has the reader's words; `hits` is what a search of all texts found, or null. */
  function searchOf(store, state, hits) {
    const words = state.words.trim().toLowerCase();
    if (!words) return () => true;
    const bits = [...state.shown, store.index.blocks.length].map((s) => 2 ** s);
    const inTexts = (p) => bits.some((bit) => Math.floor((hits.get(p) || 0) / bit) % 2 === 1);
    const deep = state.texts && hits !== null;
    return (p) => store.searchable[p].includes(words) || (deep && inTexts(p));
  }

  /** The prompts that `state` picks, in its order; `unsorted` of them have no score to sort by. */
  function pick(store, state, hits) {
    const key = keyOf(store, state);
    const filter = filterOf(store, state);
    const found = searchOf(store, state, hits);
    const rows = [];
    for (let p = 0; p < store.prompts; p++) {
      if (found(p) && filter(p)) rows.push([p, key(p)]);
    }
    const last = ([, value]) => (Number.isNaN(value) ? Infinity : value);
    rows.sort((x, y) => {
      const [a, b] = [last(x), last(y)];
      return a === b ? x[0] - y[0] : a < b ? -1 : 1;
    });
    const unsorted = rows.filter(([, value]) => Number.isNaN(value)).length;
    return { prompts: rows.map(([p]) => p), unsorted };
  }

  window.hialignExplorer = Object.assign(window.hialignExplorer || {}, {
    select: { PAGE, initial, read, write, pick },
  });
})();
