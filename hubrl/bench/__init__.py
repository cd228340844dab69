"""Speed and memory of hubrl in ratios to plain SB3."""
