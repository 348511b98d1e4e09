// Uploads that the service refuses while they are still being sent.
// Reads {url, client, count, sizeBytes, headers} as JSON from stdin; prints for each of
// `count` uploads at once what its client makes of it: a status, or an error's text.
import { readFileSync } from 'node:fs';
import { Agent } from 'node:http';
import { createRequire } from 'node:module';
import { PassThrough, Readable } from 'node:stream';

const require = createRequire(import.meta.url);
const axios = require('axios');
const FormData = require('form-data');
const fetch = require('node-fetch');
const undici = require('undici');

const { url, client, count, sizeBytes, headers } = JSON.parse(readFileSync(0, 'utf8'));

// In pieces, as a file is read.
function* pieces() {
  const piece = Buffer.alloc(64 * 1024, 'x');
  for (let sent = 0; sent < sizeBytes; sent += piece.length) {
    yield piece;
  }
}

function form() {
  const made = new FormData();
  made.append('kind', 'user');
  made.append('id', 'u1');
  made.append('file', Readable.from(pieces()), { filename: 'a.csv' });
  return made;
}

const pooled = new Agent({ keepAlive: true });
const clients = {
  // As LibreChat's server sends it.
  async axios() {
    const body = form();
    const options = {
      headers: { ...body.getHeaders(), ...headers },
      maxContentLength: Infinity,
      maxBodyLength: Infinity,
      validateStatus: () => true,
    };
    return (await axios.post(url, body, options)).status;
  },
  async axiosPooled() {
    const body = form();
    const options = {
      headers: { ...body.getHeaders(), ...headers },
      httpAgent: pooled,
      maxBodyLength: Infinity,
      validateStatus: () => true,
    };
    return (await axios.post(url, body, options)).status;
  },
  async nodeFetch() {
    const body = form();
    const options = { method: 'POST', body, headers: { ...body.getHeaders(), ...headers } };
    const answer = await fetch(url, options);
    await answer.text();
    return answer.status;
  },
  async undici() {
    const body = form();
    const options = {
      method: 'POST',
      // form-data's stream is an old one, which undici does not take.
      body: Readable.from(body.pipe(new PassThrough())),
      headers: { ...body.getHeaders(), ...headers },
    };
    const answer = await undici.request(url, options);
    await answer.body.text();
    return answer.statusCode;
  },
};
const upload = () => clients[client]().catch((error) => String(error.cause ?? error));
console.log(JSON.stringify(await Promise.all(Array.from({ length: count }, upload))));
process.exit(0);
