"""Chat messages: checked, and turned into token ids."""
