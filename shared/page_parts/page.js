// The page: what one sees and presses. The model works in a worker, worker.js.
"use strict";

const $ = id => document.getElementById(id);
const info = JSON.parse($("info").textContent);
const say = (text, error = false) => {
    $("status").textContent = text;
    $("status").hidden = !text;
    $("status").classList.toggle("error", error);
};
const WORDS = {
    tell: {asked: "Write a beginning", go: "Tell"},
    ask: {asked: "Ask it something", go: "Ask"},
    judge: {asked: "Write a text to judge", go: "Judge"},
}[info.kind];

let worker;
let ids = [], texts = [], skipped = 0;  // the text's tokens; how many are not read
let told = new Set();  // the positions of those that the model wrote
let job = 0, running = false, ended = false;
let chosen = -1;  // the token that was clicked; -1: none
let unspoken = "";
let frame, latest = [];  // the next look at the newest token, and its bars

function start() {
    $("asked").textContent = WORDS.asked;
    $("go").textContent = WORDS.go;
    for (const part of document.querySelectorAll("[class*=for-]"))
        if (!part.classList.contains(`for-${info.kind}`)) part.remove();
    if (info.kind === "ask") $("temperature").value = $("temperature").defaultValue = 0;
    const blob = new Blob([$("engine").textContent], {type: "text/javascript"});
    try {
        worker = new Worker(URL.createObjectURL(blob));
    } catch {
        return say("This browser starts no worker from a file. Open the page in Chrome, " +
                   "Edge, Firefox or Safari.", true);
    }
    worker.onerror = event => say(`The model stopped: ${event.message}`, true);
    worker.onmessage = ({data}) => {
        if (data.job === undefined || data.job === job) ANSWERS[data.is](data);
    };
    say("Unpacking the model ...");
    worker.postMessage({do: "load", info, weights: $("weights")?.textContent ?? ""});
    $("weights")?.remove();
}

const ANSWERS = {
    ready() {
        say("");
        document.querySelector("main").hidden = false;
        if (info.kind === "judge") return;
        fill($("block"), info.cfg.n_layers);
        fill($("head"), info.cfg.n_heads);
        change_view();  // after a reload, some browsers keep what was chosen
    },
    reading({done, all}) {
        if (done > 32 && $("end")) $("end").textContent = `reading, ${done} of ${all} tokens ...`;
    },
    begun(data) {
        [ids, texts, skipped] = [data.ids, data.pieces, data.skipped];
        ended = false;
        show_story();
        note_length();
    },
    token(data) {
        told.add(ids.length);
        ids.push(data.id);
        texts.push(data.piece);
        skipped = data.skipped;
        add_token(ids.length - 1);
        speak(data.piece);
        latest = data.bars;
        frame ??= requestAnimationFrame(show_latest);
    },
    done({why, told, seconds, bars}) {
        running = false;
        if (frame !== undefined) cancelAnimationFrame(frame);
        buttons();
        if (why === "judged") return speak("", `${$("verdict").textContent}. ${show_most()}`);
        ended = why === "end";
        const speed = told > 1 && seconds > 0 ? `, ${(told / seconds).toFixed(0)} a second` : "";
        $("end").textContent = {
            end: "The end", stop: "Stopped", length: "As many tokens as asked for",
            room: "No room for more",
        }[why] + ` (${told} tokens${speed})` + read_note();
        speak("", `${$("end").textContent}.`);
        buttons();
        show_latest();
        if (ended && chosen < 0) show_bars(bars, ids.length);
    },
    bars({position, bars}) {
        if (position === chosen) show_bars(bars, position);
    },
    attention: data => show_attention(data),
    verdict: data => show_verdict(data),
    moved: data => show_moved(data),
    error({of, text}) {
        running = false;
        if ($("end")) $("end").textContent = "";
        say(text, true);
        if (of !== "load") buttons();
    },
};

const read_note = () => skipped ? `; the model has room for ${info.cfg.context_length} ` +
    `tokens and no longer reads the first ${skipped}` : "";
const note_length = () => {
    $("end").textContent = `${ids.length} tokens${read_note()}`;
};

// What changes with each token, but not more often than the screen is drawn.
function show_latest() {
    frame = undefined;
    if (running) note_length();
    if (chosen >= 0) return;
    if (latest.length) show_bars(latest, ids.length - 1);
    ask_attention();
}

function fill(select, n) {
    for (let i = 0; i < n; i++) select.add(new Option(String(i), String(i)));
}

function buttons() {
    const on_stop = document.activeElement === $("stop");
    $("stop").disabled = !running;
    if (on_stop && !running) $("go").focus();  // keys would go nowhere otherwise
    if (info.kind === "judge") return;
    $("more").disabled = running || ended || !ids.length;
    $("copy").disabled = !ids.length;
}

