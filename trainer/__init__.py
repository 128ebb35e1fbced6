"""Training on what the scores say (the trainer itself comes with a later release; see CHANGELOG.md)."""
