"""What a dataset folder is: its paths, tables, arrays, manifest, and what always holds in it."""
