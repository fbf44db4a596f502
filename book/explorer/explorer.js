/* The Explore page: its controls, its list, and what joins them. */
"use strict";
(() => {
  const { Store, card, heatmap, select, text } = window.hialignExplorer;
  const { line, make, megabytes, number, visible } = text;
  const PATIENCE = 200; // milliseconds after the last key before a search begins

  const SORTS = {
    prompt: "order of the prompts",
    lowest: "score, lowest first",
    highest: "score, highest first",
    pair: "disagreement of two strategies",
    all: "disagreement over all strategies",
  };
  const FILTERS = {
    all: "all prompts",
    missing: "those with a response or judgment missing",
    cut: "those with a response cut at the limit",
    same: "those with identical responses",
    different: "those without identical responses",
  };

  class Page {
    constructor(root, store) {
      Object.assign(this, { root, store, hits: null, run: 0, whole: [] });
      this.state = select.read(store, location.hash);
      this.controls = {};
    }

    start() {
      this.root.replaceChildren(...this.parts());
      this.drawMap();
      this.follow();
      // A link to a heading has no "=", and says nothing of the state
      window.addEventListener("hashchange", () => {
        const hash = location.hash.replace(/^#/, "");
        if (hash === select.write(this.store, this.state) || (hash && !hash.includes("="))) return;
        const { model } = this.state;
        this.state = select.read(this.store, hash);
        if (model !== this.state.model) this.drawMap();
        this.follow();
      });
    }

    /** After the state came from an address: controls as it says, search, list. */
    follow() {
      this.hits = null;
      this.run += 1;
      this.progress.hidden = true;
      clearTimeout(this.typing);
      this.controls.words.value = this.state.words;
      this.show();
      if (this.state.texts && this.state.words.trim()) this.searchTexts();
    }

    /** Change the state, and with it the address, the controls and the list. */
    change(changes) {
      const before = this.state;
      clearTimeout(this.typing); // what was typed counts, also if its search has not begun
      this.state = { ...before, page: 0, words: this.controls.words.value, ...changes };
      const anew = ["model", "words", "texts"].some((name) => before[name] !== this.state[name]);
      if (before.model !== this.state.model) this.drawMap();
      if (anew) {
        this.hits = null;
        this.run += 1; // ends a search that is under way
        this.progress.hidden = true;
      }
      const hash = select.write(this.store, this.state);
      try {
        history.replaceState(null, "", hash ? `#${hash}` : location.pathname + location.search);
      } catch {
        location.hash = hash;
      }
      this.show();
      if (anew && this.state.texts && this.state.words.trim()) this.searchTexts();
    }

    // --- the parts of the page -------------------------------------------------------------------

    parts() {
      const { store } = this;
      this.map = make("div", { class: "hx-scroll" });
      this.count = make("p", { class: "hx-count", role: "status", "aria-live": "polite" });
      this.progress = make("p", { class: "hx-progress", hidden: true });
      this.list = make("div", { class: "hx-list" });
      this.heading = make("h2", { tabindex: -1 }, "Responses");
      this.pagers = [this.pager("Pages, above the list"), this.pager("Pages, below the list")];
      this.sizes = make("p", { class: "hx-sizes" });
      const judge = store.index.judge;
      return [
        this.sizes,
        judge === null ? make("p", {}, "This study names no judge: there are no scores.") : null,
        judge === null ? null : make("h2", {}, "Mean scores"),
        judge === null
          ? null
          : make(
              "p",
              { class: "hx-hint" },
              `By the judge ${line(judge)}. Press a square to sort the responses by how far that ` +
                "strategy and Base are apart in that dimension; arrow keys go from square to square."
            ),
        this.map,
        this.heading,
        this.form(judge !== null),
        this.progress,
        this.count,
        this.pagers[0],
        this.list,
        this.pagers[1],
      ].filter(Boolean);
    }

    /** A labelled list of choices that changes the state's `name`. */
    choice(name, label, options, disabled = []) {
      const input = make("select", {});
      for (const [value, words] of options) {
        const off = disabled.includes(value);
        input.append(make("option", { value, disabled: off }, line(words, 60)));
      }
      const numeric = typeof this.state[name] === "number";
      input.addEventListener("change", () =>
        this.change({ [name]: numeric ? Number(input.value) : input.value })
      );
      this.controls[name] = input;
      return make("label", { class: `hx-field hx-field-${name}` }, make("span", {}, label), input);
    }

    form(judged) {
      const { index } = this.store;
      const numbered = (list) => list.map((words, i) => [i, words]);
      const words = make("input", { type: "search", maxlength: 200, autocomplete: "off" });
      words.addEventListener("input", () => {
        clearTimeout(this.typing);
        this.typing = setTimeout(() => this.change({}), PATIENCE);
      });
      const texts = make("input", { type: "checkbox" });
      texts.addEventListener("change", () => this.change({ texts: texts.checked }));
      const shown = index.strategies.map((name, s) => {
        const input = make("input", { type: "checkbox" });
        input.addEventListener("change", () => {
          const chosen = shown.map((box, i) => (box.checked ? i : -1)).filter((i) => i >= 0);
          const { page, shown: before } = this.state;
          this.change({ shown: chosen.length ? chosen : before, page }); // one at least
        });
        return input;
      });
      Object.assign(this.controls, { words, texts, shown });
      const checks = index.strategies.map((name, s) =>
        make("label", {}, shown[s], ` ${visible(name)}`)
      );
      const where = this.store.shortened ? "Search the beginnings of prompts" : "Search the prompts";
      const unscored = judged ? [] : ["lowest", "highest", "pair", "all"];
      const form = make(
        "form",
        { class: "hx-form", role: "search", "aria-label": "Choose and sort responses" },
        make("label", { class: "hx-field hx-wide" }, make("span", {}, where), words),
        make("label", { class: "hx-check hx-wide" }, texts, " also in whole prompts and responses"),
        this.choice("model", "Model", numbered(index.models)),
        judged ? this.choice("dimension", "Dimension", numbered(index.dimensions)) : null,
        this.choice("filter", "Prompts", Object.entries(FILTERS)),
        this.choice("sort", "Sorted by", Object.entries(SORTS), unscored),
        this.choice("a", "of", numbered(index.strategies)),
        this.choice("b", "and", numbered(index.strategies)),
        make(
          "fieldset",
          { class: "hx-wide" },
          make("legend", {}, "Strategies shown"),
          ...checks
        )
      );
      form.addEventListener("submit", (event) => event.preventDefault());
      return form;
    }

    pager(label) {
      const button = (words, step) => {
        const found = make("button", { type: "button" }, words);
        found.addEventListener("click", () => {
          this.change({ page: this.state.page + step });
          this.heading.focus({ preventScroll: true });
          this.count.scrollIntoView({ block: "start" });
        });
        return found;
      };
      const [back, next] = [button("Previous", -1), button("Next", 1)];
      const words = make("span", {});
      const nav = make("nav", { class: "hx-pager", "aria-label": label }, back, words, next);
      nav.update = (page, pages) => {
        nav.hidden = pages < 2;
        words.textContent = `page ${number(page + 1)} of ${number(pages)}`;
        back.disabled = page === 0;
        next.disabled = page >= pages - 1;
      };
      return nav;
    }

    // --- drawing -----------------------------------------------------------------------------------

    drawMap() {
      const { store } = this;
      if (store.index.judge === null) return;
      const { model } = this.state;
      this.whole[model] = store.whole(model);
      const table = heatmap.draw(store, model, (dimension, strategy) => {
        const pair = store.base >= 0 && strategy !== store.base;
        const sort = pair ? "pair" : "all";
        this.change({ dimension, sort, ...(pair ? { a: strategy, b: store.base } : {}) });
      });
      this.map.replaceChildren(table);
    }

    show() {
      const { state, store, controls } = this;
      for (const name of ["model", "dimension", "filter", "sort", "a", "b"]) {
        if (controls[name]) controls[name].value = String(state[name]);
      }
      controls.texts.checked = state.texts;
      controls.shown.forEach((box, s) => (box.checked = state.shown.includes(s)));
      controls.a.parentElement.hidden = !["lowest", "highest", "pair"].includes(state.sort);
      controls.b.parentElement.hidden = state.sort !== "pair";
      const pair = state.sort === "pair" && [state.a, state.b].includes(store.base);
      const other = state.a === store.base ? state.b : state.a;
      if (this.map.firstChild) {
        heatmap.press(this.map.firstChild, state.dimension, pair ? other : -1);
      }
      const { prompts, unsorted } = select.pick(store, state, this.hits);
      const pages = Math.max(1, Math.ceil(prompts.length / select.PAGE));
      state.page = Math.min(state.page, pages - 1);
      const first = state.page * select.PAGE;
      const here = prompts.slice(first, first + select.PAGE);
      const whole = this.whole[state.model];
      this.list.replaceChildren(...here.map((p) => card(store, state, p, whole)));
      this.pagers.forEach((pager) => pager.update(state.page, pages));
      this.count.textContent = this.words(prompts.length, unsorted, pages);
      this.tellSizes();
    }

    /** What the list holds, for those who see it and those who hear it. */
    words(found, unsorted, pages) {
      const { state, store } = this;
      const sorted = ["lowest", "highest", "pair", "all"].includes(state.sort);
      const name = (s) => visible(store.index.strategies[s]);
      const of = {
        lowest: ` of ${name(state.a)}`,
        highest: ` of ${name(state.a)}`,
        pair: ` (${name(state.a)} and ${name(state.b)})`,
        all: "",
        prompt: "",
      }[state.sort];
      const by = sorted ? `${SORTS[state.sort]}${of} in ${this.dimension()}` : SORTS.prompt;
      const parts = [`${number(found)} of ${number(store.prompts)} prompts`, `by ${by}`];
      if (sorted && unsorted) {
        const one = unsorted === 1;
        parts.push(`${number(unsorted)} without the score${one ? "" : "s"} to sort by come last`);
      }
      if (pages > 1) parts.push(`page ${number(state.page + 1)} of ${number(pages)}`);
      return `${parts.join("; ")}.`;
    }

    dimension() {
      return line(this.store.index.dimensions[this.state.dimension]);
    }

    tellSizes() {
      const { store } = this;
      this.sizes.textContent =
        `The texts and scores of this study: ${megabytes(store.total)} MB in ` +
        `${number(store.files)} file${store.files === 1 ? "" : "s"}, of which ` +
        `${megabytes(store.size)} MB are loaded at the start and the rest when it is shown.`;
    }

    // --- searching all texts -------------------------------------------------------------------------

    async searchTexts() {
      const { state, store } = this;
      const run = this.run;
      const bar = make("progress", { max: 1, value: 0, "aria-label": "Search in all texts" });
      const words = make("span", {}, "Searching all texts …");
      const stop = make("button", { type: "button" }, "Stop");
      let stopped = false;
      stop.addEventListener("click", () => (stopped = true));
      this.progress.replaceChildren(bar, words, stop);
      this.progress.hidden = false;
      const total = store.index.chunks[state.model].reduce((sum, file) => sum + file[2], 0);
      try {
        const hits = await store.search(state.model, state.words.trim(), (n, of, bytes, found) => {
          bar.value = n / of;
          words.textContent =
            `Searched ${megabytes(bytes)} of ${megabytes(total)} MB: ` +
            `${number(found)} prompt${found === 1 ? "" : "s"} so far`;
          return !stopped && run === this.run;
        });
        if (run !== this.run) return;
        this.hits = hits;
        const end = stopped ? `${words.textContent}; stopped.` : "All texts were searched.";
        this.progress.replaceChildren(make("span", {}, end));
        this.show();
      } catch (error) {
        if (run !== this.run) return;
        const problem = `The search ended early: ${error.message}. Build the book again.`;
        this.progress.replaceChildren(make("span", { class: "hx-problem" }, problem));
      }
    }
  }

  /** Nothing is shown of texts that may upset before the reader has agreed, once in a browser tab. */
  function agreed(root, store) {
    const key = `hialign-explore ${store.index.study}`;
    const kept = () => {
      try {
        return sessionStorage.getItem(key) === "yes";
      } catch {
        return false; // no storage: ask each time
      }
    };
    return new Promise((resolve) => {
      if (store.index.harmless || kept()) return resolve();
      const button = make("button", { type: "button" }, "Show the responses");
      const words =
        `The prompts of this study are from ${line(store.index.source)}, and neither they nor the ` +
        "responses were checked. They may be offensive, upsetting, or ask for something harmful " +
        "and get it. Each prompt stays closed until you open it.";
      button.addEventListener("click", () => {
        try {
          sessionStorage.setItem(key, "yes");
        } catch {
          // asked again on the next visit
        }
        resolve();
      });
      const label = "Warning about the content";
      root.replaceChildren(
        make("section", { class: "hx-warning", "aria-label": label }, make("p", {}, words), button)
      );
    });
  }

  async function main() {
    const root = document.getElementById("hialign-explorer");
    let store;
    try {
      store = await Store.open(root.dataset.folder);
    } catch (error) {
      const words = `The responses are not here (${error.message}): \`hialign book STUDY\` writes them.`;
      root.replaceChildren(make("p", { class: "hx-problem", role: "alert" }, words));
      return;
    }
    if (!store.prompts) {
      const words = `The study ${line(store.index.title)} has no responses yet.`;
      root.replaceChildren(make("p", { class: "hx-problem" }, words));
      return;
    }
    await agreed(root, store);
    new Page(root, store).start();
  }

  main();
})();
