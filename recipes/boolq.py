# /// script
# requires-python = ">=3.11"
# dependencies = ["w2s_hf"]
#
# [tool.uv.sources]
# w2s_hf = { path = "..", editable = true }
# ///
"""Runs weak-to-strong generalization on BoolQ: yes/no questions about a passage.

The embedded demo (no network, no GPU; two minutes on two CPU cores):

    accelerate launch recipes/boolq.py

The real task, with Qwen2.5-0.5B as supervisor and a 4-bit LoRA student of 7B, on one GPU of 24 GB:

    accelerate launch recipes/boolq.py --config single_gpu

Your own models and a local copy of the rows:

    accelerate launch recipes/boolq.py --weak_model gpt2 --student_model gpt2-xl --dataset_path data/boolq
"""

from w2s_hf.cli import recipe

if __name__ == "__main__":
    recipe("boolq", __doc__)
