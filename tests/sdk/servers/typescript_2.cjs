// A server on the official TypeScript SDK 2.x, with its defaults: towards clients that open with
// the handshake it gives no session id and makes a new server for each request. There is nothing
// it could keep, and its tool says so.
//
//   node typescript_2.cjs PORT
"use strict";

const { createServer } = require("node:http");
const { createMcpHandler, McpServer } = require("@modelcontextprotocol/server");
const { toNodeHandler } = require("@modelcontextprotocol/node");

const text = (value) => ({ content: [{ type: "text", text: value }] });

const handler = createMcpHandler(() => {
  const server = new McpServer({ name: "typescript-2", version: "1" });
  server.registerTool("count", { description: "Keeps no count." }, async () => text("no session"));
  server.registerTool("fail", { description: "Fails." }, async () => {
    throw new Error("it always does");
  });
  return server;
});

createServer(toNodeHandler(handler)).listen(Number(process.argv[2]), "127.0.0.1");
