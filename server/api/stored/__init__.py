"""What is kept for a key between its requests: responses and conversations. Connection threads."""
