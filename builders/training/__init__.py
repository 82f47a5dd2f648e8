"""Training scripts for the weights that ship with the package, and for users' own heads."""
