# /// script
# requires-python = ">=3.11"
# dependencies = ["w2s_hf"]
#
# [tool.uv.sources]
# w2s_hf = { path = "..", editable = true }
# ///
"""The whole experiment: is a strong student better than the weak supervisor whose labels it is trained on?

The script runs the demo on a CPU, without a network: `python recipes/minimal.py`. For real data, change the constants.
"""

from peft import LoraConfig

import w2s_hf

TASK = "boolq"  # or another name that `w2s tasks` lists
WEAK_MODEL = "demo"  # or a model on the Hub, such as "Qwen/Qwen2.5-0.5B"
STUDENT_MODEL = "demo"  # or "Qwen/Qwen2.5-1.5B"
LEARNING_RATE = 3e-3  # or 1e-4 for models of this size


def train(name, model, rows, **options):
    args = w2s_hf.WeakToStrongConfig(
        output_dir=f"outputs/minimal/{name}", learning_rate=LEARNING_RATE, num_train_epochs=2, warmup_steps=0.1,
        per_device_train_batch_size=32, save_strategy="no", report_to="none",
    )  # fmt: skip
    trainer = w2s_hf.WeakToStrongTrainer(model, args, train_dataset=rows, **options)
    trainer.train()
    return trainer


def on_ground_truth(rows):
    return rows.rename_column("ground_truth", "labels")


if WEAK_MODEL == "demo":
    splits, weak_model, student_model = w2s_hf.load_demo(TASK)
else:
    splits, weak_model, student_model = w2s_hf.load_task(TASK, n_train=2000, n_test=1000), WEAK_MODEL, STUDENT_MODEL
lora = LoraConfig(task_type="SEQ_CLS", target_modules="all-linear", r=8, lora_alpha=16)

# The supervisor is trained on ground truth. It labels rows that it was not trained on.
weak = train("weak", weak_model, on_ground_truth(splits.weak_half))
weak_labels = w2s_hf.WeakLabels(splits.student_half["id"], weak.predict_proba(splits.student_half))
# Student and ceiling are the same model on the same rows. Only their labels differ.
student = train("student", student_model, weak_labels.join(splits.student_half), peft_config=lora)
ceiling = train("ceiling", student_model, on_ground_truth(splits.student_half), peft_config=lora)

scores = {}
for name, trainer in (("weak", weak), ("student", student), ("ceiling", ceiling)):
    predictions = trainer.predict_proba(splits.test).argmax(axis=1)
    scores[name] = float((predictions == splits.test["ground_truth"]).mean())
    print(f"{name}: accuracy {scores[name]:.3f} on {len(splits.test)} test rows")
# The performance gap recovered is 0 for a student as good as its supervisor, and 1 for a student as good as the
# ceiling.
print("PGR:", w2s_hf.performance_gap_recovered(**scores))
