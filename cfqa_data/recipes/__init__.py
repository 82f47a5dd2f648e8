"""Recipes: the facts of a dataset, as TOML."""
