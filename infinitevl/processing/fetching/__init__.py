"""Bytes from files, data: URIs and http(s) addresses."""
