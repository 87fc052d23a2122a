"""What can be known of a model's files before it is loaded: headers, checks, memory."""
