"""Names of the files that hardsample's commands write into their output folders; docs/files.md says what each holds."""

# score, evaluate
SCORES_FILE = "scores.parquet"
RUN_FILE = "run.json"
REJECTED_FILE = "rejected.jsonl"
ROLLOUTS_FILE = "rollouts.sqlite"
SHARDS_FOLDER = "shards"
EVALUATION_FILE = "evaluation.json"
BENCHMARK_FILE = "benchmark.json"
VERDICTS_FILE = "verdicts.jsonl"

# score, features
FEATURES_FILE = "features.parquet"
FEATURES_STORE = "features.sqlite"
FEATURES_RUN_FILE = "features.json"

# predict
PREDICTIONS_FILE = "predictions.parquet"
PREDICTIONS_RUN_FILE = "predictions.json"

# stratify
STRATA_FILE = "strata.parquet"

# export
EXPORT_FILE = "export.json"
REWARD_FILE = "reward.py"
DATASET_INFO_FILE = "dataset_info.json"
CARD_FILE = "README.md"

# train
TRAINING_FILE = "training.json"
OVERLONG_FILE = "overlong.jsonl"
TRAINER_STATE_FILE = "trainer_state.json"

# experiment: the folder, one cell, one training
EXPERIMENT_FILE = "experiment.json"
RESULTS_FILE = "results.json"
RESULTS_PAGE = "results.md"
CELL_FILE = "cell.json"
STAGE_FILE = "stage.json"
DONE_FILE = "done.json"
PROGRESS_FILE = "progress"
SECONDS_FILE = "seconds"
LOG_FILE = "log.txt"

# report
REPORT_FILE = "report.html"
