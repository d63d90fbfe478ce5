"""Callbacks for `fit`."""

import json
import math
import os
import pathlib
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import h5py
import keras
import numpy as np

from deel_like_lip._keras import kept_randomness
from deel_like_lip.certificates import Certificate, Rounding, Task, certify_fold, checked_radii
from deel_like_lip.evaluation import check_answers, checked_count, evaluate
from deel_like_lip.folding import set_weights, vanilla_model
from deel_like_lip.renormalization import renormalize


class RenormalizeCallback(keras.callbacks.Callback):
    """Projects the constrained kernels back during `fit`, wherever the layers cannot do it by themselves.

    Also exported as `CondenseCallback`.

    The layers project their kernels right after each update of a Keras optimizer, inside the compiled step. After a
    step of Keras's own `train_step` the callback therefore does nothing more; where a model has a `train_step` of its
    own, it projects after each step. In both cases it projects before every validation, at the end of each epoch and at
    the end of training: there Keras may have put averages in place of the kernels (`use_ema`, `SwapEMAWeights`), which
    no layer sees, and kernels that updates have left up to 12 % below are made orthogonal to the last digit. Put it
    after callbacks that change weights, and before those that save them: what they save is then what training goes on
    with, and a resumed training the same as one without an interruption.

    Args:
        every: Number of training steps from one projection by the callback to the next, whatever the layers do; for
            callbacks that change weights after a batch. By default as above. With `steps_per_execution` Keras calls
            callbacks once for several steps; the projection then follows the first call at which it is due.

    Example:
        >>> model.fit(x, y, callbacks=[RenormalizeCallback()])

    Raises:
        ValueError: If `every` is not a positive integer.
    """

    def __init__(self, every: int | None = None) -> None:
        super().__init__()
        if every is not None and (isinstance(every, bool) or not isinstance(every, int) or every < 1):
            raise ValueError(
                "Invalid value for argument `every` of RenormalizeCallback. Expected a positive integer or None. "
                f"Received: every={every}"
            )
        self.every = every
        self._period: float = 1 if every is None else every
        self._next_batch = 0
        self._steps = 0
        self._due = False

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        if self.every is None:
            self._period = math.inf if _trains_as_keras(self.model) else 1

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._next_batch = 0

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        if self._due:
            self._renormalize()

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        self._steps += batch + 1 - self._next_batch
        self._next_batch = batch + 1
        if self._steps < self._period:
            return
        # A callback that was passed without a list is called from other threads here, on JAX and torch, while the main
        # thread goes on to the next step. That step's begin is always announced by the main thread: projecting waits
        # for it.
        self._due = True
        if threading.current_thread() is threading.main_thread():
            self._renormalize()

    def on_test_begin(self, logs: dict[str, Any] | None = None) -> None:
        self._renormalize()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._renormalize()

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        self._renormalize()

    def _renormalize(self) -> None:
        self._due = False
        self._steps = 0
        renormalize(self.model)


CondenseCallback = RenormalizeCallback


def _trains_as_keras(model: Any) -> bool:
    """Whether each training step updates the kernels by a Keras optimizer, and so projects them."""
    return _inherits(model, "train_step", "make_train_function")


def _inherits(model: Any, *names: str) -> bool:
    """Whether the model has these methods and properties from Keras, none of its own."""
    return all(getattr(type(model), name) is getattr(keras.Model, name) for name in names)


class _LossParam(keras.callbacks.Callback):
    """A callback for one parameter of the losses of a model."""

    def __init__(self, param_name: str) -> None:
        super().__init__()
        self.param_name = param_name

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        if not self._losses():
            names = sorted({name for loss in self._all_losses() for name in getattr(loss, "parameter_variables", ())})
            raise ValueError(
                f"No loss of the model has a parameter '{self.param_name}' that can be scheduled. Expected one of "
                f"{names}. Received: param_name={self.param_name}"
            )

    def _read(self) -> float:
        value: float = getattr(self._losses()[0], self.param_name)
        return value

    def _losses(self) -> list[Any]:
        return [loss for loss in self._all_losses() if self.param_name in getattr(loss, "parameter_variables", ())]

    def _all_losses(self) -> list[Any]:
        return list(keras.tree.flatten(self.model.loss))


