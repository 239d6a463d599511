// A short video, what is found in it while it is looked at, and the things in it. No library, nothing from elsewhere;
// stage.js and camera.js come before.
(() => {
  "use strict";
  if (window.owlClip) return; // every piece brings this script
  const { make, redrawn } = window.owlShared;
  const seconds = (value) => `${Number(value).toFixed(1)} s`;

  // The value is made by clip_value in watching.py.
  window.owlClip = (element, props, trigger, watch) => {
    const root = element.querySelector(".owl-stage");
    const empty = make("button", "owl-empty");
    empty.type = "button";
    const screen = make("div", "owl-screen");
    const player = make("video");
    Object.assign(player, { controls: true, loop: true, muted: true, playsInline: true, preload: "auto" });
    const frame = make("img");
    const bar = make("div", "owl-progress");
    bar.setAttribute("role", "progressbar");
    bar.setAttribute("aria-label", "Looked at of the video");
    const filled = make("i");
    bar.append(filled);
    const said = make("p", "owl-hint");
    const note = make("div", "owl-note");
    note.setAttribute("role", "status");
    const table = make("div", "owl-table owl-things");
    screen.append(player, frame, bar, said);
    root.append(empty, screen, note, table);
    let shown = ""; // the address of the video that the player has
    let first = ""; // its first frame

    const give = (files) => {
      const videos = [...files].filter((file) => file.type.startsWith("video/") || !file.type);
      if (videos.length) window.owlShared.giveFiles(props.upload, videos.slice(0, 1));
      else if (files.length) note.replaceChildren(make("p", "", `${files[0].name} is no video; what is here stays.`));
    };
    empty.addEventListener("click", () => window.owlShared.inputOf(props.upload)?.click());
    root.addEventListener("dragover", (event) => { event.preventDefault(); root.classList.add("owl-over"); });
    root.addEventListener("dragleave", () => root.classList.remove("owl-over"));
    root.addEventListener("drop", (event) => {
      event.preventDefault();
      root.classList.remove("owl-over");
      give(event.dataTransfer.files);
    });
    player.addEventListener("error", () => {
      if (!shown || !first) return;
      [player.hidden, frame.hidden, frame.src] = [true, false, first];
      said.append(". This browser does not play it, which does not matter.");
    });

    const drawTable = (things) => redrawn(table, () => {
      table.replaceChildren();
      if (!things.length) return;
      const grid = make("table");
      const head = make("tr");
      ["thing", "from – to", "best score", "frames"].forEach((text, i) => {
        const title = make("th", i === 3 ? "owl-wide" : "", text);
        title.scope = "col";
        head.append(title);
      });
      const body = make("tbody");
      things.forEach((one) => {
        const row = make("tr");
        const go = make("button", "owl-go", `#${one.number} ${one.name}`);
        go.type = "button";
        go.title = `Go to where it is first seen, ${seconds(one.from)}`;
        go.addEventListener("click", () => {
          player.pause();
          player.currentTime = one.from + 0.001;
        });
        const name = make("td", "owl-name");
        name.append(go);
        row.append(name, make("td", "owl-score", `${seconds(one.from)} – ${seconds(one.to)}`),
          make("td", "owl-score", one.score.toFixed(2)), make("td", "owl-wide", String(one.frames)));
        body.append(row);
      });
      const top = make("thead");
      top.append(head);
      grid.append(top, body);
      table.append(grid);
    });

    const draw = () => {
      const value = JSON.parse(JSON.stringify(props.value || {}));
      const source = value.video ? value.video.url : "";
      root.classList.toggle("owl-there", Boolean(source || value.frame));
      empty.replaceChildren(make("strong", "", value.title || ""), make("span", "", value.text || ""));
      first = value.first || "";
      frame.hidden = !value.frame;
      frame.src = value.frame || "data:,";
      frame.alt = value.alt || "";
      player.hidden = Boolean(value.frame) || !source;
      if (player.hidden) player.pause();
      if (source !== shown) {
        shown = source;
        if (source) player.src = source;
        else player.removeAttribute("src");
        if (source && value.play) player.play().catch(() => {});
      }
      player.setAttribute("aria-label", value.alt || "");
      bar.hidden = !value.bar;
      said.textContent = value.bar ? value.bar.text : value.about || "";
      if (value.bar) {
        filled.style.width = `${value.bar.share}%`;
        bar.setAttribute("aria-valuenow", value.bar.share);
      }
      note.replaceChildren(...(value.note ? [make("p", "", value.note)] : []));
      drawTable(value.things || []);
    };
    watch(["value"], draw);
    draw();
  };
})();
