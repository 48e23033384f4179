"""Gradient methods without an inner solver: corrections, closed forms, robust means and running averages."""
