"""Terminal output: progress, sizes, durations and tables."""
