"""`lmscale export`: a trained run for transformers, or as safetensors."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from lmscale.cli.argument_types import positive_int
from lmscale.cli.parser import Parser
from lmscale.terminal import print_json

__all__ = ["add_arguments", "run"]

_EPILOG = """\
hf writes config.json, generation_config.json, model.safetensors, tokenizer.json and tokenizer.model:
a Transformer is a GPT2LMHeadModel, with rotary positions a GPTNeoXForCausalLM, a Llama a
LlamaForCausalLM, with qk_norm a Qwen3ForCausalLM, with the same logits. Recurrent and post-norm
Transformers and LSTMs are not in transformers. safetensors writes the arrays of any architecture by
lmscale's own names, and spec.json. Needs the extra `hf`.

  lmscale export results/isoflop-cpu/runs/RUN --format hf --out mymodel
  python -c "from transformers import pipeline; print(pipeline('text-generation', 'mymodel')('def '))"
"""


def add_arguments(parser: Parser, words: Sequence[str]) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _EPILOG
    parser.add_argument("run", metavar="RUN_DIR", help="a folder of DIR/runs")
    parser.add_argument("--format", required=True, metavar="hf|safetensors")
    parser.add_argument("--out", required=True, metavar="DIR", help="the folder to write")
    parser.add_argument(
        "--step", type=positive_int, help="of the checkpoint (the newest; see run --keep-every)"
    )
    parser.add_argument(
        "--force", action="store_true", help="replace a folder that an export has written"
    )
    parser.add_argument(
        "--without-tokenizer",
        action="store_true",
        help="where the corpus of the run, which has its tokeniser, is not on this machine",
    )
    parser.add_argument("--json", action="store_true")


def run(args: argparse.Namespace) -> int:
    from lmscale.cli import start_jax

    start_jax()
    from lmscale.export import export_run

    found = export_run(
        args.run,
        args.out,
        args.format,
        step=args.step,
        tokenizer=not args.without_tokenizer,
        force=args.force,
    )
    if args.json:
        values = {"path": str(found.path), "step": found.step, "load": found.loads_as}
        print_json({**values, "notes": list(found.notes)})
        return 0
    print(f"{found.path}: weights of step {found.step}")
    for note in found.notes:
        print(f"  {note}")
    print(f"load: {found.loads_as}")
    return 0
