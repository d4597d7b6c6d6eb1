"""Predict whom people prefer in a file without votes: python -m distill.predict +exp=demo input=test.csv output=out.csv

Reads Kaggle's test.csv (or parquet, JSONL) and writes its submission.csv, checked as the contest checks it, with the
judge that `distill.export` made. Several GPUs share the work, and `predict.minutes` bounds it. A run that was killed
resumes with the same command. A file of single responses, several to a prompt, is ranked instead: docs/predict.md.
"""

from distill.config import Config
from distill.entry_point import entry_point

READS = "name input output limit overwrite coverage data predict scorers.exported canaries.on_failure export paths"


def main(config: Config) -> None:
    from deploy.predicting.outputs import checked_output
    from deploy.predicting.ranks import file_of_responses, write_ranks
    from deploy.predicting.run import write_predictions
    from deploy.predicting.unlabelled import Source

    source = Source(config.input, config.data, config.limit, config.predict.rules)
    output = checked_output(config.output, config.input, config.overwrite)
    model, scorer, settings = config.export_folder(config.predict.model), config.scorers.exported, config.predict
    canaries = config.canaries.on_failure
    if responses := file_of_responses(source):
        write_ranks(responses, config.limit, output, model, scorer, settings, canaries, config.overwrite)
    else:
        write_predictions(source, output, model, scorer, settings, canaries, config.coverage, config.overwrite)


if __name__ == "__main__":
    entry_point(main, READS, libraries=True)()
