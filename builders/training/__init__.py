"""Training scripts of the weights that ship with the package."""
