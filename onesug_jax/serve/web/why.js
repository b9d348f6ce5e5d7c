// The explanation of a list: facts, used history, scores, counts as of now, trending queries.
// Text from users or from the server is only set as textContent.
"use strict";

const COUNT_NAMES = { orders: "ordered", item_clicks: "opened" };

function element(name, className, text) {
  const node = document.createElement(name);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
}

function fact(name, value) {
  const pair = element("div");
  pair.append(element("dt", "", name), element("dd", "", value));
  $("facts").append(pair);
}

function ago(minutes) {
  if (minutes === null || minutes < 1) return "just now";
  if (minutes < 90) return `${Math.round(minutes)} min`;
  return minutes < 2880 ? `${Math.round(minutes / 60)} h` : `${Math.round(minutes / 1440)} d`;
}

function number(value) {
  if (value === 0) return "–";
  if (value >= 1000) return `${(value / 1000).toFixed(value < 10000 ? 1 : 0)} k`;
  if (value >= 10) return value.toFixed(0);
  return value < 0.05 ? "·" : value.toFixed(1);
}

// "searches_0.708d" is the count whose half-life is 0.708 days: 17 h.
function columnName(column) {
  const [kind, life] = [column.replace(/_[^_]*$/, ""), column.split("_").pop()];
  if (COUNT_NAMES[column]) return ["", COUNT_NAMES[column]];
  const days = parseFloat(life);
  const short = life === "all" ? "ever" : days < 1 ? `${+(24 * days).toFixed(1)} h` : `${days} d`;
  return [kind === "pair" ? "after this prefix" : "searches", short];
}

// ------------------------------------------------------------------ trending

function showTrending(reply) {
  const { trending } = reply.why;
  $("trending").hidden = trending.length === 0;
  $("trending-list").replaceChildren(...trending.map((one) => {
    const item = element("li");
    const button = element("button", "", one.text);
    button.type = "button";
    button.title = `${number(one.now)} recent searches (half-life 17 h); its share of all searches ` +
      `predicts ${number(one.usual)}; ${number(one.all)} in total`;
    button.append(element("small", "", `${number(one.now)} now · ${number(one.usual)} usual`));
    button.addEventListener("click", () => search(one.text, -1));
    item.append(button);
    return item;
  }));
}

// ------------------------------------------------------------------ why this list

function showWhy(reply) {
  const { why } = reply;
  $("facts").replaceChildren();
  fact("level", reply.level);
  fact("version", reply.version);
  fact("server", `${reply.milliseconds} ms`);
  if (reply.cached) fact("list", "from the cache");
  else fact("queue, model", `${why.waited_ms} + ${why.model_ms} ms, batch of ${why.batch}`);
  if (why.candidates !== null) fact("candidates", why.candidates);
  showUsed(why);
  showRelated(why);
  showScores(reply);
  showCounts(reply);
}

function showUsed(why) {
  $("used").replaceChildren(...why.history.map((one) => {
    const chip = element("li", "", one.text);
    chip.append(element("small", "", ago(one.minutes)));
    return chip;
  }));
  const unused = why.unknown.length ? `Not used, because too few others searched it: ${why.unknown.join(" · ")}` : "";
  $("unused").textContent = why.history.length || unused ? unused : "None yet.";
}

function showRelated(why) {
  $("related-part").hidden = why.counts.length > 0;
  $("related").replaceChildren(...why.related.map((one) => {
    const item = element("li");
    item.append(element("span", "", one.text));
    if (one.id) {
      const id = element("code", "", one.id.join("-"));
      id.title = "semantic id, coarse to fine: similar queries share its beginning";
      item.append(id);
    }
    return item;
  }));
}

// Bars of the probabilities as shares of the list, and the log-probabilities.
function bars(reply) {
  const scored = reply.suggestions.filter((one) => one.score !== null);
  const most = Math.max(...scored.map((one) => one.score), -Infinity);
  const total = scored.reduce((sum, one) => sum + Math.exp(one.score - most), 0);
  return reply.suggestions.map((one) => {
    const bar = element("span", "bar");
    const fill = element("i");
    fill.style.width = `${one.score === null ? 0 : (100 * Math.exp(one.score - most)) / total}%`;
    bar.append(fill);
    const score = one.score === null ? "–" : one.score.toFixed(2);
    return [bar, element("span", "number", score)];
  });
}

function showScores(reply) {
  $("scores-part").hidden = reply.why.counts.length > 0;
  const scores = bars(reply);
  $("scores").replaceChildren(...reply.suggestions.map((one, place) => {
    const item = element("li");
    item.append(element("span", "", one.text), ...scores[place]);
    return item;
  }));
}

// A table of scores and counts; the darker a cell, the larger its share of the column.
function showCounts(reply) {
  const rows = reply.why.counts;
  $("counts-part").hidden = rows.length === 0;
  if (!rows.length) return;
  const columns = Object.keys((rows.find((one) => one.counts) || { counts: {} }).counts);
  const groups = element("tr");
  const names = element("tr");
  groups.append(element("td"), element("td"));
  names.append(element("th", "", "suggestion"), element("th", "", "score"));
  for (const column of columns) {
    const [group, name] = columnName(column);
    const last = groups.lastElementChild;
    if (last.textContent === group && groups.children.length > 2) last.colSpan += 1;
    else groups.append(element("td", "", group));
    names.append(element("th", "", name));
  }
  const counts = rows.map((one) => columns.map((column) => one.counts?.[column] ?? 0));
  const most = columns.map((_, place) => Math.max(...counts.map((row) => row[place])));
  const scores = bars(reply);
  const body = rows.map((one, at) => {
    const row = element("tr");
    const head = element("th", "", one.text);
    if (one.written) head.append(element("small", "", "written by the model"));
    if (one.alike) head.append(element("small", "", `${one.alike.cosine.toFixed(2)} like ${one.alike.text}`));
    const score = element("td", "score");
    score.append(...scores[at]);
    row.append(head, score);
    counts[at].forEach((value, place) => {
      const cell = element("td", "", number(value));
      cell.style.setProperty("--share", `${most[place] ? Math.round((36 * value) / most[place]) : 0}%`);
      row.append(cell);
    });
    return row;
  });
  $("counts-head").replaceChildren(groups, names);
  $("counts-body").replaceChildren(...body);
}
