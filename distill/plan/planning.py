"""The blocks of a plan: what training, scoring and the export take, by `memory.py` and `throughput.py`."""

from collections.abc import Iterable
from dataclasses import dataclass

from core.memory import (
    FORMATS,
    GB,
    METHODS,
    Batch,
    Memory,
    Method,
    Sharding,
    checkpoint_gb,
    inference_memory,
    smallest,
    training_memory,
)
from core.records import ORDERS
from core.shapes import Shape
from distill.config import Config
from distill.plan.config import PlanConfig
from distill.plan.throughput import Lengths, scoring_flops, step_traffic, training_flops
from students.export.config import RateConfig, T4Config

ON = (1, 2, 8, 16)  # GPUs in the memory table
IN_FLIGHT = 16384  # tokens that vLLM holds at a time at least
Interval = tuple[float, float]  # from, to
STAGES = ((0, False), (1, False), (2, False), (3, False), (3, True))  # ZeRO stage, offloaded to CPU memory


@dataclass(frozen=True)
class Work:
    """What there is to do: prompts of `lengths`, which `source` says the origin of, for `conversations`."""

    conversations: int
    lengths: Lengths
    source: str


@dataclass(frozen=True)
class Stage:
    """One block of the plan. `hours` on all its GPUs together and `cost` are None where nothing can be said.

    Each is an interval: of both ends alike where one rate is assumed.
    """

    title: str
    lines: list[tuple[str, str]]
    hours: Interval | None = None
    cost: Interval | None = None
    memory: list[list[str]] | None = None


def training(config: Config, base: str, shape: Shape, work: Work) -> Stage:
    """Fine-tuning a judge: memory by ZeRO stage, hours of one fold and of all."""
    plan, student, folds = config.plan, config.student, config.data.folds.count
    method: Method = "full" if student.tuning == "full" else "qlora" if student.load_in_4bit else "lora"
    batch = micro_batch(config, shape)
    sharding = Sharding(
        config.engine.zero_stage, config.engine.offload != "none", plan.gpus, config.optimizer.master_weights
    )
    rows, flops = fold_work(config, shape, method, batch, work)
    share = plan.utilisation.training_4bit if method == "qlora" else plan.utilisation.training
    computing = flops / (plan.gpus * plan.peak_tflops * 1e12 * share) / 3600
    steps = rows / len(ORDERS) / student.batch_conversations
    micro_batches = max(1.0, student.batch_conversations * len(ORDERS) * work.lengths.mean / batch.tokens / plan.gpus)
    bandwidth = plan.node_bandwidth if plan.gpus <= plan.gpus_per_node else plan.network_bandwidth
    sending = steps * step_traffic(shape, method, sharding, batch, micro_batches) / bandwidth / 3600
    hours = folds * (computing + sending)
    here = training_memory(shape, method, sharding, batch, plan.memory_overhead, plan.reserve_gb)
    trained = shape.trained(method) / 1e6
    lines = [
        ("parameters", f"{shape.parameters / 1e9:.2f} billion, {trained:,.1f} million of them trained ({method})"),
        (
            "micro-batch",
            f"{batch.tokens:,} tokens{', checkpointed' * batch.checkpointing}, {attention(batch, shape)} attention",
        ),
        ("memory", f"{here.total:.1f} GB on each of {plan.gpus} GPUs under ZeRO-{sharding.zero}: {parts(here)}"),
        ("CPU memory", f"{host_memory(config, shape):,.0f} GB on a node, while its ranks load the model"),
        ("disk", training_disk(shape, method, sharding, batch, folds)),
        ("a row", f"{work.lengths.mean:.0f} tokens ({work.source})"),
        ("a fold", f"{rows:,.0f} rows in {student.epochs} epochs, {flops / 1e18:.1f} EFLOP with validation"),
        ("rate", f"{plan.gpus} x {plan.gpu} at {share:.0%} of {plan.peak_tflops:g} TFLOPS"),
        ("time", f"{hours / folds:.1f} h a fold, {sending:.1f} of it communication; {hours:.1f} h for {folds} folds"),
    ]
    grid = memory_by_stage(plan, shape, batch, sharding.masters)
    return Stage(f"Training the {config.role}, {base}", lines, (hours, hours), money(plan, hours), grid)


def training_disk(shape: Shape, method: Method, sharding: Sharding, batch: Batch, folds: int) -> str:
    """What the base, a checkpoint (while it is replaced there are two) and the finished folds take."""
    checkpoint = checkpoint_gb(shape, method, sharding, batch.bytes)
    kept = shape.parameters * batch.bytes if method == "full" else shape.trained(method) * 4
    return (
        f"{shape.parameters * 2 / GB:.0f} GB of base in the hub's cache; a fold under way: twice {checkpoint:.1f} GB; "
        f"{folds} finished: {folds * kept / GB:.0f} GB"
    )


