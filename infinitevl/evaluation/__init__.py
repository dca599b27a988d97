"""Run a session over a stream, ask it questions, and report the result."""
