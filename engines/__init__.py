"""Engines: where the cells of a comparison run."""
