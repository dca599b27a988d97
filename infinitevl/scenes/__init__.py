"""The small world of the built-in model: pictures and streams with known content."""
