// node's smtp-protocol, which accepts and discards everything.
"use strict";

const smtp = require("smtp-protocol");
const { port } = require("./options");

const server = smtp.createServer("mx.example.com", (req) => {
  req.on("to", (to, ack) => ack.accept());
  req.on("message", (stream, ack) => {
    ack.accept();
    stream.on("data", () => {});
  });
  req.socket?.on("error", () => {}); // a peer that is gone
});
server.listen({ port, host: "127.0.0.1", backlog: 1024 });
