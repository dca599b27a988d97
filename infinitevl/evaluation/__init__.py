"""Running a session over a stream, and showing what came of it."""
