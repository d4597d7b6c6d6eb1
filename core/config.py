"""The typed configuration: Hydra's DictConfig becomes these frozen dataclasses at the door and goes no further.

Every number lives in `conf/`; nothing here has a default. A key that is unknown, missing, of the wrong type or out of
its bounds (`core/bounds.py`) is an error, and all errors of a configuration are reported at once.
"""

import types
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from core.bounds import (
    Betas,
    Count,
    Natural,
    NonNegative,
    PartialShare,
    Port,
    Positive,
    PositiveShare,
    Probabilities,
    Seed,
    Share,
    ShareBelowOne,
    at_least,
    between,
    is_finite,
)
from core.errors import UserError

C = TypeVar("C")
CanaryMode = Literal["refuse", "warn"]


@dataclass(frozen=True)
class FoldsConfig:
    count: Annotated[int, at_least(2)]
    split: Literal["grouped", "blackpearl"]
    seed: Seed


@dataclass(frozen=True)
class SimulateConfig:
    """How many conversations `core/data/arena_sim.py` writes; the preference law itself is written down there."""

    conversations: Count
    seed: Seed


@dataclass(frozen=True)
class DataConfig:
    """Where conversations come from: exactly one of `files`, `hub` and `simulate` is set.

    `test_share`: of the voted conversations, in the locked test split, from which no stage ever learns.
    `near_duplicates`, 0.6 to 1 or null for off: the similarity from which first prompts count as one, so that none of
    them lies in another fold than the others (`core/data/near_duplicates.py`). Below 0.6 MinHash misses too many
    pairs: one in eight at 0.5.
    """

    name: str
    files: list[str] | None
    hub: str | None
    simulate: SimulateConfig | None
    ignore_columns: list[str]
    max_rejected: Share
    shuffle_sides: list[str]
    test_share: ShareBelowOne
    near_duplicates: Annotated[float, between(0.6, 1)] | None
    folds: FoldsConfig


@dataclass(frozen=True)
class TemplateConfig:
    """The fixed texts of a prompt; `core/prompts.py` shows how they frame a conversation."""

    instruction: str
    question: str
    answer_a: str
    answer_b: str
    verdict: str
    cut: str
    omitted: str
    model_a: str
    model_b: str


@dataclass(frozen=True)
class PromptConfig:
    """`show_models` tells the judge who wrote each response: for teachers, whose student need not know."""

    max_tokens: Count
    min_round_tokens: Natural
    show_models: bool
    template: TemplateConfig


@dataclass(frozen=True)
class LoraConfig:
    """`method`: the scale is alpha / rank, for rslora alpha / sqrt(rank) (Kalajdzievski 2023, arXiv 2312.03732).

    dora learns each output's magnitude beside the direction that LoRA changes (Liu et al. 2024, arXiv 2402.09353).
    """

    method: Literal["lora", "rslora", "dora"]
    rank: Count
    alpha: Count
    dropout: ShareBelowOne
    targets: str | list[str]


@dataclass(frozen=True)
class StudentConfig:
    """The judge that `distill.student` trains; a teacher is the same thing with `role=teacher`.

    `tuning`: `lora` trains matrices beside the weights, `full` the weights. `head`: `auto` goes on from a base that is
    a judge already. `softcapping` false: Gemma-2's caps are off, in this judge and in all that is made of it.
    """

    base: str | None
    layers: Count | None
    freeze_layers: Natural
    head: Literal["auto", "new"]
    softcapping: bool
    dtype: Literal["auto", "fp32", "bf16"]
    load_in_4bit: bool
    tuning: Literal["lora", "full"]
    lora: LoraConfig
    gradient_checkpointing: bool
    epochs: Count
    schedule_epochs: Count | None
    batch_conversations: Count
    length_pool_steps: Count
    micro_batch_tokens: Count
    validation_share: PartialShare
    validate_every: Count | None


@dataclass(frozen=True)
class TermConfig:
    """One term of the loss. It moves straight from `weight` to `final_weight` over the training, null: it stays."""

    weight: NonNegative
    temperature: Positive
    final_weight: NonNegative | None
    final_temperature: Positive | None


