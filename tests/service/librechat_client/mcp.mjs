// What LibreChat makes of the service when it is added as an MCP server.
//
// The client is the one that LibreChat uses, made as packages/api/src/mcp/connection.ts makes it.
// What LibreChat then does with a result is in its server, which is no package: see "glue".

import { Client } from '@modelcontextprotocol/sdk/client/index.js';
import { StreamableHTTPClientTransport } from '@modelcontextprotocol/sdk/client/streamableHttp.js';
import {
  CallToolResultSchema,
  LATEST_PROTOCOL_VERSION,
  SUPPORTED_PROTOCOL_VERSIONS,
} from '@modelcontextprotocol/sdk/types.js';

const REQUEST_TIMEOUT_MS = 60_000; // LibreChat's own when the stanza sets none

/** fetch, with a note of what went over the wire and a promise of its end. */
function recordingFetch(exchanges, underWay) {
  const fetchAndNote = async (url, init) => {
    const sent = new Headers(init.headers);
    const exchange = {
      method: init.method ?? 'GET',
      rpc: init.body ? (JSON.parse(init.body).method ?? null) : null,
      version_header: sent.get('mcp-protocol-version'),
      has_key: sent.has('authorization'),
    };
    exchanges.push(exchange);
    const response = await fetch(url, init);
    exchange.status = response.status;
    exchange.content_type = response.headers.get('content-type');
    exchange.session_id = response.headers.get('mcp-session-id');
    return response;
  };
  return (url, init) => {
    const answer = fetchAndNote(url, init);
    underWay.push(answer);
    return answer;
  };
}

// Glue: formatToolContent of packages/api/src/mcp/parsers.ts, for the two kinds of part that the
// service sends. `artifact` becomes the attachments under the tool call, and images for the model.
function formatForKnownProvider({ content }) {
  const text = content.filter((part) => part.type === 'text').map((part) => part.text);
  const images = content
    .filter((part) => part.type === 'image')
    .map(({ mimeType, data }) => ({
      type: 'image_url',
      image_url: { url: `data:${mimeType};base64,${data}` },
    }));
  return { seen: text.join('\n\n'), artifact: images.length ? { content: images } : null };
}

// Glue: parseAsString beside it, for vertexai, mistral, mistralai and moonshot.
function formatForOtherProvider({ content }) {
  return content
    .map((part) => (part.type === 'text' ? part.text : JSON.stringify(part, null, 2)))
    .join('\n\n');
}

/** Connects to <baseUrl>/mcp, pings, lists the tools, and calls the first tool once for each of
 * `inputs`, its arguments. `key` and `sessionId`, unless '', are sent as LibreChat sends a
 * stanza's `headers`. */
export async function mcp(baseUrl, inputs, key, sessionId) {
  const exchanges = [];
  const underWay = [];
  const transport = new StreamableHTTPClientTransport(new URL('/mcp', baseUrl), {
    requestInit: {
      headers: {
        ...(key ? { Authorization: `Bearer ${key}` } : {}),
        ...(sessionId ? { 'X-Session-Id': sessionId } : {}),
      },
    },
    fetch: recordingFetch(exchanges, underWay),
  });
  const client = new Client(
    { name: '@librechat/api-client', version: '1.2.3' },
    { capabilities: {} },
  );
  const report = {
    offered: LATEST_PROTOCOL_VERSION,
    accepted: SUPPORTED_PROTOCOL_VERSIONS,
    exchanges,
  };
  try {
    await client.connect(transport);
    report.negotiated = transport.protocolVersion;
    report.server = client.getServerVersion();
    report.capabilities = client.getServerCapabilities();
    report.instructions = client.getInstructions() ?? null;
    report.ping = await client.ping();
    report.tools = (await client.listTools()).tools;
    report.calls = [];
    for (const input of inputs) {
      const result = await client.request(
        { method: 'tools/call', params: { name: report.tools[0].name, arguments: input } },
        CallToolResultSchema,
        { timeout: REQUEST_TIMEOUT_MS, resetTimeoutOnProgress: true },
      );
      report.calls.push({
        result,
        ...formatForKnownProvider(result),
        seen_by_other_providers: formatForOtherProvider(result),
      });
    }
  } catch (error) {
    report.error = { name: error.name, code: error.code ?? null, message: error.message };
  }
  // The client asks for a stream of events (GET) by the way; closing would cut that off.
  await Promise.allSettled(underWay);
  await client.close();
  return report;
}
