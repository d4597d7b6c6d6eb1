"""Fine-tuning a judge: its memory by ZeRO stage, the hours of one fold and of all."""

from dataclasses import dataclass

from core.models.flops import scoring_flops
from core.models.memory import GB, METHODS, Memory, Method, MicroBatch, Sharding, checkpoint_gb, training_memory
from core.models.shapes import Shape
from core.records import ORDERS
from distill.plan.config import PlanConfig
from distill.plan.stage import Stage, cost_of
from distill.plan.throughput import step_traffic, training_flops
from distill.plan.work import Work
from students.training.config import EngineConfig, ModelConfig, TrainConfig

GPU_COUNTS = (1, 2, 8, 16)  # in the memory table
ZERO_STAGES = ((0, False), (1, False), (2, False), (3, False), (3, True))  # stage, offloaded to CPU memory


@dataclass(frozen=True)
class Training:
    """What a training's memory and time follow from.

    `longest`: tokens of the longest prompt. `masters` is `optimizer.master_weights`. Each of `folds` trains on all
    conversations but `test_share` and its own fold. `computed`: the share of their prompts that no other of a step
    equals (`computed_share`).
    """

    base: str
    shape: Shape
    model: ModelConfig
    train: TrainConfig
    engine: EngineConfig
    masters: str
    longest: int
    folds: int
    test_share: float
    computed: float = 1.0

    @property
    def method(self) -> Method:
        """How the weights are tuned, as the formulas call it."""
        if self.model.tuning == "full":
            return "full"
        return "qlora" if self.model.load_in_4bit else "lora"

    @property
    def batch(self) -> MicroBatch:
        """The largest micro-batch: it holds at least both orders of the longest conversation."""
        model, engine = self.model, self.engine
        return MicroBatch(
            tokens=max(engine.micro_batch_tokens, len(ORDERS) * self.longest),
            longest=self.longest,
            bytes=4 if model.dtype == "fp32" else 2,
            dropout=model.lora.dropout > 0,
            checkpointing=engine.gradient_checkpointing,
            eager=stores_scores(self.engine.attention, model.dtype, self.shape.capped),
        )

    def sharding(self, gpus: int) -> Sharding:
        """The configured ZeRO stage over `gpus`."""
        return Sharding(self.engine.zero_stage, self.engine.offload != "none", gpus, self.masters)


@dataclass(frozen=True)
class FoldTime:
    """One fold's training: rows, FLOPs with validation and padding, hours of computing and of communication."""

    rows: float
    flops: float
    computing: float
    sending: float


def stores_scores(attention: str, dtype: str, capped: bool, on_gpu: bool = True) -> bool:
    """Whether attention is eager. Under softcapping auto takes flex attention on GPUs in bf16, else eager."""
    if attention != "auto":
        return attention == "eager"
    return capped and not (on_gpu and dtype != "fp32")


def training_stage(role: str, training: Training, work: Work, plan: PlanConfig) -> Stage:
    """The plan of fine-tuning all folds of a judge, which is the experiment's `role`."""
    shape, method, batch, folds = training.shape, training.method, training.batch, training.folds
    sharding, share = training.sharding(plan.gpus), utilisation(method, plan)
    fold = fold_time(training, work, plan)
    hours = folds * (fold.computing + fold.sending)
    memory = training_memory(shape, method, sharding, batch, plan.memory_overhead, plan.reserve_gb)
    trained = shape.trained(method) / 1e6
    checkpointed = ", checkpointed" if batch.checkpointing else ""
    shared = (
        "" if training.computed == 1 else f", {training.computed:.0%} of them computed: the others share a response"
    )
    lines = [
        ("parameters", f"{shape.parameters / 1e9:.2f} billion, {trained:,.1f} million of them trained ({method})"),
        ("micro-batch", f"{batch.tokens:,} tokens{checkpointed}, {attention_name(batch, shape)} attention"),
        (
            "memory",
            f"{memory.total:.1f} GB on each of {plan.gpus} GPUs under ZeRO-{sharding.zero}: {breakdown(memory)}",
        ),
        ("CPU memory", f"{host_memory(training, plan):,.0f} GB on a node, while its ranks load the model"),
        ("disk", disk(training, sharding)),
        ("a row", f"{work.lengths.mean:.0f} tokens ({work.source})"),
        (
            "a fold",
            f"{fold.rows:,.0f} rows in {training.train.epochs} epochs{shared}, {fold.flops / 1e18:.1f} EFLOP with "
            "validation",
        ),
        ("rate", f"{plan.gpus} x {plan.gpu} at {share:.0%} of {plan.peak_tflops:g} TFLOPS"),
        (
            "time",
            f"{hours / folds:.1f} h a fold, {fold.sending:.1f} of it communication; {hours:.1f} h for {folds} folds",
        ),
    ]
    table = memory_by_stage(plan, shape, batch, training.masters)
    return Stage(f"Training the {role}, {training.base}", lines, (hours, hours), cost_of(plan, hours), table)


