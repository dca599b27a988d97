"""The losses of the published stages, each a sum over the tokens of a batch."""
