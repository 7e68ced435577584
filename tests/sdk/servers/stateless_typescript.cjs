// A dual-era server on the official TypeScript SDK 2.x whose tools ask, report and change things.
//
//   node stateless_typescript.cjs PORT
"use strict";

const { createServer } = require("node:http");
const { createMcpHandler, inputRequired, McpServer } = require("@modelcontextprotocol/server");
const { toNodeHandler } = require("@modelcontextprotocol/node");

const text = (value) => ({ content: [{ type: "text", text: value }] });
const schema = { type: "object", properties: { name: { type: "string" } } };
const question = () => inputRequired.elicit({ message: "What is your name?", requestedSchema: schema });

const handler = createMcpHandler(() => {
  const options = { instructions: "Ask first.", capabilities: { logging: {} } };
  const server = new McpServer({ name: "stateless-typescript", version: "1" }, options);
  server.registerTool("ask", { description: "Asks for a name." }, async (context) => {
    const answers = context.mcpReq.inputResponses;
    if (answers) return text(JSON.stringify(answers.name));
    return inputRequired({ inputRequests: { name: question() }, requestState: "\u00e9" });
  });
  server.registerTool("progress", { description: "Reports three steps." }, async (context) => {
    const progressToken = context.mcpReq._meta?.progressToken;
    for (const progress of [1, 2, 3]) {
      const params = { progressToken, progress, total: 3 };
      await context.mcpReq.notify({ method: "notifications/progress", params });
    }
    return text("done");
  });
  server.registerTool("log", { description: "Says something in the log." }, async (context) => {
    await context.mcpReq.log("info", "hello");
    return text("logged");
  });
  server.registerTool("change", { description: "Says that the tools changed." }, async () => {
    handler.notify.toolsChanged();
    return text("changed");
  });
  server.registerResource("one", "test://one", {}, async (uri) => ({
    contents: [{ uri: uri.href, text: "1" }],
  }));
  return server;
});

createServer(toNodeHandler(handler)).listen(Number(process.argv[2]), "127.0.0.1");
