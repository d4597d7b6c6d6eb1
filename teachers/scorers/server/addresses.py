"""Where the vLLM servers of a scorer are, what they are told of who asks, and which model all of them serve."""

import os
from collections.abc import Sequence
from string import Formatter
from typing import Any

import httpx

from core.errors import UserError


def filled_urls(templates: Sequence[str], fold: int | None) -> list[str]:
    """The servers' addresses, {fold} filled in, without a trailing slash or /v1, which clients of OpenAI write."""
    if not templates:
        raise UserError("scorers.*.urls=[]: give the URL of each vLLM server, such as [http://localhost:8000]")
    urls: list[str] = []
    for template in templates:
        try:
            holes = {name for _, name, _, _ in Formatter().parse(template) if name is not None}
            if unknown := sorted(holes - {"fold"}):
                raise UserError(f"unknown {{{unknown[0]}}}")
            if holes and fold is None:
                raise UserError("this scorer belongs to no fold")
            url = template.format(fold=fold).rstrip("/").removesuffix("/v1")
            parsed = httpx.URL(url)
            if parsed.scheme not in ("http", "https") or not parsed.host:
                raise UserError("no http:// or https:// address")
        except (ValueError, httpx.InvalidURL) as error:
            raise UserError(
                f"scorers.*.urls: {template!r}: {error}; write http://host:port, with {{fold}} where each fold's "
                "teacher has a server of its own"
            ) from error
        if url in urls:
            raise UserError(f"scorers.*.urls: {url} is there twice; raise scorers.*.requests_in_flight")
        urls.append(url)
    return urls


def headers_of(api_key_variable: str | None, group: str = "scorers.*") -> dict[str, str]:
    """The headers of every request; `group`: of the keys. Raises `UserError` where the environment has no such key."""
    if api_key_variable is None:
        return {}
    key = os.environ.get(api_key_variable, "").strip()
    if not key or not (key.isascii() and key.isprintable()):
        raise UserError(f"{group}.api_key_variable={api_key_variable}: no such key in the environment; set it, or null")
    return {"Authorization": f"Bearer {key}"}


def common_model(cards: dict[str, dict[str, dict[str, Any]]], wanted: str | None, tokens: int) -> str:
    """The name of the model that all servers are asked for; `cards` by URL and name.

    Raises `UserError` unless each serves it, with room for `tokens` tokens.
    """
    chosen: dict[str, str] = {}
    for url, served in cards.items():
        if wanted is None and len(served) != 1:
            raise UserError(f"{url} serves {sorted(served)}: choose one with scorers.*.model")
        chosen[url] = name = next(iter(served)) if wanted is None else wanted
        if name not in served:
            raise UserError(f"scorers.*.model={name}: {url} serves {sorted(served)}")
        room = served[name].get("max_model_len")
        if room is not None and room < tokens:
            raise UserError(
                f"{url} takes {room} tokens, {tokens} are needed: start it with vllm serve --max-model-len {tokens}, "
                "or lower prompt.max_tokens"
            )
    if len(set(chosen.values())) > 1:
        raise UserError(f"the servers serve different models, {chosen}: give servers of one model")
    return name