class LossParamScheduler(_LossParam):
    """Changes a parameter of the loss, such as `alpha`, `min_margin`, `tau` or the radius `epsilon`, during `fit`.

    Every loss of the model that has a parameter of that name is changed, and the logs get its value at the end of each
    epoch. Give either a schedule, one of `schedules` or any function of the time, or `fp` and `xp`, values at optimizer
    steps between which the parameter is interpolated linearly.

    A change compiles nothing anew: on JAX the parameter becomes a part of the state of the steps, in which it stays.
    But a model that overrides `train_step`, `metrics` or the like is compiled again on JAX at each change, and so
    changes the parameter at the beginning of epochs only.

    Args:
        param_name: Name of the parameter.
        fp: Values of the parameter.
        xp: Increasing optimizer steps at which it has these values, as many as `fp`.
        step: The optimizer step at which training begins. A training that is resumed, whose first epoch is not 0, goes
            on from there by as many steps as the epochs before it had.
        schedule: Function from the time to the value. An epoch or step counts from 0.
        by: What the time is, and so how often the parameter changes: `"epoch"`, by default with `schedule`, or
            `"step"`, by default with `fp` and `xp`. A step costs JAX some time to take its state apart and together.

    Example:
        >>> LossParamScheduler("alpha", schedule=schedules.Log(1.0, 100.0, length=20))
        >>> LossParamScheduler("epsilon", schedule=schedules.Linear(0.0, 1.58, length=5000), by="step")
        >>> LossParamScheduler("tau", fp=[100.0, 10.0], xp=[0, 5000])

    Raises:
        ValueError: If the arguments do not define a schedule, or no loss of the model has such a parameter.
    """

    def __init__(
        self,
        param_name: str,
        fp: Sequence[float] | None = None,
        xp: Sequence[float] | None = None,
        step: int = 0,
        schedule: Callable[[int], float] | None = None,
        by: Literal["epoch", "step"] | None = None,
    ) -> None:
        super().__init__(param_name)
        if (fp is None) != (xp is None) or (fp is None) == (schedule is None):
            raise ValueError(
                "LossParamScheduler expects either `schedule`, or `fp` and `xp`. "
                f"Received: fp={fp}, xp={xp}, schedule={schedule}"
            )
        steps, values = np.asarray(() if xp is None else xp), np.asarray(() if fp is None else fp)
        if schedule is None and (not steps.size or steps.shape != values.shape or np.any(np.diff(steps) <= 0)):
            raise ValueError(
                "LossParamScheduler expects as many values `fp` as steps `xp`, at least one, with `xp` increasing. "
                f"Received: fp={fp}, xp={xp}"
            )
        if by not in (None, "epoch", "step") or (schedule is None and by == "epoch"):
            raise ValueError(
                "Invalid value for argument `by` of LossParamScheduler. Expected 'epoch', 'step' or None, and not "
                f"'epoch' with `xp`, which are steps. Received: by={by!r}"
            )
        self.step = step
        self.schedule = schedule
        self.by = by or ("epoch" if schedule is not None else "step")
        self._points = steps, values
        self._first_iteration: int | None = None
        self._epoch_step = 0
        self._value: float | None = None
        self._compiled_once = True

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        super().on_train_begin(logs)
        self._value = None
        self._compiled_once = keras.backend.backend() != "jax" or self._enter_state()

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        iteration = int(keras.ops.convert_to_numpy(self.model.optimizer.iterations))
        if self._first_iteration is None:
            self._first_iteration = iteration - min(self._steps_before(epoch, iteration), iteration)
        self._epoch_step = self.step + iteration - self._first_iteration
        self._set(epoch if self.by == "epoch" else self._epoch_step)

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        if self.by == "step" and self._compiled_once:
            self._set(self._epoch_step + batch)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        if logs is not None:
            logs[self.param_name] = self._read()

    def _steps_before(self, epoch: int, iteration: int) -> int:
        """Returns the steps of the epochs that a resumed training did before; all of them if it is not known better."""
        steps = (self.params or {}).get("steps")
        return 0 if epoch == 0 else iteration if steps is None else epoch * steps

    def _set(self, time: int) -> None:
        value = float(np.interp(time, *self._points) if self.schedule is None else self.schedule(time))
        if value == self._value:
            return
        self._value = value
        model = self.model  # on JAX that takes the state apart, so that variables have values
        changed = [loss for loss in self._losses() if getattr(loss, self.param_name) != np.float32(value)]
        for loss in changed:
            setattr(loss, self.param_name, value)
        if changed and not self._compiled_once:
            model.make_train_function(force=True)
            model.test_function = None

    def _enter_state(self) -> bool:
        """Makes the parameter a part of the state that the JAX trainer passes to its steps, if that is Keras's own."""
        model = self.model
        overridden = ("train_step", "test_step", "make_train_function", "make_test_function", "metrics")
        if not _inherits(model, *overridden, "compute_loss_and_updates", "stateless_compute_loss"):
            return False
        variables = {id(loss.parameter_variables[self.param_name]): loss for loss in self._losses()}
        known = {id(variable) for variable in model.metrics_variables}
        new = [loss.parameter_variables[self.param_name] for key, loss in variables.items() if key not in known]
        if new:
            # Among the metrics that belong to the model itself, which Keras neither saves nor compiles again.
            model._metrics.append(_LossState(new))
        return True


