// node's smtp-server as tests/corpus expects a server: PORT LMTP_PORT CERT. It takes everything but one recipient.
"use strict";

const fs = require("fs");
const { SMTPServer } = require("smtp-server");

const [port, lmtpPort, pem] = process.argv.slice(2);
const refuse = () => Object.assign(new Error("No such user"), { responseCode: 550 });

for (const [where, lmtp] of [[port, false], [lmtpPort, true]]) {
  const server = new SMTPServer({
    name: "mx.example.com",
    lmtp,
    size: 1000000,
    authOptional: true,
    allowInsecureAuth: true,
    disableReverseLookup: true,
    logger: false,
    cert: fs.readFileSync(pem),
    key: fs.readFileSync(pem),
    onAuth: ({ username, password }, session, callback) =>
      callback(null, username === "jo" && password === "secret" ? { user: username } : { message: "no" }),
    onRcptTo: ({ address }, session, callback) => callback(address === "no@example.com" ? refuse() : null),
    onData(stream, session, callback) {
      stream.on("end", () => {
        const error = stream.sizeExceeded
          ? Object.assign(new Error("Message exceeds the size limit"), { responseCode: 552 })
          : null;
        callback(error, lmtp && !error ? session.envelope.rcptTo.map(() => "Ok") : undefined);
      });
      stream.resume();
    },
  });
  server.on("error", () => {}); // a peer that is gone
  server.listen(Number(where), "127.0.0.1");
}
