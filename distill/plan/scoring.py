"""A teacher's soft logits for all conversations in both orders."""

from core.models.flops import Lengths, scoring_flops
from core.models.memory import GB, inference_memory, smallest
from core.models.shapes import Shape
from core.records import ORDERS
from distill.plan.config import PlanConfig
from distill.plan.stage import Stage, cost_of
from distill.plan.work import Work
from teachers.config import TeacherConfig

TOKENS_IN_FLIGHT = 16384  # that vLLM holds at a time, at least
BYTES = 2  # a weight, in bf16
LARGEST = 64  # GPUs that one engine is spread over


def scoring_stage(
    base: str, shape: Shape, work: Work, teacher: TeacherConfig, share: float, plan: PlanConfig, computed: float
) -> Stage:
    """The plan of scoring with `teacher`, whose model is `base`, by engines that take a `share` of a GPU's memory.

    `computed`: the share of the rows that are computed (`scored_share`), which does not concern a reward model.
    """
    # Rows: each teacher scores all of them where in-fold logits are asked for.
    times = len(teacher.folds) if teacher.kind == "folds" and teacher.rows == "in_fold" else 1
    rows = work.conversations * len(ORDERS) * times

    # Time: what comes from the prefix cache is not computed.
    lengths, cached = work.lengths, plan.assumed.cached
    if teacher.kind == "reward":  # computes all; sees one response: what both orders share, and half of the rest
        seen = cached + (1 - cached) / 2
        lengths, cached = Lengths(lengths.mean * seen, lengths.mean_square * seen**2), 0.0
        computed = 1.0
    rate = plan.gpus * plan.peak_tflops * 1e12 * plan.utilisation.scoring / scoring_flops(shape, lengths, cached)
    hours = rows * computed / rate / 3600

    weights = shape.parameters * BYTES / GB
    rates = f"{plan.utilisation.scoring:.0%} of {plan.peak_tflops:g} TFLOPS"
    teachers = f", {times} teachers" if times > 1 else ""
    shared = "" if computed == 1 else f", {computed:.0%} of them computed: the others share a response"
    lines = [
        ("memory", f"{weights:.1f} GB of weights in bf16: {parallel_size(shape, share, plan)}"),
        ("disk", f"{weights:.0f} GB of base in the hub's cache{merged_teachers(teacher, weights)}"),
        ("a row", f"{lengths.mean:.0f} tokens ({work.source}), {cached:.0%} from the prefix cache"),
        ("rows", f"{rows:,} ({work.conversations:,} conversations, both orders{teachers}){shared}"),
        ("rate", f"{rate:.1f} rows/s: {plan.gpus} x {plan.gpu} at {rates}"),
        ("time", f"{hours:.1f} h"),
    ]
    return Stage(f"Scoring with {base}", lines, (hours, hours), cost_of(plan, hours))


def parallel_size(shape: Shape, share: float, plan: PlanConfig) -> str:
    """Over how many GPUs vLLM has to spread the model."""
    room = share * plan.memory_gb - plan.reserve_gb
    least = smallest(lambda n: inference_memory(shape, BYTES, n, TOKENS_IN_FLIGHT) <= room, LARGEST)
    return f"tensor_parallel_size={least} or more" if least else f"too much for {LARGEST} GPUs"


def merged_teachers(teacher: TeacherConfig, weights: float) -> str:
    """The merged copies on disk, each of `weights` GB; "" where there are none."""
    if teacher.kind != "folds" or not teacher.merge or not teacher.folds:
        return ""
    copies = len(teacher.folds)
    return f"; {copies} merged teachers: {copies * weights:.0f} GB (none with teacher.merge=false)"
