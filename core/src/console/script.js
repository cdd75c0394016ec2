"use strict";
// Data from the cache is written as text, never as HTML: paths and keys are untrusted input.
(() => {
  const base = location.pathname.replace(/\/+$/, "");
  const SHOWN = ["hit", "collapsed", "stale", "miss", "bypass", "error"];
  const byId = (id) => document.getElementById(id);
  let state = null, minutes = 5, shown = "all", last = null, drawn = "";

  // Elements.
  const make = (tag, props = {}, ...children) => {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(props)) {
      if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
      else if (name === "style") Object.assign(element.style, value);
      else if (name in element) element[name] = value;
      else element.setAttribute(name, value);
    }
    element.append(...children.filter((child) => child !== null && child !== undefined));
    return element;
  };
  const draw = (tag, attributes, text) => {
    const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    if (text !== undefined) element.textContent = text;
    return element;
  };
  const fill = (element, ...children) => element.replaceChildren(...children.filter(Boolean));

  // Words for numbers.
  const count = (n) => n >= 1e6 ? (n / 1e6).toFixed(1) + " M" : n >= 1e4 ? Math.round(n / 1e3) + " k" : n.toLocaleString("en").replace(/,/g, "\u202f");
  const rate = (n) => n >= 1e4 ? Math.round(n / 1e3) + " k" : n >= 100 ? String(Math.round(n)) : n >= 10 ? n.toFixed(1).replace(/\.0$/, "") : n.toFixed(1);
  const percent = (part) => part === null ? "–" : part > .9995 || part < .0005 ? Math.round(part * 100) + "\u00a0%" : (part * 100).toFixed(1) + "\u00a0%";
  const time = (us) => us === null || us === undefined ? "–" : us < 1e3 ? us + " µs" : us < 1e6 ? +(us / 1e3).toPrecision(3) + " ms" : +(us / 1e6).toPrecision(3) + " s";
  const bytes = (n) => n < 1024 ? n + " B" : n < 1048576 ? (n / 1024).toFixed(n < 10240 ? 1 : 0) + " KiB" : n < 1073741824 ? (n / 1048576).toFixed(n < 10485760 ? 1 : 0) + " MiB" : (n / 1073741824).toFixed(1) + " GiB";
  const clock = (at, seconds = true) => new Date(at * 1000).toLocaleTimeString("en-GB", seconds ? {} : { hour: "2-digit", minute: "2-digit" });
  const figure = (element, text) => {
    const [number, unit] = text.split(/\s(?=\D+$)/);
    fill(element, document.createTextNode(number), unit ? make("small", {}, unit) : null);
  };
  const word = (status) => make("span", { className: "word " + status }, status);
  const ratio = (r) => { const served = r.hit + r.stale + r.collapsed, asked = served + r.miss + r.error; return asked ? served / asked : null; };

  // Requests to the console's API.
  const ask = async (path, body) => {
    const answer = await fetch(base + "/api/" + path, {
      method: body ? "POST" : "GET", credentials: "same-origin", cache: "no-store",
      headers: { "x-larder-console": "1", ...(body ? { "content-type": "application/json" } : {}) },
      body: body && JSON.stringify(body),
    });
    const read = await answer.json().catch(() => ({ error: answer.statusText }));
    if (!answer.ok) throw new Error(read.error || answer.statusText);
    return read;
  };
  let toasting;
  const toast = (text) => {
    clearTimeout(toasting);
    fill(byId("toast"), document.createTextNode(text));
    byId("toast").hidden = false;
    toasting = setTimeout(() => { byId("toast").hidden = true; }, 5000);
  };
  const confirmed = (title, what) => new Promise((resolve) => {
    const dialog = byId("confirm");
    byId("confirm-title").textContent = title;
    fill(byId("confirm-what"), ...what);
    dialog.returnValue = "no";
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true });
    dialog.showModal();
  });
  const evict = async (what, title, text) => {
    if (!await confirmed(title, text)) return;
    try {
      const done = await ask("evict", what);
      toast(done.confirmed ? `Evicted ${done.evicted}` : `The store didn't confirm that ${done.evicted} is evicted; it goes on trying`);
      await refresh();
      if (last) await explain(last);
    } catch (error) { toast(error.message); }
  };
  byId("evict-tag").addEventListener("click", () => {
    const tag = window.prompt("Evict every entry with this tag:");
    if (tag) evict({ tag }, "Evict this tag?", ["Every entry that carries ", make("code", {}, tag), " is removed, in all processes that share the store. The next requests run their handlers."]);
  });

  // Plots. Each gets the times (x) and the values to draw above them.
  const plot = (element, points, layers, top, label, tip) => {
    const width = Math.max(element.clientWidth, 200), height = element.clientHeight;
    const left = 40, right = 4, upper = 8, lower = 20;
    const end = state.now - state.now % state.slice_seconds, start = end - minutes * 60;
    const x = (at) => left + (at - start) / (end - start) * (width - left - right);
    const y = (value) => upper + (1 - value / top) * (height - upper - lower);
    const svg = draw("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": element.previousElementSibling.textContent });
    for (const part of [0, .5, 1]) {
      svg.append(draw("line", { class: "grid", x1: left, x2: width - right, y1: y(top * part), y2: y(top * part) }));
      svg.append(draw("text", { x: left - 8, y: y(top * part) + 4, "text-anchor": "end" }, label(top * part)));
    }
    const every = Math.ceil(minutes / (width > 560 ? 5 : 3)) * 60;
    for (let at = Math.ceil(start / every) * every; at <= end; at += every) {
      if (x(at) < left + 16 || x(at) > width - 16) continue;
      svg.append(draw("text", { x: x(at), y: height - 3, "text-anchor": "middle" }, clock(at, false)));
    }
    for (const layer of layers) {
      // Gaps without data interrupt the line.
      let run = [];
      const finish = () => {
        if (run.length) {
          const above = run.map(([at, value]) => `${x(at).toFixed(1)},${y(value).toFixed(1)}`);
          const below = run.map(([at, , from]) => `${x(at).toFixed(1)},${y(from || 0).toFixed(1)}`).reverse();
          if (layer.area) svg.append(draw("path", { class: layer.area, d: `M${above.concat(below).join("L")}Z` }));
          if (layer.line) svg.append(draw("path", { class: layer.line, d: `M${above.join("L")}${run.length === 1 ? "h.01" : ""}` }));
        }
        run = [];
      };
      for (const point of points) {
        const value = layer.value(point);
        if (value === null) finish(); else run.push([point.at, Math.min(value, top), layer.from ? layer.from(point) : 0]);
      }
      finish();
    }
    const cursor = draw("line", { class: "cursor", y1: upper, y2: height - lower, visibility: "hidden" });
    svg.append(cursor);
    const note = make("div", { className: "tip", hidden: true });
    const move = (event) => {
      const at = start + ((event.clientX - element.getBoundingClientRect().left) - left) / (width - left - right) * (end - start);
      const nearest = points.reduce((best, point) => Math.abs(point.at - at) < Math.abs(best.at - at) ? point : best, points[0]);
      if (!nearest) return;
      cursor.setAttribute("x1", x(nearest.at)); cursor.setAttribute("x2", x(nearest.at)); cursor.setAttribute("visibility", "visible");
      note.textContent = clock(nearest.at) + "\n" + tip(nearest);
      note.hidden = false;
      const at_right = x(nearest.at) > width / 2;
      note.style.left = at_right ? "auto" : x(nearest.at) + 10 + "px";
      note.style.right = at_right ? width - x(nearest.at) + 10 + "px" : "auto";
    };
    svg.addEventListener("pointermove", move);
    svg.addEventListener("pointerleave", () => { note.hidden = true; cursor.setAttribute("visibility", "hidden"); });
    const quiet = points.every((point) => point.total === 0);
    fill(element, svg, note, quiet ? make("p", { className: "empty" }, "No requests in this time") : null);
  };
  const nice = (value) => {
    if (value <= 0) return 1;
    const unit = 10 ** Math.floor(Math.log10(value));
    return [1, 2, 4, 5, 10].find((step) => step * unit >= value) * unit;
  };
  const plots = () => {
    const step = minutes > 5 ? minutes > 15 ? 30 : 15 : state.slice_seconds;
    const end = state.now - state.now % step, start = end - minutes * 60;
    const points = [];
    for (let at = start; at < end; at += step) points.push({ at: at + step / 2, total: 0, counts: SHOWN.map(() => 0), p50: null, p95: null });
    const order = SHOWN.map((status) => state.statuses.indexOf(status));
    for (const slice of state.slices) {
      const point = points[Math.floor((slice.at - start) / step)];
      if (!point || slice.at < start) continue;
      order.forEach((from, to) => { point.counts[to] += slice.statuses[from]; point.total += slice.statuses[from]; });
      point.p50 = Math.max(point.p50 ?? 0, slice.latency.p50_us ?? 0);
      point.p95 = Math.max(point.p95 ?? 0, slice.latency.p95_us ?? 0);
    }
    const upTo = (point, index) => point.counts.slice(0, index + 1).reduce((sum, n) => sum + n, 0) / step;
    const most = nice(Math.max(...points.map((point) => point.total / step)));
    const whole = (value) => value >= 1e4 ? value / 1e3 + "k" : String(+value.toPrecision(3));
    plot(byId("plot-requests"), points, SHOWN.map((status, index) => ({
      area: "area " + status, value: (point) => upTo(point, index), from: (point) => index ? upTo(point, index - 1) : 0,
    })).reverse(), most, whole, (point) => point.total
      ? SHOWN.map((status, index) => point.counts[index] ? `${status} ${rate(point.counts[index] / step)}` : "").filter(Boolean).join("\n") : "no requests");
    const hits = (point) => ratio(Object.fromEntries(SHOWN.map((status, index) => [status, point.counts[index]])));
    plot(byId("plot-ratio"), points, [{ area: "under", line: "line", value: hits }], 1, (part) => part * 100 + " %", (point) => percent(hits(point)));
    const slowest = nice(Math.max(1, ...points.map((point) => point.p95 ?? 0)));
    plot(byId("plot-latency"), points, [{ line: "line p95", value: (point) => point.p95 }, { line: "line", value: (point) => point.p50 }], slowest,
      time, (point) => point.total ? `median ${time(point.p50)}\np95 ${time(point.p95)}` : "no requests");
    const recent = state.slices.filter((slice) => slice.at >= state.now - 65 && slice.at < state.now - state.now % state.slice_seconds);
    const total = recent.reduce((sum, slice) => sum + slice.statuses.reduce((a, b) => a + b, 0), 0);
    figure(byId("rate"), rate(total / 60) + " /s");
    byId("rate-note").textContent = `the last minute · ${count(state.total)} reads in all`;
    figure(byId("latency"), time(state.lately.p95_us));
    byId("latency-note").textContent = state.lately.count ? `p95, the last minute · median ${time(state.lately.p50_us)}` : "nothing the last minute";
  };

  // Tables.
  const mix = (requests) => {
    const total = SHOWN.reduce((sum, status) => sum + requests[status], 0);
    const text = SHOWN.filter((status) => requests[status]).map((status) => `${status} ${count(requests[status])}`).join(", ");
    return make("div", { className: "mix", title: text, role: "img", "aria-label": text },
      ...SHOWN.filter((status) => requests[status]).map((status) => make("i", { className: status, style: { flexGrow: String(requests[status] / total) } })));
  };
  const KINDS = { read: "", write: "writes", evict_key: "evicts", evict_group: "evicts group", evict_tags: "evicts tags" };
  const none = (text = "none") => make("span", { className: "none" }, text);
  const total = (requests) => SHOWN.reduce((sum, status) => sum + requests[status], 0);
  const why = (reason) => make("span", { title: state.reasons[reason] || "" }, reason);
  const tables = () => {
    const { routes, groups } = state.stats;
    const body = (id, rows, columns, empty) => fill(byId(id).tBodies[0], ...(rows.length ? rows : [make("tr", {}, make("td", { colSpan: columns, className: "empty" }, empty))]));
    body("routes", [...routes].sort((a, b) => total(b.requests) - total(a.requests)).map((route) => make("tr", {},
      make("td", {}, make("code", {}, route.route), KINDS[route.kind] ? make("span", { className: "kind" }, KINDS[route.kind]) : null),
      make("td", { className: "wide" }, route.group ?? none()),
      make("td", { className: "number" }, count(total(route.requests))),
      make("td", { className: "ratio" }, mix(route.requests)),
      make("td", { className: "number" }, route.kind === "read" ? percent(ratio(route.requests)) : none("–")),
      make("td", { className: "wide" }, route.kind === "read" && route.reasons.length ? why(route.reasons[0].reason) : none("–")))), 6, "No route was asked yet");
    body("groups", groups.map((group) => make("tr", {},
      make("td", {}, group.group ?? none("without a group")),
      make("td", { className: "number" }, percent(ratio(group.requests))),
      make("td", { className: "number", title: `${group.writes.refused} refused, ${group.writes.failed} failed` }, count(group.writes.stored)),
      make("td", { className: "number", title: `${group.evictions.groups} of the whole group, ${group.evictions.tags} by tags, ${group.evictions.failed} failed` }, count(group.evictions.keys + group.evictions.groups + group.evictions.tags)),
      make("td", { className: "act" }, group.group ? make("button", { type: "button", className: "small danger", "aria-label": `Evict the group ${group.group}`,
        onclick: () => evict({ group: group.group }, "Evict this group?", ["Every entry of ", make("code", {}, group.group), " is removed, in all processes that share the store. The next requests run their handlers."]) }, "Evict") : null))), 5, "Nothing happened yet");
  };

  const BREAKERS = { closed: ["answers", "good"], open: ["away", "bad"], connecting: ["connecting", ""], idle: ["not asked yet", ""] };
  const tiers = (health) => [health, ...health.tiers.flatMap(tiers)];
  const store = () => {
    const { health, operations } = state.stats.store;
    const parts = [];
    for (const tier of tiers(health)) {
      if (tier.servers.length) {
        parts.push(make("ul", { className: "servers" }, ...tier.servers.map((server) => make("li", {},
          make("span", {}, `${tier.store} `, make("code", {}, server.address)),
          make("span", { className: "pill " + BREAKERS[server.breaker][1] }, BREAKERS[server.breaker][0])))));
      } else if (tier.bytes !== null) {
        parts.push(make("div", {}, `${tier.store}: ${count(tier.entries ?? 0)} entries, ${bytes(tier.bytes)}`, tier.capacity_bytes ? ` of ${bytes(tier.capacity_bytes)}` : null));
        if (tier.capacity_bytes) parts.push(make("div", { className: "meter" }, make("i", { style: { width: Math.min(100, tier.bytes / tier.capacity_bytes * 100) + "%" } })));
      } else if (!tier.tiers.length) parts.push(make("p", {}, tier.store));
    }
    const used = operations.filter((operation) => operation.calls);
    if (used.length) {
      const timed = used.some((operation) => operation.latency.count);
      parts.push(make("div", { className: "scroll" }, make("table", {}, make("thead", {}, make("tr", {},
        make("th", {}, "Call"), make("th", { className: "number" }, "Calls"), make("th", { className: "number" }, "Failed"),
        ...(timed ? [make("th", { className: "number" }, "Median"), make("th", { className: "number" }, "p95")] : []))),
      make("tbody", {}, ...used.map((operation) => make("tr", {},
        make("td", {}, make("code", {}, operation.operation)), make("td", { className: "number" }, count(operation.calls)),
        make("td", { className: "number" }, operation.failures ? count(operation.failures) : none("0")),
        ...(timed ? [make("td", { className: "number" }, time(operation.latency.p50_us)), make("td", { className: "number" }, time(operation.latency.p95_us))] : [])))))));
      const waits = state.stats.fill_waits;
      if (waits.waited.count) parts.push(make("p", { className: "faint", style: { marginTop: "10px" } }, `${count(waits.waited.count)} requests waited for another one's fill, ${time(waits.waited.p50_us)} in the middle; ${count(waits.in_vain)} in vain.`));
    }
    fill(byId("store"), ...parts);
    const known = tiers(health), memory = known.find((tier) => tier.bytes !== null);
    figure(byId("memory"), memory ? bytes(memory.bytes) : "–");
    byId("memory-note").textContent = memory ? `${count(memory.entries ?? 0)} entries` + (memory.capacity_bytes ? `, ${bytes(memory.capacity_bytes)} at most` : "") : `${health.store} keeps the entries`;
    const pill = byId("health");
    pill.className = "pill " + (state.is_impaired ? "bad" : "good");
    pill.textContent = state.is_impaired ? `${health.store} is away` : health.store;
  };

  const decisions = () => {
    const chips = ["all", ...SHOWN];
    fill(byId("chips"), ...chips.map((status) => make("li", {}, make("button", { type: "button", "aria-pressed": String(shown === status), onclick: () => { shown = status; decisions(); } }, status))));
    const list = state.decisions.filter((one) => shown === "all" || one.status === shown).slice(0, 40);
    const key = shown + JSON.stringify(list.slice(0, 40));
    if (key === drawn) return;
    drawn = key;
    fill(byId("decisions"), ...(list.length ? list.map((one) => make("li", {}, make("button", {
      type: "button", title: one.reason ? state.reasons[one.reason] : "", onclick: () => show({ target: one.uri, method: one.method, route: one.route }),
    }, make("time", {}, clock(one.at)), word(one.status), make("span", { className: "uri mono" }, one.method === "GET" ? one.uri : `${one.method} ${one.uri}`),
      make("span", { className: "why" }, one.reason ?? ""), make("span", { className: "took" }, time(one.took_us))))) : [make("li", {}, make("p", { className: "empty" }, "Nothing yet"))]));
  };

  // Lookups.
  const facts = (pairs) => make("dl", { className: "facts" }, ...pairs.filter(([, value]) => value !== null).map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, value))));
  const stored = (entry) => {
    if (!entry) return null;
    const response = entry.response;
    if (!response) return make("p", { className: "faint" }, entry.text + (entry.bytes ? ` ${bytes(entry.bytes)}` : ""));
    return facts([["Stored", `status ${response.status}, ${bytes(response.body_bytes)}`], ["Age", `${response.age} s`],
      ["Fresh", response.remaining === null ? "until it is evicted" : response.remaining ? `for another ${response.remaining} s` : `no longer, for ${response.stale_for} s`]]);
  };
  const explain = async (asked) => {
    last = asked;
    const card = byId("answer");
    try {
      const told = await ask("explain", asked);
      const explained = told.explanation;
      const close = make("button", { type: "button", className: "small quiet", onclick: () => { card.hidden = true; last = null; } }, "Close");
      const head = make("div", { className: "head" }, make("h2", {}, make("span", { className: "mono" }, explained ? explained.request : told.key)), close);
      const key = told.key ? make("p", {}, make("span", { className: "faint" }, "Key "), make("code", { id: "answer-key" }, told.key)) : null;
      const gone = told.entry && told.entry.found === "nothing";
      const out = told.key && !gone ? make("button", { type: "button", className: "small danger", id: "evict-key",
        onclick: () => evict({ key: told.key }, "Evict this entry?", [make("code", {}, told.key), " is removed, with all its variants."]) }, "Evict this entry") : null;
      const parts = [head];
      if (explained) {
        const past = state.decisions.filter((one) => one.uri === explained.request.split(" ")[1] && one.reason);
        parts.push(make("p", { className: "why" }, word(explained.status), " ", explained.reason ? state.reasons[explained.reason] : "What is stored answers."));
        parts.push(make("ol", { className: "steps" }, ...explained.steps.map((step) => make("li", {}, step.text, step.reason ? make("span", { className: "reason" }, ` ${step.reason}`) : null))));
        if (past.length) parts.push(make("p", {}, make("span", { className: "faint" }, `Last time, at ${clock(past[0].at)}: `), word(past[0].status), ` ${past[0].reason}: ${state.reasons[past[0].reason]}`));
        if (explained.stores) parts.push(make("p", {}, explained.kept_for === null ? "The answer would be kept until it is evicted." : `The answer would be kept for ${explained.kept_for} s.`));
      }
      parts.push(key, stored(told.entry), make("div", { className: "buttons" }, out));
      if (explained) parts.push(more(asked, told));
      fill(card, ...parts);
    } catch (error) {
      fill(card, make("div", { className: "head" }, make("h2", {}, asked.target), make("button", { type: "button", className: "small quiet", onclick: () => { card.hidden = true; last = null; } }, "Close")),
        make("p", { id: "answer-error" }, `That can't be told: ${error.message}.`), more(asked, {}));
    }
    card.hidden = false;
  };
  /// The same lookup, with more request fields, or with a handler's response.
  const more = (asked, told) => {
    const field = (name, element) => make("label", {}, name, element);
    const routes = [...new Set(state.stats.routes.map((route) => route.route))];
    const method = make("input", { value: asked.method || "GET", id: "more-method" });
    const route = make("select", { id: "more-route" }, make("option", { value: "" }, "by the path"), ...routes.map((name) => make("option", { value: name, selected: name === (asked.route || told.route) }, name)));
    const fields = make("textarea", { value: asked.fields || "", placeholder: "authorization: Bearer …", id: "more-fields", spellcheck: false, className: "mono" });
    const status = make("input", { value: asked.answer ? asked.answer.status : "", placeholder: "the handler's status, such as 200", inputMode: "numeric", id: "more-status" });
    const answer = make("textarea", { value: asked.answer ? asked.answer.fields : "", placeholder: "set-cookie: …", id: "more-answer", spellcheck: false, className: "mono" });
    const again = () => explain({ target: asked.target, method: method.value, route: route.value || null, fields: fields.value,
      answer: status.value ? { status: Number(status.value) || 0, fields: answer.value, length: 0 } : null });
    const box = make("details", { open: Boolean(asked.fields || asked.answer) || !told.route }, make("summary", {}, "What if the request or the handler's answer said something else?"),
      make("div", { className: "more" }, field("Method", method), field("Route", route), field("Fields of the request, one a line", fields),
        make("div", { style: { display: "grid", gap: "8px" } }, field("The handler's answer", status), field("Its fields, one a line", answer))),
      make("div", { className: "buttons", style: { marginTop: "10px" } }, make("button", { type: "button", id: "more-ask", onclick: again }, "Ask again")));
    return box;
  };
  const show = async (asked) => {
    byId("find-target").value = asked.target;
    await explain(asked);
    byId("answer").scrollIntoView({ block: "nearest", behavior: "smooth" });
    scrollTo({ top: 0, behavior: "smooth" });
  };
  byId("find").addEventListener("submit", (event) => { event.preventDefault(); show({ target: byId("find-target").value.trim() }); });

  byId("spans").addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    minutes = Number(button.dataset.minutes);
    for (const other of byId("spans").children) other.setAttribute("aria-pressed", String(other === button));
    if (state) plots();
  });
  fill(byId("legend"), ...SHOWN.map((status) => make("li", {}, make("i", { className: status }), status)));

  // Updates every two seconds while the page is visible.
  const refresh = async () => {
    try {
      state = await ask("state");
      byId("prefix").textContent = state.prefix;
      figure(byId("ratio"), percent(state.hit_ratio));
      plots(); tables(); store(); decisions();
      document.body.dataset.ready = "yes";
    } catch (error) {
      byId("health").className = "pill bad";
      byId("health").textContent = `no answer: ${error.message}`;
    }
  };
  const hovering = () => document.querySelector(".plot .tip:not([hidden])");
  setInterval(() => { if (!document.hidden && !hovering()) refresh(); }, 2000);
  addEventListener("resize", () => { if (state) plots(); });
  refresh();
})();
