"""Search for better values of a recipe, scored on validation patients; the test split is never read.

Optuna draws the values (Akiba et al., KDD 2019; by default the tree-structured Parzen estimator of Bergstra
et al., NIPS 2011) and ends trials early that fall behind. Its journal, one line an event, is what makes a
search resumable and lets several processes work on it; SQLite loses trials under parallel writers.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from pneumoscope.data.folder import load
from pneumoscope.errors import DataError, PneumoscopeError, RecipeError
from pneumoscope.experiment.images import prepare_manifest
from pneumoscope.experiment.plan import Experiment, resolved
from pneumoscope.experiment.run_folder import SPLIT_FILE, begun_with
from pneumoscope.experiment.trial_images import FOLDS_FILE, TrialImages, divide_folds
from pneumoscope.experiment.tuning_folder import check_same, held, repair_journal, write_search
from pneumoscope.experiment.tuning_output import Trial, Tuned, write_results
from pneumoscope.model.bundle import input_hash
from pneumoscope.parallel import Progress, available_cpus
from pneumoscope.training.fit import CHECKPOINT_FILE, fit
from pneumoscope.training.history import Epoch
from pneumoscope.training.networks import build_recipe_network, check_size
from pneumoscope.training.pretrain import pretrain
from pneumoscope.training.processes import make_fabric
from pneumoscope.training.recipe import Recipe
from pneumoscope.training.space import STRENGTH, Range, SearchSpace, default_space, load_space

__all__ = ["Search", "tune"]

JOURNAL_FILE = "journal.log"
TRIALS_FOLDER = "trials"
STUDY = "pneumoscope"
POLL_SECONDS = 0.5
RANDOM_TRIALS = 10  # before the draws follow the results
DONE = (TrialState.COMPLETE, TrialState.PRUNED)


@dataclass(frozen=True)
class Search:
    """How to search.

    Parameters
    ----------
    trials : int
        In all, those of earlier calls on the same folder included.
    jobs : int
        Processes that train at the same time.
    folds : int or None
        Score a trial on folds of the training and validation patients, in place of split ``val``.
    objective : {"loss", "auroc"}
        Of the validation images: cross-entropy, which is minimised, or AUROC of the target, maximised.
    pruner : {"median", "hyperband", "none"}
        How trials are ended early, by the objective after each epoch: behind the median of the others at the
        same epoch, or by Hyperband (Li et al., JMLR 2018).
    space : Path or None
        Search space; `default_space` of the recipe if None.
    """

    trials: int
    jobs: int = 1
    folds: int | None = None
    objective: Literal["loss", "auroc"] = "loss"
    pruner: Literal["median", "hyperband", "none"] = "median"
    space: Path | None = None


@dataclass(frozen=True)
class _Job:
    """What a process that trains needs to know."""

    experiment: Experiment
    search: Search
    space: SearchSpace
    number: int
    begun: int  # trials of earlier calls


def tune(experiment: Experiment, search: Search, progress: Progress | None = None) -> Tuned:
    """Search for values of a recipe with a better validation result; continues where the folder has a search.

    The first trial has the recipe's own values, where they are in the search space. A teacher of the recipe
    is not used in trials, since it would be trained in each.

    Parameters
    ----------
    experiment : Experiment
        Its `out` gets ``trials.csv``, ``trials.png``, ``best.yaml``, the journal and a folder for each trial.
    search : Search
    progress : Progress, optional
        Gets one line for each trial.

    Raises
    ------
    DataError
        If the folder has another search, another process works on it, or no trial was completed.
    RecipeError
        If the search space does not fit the recipe.
    """
    progress = progress or Progress()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    manifest = load(experiment.data, progress=progress)
    experiment = resolved(experiment, manifest)
    recipe, out = experiment.recipe, experiment.out
    space = load_space(search.space, recipe) if search.space else default_space(recipe)
    if search.objective == "loss" and "class_weights" in space.keys:
        raise RecipeError(
            f"{search.space}: class_weights: losses of differently weighted classes do not compare; search "
            "with --objective auroc"
        )
    facts = {
        "folds": search.folds,
        "objective": search.objective,
        "space": space.to_yaml(),
        "data": str(experiment.data.resolve()),
        "limit": experiment.limit,
        "weights": input_hash(experiment.weights),
        "lungs": input_hash(experiment.lungs),
    }
    with held(out):
        check_same(out, recipe, facts)
        if (out / JOURNAL_FILE).exists():
            begun_with(out, manifest)  # scores on other images do not compare
        else:
            manifest = prepare_manifest(manifest, recipe, limit=experiment.limit, progress=progress)
            (out / FOLDS_FILE).unlink(missing_ok=True)  # of a call that ended before the first trial
            if search.folds:
                divide_folds(out, manifest, search.folds, recipe.split.seed, progress)
            manifest.write(out / SPLIT_FILE)
        progress.step("reading training and validation images")
        images = TrialImages(experiment)
        for _ in images.parts(recipe, progress):
            pass
        # Not before: where the images ask for other options, these are not those of another search.
        write_search(out, recipe, facts)
        progress.step(f"{search.trials} trials")
        repair_journal(out / JOURNAL_FILE)
        study = _open(out, search, recipe)
        _take_up(study, space, recipe, out)
        _run(_Job(experiment, search, space, 0, len(study.trials)), study, images, progress)
        return _results(study, experiment, search, space)


def _open(out: Path, search: Search, recipe: Recipe, *, seed: int = 0) -> optuna.Study:
    """Open the journal; each process has a sampler of its own, which must not draw what another one draws."""
    sampler = optuna.samplers.TPESampler(
        n_startup_trials=RANDOM_TRIALS, constant_liar=search.jobs > 1, seed=seed
    )
    pruners: dict[str, Callable[[], optuna.pruners.BasePruner]] = {
        "median": lambda: optuna.pruners.MedianPruner(
            n_startup_trials=5, n_warmup_steps=max(2, recipe.epochs // 5)
        ),
        "hyperband": lambda: optuna.pruners.HyperbandPruner(max_resource=recipe.epochs * (search.folds or 1)),
        "none": optuna.pruners.NopPruner,
    }
    storage = JournalStorage(JournalFileBackend(str(out / JOURNAL_FILE)))
    return optuna.create_study(
        study_name=STUDY,
        storage=storage,
        sampler=sampler,
        pruner=pruners[search.pruner](),
        direction="minimize" if search.objective == "loss" else "maximize",
        load_if_exists=True,
    )


def _take_up(study: optuna.Study, space: SearchSpace, recipe: Recipe, out: Path) -> None:
    """Repeat trials that were interrupted; begin with the recipe's own values."""
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        study.tell(trial.number, state=TrialState.FAIL)
        shutil.rmtree(_folder(out, trial.number), ignore_errors=True)
        if trial.params:
            study.enqueue_trial(trial.params)
    own = recipe.values() | {STRENGTH: 1.0}
    if not study.trials and space.holds(own):
        study.enqueue_trial({key: own[key] for key in space.keys})


