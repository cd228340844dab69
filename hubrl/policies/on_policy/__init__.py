"""The policy of PPO and A2C over the outputs of sources, and its parts."""
