"""Everything that makes a CFQA dataset folder: sources, backbone, heads, training, pipeline."""
