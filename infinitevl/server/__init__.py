"""One model behind an address: OpenAI's chat API, and streams that are watched and asked."""
