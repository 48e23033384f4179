"""Many runs: comparing methods, and what the runs of one recipe say together."""
