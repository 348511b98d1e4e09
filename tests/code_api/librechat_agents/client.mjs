// LibreChat's own code tools in its own ToolNode, and a form as LibreChat sends it.
// Reads {url, uploads, commands} as JSON from stdin; prints what the server said to the
// upload, what a model would read of each command, and the files known afterwards.
import { readFileSync } from 'node:fs';
import { request } from 'node:http';
import { createRequire } from 'node:module';

// The packages' ES modules do not load in plain Node: they import CommonJS by name.
const require = createRequire(import.meta.url);
const FormData = require('form-data');
const { createBashExecutionTool, createCodeExecutionTool, ToolNode } = require('@librechat/agents');
const { AIMessage } = require('@librechat/agents/langchain/messages');

// Piped, so that it goes without a Content-Length.
function upload(url, files) {
  const form = new FormData();
  form.append('kind', 'skill');
  form.append('id', 'skill1');
  form.append('version', '1');
  form.append('read_only', 'true');
  for (const [name, text] of Object.entries(files)) {
    form.append('file', Buffer.from(text), { filepath: name });
  }
  return new Promise((resolve, reject) => {
    const sent = request(`${url}/upload/batch`, { method: 'POST', headers: form.getHeaders() }, (answer) => {
      let body = '';
      answer.on('data', (piece) => (body += piece));
      answer.on('end', () => resolve(JSON.parse(body)));
    });
    sent.on('error', reject);
    form.pipe(sent);
  });
}

const { url, uploads, commands } = JSON.parse(readFileSync(0, 'utf8'));
const uploaded = await upload(url, uploads);
const files = uploaded.files.map((file) => ({
  id: file.fileId,
  name: file.filename,
  kind: 'skill',
  resource_id: 'skill1',
  version: 1,
  storage_session_id: uploaded.storage_session_id,
}));
const session = { session_id: uploaded.storage_session_id, files, lastUpdated: Date.now() };
const sessions = new Map([['execute_code', session]]);
const node = new ToolNode({ tools: [createBashExecutionTool({}), createCodeExecutionTool({})], sessions });
const results = [];
for (const [index, command] of commands.entries()) {
  const isBash = typeof command === 'string';
  const call = {
    id: `call${index}`,
    type: 'tool_call',
    name: isBash ? 'bash_tool' : 'execute_code',
    args: isBash ? { command } : command,
  };
  const message = new AIMessage({ content: '', tool_calls: [call] });
  const output = await node.invoke({ messages: [message] });
  const [answer] = output.messages ?? output;
  results.push({ read: answer.content, status: answer.status, artifact: answer.artifact ?? {} });
}
const known = [...sessions.values()].flatMap((each) => each.files ?? []);
console.log(JSON.stringify({ uploaded, results, files: known }));
