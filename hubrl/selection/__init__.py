"""Selection among arms by their returns: numbers only, no environment and no policy."""
