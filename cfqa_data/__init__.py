"""Compressed Feature Quality Assessment: what a CFQA dataset folder means, and how to read it."""
