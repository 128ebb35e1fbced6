"""Parse answers: find them in a completion; read numbers, units, quantities, notation and options."""
