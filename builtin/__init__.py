"""The recipe of the built-in model: fetch packages, build the data, train, score. Not part of the wheel."""
