"""Run a configured set of servers as a service: start, reload, stop, systemd, workers."""
