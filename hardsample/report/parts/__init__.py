"""What report pages are made of: charts, findings, the gallery of samples, one page document."""
