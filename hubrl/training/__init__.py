"""What happens around SB3's training loop: the callback, the probe, selection among arms, metrics."""
