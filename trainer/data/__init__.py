"""The training dataset by row number: images as scoring saw them, scored samples, batches."""
