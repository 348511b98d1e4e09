// LibreChat's own bash tool in its own ToolNode, in a stateful code session.
// Reads {agents, url, hint, file, messages} as JSON from stdin: the package's name here,
// which says its version; a file that the user attached; and the commands of each message, which are called at once. Before the first of them
// the sandbox is started ahead, as LibreChat does. Prints what a model would read of each
// command, and the files known afterwards.
import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';

const require = createRequire(import.meta.url);
const { agents, url, hint, file, messages } = JSON.parse(readFileSync(0, 'utf8'));
const { createBashExecutionTool, ToolNode } = require(agents);
const { AIMessage } = require(`${agents}/langchain/messages`);

const headers = { 'Content-Type': 'application/json', 'X-CodeAPI-Expected-Profile': 'stateful' };
const body = JSON.stringify({ lang: 'bash', code: 'true', runtime_session_hint: hint });
const prewarm = fetch(`${url}/exec`, { method: 'POST', headers, body });

const session = { session_id: file.storage_session_id, files: [file], lastUpdated: Date.now() };
const sessions = new Map([['execute_code', session]]);
const bash = createBashExecutionTool({
  statefulSessions: true,
  runtimeSessionHint: hint,
  executionProfile: 'stateful',
});
const node = new ToolNode({ tools: [bash], sessions });
const results = [];
for (const [number, commands] of messages.entries()) {
  const calls = commands.map((command, index) => ({
    id: `call${number}-${index}`,
    type: 'tool_call',
    name: 'bash_tool',
    args: { command },
  }));
  const message = new AIMessage({ content: '', tool_calls: calls });
  const output = await node.invoke({ messages: [message] });
  results.push((output.messages ?? output).map((answer) => answer.content));
}
const known = [...sessions.values()].flatMap((each) => each.files ?? []);
const answer = await prewarm;
console.log(JSON.stringify({ prewarm: await answer.json(), results, files: known }));
