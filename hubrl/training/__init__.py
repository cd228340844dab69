"""The part around SB3's training loop: callback, probe, selection among arms, metrics."""
