"""Images and labels: what the data sets are, where their bytes lie, how they are read."""
