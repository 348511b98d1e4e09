// What MCP's own client makes of the service.
//
//     node client.mjs URL MODE ARGUMENTS…
//
// MODE is "legacy", "auto" or the version to which the client is pinned. The tool is called once for
// each ARGUMENTS, an object as JSON. A line on stdin cancels the call that is under way. Prints what
// came, as JSON.

import { Client, StreamableHTTPClientTransport } from '@modelcontextprotocol/client';

const [url, mode, ...calls] = process.argv.slice(2);
const requests = [];
const isName = mode === 'legacy' || mode === 'auto';
const client = new Client(
  { name: 'test', version: '1' },
  { versionNegotiation: { mode: isName ? mode : { pin: mode } } },
);
const transport = new StreamableHTTPClientTransport(new URL(url), {
  fetch: (address, init) => {
    const method = init.body ? JSON.parse(init.body).method : init.method;
    requests.push(method);
    return fetch(address, init);
  },
});
await client.connect(transport);
const { tools } = await client.listTools();
const before = [...requests];
const controller = new AbortController();
process.stdin.once('data', () => controller.abort());
const results = [];
for (const call of calls) {
  const request = { name: tools[0].name, arguments: JSON.parse(call) };
  try {
    results.push(await client.callTool(request, { signal: controller.signal }));
  } catch (error) {
    results.push({ failed: String(error) });
  }
}
const version = client.getNegotiatedProtocolVersion?.() ?? null;
const instructions = client.getInstructions() ?? null;
console.log(JSON.stringify({ version, instructions, tools, before, results }));
process.exit(0);
