"""Functions on many jobs in several processes, and how these are started."""
