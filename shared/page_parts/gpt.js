// Chapter 4 in JavaScript: the model reads one token at a time, and a cache keeps what
// it has read. Names are those of the course: C is the width of a token's vector, H the
// number of heads, D the width of a head, V the size of the vocabulary. Vectors are
// arrays of float32; nothing here knows of a page.
"use strict";

// The bytes that a text in base64 stands for; spaces and ends of lines do not count.
function base64_bytes(text) {
    const digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    const value = new Uint8Array(128).fill(255);
    for (let i = 0; i < 64; i++) value[digits.charCodeAt(i)] = i;
    const bytes = new Uint8Array(Math.ceil(text.length * 3 / 4));
    let length = 0, bits = 0, kept = 0;
    for (let i = 0; i < text.length; i++) {
        const digit = value[text.charCodeAt(i) & 127];
        if (digit === 255) continue;
        bits = (bits & 0xfff) << 6 | digit;
        kept += 6;
        if (kept >= 8) bytes[length++] = bits >> (kept -= 8) & 255;
    }
    return bytes.slice(0, length);  // a copy, which begins where float32 may begin
}

// Adler's checksum, as Python's zlib.adler32 has it: were all bytes received?
function adler32(bytes) {
    let a = 1, b = 0;
    for (let i = 0; i < bytes.length;) {
        const end = Math.min(i + 3000, bytes.length);  // b stays below 2 ** 31
        for (; i < end; i++) b += a += bytes[i];
        a %= 65521;
        b %= 65521;
    }
    return (b << 16 | a) >>> 0;
}

// A matrix in int8, and a scale for each row: number = scale * int8.
class Matrix {
    constructor(rows, columns, numbers, scale) {
        Object.assign(this, {rows, columns, numbers, scale});
    }

    // One row as numbers: what an embedding gives for an id.
    row(i) {
        const start = i * this.columns, scale = this.scale[i];
        return Float32Array.from(
            this.numbers.subarray(start, start + this.columns), q => scale * q);
    }

    // The product with a vector x (columns) -> (rows), plus a bias if there is one.
    times(x, bias) {
        const {rows, columns, numbers, scale} = this, y = new Float32Array(rows);
        const even = columns - columns % 4;
        for (let row = 0, at = 0; row < rows; row++, at += columns) {
            let a = 0, b = 0, c = 0, d = 0, i = 0;  // four sums: the processor adds
            for (; i < even; i += 4) {              // them side by side
                a += numbers[at + i] * x[i];
                b += numbers[at + i + 1] * x[i + 1];
                c += numbers[at + i + 2] * x[i + 2];
                d += numbers[at + i + 3] * x[i + 3];
            }
            for (; i < columns; i++) a += numbers[at + i] * x[i];
            y[row] = scale[row] * (a + b + c + d) + (bias ? bias[row] : 0);
        }
        return y;
    }
}

// Scores to probabilities that add up to 1.
function softmax(scores) {
    const weights = new Float32Array(scores.length);
    let largest = -Infinity, sum = 0;
    for (const score of scores) if (score > largest) largest = score;
    for (let i = 0; i < scores.length; i++) sum += weights[i] = Math.exp(scores[i] - largest);
    for (let i = 0; i < scores.length; i++) weights[i] /= sum;
    return weights;
}

class LayerNorm {
    constructor(parameters, name) {
        this.scale = parameters[`${name}.scale`];
        this.shift = parameters[`${name}.shift`];
    }

    forward(x) {
        let mean = 0, variance = 0;
        for (const number of x) mean += number / x.length;
        for (const number of x) variance += (number - mean) ** 2 / x.length;
        const norm = 1 / Math.sqrt(variance + 1e-5);
        return x.map((number, i) => (number - mean) * norm * this.scale[i] + this.shift[i]);
    }
}

class Linear {
    constructor(parameters, name) {
        this.weight = parameters[`${name}.weight`];
        this.bias = parameters[`${name}.bias`];  // undefined if there is none
    }

    forward(x) {
        return this.weight.times(x, this.bias);
    }
}

// The smooth nonlinearity, in the tanh form that GPT-2 was trained with.
function GELU(x) {
    const slope = Math.sqrt(2 / Math.PI);
    return x.map(z => 0.5 * z * (1 + Math.tanh(slope * (z + 0.044715 * z ** 3))));
}

// Keys and values of the tokens that a layer has read. It keeps the queries too, only
// so that the page can show what each token attended to.
class KVCache {
    constructor(C) {
        this.C = C;
        this.room = 0;
        this.keys = this.values = this.queries = new Float32Array(0);
    }

