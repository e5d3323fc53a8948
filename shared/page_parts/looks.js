// What the page shows beside the text: bars of the next token, attention, a verdict.
"use strict";

const visible = text => text.replaceAll("\n", "\u21b5") || "\u00b7";
// What stands at a position, between quotes; the first token may be the end of another text.
const name_of = i => i === 0 && !texts[0] ? "(start)" : visible(texts[i]);

function row(kind, text, share) {
    const line = document.createElement(kind);
    const [word, rail, number] = ["span", "span", "span"].map(x => document.createElement(x));
    const bar = document.createElement("i");
    word.className = "word";
    word.textContent = visible(text);
    rail.className = "rail";
    bar.style.width = `${100 * share}%`;
    rail.append(bar);
    number.className = "share";
    number.textContent = share < 0.001 ? "<0.1 %" : `${(100 * share).toFixed(1)} %`;
    line.append(word, rail, number);
    return line;
}

// The likeliest tokens at a position; a click on one goes on from there with it.
function show_bars(bars, position) {
    const free = chosen >= 0 || !running, at_end = position >= ids.length;
    $("look").hidden = false;
    $("question").textContent = !bars.length
        ? "Nothing before this token is being read, so nothing was expected"
        : (at_end ? "How likely the model found each token at the end"
            : `How likely the model found each token where \u201c${name_of(position).trim()}\u201d stands`) +
          (free ? ". Choose one, and the text goes on from there" : "");
    $("bars").replaceChildren(...bars.map(({id, text, share}) => {
        const item = document.createElement("li"), button = row("button", text, share);
        button.type = "button";
        if (id === ids[position] || text === "(the end)" && at_end)
            button.className = "taken";
        button.disabled = !free || text === "(the end)";
        button.onclick = () => {
            told = new Set([...told].filter(i => i < position)).add(position);
            tell({ids: [...ids.slice(0, position), id]});
            $("stop").focus();
            $("story").scrollIntoView({block: "nearest"});
        };
        item.append(button);
        return item;
    }));
}

// Attention

const view = () => document.querySelector("input[name=view]:checked").value;

function ask_attention() {
    const on = view() === "attention", position = chosen < 0 ? ids.length - 1 : chosen;
    if (!on || position < 0 || !worker) return;
    worker.postMessage({do: "attention", position, skipped,
                        block: Number($("block").value), head: Number($("head").value)});
}

function show_attention({position, skipped: first, block, head, weights}) {
    if (view() !== "attention" || position >= ids.length) return;
    if (running && chosen < 0 && !weights.length) return;  // the newest is not read yet
    const largest = Math.max(...weights, 1e-9);
    Array.prototype.forEach.call(tokens(), (span, i) => {
        const weight = weights[i - first] ?? 0;
        span.style.setProperty("--weight", (0.9 * weight / largest).toFixed(3));
    });
    $("seen").hidden = false;
    const token = name_of(position).trim();
    $("seen_title").textContent = weights.length
        ? `Block ${block}, head ${head}: what \u201c${token}\u201d attends to`
        : `\u201c${token}\u201d is not being read, so it attends to nothing`;
    const ranked = [...weights.keys()].sort((i, j) => weights[j] - weights[i]).slice(0, 5);
    $("weights_list").replaceChildren(...ranked.map(i =>
        row("li", name_of(first + i), weights[i])));
}

function change_view() {
    const attention = view() === "attention";
    $("story").className = view();
    $("heads").hidden = !attention;
    $("seen").hidden = true;
    ask_attention();
}

// A classifier's verdict

let moved = [];

function show_verdict({label, probs, runs, tokens, read}) {
    $("judged").hidden = false;
    $("most").textContent = "";
    $("verdict").textContent = info.labels[label];
    $("classes").replaceChildren(...probs.map((share, i) => row("li", info.labels[i], share)));
    moved = runs.map(() => 0);
    $("moved").replaceChildren(...runs.map(run => {
        const span = document.createElement("span");
        span.textContent = run;
        return span;
    }));
    const keys = ["for", "against"].map(side => {
        const key = document.createElement("span");
        key.className = "key";
        key.style.background = `rgb(var(--${side}))`;
        return key;
    });
    const cut = read < tokens ? ` Only the first ${read} of its ${tokens} tokens were read.` : "";
    $("legend").replaceChildren(
        keys[0], `speaks for \u201c${info.labels[label]}\u201d   `, keys[1],
        "speaks against it. Each part of the text is left out once; its colour says how " +
        `far that moves the log-odds.${cut}`);
}

function show_moved({i, by}) {
    moved[i] = by;
    const largest = Math.max(0.5, ...moved.map(Math.abs));
    moved.forEach((by, i) => {
        const span = $("moved").children[i];
        span.style.setProperty("--color", `var(--${by > 0 ? "for" : "against"})`);
        span.style.setProperty("--weight", (0.8 * Math.abs(by) / largest).toFixed(3));
        span.title = signed(by);
    });
}

const signed = by => `${by > 0 ? "+" : ""}${by.toFixed(2)}`;

// In words, for those who cannot see the colours or point at them.
function show_most() {
    const order = [...moved.keys()].sort((i, j) => Math.abs(moved[j]) - Math.abs(moved[i]));
    const most = order.slice(0, 5).map(i =>
        `\u201c${$("moved").children[i].textContent.trim()}\u201d ${signed(moved[i])}`);
    $("most").textContent = most.length ? `Moved most by ${most.join(", ")}.` : "";
    return $("most").textContent;
}

if (info.kind !== "judge") {
    $("views").onchange = change_view;
    $("block").onchange = $("head").onchange = ask_attention;
}
addEventListener("DOMContentLoaded", start);
