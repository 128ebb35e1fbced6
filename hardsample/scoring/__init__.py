"""The scoring job: the dataset, an engine and a store become strata, in a folder that can be resumed."""
