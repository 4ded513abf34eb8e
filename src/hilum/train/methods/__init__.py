"""A method is a function from a batch to named losses."""
