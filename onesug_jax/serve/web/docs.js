// Reads openapi.json and shows it; every endpoint can be tried. All text is set as textContent.
"use strict";

function make(name, className, text) {
  const element = document.createElement(name);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
}

function resolved(api, schema) {
  if (!schema?.$ref) return schema || {};
  return schema.$ref.split("/").slice(1).reduce((at, part) => at[part], api);
}

function type(api, schema) {
  if (schema.anyOf) return schema.anyOf.map((one) => type(api, one)).join(" or ");
  if (schema.$ref) return schema.$ref.split("/").pop();
  let said = schema.type || "any";
  if (said === "array") said = `list of ${type(api, schema.items || {})}`;
  const limits = [];
  const pairs = [["maxLength", "at most", "characters"], ["maxItems", "at most", "entries"],
    ["maxProperties", "at most", "entries"], ["minimum", "from", ""], ["maximum", "to", ""]];
  for (const [name, before, after] of pairs) {
    if (schema[name] !== undefined) limits.push(`${before} ${schema[name]} ${after}`.trim());
  }
  return limits.length ? `${said} (${limits.join(", ")})` : said;
}

const EXAMPLES = {
  "/suggest": { prefix: "co", history: ["cotton jeans", "cotton skirt"], k: 5, why: true },
  "/feedback": { request_id: "example-1", user_id: "somebody", prefix: "co",
    shown: ["cotton hoodie", "cooler"], clicked_position: 0 },
};

function endpoint(api, path, verb, about) {
  const card = make("section", "card endpoint");
  const title = make("h2");
  title.append(make("span", "verb", verb.toUpperCase()), document.createTextNode(path));
  card.append(title, make("p", "", about.description || about.summary || ""));
  const body = about.requestBody?.content["application/json"].schema;
  if (body) {
    const table = make("table");
    const schema = resolved(api, body);
    for (const [name, field] of Object.entries(schema.properties)) {
      const row = make("tr");
      const needed = (schema.required || []).includes(name) ? ", needed" : "";
      row.append(make("td", "", name), make("td", "", type(api, field) + needed),
        make("td", "", field.description || ""));
      table.append(row);
    }
    card.append(table);
  }
  const codes = Object.entries(about.responses).map(([code, one]) => `${code} ${one.description}`);
  card.append(make("p", "faint", codes.join("  ·  ")));
  const words = make("textarea");
  words.setAttribute("aria-label", `body or path for ${verb} ${path}`);
  words.rows = body ? 7 : 1;
  words.value = body ? JSON.stringify(EXAMPLES[path] || {}, null, 1) : path.replace(/{.*}/, "somebody");
  const key = document.getElementById("key");
  const button = make("button", "", "Send");
  const row = make("div", "try");
  row.append(button);
  const answer = make("pre");
  answer.hidden = true;
  button.addEventListener("click", async () => {
    const headers = body ? { "content-type": "application/json" } : {};
    if (key.value) headers["x-api-key"] = key.value;
    answer.hidden = false;
    try {
      const where = body ? path : words.value;
      const response = await fetch(where, { method: verb.toUpperCase(), headers,
        body: body ? words.value : undefined });
      const text = await response.text();
      let shown = text;
      try { shown = JSON.stringify(JSON.parse(text), null, 1); } catch { /* no JSON: as it is */ }
      answer.textContent = `${response.status}\n${shown}`;
    } catch (error) {
      answer.textContent = `no answer: ${error.message}`;
    }
  });
  card.append(words, row, answer);
  return card;
}

document.getElementById("key-form").addEventListener("submit", (event) => event.preventDefault());

fetch("openapi.json").then((response) => response.json()).then((api) => {
  const main = document.getElementById("endpoints");
  for (const [path, verbs] of Object.entries(api.paths)) {
    for (const [verb, about] of Object.entries(verbs)) main.append(endpoint(api, path, verb, about));
  }
});
