"use strict";

// The page is complete without this, which keeps it up to date and filters while one types.
const search = document.getElementById("search");
const filter = document.getElementById("filter");
const state = document.getElementById("state");
const period = 10_000; // ms
const pause = 200; // ms without a key, after which the filter is meant
let asOf = new Date();
let typing;

// find puts the filter into the URL, where every refresh finds it, and a reload.
function find() {
  clearTimeout(typing);
  const url = new URL(location);
  url.search = filter.value.trim() && new URLSearchParams({filter: filter.value});
  history.replaceState(null, "", url);
  refresh();
}

// nameOf names a link, or a part of a row, by where it leads, or its row does.
const nameOf = e => e.localName + " " + (e.closest("a") ?? e.closest("tr").querySelector("a")).getAttribute("href");

async function refresh() {
  if (document.hidden) return;
  const url = location.href;
  try {
    const response = await fetch(url, {cache: "no-store", signal: AbortSignal.timeout(period - 1000)});
    if (!response.ok) throw new Error(`status ${response.status}`);
    const page = new DOMParser().parseFromString(await response.text(), "text/html");
    const main = page.querySelector("main");
    if (!main) throw new Error("another page"); // such as a proxy's, that asks who we are
    if (url !== location.href) return; // the filter is another one by now
    const focused = document.activeElement.closest("main :is(a, summary)");
    const open = [...document.querySelectorAll("details[open]")].map(nameOf);
    for (const details of main.querySelectorAll("details")) details.open = open.includes(nameOf(details));
    document.querySelector("main").replaceWith(main);
    document.title = page.title;
    search.hidden = page.getElementById("search").hidden;
    if (focused) [...main.querySelectorAll("a, summary")].find(e => nameOf(e) === nameOf(focused))?.focus({preventScroll: true});
    asOf = new Date();
    state.textContent = "";
  } catch {
    if (url !== location.href) return;
    state.textContent = `The exporter does not answer. This is as of ${asOf.toLocaleTimeString()}.`;
  }
}

filter.addEventListener("input", () => {
  clearTimeout(typing);
  typing = setTimeout(find, pause);
});
search.addEventListener("submit", event => {
  event.preventDefault();
  find();
});
setInterval(refresh, period);
document.addEventListener("visibilitychange", refresh);
addEventListener("pageshow", event => event.persisted && refresh()); // by the Back button