def fold_work(config: Config, shape: Shape, method: Method, batch: Batch, work: Work) -> tuple[float, float]:
    """(rows trained on, FLOPs with validation and padding) of one fold."""
    student, folds = config.student, config.data.folds.count
    rest = work.conversations * (1 - config.data.test_share) * (folds - 1) / folds
    trained, held = rest * (1 - student.validation_share), rest * student.validation_share
    rows = len(ORDERS) * student.epochs * trained
    steps = student.epochs * trained / student.batch_conversations
    validations = steps / student.validate_every if student.validate_every else student.epochs
    flops = rows * training_flops(shape, method, work.lengths, batch.checkpointing, batch.eager)
    flops += validations * len(ORDERS) * held * scoring_flops(shape, work.lengths)
    return rows, flops / (1 - config.plan.assumed.padding)


def memory_by_stage(plan: PlanConfig, shape: Shape, batch: Batch, masters: str) -> list[list[str]]:
    """GB per GPU, a header and a row for each kind of tuning and ZeRO stage; what does not fit is in brackets."""

    def cell(method: Method, zero: int, offload: bool, gpus: int) -> str:
        sharding = Sharding(zero, offload, gpus, masters)
        total = training_memory(shape, method, sharding, batch, plan.memory_overhead, plan.reserve_gb).total
        return f"{total:.1f}" if total <= plan.memory_gb else f"({total:.1f})"

    return [
        ["tuning", "ZeRO", *(f"{n} GPU{'s' * (n > 1)}" for n in ON)],
        *(
            [method, f"{zero}{' + CPU' * offload}", *(cell(method, zero, offload, n) for n in ON)]
            for method in METHODS
            for zero, offload in STAGES
            if not (method == "qlora" and zero == 3)  # 4-bit weights are stored as bytes, which it does not partition
        ),
    ]


def scoring(config: Config, base: str, shape: Shape, work: Work) -> Stage:
    """A teacher's soft logits for all conversations in both orders."""
    plan, teacher, cached, lengths = config.plan, config.teacher, config.plan.assumed.cached, work.lengths
    times = len(teacher.folds) if teacher.kind == "folds" and teacher.rows == "in_fold" else 1
    rows = work.conversations * len(ORDERS) * times
    if teacher.kind == "reward":  # sees one response: what both orders share, and half of the rest
        seen = cached + (1 - cached) / 2
        lengths, cached = Lengths(lengths.mean * seen, lengths.mean_square * seen**2), 0.0
    rate = plan.gpus * plan.peak_tflops * 1e12 * plan.utilisation.scoring / scoring_flops(shape, lengths, cached)
    hours = rows / rate / 3600
    room = config.teacher.scorer.vllm.get("gpu_memory_utilization", 0.9) * plan.memory_gb - plan.reserve_gb
    least = smallest(lambda n: inference_memory(shape, FORMATS["merged"], n, IN_FLIGHT) <= room)
    needs = f"tensor_parallel_size={least} or more" if least else "too much for 64 GPUs"
    share = f"{plan.utilisation.scoring:.0%} of {plan.peak_tflops:g} TFLOPS"
    weights = shape.parameters * 2 / GB
    copies = len(teacher.folds) if teacher.kind == "folds" and teacher.merge else 0
    merged = f"; {copies} merged teachers: {copies * weights:.0f} GB (none with teacher.merge=false)" * bool(copies)
    lines = [
        ("memory", f"{weights:.1f} GB of weights in bf16: {needs}"),
        ("disk", f"{weights:.0f} GB of base in the hub's cache{merged}"),
        ("a row", f"{lengths.mean:.0f} tokens ({work.source}), {cached:.0%} from the prefix cache"),
        ("rows", f"{rows:,} ({work.conversations:,} conversations, both orders{f', {times} teachers' * (times > 1)})"),
        ("rate", f"{rate:.1f} rows/s: {plan.gpus} x {plan.gpu} at {share}"),
        ("time", f"{hours:.1f} h"),
    ]
    return Stage(f"Scoring with {base}", lines, (hours, hours), money(plan, hours))


