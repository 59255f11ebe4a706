// Haraka's decisions: it takes everything but one recipient, and throws messages away.
"use strict";

exports.hook_mail = (next) => next(OK);
exports.hook_rcpt = (next, connection, params) =>
  params[0].user === "no" ? next(DENY, "No such user") : next(OK);
exports.hook_queue = (next) => next(OK);
