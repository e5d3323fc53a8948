// Chapters 5 to 7 in JavaScript: how the next token is drawn, what a classifier says, and
// how a question is put.
"use strict";

// The distribution from which the next token is drawn, as in chapter 5: the temperature
// divides the logits, the top_k likeliest are kept, of these those that reach top_p.
// Returns pairs of an id and its probability.
function next_token_probabilities(logits, {temperature, top_k, top_p}) {
    const best = likeliest(logits, 1)[0];
    if (temperature === 0) return [[best, 1]];
    const probs = softmax(logits.map(x => (x - logits[best]) / temperature));
    const ranked = probs.slice().sort().reverse();  // numbers alone: that is fast
    const n = top_k ? Math.min(top_k, ranked.length) : ranked.length;
    const all = ranked.subarray(0, n).reduce((sum, chance) => sum + chance, 0);
    const enough = top_p && top_p < 1 ? top_p * all : Infinity;
    let kept = 0, sum = 0;
    while (kept < n && ranked[kept] > 0 && sum < enough) sum += ranked[kept++];
    const least = ranked[kept - 1], pairs = [];
    let equals = ranked.subarray(0, kept).filter(chance => chance === least).length;
    probs.forEach((chance, id) => {
        if (chance > least || chance === least && equals-- > 0) pairs.push([id, chance / sum]);
    });
    return pairs;
}

// Numbers from 0 to 1, the same for the same seed: Marsaglia (2003), Xorshift RNGs.
function random_numbers(seed) {
    let state = (Math.imul(seed, 0x9e3779b1) ^ 0x6c078965) | 0 || 1;
    const next = () => {
        state ^= state << 13;
        state ^= state >>> 17;
        state ^= state << 5;
        return (state >>> 0) / 2 ** 32;
    };
    for (let i = 0; i < 16; i++) next();  // seeds that are neighbours part ways
    return next;
}

// Draw one of the pairs of an id and its probability.
function draw(pairs, random) {
    let rest = random();
    for (const [id, chance] of pairs) if ((rest -= chance) < 0) return id;
    return pairs[0][0];
}

// The likeliest n of the probabilities: their ids, the likeliest first.
function likeliest(probs, n) {
    const best = [];
    for (let id = 0; id < probs.length; id++) {
        if (best.length === n && probs[id] <= probs[best[n - 1]]) continue;
        best.push(id);
        best.sort((i, j) => probs[j] - probs[i] || i - j);
        best.length = Math.min(best.length, n);
    }
    return best;
}

// The words of a text, each with the spaces around it; if there are more than `most`, in
// runs of as many words. Joined they are the text.
function runs_of_words(text, most) {
    const words = text.match(/\s*\S+\s*/gu) ?? [];
    const size = Math.max(1, Math.ceil(words.length / most)), runs = [];
    for (let i = 0; i < words.length; i += size) runs.push(words.slice(i, i + size).join(""));
    return runs;
}

// How likely a class is, on a scale on which 0 is even and each 1 more is e times that.
// Probabilities near 1 all look alike; their log-odds do not.
function log_odds(logits, label) {
    const others = Array.from(logits).filter((_, i) => i !== label);
    const largest = Math.max(...others);
    const sum = others.reduce((sum, x) => sum + Math.exp(x - largest), 0);
    return logits[label] - largest - Math.log(sum);
}

// Chapter 7's prompt of a question, and of a text that it is about, if there is one.
function format_prompt([before, between, after], question, text) {
    return before + question + (text ? between + text : "") + after;
}
