"""Write scored samples for other trainers: formats, reward files, and a dataset card for the Hub."""
