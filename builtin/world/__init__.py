"""The small world that the built-in model lives in: what there is, how it is drawn, what can be asked."""
