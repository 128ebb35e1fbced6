"""Whether an answer is right: graders by kind of answer, and the process in which computer algebra runs."""
