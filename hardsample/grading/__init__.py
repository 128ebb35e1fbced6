"""Grade answers: a grader for each kind of answer, and the process in which computer algebra runs."""