def utilisation(method: Method, plan: PlanConfig) -> float:
    """The share of a GPU's peak that training reaches."""
    return plan.utilisation.training_4bit if method == "qlora" else plan.utilisation.training


def fold_time(training: Training, work: Work, plan: PlanConfig) -> FoldTime:
    """Computing and communication of one fold, which do not overlap."""
    rows, flops = fold_work(training, work, plan.assumed.padding)
    computing = flops / (plan.gpus * plan.peak_tflops * 1e12 * utilisation(training.method, plan)) / 3600
    conversations = training.train.batch_conversations
    steps = rows / len(ORDERS) / conversations
    tokens = conversations * len(ORDERS) * work.lengths.mean * training.computed
    micro_batches = max(1.0, tokens / training.batch.tokens / plan.gpus)
    traffic = step_traffic(training.shape, training.method, training.sharding(plan.gpus), training.batch, micro_batches)
    bandwidth = plan.node_bandwidth if plan.gpus <= plan.gpus_per_node else plan.network_bandwidth
    return FoldTime(rows, flops, computing, sending=steps * traffic / bandwidth / 3600)


def fold_work(training: Training, work: Work, padding: float) -> tuple[float, float]:
    """(rows trained on, FLOPs with validation and padding) of one fold."""
    train, folds, batch = training.train, training.folds, training.batch
    rest = work.conversations * (1 - training.test_share) * (folds - 1) / folds
    trained, validated = rest * (1 - train.validation_share), rest * train.validation_share
    rows = len(ORDERS) * train.epochs * trained
    steps = train.epochs * trained / train.batch_conversations
    validations = steps / train.validate_every if train.validate_every else train.epochs
    flops = rows * training_flops(training.shape, training.method, work.lengths, batch.checkpointing, batch.eager)
    flops += validations * len(ORDERS) * validated * scoring_flops(training.shape, work.lengths)
    return rows, training.computed * flops / (1 - padding)


def memory_by_stage(plan: PlanConfig, shape: Shape, batch: MicroBatch, masters: str) -> list[list[str]]:
    """GB per GPU, a header and a row for each tuning and ZeRO stage; what does not fit is in brackets."""

    def cell(method: Method, zero: int, offload: bool, gpus: int) -> str:
        sharding = Sharding(zero, offload, gpus, masters)
        total = training_memory(shape, method, sharding, batch, plan.memory_overhead, plan.reserve_gb).total
        return f"{total:.1f}" if total <= plan.memory_gb else f"({total:.1f})"

    return [
        ["tuning", "ZeRO", *(f"{n} GPU{'s' * (n > 1)}" for n in GPU_COUNTS)],
        *(
            [method, f"{zero}{' + CPU' * offload}", *(cell(method, zero, offload, n) for n in GPU_COUNTS)]
            for method in METHODS
            for zero, offload in ZERO_STAGES
            if not (method == "qlora" and zero == 3)  # 4-bit weights are stored as bytes, which it does not partition
        ),
    ]


def attention_name(batch: MicroBatch, shape: Shape) -> str:
    """The implementation; the locked set for GPUs lacks flash-attn, which can cap scores, too."""
    return "eager" if batch.eager else "flex" if shape.capped else "flash"


def breakdown(memory: Memory) -> str:
    """What a total is made of."""
    values = {name: getattr(memory, name) for name in ("weights", "gradients", "optimiser", "activations")}
    values["buffers and reserve"] = memory.buffers + memory.reserve
    return ", ".join(f"{name} {value:.1f}" for name, value in values.items())


def host_memory(training: Training, plan: PlanConfig) -> float:
    """GB: every rank of a node loads the whole model; 4-bit weights are made on the GPU, one tensor at a time."""
    ranks = min(plan.gpus, plan.gpus_per_node)
    return 0.0 if training.model.load_in_4bit else ranks * training.shape.parameters * 2 / GB


def disk(training: Training, sharding: Sharding) -> str:
    """What the base, a checkpoint (two, while it is replaced) and the finished folds take."""
    shape, method, element = training.shape, training.method, training.batch.bytes
    checkpoint = checkpoint_gb(shape, method, sharding, element)
    kept = shape.parameters * element if method == "full" else shape.trained(method) * 4
    return (
        f"{shape.parameters * 2 / GB:.0f} GB of base in the hub's cache; a fold in training: twice {checkpoint:.1f} GB;"
        f" {training.folds} finished: {training.folds * kept / GB:.0f} GB"
    )