// A number of the settings, or the nearest one that is allowed; nonsense is the default.
function setting(id) {
    const field = $(id), number = field.valueAsNumber;
    const clean = Number.isFinite(number) ? number : Number(field.defaultValue);
    const whole = field.step === "1" ? Math.round(clean) : clean;
    const value = Math.min(Number(field.max || Infinity), Math.max(Number(field.min), whole));
    field.value = value;
    return value;
}

// Ask the worker to go on after what was typed, or after ids.
function tell(start) {
    begin();
    choose(-1);
    $("end").textContent = "";
    const settings = {slowly: $("slowly").checked};
    for (const name of ["temperature", "top_k", "top_p", "seed"]) settings[name] = setting(name);
    worker.postMessage({do: "tell", job, settings, n: setting("length"), ...start});
}

// A new job.
function begin() {
    say("");
    job += 1;
    running = true;
    ended = false;
    unspoken = "";
    latest = [];
    buttons();
}

$("form").onsubmit = event => {
    event.preventDefault();
    if (running || !worker) return;
    const text = $("beginning").value;
    if (info.kind !== "tell" && !text.trim()) return say(`${WORDS.asked} first, please.`, true);
    if (info.kind === "judge") {
        begin();
        return worker.postMessage({do: "judge", job, text});
    }
    if ($("fresh").checked && ids.length) $("seed").value = Math.floor(Math.random() * 1e6);
    told = new Set();
    tell({text, about: $("matter")?.value});
};
$("stop").onclick = () => {
    worker.postMessage({do: "stop"});
    if (info.kind === "judge") {
        running = false;
        buttons();
    }
};
$("more").onclick = () => tell({ids: ids.slice()});
$("copy").onclick = async () => {
    const text = texts.join("").trim();
    try {
        await navigator.clipboard.writeText(text);
    } catch {  // some browsers refuse that to a file
        const field = document.createElement("textarea");
        field.value = text;
        document.body.append(field);
        field.select();
        document.execCommand("copy");
        field.remove();
        $("copy").focus();
    }
    $("copy").textContent = "Copied";
    setTimeout(() => { $("copy").textContent = "Copy the text"; }, 2000);
};
$("beginning").onkeydown = event => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) $("form").requestSubmit();
};

// The text

const tokens = () => $("story").children;

function new_token(i) {
    const span = document.createElement("span");
    span.textContent = texts[i];
    span.className = `t${i % 5}${told.has(i) ? "" : " given"}`;
    if (/^\n+$/.test(texts[i])) span.classList.add("newline");  // else there is no colour
    span.tabIndex = -1;
    span.setAttribute("role", "button");
    return span;
}

function show_story() {
    $("story").replaceChildren(...ids.map((_, i) => new_token(i)));
    if (tokens()[0]) tokens()[0].tabIndex = 0;
}

function add_token(i) {
    $("story").append(new_token(i));
    if (i === 0) tokens()[0].tabIndex = 0;
}

// Screen readers hear whole sentences.
function speak(piece, last = "") {
    unspoken += piece;
    const end = last ? unspoken.length : unspoken.search(/[.!?]["\u201d\u2019']?\s/) + 1;
    if (!end && !last) return;
    const line = document.createElement("p");
    line.textContent = `${unspoken.slice(0, end)} ${last}`;
    $("spoken").append(line);
    while ($("spoken").children.length > 6) $("spoken").firstChild.remove();
    unspoken = unspoken.slice(end);
}

// Choose a token, by a click or by keys; -1 chooses none.
function choose(i) {
    tokens()[chosen]?.classList.remove("chosen");
    tokens()[chosen]?.removeAttribute("aria-pressed");
    chosen = i;
    const span = tokens()[i];
    for (const other of $("story").querySelectorAll("[tabindex='0']")) other.tabIndex = -1;
    if (span) {
        span.classList.add("chosen");
        span.setAttribute("aria-pressed", "true");
        span.tabIndex = 0;
        worker.postMessage({do: "bars", position: i, skipped});
    } else if (tokens()[0]) {
        tokens()[0].tabIndex = 0;
    }
    ask_attention();
}

$("story").onclick = event => {
    const i = Array.prototype.indexOf.call(tokens(), event.target);
    if (i < 0) return;
    choose(i === chosen ? -1 : i);
    // On a phone the bars stand below the text, perhaps far below.
    if (chosen >= 0 && innerWidth < 1000) $("look").scrollIntoView({block: "nearest"});
};
$("story").onkeydown = event => {
    const i = Array.prototype.indexOf.call(tokens(), document.activeElement);
    const steps = {ArrowLeft: -1, ArrowRight: 1, ArrowUp: -10, ArrowDown: 10,
                   Home: -Infinity, End: Infinity};
    if (i < 0) return;
    if (event.key in steps) {
        const to = Math.min(tokens().length - 1, Math.max(0, i + steps[event.key]));
        tokens()[i].tabIndex = -1;
        tokens()[to].tabIndex = 0;
        tokens()[to].focus();
    } else if (event.key === "Enter" || event.key === " ") {
        choose(i);
    } else if (event.key === "Escape") {
        choose(-1);
    } else {
        return;
    }
    event.preventDefault();
};
