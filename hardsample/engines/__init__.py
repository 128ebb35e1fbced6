"""What generates: a model on this machine, or one behind a server; masking, sampling and how a reply ended."""
