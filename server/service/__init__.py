"""The server as a service: policies of the HTTP edge, run files, systemd, housekeeping."""
