// Do jobs with nodemailer: reads a list of them, JSON, and prints a list of what came of each.
const fs = require('fs');
const net = require('net');
const nodemailer = require('nodemailer');

async function deliver(job) {
  const transport = nodemailer.createTransport({
    host: job.host,
    port: job.port,
    lmtp: job.lmtp,
    secure: job.tls === 'implicit',
    requireTLS: job.tls === 'starttls',
    ignoreTLS: !job.tls,
    name: 'client.example',
    tls: job.authority && { ca: fs.readFileSync(job.authority) },
    auth: job.user && { user: job.user, pass: job.password, method: job.mechanism },
  });
  if (job.path) {
    transport.getSocket = (options, callback) => callback(null, { connection: net.connect(job.path) });
  }
  const envelope = { from: job.sender, to: job.recipients };
  const dsn = job.dsn && {
    id: job.dsn.envid, return: job.dsn.ret, notify: job.dsn.notify, recipient: job.dsn.recipient,
  };
  try {
    const sent = await transport.sendMail({
      envelope, raw: job.message, dsn, requireTLSExtensionEnabled: job.require_tls,
    });
    return { accepted: sent.accepted, refused: sent.rejected, error: '' };
  } catch (error) {
    return { accepted: [], refused: error.rejected || [], error: error.message };
  }
}

(async () => {
  const results = [];
  for (const job of JSON.parse(fs.readFileSync(0))) {
    results.push(await deliver(job));
  }
  console.log(JSON.stringify(results));
})();
