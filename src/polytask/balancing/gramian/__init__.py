"""Gramian weightings whose weights solve an optimisation problem, and the two plain ones beside them."""
