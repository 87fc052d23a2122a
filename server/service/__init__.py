"""The server as a service: settings of the HTTP edge, run files, systemd, housekeeping."""
