"""Frames with times, from files, folders, cameras, the network and iterables."""