class _LossState(keras.metrics.Metric):
    """Parameters of losses, as variables of a metric that has no result, so that nothing is logged or reset."""

    def __init__(self, variables: list[Any]) -> None:
        super().__init__(name="loss_parameters")
        self.parameters = variables

    def reset_state(self) -> None:
        pass

    def update_state(self, *args: Any, **kwargs: Any) -> None:
        pass

    def result(self) -> dict[str, Any]:
        return {}


class LossParamLog(_LossParam):
    """Prints a parameter of the loss at the end of epochs, and adds it to the logs.

    `LossParamScheduler` logs what it changes by itself; this is for parameters that something else changes.

    Args:
        param_name: Name of the parameter.
        rate: It is printed after one epoch in so many.

    Example:
        >>> LossParamLog("alpha", rate=10)

    Raises:
        ValueError: If `rate` is not a positive integer, or no loss of the model has such a parameter.
    """

    def __init__(self, param_name: str, rate: int = 1) -> None:
        super().__init__(param_name)
        self.rate = checked_count(rate, "rate")

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        value = self._read()
        if logs is not None:
            logs[self.param_name] = value
        if epoch % self.rate == 0:
            print(f"epoch {epoch + 1}: {self.param_name} = {value:g}")


class AtomicBackup(keras.callbacks.Callback):
    """Backs up a training after each epoch, so that it can be killed at any moment and resumed with the same result.

    `keras.callbacks.BackupAndRestore` writes weights and the number of the epoch to two files, in place: after a kill
    between the two, the next run repeats an epoch, and after a kill within one of them it ends in an error. Nor does it
    keep the state of random numbers, as of dropout. Here weights, optimizer and that go to one file, which has the
    number of epochs in its name and is moved into place when it is complete. At the beginning of `fit` the newest one
    is read, and training goes on with the epoch after it.

    Put it last in the list: what callbacks change at the end of an epoch is then backed up. For the same weights as
    without an interruption, the order of the data must be a function of the epoch, as with `shuffle=False`. Not kept
    are the state of other callbacks, such as the patience of `EarlyStopping`, and torch's own generator, from which
    Keras on torch draws dropout.

    Args:
        backup_dir: Folder for the backups of this training, and of no other.
        delete_checkpoint: Whether the backup is deleted when training has ended. If not, another `fit` with as many
            epochs trains no more.

    Example:
        >>> model.fit(x, y, epochs=3, shuffle=False, callbacks=[RenormalizeCallback(), AtomicBackup("backup")])

    Raises:
        ValueError: If the model is not built before `fit`, or a backup is not one of this model.
    """

    _NAME = re.compile(r"epochs-(\d+)\.weights\.h5")
    _SEEDS = "random_seeds"  # in the file

    def __init__(self, backup_dir: str | os.PathLike[str], delete_checkpoint: bool = True) -> None:
        super().__init__()
        self.backup_dir = pathlib.Path(backup_dir)
        self.delete_checkpoint = delete_checkpoint

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        if not self.model.built:
            raise ValueError(
                f"AtomicBackup expects a model that is built before `fit`. Received: the model '{self.model.name}', "
                "which is not. Call it on data or give it an `Input` first."
            )
        backups = self._backups()
        if backups:
            epochs = max(backups)
            if not self.model.optimizer.built:
                self.model.optimizer.build(self.model.trainable_variables)
            self.model.load_weights(backups[epochs])
            with h5py.File(backups[epochs]) as file:
                for index, seed in enumerate(self._seeds()):
                    seed.assign(file[self._SEEDS][str(index)][()])
            self.model._initial_epoch = epochs

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self.backup_dir.mkdir(parents=True, exist_ok=True)
        fresh = self.backup_dir / "unfinished.weights.h5"
        self.model.save_weights(fresh)
        with h5py.File(fresh, "a") as file:
            group = file.create_group(self._SEEDS)
            for index, seed in enumerate(self._seeds()):
                group[str(index)] = keras.ops.convert_to_numpy(seed)
        fresh.replace(self.backup_dir / f"epochs-{epoch + 1}.weights.h5")
        self._delete(keep=epoch + 1)

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        self.model._initial_epoch = None  # Keras would begin the next `fit` there, too
        if self.delete_checkpoint:
            self._delete()

    def _seeds(self) -> list[Any]:
        """Returns the states of random numbers, which Keras counts among the variables and not among the weights."""
        weights = set(map(id, self.model.weights))
        return [variable for variable in self.model.variables if id(variable) not in weights]

    def _backups(self) -> dict[int, pathlib.Path]:
        """Returns the complete backups by the number of epochs that they come after."""
        found = ((self._NAME.fullmatch(path.name), path) for path in self.backup_dir.glob("*.h5"))
        return {int(match[1]): path for match, path in found if match}

    def _delete(self, keep: int | None = None) -> None:
        for epochs, path in sorted(self._backups().items()):
            if epochs != keep:
                path.unlink()


