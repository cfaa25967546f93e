"""A run folder, and how it is filled."""
