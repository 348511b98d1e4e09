// LibreChat's client packages at the service of the tests, in one process: loading them takes long.
//
// Each line on stdin, ["action" | "mcp" | "markdown", ...arguments] in JSON, is answered by a line
// of JSON on stdout, in turn. What is thrown ends the process, with its trace on stderr.

import { createInterface } from 'node:readline';
import { action } from './action.mjs';
import { markdown } from './markdown.mjs';
import { mcp } from './mcp.mjs';

const clients = { action, markdown, mcp };
for await (const line of createInterface({ input: process.stdin, crlfDelay: Infinity })) {
  const [name, ...given] = JSON.parse(line);
  process.stdout.write(`${JSON.stringify(await clients[name](...given))}\n`);
}