class CertifyCallback(keras.callbacks.Callback):
    """Folds and certifies the model at the end of each epoch, and logs what holds for validation data.

    The logs get `val_certified_accuracy_R` for each radius R, and `lipschitz_constant`, both by a certificate of the
    weights as they are: no constant is taken on trust, as it is by `metrics.CertifiedAccuracy`, whose value is replaced
    where it has the same name. They are in `history`, and later callbacks of the list can monitor them; tell these the
    `mode`. A model that cannot be certified, and data that does not fit, are refused before the first step.

    Put it after callbacks that change weights at the end of an epoch, `SwapEMAWeights(swap_on_epoch=True)` and then
    `RenormalizeCallback`, and before `EarlyStopping` and `ModelCheckpoint`. Training is the same with and without it.
    Of a model in mixed precision the fold to float32, `vanilla_model(model, dtype="float32")`, is certified.
    An optimizer with `use_ema` alone puts its averages in place after the last epoch, when all is logged: certify the
    model once more then.

    Args:
        validation_data: Labelled data, as `certified_accuracy` takes it, that can be gone through again each epoch.
        radii: l2 distances.
        every: Number of epochs from one certificate to the next. The first and the last epoch of a `fit` have their
            own; those between repeat the values of the last one, so that callbacks which monitor them find them.
        task: As in `certify`.
        rounding: As in `certify`.
        input_scale: As in `certify`.
        input_range: As in `certify`.
        batch_size: Samples that are predicted at once, where the data does not come in batches.
        steps: The largest number of batches to use. Data without an end needs it.
        prefix: Of the names of the certified accuracies.
        verbose: 1 for progress bars.

    Attributes:
        certificate: The last certificate, of the weights as they were then; None before training.

    Example:
        >>> certify = CertifyCallback((x_val, y_val), radii=[0.1, 0.3])
        >>> stop = keras.callbacks.EarlyStopping("val_certified_accuracy_0.3", mode="max", patience=5)
        >>> model.fit(x, y, epochs=50, callbacks=[RenormalizeCallback(), certify, stop])

    Raises:
        ValueError: If an argument is wrong, or the model is not built or cannot be certified.
    """

    def __init__(
        self,
        validation_data: Any,
        radii: Sequence[float],
        *,
        every: int = 1,
        task: Task | Mapping[str, Task] | None = None,
        rounding: Rounding = "exact",
        input_scale: float = 1.0,
        input_range: Sequence[float] | None = None,
        batch_size: int = 256,
        steps: int | None = None,
        prefix: str = "val_",
        verbose: int = 0,
    ) -> None:
        super().__init__()
        if isinstance(validation_data, Iterator):
            raise ValueError(
                "CertifyCallback goes through its `validation_data` each epoch. Expected arrays or a dataset, not an "
                f"iterator, which can be used once. Received: validation_data={validation_data!r}"
            )
        names = [f"{prefix}certified_accuracy_{radius:g}" for radius in checked_radii(radii)]
        if len(set(names)) != len(names):
            raise ValueError(f"Expected `radii` that differ in their first six digits. Received: radii={radii}")
        self.validation_data = validation_data
        self.radii = radii
        self.every = checked_count(every, "every")
        self.batch_size = checked_count(batch_size, "batch_size")
        self.steps = None if steps is None else checked_count(steps, "steps")
        self.verbose = verbose
        self.certificate: Certificate | None = None
        self._options: dict[str, Any] = {
            "task": task,
            "rounding": rounding,
            "input_scale": input_scale,
            "input_range": input_range,
        }
        self._names = names
        self._plain: Any = None
        self._epochs = 0
        self._values: dict[str, float] = {}

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        self._epochs = 0
        self._certify()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        if self._epochs % self.every == 0 or epoch + 1 == (self.params or {}).get("epochs"):
            self._certify()
        self._epochs += 1
        if logs is not None:
            logs.update(self._values)

    def _certify(self) -> None:
        self._fold()
        # Training changes weights alone: what the first certificate has shown of the graph still holds.
        self.certificate = certify_fold(
            self._checked_model(), self._plain, check=self.certificate is None, verbose=self.verbose, **self._options
        )
        check_answers(self.certificate)
        shares = evaluate(
            self._plain,
            self.certificate,
            self.validation_data,
            self.radii,
            batch_size=self.batch_size,
            steps=self.steps,
            verbose=self.verbose,
        )
        self._values = dict(zip(self._names, shares.tolist(), strict=True))
        self._values["lipschitz_constant"] = self.certificate.lipschitz_constant

    def _checked_model(self) -> Any:
        """Returns the model that is certified: the one that is trained, or its fold where that computes in float32."""
        return self._plain if self._is_low() else self.model

    def _is_low(self) -> bool:
        return any(layer.compute_dtype in ("float16", "bfloat16") for layer in self.model._flatten_layers())

    def _fold(self) -> None:
        """Folds the model. If only weights differ from the last fold, they go there, where `predict` is compiled."""
        with kept_randomness():
            plain = vanilla_model(self.model, dtype="float32" if self._is_low() else None)
        if self._plain is not None and _recipe(plain) == _recipe(self._plain):
            set_weights(self._plain, plain.get_weights())
        else:
            self._plain = plain


_NAMES = ("name", "keras_history", "input_layers", "output_layers")  # keys that have names of operations under them


def _recipe(model: Any) -> Any:
    """Returns all that a functional model computes, but for its weights, and for the names of its operations."""
    numbers: dict[str, str] = {}

    def collect(inner: Any) -> None:
        for operation in inner.operations:
            numbers.setdefault(operation.name, f"operation {len(numbers)}")
            if hasattr(operation, "operations"):
                collect(operation)

    def renamed(value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            return {inner: renamed(entry, inner) for inner, entry in value.items()}
        if isinstance(value, list):
            return [renamed(entry, key) for entry in value]
        return numbers.get(value, value) if key in _NAMES and isinstance(value, str) else value

    collect(model)
    return renamed(json.loads(model.to_json()))
