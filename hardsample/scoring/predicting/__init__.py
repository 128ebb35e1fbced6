"""Predict how hard samples are that nobody rolled out, and compare that with what rollouts then show."""
