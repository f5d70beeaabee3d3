// Reads jobs [{file: a tokenizer.json, texts: [...]}] from standard input and
// writes what the reference and its port to JavaScript say of each text:
//
//     node judge.js MODULES < jobs > answers
//
// MODULES is a node_modules folder with `tokenizers`, the reference's own binding,
// or `@huggingface/tokenizers`, the port. An answer has ids and decoded texts of
// each; null where that package is not there, and where the port gives an error or
// does not know a component. The port is not asked with {alone: true}. A job {patterns: [...], texts: [...]} asks for
// the pieces in which each regular expression cuts each text.
const fs = require('fs');
const path = require('path');

const load = (name) => {
  try {
    return require(path.resolve(process.argv[2], name));
  } catch {
    return null;
  }
};
const reference = load('tokenizers');
const port = load('@huggingface/tokenizers');

function pieces(pattern, texts) {
  const split = { type: 'Split', pattern: { Regex: pattern }, behavior: 'Isolated', invert: false };
  const model = { type: 'BPE', vocab: { a: 0 }, merges: [] };
  const t = reference.Tokenizer.fromString(JSON.stringify({ version: '1.0', added_tokens: [], pre_tokenizer: split, model }));
  const cut = t.getPreTokenizer();
  return texts.map((text) => cut.preTokenizeString(text).map((p) => p[0]));
}

async function answer(job) {
  if (job.patterns) {
    return { pieces: reference && job.patterns.map((p) => pieces(p, job.texts)) };
  }
  const out = { reference: null, decoded: null, port: null, portDecoded: null };
  if (reference) {
    const t = reference.Tokenizer.fromString(JSON.stringify(job.file));
    out.reference = [];
    out.decoded = [];
    for (const text of job.texts) {
      const ids = (await t.encode(text, null, { addSpecialTokens: true })).getIds();
      out.reference.push(ids);
      out.decoded.push(ids.length > 0 ? await t.decode(ids, false) : '');
    }
  }
  if (port && !job.alone) {
    try {
      const t = new port.Tokenizer(job.file, {});
      const pairs = job.texts.map((text) => {
        try {
          const ids = t.encode(text).ids;
          return [ids, t.decode(ids, { skip_special_tokens: false, clean_up_tokenization_spaces: false })];
        } catch {
          return [null, ''];
        }
      });
      out.port = pairs.map((p) => p[0]);
      out.portDecoded = pairs.map((p) => p[1]);
    } catch {
      // It does not know each component.
    }
  }
  return out;
}

(async () => {
  const answers = [];
  for (const job of JSON.parse(fs.readFileSync(0, 'utf8'))) answers.push(await answer(job));
  process.stdout.write(JSON.stringify(answers));
})();
