// node's smtp-server, which accepts and discards everything.
"use strict";

const fs = require("fs");
const { SMTPServer } = require("smtp-server");
const { port, tls } = require("./options");

const server = new SMTPServer({
  name: "mx.example.com",
  authOptional: true,
  disabledCommands: tls ? ["AUTH"] : ["AUTH", "STARTTLS"],
  disableReverseLookup: true,
  secure: tls?.mode === "implicit",
  logger: false,
  ...(tls && { cert: fs.readFileSync(tls.cert), key: fs.readFileSync(tls.key) }),
  onData(stream, session, callback) {
    stream.on("end", () => callback());
    stream.resume();
  },
});
server.on("error", () => {}); // a peer that is gone
server.server.listen(port, "127.0.0.1", 1024);
