"use strict";

// The page is complete without this script, which refreshes it and filters while the user types.
const search = document.getElementById("search");
const filter = document.getElementById("filter");
const state = document.getElementById("state");
const period = 10_000; // ms
const typingPause = 200; // ms after the last key, before the filter is applied
let updated = new Date();
let paused = false; // see selecting
let typingTimer;

// applyFilter puts the filter into the URL, which every refresh and reload uses.
function applyFilter() {
  clearTimeout(typingTimer);
  const url = new URL(location);
  if (filter.value.trim()) url.searchParams.set("filter", filter.value);
  else url.searchParams.delete("filter");
  history.replaceState(null, "", url);
  if (selecting()) getSelection().removeAllRanges();
  refresh();
}

// selecting reports whether text is selected that a refresh would replace. The page pauses until it is not.
function selecting() {
  const selection = getSelection();
  return !selection.isCollapsed && selection.containsNode(document.querySelector("main"), true);
}

// nameOf identifies a link, or another element of a row, across refreshes: by its own URL, or by
// the URL of the row's first link.
const nameOf = e => e.localName + " " + (e.closest("a") ?? e.closest("tr").querySelector("a")).getAttribute("href");

// tell shows a text, and since when the page has not been updated.
function tell(text) {
  state.textContent = `${text} Last update: ${updated.toLocaleTimeString()}`;
  state.classList.toggle("paused", paused);
}

async function refresh() {
  if (document.hidden) return;
  const url = location.href;
  try {
    if (paused = selecting()) return tell("Paused while text is selected.");
    const response = await fetch(url, {cache: "no-store", signal: AbortSignal.timeout(period - 1000)});
    const text = await response.text();
    if (url !== location.href) return; // the filter has changed in the meantime
    if (response.status === 400) return tell(`${text.trim()}.`); // such as too many words in the filter
    if (!response.ok) throw new Error(`status ${response.status}`);
    const page = new DOMParser().parseFromString(text, "text/html");
    const main = page.querySelector("main");
    if (!main) throw new Error("unexpected page"); // such as the login page of a proxy
    if (paused = selecting()) return tell("Paused while text is selected.");
    const focused = document.activeElement.closest("main :is(a, summary)");
    const open = [...document.querySelectorAll("details[open]")].map(nameOf);
    for (const details of main.querySelectorAll("details")) details.open = open.includes(nameOf(details));
    document.querySelector("main").replaceWith(main);
    document.title = page.title;
    search.hidden = page.getElementById("search").hidden;
    if (focused) [...main.querySelectorAll("a, summary")].find(e => nameOf(e) === nameOf(focused))?.focus({preventScroll: true});
    updated = new Date();
    state.textContent = "";
  } catch {
    if (url === location.href) tell("The exporter does not respond.");
  }
}

filter.addEventListener("input", () => {
  clearTimeout(typingTimer);
  typingTimer = setTimeout(applyFilter, typingPause);
});
search.addEventListener("submit", event => {
  event.preventDefault();
  applyFilter();
});
setInterval(refresh, period);
document.addEventListener("visibilitychange", refresh);
document.addEventListener("selectionchange", () => paused && !selecting() && refresh());
addEventListener("pageshow", event => event.persisted && refresh()); // shown again by the Back button
