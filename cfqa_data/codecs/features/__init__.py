"""Codecs on features: channels left out, coarse number formats, sparse and product coding."""
