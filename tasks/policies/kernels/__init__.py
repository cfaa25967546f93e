"""Fast layers that policies are built from."""
