"""SB3's policies over a hub of sources."""
