"""What is measured, as pure functions of grades and attention masses: PISM, CMAB, strata, ladders, intervals."""
