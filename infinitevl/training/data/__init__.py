"""Reads files and datasets into batches: messages, tokens, packing, order."""
