"""Exporting a dataset folder, and publishing it on a hub."""
