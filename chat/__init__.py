"""Chat: conversations, engines, terminal and web page."""
