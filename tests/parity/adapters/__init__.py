"""One module a method: `MODEL` (its label) and `check(pair)`, which compares everything the pair holds."""
