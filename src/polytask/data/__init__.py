"""Batches, tables, sources, sampling and data sets."""
