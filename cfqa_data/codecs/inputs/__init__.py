"""Codecs on inputs: image codecs before the backbone."""
