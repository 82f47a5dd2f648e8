"""Codecs on inputs: image codecs that run before the backbone."""
