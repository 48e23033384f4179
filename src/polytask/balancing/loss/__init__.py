"""Loss weightings: one weight a task, from the losses alone."""
