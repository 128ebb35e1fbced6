"""Any data people already have, read as one checked `datasets.Dataset`: files, columns, formats, images, digests."""
