"""More from a finished dataset: labels of other reconstructions, and further codecs."""
