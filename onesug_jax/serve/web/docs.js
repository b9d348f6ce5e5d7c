// Shows openapi.json, with a form for each endpoint. All text is set as textContent.
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
  let name = schema.type || "any";
  if (name === "array") name = `list of ${type(api, schema.items || {})}`;
  const limits = [];
  const pairs = [["maxLength", "at most", "characters"], ["maxItems", "at most", "entries"],
    ["maxProperties", "at most", "entries"], ["minimum", "from", ""], ["maximum", "to", ""]];
  for (const [limit, before, after] of pairs) {
    if (schema[limit] !== undefined) limits.push(`${before} ${schema[limit]} ${after}`.trim());
  }
  return limits.length ? `${name} (${limits.join(", ")})` : name;
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
      const required = (schema.required || []).includes(name) ? ", required" : "";
      row.append(make("td", "", name), make("td", "", type(api, field) + required),
        make("td", "", field.description || ""));
      table.append(row);
    }
    card.append(table);
  }
  const codes = Object.entries(about.responses).map(([code, one]) => `${code} ${one.description}`);
  card.append(make("p", "faint", codes.join("  ·  ")));
  const input = make("textarea");
  input.setAttribute("aria-label", `body or path for ${verb} ${path}`);
  input.rows = body ? 7 : 1;
  input.value = body ? JSON.stringify(EXAMPLES[path] || {}, null, 1) : path.replace(/{.*}/, "somebody");
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
      const response = await fetch(body ? path : input.value, { method: verb.toUpperCase(), headers,
        body: body ? input.value : undefined });
      const text = await response.text();
      let shown = text;
      try { shown = JSON.stringify(JSON.parse(text), null, 1); } catch { /* not JSON */ }
      answer.textContent = `${response.status}\n${shown}`;
    } catch (error) {
      answer.textContent = `no reply: ${error.message}`;
    }
  });
  card.append(input, row, answer);
  return card;
}

document.getElementById("key-form").addEventListener("submit", (event) => event.preventDefault());

fetch("openapi.json").then((response) => response.json()).then((api) => {
  const main = document.getElementById("endpoints");
  for (const [path, verbs] of Object.entries(api.paths)) {
    for (const [verb, about] of Object.entries(verbs)) main.append(endpoint(api, path, verb, about));
  }
});
