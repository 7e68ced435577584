// The stock client of the official TypeScript SDK, doing what an agent does.
//
//   node typescript.cjs 1|2|2-auto '{"url": ..., "state": tool, "fail": tool, "idle": seconds}'
//
// Prints one JSON object: what it saw. CommonJS, so that NODE_PATH says where the SDK is.
"use strict";

const { setTimeout: sleep } = require("node:timers/promises");

function sdk(release) {
  if (release === "1") {
    const { Client } = require("@modelcontextprotocol/sdk/client/index.js");
    const http = require("@modelcontextprotocol/sdk/client/streamableHttp.js");
    return { Client, Transport: http.StreamableHTTPClientTransport, options: {} };
  }
  const v2 = require("@modelcontextprotocol/client");
  // Without `auto` this release opens with the handshake; with it, it asks for the era first.
  const options = release === "2-auto" ? { versionNegotiation: { mode: "auto" } } : {};
  return { Client: v2.Client, Transport: v2.StreamableHTTPClientTransport, options };
}

async function main(release, task) {
  const { Client, Transport, options } = sdk(release);
  const client = new Client({ name: `typescript-${release}`, version: "1" }, options);
  const transport = new Transport(new URL(task.url));
  await client.connect(transport);
  const tools = (await client.listTools()).tools.map((tool) => tool.name);
  // Without a session it says who it is, lest it shares one with others like it.
  const _meta = { "kars.azure.com/agent": task.agent };
  const call = (name) => client.callTool({ name, arguments: {}, _meta });
  const first = await call(task.state);
  const failed = await call(task.fail);
  if (transport.protocolVersion < "2026") await client.ping();
  await sleep(task.idle * 1000);
  const second = await call(task.state);
  const protocol = transport.protocolVersion;
  await transport.terminateSession();
  await client.close();
  const text = (result) => result.content[0].text;
  return {
    protocol,
    tools,
    first: text(first),
    failed: [failed.isError === true, text(failed)],
    second: text(second),
  };
}

main(process.argv[2], JSON.parse(process.argv[3])).then(
  (seen) => console.log(JSON.stringify(seen)),
  (error) => {
    console.error(error);
    process.exit(1);
  },
);
