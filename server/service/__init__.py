"""The server as a service: settings of the HTTP server, run files, systemd, housekeeping."""
