"""What a person sees on a terminal: progress, sizes, durations, tables."""
