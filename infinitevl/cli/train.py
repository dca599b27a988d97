"""`infinitevl train`: a student from a teacher, and the stages that teach it."""

from typing import TYPE_CHECKING, Annotated

import typer

from infinitevl.cli.command import Attention, AttentionOption, command

if TYPE_CHECKING:
    from infinitevl.training.recipes import Recipe
    from infinitevl.training.surgery import Row

app = typer.Typer(
    help="Turn a Transformer into a student with a state of fixed size, and teach it, stage by stage.",
    no_args_is_help=True,
)

_INTERRUPTED = 130  # as shells say of Ctrl-C

RecipeOption = Annotated[
    str, typer.Option("--recipe", metavar="FILE.yaml", help="Every setting of the stage.")
]
DryRunOption = Annotated[
    bool,
    typer.Option(
        "--dry-run", help="Print what would train, memory, tokens a step and the first row, and end."
    ),
]
PicturesOption = Annotated[
    str | None,
    typer.Option("--pictures", metavar="FOLDER", help="With --dry-run: write the first row's pictures here."),
]
ResumeOption = Annotated[
    bool, typer.Option("--resume", help="Continue from the checkpoint in the recipe's folder.")
]
TeacherOption = Annotated[
    str,
    typer.Option(
        "--teacher", metavar="FOLDER_OR_NAME", help="A Qwen2.5-VL, or a model of ours with attention alone."
    ),
]
StudentOption = Annotated[str, typer.Option("--out", metavar="FOLDER", help="A new folder for the student.")]
LayerTypesOption = Annotated[
    str | None,
    typer.Option(
        "--layer-types",
        metavar="TYPE,TYPE,...",
        help="Of every layer: sliding, linear or full; overrides --period.",
    ),
]
LinearHeadDimOption = Annotated[
    int | None, typer.Option("--linear-head-dim", min=1, help="Key width of a head; default: as attention.")
]
InitializerRangeOption = Annotated[
    float | None,
    typer.Option(
        "--initializer-range",
        help="Deviation of fresh projections; default: the teacher's. Small models: hidden_size^-0.5.",
    ),
]


@command(app)
def init(
    teacher: TeacherOption,
    out: StudentOption,
    layer_types: LayerTypesOption = None,
    period: Annotated[
        int, typer.Option("--period", min=1, help="One window layer, then period - 1 Gated DeltaNets.")
    ] = 4,
    window: Annotated[
        int, typer.Option("--window", min=1, help="The last keys that a window layer sees.")
    ] = 8192,
    sinks: Annotated[
        int, typer.Option("--sinks", min=0, help="The first keys, which a window layer never forgets.")
    ] = 0,
    linear_heads: Annotated[
        int | None, typer.Option("--linear-heads", min=1, help="Heads of a new mixer; default: as attention.")
    ] = None,
    linear_head_dim: LinearHeadDimOption = None,
    expand: Annotated[
        float, typer.Option("--expand", help="Value width of a head over its key width.")
    ] = 2.0,
    initializer_range: InitializerRangeOption = None,
    seed: Annotated[int, typer.Option("--seed", help="Of the fresh projections.")] = 0,
) -> None:
    """Make a student: chosen layers get new Gated DeltaNets, all else is inherited bit for bit."""
    from pathlib import Path

    from infinitevl.training import surgery

    plan = surgery.StudentPlan(
        layer_types=_full_names(layer_types),
        period=period,
        window=window,
        sinks=sinks,
        num_linear_heads=linear_heads,
        linear_head_dim=linear_head_dim,
        expand=expand,
        initializer_range=initializer_range,
        seed=seed,
    )
    surgery.check_new(Path(out))
    student = surgery.make_student(teacher, plan)
    rows = surgery.weight_table(student)
    _print_table(rows)
    missing = surgery.save_student(student, teacher, Path(out))
    print(f"\n{out}: {len(rows)} weights; every one by name in {surgery.TABLE_FILE}")
    if missing:
        print(f"No processor was written, so that the folder only takes token ids: {missing}.")


