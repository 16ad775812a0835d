"""Many runs at once: grids, the paper's tables, and the records that are kept of them."""