def _folder(out: Path, number: int) -> Path:
    return out / TRIALS_FOLDER / f"{number:04d}"


def _is_done(trial: FrozenTrial) -> bool:
    """Whether a trial ended by itself; one that was interrupted has no error."""
    return trial.state in DONE or "error" in trial.user_attrs


def _run(job: _Job, study: optuna.Study, images: TrialImages, progress: Progress) -> None:
    """Run the trials that are left, here or in processes."""
    total = job.search.trials
    left = total - sum(map(_is_done, study.get_trials(deepcopy=False)))
    if left <= 0:
        return
    context = multiprocessing.get_context("spawn")
    counter = context.Value("i", left)
    shown = _Shown(study, job, progress)
    if job.search.jobs == 1:
        _work(job, counter, images, shown)
        return
    workers = [
        context.Process(target=_work, args=(replace(job, number=number), counter), daemon=True)
        for number in range(1, min(job.search.jobs, left) + 1)
    ]
    with _threads_for(len(workers)):
        for worker in workers:
            worker.start()
    try:
        while any(worker.is_alive() for worker in workers):
            time.sleep(POLL_SECONDS)
            shown()
    finally:
        for worker in workers:
            worker.terminate()
            worker.join()
    shown()
    if codes := [str(worker.exitcode) for worker in workers if worker.exitcode]:
        raise DataError(
            f"{job.experiment.out}: {len(codes)} processes ended with code {', '.join(codes)}; repeat the "
            "command to continue, with fewer --jobs if the memory was too small"
        )


