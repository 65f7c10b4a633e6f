# /// script
# requires-python = ">=3.11"
# dependencies = ["w2s_hf"]
#
# [tool.uv.sources]
# w2s_hf = { path = "..", editable = true }
# ///
"""Trains reward models on Anthropic HH with weak labels. The models predict the better of two replies.

The embedded demo (no network, no GPU; two minutes on two CPU cores):

    accelerate launch recipes/anthropic_hh.py

The real task, with Qwen2.5-0.5B as supervisor and a 4-bit LoRA student of 7B, on one GPU of 24 GB:

    accelerate launch recipes/anthropic_hh.py --config single_gpu --num_train_epochs 1 --load_best_model_at_end false

Real models and pairs without a GPU:

    python recipes/anthropic_hh.py --config cpu_real_reward

Your own models and pairs:

    accelerate launch recipes/anthropic_hh.py --weak_model gpt2 --student_model gpt2-xl --dataset_path data/pairs.jsonl

The pairs are a directory or file in a preference format of TRL, with text or messages.
"""

from w2s_hf.cli import recipe

if __name__ == "__main__":
    recipe("anthropic_hh", __doc__)
