"""Codecs on features: channel reduction, scalar, sparse and product quantisation."""
