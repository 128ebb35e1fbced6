"""The command line. It only reads options, calls what is below, and prints."""