@dataclass(frozen=True)
class RowWeightsConfig:
    """How much a conversation counts in the loss."""

    votes: Literal["one", "count"]
    confidence: NonNegative
    sources: dict[str, NonNegative]


@dataclass(frozen=True)
class LossConfig:
    """The terms that `students/training/losses.py` defines; those of weight 0 are absent."""

    cross_entropy: TermConfig
    kl: TermConfig
    reverse_kl: TermConfig
    jensen_shannon: TermConfig
    skew_kl: TermConfig
    cosine: TermConfig
    squared_error: TermConfig
    swap_consistency: TermConfig
    rows: RowWeightsConfig

    @property
    def terms(self) -> dict[str, TermConfig]:
        """The terms that count at any time of the training, by name."""
        every = {name: term for name, term in vars(self).items() if isinstance(term, TermConfig)}
        return {name: term for name, term in every.items() if term.weight or term.final_weight}

    @property
    def distils(self) -> bool:
        """Whether a term needs a teacher."""
        return bool(self.terms.keys() - {"cross_entropy", "swap_consistency"})


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW. `master_weights` says what keeps small steps of weights in bf16 from being rounded away."""

    master_weights: Literal["fp32", "kahan", "none"]
    lr: NonNegative
    head_lr: NonNegative
    betas: Betas
    eps: Positive
    weight_decay: NonNegative
    warmup: Share
    warmup_steps: Count | None
    decay: Literal["cosine", "linear", "constant"]
    min_lr_ratio: Share
    clip: NonNegative


@dataclass(frozen=True)
class EngineConfig:
    """How a step is carried out; nothing here changes what is learnt.

    `offload`: where optimiser states (and, with zero_stage 3, parameters) are kept.
    """

    zero_stage: Literal[0, 1, 2, 3]
    offload: Literal["none", "cpu", "nvme"]
    nvme_path: str | None
    attention: Literal["auto", "eager", "sdpa", "flash_attention_2", "flex_attention"]
    liger: bool
    padding_free: bool
    checkpoint_minutes: NonNegative


@dataclass(frozen=True)
class ServerConfig:
    """OpenAI-compatible vLLM servers. In `urls`, {fold} stands for the fold of the teacher that a server holds."""

    urls: list[str]
    model: str | None
    api_key_variable: str | None
    prompts_per_request: Count
    requests_in_flight: Count
    retries: Natural
    timeout_s: Positive


@dataclass(frozen=True)
class RayConfig:
    """Workers on a Ray cluster, each a scorer of its own with `gpus` GPUs."""

    address: str | None
    backend: Literal["vllm", "transformers"]
    workers: Count
    gpus: NonNegative
    cpus: NonNegative
    prompts_per_task: Count


@dataclass(frozen=True)
class ScorerConfig:
    """One way to turn token ids into logits; `vllm` holds engine arguments passed on as they are.

    `method`: `classify` reads a score head; `label_tokens` the log-probabilities of `labels` as the next token.
    `load_in_8bit`: transformers rounds weights to int8 as it loads them (bitsandbytes' LLM.int8).
    """

    backend: Literal["vllm", "transformers", "server", "ray"]
    method: Literal["classify", "label_tokens"]
    labels: list[str]
    dtype: Literal["auto", "fp32", "bf16", "fp16"]
    batch_tokens: Count
    load_in_8bit: bool
    vllm: dict[str, Any]
    server: ServerConfig
    ray: RayConfig


@dataclass(frozen=True)
class MixtureConfig:
    """Several finished teachers as one, by name. `weights`: null for equal ones."""

    teachers: list[str]
    weights: list[Positive] | None
    space: Literal["logits", "probabilities"]
    calibrate: bool


@dataclass(frozen=True)
class TeacherConfig:
    """Who gives the soft targets, and which of them a student takes.

    `folds`: fine-tuned fold teachers below `path`; `model`: one ready-made `model` that saw none of the rows; `reward`:
    a reward model, which scores each response alone; `mixture`: other teachers' stored logits.
    """

    name: str | None
    kind: Literal["folds", "model", "reward", "mixture"]
    path: str | None
    model: str | None
    folds: list[Natural]
    rows: Literal["out_of_fold", "in_fold"]
    max_entropy: NonNegative | None
    rows_per_part: Count
    same_prompt: bool
    merge: bool
    reward_l2: NonNegative
    price_per_hour: NonNegative | None
    mixture: MixtureConfig
    scorer: ScorerConfig


@dataclass(frozen=True)
class QuantisationConfig:
    """`smoothing`: SmoothQuant's migration strength, for w8a8; null: none. `group`: how many weights of a row share a
    scale in w8a16 and w4a16, those that the kernel for T4s knows, -1: all of a row; null: the largest of 128, 64, 32
    that divides every layer's width.
    """

    smoothing: Share | None
    group: Literal[-1, 32, 64, 128] | None
    damping: Positive


@dataclass(frozen=True)
class FidelityConfig:
    """At most `rows` to compare on, none of which trained the student, and by how much the export may differ from it
    unquantised: it fails where the whole 95% interval of a difference lies beyond its limit.

    `log_loss`: more nats a row, in the mean; `kl`: mean KL(student || export) in nats; `verdicts`: share that changes;
    `regret`: see `eval/fidelity.py`; `flip_rate`, `ece`: differences. Null: any.
    """

    rows: Count
    log_loss: NonNegative | None
    kl: NonNegative | None
    verdicts: NonNegative | None
    regret: NonNegative | None
    flip_rate: NonNegative | None
    ece: NonNegative | None


@dataclass(frozen=True)
class CanaryFactors:
    """Of the root mean square of all differences, of the largest, and of that of a label's mean; `exact` of all three
    as the exact answer has them.
    """

    rms: Positive
    largest: Positive
    shift: Positive
    exact: Positive


@dataclass(frozen=True)
class CanariesConfig:
    """`rows` prompts, of `tokens` together, that every engine scores first (`eval/canary_check.py`). It may differ by
    `factors` times what `repeats` answers of the export differ by that are all right, and always by `floor`.
    """

    rows: Count
    tokens: Count
    repeats: Annotated[int, at_least(2)]
    factors: CanaryFactors
    floor: NonNegative


@dataclass(frozen=True)
class ExportConfig:
    """`folds`: null for the run's own fold, else those to average by `average`; `compare_folds`: whether to tell what
    that costs.

    `margin`: how many times the largest activation must fit into fp16, found on `calibration_rows` training
    conversations, which quantisation sees, too. `scorer` reads the export, `reference` the unquantised student.
    """

    folds: list[Natural] | None
    average: Literal["factors", "delta", "svd"]
    compare_folds: bool
    format: Literal["merged", "w8a8", "w8a16", "w4a16", "gptq", "gguf"]
    dtype: Literal["fp16", "bf16", "fp32"]
    calibration_rows: Count
    margin: Positive
    quantisation: QuantisationConfig
    calibration: Literal["none", "temperature", "vector"]
    fidelity: FidelityConfig
    canaries: CanariesConfig
    scorer: ScorerConfig
    reference: ScorerConfig


@dataclass(frozen=True)
class EvalConfig:
    """`split`: which rows are scored, the locked test split or the fold that the student holds out.

    `judges`: further ones by name, each a folder or a predictions.parquet; `own`: the model family of a judge, by name.
    `bias_level`: how often an interval of a bias may miss the truth. `student` reads trained runs, `exported` exports.
    """

    split: Literal["test", "fold"]
    bootstrap: Annotated[int, at_least(40)]  # one draw beyond each end of a 95% interval
    ece_bins: Count
    bias_level: PartialShare
    judges: dict[str, str]
    own: dict[str, str]
    seeds: list[Seed]
    variants: list[str]
    student: ScorerConfig
    exported: ScorerConfig


@dataclass(frozen=True)
class RulesConfig:
    """What people vote for kinds of rows that no judge needs to read, as probabilities in the order of `LABELS`; null:
    the judge decides. In `one_empty` the empty response stands first, whichever side it is.
    """

    identical: Probabilities | None
    one_empty: Probabilities | None
    both_empty: Probabilities | None


@dataclass(frozen=True)
class PredictConfig:
    """`model`: an export's folder, null for the experiment's. `devices`: processes side by side, one a GPU; null: as
    many as there are GPUs. `second_order`: the share of rows that are judged in both orders, those first that need it
    most, which `pilot` rows, drawn at random, tell; `minutes`: the budget after which no more second orders are begun,
    null for none. `rows_per_part`: what a kill can cost, and how often the budget is looked at.
    """

    model: str | None
    devices: Count | None
    max_unreadable: Share
    second_order: Share
    pilot: Natural
    minutes: Positive | None
    rows_per_part: Count
    rules: RulesConfig
    scorer: ScorerConfig


@dataclass(frozen=True)
class ServeConfig:
    """`model`: an export's folder, null for the experiment's. `api_key_variable`: the environment variable that holds
    the key that clients must send, null for none. `max_queue`: conversations; `max_jobs`: that are not done;
    `max_wait_ms`: how long a prompt that finds the scorer idle waits for others to share its batch.
    """

    model: str | None
    host: str
    port: Port
    api_key_variable: str | None
    max_body_bytes: Count
    max_conversations: Count
    max_queue: Count
    max_jobs: Count
    max_wait_ms: NonNegative
    shutdown_seconds: NonNegative
    scorer: ScorerConfig


@dataclass(frozen=True)
class UtilisationConfig:
    """Shares of the peak that each kind of work reaches."""

    scoring: PositiveShare
    training: PositiveShare
    training_4bit: PositiveShare


@dataclass(frozen=True)
class AssumedConfig:
    """What `distill.plan` takes where nothing here tells: data that are not prepared, a model without tokenizer."""

    conversations: Count
    tokens: Count
    padding: ShareBelowOne
    cached: ShareBelowOne


@dataclass(frozen=True)
class RateConfig:
    """TFLOPS that whole judges reach: in the slowest and the fastest report that can be had, and whose these are."""

    low: Positive
    low_source: str
    high: Positive
    high_source: str


@dataclass(frozen=True)
class T4Config:
    """The GPU that the export runs on. `memory_gb`: what the engine may hold of its memory. `fp16`: with fp16
    activations, `int8`: with int8 ones. `batch_tokens`: prompts that are processed at a time.
    """

    memory_gb: Positive
    fp16: RateConfig
    int8: RateConfig
    batch_tokens: Count
    conversations: Count
    price_per_hour: NonNegative | None


@dataclass(frozen=True)
class PlanConfig:
    """The machine and the work that `distill.plan` reckons with; `calibration`: a file that `bench.calibrate` wrote.

    `memory_overhead`: activations over the formula's; `reserve_gb`: what context and libraries hold. Bandwidths are of
    one GPU, in GB/s, within a node of `gpus_per_node` and between nodes.
    """

    gpu: str
    memory_gb: Positive
    peak_tflops: Positive
    utilisation: UtilisationConfig
    memory_overhead: Positive
    reserve_gb: NonNegative
    gpus: Count
    gpus_per_node: Count
    node_bandwidth: Positive
    network_bandwidth: Positive
    price_per_gpu_hour: NonNegative | None
    calibration: str | None
    conversations: Count | None
    tokens: Count | None
    assumed: AssumedConfig
    t4: T4Config


@dataclass(frozen=True)
class TrackerConfig:
    """Where curves go. `samples`: how many validation conversations each validation shows, 0 for none."""

    backend: Literal["wandb", "tensorboard", "none"]
    project: str
    samples: Natural
    sample_characters: Count


@dataclass(frozen=True)
class SweepConfig:
    """Which trial of which study this run is; the sweeper sets both, null outside of a search."""

    study: str | None
    trial: Natural | None


@dataclass(frozen=True)
class PathsConfig:
    root: str


@dataclass(frozen=True)
class Config:
    """Everything `conf/` says.

    `run` is `name` plus the overrides that change the trained model (see `core/naming.py`). `canaries`: what becomes of
    an export that this machine computes differently (see `eval/canary_check.py`).
    """

    name: str
    run: str
    role: Literal["student", "teacher"]
    fold: Natural
    seed: Seed
    limit: Count | None
    overwrite: bool
    input: str | None
    output: str | None
    check: str | None
    canaries: CanaryMode
    data: DataConfig
    prompt: PromptConfig
    student: StudentConfig
    loss: LossConfig
    optimizer: OptimizerConfig
    engine: EngineConfig
    teacher: TeacherConfig
    export: ExportConfig
    eval: EvalConfig
    predict: PredictConfig
    serve: ServeConfig
    plan: PlanConfig
    tracker: TrackerConfig
    sweep: SweepConfig
    paths: PathsConfig

    @property
    def root(self) -> Path:
        return Path(self.paths.root)


def from_mapping(kind: type[C], values: Mapping[str, Any], at: str = "") -> C:
    """Build dataclass `kind` from nested mappings. Raises one `UserError` that lists every problem found.

    `at` is the place of `values` in the whole configuration, for the message.
    """
    problems: list[str] = []
    built = _dataclass(kind, values, at, problems)
    if problems:
        raise UserError("the configuration has problems:\n" + "\n".join(f"  - {p}" for p in problems))
    return built


def to_mapping(config: Any) -> dict[str, Any]:
    """The plain nested dict of a configuration, as manifests store it."""
    return asdict(config)


def _dataclass(kind: Any, values: Any, at: str, problems: list[str]) -> Any:
    if not isinstance(values, Mapping):
        problems.append(
            f"{at or 'config'}={values!r}: expected a group of keys ({', '.join(f.name for f in fields(kind))})"
        )
        return None
    hints = get_type_hints(kind, include_extras=True)
    for key in values:
        if key not in hints:
            problems.append(f"{_join(at, key)}={values[key]!r}: unknown key; known here: {', '.join(hints)}")
    for key in hints:
        if key not in values:
            problems.append(f"{_join(at, key)}: missing; set it in conf/ or on the command line")
    parsed = {key: _value(hint, values[key], _join(at, key), problems) for key, hint in hints.items() if key in values}
    return None if problems else kind(**parsed)


def _value(hint: Any, value: Any, at: str, problems: list[str], otherwise: str = "") -> Any:
    origin, arguments = get_origin(hint), get_args(hint)
    if is_dataclass(hint):
        return _dataclass(hint, value, at, problems)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        options = [a for a in arguments if a is not type(None)]
        fitting = [a for a in options if _fits(a, value)]
        null = ", or null" if type(None) in arguments else ""
        return _value(fitting[0] if fitting else options[0], value, at, problems, null)
    if origin is Annotated:
        plain, *bounds = arguments
        before = len(problems)
        parsed = _value(plain, value, at, problems, otherwise)
        if len(problems) == before and (broken := [bound for bound in bounds if not bound.allows(parsed)]):
            problems.append(f"{at}={value!r}: give {broken[0].advice}{otherwise}")
        return parsed
    if not _fits(hint, value):
        problems.append(f"{at}={value!r}: expected {_describe(hint)}, got {type(value).__name__}")
        return None
    if isinstance(value, int | float) and not is_finite(value):
        problems.append(f"{at}={value!r}: give a finite number{otherwise}")
        return None
    if origin is list:
        return [_value(arguments[0], item, f"{at}[{i}]", problems) for i, item in enumerate(value)]
    if origin is dict:
        return {key: _value(arguments[1], item, _join(at, key), problems) for key, item in value.items()}
    if hint is Any:  # another library's own settings
        kind = dict[str, Any] if isinstance(value, Mapping) else list[Any] if isinstance(value, list) else None
        return value if kind is None else _value(kind, value, at, problems)
    return float(value) if hint is float else value


def _fits(hint: Any, value: Any) -> bool:
    origin = get_origin(hint)
    if hint is Any:
        return True
    if origin is Annotated:
        return _fits(get_args(hint)[0], value)
    if is_dataclass(hint) or origin is dict:
        return isinstance(value, Mapping)
    if origin is Literal:
        return any(value == option and type(value) is type(option) for option in get_args(hint))
    if origin is list:
        return isinstance(value, list)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)


def _describe(hint: Any) -> str:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _describe(arguments[0])
    if origin is Literal:
        return "one of " + ", ".join(map(str, arguments))
    if origin in (list, dict):
        return f"{origin.__name__}[{', '.join(map(_describe, arguments))}]"
    return str(getattr(hint, "__name__", hint))


def _join(at: str, key: str) -> str:
    return f"{at}.{key}" if at else key
