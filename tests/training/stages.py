"""A tiny teacher, its student, data, and a recipe for each stage."""

import json
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from infinitevl.training.surgery import StudentPlan, make_student, save_student
from tests.training.teachers import write_qwen

TEACHING = {
    "distill-layers": {"teacher": "teacher"},
    "distill-logits": {"teacher": "teacher"},
    "sft": {},
    "long-sft": {"lora": {"rank": 4, "alpha": 8, "dropout": 0.1}},
}


def write_world(folder: Path) -> Path:
    """teacher, student and data.jsonl in `folder`."""
    write_qwen(folder / "teacher")
    student = make_student(folder / "teacher", StudentPlan(window=12, initializer_range=0.18))
    save_student(student, folder / "teacher", folder / "student")
    Image.new("RGB", (56, 56), "red").save(folder / "red.png")
    rows: list[dict[str, Any]] = []
    for number in range(12):
        question: Any = f"what is word{number}?"
        if number % 3 == 0:
            question = [{"type": "image", "image": "red.png"}, {"type": "text", "text": question}]
        answer = f"the sign says {'again ' * (number % 5)}{number}"
        rows.append(
            {
                "messages": [
                    {"role": "user", "content": question},
                    {"role": "assistant", "content": answer},
                ]
            }
        )
    rows.append({"messages": [{"role": "user", "content": "nobody answers"}]})
    (folder / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def write_recipe(world: Path, stage: str, out: Path, **changes: Any) -> Path:
    """A recipe of five steps in float32."""
    own = {key: str(world / value) if key == "teacher" else value for key, value in TEACHING[stage].items()}
    settings = {
        "stage": stage,
        "student": str(world / "student"),
        "out": str(out),
        "data": {
            "sources": [{"path": str(world / "data.jsonl")}],
            "row_tokens": 256,
            "rows_per_step": 2,
        },
        "num_steps": 5,
        "learning_rate": 1e-3,
        "dtype": "float32",
        "gradient_checkpointing": False,
        "save_every": 2,
        **own,
        **changes,
    }
    path = out.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(settings))
    return path
