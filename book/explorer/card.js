/* One prompt of the list: its text, and the responses of the chosen strategies side by side. */
"use strict";
(() => {
  const { box, line, make, nodes, number, visible } = window.hialignExplorer.text;
  const listed = (names) => names.map((name) => line(name, 40)).join(", ");

  /** A score as it is shown; scores that are all whole numbers have no decimals. */
  function points(value, whole) {
    return Number.isNaN(value) ? "–" : value.toFixed(whole ? 0 : 2);
  }

  /** Why there is no score, or the score. */
  function verdict(store, { model, dimension }, strategy, prompt, whole) {
    if (store.index.judge === null) return null;
    if (!store.has(model, strategy, prompt, "judged")) return "not judged yet";
    if (!store.has(model, strategy, prompt, "valid")) return "no valid judgment";
    const score = points(store.score(model, strategy, prompt, dimension), whole);
    return `${visible(store.index.dimensions[dimension])}: ${score}`;
  }

  /** All scores of a response, with the judge's reasons where it gave any. */
  function scores(store, { model }, strategy, prompt, said, whole) {
    if (!store.has(model, strategy, prompt, "judged")) return null;
    const details = make("details", { class: "hx-scores" });
    if (!store.has(model, strategy, prompt, "valid")) {
      const error = typeof said === "string" && said ? said : "no reason was recorded";
      details.append(
        make("summary", {}, "Why there is no valid judgment"),
        box(error, "The judge's error")
      );
      return details;
    }
    const reasons = Array.isArray(said) && said.length ? said : null;
    const { dimensions } = store.index;
    const count = dimensions.length === 16 ? "sixteen" : number(dimensions.length);
    details.append(make("summary", {}, `All ${count} scores${reasons ? " and reasons" : ""}`));
    const fill = () => {
      if (!details.open || details.querySelector("dl")) return;
      const rows = dimensions.flatMap((name, d) => {
        const score = points(store.score(model, strategy, prompt, d), whole);
        const reason = reasons && reasons[d] ? box(reasons[d], `Reason for ${visible(name)}`) : null;
        return [make("dt", {}, nodes(name)), make("dd", {}, make("b", {}, score), reason)];
      });
      details.append(make("dl", {}, ...rows));
      if (!reasons) details.append(make("p", {}, "This judge gives scores without reasons."));
    };
    details.addEventListener("toggle", fill);
    return details;
  }

  /** One response: strategy, length, score, marks, text. `answer` is null until it is loaded. */
  function response(store, state, strategy, prompt, answer, whole) {
    const { model } = state;
    const name = line(store.index.strategies[strategy], 40);
    const part = make("section", { class: "hx-response", "aria-label": name });
    part.append(make("h4", {}, name));
    if (!store.has(model, strategy, prompt, "answered")) {
      part.classList.add("hx-missing");
      part.append(make("p", {}, "missing: no response in the records"));
      return part;
    }
    const tokens = store.cell(model, strategy).tokens[prompt];
    const length =
      tokens === null ? "length unknown" : `${number(tokens)} token${tokens === 1 ? "" : "s"}`;
    const facts = make("p", { class: "hx-facts" }, make("span", {}, length));
    const add = (text, kind) => facts.append(make("span", { class: `hx-badge ${kind}` }, text));
    if (store.has(model, strategy, prompt, "cut")) add("cut at the limit", "hx-cut");
    if (store.has(model, strategy, prompt, "promptCut")) add("saw only a part of the prompt", "hx-cut");
    const twins = store.twins(model, strategy, prompt);
    if (twins.length) {
      part.classList.add("hx-same");
      add(`identical to ${listed(twins.map((s) => store.index.strategies[s]))}`, "hx-twin");
    }
    const score = verdict(store, state, strategy, prompt, whole);
    const valid = store.has(model, strategy, prompt, "valid");
    part.append(facts);
    if (score) part.append(make("p", { class: valid ? "hx-score" : "hx-score hx-invalid" }, score));
    if (answer === null) part.append(make("p", { class: "hx-wait" }, "loading …"));
    else {
      const text = answer.response;
      const empty = make("p", { class: "hx-empty" }, "(an empty response)");
      part.append(text ? box(text, `Response of ${name}`) : empty);
      part.append(scores(store, state, strategy, prompt, answer.said, whole) || "");
    }
    return part;
  }

  /** How far apart strategies are, if the list is sorted by it. */
  function distance(store, state, prompt, whole) {
    const score = (s) => store.score(state.model, s, prompt, state.dimension);
    const all = store.index.blocks.map((_, s) => s);
    const chosen = state.sort === "pair" ? [state.a, state.b] : state.sort === "all" ? all : [];
    const found = chosen.map(score).filter((value) => !Number.isNaN(value));
    if (found.length < 2) return null;
    const words = `${points(Math.max(...found) - Math.min(...found), whole)} apart in `;
    return make("span", { class: "hx-apart" }, words + line(store.index.dimensions[state.dimension]));
  }

  /** The texts of a card, once they are loaded; until then (`texts` is null) what the index has. */
  function inside(store, state, prompt, texts, whole) {
    const columns = state.shown.map((s) =>
      response(store, state, s, prompt, texts ? texts.answers[s] || null : null, whole)
    );
    return [
      box(texts ? texts.prompt : store.beginning(prompt), `Prompt ${prompt + 1}`),
      make("div", { class: "hx-responses" }, ...columns),
    ];
  }

  /** A prompt with its responses. Texts that may upset stay closed, and unloaded, until opened. */
  function card(store, state, prompt, whole) {
    const { index } = store;
    const title = make(
      "h3",
      {},
      `Prompt ${number(prompt + 1)} `,
      make("code", {}, line(index.ids[prompt], 40)),
      distance(store, state, prompt, whole)
    );
    const body = make("div", { class: "hx-body" });
    const load = async () => {
      body.replaceChildren(...inside(store, state, prompt, null, whole));
      try {
        const texts = await store.read(state.model, prompt);
        body.replaceChildren(...inside(store, state, prompt, texts, whole));
        body.querySelectorAll(".hx-text").forEach((text) => scrolling.observe(text));
      } catch (error) {
        const words = `These texts are not to be had: ${error.message}. Build the book again.`;
        body.append(make("p", { class: "hx-problem", role: "alert" }, words));
        body.querySelectorAll(".hx-wait").forEach((wait) => wait.remove());
      }
    };
    if (index.harmless) {
      load();
      return make("article", { class: "hx-card" }, title, body);
    }
    const marks = state.shown.map((s) => {
      const score = verdict(store, state, s, prompt, whole);
      const has = store.has(state.model, s, prompt, "answered");
      return `${line(index.strategies[s], 40)}: ${has ? score || "answered" : "missing"}`;
    });
    const summary = make("summary", {}, title, make("span", {}, marks.join(" · ")));
    const details = make("details", { class: "hx-card" }, summary, body);
    details.addEventListener("toggle", () => details.open && !body.childNodes.length && load());
    return details;
  }

  /** Boxes that scroll can be reached by keyboard; the others are no stop on the way. */
  const scrolling = new ResizeObserver((entries) => {
    for (const { target } of entries) {
      if (target.scrollHeight > target.clientHeight + 1) target.tabIndex = 0;
      else target.removeAttribute("tabindex");
    }
  });

  Object.assign(window.hialignExplorer, { card });
})();
