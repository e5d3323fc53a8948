// Chapter 2b in JavaScript: a text to ids, and back. LETTER, NUMBER and SPACE are in
// unicode.js, so that every browser cuts a text in the same way, old ones too.
"use strict";

const OTHER = `[^${SPACE}${LETTER}${NUMBER}]`;
const WORD = new RegExp(
    "'(?:[sdmt]|ll|ve|re)" +
    `| ?[${LETTER}]+| ?[${NUMBER}]+| ?${OTHER}+` +
    `|[${SPACE}]+(?![^${SPACE}])|[${SPACE}]+`, "gu");

// The UTF-8 bytes of a text; half of a surrogate pair becomes U+FFFD.
function utf8(text) {
    const bytes = [];
    for (const letter of text) {
        let code = letter.codePointAt(0);
        if (code >= 0xd800 && code < 0xe000) code = 0xfffd;
        const tail = code < 0x80 ? 0 : code < 0x800 ? 1 : code < 0x10000 ? 2 : 3;
        const head = [0, 0xc0, 0xe0, 0xf0][tail];
        bytes.push(head | code >> 6 * tail);
        for (let i = tail - 1; i >= 0; i--) bytes.push(0x80 | code >> 6 * i & 0x3f);
    }
    return bytes;
}

class BPETokenizer {
    // tables: byte_ids[byte] is an id; merges is left, right, new id, left, right, ...
    constructor(tables) {
        this.byte_ids = tables.byte_ids;
        this.special_tokens = tables.special_tokens;
        this.vocab = new Map();  // id: its bytes
        this.merges = new Map();  // left and right id in one number: the new id
        this.byte_ids.forEach((id, byte) => this.vocab.set(id, [byte]));
        for (let i = 0; i < tables.merges.length; i += 3) {
            const [left, right, id] = tables.merges.slice(i, i + 3);
            this.merges.set(left * 2 ** 24 + right, id);
            this.vocab.set(id, [...this.vocab.get(left), ...this.vocab.get(right)]);
        }
        for (const [text, id] of Object.entries(this.special_tokens))
            this.vocab.set(id, utf8(text));
    }

    // The id that a pair of neighbours becomes, or Infinity if they stay apart.
    merged(ids, i) {
        if (i + 1 >= ids.length) return Infinity;
        return this.merges.get(ids[i] * 2 ** 24 + ids[i + 1]) ?? Infinity;
    }

    // Merge the pairs of a word, the first learned first, each from left to right.
    encode_word(word) {
        const ids = utf8(word).map(byte => this.byte_ids[byte]);
        const next = ids.map((_, i) => this.merged(ids, i));
        while (true) {
            let best = 0;
            for (let i = 1; i < next.length; i++) if (next[i] < next[best]) best = i;
            if (!(next[best] < Infinity)) return ids;
            ids.splice(best, 2, next[best]);
            next.splice(best, 1);
            next[best] = this.merged(ids, best);
            if (best > 0) next[best - 1] = this.merged(ids, best - 1);
        }
    }

    // The ids of a text in which special tokens have no meaning.
    encode_ordinary(text) {
        return [...text.matchAll(WORD)].flatMap(match => this.encode_word(match[0]));
    }

    // The bytes that the ids stand for; they need not be whole letters.
    decode_bytes(ids) {
        return Uint8Array.from(ids.flatMap(id => this.vocab.get(id) ?? []));
    }
}
