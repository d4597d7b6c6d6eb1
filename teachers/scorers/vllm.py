"""The scorer for large runs: a vLLM engine that is never without work.

`LLM.classify` takes a whole list and comes back when all of it is done, so the engine would run dry at the end of each
part. Here prompts are handed over one by one, always some steps ahead of what the engine has finished.
"""

import inspect
import json
import logging
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from multiprocessing import connection, resource_tracker
from pathlib import Path
from types import NoneType
from typing import Any, Literal, Self, get_args, get_origin

import numpy as np

from core import screen
from core.errors import EngineDied, UserError
from core.naming import inert
from core.scoring import check_length
from teachers.scorers.config import VllmConfig

log = logging.getLogger(__name__)
DTYPES = {"auto": "auto", "fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
CPU_KV_CACHE_GIB = 2
STEPS_AHEAD = 4  # the engine holds prompts for so many full steps: it never waits, and little is left after a Ctrl-C
SHUTDOWN_SECONDS = 60  # vLLM's 5 would kill the engine while it still waits for its workers


class VllmScorer:
    """Scores with a vLLM engine, which lives in a child process until `close()`.

    With `label_ids` the model is asked as a language model for the log-probabilities of these tokens as the next one,
    over the whole vocabulary; else its score head gives raw logits.
    """

    def __init__(
        self,
        model: Path,
        config: VllmConfig,
        max_tokens: int,
        label_ids: Sequence[int] | None = None,
        adapter: Path | None = None,
    ) -> None:
        """Start the engine: tens of seconds on a CPU, minutes for a large model.

        `max_tokens` is the longest prompt it will take, `adapter` a LoRA folder that it serves beside the model. Raises
        `UserError` for engine arguments that vLLM does not have, and for values that are in none of its lists.
        Environment variables that vLLM reads are set here, unless they are set already; `close()` puts them back.
        """
        self._environment = dict(os.environ)
        # Read when vllm is imported. Its warnings tell of kernels and libraries that this machine does without.
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        check_arguments(config.engine_args)
        log.info("starting vLLM: half a minute on a CPU, minutes for a large model%s", _where_it_writes())
        began = time.perf_counter()
        self.llm: Any = _start(model, config, max_tokens, label_ids, adapter)
        self._watch()
        self._guard = _kill_if_orphaned([process.pid for process in self._processes()])
        log.info("vLLM is ready to score with %s after %.0f s", model, time.perf_counter() - began)
        self.max_tokens, self.label_ids = max_tokens, label_ids
        self.tokens_cached = 0
        self._lora, self._params = _lora_request(adapter), _params(label_ids)
        scheduler = self.llm.llm_engine.vllm_config.scheduler_config
        self._tokens_ahead = STEPS_AHEAD * scheduler.max_num_batched_tokens
        self._prompts_ahead = STEPS_AHEAD * scheduler.max_num_seqs

    def stream(self, prompts: Iterable[Sequence[int]]) -> Iterator[tuple[int, np.ndarray]]:
        """As `core.scoring.Scorer` says. Raises `UserError` for prompts of no or too many tokens."""
        from vllm.inputs import tokens_input
        from vllm.v1.engine.exceptions import EngineDeadError

        engine, waiting = self.llm.llm_engine, enumerate(prompts)
        upcoming = next(waiting, None)
        held: dict[int, int] = {}  # position -> tokens
        tokens_held = 0
        try:
            while upcoming is not None or held:
                while upcoming and len(held) < self._prompts_ahead and tokens_held < self._tokens_ahead:
                    position, prompt = upcoming
                    check_length(position, prompt, self.max_tokens)
                    engine.add_request(str(position), tokens_input(list(prompt)), self._params, lora_request=self._lora)
                    held[position] = len(prompt)
                    tokens_held += len(prompt)
                    upcoming = next(waiting, None)
                for output in engine.step():
                    if output.finished:
                        tokens_held -= held.pop(int(output.request_id))
                        self.tokens_cached += output.num_cached_tokens or 0
                        yield int(output.request_id), self._read(output)
        except Exception as error:
            if not isinstance(error, EngineDeadError) and self._alive():
                raise
            held.clear()  # whoever meets the death first says so in its own way, vLLM's closed sockets among them
            raise EngineDied(
                "vLLM's engine died (its own last words are above). What is written stays: rerun the same command to "
                "resume. Where memory was short, lower engine_args.gpu_memory_utilization or set "
                "engine_args.max_num_seqs"
            ) from error
        finally:
            if held and self._alive():  # the consumer stopped, or something broke
                engine.abort_request([str(position) for position in held])

    def _processes(self) -> list[Any]:
        return list(self.llm.llm_engine.engine_core.resources.engine_manager.processes)

    def _alive(self) -> bool:
        return all(process.is_alive() for process in self._processes())

    def _watch(self) -> None:
        """Have a thread wait for the engine's death. vLLM notes it, but leaves whoever waits for output waiting."""
        from vllm.v1.engine.exceptions import EngineDeadError

        core = self.llm.llm_engine.engine_core
        sentinels = [process.sentinel for process in self._processes()]

        def tell() -> None:
            connection.wait(sentinels)
            core.outputs_queue.put_nowait(EngineDeadError())  # after close() nobody reads it

        threading.Thread(target=tell, name="engine-watch", daemon=True).start()

    def _read(self, output: Any) -> np.ndarray:
        if self.label_ids is None:
            return output.outputs.data.float().numpy().reshape(-1)
        found = output.outputs[0].logprobs[0]
        return np.array([found[token].logprob for token in self.label_ids], np.float32)

    def close(self) -> None:
        """End the engine's processes, which frees their memory, and put the environment back."""
        if self.llm is not None:
            processes = self._processes()
            self.llm.llm_engine.engine_core.shutdown(timeout=SHUTDOWN_SECONDS)
            for process in processes:
                process.join()  # where the time was not enough, vLLM kills it but leaves a zombie
            self._guard.communicate(b"\n")
            self.llm = None
            os.environ.clear()
            os.environ.update(self._environment)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _where_it_writes() -> str:
    file = screen.log_file()
    return f"; it writes to {file}" if file else ""


def _start(
    model: Path, config: VllmConfig, max_tokens: int, label_ids: Sequence[int] | None, adapter: Path | None
) -> Any:
    """The running `vllm.LLM`."""
    from vllm import LLM
    from vllm.platforms import current_platform

    arguments: dict[str, Any] = {"dtype": DTYPES[config.dtype]}
    if current_platform.is_cpu():
        arguments |= _cpu_arguments(config)
    if adapter is not None:
        arguments |= _adapter_arguments(adapter)
    with _children_without_interrupts(), inert(model) as place:  # vLLM globs for the weights
        try:
            return LLM(
                model=str(place),
                runner="pooling" if label_ids is None else "generate",
                max_model_len=max_tokens + (label_ids is not None),  # room for the token that it is asked for
                skip_tokenizer_init=label_ids is not None or not _has_one_output(model),
                use_tqdm_on_load=False,
                **arguments | config.engine_args,
            )
        except ValueError as error:  # how vLLM says that model and arguments do not go together
            raise UserError(f"vLLM does not take {model} with engine_args={config.engine_args}: {error}") from error


def _has_one_output(model: Path) -> bool:
    """Whether it is a classifier with one output: for these vLLM opens an API of scores, which wants a tokenizer."""
    config = json.loads((model / "config.json").read_text())
    return len(config.get("id2label") or ()) == 1 or config.get("num_labels") == 1


@contextmanager
def _children_without_interrupts() -> Iterator[None]:
    """Children inherit a signal mask: a Ctrl-C, which the terminal sends to all, shall not end the engine while the
    stage still waits for what it is computing. (While the engine loads, this process waits with it.)
    """
    resource_tracker.ensure_running()  # it would unblock the signals when multiprocessing starts it
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _kill_if_orphaned(pids: Sequence[int]) -> subprocess.Popen[bytes]:
    """A shell that kills `pids` when this process dies without a word, and ends when it is sent a line.

    vLLM's engine outlives a kill -9 of its parent, and keeps the memory that the next run needs.
    """
    command = ["sh", "-c", 'read _ || kill -9 "$@"', "engine-guard", *map(str, pids)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)


def _adapter_arguments(adapter: Path) -> dict[str, Any]:
    """What has vLLM keep room for one LoRA adapter of this rank."""
    from vllm.config.lora import MaxLoRARanks

    rank = json.loads((adapter / "adapter_config.json").read_text())["r"]
    room = min(size for size in get_args(MaxLoRARanks) if size >= rank)
    return {"enable_lora": True, "max_loras": 1, "max_lora_rank": room}


def _lora_request(adapter: Path | None) -> Any:
    """What names the adapter in every request; None without one."""
    from vllm.lora.request import LoRARequest

    return None if adapter is None else LoRARequest("adapter", 1, str(adapter))


def _params(label_ids: Sequence[int] | None) -> Any:
    from vllm import PoolingParams, SamplingParams
    from vllm.sampling_params import RequestOutputKind

    if label_ids is None:
        return PoolingParams(task="classify", use_activation=False)
    return SamplingParams(
        max_tokens=1,
        temperature=0,
        logprob_token_ids=list(label_ids),
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def check_arguments(given: Mapping[str, Any]) -> None:
    """Raise `UserError` for engine arguments that the installed vLLM does not have, and for a value that is in none of
    its lists: it would tell only after it has read the model, and in a page.
    """
    from vllm import LLM, EngineArgs, __version__
    from vllm.model_executor.layers.quantization import QUANTIZATION_METHODS
    from vllm.plugins import load_general_plugins

    load_general_plugins()  # they may add to the lists

    kinds = {field.name: field.type for field in fields(EngineArgs)}
    if unknown := sorted(set(given) - {*inspect.signature(LLM).parameters, *kinds}):
        raise UserError(
            f"scorers.*.engine_args: vllm.LLM has no engine arguments {unknown}; see the keys of vllm.EngineArgs"
        )
    for name, value in given.items():
        listed = QUANTIZATION_METHODS if name == "quantization" else _listed(kinds.get(name))
        if listed and value is not None and _spelt(value) not in map(_spelt, listed):
            raise UserError(
                f"scorers.*.engine_args.{name}={value}: vLLM {__version__} has {', '.join(map(str, listed))}"
            )


def _spelt(value: Any) -> Any:
    """A name as vLLM compares it: FP8 is fp8, and flashinfer-cutlass flashinfer_cutlass."""
    return value.lower().replace("-", "_") if isinstance(value, str) else value


def _listed(kind: Any) -> list[Any]:
    """The values of a type that is nothing but literals and None; none for any other type."""
    members = [member for member in get_args(kind) or (kind,) if member is not NoneType]
    if get_origin(kind) is Literal:
        return list(get_args(kind))
    literal = all(get_origin(member) is Literal for member in members)
    return [value for member in members for value in get_args(member)] if literal else []


def _cpu_arguments(config: VllmConfig) -> dict[str, Any]:
    # On a CPU gpu_memory_utilization means that share of the RAM, and vLLM would keep one core for itself.
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", str(CPU_KV_CACHE_GIB))
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    arguments: dict[str, Any] = {"enforce_eager": True, "block_size": 32}
    if config.dtype == "auto":
        arguments["dtype"] = "float32"
    return arguments
