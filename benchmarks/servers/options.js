// The command line of the servers in node: PORT [--tls MODE --cert FILE --key FILE].
"use strict";

const [port, ...rest] = process.argv.slice(2);
const value = (name) => rest[rest.indexOf(name) + 1];
const tls = rest.includes("--tls")
  ? { mode: value("--tls"), cert: value("--cert"), key: value("--key") }
  : null;

module.exports = { port: Number(port), tls };
