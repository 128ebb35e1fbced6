"""What the characters of an answer say: where the answer stands, numbers, units, quantities, notation, options."""
