// What runs beside the page, so that the page never freezes. It gets
//     {do: "load" | "tell" | "judge" | "stop" | "bars" | "attention", ...}
// and answers with {is: "ready" | "reading" | "begun" | "token" | "done" | "verdict" |
// "moved" | "bars" | "attention" | "error", ...}. A job is a number by which the page
// knows what belongs to what; "stop" or another job ends it.
"use strict";

const BARS = 8;  // how many of the likeliest next tokens are shown
const MOST_LEFT_OUT = 40;  // how often a text is read again without some of its words
let model, tokenizer, info, end_id, current = 0;

// A short wait, in which messages such as "stop" arrive.
const channel = new MessageChannel();
const pause = () => new Promise(resolve => {
    channel.port1.onmessage = resolve;
    channel.port2.postMessage(null);
});
const wait = ms => new Promise(resolve => setTimeout(resolve, ms));

// The text of each token; a letter of several tokens belongs to the last of them. The
// token between two texts shows nothing.
const new_decoder = () => new TextDecoder("utf-8", {ignoreBOM: true});
function pieces(ids, decoder = new_decoder()) {
    return ids.map(id => id === end_id ? ""
        : decoder.decode(tokenizer.decode_bytes([id]), {stream: true}));
}

function load(data) {
    info = data.info;
    const bytes = base64_bytes(data.weights);
    if (bytes.length !== info.bytes || adler32(bytes) !== info.adler32)
        throw new Error(
            `This file is damaged: ${bytes.length.toLocaleString("en")} of ` +
            `${info.bytes.toLocaleString("en")} bytes of the model are there` +
            (bytes.length === info.bytes ? ", but some have changed" : "") +
            ". Copy or send the file once more.");
    model = new GPTModel(info.cfg, info.layout, bytes);
    tokenizer = new BPETokenizer(info.tokenizer);
    end_id = tokenizer.special_tokens["<|endoftext|>"];
    postMessage({is: "ready"});
}

// Read tokens until the cache holds these ids; what it has of them already stays. False
// if another job has come in between.
async function read_all(ids, job) {
    let same = 0;
    while (same < ids.length && model.ids[same] === ids[same]) same++;
    model.cut(same);
    for (let i = same; i < ids.length; i++) {
        if (i % 16 === 0) postMessage({is: "reading", job, done: i, all: ids.length});
        model.read(ids[i]);
        if (i % 4 === 0) await pause();
        if (job !== current) return false;
    }
    return true;
}

// The ids that a story or an answer begins with, from what was typed.
function beginning({text, about}) {
    if (info.prompt === null) {
        const ids = tokenizer.encode_ordinary(text);
        if (end_id !== undefined && (info.end_first || !ids.length)) ids.unshift(end_id);
        if (!ids.length) throw new Error("Write a beginning, please: this model needs one.");
        return ids;
    }
    const ids = tokenizer.encode_ordinary(format_prompt(info.prompt, text, about));
    const room = model.cfg.context_length;
    if (ids.length > room - 8)
        throw new Error(`With your question there are ${ids.length} tokens, and with an ` +
                        `answer there is room for ${room}. Shorten it, please.`);
    return ids;
}

// Go on after `ids`, or after what was typed, for n tokens at most. A story that is longer
// than the context is read from its later half on; an answer ends there.
async function tell({job, settings, n, ...typed}) {
    current = job;
    const room = model.cfg.context_length, half = Math.ceil(room / 2);
    const ids = typed.ids ?? beginning(typed);
    let skipped = ids.length > room ? ids.length - half : 0;  // tokens that are not read
    const decoder = new_decoder(), random = random_numbers(settings.seed);
    postMessage({is: "begun", job, ids, pieces: pieces(ids, decoder), skipped});
    let told = 0, why = "length", last = null, reading = 0;
    const started = Date.now();
    for (; told < n; told++) {
        if (ids.length - skipped > room) skipped = ids.length - half;  // it is full
        const before = Date.now();
        if (!await read_all(ids.slice(skipped), job)) { why = "stop"; break; }
        if (told === 0) reading = Date.now() - before;
        if (info.prompt && ids.length >= room) { why = "room"; break; }
        const logits = model.logits(model.ids.length - 1);
        const id = draw(next_token_probabilities(logits, settings), random);
        if (id === end_id) { why = "end"; last = bars(logits); break; }
        ids.push(id);
        const [piece] = pieces([id], decoder);
        postMessage({is: "token", job, id, piece, bars: bars(logits), skipped});
        await (settings.slowly ? wait(400) : pause());
        if (job !== current) { why = "stop"; told++; break; }
    }
    const seconds = (Date.now() - started - reading) / 1000;
    // The last token has been written but not read; it is, so that one can see what it
    // attends to.
    if (why === "length" && ids.length - skipped <= room)
        await read_all(ids.slice(skipped), job);
    postMessage({is: "done", job, why, told, seconds, bars: last});
}

// The likeliest tokens, with their probabilities before any temperature.
function bars(logits) {
    const probs = softmax(logits);
    return likeliest(probs, BARS).map(id => ({id, share: probs[id],
        text: id === end_id ? "(the end)" : pieces([id])[0] || "\u00b7"}));
}

// A classifier's verdict, then how far each word moved it: how much less likely the class
// is if the word is left out.
async function judge({job, text}) {
    current = job;
    const room = model.cfg.context_length, pad = end_id ?? 0;
    const encode = text => {
        const ids = tokenizer.encode_ordinary(text).slice(0, room);
        return ids.length ? ids : [pad];
    };
    const logits = async text => {
        const ids = encode(text);
        return await read_all(ids, job) ? model.logits(ids.length - 1) : null;
    };
    const whole = await logits(text);
    if (whole === null) return;
    const label = likeliest(whole, 1)[0], odds = log_odds(whole, label);
    const runs = runs_of_words(text, MOST_LEFT_OUT);
    const tokens = tokenizer.encode_ordinary(text).length;
    postMessage({is: "verdict", job, label, probs: Array.from(softmax(whole)), runs,
                 tokens, read: Math.min(tokens, room)});
    for (let i = 0; i < runs.length; i++) {
        const without = await logits(runs.filter((_, j) => j !== i).join(""));
        if (without === null) return;
        postMessage({is: "moved", job, i, by: odds - log_odds(without, label)});
    }
    postMessage({is: "done", job, why: "judged"});
}

const TASKS = {
    load,
    tell,
    judge,
    stop: () => { current = 0; },
    bars: ({position, skipped}) => {
        const place = position - 1 - skipped;
        const known = place >= 0 && place < model.ids.length;
        postMessage({is: "bars", position, bars: known ? bars(model.logits(place)) : []});
    },
    attention: ({position, skipped, block, head}) => {
        const place = position - skipped, known = place >= 0 && place < model.ids.length;
        const weights = known ? model.trf_blocks[block].att.weights(head, place) : [];
        postMessage({is: "attention", position, skipped, block, head,
                     weights: Array.from(weights)});
    },
};

onmessage = async ({data}) => {
    try {
        await TASKS[data.do](data);
    } catch (error) {
        postMessage({is: "error", of: data.do, job: data.job, text: error.message});
    }
};
