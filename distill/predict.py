"""Predict whom people prefer in a file without votes: python -m distill.predict +exp=demo input=test.csv output=out.csv

Reads Kaggle's test.csv (or parquet, JSONL) and writes its submission.csv, checked as the contest checks it, with the
judge that `distill.export` made. Several GPUs share the work, and `predict.minutes` bounds it. A run that was killed
resumes with the same command. With `predict.cascade=[small,large]` rows go on to the large judge where that is expected
to gain most. A file of single responses, several to a prompt, is ranked instead: docs/predict.md.
"""

from distill.artefacts import judge_folder
from distill.config import Config
from distill.entry_point import entry_point

READS = "name input output limit overwrite coverage data predict scorers.exported canaries.on_failure export paths"


def main(config: Config) -> None:
    from core.errors import UserError
    from deploy.predicting.cascade import named_exports
    from deploy.predicting.outputs import checked_output
    from deploy.predicting.ranks import file_of_responses, write_ranks
    from deploy.predicting.run import write_predictions
    from deploy.predicting.unlabelled import Source

    settings, scorer, canaries = config.predict, config.scorers.exported, config.canaries.on_failure
    source = Source(config.input, config.data, config.limit, settings.rules)
    output = checked_output(config.output, config.input, config.overwrite)
    if settings.cascade:
        named = named_exports(settings.cascade, settings.model, config.export_folder().parent)
        models = {name: judge_folder(config, str(folder)) for name, folder in named.items()}
    else:
        own = judge_folder(config, settings.model)
        models = {own.name: own}
    if not (responses := file_of_responses(source)):
        write_predictions(source, output, models, scorer, settings, canaries, config.coverage, config.overwrite)
    elif settings.cascade:
        raise UserError("predict.cascade: single responses are ranked by one judge; give predict.model")
    else:
        write_ranks(responses, source, output, own, scorer, settings, canaries, config.overwrite)


if __name__ == "__main__":
    entry_point(main, READS, libraries=True)()
