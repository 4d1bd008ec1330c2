"""Prints as JSON which of the largest kernels, compiled for a small GPU, need more shared memory than it has; runs on none.

A process of its own, because the tests' kernels are interpreted.
"""

import json
from typing import Any

from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile

from specdec.kernels.linear.kernel import _linear_kernel, num_chains
from specdec.kernels.linear.kernel import choose_tile as choose_linear
from specdec.kernels.moe.kernel import _grouped_kernel
from specdec.kernels.moe.kernel import choose_tile as choose_experts
from specdec.kernels.tile_tables import Tile
from specdec.kernels.tree_attention.kernel import _attend_kernel
from specdec.kernels.tree_attention.plans import choose_plan

CAPABILITY = 89  # 8.6 and 12.0 have as much
MOST, SAVED_BUFFERS = 101_376, 1


def shared_bytes(kernel: Any, pointers: dict[str, str], sizes: tuple[str, ...], constants: dict[str, Any], warps: int) -> int:
    """What a program of a kernel needs."""
    names = kernel.arg_names
    signature = {n: pointers.get(n, "i32" if n in sizes else "constexpr") for n in names}
    constexprs = {(names.index(n),): constants.get(n) for n in names if signature[n] == "constexpr"}
    aligned = {(names.index(n),): [["tt.divisibility", 16]] for n in (*pointers, *sizes)}
    source = ASTSource(kernel, signature, constexprs=constexprs, attrs=aligned)
    return int(compile(source, target=GPUTarget("cuda", CAPABILITY, 32), options={"num_warps": warps}).metadata.shared)


def blocks(tile: Tile) -> dict[str, Any]:
    """A tile as constants of a kernel."""
    return {
        "BLOCK_M": tile.m,
        "BLOCK_N": tile.n,
        "BLOCK_K": tile.k,
        "STAGES": tile.stages,
        "IN_TURN": tile.in_turn,
        "PDL": False,
    }


def of_linear(rows: int) -> int:
    """A layer of 4,096 inputs."""
    depth, width = 4096, 2048
    tile = choose_linear(rows, width, depth).fitted(MOST, SAVED_BUFFERS)
    pointers = {"p_x": "*bf16", "p_w": "*bf16", "p_out": "*bf16"}
    constants = {"K": depth, "SPLIT_K": depth, "CHAINS": num_chains(depth), "HAS_BIAS": False, "HAS_RESIDUAL": False}
    constants |= {"GROUP_N": 8, **blocks(tile)}
    return shared_bytes(_linear_kernel, pointers, ("M", "N", "stride_x"), constants, tile.warps)


def of_experts(gated: bool) -> int:
    """Either product of a prompt."""
    tile = choose_experts(8192, 8, 128, gated).fitted(MOST, SAVED_BUFFERS, 2 if gated else 1)
    pointers = {"p_x": "*bf16", "p_w": "*bf16", "p_out": "*bf16", "p_order": "*i32", "p_starts": "*i32"}
    constants = {"N": 768, "K": 2048, "X": 128, "TOP_K": 8, "CHAINS": 4, "GATED": gated, "BLOCK_X": 128}
    return shared_bytes(_grouped_kernel, pointers, (), {**constants, **blocks(tile)}, tile.warps)


def of_attention(head_dim: int) -> int:
    """A prompt's."""
    group, kv_heads = 4, 8
    plan = choose_plan(2048, 1, kv_heads, group, head_dim, 16)
    pointers = {"p_q": "*bf16", "p_k": "*bf16", "p_v": "*bf16", "p_out": "*bf16"}
    pointers |= {f"p_{name}": "*i64" for name in ("positions", "sequences", "bases", "pages", "ancestors")}
    constants: dict[str, Any] = {"KV_HEADS": kv_heads, "GROUP": group, "BLOCK_GROUP": group}
    constants |= {
        "HEAD_DIM": head_dim,
        "BLOCK_DIM": head_dim,
        "PAGE": 64,
        "TILE": 64,
        "SCALE": 0.1,
        "WINDOW": 0,
        "SOFTCAP": 0.0,
    }
    constants |= {"FUSED": True, "PDL": False, "ROWS": plan.rows, "BLOCK_M": plan.rows * group, "STAGES": plan.stages}
    return shared_bytes(_attend_kernel, pointers, ("R", "P", "D"), constants, plan.warps)


if __name__ == "__main__":
    needed = {f"linear, {rows} rows": of_linear(rows) for rows in (16, 32, 64, 128, 2048)}
    needed |= {f"experts, gated: {gated}": of_experts(gated) for gated in (True, False)}
    needed |= {f"attention, heads of {head_dim}": of_attention(head_dim) for head_dim in (64, 128, 256)}
    print(json.dumps({name: size for name, size in needed.items() if size > MOST}))
