"""Verifying a dataset by decoding and scoring again, and repairing it."""
