// What LibreChat makes of the service when it is added as an Action.
//
// Parsing, the schema, the request and its headers are librechat-data-provider's own. Three things
// live in LibreChat's server, which is no package; they are rebuilt here and marked "glue".

import http from 'node:http';
import {
  AuthTypeEnum,
  AuthorizationTypeEnum,
  Constants,
  actionDelimiter,
  actionDomainSeparator,
  extractDomainFromUrl,
  openapiToFunction,
  validateActionDomain,
  validateAndParseOpenAPISpec,
} from 'librechat-data-provider';

/** Connects every request to one address, whatever name it asks for: what Docker's DNS does for
 * the name that the document holds. The Host header stays the document's. */
class ServiceAgent extends http.Agent {
  constructor(url) {
    super();
    this.address = { host: url.hostname, port: Number(url.port) };
  }

  createConnection(options, callback) {
    return super.createConnection({ ...options, ...this.address }, callback);
  }
}

// Glue: domainParser of api/server/services/ActionService.js, without its cache, and the naming
// of tools in ToolService.js beside it.
function toolName(operationId, domain) {
  const host = domain.replace(/^https?:\/\//, '');
  const short =
    host.length <= Constants.ENCODED_DOMAIN_LENGTH
      ? host.replaceAll('.', actionDomainSeparator)
      : Buffer.from(host).toString('base64').slice(0, Constants.ENCODED_DOMAIN_LENGTH);
  return `${operationId}${actionDelimiter}${short}`.replaceAll(actionDomainSeparator, '_');
}

// Glue: logAxiosError of packages/api/src/utils/axios.ts. What it returns is what the model reads.
function failure(domain, error) {
  const lead = `API call to ${domain} failed:`;
  if (error.response?.status) {
    return `${lead} The server responded with status ${error.response.status}: ${error.message}`;
  }
  if (error.request) {
    const { method, url } = error.config;
    return `${lead} No response received for ${method.toUpperCase()} ${url}: ${error.message}`;
  }
  return `${lead} An error occurred while setting up the request: ${error.message}`;
}

// Glue: createActionTool of ActionService.js. LangChain's tool() parses the arguments with the zod
// schema before its function is called.
async function callTool({ requestBuilder, zodSchema, domain, apiKey, agent }, toolInput) {
  const parsed = zodSchema.safeParse(toolInput);
  if (!parsed.success) {
    return { sent: false, problems: parsed.error.issues };
  }
  const called = { sent: true, arguments: parsed.data };
  try {
    const executor = requestBuilder.createExecutor().setParams(parsed.data);
    if (apiKey) {
      await executor.setAuth({
        api_key: apiKey,
        auth: {
          type: AuthTypeEnum.ServiceHttp,
          authorization_type: AuthorizationTypeEnum.Bearer,
        },
      });
    }
    const response = await executor.execute({ httpAgent: agent });
    return {
      ...called,
      status: response.status,
      outcome: response.headers['x-run-outcome'],
      seen: typeof response.data === 'object' ? JSON.stringify(response.data) : response.data,
    };
  } catch (error) {
    return { ...called, status: error.response?.status ?? null, seen: failure(domain, error) };
  }
}

/** Fetches <baseUrl>/openapi.json, makes the tool of it and calls the running service once for each
 * of `inputs`, the tool's arguments. `apiKey` is the Action's key; '' is none. */
export async function action(baseUrl, inputs, apiKey) {
  const served = await (await fetch(new URL('/openapi.json', baseUrl))).text();
  const { status, message, spec, serverUrl } = validateAndParseOpenAPISpec(served);
  if (!status) {
    return { valid: false, message };
  }
  // The Action builder sends the address without its port as the Action's domain.
  const domain = extractDomainFromUrl(serverUrl);
  const { functionSignatures, requestBuilders, zodSchemas } = openapiToFunction(spec, true);
  const [first] = functionSignatures;
  const tool = {
    requestBuilder: requestBuilders[first.name],
    zodSchema: zodSchemas[first.name],
    domain,
    apiKey,
    agent: new ServiceAgent(new URL(baseUrl)),
  };
  const calls = [];
  for (const input of inputs) {
    calls.push(await callTool(tool, input));
  }
  return {
    valid: true,
    message,
    server_url: serverUrl,
    domain: validateActionDomain(domain, serverUrl),
    tools: functionSignatures.map((signature) => ({
      name: toolName(signature.name, domain),
      description: signature.description,
      parameters: signature.parameters,
    })),
    calls,
  };
}
