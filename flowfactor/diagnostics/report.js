// What moves in a report: frames that were decoded beforehand, and tables that are sorted.
(() => {
  "use strict";

  function make(tag, properties = {}, ...children) {
    const element = Object.assign(document.createElement(tag), properties);
    element.append(...children);
    return element;
  }

  // ---- frames by flow and time

  function play(player, number) {
    const data = JSON.parse(player.dataset.player);
    const { labels, times, samples, height, width, cell } = data;
    const sheet = player.querySelector("img");
    const slow = matchMedia("(prefers-reduced-motion: reduce)").matches;
    const now = make("canvas", { className: "now", width: samples * (width + 1) - 1, height });
    now.setAttribute("role", "img");
    // Whole frames only, and no more than fit beside each other.
    const all = times.map((_, i) => i);
    const frames = all.filter((i) => Number.isInteger(times[i]));
    const whole = frames.length > 2 ? frames : all;
    const step = Math.ceil(whole.length / 13);
    const columns = whole.filter((_, i) => i % step === 0);
    const shown = Math.min(samples, 3);
    const strip = make("canvas", {
      className: "strip", width: columns.length * (width + 1) - 1, height: shown * (height + 1) - 1,
    });
    strip.setAttribute("role", "img");
    let flow = 0, time = 0, timer = null;

    function slider(name, count, change) {
      const id = `player-${number}-${name}`;
      const input = make("input", { type: "range", id, min: 0, max: count - 1, step: 1, value: 0 });
      const output = make("output", { htmlFor: id });
      input.addEventListener("input", () => change(+input.value));
      return { input, output, parts: [make("label", { htmlFor: id, textContent: name }), input, output] };
    }
    const flows = slider("Flow", labels.length, (value) => { flow = value; draw(); });
    const clock = slider("Time", times.length, (value) => { time = value; draw(); });
    const button = make("button", { type: "button", textContent: "Play" });

    function copy(canvas, p, t, b, x, y) {
      canvas.getContext("2d").drawImage(
        sheet, (t * samples + b) * cell[1], p * cell[0], width, height, x, y, width, height);
    }

    function draw() {
      for (let b = 0; b < samples; b++) copy(now, flow, time, b, b * (width + 1), 0);
      const near = columns.reduce((a, i) => Math.abs(times[i] - times[time]) < Math.abs(times[a] - times[time]) ? i : a);
      const context = strip.getContext("2d");
      context.clearRect(0, 0, strip.width, strip.height);
      columns.forEach((i, column) => {
        context.globalAlpha = i === near ? 1 : 0.45;
        for (let b = 0; b < shown; b++) copy(strip, flow, i, b, column * (width + 1), b * (height + 1));
      });
      const when = `t = ${times[time]}`;
      flows.output.textContent = labels[flow];
      clock.output.textContent = when;
      flows.input.setAttribute("aria-valuetext", labels[flow]);
      clock.input.setAttribute("aria-valuetext", when);
      now.setAttribute("aria-label", `${samples} decoded samples, ${labels[flow]}, ${when}`);
      strip.setAttribute("aria-label", `Film strips, ${labels[flow]}, t = ${columns.map((i) => times[i]).join(", ")}`);
    }

    function toggle() {
      if (timer) clearInterval(timer);
      timer = timer ? null : setInterval(() => {
        time = (time + 1) % times.length;
        clock.input.value = time;
        draw();
      }, slow ? 700 : 120);
      button.textContent = timer ? "Pause" : "Play";
    }
    button.addEventListener("click", toggle);

    sheet.decode().then(() => {
      const controls = make("div", { className: "controls" }, ...flows.parts, ...clock.parts, button);
      player.replaceChildren(now, controls, strip);
      draw();
    });
  }

  // ---- tables

  function number(text) {
    const found = text.replace(/[,\s\u00a0]/g, "").replace(/\u2212/g, "-").match(/^[+-]?\d+(\.\d+)?(e[+-]?\d+)?/i);
    return found ? parseFloat(found[0]) : null;
  }

  function compare(a, b) {
    if (a === "" || b === "") return (a === "") - (b === "");  // what is missing comes last
    const [x, y] = [number(a), number(b)];
    return x !== null && y !== null ? x - y : a.localeCompare(b, undefined, { numeric: true });
  }

  function sortable(table) {
    const body = table.tBodies[0];
    const heads = [...table.tHead.rows[0].cells];
    if (body.rows.length < 2) return;
    heads.forEach((head, column) => {
      const button = make("button", { type: "button", title: "Sort by this column" }, ...head.childNodes);
      if (!button.textContent.trim()) return;
      head.replaceChildren(button);
      button.addEventListener("click", () => {
        const down = head.getAttribute("aria-sort") === "ascending";
        heads.forEach((each) => each.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        const text = (row) => row.cells[column].textContent.trim();
        const empty = (row) => text(row) === "";
        const rows = [...body.rows].sort((a, b) =>
          empty(a) || empty(b) ? compare(text(a), text(b)) : (down ? -1 : 1) * compare(text(a), text(b)));
        body.append(...rows);
      });
    });
  }

  document.querySelectorAll(".player").forEach(play);
  document.querySelectorAll("table").forEach(sortable);
})();