@command(app)
def distill_layers(
    recipe: RecipeOption,
    dry_run: DryRunOption = False,
    pictures: PicturesOption = None,
    resume: ResumeOption = False,
    attention: AttentionOption = Attention.auto,
) -> None:
    """Stage 1a: new mixers learn their layer's output from the teacher's layer."""
    _run("distill-layers", recipe, dry_run, pictures, resume, attention)


@command(app)
def distill_logits(
    recipe: RecipeOption,
    dry_run: DryRunOption = False,
    pictures: PicturesOption = None,
    resume: ResumeOption = False,
    attention: AttentionOption = Attention.auto,
) -> None:
    """Stage 1b: new mixers learn the teacher's distribution of next tokens."""
    _run("distill-logits", recipe, dry_run, pictures, resume, attention)


@command(app)
def sft(
    recipe: RecipeOption,
    dry_run: DryRunOption = False,
    pictures: PicturesOption = None,
    resume: ResumeOption = False,
    attention: AttentionOption = Attention.auto,
) -> None:
    """Stage 2: mixers, attention and feed-forward learn answers."""
    _run("sft", recipe, dry_run, pictures, resume, attention)


@command(app)
def long_sft(
    recipe: RecipeOption,
    dry_run: DryRunOption = False,
    pictures: PicturesOption = None,
    resume: ResumeOption = False,
    attention: AttentionOption = Attention.auto,
) -> None:
    """Stage 3: LoRA adapters learn answers over long sequences."""
    _run("long-sft", recipe, dry_run, pictures, resume, attention)


@command(app)
def export(recipe: RecipeOption, attention: AttentionOption = Attention.auto) -> None:
    """Write the model of an unfinished run's checkpoint as a model folder."""
    settings = _read(recipe, attention)
    from infinitevl.training import stage

    print(f"The model is in {stage.export(settings)}.")


def _read(path: str, attention: Attention) -> "Recipe":
    """Read a recipe; an option of the command counts more than its setting."""
    from infinitevl.errors import InputError

    try:
        from infinitevl.training.recipes import read_recipe
    except ImportError as error:
        raise InputError(f"training needs {error.name}: pip install 'infinitevl[train]'.") from error
    recipe = read_recipe(path)
    chosen = attention.variant or recipe.attention
    return recipe.model_copy(update={"attention": chosen})


def _run(
    stage: str, path: str, dry_run: bool, pictures: str | None, resume: bool, attention: Attention
) -> None:
    from infinitevl.errors import InputError

    recipe = _read(path, attention)
    if recipe.stage != stage:
        raise InputError(f"{path} is a recipe for `infinitevl train {recipe.stage}`, not for {stage}.")
    if dry_run:
        from pathlib import Path

        from infinitevl.training.preview import preview

        print(preview(recipe, Path(pictures) if pictures else None))
        return
    from infinitevl.training.stage import teach

    try:
        folder = teach(recipe, resume=resume)
    except KeyboardInterrupt as error:
        message = str(error) or "Stopped before the first step."
        print(f"{message} {_how_to_continue(recipe.out)}", flush=True)
        raise typer.Exit(_INTERRUPTED) from error
    if folder is None:
        raise typer.Exit(_INTERRUPTED)
    print(f"The finished model is in {folder}.")


def _how_to_continue(out: str) -> str:
    from pathlib import Path

    from infinitevl.training.checkpoint import CHECKPOINT

    path = Path(out) / CHECKPOINT
    if path.exists():
        return f"The same command with --resume continues from {path}."
    return "There is no checkpoint yet: the same command starts again."


def _full_names(text: str | None) -> list[str] | None:
    """`sliding,linear` -> the configuration's names; surgery refuses unknown names."""
    if text is None:
        return None
    kinds = [kind.strip() for kind in text.split(",")]
    return [kind if kind.endswith("_attention") else f"{kind}_attention" for kind in kinds]


def _print_table(rows: "list[Row]") -> None:
    from infinitevl.training.parts import STAGES
    from infinitevl.training.surgery import folded

    lines: list[tuple[str, ...]] = [("weight", "how many", "origin", *STAGES)]
    lines += [(name, str(count), row.origin, *row.roles) for name, row, count in folded(rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
