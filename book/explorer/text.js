/* Text from records as nodes of the page. It is untrusted: it only ever becomes text nodes, and
   characters that cannot be seen or that turn their surroundings around are shown as marks. */
"use strict";
(() => {
  const LONGEST = 4000; // characters shown before "show all"
  const MOST_MARKS = 300; // elements for marks in one text; more become plain text
  // Control characters but line feed and tab, bidi marks, what has no width, halves of characters,
  // tags. The joiners U+200C and U+200D stay: scripts and emoji are written with them.
  const HIDDEN = new RegExp(
    "[\\u0000-\\u0008\\u000b-\\u001f\\u007f-\\u009f\\u00ad\\u034f\\u061c\\u115f\\u1160\\u17b4\\u17b5" +
      "\\u180e\\u200b\\u200e\\u200f\\u2028-\\u202e\\u2060-\\u206f\\u2800\\u3164\\ufeff\\uffa0" +
      "\\ufff9-\\ufffb\\ud800-\\udfff\\u{e0000}-\\u{e0fff}]+",
    "gu"
  );

  // Of ASCII, from NUL on. Unicode has pictures of them (␛), which many fonts lack.
  const NAMES = (
    "NUL SOH STX ETX EOT ENQ ACK BEL BS TAB LF VT FF CR SO SI DLE DC1 DC2 DC3 DC4 NAK SYN ETB CAN " +
    "EM SUB ESC FS GS RS US"
  ).split(" ");

  /** The mark of one hidden character: ‹ESC›, or ‹U+202E›. */
  function mark(character) {
    const code = character.codePointAt(0);
    if (code < NAMES.length) return `‹${NAMES[code]}›`;
    if (code === 0x7f) return "‹DEL›";
    return "‹U+" + code.toString(16).toUpperCase().padStart(4, "0") + "›";
  }

  const marks = (run) => Array.from(run, mark).join("");
  const lines = (text) => text.replace(/\r\n/g, "\n");

  /** `text` as plain text with visible marks, for places that hold no elements. */
  const visible = (text) => lines(String(text)).replace(HIDDEN, marks);

  /** `text` on one line, cut to `width` characters. */
  function line(text, width = 80) {
    const whole = visible(String(text).slice(0, 4 * width)).replace(/\s+/g, " ").trim();
    const cut = Array.from(whole);
    return cut.length > width ? cut.slice(0, width - 1).join("") + "…" : whole;
  }

  /** An element: `make("button", {type: "button"}, "text", node)`. Strings become text nodes. */
  function make(tag, attributes = {}, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (value === true) element.setAttribute(name, "");
      else if (value !== false && value !== null) element.setAttribute(name, String(value));
    }
    element.append(...children.filter((child) => child !== null && child !== undefined));
    return element;
  }

  /** `text` from records as nodes, its hidden characters as marks that stand out. */
  function nodes(text) {
    const whole = lines(text);
    const found = document.createDocumentFragment();
    let end = 0;
    let count = 0;
    for (const match of whole.matchAll(HIDDEN)) {
      if (++count > MOST_MARKS) break;
      found.append(whole.slice(end, match.index));
      const title = "not printable: shown as a mark";
      found.append(make("span", { class: "hx-mark", title }, marks(match[0])));
      end = match.index + match[0].length;
    }
    found.append(whole.slice(end).replace(HIDDEN, marks));
    return found;
  }

  /** A box with `text`, named `what` to those who do not see it; long texts open on demand. */
  function box(text, what) {
    const inside = make("div", { class: "hx-text", dir: "auto", role: "group", "aria-label": what });
    if (text.length <= LONGEST) {
      inside.append(nodes(text));
      return inside;
    }
    let cut = LONGEST;
    if (/[\ud800-\udbff]/.test(text[cut - 1])) cut -= 1; // never half a character
    inside.append(nodes(text.slice(0, cut)), make("span", { "aria-hidden": true }, " …"));
    const words = `show all ${number(text.length)} characters`;
    const button = make("button", { type: "button", class: "hx-more" }, words);
    button.addEventListener("click", () => {
      inside.replaceChildren(nodes(text));
      button.remove();
      inside.tabIndex = 0;
      inside.focus();
    });
    return make("div", {}, inside, button);
  }

  const number = (value) => value.toLocaleString("en");
  const megabytes = (bytes) => (bytes < 1e4 ? "0.01" : (bytes / 1e6).toFixed(bytes < 1e6 ? 2 : 1));

  window.hialignExplorer = Object.assign(window.hialignExplorer || {}, {
    text: { visible, line, make, nodes, box, number, megabytes },
  });
})();
