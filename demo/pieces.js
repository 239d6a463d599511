// The smaller pieces of the pages beside Gradio's own: rows of small pictures, names, and downloads. No library, nothing
// from elsewhere; stage.js comes before.
(() => {
  "use strict";
  if (window.owlStrip) return; // every piece brings this script
  const { make, clamp, colour, redrawn } = window.owlShared;
  const WAIT_MS = 60_000; // for a download that is made on the server; what comes later nobody waits for any more
  const OPAQUE = 0.3; // what is within an outline
  const REST_MS = 1000; // before an address that was refused is tried again

  // Small pictures in a row or a grid. Tells: "picked" {index, key}, "removed" {index, of}, of how many.
  window.owlStrip = (element, props, trigger, watch) => {
    const root = element.querySelector(".owl-strip");
    // At once, as the answer may take a moment.
    const mark = (index) => root.querySelectorAll(".owl-item > button:first-child").forEach((button, i) => {
      if (i === index) button.setAttribute("aria-pressed", "true");
      else button.removeAttribute("aria-pressed");
    });
    let chosen = -1;
    let drawn = ""; // the small pictures that are there
    const draw = () => {
      const value = JSON.parse(JSON.stringify(props.value || {}));
      const items = value.items || [];
      const now = JSON.stringify([items, value.empty]);
      chosen = value.chosen;
      if (drawn === now) return mark(chosen);
      drawn = now;
      root.classList.toggle("owl-grid", props.grid);
      root.replaceChildren();
      if (!items.length) {
        if (value.empty) root.append(make("p", "owl-hint", value.empty));
        return;
      }
      items.forEach((item, index) => {
        const holder = make("div", `owl-item ${item.kind ? `owl-${item.kind}` : ""}`);
        const button = make("button");
        button.type = "button";
        button.title = item.title || "";
        const picture = make("img");
        if (item.src) picture.src = item.src;
        picture.alt = item.caption ? "" : item.title || ""; // what the caption says is not read out twice
        button.append(picture);
        if (item.caption) button.append(make("span", "", item.caption));
        if (item.badge) button.append(make("em", "", item.badge));
        button.addEventListener("click", () => {
          if (chosen >= 0) mark(index);
          trigger("picked", { index, key: item.key ?? null });
        });
        holder.append(button);
        if (item.removable) {
          const remove = make("button", "owl-remove", "×");
          remove.type = "button";
          remove.setAttribute("aria-label", `Take away: ${item.title || item.caption}`);
          remove.addEventListener("click", () => trigger("removed", { index, of: items.length }));
          holder.append(remove);
        }
        root.append(holder);
      });
      mark(chosen);
    };
    watch(["value"], () => redrawn(root, draw));
    draw();
  };

  // Names, each with its colour and how it fares. The address keeps them, with the tab. Tells: "tuned", "removed",
  // "linked". The value is made by chips in terms.py.
  window.owlChips = (element, props, trigger, watch) => {
    const root = element.querySelector(".owl-chips");
    const tabs = () => [...document.querySelectorAll("#owl-tabs button[role=tab]")];
    const common = () => document.querySelector("#name-threshold input[type=number]");
    const outlines = () => document.querySelector("#name-outlines input[type=checkbox]"); // none where a model has no masks
    const keep = () => {
      const items = JSON.parse(JSON.stringify((props.value && props.value.items) || []));
      const address = new URLSearchParams();
      const model = props.value && props.value.model; // "" is the first
      if (model) address.set("model", model);
      const tab = tabs().find((one) => one.getAttribute("aria-selected") === "true");
      if (tab && tab !== tabs()[0]) address.set("tab", tab.textContent.trim());
      items.forEach((one) => {
        address.append("name", one.name);
        address.append("at", one.threshold === null ? "" : one.threshold);
      });
      if (items.length && common()) address.set("threshold", common().value);
      if (items.length && outlines()?.checked) address.set("outlines", "1");
      const text = address.toString();
      const to = text ? `#${text}` : location.pathname + location.search;
      if (to === kept) return;
      try {
        history.replaceState(null, "", to);
        kept = to;
      } catch { // a browser that takes only so many at a time
        setTimeout(keep, REST_MS);
      }
    };
    let kept = null;
    // One name: its node, which stays as long as the name does, since somebody may write in it; ``set`` fills it.
    const made = new Map();
    const chipOf = (called) => {
      const node = make("div");
      let item = {};
      const name = make("button", "owl-chip-name");
      name.type = "button";
      const dot = make("i", "owl-dot");
      const examples = make("small");
      name.append(dot, make("strong", "", called), examples);
      name.addEventListener("click", () => trigger("tuned", { name: called, hidden: !item.hidden, threshold: null }));
      const limit = make("input", "owl-limit");
      Object.assign(limit, { type: "number", min: 0, max: 1, step: 0.01, placeholder: "as all" });
      limit.title = `Threshold of “${called}” alone`;
      limit.setAttribute("aria-label", limit.title);
      limit.addEventListener("change", () => {
        if (limit.value !== "") limit.value = clamp(Number(limit.value), 0, 1);
        trigger("tuned", { name: called, hidden: null, threshold: limit.value === "" ? null : Number(limit.value) });
      });
      const remove = make("button", "owl-chip-remove", "×");
      remove.type = "button";
      remove.setAttribute("aria-label", `Remove ${called}`);
      remove.addEventListener("click", () => trigger("removed", { name: called }));
      const text = make("span", "owl-chip-text");
      node.append(name, limit, remove, text);
      const set = (now, index) => {
        item = now;
        node.className = `owl-chip ${item.hidden ? "owl-hidden" : ""}`;
        name.title = item.hidden ? "Hidden; click to show it" : "Click to hide it";
        name.setAttribute("aria-pressed", String(!item.hidden));
        dot.style.background = colour(index);
        examples.textContent = item.with || "";
        if (document.activeElement !== limit) limit.value = item.threshold ?? "";
        text.replaceChildren(item.text || "");
        if (!item.suggested) return;
        const action = make("button", "owl-chip-action", `show from ${item.suggested.toFixed(2)}`);
        action.type = "button";
        action.addEventListener("click", () => trigger("tuned", { name: called, hidden: null, threshold: item.suggested }));
        text.append(" ", action);
      };
      return { node, set };
    };
    const draw = () => {
      const items = JSON.parse(JSON.stringify((props.value && props.value.items) || []));
      const names = new Set(items.map((one) => one.name));
      redrawn(root, () => {
        made.forEach(({ node }, called) => { if (!names.has(called)) { node.remove(); made.delete(called); } });
        items.forEach((item, index) => {
          if (!made.has(item.name)) made.set(item.name, chipOf(item.name));
          const { node, set } = made.get(item.name);
          set(item, index);
          if (root.children[index] !== node) root.insertBefore(node, root.children[index] || null);
        });
      });
      if (outlined && items.length) {
        // The names that the link asks for are there: now the photos are asked for outlines too.
        outlined = false;
        if (outlines() && !outlines().checked) outlines().click();
      }
      if (opened) keep();
    };
    // What the page was opened with, when its tabs are there.
    let opened = false;
    let outlined = false;
    const KEYS = ["name", "at", "threshold", "model", "tab", "outlines"];
    const follow = (again) => {
      const address = new URLSearchParams(location.hash.slice(1));
      if (again && !KEYS.some((key) => address.has(key))) return; // no link to these pages
      const names = address.getAll("name").slice(0, 100);
      const number = (text) => (text === "" || text === null ? null : Number(text));
      // What a link says nothing of is as it is at the start.
      (tabs().find((one) => one.textContent.trim() === address.get("tab")) ?? (again ? tabs()[0] : null))?.click();
      outlined = names.length > 0 && address.get("outlines") === "1";
      if (again && !outlined && outlines()?.checked) outlines().click();
      const model = address.get("model") || "";
      if (names.length || model || again) {
        trigger("linked", { again, model, names, thresholds: address.getAll("at").map(number), threshold: number(address.get("threshold")) });
      }
    };
    const open = () => {
      if (!tabs().length || !common()) return void setTimeout(open, 50);
      follow(false);
      opened = true;
      // Another link in the same window; what the page itself writes into the address is no such event.
      addEventListener("hashchange", () => { kept = null; follow(true); });
      document.getElementById("owl-tabs").addEventListener("click", () => setTimeout(keep, 100));
      document.getElementById("name-threshold").addEventListener("change", () => setTimeout(keep, 100));
      document.getElementById("name-outlines")?.addEventListener("change", () => setTimeout(keep, 100));
    };
    watch(["value"], draw);
    draw();
    open();
  };

  // What a stage shows as a picture of its own: the photo with boxes and names, in the size that the page has.
  const drawn = (id) => {
    const frame = document.querySelector(`#${id} .owl-frame`);
    const photo = frame.querySelector("img");
    const canvas = make("canvas");
    [canvas.width, canvas.height] = [photo.naturalWidth, photo.naturalHeight];
    const context = canvas.getContext("2d");
    context.drawImage(photo, 0, 0);
    const svg = frame.querySelector("svg").viewBox.baseVal;
    const [across, down] = [canvas.width / svg.width, canvas.height / svg.height];
    const tags = [...frame.querySelectorAll(".owl-tag")];
    frame.querySelectorAll("path.owl-outline").forEach((one) => {
      const path = new Path2D();
      path.addPath(new Path2D(one.getAttribute("d")), new DOMMatrix([across, 0, 0, down, 0, 0]));
      context.fillStyle = one.style.stroke;
      context.globalAlpha = OPAQUE;
      context.fill(path, "evenodd");
      context.globalAlpha = 1;
      for (const [style, line] of [["rgb(0 0 0 / 50%)", 4], [one.style.stroke, 2]]) {
        [context.strokeStyle, context.lineWidth] = [style, line];
        context.stroke(path);
      }
    });
    [...frame.querySelectorAll("rect.owl-box")].forEach((rect, i) => {
      const [x, y, width, height] = ["x", "y", "width", "height"].map((name) => Number(rect.getAttribute(name)));
      const place = [x * across, y * down, width * across, height * down];
      for (const [style, line] of [["rgb(0 0 0 / 55%)", 5], [rect.style.stroke, 3]]) {
        [context.strokeStyle, context.lineWidth] = [style, line];
        context.strokeRect(...place);
      }
      const [name, score] = [...tags[i].childNodes].map((node) => node.textContent);
      const text = `\u2068${name}\u2069${score || ""}`; // as the page has it, also where a name is written from right to left
      context.font = "600 15px system-ui, sans-serif";
      const room = context.measureText(text).width + 12;
      const left = clamp(place[0], 0, Math.max(0, canvas.width - room));
      const top = Math.max(0, place[1] - 22);
      context.fillStyle = rect.style.stroke;
      context.fillRect(left, top, room, 22);
      context.fillStyle = "#0c0f14";
      context.fillText(text, left + 6, top + 16);
    });
    return canvas;
  };

  // Links to files that the page itself holds, and text to copy: nothing is written on the server.
  window.owlFiles = (element, props, trigger, watch) => {
    const root = element.querySelector(".owl-files");
    let links = [];
    const said = make("output");
    // What has no content yet is asked for, and given when it came; where what is shown changes meanwhile, of that.
    let pending = null; // {kind, label, since}
    const want = (kind, label, since = Date.now()) => {
      const mine = (pending = { kind, label, since });
      said.textContent = `Making ${label} …`;
      root.append(said);
      setTimeout(() => { if (pending === mine) said.textContent = `${label} did not come; try again.`; }, WAIT_MS);
      trigger("wanted", { label });
    };
    const give = (value) => {
      if (!pending) return;
      const { kind, label, since } = pending;
      const one = (value[kind] || []).find((it) => it.label === label);
      pending = null;
      if (!one || Date.now() - since > WAIT_MS) return;
      if (one.text === null || one.copy === null) want(kind, label, since);
      else if (kind === "copies") copy(one);
      else [...root.querySelectorAll("a")].find((link) => link.download === one.name)?.click();
    };
    const button = (label, action) => {
      const one = make("button", "", label);
      one.type = "button";
      one.addEventListener("click", action);
      root.append(one);
      return one;
    };
    const picture = (file) => button(file.label, () => {
      const link = make("a");
      link.href = drawn(file.stage).toDataURL("image/png");
      link.download = file.name;
      link.click();
    });
    // Pages that are not served by https may not write to the clipboard: there the text is selected to be copied.
    const copy = async (one) => {
      const here = `${location.origin}${location.pathname.replace(/\/+$/, "")}`; // the server may stand below an address
      const text = one.copy.replace(/ ORIGIN(\/v1\/\w+\s*)$/, (_, call) => ` ${here}${call}`); // the last word of curl
      said.replaceChildren();
      try {
        await navigator.clipboard.writeText(text);
        said.append(make("pre", "", text), make("span", "", "is copied."));
      } catch {
        const shown = make("pre", "", text);
        said.append(shown);
        getSelection().selectAllChildren(shown);
      }
    };
    const draw = () => {
      links.forEach((url) => URL.revokeObjectURL(url));
      links = [];
      root.replaceChildren();
      said.replaceChildren();
      const value = JSON.parse(JSON.stringify(props.value || {}));
      const files = value.files || [];
      if (!files.length) return;
      root.append(make("span", "", "Download"));
      files.forEach((file) => {
        if (file.stage) return picture(file);
        if (file.text === null) return button(file.label, () => want("files", file.label));
        const content = file.base64 ? Uint8Array.from(atob(file.base64), (letter) => letter.charCodeAt(0)) : file.text;
        const url = file.file ? file.file.url : URL.createObjectURL(new Blob([content]));
        if (!file.file) links.push(url);
        const link = make("a", "", file.label);
        link.href = url;
        link.download = file.name;
        root.append(link);
      });
      const note = () => value.note && root.append(make("p", "owl-hint owl-break", value.note));
      if (!value.copies || !value.copies.length) {
        note();
        root.append(said);
        return give(value);
      }
      root.append(make("span", "owl-break"), make("span", "", "Copy as"));
      value.copies.forEach((one) => button(one.label, () => (one.copy === null ? want("copies", one.label) : copy(one))));
      note();
      root.append(said);
      give(value);
    };
    watch(["value"], () => redrawn(root, draw, "a, button"));
    draw();
  };
})();
