"""Train one judge on one fold: python -m distill.student +exp=demo

`role=student` (default) distils a teacher's logits and the votes; `role=teacher` trains on votes alone and writes
below teachers/, where distill.teacher finds it. `-m fold=0,1,2,3,4` trains all folds, `-m loss=votes,distill,wsdm3`
sweeps; `deepspeed --module --no_local_rank --num_accelerators 2 distill.student +exp=demo` uses two ranks. Rerun the
same command to resume a run that was killed, from its last checkpoint. Returns the kept judge's validation log loss,
which a sweep minimises.
"""

from distill.config import Config
from distill.entry_point import entry_point
from distill.training_run import training_run

READS = (
    "name role fold seed limit overwrite data.name prompt model train loss optimizer engine teacher.name "
    "teacher.rows teacher.max_entropy teacher.temperature_scaling teacher.same_prompt tracker sweep paths"
)


def main(config: Config) -> float:
    """Train on as many ranks as the launcher started; the validation log loss of the judge that is kept."""
    from students.training.ranks import all_ranks, fail_together
    from students.training.run import train

    with all_ranks():
        with fail_together():
            run = training_run(config)
        return train(run)


if __name__ == "__main__":
    entry_point(main, READS, libraries=True)()
