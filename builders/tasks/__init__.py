"""Task heads: how a feature is scored against the ground truth."""
