"""Rows -> statistics -> table, files, figures, TensorBoard; one way. Rows on disk are the only source of truth."""
