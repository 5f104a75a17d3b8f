// The page of `flowfactor explore`: what a slider, a click or a key asks of the server, and how the
// answer is shown. Requests follow each other; of those that wait only the last one is sent.
(() => {
  "use strict";
  const page = Array.from(crypto.getRandomValues(new Uint32Array(4)), (n) => n.toString(36)).join("");
  const names = [], weights = {};
  let time = 0, busy = false, waiting = null, playing = null, models = [];

  const $ = (id) => document.getElementById(id);
  const range = (id) => document.querySelector(`#${id} input[type=range]`);

  function make(tag, properties = {}, ...children) {
    const element = Object.assign(document.createElement(tag), properties);
    element.append(...children);
    return element;
  }

  // ---- asking

  function ask(request) {
    // What a later request does not say itself, one that still waits does.
    waiting = { ...(waiting || {}), ...request };
    if (!busy) send();
  }

  async function send() {
    busy = true;
    $("ff-page").dataset.busy = "yes";
    while (waiting) {
      const request = { ...waiting, page, weights, t: time };
      waiting = null;
      try {
        const reply = await fetch("explore", {
          method: "POST",
          headers: { "Content-Type": "application/json" },
          body: JSON.stringify(request),
        });
        const answer = await reply.json();
        if (answer.error) tell(answer.error, true);
        else show(answer, request);
      } catch (error) {
        tell("The server does not answer. Is `flowfactor explore` still running?", true);
      }
    }
    busy = false;
    $("ff-page").dataset.busy = "no";
  }

  // ---- showing

  function tell(text, wrong = false) {
    const note = $("ff-note");
    note.textContent = text;
    note.classList.toggle("ff-error", wrong);
  }

  function show(answer, request) {
    if (request.start) tell(answer.note);
    else if ($("ff-note").classList.contains("ff-error")) tell("");
    models = answer.models;
    models.forEach((view, i) => {
      const part = (kind) => $(`ff-${kind}-${i}`);
      part("image").src = view.image;
      part("image").classList.toggle("ff-outside", view.outside);
      part("strip").src = view.strip;
      if (view.landscape) part("landscape").src = view.landscape;
      else part("landscape").removeAttribute("src");
      const points = view.path.map(([x, y]) => [1000 * x, 1000 * y]);
      const now = view.now.map((x) => 1000 * x);
      const line = points.join(" ");
      part("halo").setAttribute("points", line);
      part("line").setAttribute("points", line);
      part("frames").replaceChildren(...points.slice(1).map((point) => circle(point, 8, "ff-frame")));
      place(part("start"), points[0]);
      place(part("now"), now);
      part("text").textContent = view.text;
      for (const tick of part("ticks").children)
        tick.classList.toggle("ff-current", Math.abs(tick.dataset.t - time) < 0.5);
    });
    if (answer.test) showTest(answer.test);
    if (answer.record) showRecord(answer.record, request.record);
  }

  function circle(point, radius, kind) {
    const element = document.createElementNS("http://www.w3.org/2000/svg", "circle");
    element.setAttribute("class", kind);
    element.setAttribute("r", radius);
    place(element, point);
    return element;
  }

  function place(element, [x, y]) {
    element.setAttribute("cx", x);
    element.setAttribute("cy", y);
  }

  function heading(name) {
    return models.length > 1 ? [make("h3", { textContent: name })] : [];
  }

  function showTest(tests) {
    const parts = tests.flatMap(({ model, frames, text }) => [
      ...heading(model),
      make("p", { textContent: text }),
      ...frames.map(({ image, label }) =>
        make("figure", {}, make("img", { src: image, alt: label }), make("figcaption", { textContent: label }))),
    ]);
    $("ff-result").replaceChildren(...parts);
  }

  function showRecord(records, kind) {
    const parts = records.flatMap(({ model, content }, i) => {
      const file = kind === "gif" ? `path${i || ""}.gif` : `path${i || ""}.py`;
      const href = kind === "gif" ? content
        : URL.createObjectURL(new Blob([content], { type: "text/x-python" }));
      const save = make("a", { href, download: file, textContent: `Save ${file}`, className: "ff-button" });
      const body = kind === "gif"
        ? make("img", { src: content, alt: "The path, there and back.", className: "ff-gif" })
        : make("pre", { tabIndex: 0, textContent: content });
      return [...heading(model), body, make("p", {}, save)];
    });
    $("ff-result").replaceChildren(...parts);
  }

  // ---- what one does

  function setSlider(id, value) {
    const slider = range(id);
    slider.value = value;
    slider.dispatchEvent(new Event("input", { bubbles: true }));
  }

  function onInput(event) {
    const slider = event.target.closest?.(".ff-slider");
    const value = parseFloat(event.target.value);
    if (!slider || Number.isNaN(value)) return;
    const { min, max } = range(slider.id);
    const allowed = Math.min(Math.max(value, +min), +max);
    if (slider.id === "ff-time") time = allowed;
    else weights[names[+slider.id.split("-").pop()]] = allowed;
    ask({});
  }

  function choose(start) {
    for (const button of document.querySelectorAll(".ff-samples button"))
      button.setAttribute("aria-pressed", String(+button.dataset.sample === start.sample));
    if (start.sample !== undefined) $("ff-number").value = start.sample;
    $("ff-result").replaceChildren();
    ask({ start, plane: [$("ff-first").value, $("ff-second").value] });
  }

  function upload(event) {
    const [file] = event.target.files;
    if (!file) return;
    if (file.size > 20e6) return tell("This file is larger than 20 MB. Choose a smaller one.", true);
    const reader = new FileReader();
    reader.onload = () => choose({ picture: reader.result.split(",")[1] || "" });
    reader.onerror = () => tell("This file cannot be read.", true);
    reader.readAsDataURL(file);
    event.target.value = "";
  }

  function steer(plane, i) {
    const go = (x, y) => {
      const start = { model: i, x: Math.min(Math.max(x, 0), 1), y: Math.min(Math.max(y, 0), 1) };
      ask({ start });
    };
    const point = (event) => {
      const box = plane.getBoundingClientRect();
      go((event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height);
    };
    plane.addEventListener("pointerdown", (event) => {
      plane.setPointerCapture(event.pointerId);
      point(event);
    });
    plane.addEventListener("pointermove", (event) => event.buttons && point(event));
    plane.addEventListener("keydown", (event) => {
      const step = event.shiftKey ? 0.1 : 0.02;
      const move = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] }[event.key];
      if (!move || !models[i]) return;
      event.preventDefault();
      const [x, y] = models[i].path[0];
      go(x + move[0], y + move[1]);
    });
  }

  function play() {
    const button = $("ff-play");
    if (playing) clearInterval(playing);
    playing = playing ? null : setInterval(() => {
      const slider = range("ff-time");
      if (!busy) setSlider("ff-time", time + 0.1 > +slider.max ? 0 : (time + 0.1).toFixed(1));
    }, 50);
    button.textContent = playing ? "Pause" : "Play";
  }

  function rest() {
    names.forEach((_, k) => setSlider(`ff-weight-${k}`, k ? 0 : 1));
    setSlider("ff-time", 0);
  }

  function begin() {
    names.push(...JSON.parse($("ff-page").dataset.names));
    names.forEach((name, k) => (weights[name] = parseFloat(range(`ff-weight-${k}`).value)));
    time = parseFloat(range("ff-time").value);
    document.addEventListener("input", onInput);
    document.addEventListener("change", onInput);
    for (const button of document.querySelectorAll(".ff-samples button"))
      button.addEventListener("click", () => choose({ sample: +button.dataset.sample }));
    $("ff-number").addEventListener("change", (event) => choose({ sample: Math.round(+event.target.value) }));
    $("ff-file").addEventListener("change", upload);
    for (const id of ["ff-first", "ff-second"])
      $(id).addEventListener("change", () => ask({ plane: [$("ff-first").value, $("ff-second").value] }));
    document.querySelectorAll(".ff-plane").forEach(steer);
    const buttons = {
      "ff-play": play, "ff-rest": rest,
      "ff-back": () => ask({ test: "there_and_back" }), "ff-order": () => ask({ test: "either_order" }),
      "ff-gif": () => ask({ record: "gif" }), "ff-python": () => ask({ record: "python" }),
    };
    for (const [id, action] of Object.entries(buttons)) $(id).addEventListener("click", action);
    choose({ sample: +$("ff-page").dataset.sample });
  }

  const ready = setInterval(() => {
    if (!$("ff-page") || !range("ff-time") || !$("ff-python")) return;
    clearInterval(ready);
    begin();
  }, 20);
})();
