"""A scoring spread over processes that share nothing but a folder: shards, and their merge into one result."""
