"""/v1/realtime: a conversation over a stream, through a WebSocket, in the events of OpenAI's Realtime API."""
