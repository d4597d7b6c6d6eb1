"""Predict whom people prefer in a file without votes: python -m distill.predict +exp=demo input=test.csv output=out.csv

Reads Kaggle's test.csv (or parquet, JSONL) and writes its submission.csv, checked as the contest checks it, with the
judge that `distill.export` made. Several GPUs share the work, `predict.minutes` bounds it, and a run that was killed
goes on: docs/predict.md.
"""

from distill.config import Config
from distill.entry_point import entry_point


def main(config: Config) -> None:
    from deploy.predicting.run import predict

    predict(config)


if __name__ == "__main__":
    entry_point(main)()
