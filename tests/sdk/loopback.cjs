// Preloaded into servers that offer no way to choose their address: whatever they ask for, they
// listen on 127.0.0.1. Nothing a test starts may be reached from another machine.
//
//   NODE_OPTIONS="--require /path/to/loopback.cjs"
"use strict";

const { Server } = require("node:net");

const listen = Server.prototype.listen;

Server.prototype.listen = function (...given) {
  const rest = given.filter((argument) => typeof argument === "function");
  const [first, second] = given;
  if (typeof first === "object" && first !== null) {
    // Pipes and inherited descriptors have no address to change.
    return first.path || first.fd !== undefined || first._handle
      ? listen.apply(this, given)
      : listen.call(this, { ...first, host: "127.0.0.1" }, ...rest);
  }
  if (typeof first === "string" && Number.isNaN(Number(first))) {
    return listen.apply(this, given);
  }
  const backlog = [second, given[2]].find((argument) => typeof argument === "number");
  return listen.call(this, { port: Number(first) || 0, host: "127.0.0.1", backlog }, ...rest);
};