    append(position, query, key, value) {
        if (position >= this.room) {  // make twice the room
            this.room = Math.max(64, 2 * this.room);
            for (const name of ["keys", "values", "queries"]) {
                const larger = new Float32Array(this.room * this.C);
                larger.set(this[name]);
                this[name] = larger;
            }
        }
        this.queries.set(query, position * this.C);
        this.keys.set(key, position * this.C);
        this.values.set(value, position * this.C);
    }
}

class MultiHeadAttention {
    constructor(parameters, name, H, C) {
        Object.assign(this, {H, C, D: C / H, cache: new KVCache(C)});
        for (const part of ["W_query", "W_key", "W_value", "out_proj"])
            this[part] = new Linear(parameters, `${name}.${part}`);
    }

    // How much the token at a position attends to each token up to itself.
    weights(head, position) {
        const {C, D} = this, {queries, keys} = this.cache;
        const scores = new Float32Array(position + 1);
        const query = position * C + head * D;
        for (let t = 0; t <= position; t++) {
            let score = 0;
            for (let i = 0; i < D; i++) score += queries[query + i] * keys[t * C + head * D + i];
            scores[t] = score / Math.sqrt(D);
        }
        return softmax(scores);
    }

    forward(x, position) {
        const {H, C, D, cache} = this;
        cache.append(position, this.W_query.forward(x), this.W_key.forward(x),
                     this.W_value.forward(x));
        const context = new Float32Array(C);
        for (let head = 0; head < H; head++) {
            const weights = this.weights(head, position);
            for (let t = 0; t <= position; t++)
                for (let i = head * D; i < (head + 1) * D; i++)
                    context[i] += weights[t] * cache.values[t * C + i];
        }
        return this.out_proj.forward(context);
    }
}

// Widen each token's vector to 4C, apply GELU, narrow it.
class FeedForward {
    constructor(parameters, name) {
        this.layers = [
            new Linear(parameters, `${name}.layers.0`),
            {forward: GELU},
            new Linear(parameters, `${name}.layers.2`),
        ];
    }

    forward(x) {
        return this.layers.reduce((x, layer) => layer.forward(x), x);
    }
}

const plus = (x, y) => x.map((number, i) => number + y[i]);

// Attention, then a feed-forward network: each after a norm, inside a shortcut.
class TransformerBlock {
    constructor(parameters, name, cfg) {
        this.att = new MultiHeadAttention(
            parameters, `${name}.att`, cfg.n_heads, cfg.emb_dim);
        this.ff = new FeedForward(parameters, `${name}.ff`);
        this.norm1 = new LayerNorm(parameters, `${name}.norm1`);
        this.norm2 = new LayerNorm(parameters, `${name}.norm2`);
    }

    forward(x, position) {
        x = plus(x, this.att.forward(this.norm1.forward(x), position));
        return plus(x, this.ff.forward(this.norm2.forward(x)));
    }
}

class GPTModel {
    // layout: name, shape and place in `bytes` of each parameter, as page.py wrote them.
    constructor(cfg, layout, bytes) {
        this.cfg = cfg;
        const parameters = {};
        for (const {name, shape, at, scale_at} of layout) {
            const [rows, columns] = shape;
            const floats = where => new Float32Array(bytes.buffer, where, rows);
            parameters[name] = columns === undefined ? floats(at) : new Matrix(
                rows, columns, new Int8Array(bytes.buffer, at, rows * columns),
                floats(scale_at));
        }
        this.tok_emb = parameters["tok_emb.weight"];
        this.pos_emb = parameters["pos_emb.weight"];
        this.trf_blocks = Array.from({length: cfg.n_layers}, (_, n) =>
            new TransformerBlock(parameters, `trf_blocks.${n}`, cfg));
        this.final_norm = new LayerNorm(parameters, "final_norm");
        parameters["out_head.weight"] ??= this.tok_emb;  // tied
        this.out_head = new Linear(parameters, "out_head");
        this.ids = [];  // the tokens in the cache,
        this.hidden = [];  // and the vector at each that the output head reads
    }

    // Read one more token: its id, at the position after those in the cache.
    read(id) {
        const position = this.ids.length;
        let x = plus(this.tok_emb.row(id), this.pos_emb.row(position));
        for (const block of this.trf_blocks) x = block.forward(x, position);
        this.ids.push(id);
        this.hidden.push(this.final_norm.forward(x));
    }

    // Forget what was read from a position on.
    cut(length) {
        this.ids.length = this.hidden.length = Math.min(length, this.ids.length);
    }

    // The logits (V) of the tokens that may follow the one at a position; a classifier's
    // are those of its classes.
    logits(position) {
        return this.out_head.forward(this.hidden[position]);
    }
}
