"""Networks whose block outputs are the features, and reading their checkpoints."""
