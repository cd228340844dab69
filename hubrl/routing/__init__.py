"""The pathways of a hub, the router's weights, and how outputs are computed and aggregated."""
