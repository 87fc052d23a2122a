"""What requests of an admin do to the models on this machine: fetch and remove them. Only with --manage-models."""
