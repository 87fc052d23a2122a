"""What the body of a chat says beyond that of any text: messages, tools, reasoning. Connection threads."""