@contextmanager
def _threads_for(processes: int) -> Iterator[None]:
    """Share the processors among the processes that are started inside."""
    name = "OMP_NUM_THREADS"
    given = os.environ.get(name)
    os.environ.setdefault(name, str(max(1, available_cpus() // processes)))
    try:
        yield
    finally:
        if given is None:
            del os.environ[name]


class _Shown:
    """Reports trials as they end."""

    def __init__(self, study: optuna.Study, job: _Job, progress: Progress) -> None:
        self.study, self.job, self.progress = study, job, progress
        self.told = {one.number for one in study.get_trials(deepcopy=False) if one.state.is_finished()}
        self()

    def __call__(self) -> None:
        trials = self.study.get_trials(deepcopy=False)
        for one in trials:
            if one.state.is_finished() and one.number not in self.told:
                self.told.add(one.number)
                self.progress.message(Trial.of(one).line(self.job.search.objective))
        self.progress.update(sum(map(_is_done, trials)), self.job.search.trials)


def _work(
    job: _Job, counter: Any, images: TrialImages | None = None, shown: Callable[[], None] | None = None
) -> None:
    """Run trials until the counter is used up; one process, or one of several."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    # A search that is continued must not draw again what it drew at first.
    seed = (job.experiment.recipe.seed * 1009 + job.begun) * 1009 + job.number
    study = _open(job.experiment.out, job.search, job.experiment.recipe, seed=seed % 2**32)
    images = images or TrialImages(job.experiment)
    while True:
        with counter.get_lock():
            if counter.value <= 0:
                return
            counter.value -= 1
        trial = study.ask()
        started = time.monotonic()
        try:
            value = _score(trial, job, images)
        except optuna.TrialPruned:
            state, value = TrialState.PRUNED, None
        except PneumoscopeError as error:
            state, value = TrialState.FAIL, None
            trial.set_user_attr("error", str(error))
        else:
            state = TrialState.COMPLETE
        trial.set_user_attr("seconds", round(time.monotonic() - started, 1))
        study.tell(trial, value, state=state)
        if shown:
            shown()


def _draw(trial: optuna.Trial, key: str, one: Range | tuple[Any, ...]) -> Any:
    if not isinstance(one, Range):
        return trial.suggest_categorical(key, one)
    if one.whole:
        step = 1 if one.step is None else int(one.step)
        return trial.suggest_int(key, int(one.low), int(one.high), step=step, log=one.log)
    return trial.suggest_float(key, one.low, one.high, step=one.step, log=one.log)


def _score(trial: optuna.Trial, job: _Job, images: TrialImages) -> float:
    """Train with drawn values and return the objective, the mean over the folds."""
    drawn = {key: _draw(trial, key, one) for key, one in job.space.keys.items()}
    recipe = job.space.applied(job.experiment.recipe, drawn).without_distillation()
    if not recipe.network.pretrained and job.experiment.weights is None:
        recipe = recipe.from_scratch()  # as `train` does
    fabric = make_fabric()
    values: list[float] = []
    parent = multiprocessing.parent_process()
    for number, (train, val) in enumerate(images.parts(recipe)):
        run = _folder(job.experiment.out, trial.number) / f"part-{number + 1}"
        run.mkdir(parents=True, exist_ok=True)
        rows: list[Epoch] = []

        def after_epoch(row: Epoch, rows: list[Epoch] = rows, before: int = number * recipe.epochs) -> None:
            if parent is not None and not parent.is_alive():
                raise SystemExit("the search was ended")
            value = _objective(row, job.search)
            # A pruner would end the trial with no value at all.
            if not (math.isfinite(value) and math.isfinite(row.val_loss)):
                raise DataError(f"the validation loss is not finite in epoch {row.epoch}; search lower rates")
            rows.append(row)
            trial.set_user_attr("epochs", before + row.epoch)
            trial.report(value, before + row.epoch)
            if trial.should_prune():
                raise optuna.TrialPruned

        network = build_recipe_network(recipe, weights=job.experiment.weights)
        check_size(network, recipe.input.size)
        if recipe.pretraining:
            network = pretrain(recipe, network, train.images, run, fabric=fabric)
        try:
            fit(recipe, network, train, val, run, fabric=fabric, after_epoch=after_epoch)
        finally:
            # The weights of a hundred trials would fill the disk.
            (run / CHECKPOINT_FILE).unlink(missing_ok=True)
        kept = min(rows, key=lambda row: row.val_loss) if recipe.keep == "best" else rows[-1]
        values.append(_objective(kept, job.search))
    return sum(values) / len(values)


def _objective(row: Epoch, search: Search) -> float:
    return row.val_loss if search.objective == "loss" else row.val_auroc


def _results(study: optuna.Study, experiment: Experiment, search: Search, space: SearchSpace) -> Tuned:
    trials = [Trial.of(one) for one in study.get_trials(deepcopy=False) if one.state.is_finished()]
    trials = [one for one in trials if one.state != "interrupted"]
    complete = [one for one in trials if one.value is not None and one.state == "complete"]
    if not complete:
        reason = next((one.error for one in trials if one.error), "all were ended early")
        raise DataError(f"{experiment.out}: no trial was completed: {reason}")
    sign = 1 if search.objective == "loss" else -1
    best = min(complete, key=lambda one: sign * (one.value or 0.0))
    recipe = space.applied(experiment.recipe, best.values)
    recipe = recipe.model_copy(update={"name": f"{experiment.recipe.name}-tuned"})
    return write_results(experiment.out, trials, best, recipe, search.objective, space)
