"""Built-in data sets, one file each; none of the data lies in this package."""
