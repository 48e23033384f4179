"""The mathematics of balancing: pure functions on small matrices, a leaf without checks or state."""
