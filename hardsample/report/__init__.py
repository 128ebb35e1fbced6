"""What a person looks at: HTML reports and tables of scoring, evaluation, training and experiment."""
