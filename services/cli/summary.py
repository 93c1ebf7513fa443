"""What a finished job and a model version look like to a person."""

from rich.console import Console

from services.cli.job_view import STAGE_TITLES, duration_s
from services.cli.session import make_table, shown_share
from services.contracts.jobs import BackboneChoice, BatchPrediction, TrainingJob, Weights, WeightsUri
from services.contracts.models import Evaluation, FitReport, ModelVersion, ParentComparison


def print_job_summary(
    console: Console, job: TrainingJob, version: ModelVersion | None, *, warnings: bool = True
) -> None:
    """Stages with times, the result, and quality by class. Without `warnings` for who has seen them already."""
    _print_course(console, job, warnings=warnings)
    if version is not None:
        print_version(console, version)
    elif job.backbone_choice is not None:
        _print_backbone_choice(console, job.backbone_choice)


def print_prediction_summary(console: Console, prediction: BatchPrediction, *, warnings: bool = True) -> None:
    """Stages with times, how often each label was given, and where the results are."""
    _print_course(console, prediction, warnings=warnings)
    if prediction.result is None:
        return
    rows = [(each.label, str(each.count)) for each in prediction.result.labels]
    if rows:
        console.print()
        console.print(make_table(("Label", "Images"), rows))
    console.print(f"\n{prediction.result.sentence}\nResults: {prediction.results_uri}", markup=False)


def _print_course(console: Console, job: TrainingJob | BatchPrediction, *, warnings: bool) -> None:
    if job.stages:
        rows = [
            (
                STAGE_TITLES[timing.stage],
                "done before" if timing.skipped else f"{duration_s(timing):.1f} s",
                str(timing.attempt),
            )
            for timing in job.stages
        ]
        console.print(make_table(("Stage", "Time", "Attempt"), rows))
    for warning in job.warnings if warnings else ():
        console.print(f"warning: {warning}", markup=False, style="yellow")
    if job.failure is not None:
        console.print(f"{job.state}: {job.failure.message} ({job.failure.code})", markup=False, style="red")
    elif job.result is None:
        console.print(f"{job.state}: {job.reason}", markup=False)


def print_version(console: Console, version: ModelVersion) -> None:
    """A model version with its evaluation."""
    if version.evaluation is not None:
        console.print()
        _print_evaluation(console, version.evaluation)
    if version.backbone_choice is not None:
        _print_backbone_choice(console, version.backbone_choice)
    if version.fit is not None:
        _print_fit(console, version.fit)
    if version.parent_comparison is not None:
        _print_comparison(console, version.parent_comparison)
    console.print(
        f"\nModel [bold]{version.model_name}[/] version [bold]{version.version}[/]: {version.backbone}, "
        f"{len(version.labels)} classes, {version.train_image_count} training images, job {version.job_id}"
    )


def _print_backbone_choice(console: Console, choice: BackboneChoice) -> None:
    rows = [
        (
            each.backbone,
            _shown_weights(each.weights),
            str(each.image_size),
            f"{each.multiply_adds / 1e9:.2f} G",
            f"{each.accuracy:.1%} ± {each.standard_error:.1%}",
            f"{each.loss:.3f}",
            "chosen" if each.chosen else "",
        )
        for each in choice.candidates
    ]
    rows += [
        (each.backbone, _shown_weights(each.weights), str(each.image_size), "", "", "", "left out")
        for each in choice.left_out
    ]
    columns = ("Backbone", "Weights", "Size", "Cost", "Accuracy", "Loss", "")
    console.print()
    console.print(make_table(columns, rows))
    console.print(
        f"Probed on {choice.image_count} images of {choice.class_count} classes, in {choice.fold_count} folds "
        f"(cost: multiply-adds an image). {choice.reason}",
        markup=False,
    )


def _shown_weights(weights: Weights) -> str:
    return weights.uri.rpartition("/")[2] if isinstance(weights, WeightsUri) else weights


def _print_fit(console: Console, fit: FitReport) -> None:
    if fit.trials:
        rows = [
            (f"{trial.weight_decay:.3g}", f"{trial.validation_loss:.4f}", shown_share(trial.validation_accuracy))
            for trial in fit.trials
        ]
        console.print()
        console.print(make_table(("Weight decay", "Validation loss", "Validation accuracy"), rows))
    console.print(
        f"Trained in {fit.epochs} epochs with weight decay {fit.weight_decay:.3g}; temperature {fit.temperature:.2f}",
        markup=False,
    )


def _print_comparison(console: Console, comparison: ParentComparison) -> None:
    parent = comparison.parent
    rows = [
        (each.label, str(each.support), shown_share(each.parent_recall), shown_share(each.recall))
        for each in comparison.classes
    ]
    console.print()
    console.print(make_table(("Class", "Images", f"Recall v{parent.version}", "Recall now"), rows))
    console.print(
        f"\nParent {parent.model_name} version {parent.version}, on the {comparison.image_count} {comparison.split} "
        f"images whose class it knows: accuracy {shown_share(comparison.parent_accuracy)}, now "
        f"{shown_share(comparison.accuracy)} ({comparison.improved_count} better, {comparison.worsened_count} worse)",
        markup=False,
    )
    if comparison.left_out_count:
        added = ", ".join(comparison.added_classes)
        console.print(f"{comparison.left_out_count} images are of classes new to it: {added}", markup=False)
    if comparison.removed_classes:
        console.print(f"Classes that are gone: {', '.join(comparison.removed_classes)}", markup=False)
    if comparison.trained_by_parent_count is None:
        console.print("Whether the parent was trained on any of these images is not known.")
    elif comparison.trained_by_parent_count:
        console.print(
            f"The parent was trained on {comparison.trained_by_parent_count} of these images; on the others: "
            f"{shown_share(comparison.unseen_parent_accuracy)}, now {shown_share(comparison.unseen_accuracy)}",
            markup=False,
            style="yellow",
        )


def _print_evaluation(console: Console, evaluation: Evaluation) -> None:
    rows = [
        (
            report.label,
            str(report.support),
            shown_share(report.precision),
            shown_share(report.recall),
            shown_share(report.f1),
        )
        for report in evaluation.classes
    ]
    console.print(make_table(("Class", "Images", "Precision", "Recall", "F1"), rows))
    console.print(
        f"\n{evaluation.split.capitalize()} accuracy [bold]{evaluation.accuracy:.1%}[/] "
        f"on {evaluation.image_count} images (loss {evaluation.loss:.3f}, "
        f"calibration error {evaluation.calibration_error:.3f}{_before_scaling(evaluation)})"
    )


def _before_scaling(evaluation: Evaluation) -> str:
    return "" if evaluation.uncalibrated_error is None else f", {evaluation.uncalibrated_error:.3f} before scaling"
