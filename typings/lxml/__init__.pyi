"""lxml has no types of its own."""
