"""The adaptive search as a job: rounds that are stored before they are asked, features of the samples, posteriors."""
