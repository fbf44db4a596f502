/* The study's data: an index that is loaded first, and texts that are loaded when they are shown.
   A page opened from a disk may not fetch, so files are scripts that hand over JSON in a string. */
"use strict";
(() => {
  const KEPT = 80; // files of texts in memory, about 200 kB each
  const FLAGS = { answered: 1, cut: 2, promptCut: 4, judged: 8, valid: 16 }; // hialign.book.responses
  const SCALE = 10000; // hialign.book.responses
  const waiting = new Map(); // name of a file -> what takes its content

  /** Called by the files themselves. */
  function receive(name, json, size, total) {
    const take = waiting.get(name);
    waiting.delete(name);
    if (take) take({ content: JSON.parse(json), size, total });
  }

  /** Load `<folder>/<name>.js`; `version` keeps a browser from showing an older build's. */
  function load(folder, name, version = "") {
    return new Promise((resolve, reject) => {
      const script = document.createElement("script");
      const fail = () => {
        waiting.delete(name);
        script.remove();
        reject(new Error(`${folder}/${name}.js could not be loaded`));
      };
      waiting.set(name, (file) => {
        script.remove();
        resolve(file);
      });
      script.onerror = fail;
      script.onload = () => waiting.has(name) && fail();
      script.src = `${folder}/${name}.js${version ? `?v=${version}` : ""}`;
      document.head.append(script);
    });
  }

  /** 16-bit numbers, low byte first, from base64. */
  function numbers(base64) {
    const bytes = atob(base64);
    const found = new Uint16Array(bytes.length / 2);
    for (let i = 0; i < found.length; i++) {
      found[i] = bytes.charCodeAt(2 * i) | (bytes.charCodeAt(2 * i + 1) << 8);
    }
    return found;
  }

  class Store {
    constructor(folder, { content, size, total }) {
      Object.assign(this, { folder, index: content, size, total });
      this.files = content.chunks.reduce((sum, files) => sum + files.length, 1);
      this.prompts = content.ids.length;
      this.scale = SCALE;
      this.base = content.blocks.indexOf("base");
      this.searchable = content.beginnings.map((text, i) =>
        `${text}\n${content.ids[i]}`.toLowerCase()
      );
      this.shortened = content.ids.some((_, i) => this.isCut(i));
      this.decoded = content.models.map(() => []); // by model and strategy, when first asked for
      this.texts = new Map(); // name of a file -> promise of its rows, oldest first
    }

    static async open(folder) {
      return new Store(folder, await load(folder, "index"));
    }

    cell(model, strategy) {
      return this.index.cells[model][strategy];
    }

    /** Whether the index holds only the beginning of a prompt. */
    isCut(prompt) {
      const { beginnings, lengths } = this.index;
      return lengths[prompt] > Array.from(beginnings[prompt]).length;
    }

    beginning(prompt) {
      return this.index.beginnings[prompt] + (this.isCut(prompt) ? " …" : "");
    }

    has(model, strategy, prompt, flag) {
      const cell = this.cell(model, strategy);
      return cell !== null && (cell.flags[prompt] & FLAGS[flag]) !== 0;
    }

    /** A cell's scores times SCALE: prompt by prompt, in each the dimensions; 0 for none. */
    scores(model, strategy) {
      const known = this.decoded[model];
      if (known[strategy] === undefined) {
        const cell = this.cell(model, strategy);
        known[strategy] = numbers(cell ? cell.scores : "");
      }
      return known[strategy];
    }

    /** A score of 1 to 5, NaN where there is none. */
    score(model, strategy, prompt, dimension) {
      const place = prompt * this.index.dimensions.length + dimension;
      const value = this.scores(model, strategy)[place];
      return value ? value / SCALE : NaN;
    }

    /** Whether the model's scores are all whole numbers, so that decimals would be noise. */
    whole(model) {
      return this.index.blocks.every((_, s) =>
        this.scores(model, s).every((value) => value % SCALE === 0)
      );
    }

    /** Strategies that gave the same response as `strategy` did. */
    twins(model, strategy, prompt) {
      const group = (s) => this.cell(model, s)?.same[prompt] ?? 0;
      return this.index.blocks
        .map((_, s) => s)
        .filter((s) => s !== strategy && group(s) > 0 && group(s) === group(strategy));
    }

    /** A prompt's texts: {prompt, answers: by strategy null or {response, said}}. */
    async read(model, prompt) {
      const files = this.index.chunks[model];
      const number = files.findIndex(([first, count]) => prompt < first + count);
      if (number < 0) return { prompt: this.beginning(prompt), answers: [] }; // none answered
      const rows = await this.file(model, number);
      const [text, answers] = rows[prompt - files[number][0]];
      const answer = (a) => a && { response: a[0], said: a[1] };
      return { prompt: text, answers: answers.map(answer) };
    }

    /** The rows of one file of texts, from memory or anew. */
    file(model, number) {
      const name = `texts-${model}-${number}`;
      const [, , , version] = this.index.chunks[model][number];
      let rows = this.texts.get(name);
      if (rows) this.texts.delete(name); // and put last again
      else {
        rows = load(this.folder, name, version).then((file) => file.content);
        rows.catch(() => this.texts.delete(name)); // the next reader tries again
      }
      this.texts.set(name, rows);
      if (this.texts.size > KEPT) this.texts.delete(this.texts.keys().next().value);
      return rows;
    }

    /** Search the model's prompts and responses for `words`, a file at a time.
     *
     * `progress(files, of, bytes, found)` is called after each and ends the search by returning
     * false. Returns, by prompt, the strategies (as bits) whose response has the words; the bit
     * after the last is the prompt's own. */
    async search(model, words, progress) {
      const wanted = words.toLowerCase();
      const files = this.index.chunks[model];
      const hits = new Map();
      let bytes = 0;
      for (let number = 0; number < files.length; number++) {
        const rows = await this.file(model, number);
        rows.forEach(([prompt, answers], i) => {
          let bits = prompt.toLowerCase().includes(wanted) ? 2 ** answers.length : 0;
          answers.forEach((a, s) => {
            if (a && a[0].toLowerCase().includes(wanted)) bits += 2 ** s;
          });
          if (bits) hits.set(files[number][0] + i, bits);
        });
        bytes += files[number][2];
        if (progress(number + 1, files.length, bytes, hits.size) === false) break;
      }
      return hits;
    }
  }

  window.hialignExplorer = Object.assign(window.hialignExplorer || {}, { receive, Store });
})();
