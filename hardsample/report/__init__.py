"""One self-contained HTML page of a folder: of a scoring, an evaluation, a training, an experiment, or two scorings."""
