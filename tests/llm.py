"""Servers of models for tests: a real one on a tiny random model, and answers for another.

`real_server` starts llama.cpp's own server with a model that `write_model` makes: 0.5 MB of random weights.
It is quick, and what it says is nonsense. `said` and `refused` are answers for `tests.web.serving`.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest

from tests.web import Paused, answer

MODEL = "tiny-random"
KEY = "test-key-0123456789"
CONTEXT = 512  # tokens
SEED = 7


def said(content: str = "yes", usage: tuple[int, int] | None = (7, 3), **message: Any) -> bytes:
    """The answer to a chat, as a server writes it."""
    whole = {"role": "assistant", "content": content, **message}
    choice = {"index": 0, "message": whole, "finish_reason": "stop"}
    document: dict[str, Any] = {
        "id": "c-1",
        "object": "chat.completion",
        "model": "said-9",
        "choices": [choice],
    }
    if usage is not None:
        document["usage"] = {
            "prompt_tokens": usage[0],
            "completion_tokens": usage[1],
            "total_tokens": sum(usage),
        }
    return answer(orjson.dumps(document), content_type="application/json")


def refused(status: int, message: str = "", **headers: str) -> bytes:
    """What a server says of a request that it does not answer."""
    return answer(orjson.dumps({"error": {"message": message, "type": "error"}}), status, **headers)


def event(
    delta: dict[str, Any] | None = None,
    finish_reason: str | None = None,
    usage: tuple[int, int] | None = None,
) -> bytes:
    """One event of a streamed chat: a piece of the message, or at its end the usage."""
    choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": finish_reason}]
    document: dict[str, Any] = {"id": "c-1", "model": "said-9", "choices": choices}
    if usage is not None:
        document["usage"] = {"prompt_tokens": usage[0], "completion_tokens": usage[1]}
    return b"data: " + orjson.dumps(document) + b"\n\n"


def streamed(
    *events: bytes, done: bool = True, pause: tuple[int, asyncio.Event] | None = None
) -> bytes | Paused:
    """The answer to a chat that is to come in pieces; `pause` is waited for before one of them."""
    pieces = [*events, *([b"data: [DONE]\n\n"] if done else [])]
    body = b"".join(pieces)
    head = answer(body, content_type="text/event-stream; charset=utf-8")[: -len(body) or None]
    if pause is None:
        return head + body
    number, wait = pause
    return Paused(head + b"".join(pieces[:number]), wait, b"".join(pieces[number:]))


def write_model(path: Path) -> None:
    """A llama of two layers with random weights, and a vocabulary of single bytes and a few words."""
    import gguf
    import numpy as np

    random = np.random.default_rng(SEED)
    words = ["▁the", "▁a", "▁of", "▁and", "▁to", "▁in", "▁counter", "▁price", "▁rose", "▁value", "▁message"]
    tokens = [b"<unk>", b"<s>", b"</s>", *(f"<0x{byte:02X}>".encode() for byte in range(256))]
    scores = [0.0] * len(tokens)
    tokens += [word.encode() for word in words]
    tokens += [bytes([byte]) for byte in b"abcdefghijklmnopqrstuvwxyz "] + ["▁".encode()]
    scores += [-float(place) for place in range(1, len(tokens) - len(scores) + 1)]
    kind = gguf.TokenType
    kinds = [kind.UNKNOWN, kind.CONTROL, kind.CONTROL, *[kind.BYTE] * 256]
    kinds += [kind.NORMAL] * (len(tokens) - len(kinds))
    width, heads, layers, inner = 64, 4, 2, 128
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_name(MODEL)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(width)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(heads)
    writer.add_head_count_kv(heads)
    writer.add_rope_dimension_count(width // heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_file_type(0)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores(scores)
    writer.add_token_types([int(each) for each in kinds])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_chat_template(
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant:"
    )

    def add(name: str, *shape: int) -> None:
        weights = np.ones(shape) if name.endswith("norm.weight") else random.standard_normal(shape) * 0.08
        writer.add_tensor(name, weights.astype(np.float32))

    add("token_embd.weight", len(tokens), width)
    add("output_norm.weight", width)
    add("output.weight", len(tokens), width)
    for layer in range(layers):
        add(f"blk.{layer}.attn_norm.weight", width)
        add(f"blk.{layer}.ffn_norm.weight", width)
        for part in ("attn_q", "attn_k", "attn_v", "attn_output"):
            add(f"blk.{layer}.{part}.weight", width, width)
        add(f"blk.{layer}.ffn_gate.weight", inner, width)
        add(f"blk.{layer}.ffn_up.weight", inner, width)
        add(f"blk.{layer}.ffn_down.weight", width, inner)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@contextmanager
def real_server(folder: Path, key: str = KEY) -> Iterator[str]:
    """The address of the API of a server that has the model, and wants this key, where there is one."""
    for package in ("xllamacpp", "gguf"):
        pytest.importorskip(package, reason=f"{package} has no wheel here: pip install 'processor[test-llm]'")
    path = folder / "tiny.gguf"
    write_model(path)
    with subprocess.Popen(
        [sys.executable, "-m", "tests.llm", str(path), key],
        cwd=Path(__file__).parent.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as server:
        try:
            assert server.stdout is not None
            address = server.stdout.readline().strip()
            assert address, f"the server of models ended with {server.wait()}"
            yield f"{address}/v1"
        finally:
            server.kill()


def _serve(path: str, key: str) -> None:
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = path
    params.model_alias = {MODEL}
    params.n_ctx, params.n_parallel, params.n_gpu_layers = 2 * CONTEXT, 2, 0
    params.hostnames, params.port, params.n_threads_http = ["127.0.0.1"], 0, 2
    params.cpuparams.n_threads = 1
    params.api_keys = [key] if key else []
    params.ui = params.warmup = False
    params.embedding, params.pooling_type = True, xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
    params.sampling.ignore_eos = True  # so that an answer has as many tokens as it may have
    params.verbosity = -1
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)  # noqa: T201 - to whoever has started it
    threading.Event().wait()  # until it is killed


if __name__ == "__main__":
    _serve(*sys.argv[1:])
