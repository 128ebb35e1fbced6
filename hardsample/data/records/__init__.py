"""One record: its conversation, its gold solution, its options, its image columns."""
