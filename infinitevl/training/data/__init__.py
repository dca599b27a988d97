"""From files and datasets to batches: messages, tokens, packing, order."""