def on_t4(config: Config, base: str, shape: Shape, work: Work) -> Stage:
    """The export at work: which formats fit into a T4, and how long it judges `plan.t4.conversations`, both orders."""
    t4, rows, exported = config.plan.t4, config.plan.t4.conversations * len(ORDERS), config.export.format
    hours = {name: t4_hours(t4, name, rows * scoring_flops(shape, work.lengths)) for name in FORMATS}
    memory = {name: inference_memory(shape, size, 1, t4.batch_tokens) for name, size in FORMATS.items()}
    fits = {name: gb <= t4.memory_gb for name, gb in memory.items()}

    def judged(name: str) -> str:
        low, high = hours[name]
        told = f"{words((low, high))} h on one T4, {words((low / 2, high / 2))} h on two" if fits[name] else "too much"
        return f"{memory[name]:.1f} of {t4.memory_gb:g} GB: {told}"

    one = shape.parameters / GB  # times bytes of an element
    lines = [
        ("rows", f"{rows:,} ({t4.conversations:,} conversations, both orders) of {work.lengths.mean:.0f} tokens"),
        *((f"{name}{', exported' * (name == exported)}", judged(name)) for name in FORMATS),
        ("disk", f"{4 * one:.0f} GB merged in fp32, {2 * one:.0f} in fp16, again where it is rescaled, and the format"),
        ("rate", told_rate(t4.fp16)),
        ("rate of w8a8", told_rate(t4.int8)),
    ]
    if not fits[exported]:
        return Stage(f"Judging on T4s, {base}", lines)
    low, high = hours[exported]
    cost = None if t4.price_per_hour is None else (low * t4.price_per_hour, high * t4.price_per_hour)
    return Stage(f"Judging on T4s, {base}", lines, (low, high), cost)


def t4_hours(t4: T4Config, name: str, flops: float) -> Interval:
    """Of one T4, with an export of format `name`; int8 activations have tensor cores of their own there."""
    rate = t4.int8 if name == "w8a8" else t4.fp16
    return flops / (rate.high * 1e12) / 3600, flops / (rate.low * 1e12) / 3600


def told_rate(rate: RateConfig) -> str:
    """Both ends, and where they are from."""
    return f"{rate.low:g} TFLOPS ({rate.low_source}) to {rate.high:g} ({rate.high_source})"


def total(intervals: Iterable[Interval | None]) -> Interval:
    """The sum of those that are known."""
    known = [interval for interval in intervals if interval is not None]
    return sum(low for low, _ in known), sum(high for _, high in known)


def words(interval: Interval, digits: int = 1) -> str:
    """An interval in words, one number where its ends look alike."""
    ends = dict.fromkeys(f"{end:,.{digits}f}" for end in interval)
    return " to ".join(ends)


def micro_batch(config: Config, shape: Shape) -> Batch:
    """The largest micro-batch of the training: it holds at least both orders of the longest conversation."""
    student, longest = config.student, config.prompt.max_tokens
    return Batch(
        tokens=max(student.micro_batch_tokens, len(ORDERS) * longest),
        longest=longest,
        bytes=4 if student.dtype == "fp32" else 2,
        dropout=student.lora.dropout > 0,
        checkpointing=student.gradient_checkpointing,
        eager=eager_attention(config, shape),
    )


def eager_attention(config: Config, shape: Shape, on_gpu: bool = True) -> bool:
    """Whether attention stores its scores. Under softcapping auto takes flex attention on GPUs in bf16, else eager."""
    if config.engine.attention != "auto":
        return config.engine.attention == "eager"
    return shape.capped and not (on_gpu and config.student.dtype != "fp32")


def attention(batch: Batch, shape: Shape) -> str:
    """The implementation's name; the locked set for GPUs does not hold flash-attn, which knows caps, too."""
    return "eager" if batch.eager else "flex" if shape.capped else "flash"


def parts(memory: Memory) -> str:
    """What a total is made of."""
    values = {name: getattr(memory, name) for name in ("weights", "gradients", "optimiser", "activations")}
    values["buffers and reserve"] = memory.buffers + memory.reserve
    return ", ".join(f"{name} {value:.1f}" for name, value in values.items())


def host_memory(config: Config, shape: Shape) -> float:
    """GB: every rank of a node loads the whole model; 4-bit weights are made on the GPU, one tensor at a time."""
    ranks = min(config.plan.gpus, config.plan.gpus_per_node)
    return 0.0 if config.student.load_in_4bit else ranks * shape.parameters * 2 / GB


def money(plan: PlanConfig, hours: float) -> Interval | None:
    """What `hours` of all the plan's GPUs cost, None where no price is given."""
    if plan.price_per_gpu_hour is None:
        return None
    return (hours * plan.gpus * plan.price_per_gpu_hour,) * 2
